import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from scott_models.errors import DataError
from scott_models.finetune.recipe import FinetuneRecipe
from scott_models.finetune.train import finetune
from scott_models.pretrain import Recipe, pretrain
from scott_models.pretrain.monitor import BROKEN
from scott_models.probes.evaluate import probe
from scott_models.probes.label_efficiency import Point
from scott_models.report import write_report
from scott_models.report.scores import name_model

from ..browser import page_of, pictures_without_size

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Draw three classes of eight small pictures, in a folder whose name must not become markup."""
    folder, rng = tmp_path_factory.mktemp("images") / "<b>photos", np.random.default_rng(0)
    for name, colour in (("blue", (40, 60, 220)), ("green", (30, 160, 40)), ("red", (190, 20, 20))):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            noise = rng.integers(-30, 30, (48, 48, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Pretrain a small run to its end."""
    changes = ("model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "run.precision=no")
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCOTT_MODELS_CACHE", str(out.parent / "cache"))
        pretrain(Recipe.load("smoke", (*changes, "run.log_every=1")), [images], out)
    return out


@pytest.fixture
def copy(run, tmp_path):
    """Copy the run, for tests that change it."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def scores(run, images, tmp_path_factory):
    """Write two files as `scott probe --json` prints them for the run: scores, and a curve."""
    folder = tmp_path_factory.mktemp("scores")
    report = probe(str(run), [images], [images], kinds=("knn", "ridge"), duplicates=False)
    (folder / "scores.json").write_text(json.dumps(asdict(report)))
    points = [Point("a model", "linear", count, 20.0 + count, 1.5, 5) for count in (1, 5, 10)]
    (folder / "curve.json").write_text(json.dumps([asdict(point) for point in points]))
    return folder / "scores.json", folder / "curve.json"


def test_what_a_run_s_page_says(run, copy):
    page = write_report([copy])
    assert page == copy / "report.html"
    text = page.read_text()
    assert page.stat().st_size < 5_000_000
    words = (run / "README.md").read_text()
    verdict = words.split("After update ")[1].split(": ")[1]
    assert f"<strong>{verdict}</strong>" in text
    assert "kNN" in text
    assert "random weights" in text
    assert text.count("<svg") == 9  # probes, RankMe, spread; loss, rate, decay, gradients, speed, EMA
    assert "<td>model.name</td><td>scott_3_16</td><td>scott_12_16</td>" in text
    assert "<td>mask.ratio</td><td>0.6</td></tr>" in text  # in the table of equal settings
    assert "Not finished" not in text
    assert "&lt;b&gt;photos" in text
    assert "<b>photos" not in text
    assert text.count("data:image/webp") == 1 + len(list((run / "looks").glob("step_*.webp"))) + 1  # plus neighbours


@pytest.mark.browser
@pytest.mark.needs("playwright", "chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_whole(run, scores, tmp_path, dark):
    page = write_report([run, *scores], tmp_path / "page.html")
    with page_of(page, **PHONE, dark=dark) as shown:
        assert shown.complaints == []
        assert pictures_without_size(shown) == []
        assert shown.evaluate("document.images.length") >= 5
        charts = shown.evaluate("[...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect())")
        assert len(charts) == 13
        assert all(box["width"] > 300 and box["height"] > 60 for box in charts)
        assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert shown.locator(".verdict").bounding_box()["y"] < PHONE["height"] / 2  # the verdict is visible at once
        style = "getComputedStyle(document.body)"
        paper, ink = (
            shown.evaluate(f"{style}.{name}.match(/\\d+/g).map(Number)") for name in ("backgroundColor", "color")
        )
        assert (max(paper) < 60 and min(ink) > 180) if dark else (min(paper) > 240 and max(ink) < 80)
        text = shown.evaluate("getComputedStyle(document.querySelector('svg.chart text')).fill")
        assert text == "rgb({}, {}, {})".format(*ink)  # the charts use the text colour of the page
        shown.locator("summary").first.click()
        assert shown.locator("details[open] table").first.is_visible()


def test_a_run_under_way(copy):
    metrics = copy / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= 4]
    metrics.write_text("\n".join(kept) + "\n")
    shutil.rmtree(copy / "export")
    text = write_report([copy], neighbours=False).read_text()
    assert "Not finished: update 4 of 12." in text
    assert "Nearest neighbours" not in text
    assert "local-dir:" not in text
    metrics.write_text(kept[0] + "\n")  # the monitor measured only random weights
    shutil.rmtree(copy / "checkpoints")
    text = write_report([copy]).read_text()
    assert "not monitored yet" in text
    assert "no checkpoint yet" in text


def test_a_fine_tuning(images, tmp_path):
    changes = ["model.img_size=32", "model.weights=random", "optim.batch_size=8", "run.precision=no"]
    finetune(FinetuneRecipe.load("smoke", changes), [images], [images], tmp_path / "run")
    text = write_report([tmp_path / "run"]).read_text()
    assert "scott_3_16, fine-tuned: run" in text
    assert "% of the test images</strong>" in text
    assert "Progress" in text
    assert "EMA" not in text


def test_figures_that_are_no_numbers(copy):
    """Check null values, which stand for NaN in JSON: features that are all 0 have no RankMe."""
    metrics = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [line for line in lines if "monitor" in line][-1]
    last["monitor"] |= {"rankme": None, "spread": 0.0, "cosine": None}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report([copy], neighbours=False).read_text()
    assert "dead, all images have nearly the same features" in text
    assert "RankMe nan (" in text


def test_a_dead_run_is_called_so(copy):
    metrics = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [line for line in lines if "monitor" in line][-1]
    last["monitor"] = asdict(BROKEN)
    loss = [line for line in lines if "loss" in line][-2]
    loss.update(loss=None, grad_norm=None)  # as the log writes NaN
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report([copy], neighbours=False).read_text()
    assert '<div class="verdict bad"><strong>dead, all images have nearly the same features</strong>' in text
    assert "1 of the logged updates had no finite loss" in text
    assert "Loss. " in text
    with metrics.open("a") as file:
        file.write('{"step": 13, "lo')  # a power cut
    assert write_report([copy], neighbours=False).read_text() == text


def test_an_image_that_cannot_be_read_costs_only_its_section(copy, tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").write_text("no image")
    environment = json.loads((copy / "environment.json").read_text())
    environment[-1]["data"] = [str(tmp_path / "images")]
    (copy / "environment.json").write_text(json.dumps(environment))
    assert "Not drawn: " in write_report([copy]).read_text()


def test_models_are_named_apart_and_without_their_folders(tmp_path):
    models = ["local-dir:/disk/me/a/export", "/disk/me/a/", "/disk/me/a/ (random weights)", "b"]
    assert [name_model(model) for model in models] == ["a", "a", "a (random weights)", "b"]
    points = [asdict(Point(model, "knn", count, 20.0, None, 1)) for model in models for count in (1, 5)]
    (tmp_path / "curve.json").write_text(json.dumps(points))
    text = write_report([tmp_path / "curve.json"]).read_text()
    assert text.count("</td><td>knn</td>") == 8
    assert "<td>/disk/me/a/</td>" in text  # two models have the same name


def test_images_that_are_gone(copy):
    environment = json.loads((copy / "environment.json").read_text())
    environment[-1]["data"] = ["/elsewhere/photos/train"]
    (copy / "environment.json").write_text(json.dumps(environment))
    text = write_report([copy]).read_text()
    assert "images were not found as files from the current folder: photos." in text
    assert "elsewhere" not in text


def test_scores_class_by_class(scores, tmp_path):
    report = json.loads(scores[0].read_text())
    assert report["names"] == ["blue", "green", "red"]
    assert report["test_images"] == [8, 8, 8]
    for each in report["confusions"]:
        top1 = next(row["top1"] for row in report["scores"] if row["probe"] == each["probe"])
        assert sum(each["of_classes"]) / 3 == pytest.approx(top1)
        assert sum(images for *_, images in each["mistaken"]) == round(24 * (1 - top1 / 100))
    report["confusions"][0].update(of_classes=[100.0, 75.0, None], mistaken=[[1, 2, 2]])
    report["confusions"] = report["confusions"][:1]
    page = tmp_path / "changed.json"
    page.write_text(json.dumps(report))
    text = write_report([page]).read_text()
    assert "<td>green</td><td>red</td><td>2</td><td>25 %</td>" in text
    assert "Class by class, by the knn probe" in text
    assert "2 of 24 test images are classified wrongly" in text


def test_the_verdict_of_scores_is_the_control_s(scores, tmp_path):
    report, page = json.loads(scores[0].read_text()), tmp_path / "changed.json"
    for ours, verdict in (
        ((90, 80), '<div class="verdict good"><strong>90.0 % by the knn probe; +30.0 to +40.0 points compared'),
        ((90, 40), '<div class="verdict doubtful"><strong>90.0 % by the knn probe; -10.0 to +40.0 points compared'),
        ((40, 45), '<div class="verdict bad"><strong>45.0 % by the ridge probe; -10.0 to -5.0 points compared'),
    ):
        for row, top1 in zip(report["scores"], (*ours, 50, 50)):
            row["top1"] = top1
        page.write_text(json.dumps(report))
        assert verdict in write_report([page]).read_text()
    report["scores"] = report["scores"][:2]
    page.write_text(json.dumps(report))
    assert "random weights were not scored" in write_report([page]).read_text()


def test_few_labels(scores):
    text = write_report([scores[1]]).read_text()
    assert "How few labels will do" in text
    assert "<td>a model</td><td>linear</td><td>5</td><td>25.0 ± 1.5</td><td>5</td>" in text


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"x.json": "{}"}, "x.json.*scores or a curve.*--json.*found a file without"),
        ({"x.json": "[1"}, "x.json: expected scores or a curve"),
        ({"x.json": "[]"}, "x.json: expected scores or a curve"),
        ({"folder/a.txt": ""}, "folder.*at most one.*recipe.toml and metrics.jsonl"),
        ({"run/recipe.toml": "[mask]", "run/metrics.jsonl": "x"}, "run: .*files.*damaged"),
        ({}, "run's folder.*--json.*got nothing"),
    ],
)
def test_what_is_no_run_and_no_score(made, words, tmp_path):
    for name, content in made.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words.replace("[", r"\[")):
        write_report(sorted(tmp_path.iterdir()))


def test_pages_that_cannot_be_written(scores, tmp_path):
    for out in (tmp_path / "page.pdf", tmp_path / "nowhere" / "page.html"):
        with pytest.raises(DataError, match=r"\.html file.*folder that exists"):
            write_report([scores[1]], out)
