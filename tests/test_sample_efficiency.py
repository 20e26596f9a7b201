"""benchmarks/sample_efficiency/study.py at toy scale: cells, what is done, the page."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scott_models.data import find_samples

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sample_efficiency" / "study.py"
study = runpy.run_path(str(SCRIPT))


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
    square, repeated, mosaic = (np.asarray(Image.open(found[7]), dtype=float) for found in files)
    assert square.shape == repeated.shape == mosaic.shape == (32, 32, 3)
    assert all((repeated[y : y + 16, x : x + 16] == mosaic[:16, :16]).all() for y in (0, 16) for x in (0, 16))
    corner = mosaic[:16, :16].mean(axis=(0, 1))  # the image itself comes first
    assert np.abs(corner - square.mean(axis=(0, 1))).max() < 3
    quarters = [mosaic[y : y + 16, x : x + 16].mean(axis=(0, 1)) for y in (0, 16) for x in (0, 16)]
    assert len({tuple(np.round(quarter, 2)) for quarter in quarters}) == 4


def test_the_study_from_images_to_the_page(small_flowers, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        given = ["--scale", "toy", "--data", small_flowers, "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, given)])
        study["main"]()
        return capsys.readouterr().out

    assert "== mimjepa-1-0" in run("--methods", "mimjepa", "supervised", "--shares", "1")
    run("--methods", "splitmask", "--scenes")
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    of_scenes = {f"splitmask-{kind}-0" for kind in study["SCENES"]}
    assert names == {"mimjepa-1-0", "supervised-1-0", "random-0-0", *of_scenes}
    assert "==" not in run("--methods", "mimjepa", "supervised", "--shares", "1")  # done is done
    seen = {}
    for name in ("mimjepa-1-0", "supervised-1-0"):
        lines = (tmp_path / "out-work" / name / "metrics.jsonl").read_text().splitlines()
        seen[name] = 4 * [json.loads(line)["step"] for line in lines if "loss" in line][-1]
    assert set(seen.values()) == {24}  # equally many images
    result = json.loads((tmp_path / "out" / "mimjepa-1-0.json").read_text())
    assert set(result["scores"]) == {"knn", "linear", "attentive"}
    page, picture = tmp_path / "page.md", tmp_path / "study.png"
    page.write_text(f"before\n{study['BEGIN']}old\n{study['END']}after\n")
    study["fill"](tmp_path / "out", page, picture)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| none | random weights | 1 |" in text
    assert "| 36 | mimjepa | 1 |" in text
    assert "| mosaics | splitmask | 1 |" in text
    assert Image.open(picture).size[0] > 500
