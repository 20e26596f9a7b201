import json
import pickle
from functools import reduce

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from scott_models.errors import DataError, WeightsError
from scott_models.release.authors_checkpoints import convert, load_predictor
from scott_models.weights import convert_reference


@pytest.fixture
def checkpoints(recording, tmp_path):
    """Make a run folder like the original's, with three checkpoints made from the recording's weights."""
    tensors, settings = recording
    for name, file in (("encoder", "context-encoder"), ("target", "target-encoder"), ("predictor", "predictor")):
        state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        torch.save(state, tmp_path / f"{file}_checkpoint.pth")
    heads = {"name": "scott", "num_heads": settings["num_heads"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"training_type": "ssl", "model": heads}))
    return tmp_path


def test_encoders_give_what_was_recorded(checkpoints, recording):
    tensors, _ = recording
    folder = convert(checkpoints / "context-encoder_checkpoint.pth", checkpoints / "context")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert (model.num_features, len(model.blocks), model.patch_embed.img_size) == (96, 2, (96, 96))
    with torch.no_grad():
        full = model.forward_tokens(tensors["in.context"])
    torch.testing.assert_close(full, tensors["out.features_full"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.get_attention(tensors["in.context"])[0], tensors["out.attention_last"])
    folder = convert(checkpoints / "target-encoder_checkpoint.pth", checkpoints / "target")
    target = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        targets = target.forward_features(tensors["in.target"])
    torch.testing.assert_close(targets, tensors["out.targets"], atol=1e-5, rtol=1e-5)


def test_the_mask_token_is_left_out_and_can_be_had(checkpoints, recording):
    """Look for it in both files. The function for weights keeps it, and masked features are the recorded ones."""
    tensors, _ = recording
    path = checkpoints / "context-encoder_checkpoint.pth"
    folder = convert(path, checkpoints / "context")
    assert "mask_token" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["model_args"]["use_mask_token"] is False
    model = timm.create_model(f"local-dir:{folder}", use_mask_token=True).eval()
    model.load_state_dict(convert_reference(torch.load(path, weights_only=True)))
    with torch.no_grad():
        masked = model.forward_tokens(tensors["in.context"], tensors["in.visible"].bool())
    torch.testing.assert_close(masked, tensors["out.features_masked"], atol=1e-5, rtol=1e-5)


def test_the_predictor_gives_what_was_recorded(checkpoints, recording):
    tensors, _ = recording
    folder = convert(checkpoints / "predictor_checkpoint.pth", checkpoints / "predictor")
    with torch.no_grad():
        predictions = load_predictor(folder).eval()(tensors["out.features_masked"])
    torch.testing.assert_close(predictions, tensors["out.predictions"], atol=1e-5, rtol=1e-5)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="expected a predictor that `scott convert` wrote"):
        load_predictor(folder)


def test_names_with_a_wrappers_prefix(checkpoints):
    path = checkpoints / "context-encoder_checkpoint.pth"
    state = torch.load(path, weights_only=True)
    plain = timm.create_model(f"local-dir:{convert(path, checkpoints / 'a')}", pretrained=True)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    wrapped = timm.create_model(f"local-dir:{convert(path, checkpoints / 'b')}", pretrained=True)
    assert torch.equal(plain.blocks[1].mlp.fc2.weight, wrapped.blocks[1].mlp.fc2.weight)


def test_the_plain_vit_by_its_name(tmp_path):
    """Convert the ablation's tokenizer at a released depth and width to the registered model."""
    vit = timm.create_model("scott_vit_7_16", img_size=64, use_mask_token=True)
    names = {"patch_embed.": "tokenizer.", "blocks.": "transformer.blocks.", "mask_token": "transformer.msk_embed"}
    names |= {".attn.": ".self_attn.", ".fc1.": ".w12.", ".fc2.": ".last_linear.", ".mlp.": ".ffn_layer."}
    state = {"transformer.pos_embed": vit.pos_embed[0]}
    for name, tensor in vit.state_dict().items():
        state[reduce(lambda text, pair: text.replace(*pair), names.items(), name)] = tensor
    torch.save(state, tmp_path / "vit.pth")
    model = timm.create_model(
        f"local-dir:{convert(tmp_path / 'vit.pth', tmp_path / 'vit', num_heads=4)}", pretrained=True
    )
    assert model.pretrained_cfg["architecture"] == "scott_vit_7_16"
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(images), vit.eval()(images))


def test_heads_must_be_known(checkpoints):
    (checkpoints / "config.yaml").unlink()
    path = checkpoints / "context-encoder_checkpoint.pth"
    with pytest.raises(WeightsError, match="settings with model.num_heads.*--num-heads"):
        convert(path, checkpoints / "out")
    assert convert(path, checkpoints / "out", num_heads=4).is_dir()
    with pytest.raises(WeightsError, match="encoder or a predictor"):
        convert(path, checkpoints / "other", num_heads=7)
    with pytest.raises(WeightsError, match="num_heads: expected at least 1, got -4"):
        convert(path, checkpoints / "other", num_heads=-4)


def test_half_precision(checkpoints):
    path = checkpoints / "target-encoder_checkpoint.pth"
    torch.save({name: tensor.half() for name, tensor in torch.load(path, weights_only=True).items()}, path)
    assert convert(path, checkpoints / "half").is_dir()


def test_numbers_that_are_none(checkpoints):
    path = checkpoints / "context-encoder_checkpoint.pth"
    state = torch.load(path, weights_only=True)
    state["transformer.msk_embed"][..., 0] = torch.nan
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"found NaN or infinity in \['transformer.msk_embed'\]"):
        convert(path, checkpoints / "out")


class Evil:
    """Run a command when unpickled."""

    def __reduce__(self):
        return exec, ("open('ran', 'w')",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"tokenizer.proj.weight": Evil()}, protocol=2))
    with pytest.raises(WeightsError, match="tensors only.*nothing was run"):
        convert("evil.pth", "out", num_heads=4)
    torch.save({"tokenizer.proj.weight": Evil()}, "evil.pth")
    with pytest.raises(WeightsError, match="nothing was run"):
        convert("evil.pth", "out", num_heads=4)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "checkpoint.*found no file"),
        ([torch.zeros(1)], "state_dict.*found list"),
        ({"a": 1}, "state_dict.*found dict"),
        ({0: torch.zeros(1)}, "state_dict.*found dict"),
        ({"weight": torch.zeros(1)}, "x.pth.*encoder or a predictor"),
        ({"a.b": torch.zeros(1)}, "encoder or a predictor"),
        ({"tokenizer.tokenizer.0.weight": torch.zeros(1)}, "encoder or a predictor"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    if content is not None:
        torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "x.pth", tmp_path / "out", num_heads=4)
    assert not (tmp_path / "out").exists()


def test_a_truncated_file(checkpoints):
    path = checkpoints / "predictor_checkpoint.pth"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="expected a whole file with tensors only"):
        convert(path, checkpoints / "out")


def test_folders_in_use_are_left_alone(checkpoints):
    with pytest.raises(DataError, match="other files there"):
        convert(checkpoints / "predictor_checkpoint.pth", checkpoints)
