"""benchmarks/paper/reproduce.py at toy scale: from tar files to files that a release can be made of."""

import json
import runpy
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from scott_models import manifest, weights
from scott_models.errors import DataError, WeightsError
from scott_models.labelled import find_labelled
from scott_models.pretrain import Recipe
from scott_models.report.run import page_of_run

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "paper" / "reproduce.py"
reproduce = runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two tar files with what the real ones hold: a folder flowers102 with splits, and in each a folder of a class."""
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    files = []
    for number, splits in enumerate((("train", "val"), ("test",))):
        for split in splits:
            for name, colour in (("001-blue", (40, 60, 220)), ("002-red", (120, 20, 20))):
                folder = root / "flowers102" / split / name
                folder.mkdir(parents=True)
                for i in range(4):
                    noise = rng.integers(-20, 20, (48, 40 + i, 3))
                    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        files.append(root / f"shard-{number}.tar")
        with tarfile.open(files[-1], "w") as tar:
            for split in splits:
                tar.add(root / "flowers102" / split, f"flowers102/{split}")
    return files


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(shards, tmp_path_factory):
    """Two rows, rehearsed."""
    out = tmp_path_factory.mktemp("results") / "out"
    command = ("--rehearse", "--data", *shards, "--out", out, "--rows", "scott_3_16", "inductive", "--seeds", 2)
    first = run(*command, "--protocol", "both")
    assert first.returncode == 0, first.stderr
    assert "all done" in first.stderr
    return out, command


def test_scores_of_both_encoders_beside_random_weights(results):
    out, _ = results
    content = json.loads((out / "scott_3_16.json").read_text())
    rows = {(score["model"], score["probe"], score["protocol"]) for score in content["scores"]}
    probes = ("knn", "ridge", "linear", "attentive")
    labels = ("scott_3_16", "scott_3_16 (context encoder)", "scott_3_16 (random weights)")
    paper = {("scott_3_16", probe, "paper") for probe in ("linear", "attentive")}
    assert rows == {(label, probe, "fast") for label in labels for probe in probes} | paper
    assert {score["seeds"] for score in content["scores"]} == {2}
    assert (content["train"], content["test"]) == (16, 8)
    assert content["images_per_second"] > 0
    assert content["rounding"]["features"] < 1e-2
    assert content["command"].startswith("python -m scott_models.pretrain flowers102 model.name=scott_3_16")


def test_the_parts_join_to_a_run_folder_with_weights(results):
    out, _ = results
    content = json.loads((out / "scott_3_16.json").read_text())
    exported = out / "scott_3_16" / "export"
    files = [path for path in (out / "scott_3_16").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 15 * 2**20
    assert len(files) < 8
    subprocess.run(content["join"], shell=True, check=True, cwd=out)
    assert weights.sha256(exported / "model.safetensors") == content["sha256"]
    assert {tensor.dtype for tensor in load_file(exported / "model.safetensors").values()} == {torch.bfloat16}
    model = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 384)
    assert Recipe.load(out / "scott_3_16" / "recipe.toml").model.name == "scott_3_16"
    assert page_of_run(out / "scott_3_16", neighbours=False)


def test_a_release_is_made_of_it(results, photos, tmp_path, monkeypatch):
    out, _ = results
    script = runpy.run_path(str(SCRIPT.parents[1] / "release.py"))
    release = script["release"]
    monkeypatch.setitem(release.__globals__, "CHECKOUT", tmp_path)
    monkeypatch.setattr(manifest, "PATH", tmp_path / "weights_manifest.json")
    tag = "scott_3_16.mimjepa_toy"
    pictures = sorted(photos.glob("*/0.png"))
    entry = release(out, "scott_3_16", tag, "a laptop", pictures)
    content = json.loads((out / "scott_3_16.json").read_text())
    assert entry["sha256"] == content["sha256"] == weights.sha256(tmp_path / "weights" / tag / "model.safetensors")
    fast = {
        (score["model"], score["probe"]): score["top1"] for score in content["scores"] if score["protocol"] == "fast"
    }
    assert entry["scores"]["attentive_random"] == round(fast["scott_3_16 (random weights)", "attentive"], 1)
    assert entry["scores"]["knn_context"] == round(fast["scott_3_16 (context encoder)", "knn"], 1)
    assert len(entry["scores"]) == 12
    assert manifest.read(manifest.PATH)["weights"][tag] == entry
    assert "a laptop" in (tmp_path / "weights" / tag / "README.md").read_text()
    with pytest.raises(WeightsError, match="expected a tag of scott_3_16"):
        release(out, "scott_3_16", "scott_7_16.mimjepa_toy", "a laptop", pictures)
    (out / "scott_3_16" / "export" / "model.safetensors").unlink()
    parts = sorted((out / "scott_3_16" / "export").glob("*.part*"))
    whole = parts[0].read_bytes()
    parts[0].write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="expected sha256 .*, found other bytes or none; fetch the parts again"):
        script["joined"](out / "scott_3_16", content["sha256"])
    parts[0].write_bytes(whole)
    (out / "scott_3_16" / "export" / "model.safetensors").unlink()
    script["joined"](out / "scott_3_16", content["sha256"])


def test_a_classifier_is_released(shards, tmp_path, monkeypatch):
    tag = "scott_3_16.mimjepa_flowers102_cpu"
    script = runpy.run_path(str(SCRIPT.parents[1] / "release_head.py"))
    release = script["release_head"]
    monkeypatch.setitem(release.__globals__, "CHECKOUT", tmp_path)
    monkeypatch.setattr(manifest, "PATH", tmp_path / "weights_manifest.json")
    flowers = reproduce["unpacked"](shards, tmp_path)
    entry = release(tag, flowers, ("blue", "red"))
    folder = tmp_path / "weights" / f"{tag}_probe"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]
    assert script["accuracy"](model, find_labelled([flowers], [flowers])[1]).top1 == entry["scores"]["attentive"] == 100
    assert (entry["head"], entry["label_names"], entry["dtype"]) == ("attentive", ["blue", "red"], "bfloat16")
    assert manifest.read(manifest.PATH)["weights"] == {folder.name: entry}
    text = (folder / "README.md").read_text()
    assert "logits (B, 2)" in text
    assert "pipeline_tag: image-classification" in text
    assert len(script["NAMES"]) == len(set(script["NAMES"])) == 102
    other = timm.create_model("scott_3_16", img_size=112, num_classes=2, global_pool="attentive", use_mask_token=True)
    weights.export(other, tmp_path / "other", dtype=torch.float32)
    with pytest.raises(WeightsError, match="expected a classifier on the weights of"):
        release(tag, flowers, ("blue", "red"), tmp_path / "other")


def test_inductive_saw_no_test_images(results):
    out, _ = results
    seen = {
        row: json.loads((out / row / "environment.json").read_text())[-1]["images"]
        for row in ("scott_3_16", "inductive")
    }
    assert seen == {"scott_3_16": 24, "inductive": 16}


def test_what_is_done_is_not_done_again(results):
    out, command = results
    before = (out / "scott_3_16.json").read_text()
    again = run(*command)
    assert "all done" in again.stderr
    assert "==" not in again.stderr  # no step was begun
    assert (out / "scott_3_16.json").read_text() == before


def test_no_time_no_step(shards, tmp_path):
    ended = run(
        "--rehearse", "--data", *shards, "--out", tmp_path / "out", "--rows", "scott_3_16", "--minutes", "0.2"
    )  # fmt: skip
    assert ended.returncode == 0
    assert "the time is spent; the same command goes on" in ended.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_is_cut_when_its_time_ends(shards, tmp_path, monkeypatch):
    """It saves itself, so that the same command can go on."""
    row = reproduce["Row"].of("scott_3_16", tmp_path, (*reproduce["TOY"], "optim.epochs=500"))

    log = row.run / "metrics.jsonl"

    class Impatient(subprocess.Popen):
        def wait(self, timeout=None):
            while timeout is not None:  # until it has begun to train
                if (log.is_file() and "loss" in log.read_text()) or self.poll() is not None:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.1)
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    reproduce["pretrain"](row, reproduce["unpacked"](shards, tmp_path), reproduce["Clock"](1))
    assert not row.is_trained
    (checkpoint,) = (row.run / "checkpoints").glob("step_*.pt")
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 3000


def test_what_cannot_be_run_is_told(shards, tmp_path):
    ended = run("--gpu", "--data", *shards, "--out", tmp_path / "out")
    assert ended.returncode == 2
    if not torch.cuda.is_available():
        assert "--gpu: expected a GPU, found none; --rehearse tries everything" in ended.stderr
    with pytest.raises(DataError, match="expected a folder with train, val and test, found none; give all tar files"):
        reproduce["unpacked"](shards[:1], tmp_path / "some")
    assert not (tmp_path / "some" / "images").exists()  # or all tar files would come too late
    with pytest.raises(DataError, match="expected a folder with train, val and test"):
        reproduce["unpacked"]([tmp_path], tmp_path / "none")
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(shards[0].read_bytes()[:700])
    with pytest.raises(DataError, match="damaged.tar: expected a whole tar file"):
        reproduce["unpacked"]([damaged, shards[1]], tmp_path / "damaged")
    ended = run("--rehearse", "--data", *shards, "--out", tmp_path / "out", "--rows", "nothing")
    assert "--rows: expected some of ['blocks_masked', " in ended.stderr
