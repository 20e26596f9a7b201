"""Test the command as a user types it: messages, exit statuses, and no incomplete files."""

import inspect
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scott_models import cli
from scott_models.cli.output import print_json
from scott_models.errors import TrainingError, UserError, report_user_errors

from ..command_line import scott

PROCESS = [sys.executable, "-c", "from scott_models.cli import main; main()"]


def test_help_shows_commands_examples_and_exit_statuses(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = scott("--help")
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(summary(command))}", shown)
    assert "    scott pretrain --data photos --out runs/photos --minutes 90\n" in shown
    assert re.search(r"Exit status:\n +0 +done\n +1 .*\n +2 .*\n +130 +stopped", shown)
    assert max(map(len, shown.splitlines()[1:])) <= 80  # after the usage
    assert not re.search("[\u2500-\u257f]", shown)  # no box-drawing characters
    assert "scott pretrain --data photos --out runs/photos" in scott("pretrain", "--help")


def test_every_command_has_a_summary_examples_and_json():
    for name, command in cli.COMMANDS.items():
        assert len(summary(command)) <= 61, name  # fits next to the names in 80 columns
        assert f"    For example:\n        scott {name}" in command.__doc__
        assert "json" in inspect.signature(command).parameters, name


def summary(command):
    return command.__doc__.split("\n")[0]


def test_list():
    assert "mimjepa_flowers102_cpu" in scott("list")
    assert {row["model"] for row in json.loads(scott("list", "--json"))} >= {"scott_3_16", "scott_12_16"}


def test_a_piped_table_is_plain():
    """Check that each row is one line, however long, with two spaces between columns, as awk needs it."""
    lines = scott("list").splitlines()
    rows = [re.split(r"  +", line) for line in lines]
    assert {len(row) for row in rows} == {8}
    assert (rows[0][0], rows[1][:2]) == ("model", ["scott_3_16", "6.5"])
    assert not any(re.search("[^ -~]", line) for line in lines)


def test_a_table_on_a_terminal_has_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with subprocess.Popen([*PROCESS, "list"], stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux raises it when the other side has closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert "│ scott" in shown.decode()


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen([*PROCESS, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion(tmp_path):
    scott("--tyro-write-completion", "bash", tmp_path / "scott")
    script = 'source "$1"; COMP_WORDS=(scott p); COMP_CWORD=1; _tyro_scott; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", tmp_path / "scott"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["pca", "pretrain", "probe", "publish"]


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), (None, False)])
def test_a_traceback_where_it_is_asked_for(value, shown, monkeypatch, capsys):
    monkeypatch.delenv("SCOTT_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("SCOTT_DEBUG", value)
    with pytest.raises(SystemExit, match="2"), report_user_errors():
        raise UserError("expected one, found two")
    errors = capsys.readouterr().err
    assert ("Traceback" in errors) is shown
    assert errors.endswith("scott: expected one, found two\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("why"), 2), (OSError("why"), 2), (TrainingError("why"), 1), (KeyboardInterrupt("why"), 130)],
)
def test_exit_statuses(error, status, capsys):
    with pytest.raises(SystemExit) as exited, report_user_errors():
        raise error
    assert (exited.value.code, capsys.readouterr().err) == (status, "scott: why\n")


def test_doctor_finds_damage(tmp_path, monkeypatch):
    damaged = tmp_path / "scott_3_16.mimjepa_flowers102_cpu" / "model.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path))
    assert scott("doctor", "--no-speed", status=1) == ""


def test_download_convert_and_publish_dry(photos, tmp_path, recording):
    tensors, _ = recording
    assert "verified" in scott("download", "scott_3_16", "--dir", tmp_path / "models")
    (row,) = json.loads(scott("download", "scott_3_16", "--dir", tmp_path / "models", "--json"))
    assert (row["tag"], Path(row["file"]).parents[1]) == ("scott_3_16.mimjepa_flowers102_cpu", tmp_path / "models")
    state = {name.removeprefix("target."): t for name, t in tensors.items() if name.startswith("target.")}
    torch.save(state, tmp_path / "target-encoder_checkpoint.pth")
    given = [tmp_path / "target-encoder_checkpoint.pth", "--num-heads", 4, "--out", tmp_path / "converted"]
    assert "converted" in scott("convert", *given)
    assert json.loads(scott("convert", *given, "--json"))["out"] == str(tmp_path / "converted")
    model = f"local-dir:{tmp_path / 'converted'}"
    assert "12 images, 96 features each" in scott("embed", photos, "--out", tmp_path / "f.npz", "--model", model)
    folder = tmp_path / "models" / "scott_3_16.mimjepa_flowers102_cpu"
    out = scott("publish", folder, "--repo-id", "org/name", "--dry-run")
    assert "org/name would hold, in one commit:" in out
    assert "kNN of frozen features, top-1 %" in out
    facts = json.loads(scott("publish", folder, "--repo-id", "org/name", "--dry-run", "--json"))
    assert (facts["revision"], facts["bytes"]["model.safetensors"]) == (None, facts["entry"]["bytes"])


def test_pictures(photos, tmp_path):
    small = ["--img-size", 32]
    assert "p.png" in scott("pca", photos, *small, "--out", tmp_path / "p.png", "--look", "blocky")
    facts = json.loads(scott("pca", photos, *small, "--out", tmp_path / "p.png", "--json"))
    assert (facts["images"], facts["patches"]) == (12, [2, 2])
    facts = json.loads(scott("attention", photos, *small, "--out", tmp_path / "a.png", "--block", 0, "--json"))
    assert (facts["out"], facts["heads"]) == (str(tmp_path / "a.png"), 4)
    given = [photos / "red" / "0.png", "--gallery", photos / "red", "--gallery", photos / "blue", "--count", 2]
    rows = json.loads(scott("neighbours", *given, *small, "--out", tmp_path / "n.png", "--json"))
    assert [row["query"] for row in rows] == [str(photos / "red" / "0.png")] * 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"p.png", "a.png", "n.png"}


def test_tables_show_names_as_they_are(photos):
    """Check names with brackets and colons, which rich would interpret."""
    (photos / "red" / "0.png").rename(photos / "red" / "0[train]:cat:.png")
    out = scott("neighbours", photos / "red" / "1.png", "--gallery", photos / "red", "--count", 5, "--img-size", 32)
    assert "0[train]:cat:.png" in out
    assert re.search(r"  [01]\.\d{3}\n", out)


def test_pretrain_from_weights(photos, tmp_path):
    tag = "scott_3_16.mimjepa_flowers102_cpu"
    given = ["model.img_size=32", "optim.batch_size=4", "--data", photos, "--recipe", "smoke", "--init", tag]
    facts = json.loads(scott("pretrain", *given, "--out", tmp_path / "run", "--json"))
    assert facts["export"] == str(tmp_path / "run" / "export")
    assert facts["health"]["rankme"] > 1


def test_numbers_of_a_list_stand_on_one_line(capsys):
    value = {"a": [1, 2.5, -3e-7], "b": [[1, 2], [3, 4]], "c": ["[\n 1,\n 2\n]"], "d": []}
    print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert "[1, 2.5, -3e-07]" in text
    assert "[3, 4]" in text


def test_a_score_that_is_no_number_is_null(capsys):
    print_json({"rankme": float("nan"), "path": Path("a")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"rankme": None, "path": "a"}


def test_doctor_as_json():
    rows = {row["what"]: row for row in json.loads(scott("doctor", "--no-speed", "--json"))}
    assert rows["torch"]["found"] in torch.__version__  # torch.__version__ may end with the build
    assert rows["scott_3_16.mimjepa_flowers102_cpu"]["state"] == "ok"


def test_embed(photos, tmp_path):
    out = tmp_path / "features.npz"
    assert "12 images, 384 features each, by scott_3_16" in scott("embed", photos, "--out", out)
    assert np.load(out)["features"].shape == (12, 384)
    facts = json.loads(scott("embed", photos, "--out", out, "--json"))
    assert facts == {"out": str(out), "images": 12, "features": 384, "model": "scott_3_16"}


def test_pretrain_then_embed_with_it(photos, tmp_path):
    run = tmp_path / "run"
    small = ["model.img_size=32", "optim.batch_size=4"]
    assert "local-dir:" in scott("pretrain", *small, "--data", photos, "--out", run, "--recipe", "smoke")
    scott("embed", photos, "--out", tmp_path / "f.npz", "--model", f"local-dir:{run / 'export'}")
    assert "holds a run already" in scott(
        "pretrain", *small, "--data", photos, "--out", run, "--recipe", "smoke", status=2
    )


def test_probe_as_json(photos):
    same = ["--train", photos, "--test", photos, "--img-size", 32]
    report = json.loads(scott("probe", *same, "--probes", "knn", "ridge", "--json"))
    assert [score["top1"] for score in report["scores"][:2]] == [100, 100]
    assert len(report["duplicates"]["exact"]) == report["test"] == 12


def test_probe_without_training_images(photos):
    rows = json.loads(scott("probe", "--zero-shot-neighbours", "--test", photos, "--img-size", 32, "--json"))
    assert [row["model"] for row in rows] == ["scott_3_16", "scott_3_16 (random weights)"]


def test_a_curve_of_few_labels(photos, tmp_path):
    given = ["--train", photos, "--test", photos, "--img-size", 32, "--shots", 1, 3, "--no-control"]
    assert "linear" in scott("probe", *given, "--curve", tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")


def test_finetune_then_embed_with_it(photos, tmp_path):
    given = ["--recipe", "smoke", "--train", photos, "--test", photos, "--out", tmp_path / "run"]
    facts = json.loads(scott("finetune", "model.img_size=32", *given, "--json"))
    assert facts["export"] == str(tmp_path / "run" / "export")
    assert 0 <= facts["top1"] <= 100
    scott("embed", photos, "--out", tmp_path / "f.npz", "--model", tmp_path / "run" / "export", status=2)
    scott("embed", photos, "--out", tmp_path / "f.npz", "--model", f"local-dir:{tmp_path / 'run' / 'export'}")
    scott("embed", photos, "--out", tmp_path / "g.npz", "--model", tmp_path / "run")
    assert (np.load(tmp_path / "f.npz")["features"] == np.load(tmp_path / "g.npz")["features"]).all()


BOTH = ["--train", "PHOTOS", "--test", "PHOTOS"]
READERS_OF_IMAGES = {
    "embed": ["embed", "PHOTOS", "--out", "f.npz"],
    "pca": ["pca", "PHOTOS", "--out", "p.png", "--img-size", "32"],
    "attention": ["attention", "PHOTOS", "--out", "a.png", "--img-size", "32"],
    "neighbours": ["neighbours", "PHOTOS/red/0.png", "--gallery", "PHOTOS", "--img-size", "32"],
    "probe": ["probe", *BOTH, "--probes", "knn", "--no-control", "--no-duplicates", "--img-size", "32"],
    "curve": ["probe", *BOTH, "--curve", "c.svg", "--shots", "1", "--no-control", "--img-size", "32"],
    "retrieval": ["probe", "--test", "PHOTOS", "--zero-shot-neighbours", "--no-control", "--img-size", "32"],
    "finetune": ["finetune", "--recipe", "smoke", *BOTH, "--out", "run", "model.img_size=32"],
    "pretrain": ["pretrain", "--recipe", "smoke", "--data", "PHOTOS", "--out", "run", "optim.batch_size=4"],
}


@pytest.mark.parametrize("name", READERS_OF_IMAGES)
def test_every_command_lists_all_bad_images_or_leaves_them_out(photos, tmp_path, monkeypatch, name):
    for i in range(3):
        (photos / "red" / f"bad{i}.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    words = [word.replace("PHOTOS", str(photos)) for word in READERS_OF_IMAGES[name]]
    errors = scott(*words, status=2)
    assert all(f"bad{i}.png" in errors for i in range(3))
    assert "--bad-images skip" in errors
    assert not any((tmp_path / made).exists() for made in ("f.npz", "p.png", "a.png", "c.svg", "run"))
    scott(*words, "--bad-images", "skip")


@pytest.mark.slow
def test_bench_as_json():
    small = ["--batch-size", 1, 2, "--img-size", 32, "--precision", "fp32", "--device", "cpu", "--rounds", 1]
    rows = json.loads(scott("bench", "scott_3_16", *small, "--json"))
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["images/s"] > 0 and row["% of peak"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "nowhere", "--out", "f.npz"], "nowhere: expected a folder of images, found nothing there"),
        (["embed", "PHOTOS", "--out", "f.npz", "--model", "scot"], "scot: cannot be created by timm"),
        (["pretrain", "--out", "run"], "expected at least one folder of images, got none"),
        (["pretrain", "--data", "PHOTOS", "--out", "run", "--recipe", "other"], "expected one of ['beit-flowers102'"),
        (["pretrain", "optim.epoch=1", "--data", "PHOTOS", "--out", "run"], "recipe.optim: unknown ['epoch']"),
        (["pretrain", "--data", "PHOTOS", "--out", "run"], "at least one batch of 64 images, found 12"),
        (
            ["pretrain", "--data", "PHOTOS", "--out", "run", "--minutes", "0"],
            "expected minutes, images_seen or epochs, one",
        ),
        (["embed", "PHOTOS"], "--out"),
        (["pca", "PHOTOS", "--out", "p.pdf"], "p.pdf: expected a picture's name, one of .png, .jpg, .jpeg, .webp"),
        (["attention", "PHOTOS", "--out", "a.png", "--block", "3"], "block: expected -3 to 2, got 3"),
        (["neighbours", "PHOTOS", "--gallery", "nowhere"], "nowhere: expected a folder of images, found nothing there"),
        (
            ["download", "scott_vit_12_16"],
            "scott_vit_12_16: no such weights are released; expected one of ['scott_12_16",
        ),
        (["convert", "x.pth", "--out", "y"], "x.pth: expected a checkpoint of the original, found no file there"),
        (["publish", "PHOTOS", "--repo-id", "a/b", "--dry-run"], "expected a run that has ended or a folder with"),
        (["pretrain", "--data", "PHOTOS", "--out", "run", "--init", "x"], "init: expected one of ['scott_12_16"),
        (["bench", "resnet18", "--task", "step", "--device", "cpu"], "step: expected one of our models, scott_3_16"),
        pytest.param(
            *(["bench", "scott_3_16", "--img-size", "100", "--device", "cpu"], "multiples of 16 pixels, got 100 x 100"),
            marks=pytest.mark.slow,  # it starts one process per contender
        ),
        (["embed", "PHOTOS", "--out", "f.npz", "--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        (["probe", "--test", "PHOTOS", "--curve", "c.docx"], "c.docx: expected a picture's name, .png, .svg or .pdf"),
        (["probe", "--test", "PHOTOS", "--curve", "c.png", "--export", "x"], "--curve does not use --export"),
        (["probe", "--test", "PHOTOS", "--shots", "2", "--seeds", "2"], "probe without --curve does not use --shots"),
        (
            ["probe", "--test", "PHOTOS", "--train", "PHOTOS", "--zero-shot-neighbours", "--protocol", "paper"],
            "--zero-shot-neighbours does not use --protocol, --train",
        ),
        (["probe", "--test", "PHOTOS", "--features", "f.npy"], "f.npy: expected the name of an .npz file"),
        (["probe", "--test", "PHOTOS"], "expected at least one folder of images, got none"),
        (["finetune", "--recipe", "other", "--train", "PHOTOS", "--test", "PHOTOS", "--out", "run"], "['finetune'"),
        (
            ["probe", "--train", "PHOTOS", "--test", "PHOTOS", "--img-size", "100"],
            "multiples of 16 pixels, got 100 x 100",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(photos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    errors = scott(*(photos if argument == "PHOTOS" else argument for argument in arguments), status=2)
    assert message in errors
    assert not (tmp_path / "f.npz").exists()
    assert not (tmp_path / "run").exists()
