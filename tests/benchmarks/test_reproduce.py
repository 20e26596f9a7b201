"""benchmarks/paper: from tar files, through a lease played on this machine, to files that a release can be made of."""

import json
import os
import re
import runpy
import signal
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

from scott_models import weights
from scott_models.data.labelled import find_labelled
from scott_models.errors import DataError, WeightsError
from scott_models.pretrain import Recipe
from scott_models.report.run_page import make_page
from scott_models.weights import entries
from scott_models.weights.files import sha256

pytestmark = pytest.mark.slow

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
sys.path.insert(0, str(PAPER))

import collect  # noqa: E402
import lease as lease_script  # noqa: E402
import rehearse_lease  # noqa: E402
import reproduce  # noqa: E402
import session as session_module  # noqa: E402
import trial  # noqa: E402
from rows import TOY, Row  # noqa: E402

KILLED = "probes/target-0.json"  # after this file the lease's work is killed


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three tar files as the real ones are: a folder flowers102 with splits, and in each a folder of a class."""
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    files = []
    for number, split in enumerate(("train", "val", "test")):
        for name, colour in (("001-blue", (40, 60, 220)), ("002-red", (120, 20, 20))):
            folder = root / "flowers102" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(-20, 20, (48, 40 + i, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        files.append(root / f"shard-{number}.tar")
        with tarfile.open(files[-1], "w") as tar:
            tar.add(root / "flowers102" / split, f"flowers102/{split}")
    return files


def run(*arguments):
    command = [sys.executable, str(PAPER / "reproduce.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def lease(shards, tmp_path_factory):
    """The calls of docs/gpu.md with two rows, the work killed in between: the machine, its folder and the results."""
    folder = tmp_path_factory.mktemp("lease")
    killed = []

    def kill_once(command, work):
        if " start " not in command:
            return
        while not (work / "runs" / "scott_3_16" / KILLED).is_file():
            assert lease_script.is_running(work), (work / "log.txt").read_text()
            time.sleep(0.1)
        os.killpg(int((work / "pid").read_text()), signal.SIGKILL)
        killed.append(command)
        machine = rehearse_lease.Machine(folder / "again")
        machine.run(command.split(" && ")[-1], folder / "lease-2", folder / "nothing")

    machine = rehearse_lease.rehearse(shards, folder, folder / "results", after=kill_once)
    assert len(killed) == 1
    return machine, folder


@pytest.fixture(scope="module")
def results(lease):
    return lease[1] / "results"


def test_the_calls_keep_to_the_limits(lease):
    machine, folder = lease
    assert max(machine.carried) < 2 * 2**20  # code alone
    assert max(machine.returned) > 40 * 2**20  # weights of scott_12_16, in parts
    assert json.loads((folder / "results" / "gpu.json").read_text())["parts"].keys() == {*lease_script.PARTS}
    tried = json.loads((folder / "results" / "trial.json").read_text())
    assert {name: result["status"] for name, result in tried.items()} == {"scott_3_16": 0, "scott_12_16": 0}
    assert "scott_models can be imported" in lease[0].printed[0]
    code = (folder / "work" / "code").rglob("*")
    assert not [path for path in code if path.suffix == ".safetensors"]


def test_a_kill_loses_nothing_that_was_kept(lease):
    """Neither the trained row nor the first seed's probes are made again."""
    log = (lease[1] / "work" / "log.txt").read_text()
    for step in ("scott_3_16: pretraining", "scott_3_16: probes, target, seed 0", "scott_3_16: probes, target, seed 1"):
        assert log.count(f"== {step}") <= 1 + ("seed 1" in step), step
    assert log.count("== 20 updates of each model: ended with status 0") == 2  # the second time there was nothing to do
    assert log.count("== 20 updates of scott_") == 1  # of both models at once


def test_scores_of_both_encoders_beside_random_weights(results):
    content = json.loads((results / "scott_3_16.json").read_text())
    rows = {(score["model"], score["probe"], score["protocol"]) for score in content["scores"]}
    probes = ("knn", "ridge", "linear", "attentive")
    labels = ("scott_3_16", "scott_3_16 (context encoder)", "scott_3_16 (random weights)")
    assert rows == {(label, probe, "fast") for label in labels for probe in probes}
    assert {score["seeds"] for score in content["scores"]} == {2}
    assert {score["spread"] is None for score in content["scores"]} == {False}
    assert (content["train"], content["test"]) == (16, 8)
    assert content["images_per_second"] > 0
    assert content["rounding"]["features"] < 1e-2
    assert content["command"].startswith("python -m scott_models.pretrain flowers102 model.name=scott_3_16")


def test_what_came_back_is_a_run_folder_with_weights(results):
    content = json.loads((results / "scott_3_16.json").read_text())
    exported = results / "scott_3_16" / "export"
    assert sha256(exported / "model.safetensors") == content["sha256"]
    assert {tensor.dtype for tensor in load_file(exported / "model.safetensors").values()} == {torch.bfloat16}
    model = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 384)
    assert Recipe.load(results / "scott_3_16" / "recipe.toml").model.name == "scott_3_16"
    assert make_page(results / "scott_3_16", neighbours=False)


def test_parts_that_are_lost_are_named_and_the_others_unpacked(lease, tmp_path):
    returned = tmp_path / "returned"
    returned.mkdir()
    for path in (lease[1] / "returned").iterdir():
        (returned / path.name).symlink_to(path)
    (returned / "inductive.weights.1").unlink()
    incomplete = collect.unpack(returned, tmp_path / "out")
    assert incomplete.keys() == {"inductive"}
    assert "fetch inductive.weights.* again" in incomplete["inductive"]
    assert (tmp_path / "out" / "scott_3_16" / "export" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "inductive.json").is_file()
    assert not (tmp_path / "out" / "inductive" / "export" / "model.safetensors").exists()


def test_the_parts_of_a_folder_join(lease, tmp_path):
    collect.collect(Row.load("inductive", lease[1] / "work" / "runs", TOY), tmp_path)
    content = json.loads((tmp_path / "inductive.json").read_text())
    parts = sorted((tmp_path / "inductive" / "export").glob("*.part*"))
    assert len(parts) == 3
    assert max(path.stat().st_size for path in parts) <= 15 * 2**20
    subprocess.run(content["join"], shell=True, check=True, cwd=tmp_path)
    assert sha256(tmp_path / "inductive" / "export" / "model.safetensors") == content["sha256"]


def test_a_release_is_made_of_it(results, photos, tmp_path, monkeypatch):
    script = runpy.run_path(str(PAPER.parent / "release.py"))
    release = script["release"]
    monkeypatch.setitem(release.__globals__, "CHECKOUT", tmp_path)
    monkeypatch.setattr(entries, "PATH", tmp_path / "weights_manifest.json")
    tag = "scott_3_16.mimjepa_toy"
    pictures = sorted(photos.glob("*/0.png"))
    entry = release(results, "scott_3_16", tag, "a laptop", pictures)
    content = json.loads((results / "scott_3_16.json").read_text())
    assert entry["sha256"] == content["sha256"] == sha256(tmp_path / "weights" / tag / "model.safetensors")
    fast = {
        (score["model"], score["probe"]): score["top1"] for score in content["scores"] if score["protocol"] == "fast"
    }
    assert entry["scores"]["attentive_random"] == round(fast["scott_3_16 (random weights)", "attentive"], 1)
    assert entry["scores"]["knn_context"] == round(fast["scott_3_16 (context encoder)", "knn"], 1)
    assert len(entry["scores"]) == 12
    assert entries.read_manifest(entries.PATH)["weights"][tag] == entry
    assert "a laptop" in (tmp_path / "weights" / tag / "README.md").read_text()
    with pytest.raises(WeightsError, match="expected a tag of scott_3_16"):
        release(results, "scott_3_16", "scott_7_16.mimjepa_toy", "a laptop", pictures)


def test_parts_that_are_damaged_make_no_release(lease, tmp_path):
    script = runpy.run_path(str(PAPER.parent / "release.py"))
    collect.collect(Row.load("scott_3_16", lease[1] / "work" / "runs", TOY), tmp_path)
    digest = json.loads((tmp_path / "scott_3_16.json").read_text())["sha256"]
    (part,) = (tmp_path / "scott_3_16" / "export").glob("*.part*")
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="sha256.*other bytes.*parts again"):
        script["joined"](tmp_path / "scott_3_16", digest)
    part.write_bytes(whole)
    (tmp_path / "scott_3_16" / "export" / "model.safetensors").unlink()
    script["joined"](tmp_path / "scott_3_16", digest)


def test_a_classifier_is_released(shards, tmp_path, monkeypatch):
    tag = "scott_3_16.mimjepa_flowers102_cpu"
    script = runpy.run_path(str(PAPER.parent / "release_head.py"))
    release = script["release_head"]
    monkeypatch.setitem(release.__globals__, "CHECKOUT", tmp_path)
    monkeypatch.setattr(entries, "PATH", tmp_path / "weights_manifest.json")
    flowers = reproduce.unpack_images(shards, tmp_path)
    entry = release(tag, flowers, ("blue", "red"))
    folder = tmp_path / "weights" / f"{tag}_probe"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]
    assert script["accuracy"](model, find_labelled([flowers], [flowers])[1]).top1 == entry["scores"]["attentive"] == 100
    assert (entry["head"], entry["label_names"], entry["dtype"]) == ("attentive", ["blue", "red"], "bfloat16")
    assert entries.read_manifest(entries.PATH)["weights"] == {folder.name: entry}
    text = (folder / "README.md").read_text()
    assert "logits (B, 2)" in text
    assert "pipeline_tag: image-classification" in text
    assert len(script["NAMES"]) == len(set(script["NAMES"])) == 102
    other = timm.create_model("scott_3_16", img_size=112, num_classes=2, global_pool="attentive")
    weights.export(other, tmp_path / "other", dtype=torch.float32)
    with pytest.raises(WeightsError, match="expected a classifier on the weights of"):
        release(tag, flowers, ("blue", "red"), tmp_path / "other")


def test_inductive_saw_no_test_images(results):
    seen = {
        row: json.loads((results / row / "environment.json").read_text())[-1]["images"]
        for row in ("scott_3_16", "inductive")
    }
    assert seen == {"scott_3_16": 24, "inductive": 16}


def test_what_is_done_is_not_done_again(lease, shards, tmp_path):
    command = ["--rehearse", "--data", *shards, "--out", tmp_path, "--work", lease[1] / "work" / "runs"]
    again = run(*command, "--rows", "scott_3_16", "inductive", "--seeds", 2)
    assert again.returncode == 0
    assert "all done" in again.stderr
    assert "==" not in again.stderr  # no step was begun
    assert json.loads((tmp_path / "scott_3_16.json").read_text())["scores"]


def test_no_time_no_step(shards, tmp_path):
    ended = run(
        "--rehearse", "--data", *shards, "--out", tmp_path / "out", "--rows", "scott_3_16", "--minutes", "0.2"
    )  # fmt: skip
    assert ended.returncode == 0
    assert "the time is spent; the same command goes on" in ended.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def session(tmp_path):
    """One of two rows, nothing of which is done."""
    rows = [Row.load(name, tmp_path / "runs", TOY) for name in ("scott_12_16", "scott_3_16")]
    (tmp_path / "out").mkdir()
    clock = reproduce.Clock(10)
    return reproduce.Session(rows, tmp_path, tmp_path / "out", clock, 1, ["knn"], ["target"], False, [])


def test_a_pretraining_that_fails_goes_on_without_the_compiler(session, monkeypatch, capsys):
    commands, statuses = [], iter([1, 0, -9, 1])
    monkeypatch.setattr(reproduce, "run_until", lambda command, seconds: commands.append(command) or next(statuses))
    reproduce.pretrain(session.rows[0], session)
    assert ["run.compile=off" in command for command in commands] == [False, True]
    assert session.failed == []
    reproduce.pretrain(session.rows[1], session)
    assert session.failed == ["scott_3_16: pretraining"]
    assert "scott_3_16: once more, without torch.compile" in capsys.readouterr().err


def test_a_stop_is_no_failure(session, monkeypatch):
    commands = []
    monkeypatch.setattr(reproduce, "run_until", lambda command, seconds: commands.append(command) or 130)
    reproduce.pretrain(session.rows[0], session)
    assert len(commands) == 1
    assert session.failed == []


def test_a_row_or_a_probe_that_fails_ends_no_other(session, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(reproduce, "pretrain", lambda row, session: tried.append(row.name))
    for row in session.rows:
        (row.run / "export").mkdir(parents=True)
        (row.run / "export" / "model.safetensors").touch()  # of a run whose other files are missing

    def broken(row, *arguments):
        tried.append(row.name)
        raise ZeroDivisionError("of a probe")

    monkeypatch.setattr(reproduce, "score", broken)
    for row in session.rows:
        reproduce.probe_row(row, session)
    assert tried == ["scott_12_16", "scott_3_16"]
    assert session.failed[::2] == ["scott_12_16: probes, target, seed 0", "scott_3_16: probes, target, seed 0"]
    assert session.failed[1::2] == ["scott_12_16: small files", "scott_3_16: small files"]
    assert "failed (ZeroDivisionError: of a probe); going on" in capsys.readouterr().err


def test_models_whose_compiler_fails_are_tried_alone_and_then_without(session, monkeypatch):
    tried = []

    def together(rows, session):
        tried.append([(name, "run.compile=off" in row.changes) for name, row in rows.items()])
        fails = {name: "3_16" in name and "run.compile=off" not in row.changes for name, row in rows.items()}
        return {name: {"status": int(failed), "last": None} for name, failed in fails.items()}

    monkeypatch.setattr(trial, "open_images", lambda *arguments: None)
    monkeypatch.setattr(trial, "find_samples", lambda *arguments: [])
    monkeypatch.setattr(trial, "try_together", together)
    trial.try_models(session)
    found = json.loads((session.out / "trial.json").read_text())
    assert {name: (result["status"], result["changes"]) for name, result in found.items()} == {
        "scott_3_16": (0, ["run.compile=off"]),
        "scott_12_16": (0, []),
    }
    assert tried == [[("scott_3_16", False), ("scott_12_16", False)], [("scott_3_16", False)], [("scott_3_16", True)]]
    rows = trial.as_tried(session.rows, session.out)
    assert ["run.compile=off" in row.changes for row in rows] == [False, True]
    assert session.failed == []


def test_a_trial_that_hangs_is_ended_and_a_cut_log_read(session, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "TRYING", 1)
    monkeypatch.setattr(session_module, "MARGIN", 1)
    script = "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(Row, "pretraining", lambda *arguments: [sys.executable, "-c", script])
    (tmp_path / "runs").mkdir()
    assert trial.try_together({"a": session.rows[0]}, session) == {"a": {"status": -9, "last": None}}
    (tmp_path / "log").write_text('{"step": 10}\n{"step": 2')
    assert trial.last_line(tmp_path / "log") == {"step": 10}


def test_scores_of_each_seed_are_left_at_once(session, monkeypatch):
    left = []
    session.seeds = 2
    row = session.rows[0]
    row.run.mkdir(parents=True)
    monkeypatch.setattr(reproduce, "score", lambda *arguments: {"scores": []})
    monkeypatch.setattr(reproduce.Session, "leave", lambda session, row: left.append(len([*row.run.glob("probes/*")])))
    reproduce.probe_row(row, session)
    assert left == [1, 2]
    kept = json.loads(row.scores("target", 1).read_text())
    row.scores("target", 1).unlink()
    row.scores("target", 0).write_text(json.dumps({**kept, "seconds": 700}))  # longer than there is left
    reproduce.probe_row(row, session)
    assert left == [1, 2]


def test_a_row_that_would_not_end_in_time_is_left_out(session, monkeypatch, capsys):
    monkeypatch.setattr(Row, "petaflop", lambda row, flowers: {"scott_12_16": 100, "scott_3_16": 40}[row.name])
    first, second = session.rows
    assert reproduce.fits(first, session)  # nothing is known yet
    first.run.mkdir(parents=True)
    (first.run / "seconds").write_text("1000")
    assert reproduce.fits(second, session)  # 440 and 90 of 600 seconds
    (first.run / "seconds").write_text("1200")
    assert not reproduce.fits(second, session)
    assert "scott_3_16: would take 10.3 minutes, left out" in capsys.readouterr().err
    (first.run / "seconds").unlink()
    images_a_second = 1e6 / 51.4 / 12  # 12 seconds for each PFLOP
    end_to_end = [{"model": "scott_12_16", "pixels": 224, "images/s": images_a_second}]
    (session.out / "gpu.json").write_text(json.dumps({"parts": {"end to end": {"end to end": end_to_end}}}))
    assert not reproduce.fits(first, session)  # 22 minutes
    assert "scott_12_16: would take 23." in capsys.readouterr().err


def test_operations_of_a_row(shards, tmp_path):
    flowers = reproduce.unpack_images(shards, tmp_path)
    row = Row.load("scott_12_16", tmp_path, ["optim.batch_size=4", "optim.epochs=2", "optim.warmup_epochs=0"])
    assert row.petaflop(flowers) == pytest.approx(2 * 24 * 51.4e-6, rel=0.01)
    assert row.changed("data.splits=train").petaflop(flowers) == pytest.approx(2 * 8 * 51.4e-6, rel=0.01)


def test_a_run_is_cut_when_its_time_ends(shards, tmp_path, monkeypatch):
    """It saves itself, so that the same command can go on."""
    row = Row.load("scott_3_16", tmp_path, (*TOY, "optim.epochs=500"))
    log = row.run / "metrics.jsonl"

    class Impatient(subprocess.Popen):
        interrupted = False

        def wait(self, timeout=None):
            while not self.interrupted:  # until it has begun to train
                if (log.is_file() and "loss" in log.read_text()) or self.poll() is not None:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                time.sleep(0.1)
            return super().wait(timeout)

        def send_signal(self, number):
            self.interrupted = True
            super().send_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    command = row.pretraining(reproduce.unpack_images(shards, tmp_path), row.run)
    assert reproduce.run_until(command, 60) == 130
    assert not row.is_trained
    (checkpoint,) = (row.run / "checkpoints").glob("step_*.pt")
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 3000


def test_what_cannot_be_run_is_told(shards, tmp_path):
    ended = run("--gpu", "--data", *shards, "--out", tmp_path / "out")
    assert ended.returncode == 2
    if not torch.cuda.is_available():
        assert "--gpu: expected a GPU, found none; --rehearse tries everything" in ended.stderr
    with pytest.raises(DataError, match="train, val and test.*all tar files"):
        reproduce.unpack_images(shards[:1], tmp_path / "some")
    assert not (tmp_path / "some" / "images").exists()  # or all tar files would come too late
    with pytest.raises(DataError, match="train, val and test.*found none"):
        reproduce.unpack_images([tmp_path], tmp_path / "none")
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(shards[0].read_bytes()[:700])
    with pytest.raises(DataError, match="damaged.tar: expected a whole tar file"):
        reproduce.unpack_images([damaged, *shards[1:]], tmp_path / "damaged")
    ended = run("--rehearse", "--data", *shards, "--out", tmp_path / "out", "--rows", "nothing")
    assert re.search(r"--rows: expected some of \['blocks_masked', ", ended.stderr)
