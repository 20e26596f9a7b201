"""benchmarks/trial at toy scale: rows, what is done, the page."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scott_models.pretrain import Recipe

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "trial"


@pytest.fixture
def trial(monkeypatch):
    """The trial for small runs: batches of 4 crops of 32 px."""
    monkeypatch.syspath_prepend(FOLDER)
    names = runpy.run_path(str(FOLDER / "trial.py"))
    small = ("model.img_size=32", "data.short_side=36", "optim.batch_size=4", "model.predictor_depth=1")
    own = names["main"].__globals__
    own["COMMON"] = (*own["COMMON"], *small, "objective.projector=16,8")
    return own


@pytest.fixture
def flowers(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, colour in (("blue", (40, 60, 220)), ("red", (120, 20, 20))):
            (tmp_path / "flowers" / split / name).mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(-20, 20, (40, 40, 3))
                picture = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
                picture.save(tmp_path / "flowers" / split / name / f"{i}.png")
    return tmp_path / "flowers"


def test_rows_from_images_to_the_page(trial, flowers, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        given = ["--data", flowers, "--out", tmp_path / "out", "--crops", 16, *arguments]
        monkeypatch.setattr(sys, "argv", ["trial.py", *map(str, given)])
        trial["main"]()
        return capsys.readouterr().out

    rows = ("random weights", "plain", "infonce 0.3", "targets without norm", "plain, then as many crops of visreg")
    assert "== infonce-0.3-16-0" in run("--only", *rows)
    run("--only", "plain", "--seeds", "2")
    assert "==" not in run("--only", *rows)  # done is done
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert names == {
        "random-weights-16-0",
        "plain-16-0",
        "plain-16-1",
        "infonce-0.3-16-0",
        "targets-without-norm-16-0",
        "plain-then-as-many-crops-of-visreg-16-0",
    }
    result = json.loads((tmp_path / "out" / "infonce-0.3-16-0.json").read_text())
    assert set(result["scores"]) == {"knn", "ridge"}
    assert [look["crops"] for look in result["looks"]] == [0, 4, 8, 12, 16]
    recipe = Recipe.load(tmp_path / "out-work" / "infonce-0.3-16-0" / "recipe.toml")
    assert (recipe.objective.pooled, recipe.objective.pooled_weight) == ("infonce", 0.3)
    second = Recipe.load(tmp_path / "out-work" / "plain-then-as-many-crops-of-visreg-16-0" / "recipe.toml")
    assert (second.objective.name, second.model.init) == ("visreg", str(tmp_path / "out-work" / "plain-16-0"))

    page = tmp_path / "page.md"
    page.write_text(f"before\n{trial['BEGIN']}old\n{trial['END']}after\n")
    (tmp_path / "out" / "speeds.json").write_text('{"plain": 123.4}')
    trial["fill"](tmp_path / "out", page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| setting | images/s | kNN, 16 crops | ridge, 16 crops | RankMe, 16 crops | patches |" in text
    assert "| plain | 123 | " in text
    plain = [json.loads((tmp_path / "out" / f"plain-16-{seed}.json").read_text())["scores"]["knn"] for seed in (0, 1)]
    assert f"| plain | 123 | {plain[0]:.1f} / {plain[1]:.1f} |" in text


def test_raw_targets_are_without_the_last_norm(trial, flowers, tmp_path):
    recipe = trial["recipe_of"]("targets without norm", 24, 8, 0)
    run = trial["RawRun"](recipe, [flowers], tmp_path / "run", False, None, False, "target")
    images = torch.randn(2, 3, 32, 32)
    target = run.engine.objective.target_encoder
    assert torch.equal(target.forward_features(images), target.forward_tokens(images))


def test_every_row_is_a_recipe(trial):
    recipes = {row: trial["recipe_of"](row, 8189, 40_960, 0) for row in trial["ROWS"]}
    assert {row: round(made.optim.epochs * (8189 // made.optim.batch_size)) for row, made in recipes.items()} == {
        row: 40_960 // made.optim.batch_size for row, made in recipes.items()
    }


def test_dense_quality_by_hand(trial):
    dense = runpy.run_path(str(FOLDER / "dense.py"))
    foreground = torch.tensor([[[True, True], [False, False]]]).repeat(4, 1, 1)
    features = torch.where(foreground[..., None], torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0]))
    assert dense["score"](features.repeat_interleave(12, dim=1), foreground.repeat_interleave(12, dim=1)) == 100
    found, expected = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert dense["intersection_over_union"](found, expected) == pytest.approx(100 / 3)


def test_speeds_are_measured(trial, flowers, tmp_path, monkeypatch):
    monkeypatch.setattr("scott_models.training.engine.TIMED_SECONDS", 0.1)
    for rows in (["plain"], ["diet", "random weights", "plain, then as many crops of visreg"]):
        given = ["--data", flowers, "--out", tmp_path / "out", "--speed", "--only", *rows]
        monkeypatch.setattr(sys, "argv", ["trial.py", *map(str, given)])
        trial["main"]()
    speeds = json.loads((tmp_path / "out" / "speeds.json").read_text())
    assert set(speeds) == {"plain", "diet"}
    assert all(speed > 0 for speed in speeds.values())
