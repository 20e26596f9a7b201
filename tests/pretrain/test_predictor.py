import json
from pathlib import Path

import pytest
import torch

from scott_models.pretrain import Predictor

SPREADS = json.loads((Path(__file__).parents[1] / "reference" / "init_std.json").read_text())


def test_parameters_exactly():
    predictor = Predictor(384, 196, num_heads=6, encoder_depth=12)
    # The original has a mask token that nothing uses; ours has none.
    assert sum(p.numel() for p in predictor.parameters()) == SPREADS["predictor_param_count"] - 384


def test_initial_spreads_are_the_originals():
    predictor = Predictor(384, 196, num_heads=6, encoder_depth=12)
    tensors = dict(predictor.named_parameters())
    checked = {"head.1.weight", "head.1.bias"}
    for theirs, spread in SPREADS["predictor_for_scott_12_16"].items():
        if theirs in ("transformer.msk_embed", "transformer.pos_embed", "head.1.weight", "head.1.bias"):
            continue
        ours = theirs.removeprefix("transformer.").replace("self_attn", "attn")
        ours = ours.replace("ffn_layer.w12", "mlp.fc1").replace("ffn_layer.last_linear", "mlp.fc2")
        # the head's bias has only 384 numbers: three standard errors of a uniform spread are 7 %
        assert tensors[ours].std().item() == pytest.approx(spread, rel=0.07 if ours == "head.2.bias" else 0.03), ours
        checked.add(ours)
    assert checked == set(tensors)
    assert (predictor.head[1].weight == 1).all()
    assert (predictor.head[1].bias == 0).all()


def test_any_grid():
    predictor = Predictor(32, (2, 5), num_heads=2, encoder_depth=1, depth=1)
    assert predictor(torch.randn(3, 10, 32)).shape == (3, 10, 32)
    with pytest.raises(ValueError, match="square number.*got 10"):
        Predictor(32, 10, num_heads=2, encoder_depth=1)


def test_stochastic_depth_rises_to_the_last_block():
    predictor = Predictor(32, 4, num_heads=2, encoder_depth=1, depth=3, drop_path=0.1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in predictor.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1])


def test_a_mask_token_stands_for_what_is_hidden():
    predictor = Predictor(32, (2, 3), num_heads=2, encoder_depth=1, depth=1, mask_token=True).eval()
    features, places = torch.randn(2, 2, 32), torch.tensor([[0, 4], [3, 5]])
    whole = predictor.mask_token.expand(2, 6, 32).clone()
    for image, (first, second) in enumerate(places.tolist()):
        whole[image, first], whole[image, second] = features[image]
    assert torch.equal(predictor(features, places), predictor(whole))


def test_another_grid_from_now_on():
    predictor = Predictor(32, (4, 4), num_heads=2, encoder_depth=1, depth=1)
    fresh = Predictor(32, (2, 3), num_heads=2, encoder_depth=1, depth=1)
    fresh.load_state_dict(predictor.state_dict())
    predictor.set_grid((2, 3))
    features = torch.randn(2, 6, 32)
    assert torch.equal(predictor(features), fresh(features))
