"""benchmarks/sample_efficiency at toy scale: cells, what is done, the page; the trial's table."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scott_models.data.sources import find_samples
from scott_models.errors import DataError
from scott_models.pretrain import Recipe

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "sample_efficiency"
study = runpy.run_path(str(FOLDER / "study.py"))


@pytest.fixture(scope="module")
def small_flowers(tmp_path_factory):
    """Two classes of six pictures in each of three splits."""
    root, rng = tmp_path_factory.mktemp("flowers"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, colour in (("blue", (40, 60, 220)), ("red", (120, 20, 20))):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                noise = rng.integers(-20, 20, (48, 40 + i, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


def test_larger_shares_hold_the_smaller_ones(small_flowers, tmp_path):
    samples = find_samples([small_flowers])
    found = []
    for share in (0.25, 1.0):
        folder = study["subset"](samples, small_flowers, share, 0, tmp_path / f"{share}")
        linked = find_samples([folder])
        found.append({sample.image.relative_to(folder) for sample in linked})
        assert {sample.label for sample in linked} <= {"blue", "red"}
    assert (len(found[0]), len(found[1])) == (9, 36)
    assert found[0] < found[1]
    other = study["subset"](samples, small_flowers, 0.25, 1, tmp_path / "other")
    assert {sample.image.relative_to(other) for sample in find_samples([other])} != found[0]


def test_mosaics_are_made_of_the_same_squares(small_flowers, tmp_path):
    samples = find_samples([small_flowers])
    folders = [study["scenes"](kind, samples, 32, 0, tmp_path / kind) for kind in study["SCENES"]]
    files = [sorted(folder.iterdir()) for folder in folders]
    assert [len(found) for found in files] == 3 * [len(samples)]
    square, mosaic, repeated = (np.asarray(Image.open(found[7]), dtype=float) for found in files)
    assert square.shape == mosaic.shape == repeated.shape == (32, 32, 3)
    assert all((repeated[y : y + 16, x : x + 16] == mosaic[:16, :16]).all() for y in (0, 16) for x in (0, 16))
    corner = mosaic[:16, :16].mean(axis=(0, 1))  # the image itself comes first
    assert np.abs(corner - square.mean(axis=(0, 1))).max() < 3
    quarters = [mosaic[y : y + 16, x : x + 16].mean(axis=(0, 1)) for y in (0, 16) for x in (0, 16)]
    assert len({tuple(np.round(quarter, 2)) for quarter in quarters}) == 4


def test_the_study_from_images_to_the_page(small_flowers, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        given = ["--scale", "toy", "--data", small_flowers, "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, given)])
        study["main"]()
        return capsys.readouterr().out

    assert "== mimjepa-1-0" in run("--methods", "mimjepa", "supervised", "--shares", "1")
    run("--methods", "splitmask", "--scenes")
    names = {path.stem for path in (tmp_path / "out" / "toy").iterdir()}
    of_scenes = {f"splitmask-{kind}-0" for kind in study["SCENES"]}
    assert names == {"mimjepa-1-0", "supervised-1-0", "random-0-0", *of_scenes}
    assert "==" not in run("--methods", "mimjepa", "supervised", "--shares", "1")  # done is done
    seen = {}
    for name in ("mimjepa-1-0", "supervised-1-0"):
        lines = (tmp_path / "out-work" / "toy" / name / "metrics.jsonl").read_text().splitlines()
        seen[name] = 4 * [json.loads(line)["step"] for line in lines if "loss" in line][-1]
    assert set(seen.values()) == {24}  # equally many images
    result = json.loads((tmp_path / "out" / "toy" / "mimjepa-1-0.json").read_text())
    assert set(result["scores"]) == {"knn", "linear", "attentive"}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{study['BEGIN']}old\n{study['END']}after\n")
    study["fill"](tmp_path / "out", page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "scott_3_16, 32 px, 24 images seen (`--scale toy`):" in text
    assert "| - | random weights | 1 |" in text
    assert "| 100%: 36 images | mimjepa | 1 |" in text
    assert "| 100%: 24 labelled | supervised | 1 |" in text
    assert "| mosaics: 36 images | splitmask | 1 |" in text
    assert ".png" not in text  # of one share
    quarter = {**result, "kind": "0.25", "images": 9}
    (tmp_path / "out" / "toy" / "mimjepa-0.25-0.json").write_text(json.dumps(quarter))
    study["fill"](tmp_path / "out", page, tmp_path)
    assert "(pictures/sample_efficiency_toy.png)" in page.read_text()
    assert Image.open(tmp_path / "sample_efficiency_toy.png").size[0] > 500


def test_another_scale_is_not_mixed_in(tmp_path):
    done = {"scale": {"model": "scott_12_16"}}
    (tmp_path / "beit-1-0.json").write_text(json.dumps(done))
    with pytest.raises(DataError, match="this scale.*found.*scott_12_16.*choose"):
        study["cell"]("beit", "1", 0, tmp_path, study["SCALES"]["toy"], tmp_path / "work", tmp_path)


def test_few_labelled_images_lack_classes(small_flowers, tmp_path, monkeypatch):
    """Supervised training on a share where one class has no label; it is probed with all of them all the same."""
    flowers, images = tmp_path / "flowers", tmp_path / "images"
    shutil.copytree(small_flowers, flowers)
    for split in ("train", "val", "test"):
        shutil.copytree(flowers / split / "red", flowers / split / "scarlet")
    shutil.copytree(small_flowers / "train", images / "train")
    monkeypatch.setitem(study["cell"].__globals__, "subset", lambda *given: images)
    study["cell"]("supervised", "0.1", 0, flowers, study["SCALES"]["toy"], tmp_path, tmp_path)
    result = json.loads((tmp_path / "supervised-0.1-0.json").read_text())
    assert result["images"] == 12
    assert set(result["scores"]) == {"knn", "linear", "attentive"}


def test_the_trial(small_flowers, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    trial = runpy.run_path(str(FOLDER / "trial.py"))
    trial["row"].__globals__["SCALE"] = study["SCALES"]["toy"]
    given = ["--data", small_flowers, "--out", tmp_path / "out", "--only", "temperature 0.1"]
    monkeypatch.setattr(sys, "argv", ["trial.py", *map(str, given)])
    trial["main"]()
    scores = json.loads((tmp_path / "out" / "temperature-0.1.json").read_text())["scores"]
    assert f"| temperature 0.1 | {scores['knn']:.1f} | {scores['ridge']:.1f} |" in capsys.readouterr().out
    recipe = Recipe.load(tmp_path / "out-work" / "temperature-0.1" / "recipe.toml")
    assert (recipe.objective.name, recipe.objective.temperature) == ("splitmask", 0.1)
