"""Parity with the original implementation, and what must hold for any weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from scott_models import SCOTT, weights
from scott_models.errors import RecipeError, WeightsError
from scott_models.pretrain import MIMJEPA, Predictor, Recipe, engine
from scott_models.pretrain.build import build_objective
from scott_models.pretrain.draws import Draws
from scott_models.pretrain.recipe import Optim
from scott_models.weights import convert_reference, convert_reference_predictor


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def original(recording):
    """The recorded model, rebuilt: the objective in training mode without any dropout."""
    tensors, settings = recording
    encoder = SCOTT(
        img_size=settings["img_size"],
        embed_dim=settings["embed_dim"],
        depth=settings["depth"],
        num_heads=settings["num_heads"],
        use_mask_token=True,
    )
    encoder.load_state_dict(convert_reference(part(tensors, "encoder.")))
    predictor = Predictor(
        settings["embed_dim"],
        encoder.patch_embed.num_patches,
        num_heads=settings["num_heads"],
        encoder_depth=settings["depth"],
        depth=settings["predictor_depth"],
    )
    predictor.load_state_dict(convert_reference_predictor(part(tensors, "predictor.")))
    objective = MIMJEPA(encoder, predictor)
    objective.target_encoder.load_state_dict(convert_reference(part(tensors, "target.")))
    return objective.train()


@pytest.fixture
def inputs(recording):
    return [recording[0][name] for name in ("in.context", "in.target", "in.visible")]


def our_parameter(objective, name):
    """The parameter that carries this recorded name, e.g. "encoder.transformer.msk_embed"."""
    module, rest = name.split(".", 1)
    modules = {
        "encoder": objective.context_encoder,
        "target": objective.target_encoder,
        "predictor": objective.predictor,
    }
    return modules[module].get_parameter(*convert_reference({rest: None}))


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.no_grad()
def test_outputs(original, inputs, recording):
    expected = part(recording[0], "out.")
    context, target, visible = inputs
    encoder = original.context_encoder
    masked = encoder.forward_tokens(context, visible)
    # tokens reach 7.4, and a convolution of maps that are channels last sums 3,136 products in another order
    close(encoder.patch_embed(context), expected["tokens_full"], 2e-5)
    close(encoder.patch_embed(context, visible), expected["tokens_visible"], 2e-5)
    close(encoder.forward_tokens(context), expected["features_full"], 1e-5)
    close(masked, expected["features_masked"], 1e-5)
    close(encoder.get_attention(context)[0], expected["attention_last"], 1e-5)
    close(original.target_encoder.forward_features(target), expected["targets"], 1e-5)
    close(original.predictor(masked), expected["predictions"], 1e-5)


def test_loss_and_gradients(original, inputs, recording):
    loss = original(*inputs)
    assert loss.item() == pytest.approx(recording[1]["losses"][0], abs=1e-5)
    loss.backward()
    gradients = part(recording[0], "grad.")
    assert len(gradients) == 6
    for name, expected in gradients.items():
        close(our_parameter(original, name).grad, expected, 1e-5 * expected.abs().max().item())


def worst_after_three_updates(objective, inputs, recording, *, ema_first=False, **optim):
    """Three updates of the shipped loop, or with one mistake; the largest difference from the recorded weights."""
    tensors, settings = recording
    # 100 updates in all with 13 of warm-up, of which the first three are recorded; the rest are the paper's defaults
    recipe = Recipe(optim=Optim(**{"epochs": 100, "warmup_epochs": 13, **optim}))
    objective.ema = (recipe.optim.start_ema, recipe.optim.final_ema)
    optimizer = engine.build_optimizer(objective)
    if ema_first:
        follow, steps = objective.after_step, iter((1, 2, 3))
        optimizer.register_step_pre_hook(lambda *_: follow(next(steps), 100))
        objective.after_step = lambda step, total: None
    losses = []
    for k in (1, 2, 3):
        engine.set_schedules(recipe, optimizer, k, total=100, steps_per_epoch=1)
        loss = objective(*inputs)
        losses.append(loss.item())
        loss.backward()
        engine.apply_gradients(optimizer, loss)
        objective.after_step(k, 100)
    expected = part(tensors, "after3.")
    assert len(expected) == 4
    worst = max((our_parameter(objective, name) - tensor).abs().max().item() for name, tensor in expected.items())
    return worst, max(abs(loss - theirs) for loss, theirs in zip(losses, settings["losses"]))


def test_three_updates(original, inputs, recording):
    weights, losses = worst_after_three_updates(original, inputs, recording)
    assert weights < 2e-7
    assert losses < 1e-5


@pytest.mark.parametrize(
    "mistake",
    [
        {"start_weight_decay": 0.0, "final_weight_decay": 0.0},
        {"start_ema": 0.99604, "final_ema": 0.99604},  # the first update's value, frozen
        {"ema_first": True},
        {"warmup_epochs": 12},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_three_updates_notice_a_mistake(original, inputs, recording, mistake):
    weights, _ = worst_after_three_updates(original, inputs, recording, **mistake)
    assert weights > 2e-7


@pytest.fixture
def objective(tiny):
    return MIMJEPA(tiny, Predictor(32, (4, 4), num_heads=2, encoder_depth=2, depth=1)).train()


def test_target_is_a_frozen_copy_without_dropout(objective):
    assert objective.context_encoder.training
    assert not objective.target_encoder.training
    assert not any(p.requires_grad for p in objective.target_encoder.parameters())
    for name, parameter in objective.context_encoder.named_parameters():
        copied = objective.target_encoder.get_parameter(name)
        assert torch.equal(copied, parameter)
        assert copied.data_ptr() != parameter.data_ptr()


def test_loss_counts_hidden_patches_only(objective, visible, monkeypatch):
    targets = torch.randn(2, 16, 32)
    monkeypatch.setattr(objective.target_encoder, "forward_features", lambda images: targets)
    monkeypatch.setattr(
        objective.predictor, "forward", lambda features: torch.where(visible[..., None], 100.0, targets + 3)
    )
    assert objective(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64), visible).item() == pytest.approx(2.5)


def test_inputs_and_after_step(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    context, target, visible = objective.inputs(crops, torch.Generator().manual_seed(0))
    again = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((context, target, visible), again))
    assert visible.sum(dim=1).tolist() == [7] * 4
    with torch.no_grad():
        for parameter in objective.context_encoder.parameters():
            parameter.fill_(1)
        for parameter in objective.target_encoder.parameters():
            parameter.fill_(0)
    objective.after_step(5, 10)  # half way from 0.996 to 1
    assert all(torch.allclose(p, torch.tensor(0.002)) for p in objective.target_encoder.parameters())
    objective.after_step(10, 10)
    assert all(torch.allclose(p, torch.tensor(0.002)) for p in objective.target_encoder.parameters())


def test_weights_are_listed_once(objective, monkeypatch):
    objective.after_step(1, 10)
    objective.student = Wrapper(objective.student)  # as for several processes
    before = [parameter.clone() for parameter in objective.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in objective.context_encoder.parameters():
            parameter.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "named_parameters", None)  # it took longer than all else
        objective.after_step(2, 10)
    after = list(objective.target_encoder.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_encoder_needs_a_mask_token():
    model = SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="use_mask_token=True"):
        MIMJEPA(model, Predictor(32, 16, num_heads=2, encoder_depth=1))


TAG = "scott_3_16.mimjepa_flowers102_cpu"


def small(**model):
    recipe = Recipe.load("smoke", ["model.img_size=32", "model.predictor_depth=1"])
    return recipe.changed("model", **model)


def test_starting_from_released_weights():
    """Both encoders, the mask token included, whatever the size they were trained at."""
    torch.manual_seed(5)
    objective = build_objective(small(init=TAG))
    released = load_file(weights.resolve(TAG))
    for encoder in (objective.context_encoder, objective.target_encoder):
        state = encoder.state_dict()
        assert state.keys() == released.keys()
        assert all(torch.equal(state[name], tensor.float()) for name, tensor in released.items())
    torch.manual_seed(5)
    fresh = build_objective(small())
    assert torch.equal(objective.predictor.head[2].weight, fresh.predictor.head[2].weight)  # starts as ever


def test_starting_from_the_bytes_that_were_verified(tmp_path, monkeypatch):
    """Whatever the file holds once they have been read."""
    path, read = Path(shutil.copy(weights.resolve(TAG), tmp_path)), weights.read
    released = load_file(weights.resolve(TAG))

    def exchange(*arguments):
        found = read(*arguments)
        path.write_bytes(b"others")
        return found

    monkeypatch.setattr(weights, "find", lambda tag: path)
    monkeypatch.setattr(weights, "read", exchange)
    state = build_objective(small(init=TAG)).context_encoder.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in released.items())
    with pytest.raises(WeightsError, match="damaged or not the released weights"):
        build_objective(small(init=TAG))


def test_starting_from_a_folder_without_a_mask_token(tmp_path):
    """The mask token stays fresh where the file has none, and a classifier's head stays behind."""
    model = timm.create_model("scott_3_16", img_size=48, num_classes=5)
    weights.export(model, tmp_path / "run" / "export", dtype=torch.float32)
    for init in (f"local-dir:{tmp_path / 'run' / 'export'}", str(tmp_path / "run")):
        torch.manual_seed(5)
        encoder = build_objective(small(init=init)).context_encoder
        torch.manual_seed(5)
        fresh = build_objective(small()).context_encoder
        assert torch.equal(encoder.mask_token, fresh.mask_token)
        assert torch.equal(encoder.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize(("name", "heads"), [("scott_7_16", 4), ("scott_9_16", 6)])
def test_growing_from_a_shallower_model(name, heads):
    """Its blocks come first, the others are as fresh as ever, and features are about its own."""
    torch.manual_seed(0)
    fresh = build_objective(small(name=name)).context_encoder.state_dict()
    torch.manual_seed(0)
    grown = build_objective(small(init=TAG, name=name, grow=True))
    released = load_file(weights.resolve(TAG))
    for encoder in (grown.context_encoder, grown.target_encoder):
        assert encoder.blocks[0].attn.num_heads == heads
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, released[key].float() if key in released else fresh[key]), key
    images = torch.rand(4, 3, 32, 32)
    shallow = timm.create_model(TAG, pretrained=True, img_size=32).eval()
    with torch.no_grad():
        theirs, ours = shallow(images), grown.target_encoder(images)
    assert torch.cosine_similarity(theirs, ours).min() > 0.9
    assert torch.cosine_similarity(build_objective(small(name=name)).target_encoder(images), theirs).max() < 0.5


def test_weights_that_a_run_cannot_start_from(tmp_path):
    expected = f"recipe.model.name: expected scott_3_16, whose weights {TAG} are, or model.grow=true, got 'scott_7"
    with pytest.raises(RecipeError, match=expected):
        build_objective(small(init=TAG, name="scott_7_16"))
    with pytest.raises(WeightsError, match=f"init: expected one of .*{TAG}.*; found no nowhere"):
        build_objective(small(init="nowhere"))
    folder = weights.export(timm.create_model("scott_7_16", img_size=32), tmp_path / "seven")
    with pytest.raises(WeightsError, match="checkpoint does not fit SCOTT: missing .*unknown .*blocks.3"):
        build_objective(small(init=f"local-dir:{folder}"))
    with pytest.raises(WeightsError, match="checkpoint does not fit SCOTT: missing .*unknown .*blocks.3"):
        build_objective(small(init=f"local-dir:{folder}", grow=True))  # a model does not shrink
    folder = weights.export(timm.create_model("scott_3_16", img_size=32, embed_dim=192), tmp_path / "narrow")
    with pytest.raises(WeightsError, match="cannot start scott_3_16: .*size mismatch"):
        build_objective(small(init=f"local-dir:{folder}"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot start scott_3_16: "):
        build_objective(small(init=f"local-dir:{folder}"))


def test_tags_have_their_models_heads(tmp_path, monkeypatch):
    """Also from the Hub's cache, where nothing but the weights lies."""
    path = shutil.copy(weights.resolve(TAG), tmp_path)
    monkeypatch.setattr(weights, "find", lambda tag: Path(path))
    build_objective(small(init=TAG))
    with pytest.raises(WeightsError, match="expected weights of 6 heads, found 4 in .*; set model.num_heads=4"):
        build_objective(small(init=TAG, num_heads=6))


def test_a_tag_that_is_none(monkeypatch):
    monkeypatch.setitem(weights.manifest(), "scott_3_16.a.b", weights.manifest()[TAG])
    with pytest.raises(WeightsError, match="expected tags like"):
        build_objective(small(init="scott_3_16.a.b"))


def test_weights_without_their_configuration(tmp_path):
    """Nothing else says how many heads they have."""
    folder = weights.export(timm.create_model("scott_3_16", img_size=32), tmp_path / "export")
    for content in ("", '{"archi', "[]", "{}", '{"predictor": {"depth": 3}}', '{"architecture": "resnet18"}', None):
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)
        with pytest.raises(WeightsError, match="config.json: expected beside the weights the configuration") as raised:
            build_objective(small(init=f"local-dir:{folder}"))
        assert "\n" not in str(raised.value)
        (folder / "config.json").touch()


def test_heads_are_compared_where_no_shape_tells(tmp_path):
    """The authors' released 12/16 has 4 heads, ours 6."""
    model = timm.create_model("scott_3_16", img_size=32, num_heads=6)
    folder = weights.export(model, tmp_path / "six", dtype=torch.float32)
    with pytest.raises(WeightsError, match="expected weights of 4 heads, found 6 in .*; set model.num_heads=6"):
        build_objective(small(init=f"local-dir:{folder}"))
    objective = build_objective(small(init=f"local-dir:{folder}", num_heads=6))
    assert objective.context_encoder.blocks[0].attn.num_heads == 6
    assert objective.predictor.blocks[0].attn.num_heads == 6
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["num_heads"]  # as exports had it before: the architecture's own
    (folder / "config.json").write_text(json.dumps(config))
    build_objective(small(init=f"local-dir:{folder}"))
    with pytest.raises(RecipeError, match="divisible"):
        build_objective(small(num_heads=7))


SMALL = ["model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "objective.projector=16,8"]


def built(*changes):
    torch.manual_seed(3)
    return build_objective(Recipe.load("smoke", [*SMALL, *changes])).train()


@pytest.mark.parametrize("term", ["visreg", "vicreg", "infonce"])
def test_a_pooled_term_is_added_and_reaches_encoder_and_projectors(term):
    plain, objective = built(), built(f"objective.pooled={term}", "objective.pooled_weight=2")
    assert all(torch.equal(a, b) for a, b in zip(plain.student.parameters(), objective.student.parameters()))
    assert {name for name, _ in objective.named_children()} == {"student", "target_encoder", "pooled"}
    crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    draws = [Draws(np.arange(4, dtype=np.uint64)) for _ in range(3)]
    inputs = objective.inputs(crops, draws[0])
    without = plain.inputs(crops, draws[1])
    assert all(torch.equal(a, b) for a, b in zip(inputs, without))  # all but what the term draws, which comes last
    assert len(inputs) - len(without) == (term == "visreg")
    planned = objective.inputs(crops, objective.drawing(draws[2]))
    assert all(torch.equal(a, b) for a, b in zip(inputs, planned, strict=True))
    for each in (plain, objective):
        torch.manual_seed(4)
        each.loss = each(*(inputs if each is objective else without))
        each.loss.backward()
    assert objective.loss > plain.loss
    for name, parameter in objective.pooled.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    ours, theirs = (each.context_encoder.blocks[0].attn.qkv.weight.grad for each in (objective, plain))
    assert (ours - theirs).abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in objective.target_encoder.parameters())


def test_a_pooled_term_wants_images_to_compare():
    with pytest.raises(RecipeError, match="recipe.run.accumulate: expected parts of 2 images or more"):
        built("objective.pooled=visreg", "run.accumulate=4")
