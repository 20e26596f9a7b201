import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from scott_models import weights
from scott_models.errors import WeightsError
from scott_models.pretrain import Recipe, pretrain
from scott_models.pretrain.recipe import OBJECTIVES, TITLES
from scott_models.release.card import METHODS, PICTURE, make_card
from scott_models.release.entry import check_entry, find_dtype, is_pretraining, make_entry, name_recipe, name_source
from scott_models.weights import manifest
from scott_models.weights.entries import read_rules

CHECKOUT = Path(__file__).parents[2]
SMOKE = ["model.img_size=32", "optim.batch_size=4", "run.seed=3", "run.precision=no"]


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("tag", [tag for tag in manifest() if (CHECKOUT / "weights" / tag).is_dir()])
def test_committed_cards_are_made_from_the_manifest(tag):
    """Detect a score that was changed by hand in a card or in the manifest only."""
    committed, made = (
        (CHECKOUT / "weights" / tag / "README.md").read_text(),
        make_card(tag, manifest()[tag], picture=(CHECKOUT / "weights" / tag / PICTURE).is_file()),
    )
    assert committed.split("---\n", 2)[2] == made.split("---\n", 2)[2]
    assert front_matter(committed) == front_matter(made)  # huggingface_hub makes its layout


@pytest.mark.parametrize("tag", ["scott_3_16.mimjepa_flowers102_cpu"])
def test_a_card_says_what_was_measured(tag):
    entry = manifest()[tag]
    text = make_card(tag, entry)
    assert all(f"{score}" in text for score in entry["scores"].values())
    assert entry["protocol"] in text
    results = front_matter(text)["model-index"][0]["results"]
    values = [metric["value"] for result in results for metric in result["metrics"]]
    assert values == [entry["scores"]["knn"], entry["scores"]["ridge"]]
    assert front_matter(text)["license"] == entry["license"]


def test_a_card_without_scores():
    entry = {**next(iter(manifest().values())), "scores": {}, "protocol": "not measured"}
    text = make_card("scott_3_16.x", entry)
    assert "have not been scored" in text
    assert "model-index" not in text


def test_an_entry_of_a_run(run, ended):
    entry = make_entry(run, license="cc-by-4.0", data_terms="mine")
    steps = 6  # 2 epochs of 12 images in batches of 4
    assert (entry["epochs"], entry["images_seen"], entry["seed"]) == (2, 4 * steps, 3)
    assert entry["data"] == "12 images of photos"  # without their location
    assert entry["recipe"] == "smoke model.img_size=32 optim.batch_size=4 run.seed=3"
    assert (entry["datasets"], entry["encoder"]) == (["photos"], "target")
    assert (entry["license"], entry["data_terms"], entry["dtype"]) == ("cc-by-4.0", "mine", "bfloat16")
    assert str(ended.parent) not in json.dumps(entry) + make_card("scott_3_16.photos", entry)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [line["monitor"] for line in lines if "monitor" in line]
    assert entry["scores"]["knn"] == round(looks[-1]["knn"], 1)
    assert entry["scores"]["ridge_random"] == round(looks[0]["ridge"], 1)


def test_a_card_names_the_objective(photos, tmp_path):
    pretrain(Recipe.load("smoke", [*OBJECTIVES["beit"], *SMOKE, "objective.words=20"]), [photos], tmp_path / "run")
    entry = make_entry(tmp_path / "run", license="mit")
    assert entry["objective"] == "beit"
    assert "without labels by BEiT's objective (arXiv 2106.08254)" in make_card("scott_3_16.x", entry)
    released = next(iter(manifest().values()))
    assert "objective" not in released
    assert "without labels by MIM-JEPA (arXiv 2502.18056)" in make_card("scott_3_16.x", released)


@pytest.mark.parametrize("name", TITLES)
def test_every_objective_has_a_name_in_the_manifest_and_on_cards(name):
    objective, _, term = name.partition("-")
    term = term or ("visreg" if objective == "visreg" else "none")
    recipe = Recipe.load("smoke", [*OBJECTIVES[objective], f"objective.pooled={term}"])
    assert recipe.objective.full_name == name
    assert recipe.objective.title == TITLES[name]
    assert METHODS[name]
    assert (name in read_rules()["objective"]["enum"]) == (name != "mimjepa")


def test_recipes_go_by_the_name_of_the_closest():
    assert name_recipe(Recipe.load("flowers102-cpu", ["model.init=somewhere"])) == "flowers102-cpu"
    grown = Recipe.load("flowers102-cpu-grown", ["model.name=scott_7_16", "optim.epochs=1.5", "run.precision=bf16"])
    assert name_recipe(grown) == "flowers102-cpu-grown model.name=scott_7_16 optim.epochs=1.5"
    changes = ["model.img_size=32", "data.views=same", "mask.ratio=0.5", "run.seed=3"]
    assert name_recipe(Recipe.load("smoke", changes[:3])) == f"smoke {' '.join(changes[:3])}"
    assert name_recipe(Recipe.load("smoke", changes)) == "recipe.toml"


def test_scores_of_a_probe(run, tmp_path):
    def entry(content):
        (tmp_path / "scores.json").write_text(json.dumps(content))
        return make_entry(run, license="mit", scores=tmp_path / "scores.json")

    def report(model, size):
        row = {"model": str(model), "img_size": size, "probe": "linear", "top1": 61.04, "seeds": 1}
        control = {**row, "model": f"{model} (random weights)", "top1": 9}
        return {"scores": [row, control], "protocol": "fast", "train": 2040, "test": 6149}

    made = entry(report(run, 32))
    assert made["scores"] == {"linear": 61.0, "linear_random": 9}
    assert made["protocol"].startswith("scott probe, protocol fast, 32 px, 2,040 images to train, 6,149 to test")
    made = entry(report(f"local-dir:{run / 'export'}", 224))
    assert made["scores"] == {"linear_224": 61.0, "linear_224_random": 9}
    assert "| **these weights, 224 px** | **61.0** |" in make_card("scott_3_16.x", made)
    with pytest.raises(WeightsError, match="scores of .*run, found.*vit_small"):
        entry(report("vit_small", 32))
    with pytest.raises(WeightsError, match="scores at 32 or 224.*found 64"):
        entry(report(run, 64))
    with pytest.raises(WeightsError, match="expected what `scott probe --json` prints"):
        entry([])


def test_foreign_exports_and_damaged_records(run):
    """Refuse to make an entry that does not fit the weights."""

    def replaced(**options):
        return weights.export(timm.create_model("scott_3_16", use_mask_token=True, **options), run / "export")

    replaced(img_size=64, in_chans=1)
    with pytest.raises(WeightsError, match=r"entry.*{'input_size': \[3, 32, 32\]}, found {'input_size': \[1, 64"):
        make_entry(run, license="mit")
    replaced(img_size=32, num_heads=6)
    with pytest.raises(WeightsError, match="settings of scott_3_16, {'num_heads': 4}.*{'num_heads': 6}"):
        make_entry(run, license="mit")
    file = replaced(img_size=32) / "model.safetensors"
    state = load_file(file)
    state["blocks.0.attn.qkv.weight"][0, 0] = torch.inf
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"found NaN or infinity in \['blocks.0.attn.qkv.weight'\]"):
        make_entry(run, license="mit")
    replaced(img_size=32)
    make_entry(run, license="mit")
    for name, contents in {
        "environment.json": ("", "[]", "{}", '[{"data": ["photos"]}]', None),
        "metrics.jsonl": ("", "{", "[]\n", '{"step": 1, "loss": 1, "images_per_second": 0}\n', None),
        "export/config.json": ("", "[]", "{}", '{"architecture": "scott_3_16"}', None),
    }.items():
        whole = (run / name).read_bytes()
        for content in contents:
            (run / name).unlink()
            if content is not None:
                (run / name).write_text(content)
            with pytest.raises(WeightsError, match=f"{run / name}: expected .*, found something else") as raised:
                make_entry(run, license="mit")
            assert "\n" not in str(raised.value)
            (run / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/photos", "photos"),
        ("photos/", "photos"),
        ("/data/photos/train", "photos"),
        ("flowers102:/data/downloads", "flowers102"),
        ("hf:org/birds", "org/birds"),
        ("hf:/data/saved", "saved"),
        ("train", "images"),
        (".", "images"),
    ],
)
def test_sources_are_named_without_their_place(source, name):
    assert name_source(source) == name


def test_which_folders_are_runs(run, tmp_path):
    assert is_pretraining(run)
    assert not is_pretraining(tmp_path)
    (run / "export" / "model.safetensors").rename(tmp_path / "x")
    with pytest.raises(WeightsError, match="run that has ended.*found no"):
        make_entry(run, license="mit")
    (tmp_path / "x").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="expected a whole safetensors file"):
        find_dtype(tmp_path / "x")


def test_what_an_entry_says_of_a_classifier(tmp_path):
    model = timm.create_model("scott_3_16", img_size=32, num_classes=2, global_pool="attentive")
    weights.export(model, tmp_path, label_names=["blue", "red"])
    backbone = next(iter(manifest().values()))
    entry = {**backbone, "input_size": [3, 32, 32], "head": "attentive", "label_names": ["blue", "red"]}
    check_entry(tmp_path, "scott_3_16", entry)
    with pytest.raises(WeightsError, match=r"entry.*{'label_names': \['red', 'blue'\]}, found"):
        check_entry(tmp_path, "scott_3_16", {**entry, "label_names": ["red", "blue"]})
    with pytest.raises(WeightsError, match="expected the settings of scott_3_16, {'global_pool': 'avg'"):
        check_entry(tmp_path, "scott_3_16", {**entry, "head": "linear"})
    del entry["head"], entry["label_names"]
    with pytest.raises(WeightsError, match=r"expected what its entry says, {'label_names': \[\]}"):
        check_entry(tmp_path, "scott_3_16", entry)
