import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import jsonschema
import pytest
import timm

from scott_models.errors import WeightsError
from scott_models.release.card import PROBES, SCORED, make_card
from scott_models.weights import manifest, timm_configs
from scott_models.weights.entries import TAG as TAG_PATTERN
from scott_models.weights.entries import Entry, get_entry, read_entries, read_rules, validate_entry, write_entry

CHECKOUT = Path(__file__).parents[2]
SCHEMA = json.loads((CHECKOUT / "weights_manifest.schema.json").read_text())
TAG = "scott_3_16.mimjepa_flowers102_cpu"

# Invalid values that a person may write into an entry, by field.
LIES = {
    "file": ["../../secret.safetensors", "/etc/passwd", "weights.pth", "a/b.safetensors", ".safetensors", "", None],
    "sha256": ["", "0" * 63, "Z" * 64, None],
    "repository": ["name", "a/b/c", "../org", "https://example.org/a"],
    "revision": ["main", "0" * 39, "v1.0"],
    "license": ["MIT", "Apache 2.0", "", "-", None],
    "input_size": [
        None,
        [3, 224],
        [3, 0, 224],
        "224",
        [3, 100, 100],
        [3, 112, 112, 112],
        [3, 112, True],
        [3, 112, "112"],
    ],
    "bytes": [0, "1", 1.5, True],
    "dtype": ["int64", None],
    "encoder": ["both", 1],
    "data": [None, "", 5],
    "datasets": [[], [""], "flowers102", [None]],
    "data_terms": [""],
    "recipe": [None],
    "epochs": ["40", 0, -1, None],
    "images_seen": [0, None],
    "seed": [-1, 0.5],
    "hardware": [""],
    "minutes": [-1, "79", None],
    "versions": [{}, None, {"torch": "2"}, {"torch": 2, "timm": "1", "scott_models": "0"}],
    "scores": [None, [], {"knn": 143.2}, {"knn": None}, {"best": 1}, {"knn_224_context": 1}, {"knn": True}],
    "protocol": [None],
    "objective": ["mimjepa", "dino", "", None, 1, ["beit"]],
    "head": ["knn", "ridge", "", None, 1, ["linear"]],
    "label_names": [[], ["rose"], ["rose", "rose"], ["rose", ""], ["rose", 1], "rose", {"rose": 0, "daisy": 1}, None],
}
HEADED = {"head": "attentive", "label_names": ["rose", "daisy"]}  # additional fields of a classifier's entry


@pytest.fixture
def entry():
    return {**manifest()[TAG], "repository": None, "revision": None}


def is_valid(entry, tag=TAG):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid({"weights": {tag: entry}})


def test_the_manifest_is_as_its_schema_says(entry):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads((CHECKOUT / "weights_manifest.json").read_text()), SCHEMA)
    rules = read_rules()
    assert list(rules) == list(Entry.__annotations__)
    assert SCHEMA["$defs"]["entry"]["required"] == [name for name in rules if name in Entry.__required_keys__]
    assert SCHEMA["$defs"]["entry"]["dependentRequired"].keys() == HEADED.keys()
    assert Entry.__optional_keys__ == {"objective", *HEADED}
    assert set(timm_configs.POOL_ARGS) == {None, *rules["head"]["enum"]}
    assert SCHEMA["properties"]["weights"]["propertyNames"]["pattern"] == f"^{TAG_PATTERN}$"
    assert set(LIES) == set(rules)
    assert list(manifest()) == sorted(manifest())  # the first tag of a model is its default


@pytest.mark.parametrize("probe", PROBES)
def test_every_score_has_a_place_on_the_card(entry, probe):
    """Check also that a score without a place on the card is invalid."""
    endings = ["".join(parts) for parts in product(("", "_224"), ("", "_random", "_start", "_context"))]
    for ending in endings:
        change = {**entry, "scores": {probe + ending: 1.5}}
        assert is_valid(change) == (ending in SCORED)
        if ending in SCORED:
            assert "| **1.5** |" in make_card(TAG, validate_entry(TAG, change))


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in LIES.items() for value in values])
def test_what_leads_astray_is_refused_here_and_by_the_schema(entry, field, value):
    published = {"repository": "org/name", "revision": "0" * 40, **(HEADED if field in HEADED else {})}
    assert is_valid({**entry, **published})
    lying = {**entry, **published, field: value}
    assert not is_valid(lying)
    with pytest.raises(WeightsError, match=f"weights_manifest.json: {TAG}: {field}: expected .*, found"):
        validate_entry(TAG, lying)


@pytest.mark.parametrize("field", ["scores", "data", "sha256", "repository"])
def test_entries_are_whole(entry, field):
    del entry[field]
    assert not is_valid(entry)
    with pytest.raises(WeightsError, match=f"all fields, found no .*{field}"):
        validate_entry(TAG, entry)


def test_entries_have_nothing_else(entry):
    assert not is_valid({**entry, "more": 1})
    with pytest.raises(WeightsError, match=r"unknown fields \['more'\]; .*\['repository'"):
        validate_entry(TAG, {**entry, "more": 1})


def test_numbers_that_are_none(entry):
    """Refuse NaN and infinity, which Python's JSON reads and JSON Schema does not know."""
    for field, value in product(("epochs", "bytes"), (math.nan, math.inf, -math.inf)):
        with pytest.raises(WeightsError, match=f"{field}: expected .*, found -?(nan|inf)"):
            validate_entry(TAG, {**entry, field: value})


@pytest.mark.parametrize(
    "tag", ["resnet50.a1_in1k", "../../evil", "scott_3_16", "scott_3_16.a/b", "Scott.x", "scott_3_16..x"]
)
def test_tags_that_would_be_other_folders(entry, tag):
    assert not is_valid(entry, tag)
    with pytest.raises(WeightsError, match="expected tags like"):
        validate_entry(tag, entry)


@pytest.mark.parametrize("half", [{"repository": "org/name"}, {"revision": "0" * 40}])
def test_a_repository_without_a_commit(entry, half):
    assert not is_valid({**entry, **half})
    with pytest.raises(WeightsError, match="expected repository and revision both or neither"):
        validate_entry(TAG, {**entry, **half})


@pytest.mark.parametrize("field", HEADED)
def test_a_head_without_classes_and_classes_without_a_head(entry, field):
    for kind in ("attentive", "linear"):
        whole = {**entry, **HEADED, "head": kind, "scores": {kind: 60.1}}
        assert is_valid(whole)
        assert validate_entry(TAG, whole) is whole
    del whole[field]
    assert not is_valid(whole)
    (other,) = HEADED.keys() - {field}
    with pytest.raises(WeightsError, match=f"head and label_names.*found {other} alone"):
        validate_entry(TAG, whole)


def test_an_entry_that_leads_astray_spoils_only_its_own_weights(monkeypatch, entry, tmp_path):
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path / "models"))
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (tmp_path / "models" / TAG).mkdir(parents=True)
    monkeypatch.setitem(manifest(), TAG, {**entry, "file": "../../secret.safetensors"})
    assert TAG not in timm_configs.make_pretrained_cfgs()
    with pytest.raises(WeightsError, match="file: .*plain name.*found '../../secret"):
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


def test_writing_what_is_there_changes_no_letter(tmp_path):
    """Keep the other lines, so that the diff of a release shows only its own."""
    path = tmp_path / "manifest.json"
    before = (CHECKOUT / "weights_manifest.json").read_text()
    path.write_text(before)
    write_entry(path, TAG, json.loads(before)["weights"][TAG])
    assert path.read_text() == before


def test_a_model_whose_only_tag_is_wrong_says_what_is(monkeypatch, entry):
    wrong = {**entry, "file": "../x.safetensors"}
    monkeypatch.setattr("scott_models.weights.entries.manifest", lambda: {"scott_7_16.x": wrong})
    for name in ("scott_7_16", "scott_7_16.x"):
        with pytest.raises(WeightsError, match="file: .*plain name"):
            get_entry(name)
    with pytest.raises(WeightsError, match=r"no such weights.*\['scott_7_16.x'\]"):
        get_entry("scott_3_16")


def test_an_entry_needs_a_folder(entry, tmp_path):
    with pytest.raises(WeightsError, match="folder that exists"):
        write_entry(tmp_path / "nowhere" / "weights_manifest.json", TAG, entry)


def test_the_manifest_is_read_once():
    assert manifest() is manifest()


def test_entries_stand_in_the_order_of_their_tags(tmp_path, entry):
    path = tmp_path / "manifest.json"
    names = ["mimjepa_flowers102", "mimjepa_flowers102_cpu", "mimjepa_flowers102_cpu_probe"]
    for name in (names[2], names[0], names[1]):
        write_entry(path, f"scott_12_16.{name}", {**entry, **(HEADED if name.endswith("probe") else {})})
    write_entry(path, TAG, entry)
    assert list(json.loads(path.read_text())["weights"]) == [*(f"scott_12_16.{name}" for name in names), TAG]


def test_entries_written_at_once_are_all_kept(tmp_path, entry, monkeypatch):
    path, tags = tmp_path / "manifest.json", [f"scott_3_16.{name}" for name in "abcdef"]
    known = read_entries

    def slowly(file):
        entries = known(file)
        time.sleep(0.02)
        return entries

    monkeypatch.setattr("scott_models.weights.entries.read_entries", slowly)
    with ThreadPoolExecutor(len(tags)) as pool:
        list(pool.map(lambda tag: write_entry(path, tag, entry), tags))
    assert sorted(json.loads(path.read_text())["weights"]) == tags
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ['{"weights": {', "[]", "{}", '{"weights": []}', None])
def test_a_file_that_is_no_manifest(tmp_path, monkeypatch, content):
    """Report the file when weights are requested; importing the package must still work."""
    path = tmp_path / "weights_manifest.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("scott_models.weights.entries.PATH", path)
    manifest.cache_clear()
    try:
        assert timm_configs.make_pretrained_cfgs() == {}  # importing the package calls this
        assert timm_configs.list_tags("scott_3_16") == []
        for ask in (partial(timm.create_model, "scott_3_16", pretrained=True), timm_configs.list_zoo):
            with pytest.raises(WeightsError, match=f"{path}: expected a manifest like weights_manifest.json, found"):
                ask()
    finally:
        manifest.cache_clear()


@pytest.mark.parametrize("content", ["{", "[]", '{"$defs": {}}', None])
def test_a_schema_that_is_damaged(tmp_path, monkeypatch, content):
    """Report the file when weights are requested; importing the package must still work."""
    path = tmp_path / "weights_manifest.schema.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("scott_models.weights.entries.SCHEMA", path)
    read_rules.cache_clear()
    try:
        assert timm_configs.make_pretrained_cfgs() == {}  # importing the package calls this
        with pytest.raises(WeightsError, match=f"{path}: expected the schema of manifests, found .*restore it"):
            timm.create_model("scott_3_16", pretrained=True)
    finally:
        read_rules.cache_clear()
