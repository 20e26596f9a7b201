import io
import json
import pickle
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save
from timm.models import save_for_hf

from scott_models import SCOTT, weights
from scott_models.errors import WeightsError, WritingError
from scott_models.weights import files, local_dir, timm_configs

CHECKOUT = Path(__file__).parents[2]
TAG = "scott_3_16.mimjepa_flowers102_cpu"


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    """Make a writable copy of the released folder, which comes first in the search order."""
    shutil.copytree(weights.resolve(TAG).parent, tmp_path / "models" / TAG)
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("tag", [tag for tag in weights.manifest() if (CHECKOUT / "weights" / tag).is_dir()])
def test_manifest_entries_are_whole_and_true(tag):
    entry = weights.manifest()[tag]
    path = weights.resolve(tag)
    assert path.stat().st_size == entry["bytes"]
    tensors = load_file(path)
    assert {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} == {entry["dtype"]}
    assert json.loads((CHECKOUT / "weights" / tag / "config.json").read_text())["pretrained_cfg"]["input_size"] == list(
        timm.get_pretrained_cfg(tag).input_size
    )
    cfg = timm.get_pretrained_cfg(tag)
    assert list(cfg.input_size) == entry["input_size"]
    assert cfg.license == entry["license"]
    model = timm.create_model(tag, pretrained=True)
    assert model.num_classes == len(entry.get("label_names", ()))
    assert model.pretrained_cfg.get("label_names", ()) == tuple(entry.get("label_names", ()))


def test_pretrained_is_the_released_file():
    model = timm.create_model("scott_3_16", pretrained=True)
    released = load_file(weights.resolve(TAG))
    assert released.keys() - model.state_dict().keys() == {"mask_token"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, released[name].float())
    size = weights.manifest()[TAG]["input_size"]
    assert model.pretrained_cfg["input_size"] == tuple(size)
    assert model(torch.zeros(1, *size)).shape == (1, 384)
    assert TAG in timm.list_pretrained("scott*")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (TAG, {}),
        ("scott_3_16", {"num_classes": 5}),
        ("scott_3_16", {"in_chans": 1}),
        ("scott_3_16", {"img_size": 224}),
        ("scott_3_16", {"use_mask_token": True}),
    ],
)
def test_pretrained_with_options(name, options):
    model = timm.create_model(name, pretrained=True, **options).eval()
    released = load_file(weights.resolve(TAG))
    assert torch.equal(model.blocks[0].attn.qkv.weight, released["blocks.0.attn.qkv.weight"].float())
    size = options.get("img_size", weights.manifest()[TAG]["input_size"][-1])
    assert model(torch.zeros(1, options.get("in_chans", 3), size, size)).shape == (1, options.get("num_classes", 384))


def test_own_sources_are_left_alone(models_dir):
    (models_dir / TAG / "model.safetensors").unlink()
    shutil.copy(CHECKOUT / "weights" / TAG / "model.safetensors", models_dir / "mine.safetensors")
    mine = {"file": str(models_dir / "mine.safetensors")}
    assert (
        timm.create_model("scott_3_16", pretrained=True, pretrained_cfg_overlay=mine).pretrained_cfg["file"]
        == mine["file"]
    )
    local = timm.create_model(f"local-dir:{CHECKOUT / 'weights' / TAG}", pretrained=True)
    assert torch.equal(local.patch_embed.conv1.weight, timm.create_model(TAG, pretrained=True).patch_embed.conv1.weight)


def test_models_dir_comes_first(models_dir):
    assert weights.resolve(TAG) == models_dir / TAG / "model.safetensors"


@pytest.fixture
def exchanged(models_dir, monkeypatch):
    """Return the path of released weights that are replaced by other well-formed weights after the first read."""
    path, opened = models_dir / TAG / "model.safetensors", Path.open
    others = save({name: torch.full_like(tensor, 7.0) for name, tensor in load_file(path).items()})

    class ReadOnce(io.BytesIO):
        def close(self):
            super().close()
            path.write_bytes(others)

    def watched(self, mode="r", *arguments, **options):
        file = opened(self, mode, *arguments, **options)
        return ReadOnce(file.read()) if self == path and mode == "rb" else file

    monkeypatch.setattr(Path, "open", watched)
    yield path
    assert path.read_bytes() == others


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 5}, {"in_chans": 1}, {"features_only": True}, {"img_size": 64}]
)
def test_the_bytes_that_were_verified_are_the_ones_that_are_used(exchanged, options):
    released = load_file(CHECKOUT / "weights" / TAG / "model.safetensors")
    model = timm.create_model(TAG, pretrained=True, **options)
    encoder = model.model if "features_only" in options else model
    for name, tensor in encoder.blocks.state_dict().items():
        assert torch.equal(tensor, released[f"blocks.{name}"].float()), name
    assert (encoder.patch_embed.conv1.weight.abs() < 7).all()
    with pytest.raises(WeightsError, match=re.escape(f"{exchanged}: damaged or not the released weights")):
        timm.create_model(TAG, pretrained=True, **options)


def test_a_model_keeps_the_place_of_its_weights_and_nothing_else_of_their_loading(tmp_path):
    path = str(weights.resolve(TAG))
    for options in ({}, {"features_only": True}, {"in_chans": 1, "num_classes": 5}):
        model = timm.create_model(TAG, pretrained=True, **options)
        for copy in (model, deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert copy.pretrained_cfg["file"] == copy.default_cfg["file"] == path
            assert not {"state_dict"} & {*copy.pretrained_cfg, *copy.default_cfg}
        assert timm_configs.find_tag(model.pretrained_cfg, "scott_3_16") == TAG
    assert "state_dict" not in timm.get_pretrained_cfg(TAG).to_dict()
    model = timm.create_model(TAG, pretrained=True)
    model = timm.create_model("scott_3_16", pretrained=True, pretrained_cfg=model.pretrained_cfg)  # a second time
    save_for_hf(model, tmp_path / "saved")
    assert "state_dict" not in (tmp_path / "saved" / "config.json").read_text()


def test_whose_weights_a_configuration_means(monkeypatch):
    entry = {**weights.manifest()[TAG], "repository": "org/one", "revision": "0" * 40}
    for name in ("scott_3_16.a", "scott_3_16.b", TAG):
        monkeypatch.setitem(weights.manifest(), name, entry)

    def meant(**fields):
        return timm_configs.find_tag(fields, "scott_3_16")

    at = {"hf_hub_id": f"org/one@{'0' * 40}", "hf_hub_filename": "model.safetensors"}
    assert meant(tag="b", **at) == "scott_3_16.b"
    assert meant(tag="a", **at) == "scott_3_16.a"
    assert meant(tag="b", **{**at, "hf_hub_id": "org/other"}) is None
    assert meant(tag="b", **{**at, "hf_hub_filename": "other.safetensors"}) is None
    assert meant(tag="b", url="https://example.org", **at) is None
    assert meant(file=f"somewhere/{TAG}/model.safetensors") == TAG
    assert meant(file=f"somewhere/{TAG}/other.safetensors") is None
    assert meant(file="somewhere/mine/model.safetensors") is None
    assert meant(tag="b", file=f"hub/models--org--one/snapshots/{'0' * 40}/model.safetensors") == "scott_3_16.b"
    assert meant(tag="b", file=f"hub/models--org--one/snapshots/{'1' * 40}/model.safetensors") is None


def test_damage_that_can_be_downloaded_again(models_dir, monkeypatch):
    published = {**weights.manifest()[TAG], "repository": "org/one", "revision": "0" * 40}
    monkeypatch.setitem(weights.manifest(), TAG, published)
    (models_dir / TAG / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=f"scott download {TAG} --dir '{models_dir}'"):
        weights.resolve(TAG)


def test_a_longer_file_is_told_with_its_own_hash(models_dir):
    path = models_dir / TAG / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more" * 2**19)
    with pytest.raises(WeightsError, match=f"found {files.sha256(path)} \\({path.stat().st_size} bytes, expected"):
        weights.load(TAG)


def test_a_flipped_byte_is_refused(models_dir):
    path = models_dir / TAG / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    assert weights.resolve(TAG) == path  # the hash of the good file is cached and must not be used for the bad file
    path.write_bytes(damaged)
    expected = weights.manifest()[TAG]["sha256"]
    with pytest.raises(
        WeightsError, match=f"{re.escape(str(path))}: .*expected sha256 {expected}, found [0-9a-f]{{64}}"
    ):
        timm.create_model("scott_3_16", pretrained=True)
    path.write_bytes(damaged[:1000])
    with pytest.raises(WeightsError, match=r"1000 bytes, expected \d+"):
        weights.resolve(TAG)


@pytest.mark.parametrize(
    ("published", "advice"),
    [
        ({"repository": None, "revision": None}, "from the release again.*reinstall"),
        ({"repository": "org/name", "revision": "0" * 40}, "replace it: scott download scott_3_16"),
    ],
)
def test_advice_on_damaged_files_leads_somewhere(models_dir, monkeypatch, published, advice):
    """Advise a download only for weights that are published."""
    monkeypatch.setitem(weights.manifest(), TAG, {**weights.manifest()[TAG], **published})
    (models_dir / TAG / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=advice):
        weights.resolve(TAG)


def test_weights_that_are_not_there(monkeypatch):
    with pytest.raises(WeightsError, match="scott_3_16.other.*no such weights"):
        weights.resolve("scott_3_16.other")
    with pytest.raises(WeightsError, match="scott_vit_12_16: no such weights are released"):
        timm.create_model("scott_vit_12_16", pretrained=True)
    monkeypatch.setattr(files, "list_folders", lambda: [Path("nowhere")])
    monkeypatch.setitem(weights.manifest(), TAG, {**weights.manifest()[TAG], "repository": None, "revision": None})
    with pytest.raises(WeightsError, match="no weight file in any of nowhere"):
        weights.resolve(TAG)


def test_zoo_has_a_row_for_every_model_and_tag():
    rows = {(row["model"], row["tag"]): row for row in timm_configs.list_zoo()}
    assert ("scott_vit_12_16", None) in rows
    released = rows["scott_3_16", "mimjepa_flowers102_cpu"]
    assert released["kNN %"] == weights.manifest()[TAG]["scores"]["knn"]
    assert Path(released["weights"]).is_dir()
    assert released["parameters (M)"] == 6.5
    json.dumps(list(rows.values()))


def test_export_round_trip(tmp_path):
    model = timm.create_model("scott_3_16", img_size=48, use_mask_token=True, pos_drop_rate=0.2)
    folder = weights.export(model, tmp_path / "export")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # both files have the same permissions
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    state = model.state_dict()
    assert state.keys() - loaded.state_dict().keys() == {"mask_token"}  # which stays with the model itself
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].bfloat16().float())
    with pytest.raises(WeightsError, match=r"missing \['mask_token'\]"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, use_mask_token=True)
    assert loaded.pos_drop.p == 0
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "file"} & config.keys()  # these belong to released weights
    assert model.patch_embed.conv1.weight.dtype == torch.float32


def test_an_older_export_keeps_its_mask_token(tmp_path):
    """Exports had one before; a model without one loads from them too."""
    model = timm.create_model("scott_3_16", img_size=48, use_mask_token=True)
    folder = local_dir.save_whole(deepcopy(model), tmp_path / "export", local_dir.get_model_args(model), [])
    for options in ({}, {"use_mask_token": False}):
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True, **options)
        assert loaded.mask_token is None if options else torch.equal(loaded.mask_token, model.mask_token)
        assert torch.equal(loaded.patch_embed.conv1.weight, model.patch_embed.conv1.weight)


@pytest.mark.parametrize("name", ["scott_3_16", "resnet10t"])
def test_what_an_export_says_of_its_classes(name, tmp_path):
    """Expect the classes of now, and nothing of those that the weights came with."""
    model = timm.create_model(name, num_classes=2)
    before = {"num_classes": 3, "label_names": ["a", "b", "c"], "label_descriptions": {"a": "first"}}
    model.pretrained_cfg = {**model.pretrained_cfg, **before}
    local_dir.save_whole(model, tmp_path / "export", {}, ["blue", "red"])
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (config["num_classes"], config["label_names"]) == (2, ["blue", "red"])
    assert config["pretrained_cfg"]["num_classes"] == 2
    assert not {"label_names", "label_descriptions"} & config["pretrained_cfg"].keys()


def test_an_export_takes_its_place_whole_or_not_at_all(tmp_path):
    folder, other = tmp_path / "out", tmp_path / "out.partial"
    other.mkdir()
    (other / "mine").touch()

    def write(name):
        with local_dir.folder_written_whole(folder) as partial:
            (partial / name).touch()

    with pytest.raises(WritingError, match="out: cannot be written.*(?i:name too long)"):
        write("a" * 300)
    assert list(tmp_path.iterdir()) == [other]
    for name in "ab":
        write(name)
        assert [file.name for file in folder.iterdir()] == [name]
    assert sorted(tmp_path.iterdir()) == [folder, other]
    assert [file.name for file in other.iterdir()] == ["mine"]
    assert folder.stat().st_mode == other.stat().st_mode  # the usual permissions of a folder


def original_names(recording):
    tensors, _ = recording
    return {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}


def test_convert_reference(recording):
    state_dict = original_names(recording)
    converted = weights.convert_reference(state_dict)
    model = SCOTT(img_size=96, embed_dim=96, depth=2, num_heads=4, use_mask_token=True)
    assert converted.keys() == model.state_dict().keys()
    prefixed = weights.convert_reference({f"encoder.{name}": tensor for name, tensor in state_dict.items()})
    assert prefixed.keys() == converted.keys()
    with pytest.raises(WeightsError, match="head.0.weight.*not a weight.*original"):
        weights.convert_reference({**state_dict, "head.0.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="expected the 2D sin-cos positions"):
        weights.convert_reference({**state_dict, "transformer.pos_embed": torch.zeros(36, 96)})
