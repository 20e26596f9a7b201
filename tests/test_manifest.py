import json
from pathlib import Path

import jsonschema
import pytest
import timm

from scott_models import weights
from scott_models.errors import WeightsError
from scott_models.manifest import Entry, checked, manifest, write_entry

CHECKOUT = Path(__file__).parents[1]
SCHEMA = json.loads((CHECKOUT / "weights_manifest.schema.json").read_text())
TAG = "scott_3_16.mimjepa_flowers102"

# What a hand may write into an entry, and what must not be believed.
LIES = {
    "file": ["../../secret.safetensors", "/etc/passwd", "weights.pth", "a/b.safetensors", ".safetensors", "", None],
    "sha256": ["", "0" * 63, "Z" * 64, None],
    "repository": ["name", "a/b/c", "../org", "https://example.org/a"],
    "revision": ["main", "0" * 39, "v1.0"],
    "license": ["MIT", "Apache 2.0", "", None],
    "input_size": [None, [3, 224], [3, 0, 224], "224"],
}


@pytest.fixture
def entry():
    return {**manifest()[TAG], "repository": None, "revision": None}


def is_valid(entry, tag=TAG):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid({"weights": {tag: entry}})


def test_the_manifest_is_as_its_schema_says(entry):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads((CHECKOUT / "weights_manifest.json").read_text()), SCHEMA)
    assert set(SCHEMA["$defs"]["entry"]["required"]) == set(SCHEMA["$defs"]["entry"]["properties"])
    assert set(SCHEMA["$defs"]["entry"]["required"]) == set(Entry.__annotations__) == set(entry)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in LIES.items() for value in values])
def test_what_leads_astray_is_refused_here_and_by_the_schema(entry, field, value):
    published = {"repository": "org/name", "revision": "0" * 40}
    assert is_valid({**entry, **published})
    lying = {**entry, **published, field: value}
    assert not is_valid(lying)
    with pytest.raises(WeightsError, match=f"weights_manifest.json: {TAG}: {field}: expected .*, found"):
        checked(TAG, lying)


@pytest.mark.parametrize("field", ["scores", "data", "sha256", "repository"])
def test_entries_are_whole(entry, field):
    del entry[field]
    assert not is_valid(entry)
    with pytest.raises(WeightsError, match=f"found none of .*{field}"):
        checked(TAG, entry)


@pytest.mark.parametrize(
    "tag", ["resnet50.a1_in1k", "../../evil", "scott_3_16", "scott_3_16.a/b", "Scott.x", "scott_3_16..x"]
)
def test_tags_that_would_be_other_folders(entry, tag):
    assert not is_valid(entry, tag)
    with pytest.raises(WeightsError, match="expected tags like"):
        checked(tag, entry)


@pytest.mark.parametrize("half", [{"repository": "org/name"}, {"revision": "0" * 40}])
def test_a_repository_without_a_commit(entry, half):
    assert not is_valid({**entry, **half})
    with pytest.raises(WeightsError, match="expected repository and revision both or neither"):
        checked(TAG, {**entry, **half})


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "both"},
        {"bytes": 0},
        {"epochs": 0},
        {"scores": {"knn": 143.2}},
        {"scores": {"best": 1}},
        {"more": 1},
    ],
)
def test_the_schema_refuses(entry, change):
    assert is_valid(entry)
    assert not is_valid({**entry, **change})


def test_an_entry_that_leads_astray_spoils_only_its_own_weights(monkeypatch, entry, tmp_path):
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path / "models"))
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (tmp_path / "models" / TAG).mkdir(parents=True)
    monkeypatch.setitem(manifest(), TAG, {**entry, "file": "../../secret.safetensors"})
    assert TAG not in weights.pretrained_cfgs()
    with pytest.raises(
        WeightsError, match=r"file: expected the plain name of a .safetensors file, found '../../secret"
    ):
        timm.create_model("scott_3_16", pretrained=True)


def test_a_lie_about_the_hash(monkeypatch, entry):
    monkeypatch.setitem(manifest(), TAG, {**entry, "sha256": "0" * 64})
    with pytest.raises(WeightsError, match=f"expected sha256 {'0' * 64}, found {entry['sha256']}"):
        timm.create_model("scott_3_16", pretrained=True)


def test_writing_an_entry(tmp_path, entry):
    path = tmp_path / "manifest.json"
    write_entry(path, TAG, entry)
    write_entry(path, "scott_7_16.other", {**entry, "seed": 1})
    assert json.loads(path.read_text())["weights"] == {TAG: entry, "scott_7_16.other": {**entry, "seed": 1}}
    with pytest.raises(WeightsError, match="file: expected the plain name"):
        write_entry(path, TAG, {**entry, "file": "../x.safetensors"})
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write_entry(link, TAG, {**entry, "seed": 7})
    assert link.is_symlink()
    assert json.loads(path.read_text())["weights"][TAG]["seed"] == 7
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.json", "manifest.json"]
