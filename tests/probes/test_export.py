import json
import shutil
import warnings
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import _registry
from torch import nn

from scott_models import weights
from scott_models.errors import DataError, WeightsError
from scott_models.models import scott
from scott_models.models.layers import PlainLayerNorm
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.probes.export import export_classifier
from scott_models.probes.features import load_model
from scott_models.probes.heads import AttentiveHead, LinearHead
from scott_models.release.offline import download
from scott_models.weights import files, local_dir, manifest, timm_configs

from ..hub_world import World

NAMES = ["daisy", "poppy", "rose"]


def loaded(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64)


@pytest.fixture(params=["attentive", "linear"])
def head(request):
    head = AttentiveHead(384, 3) if request.param == "attentive" else LinearHead(384, 3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head.eval()


@pytest.mark.parametrize("normed", [False, True])
def test_one_timm_model_classifies_as_backbone_and_head_did(head, normed, images, tmp_path):
    backbone = load_model("scott_3_16", img_size=64)
    backbone.fc_norm = PlainLayerNorm(384) if normed else nn.Identity()  # as an exported linear classifier has it
    model = loaded(export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64)))
    features = backbone.forward_features(images)
    expected = head(features if head.takes_patches else backbone.forward_head(features, pre_logits=True))
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
    assert model.pretrained_cfg["label_names"] == NAMES
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert backbone.num_classes == 0


def test_it_can_be_had_without_its_head_or_with_another(head, images, tmp_path):
    backbone = load_model("scott_3_16", img_size=64)
    folder = export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(model.forward_features(images), backbone.forward_features(images))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert model(images).shape == (2, 7)


def test_another_familys_model_takes_a_linear_layer_without_norm(images, tmp_path):
    backbone, head = load_model("resnet10t", pretrained=False), LinearHead(512, 3, norm=False)
    model = loaded(export_classifier(backbone, head, NAMES, tmp_path / "classifier", (3, 64, 64)))
    torch.testing.assert_close(model(images), head(backbone(images)), atol=1e-5, rtol=1e-5)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 64, 64)
    assert model.pretrained_cfg["label_names"] == NAMES


def test_a_head_without_a_place_is_told(tmp_path):
    model = load_model("resnet10t", pretrained=False)
    with pytest.raises(DataError, match="export.*place for the head.*ResNet"):
        export_classifier(model, LinearHead(512, 3), NAMES, tmp_path / "classifier", (3, 64, 64))
    assert not (tmp_path / "classifier").exists()


BACKBONE = "scott_3_16.mimjepa_flowers102_cpu"
PROBE = f"{BACKBONE}_probe"


@contextmanager
def zoo_of(entries):
    """Replace the manifest by these entries of scott_3_16 inside the context, and register their tags with timm."""
    released, known = dict(manifest()), scott.default_cfgs
    books = [getattr(_registry, f"_model_{name}") for name in ("has_pretrained", "pretrained_cfgs", "with_tags")]
    before = deepcopy(books)
    try:
        manifest().clear()
        manifest().update(entries)
        scott.default_cfgs = scott._default_cfgs()
        register_again()
        yield
    finally:
        manifest().clear()
        manifest().update(released)
        scott.default_cfgs = known
        register_again()
        for book, was in zip(books, before):  # older timm does not forget tags by itself
            book.clear()
            book.update(was)


def register_again():
    with warnings.catch_warnings(action="ignore"):  # timm warns that the model is registered already
        timm.models.register_model(scott.scott_3_16)


@pytest.fixture
def backbone():
    """Load the backbone with its mask token, as the zoo has it."""
    return load_model(f"local-dir:{weights.resolve(BACKBONE).parent}", img_size=64)


@pytest.fixture
def entry(head, backbone, tmp_path, monkeypatch):
    """Export a classifier to the folder where the zoo expects its tag, and return its manifest entry."""
    folder = export_classifier(backbone, head, NAMES, tmp_path / "models" / PROBE, (3, 64, 64))
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path / "models"))
    kind, file = "attentive" if head.takes_patches else "linear", folder / "model.safetensors"
    return {
        **manifest()[BACKBONE],
        **{"repository": None, "revision": None, "dtype": "float32", "input_size": [3, 64, 64]},
        **{"sha256": files.sha256(file), "bytes": file.stat().st_size},
        **{"head": kind, "label_names": NAMES, "scores": {kind: 60.1}},
    }


@pytest.fixture
def expected(entry, images):
    """Yield the outputs expected of the zoo's classifier for the images: features, pooled features and logits."""
    with zoo_of({BACKBONE: manifest()[BACKBONE], PROBE: entry}), torch.no_grad():
        model = loaded(weights.resolve(PROBE).parent)
        features = model.forward_features(images)
        yield features, model.forward_head(features, pre_logits=True), model(images)


def created(images, **options):
    """Create a tag's classifier with options, and return the classifier with its logits for the images."""
    model = timm.create_model(PROBE, **{"pretrained": True, **options}).eval()
    return model, model(images)


def test_a_tag_is_a_classifier_out_of_the_box(expected, images):
    model, logits = created(images)
    assert torch.equal(logits, expected[-1])
    assert PROBE in timm.list_pretrained("scott_3_16.*")
    for cfg in (model.pretrained_cfg, timm.get_pretrained_cfg(PROBE).to_dict()):
        assert cfg["label_names"] == tuple(NAMES)
        assert (cfg["num_classes"], cfg["input_size"]) == (3, (3, 64, 64))
    fresh, logits = created(images, pretrained=False)
    assert {name: t.shape for name, t in fresh.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }
    assert local_dir.get_model_args(fresh) == local_dir.get_model_args(model)
    assert logits.shape == (2, 3)
    assert not torch.equal(fresh.head.weight, model.head.weight)
    assert fresh.pretrained_cfg["label_names"] == tuple(NAMES)


@pytest.mark.slow
def test_a_process_that_only_imports_the_package_has_the_tag(entry, tmp_path):
    world = World(SimpleNamespace(url="http://127.0.0.1:9"), tmp_path)
    world.entries = {PROBE: entry}
    world.write_manifest()
    code = f"""
import scott_models, timm, torch
model = timm.create_model({PROBE!r}, pretrained=True).eval()
print(*model(torch.zeros(1, 3, 64, 64)).shape, *model.pretrained_cfg["label_names"])
"""
    out, errors = world.run(code, SCOTT_MODELS_DIR=str(tmp_path / "models"))
    assert out.split() == ["1", "3", *NAMES], errors


def test_a_tags_features_are_pooled_as_its_head_pools(expected, images):
    features, pooled, _ = expected
    model, found = created(images, num_classes=0)
    assert torch.equal(found, pooled)
    assert torch.equal(model.forward_features(images), features)
    found = load_model(PROBE)  # as every command of `scott` loads it
    assert torch.equal(found(images), pooled)


def test_a_tag_with_another_number_of_classes_has_a_fresh_head(expected, images):
    model, logits = created(images, num_classes=7)
    assert logits.shape == (2, 7)
    assert torch.equal(model.forward_head(expected[0], pre_logits=True), expected[1])
    assert torch.equal(model.forward_features(images), expected[0])


def test_names_of_classes_go_with_the_classes(expected, images, tmp_path):
    shared = timm.get_pretrained_cfg(PROBE).to_dict()

    def told(model):
        assert model.default_cfg is model.pretrained_cfg
        return model.pretrained_cfg["num_classes"], model.pretrained_cfg.get("label_names")

    classifier, others = created(images)[0], created(images, num_classes=7)[0]
    assert told(classifier) == (3, tuple(NAMES))
    assert told(others) == told(created(images, num_classes=7, pretrained=False)[0]) == (7, None)
    assert told(created(images, num_classes=0)[0]) == (0, None)
    assert "label_names" not in timm.create_model(PROBE, pretrained=True, features_only=True).pretrained_cfg
    classifier.reset_classifier(5)
    assert told(classifier) == told(deepcopy(classifier)) == (5, None)
    folder = weights.export(classifier, tmp_path / "export")
    assert "daisy" not in (folder / "config.json").read_text()
    assert told(loaded(folder)) == (5, None)
    assert told(timm.create_model("scott_3_16", num_classes=4)) == (4, None)
    assert timm.get_pretrained_cfg(PROBE).to_dict() == shared
    # whatever the model's classes are, its configuration leads to the tag's weights
    again = timm.create_model("scott_3_16", pretrained=True, pretrained_cfg=others.pretrained_cfg).eval()
    assert torch.equal(again(images), expected[-1])
    assert told(again) == (3, tuple(NAMES))


def test_a_tag_with_a_pool_of_the_callers(expected, entry, images):
    features, _, logits = expected
    normed = entry["head"] == "linear"
    average = features.mean(dim=1)
    for pool, wanted in {"avg": average, "max": features.amax(dim=1), "": features}.items():
        model, found = created(images, num_classes=0, global_pool=pool)
        assert model.attn_pool is None
        torch.testing.assert_close(found, model.fc_norm(wanted))
        assert isinstance(model.fc_norm, nn.LayerNorm) == normed
    torch.testing.assert_close(created(images, num_classes=0, global_pool="avg", fc_norm=False)[1], average)
    # the head's own pool, given by the caller too
    own = {"fc_norm": True, "global_pool": "avg"} if normed else {"global_pool": "attentive"}
    for name, value in own.items():
        assert torch.equal(created(images, **{name: value})[1], logits)
    model, found = created(images, num_classes=0, global_pool="map")
    assert torch.equal(model.forward_features(images), features)
    assert found.isfinite().all()


def test_a_tag_with_other_options(expected, images):
    _, _, logits = expected
    model, found = created(images, use_mask_token=False)
    assert torch.equal(found, logits)
    assert model.mask_token is None
    with pytest.raises(WeightsError, match=r"missing \['mask_token'\]"):  # no export has one
        created(images, use_mask_token=True)
    model, found = created(larger := torch.randn(2, 3, 96, 112), img_size=(96, 112))
    resized = created(images)[0]
    resized.set_input_size((96, 112))
    assert torch.equal(found, resized(larger))
    assert torch.equal(created(larger, dynamic_img_size=True)[1], found)
    _, maps = created(images, features_only=True, out_indices=[0, 2])
    wanted = loaded(weights.resolve(PROBE).parent).forward_intermediates(
        images, indices=[0, 2], intermediates_only=True
    )
    assert all(torch.equal(found, one) for found, one in zip(maps, wanted, strict=True))
    assert created(torch.zeros(1, 1, 64, 64), in_chans=1)[1].shape == (1, 3)


def test_a_tags_whole_configuration(expected, images, tmp_path):
    model, _ = created(images)
    cfg = timm.get_pretrained_cfg(PROBE)
    for given in (cfg, cfg.to_dict(), model.pretrained_cfg):
        found = timm.create_model("scott_3_16", pretrained=True, pretrained_cfg=given).eval()
        assert torch.equal(found(images), expected[-1])
        assert found.pretrained_cfg["label_names"] == tuple(NAMES)
    fresh = timm.create_model("scott_3_16", pretrained_cfg=cfg, device="meta")
    assert local_dir.get_model_args(fresh) == local_dir.get_model_args(model)
    copy = Path(shutil.copy(weights.resolve(PROBE), tmp_path / "mine.safetensors"))
    _, logits = created(images, pretrained_cfg_overlay={"file": str(copy)})
    assert torch.equal(logits, expected[-1])


def test_a_models_name_alone_is_never_a_classifier(entry):
    backbone, first = manifest()[BACKBONE], "scott_3_16.a"  # the first tag in alphabetical order

    def default():
        plain = timm.create_model("scott_3_16")
        assert (plain.num_classes, plain.global_pool, plain.attn_pool) == (0, "avg", None)
        assert timm_configs.get_registered_args("scott_3_16")["fc_norm"] is False
        assert timm.create_model(first, num_classes=4).num_classes == 4
        return timm.get_pretrained_cfg("scott_3_16").tag

    with zoo_of({first: entry, BACKBONE: backbone}):
        assert timm_configs.list_tags("scott_3_16") == [BACKBONE, first]
        assert default() == "mimjepa_flowers102_cpu"
    with zoo_of({first: entry, BACKBONE: {**backbone, "file": "nowhere.safetensors"}}):
        assert default() == "mimjepa_flowers102_cpu"
    with zoo_of({first: entry}):
        assert default() is None
        with pytest.raises(WeightsError, match=r"scott_3_16: no such weights are released; .*scott_3_16\.a"):
            timm.create_model("scott_3_16", pretrained=True)


def test_the_row_of_a_classifier(expected, entry):
    rows = {row["tag"]: row for row in timm_configs.list_zoo() if row["model"] == "scott_3_16"}
    backbone, probe = rows.values()
    assert [*rows] == ["mimjepa_flowers102_cpu", "mimjepa_flowers102_cpu_probe"]
    assert probe["data"] == backbone["data"] + "; 3 classes, top-1 60.1 %"
    assert (probe["kNN %"], probe["ridge %"], probe["weights"]) == (None, None, str(weights.resolve(PROBE).parent))
    assert probe["parameters (M)"] == (8.3 if entry["head"] == "attentive" else 6.5)
    assert backbone["parameters (M)"] == 6.5
    with zoo_of({PROBE: {**entry, "scores": {}}}):
        assert next(row["data"] for row in timm_configs.list_zoo() if row["tag"]) == backbone["data"] + "; 3 classes"


def test_a_downloaded_folder_is_the_whole_classifier(expected, entry, images, tmp_path):
    folder = download(PROBE, tmp_path / "elsewhere").parent
    found, config = loaded(folder), json.loads((folder / "config.json").read_text())
    assert torch.equal(found(images), expected[-1])
    assert found.pretrained_cfg["label_names"] == NAMES
    exported = json.loads((weights.resolve(PROBE).parent / "config.json").read_text())
    assert config["model_args"] == exported["model_args"]
    own = timm_configs.get_registered_args("scott_3_16", entry["head"])
    assert {**own, "img_size": [64, 64]} == config["model_args"]


def test_a_head_of_as_many_other_classes_on_a_tags_features(expected, head, tmp_path):
    """Expect the names of the new classes everywhere, and nowhere the tag's."""
    names = ["car", "bus", "tram"]
    folder = export_classifier(load_model(PROBE), head, names, tmp_path / "other", (3, 64, 64))
    assert loaded(folder).pretrained_cfg["label_names"] == names
    assert "daisy" not in (folder / "config.json").read_text()


def test_pretraining_starts_from_a_classifiers_encoder(expected):
    recipe = Recipe.load("smoke", ["model.img_size=32", "model.predictor_depth=1"]).changed("model", init=PROBE)
    released = load_file(weights.resolve(PROBE))
    for encoder in build_objective(recipe).encoders.values():
        state = encoder.state_dict()
        state.pop("mask_token", None)  # fresh
        assert released.keys() - state.keys() == {name for name in released if name.startswith(("head.", "attn_pool."))}
        assert all(torch.equal(tensor, released[name]) for name, tensor in state.items())
