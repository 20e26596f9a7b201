"""Trained weights that a run starts from."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from scott_models import weights
from scott_models.errors import RecipeError, WeightsError
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.weights import files

TAG = "scott_3_16.mimjepa_flowers102_cpu"


def small(**model):
    recipe = Recipe.load("smoke", ["model.img_size=32", "model.predictor_depth=1"])
    return recipe.changed("model", **model)


def test_starting_from_released_weights():
    """Check all weights of both encoders, mask token included, at another image size than in their training."""
    torch.manual_seed(5)
    objective = build_objective(small(init=TAG))
    released = load_file(weights.resolve(TAG))
    for encoder in (objective.context_encoder, objective.target_encoder):
        state = encoder.state_dict()
        assert state.keys() == released.keys()
        assert all(torch.equal(state[name], tensor.float()) for name, tensor in released.items())
    torch.manual_seed(5)
    fresh = build_objective(small())
    assert torch.equal(objective.predictor.head[2].weight, fresh.predictor.head[2].weight)  # still random


def test_starting_from_the_bytes_that_were_verified(tmp_path, monkeypatch):
    """Replace the file after it was read: the run must use the verified bytes."""
    path, read = Path(shutil.copy(weights.resolve(TAG), tmp_path)), files.read_verified
    released = load_file(weights.resolve(TAG))

    def exchange(*arguments):
        found = read(*arguments)
        path.write_bytes(b"others")
        return found

    monkeypatch.setattr(files, "find_file", lambda tag: path)
    monkeypatch.setattr(files, "read_verified", exchange)
    state = build_objective(small(init=TAG)).context_encoder.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in released.items())
    with pytest.raises(WeightsError, match="damaged or not the released weights"):
        build_objective(small(init=TAG))


def test_starting_from_a_folder_without_a_mask_token(tmp_path):
    """Check that the mask token stays random if the file has none, and that a classifier's head is left out."""
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
    """Check that its blocks come first, the others stay random, and features stay close to its own."""
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
    expected = f"recipe.model.name.*scott_3_16.*{TAG}.*model.grow=true.*got 'scott_7"
    with pytest.raises(RecipeError, match=expected):
        build_objective(small(init=TAG, name="scott_7_16"))
    with pytest.raises(WeightsError, match=f"init.*{TAG}.*found no nowhere"):
        build_objective(small(init="nowhere"))
    folder = weights.export(timm.create_model("scott_7_16", img_size=32), tmp_path / "seven")
    with pytest.raises(WeightsError, match="not fit SCOTT.*unknown.*blocks.3"):
        build_objective(small(init=f"local-dir:{folder}"))
    with pytest.raises(WeightsError, match="not fit SCOTT.*unknown.*blocks.3"):
        build_objective(small(init=f"local-dir:{folder}", grow=True))  # the weights have more blocks than the model
    folder = weights.export(timm.create_model("scott_3_16", img_size=32, embed_dim=192), tmp_path / "narrow")
    with pytest.raises(WeightsError, match="cannot start scott_3_16: .*size mismatch"):
        build_objective(small(init=f"local-dir:{folder}"))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot start scott_3_16: "):
        build_objective(small(init=f"local-dir:{folder}"))


def test_tags_have_their_models_heads(tmp_path, monkeypatch):
    """Load a tag from a folder like the Hub's cache, which holds the weights only."""
    path = shutil.copy(weights.resolve(TAG), tmp_path)
    monkeypatch.setattr(files, "find_file", lambda tag: Path(path))
    build_objective(small(init=TAG))
    with pytest.raises(WeightsError, match="6 heads, found 4.*model.num_heads=4"):
        build_objective(small(init=TAG, num_heads=6))


def test_a_tag_that_is_none(monkeypatch):
    monkeypatch.setitem(weights.manifest(), "scott_3_16.a.b", weights.manifest()[TAG])
    with pytest.raises(WeightsError, match="expected tags like"):
        build_objective(small(init="scott_3_16.a.b"))


def test_weights_without_their_configuration(tmp_path):
    """Expect an error: only the configuration gives the number of heads."""
    folder = weights.export(timm.create_model("scott_3_16", img_size=32), tmp_path / "export")
    for content in ("", '{"archi', "[]", "{}", '{"predictor": {"depth": 3}}', '{"architecture": "resnet18"}', None):
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)
        with pytest.raises(WeightsError, match="config.json: expected the configuration.*number of heads") as raised:
            build_objective(small(init=f"local-dir:{folder}"))
        assert "\n" not in str(raised.value)
        (folder / "config.json").touch()


def test_heads_are_compared_where_no_shape_tells(tmp_path):
    """Compare heads by number: the authors' released 12/16 has 4 heads, ours has 6."""
    model = timm.create_model("scott_3_16", img_size=32, num_heads=6)
    folder = weights.export(model, tmp_path / "six", dtype=torch.float32)
    with pytest.raises(WeightsError, match="4 heads, found 6.*model.num_heads=6"):
        build_objective(small(init=f"local-dir:{folder}"))
    objective = build_objective(small(init=f"local-dir:{folder}", num_heads=6))
    assert objective.context_encoder.blocks[0].attn.num_heads == 6
    assert objective.predictor.blocks[0].attn.num_heads == 6
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["num_heads"]  # as in older exports: the architecture's own number
    (folder / "config.json").write_text(json.dumps(config))
    build_objective(small(init=f"local-dir:{folder}"))
    with pytest.raises(RecipeError, match="divisible"):
        build_objective(small(num_heads=7))
