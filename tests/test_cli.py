"""The command as a user types it: messages, exit statuses, and nothing half-written."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

COMMANDS = ("list", "download", "embed", "pca", "attention", "neighbours", "probe", "pretrain", "finetune", "publish")
COMMANDS += ("convert", "bench", "doctor")
SCOTT = [sys.executable, "-c", "from scott_models.cli import main; main()"]


def scott(*arguments, status=0):
    result = subprocess.run([*SCOTT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout if status == 0 else result.stderr


def test_help_shows_examples():
    assert all(command in scott("--help") for command in COMMANDS)
    assert "scott pretrain --data photos --out runs/photos" in scott("pretrain", "--help")


def test_list():
    assert "mimjepa_flowers102" in scott("list")
    assert {row["model"] for row in json.loads(scott("list", "--json"))} >= {"scott_3_16", "scott_12_16"}


def test_download_convert_and_publish_dry(photos, tmp_path, recording):
    tensors, _ = recording
    assert "verified" in scott("download", "scott_3_16", "--dir", tmp_path / "models")
    state = {name.removeprefix("target."): t for name, t in tensors.items() if name.startswith("target.")}
    torch.save(state, tmp_path / "target-encoder_checkpoint.pth")
    given = [tmp_path / "target-encoder_checkpoint.pth", "--num-heads", 4, "--out", tmp_path / "converted"]
    assert "converted" in scott("convert", *given)
    model = f"local-dir:{tmp_path / 'converted'}"
    assert "12 images, 96 features each" in scott("embed", photos, "--out", tmp_path / "f.npz", "--model", model)
    folder = tmp_path / "models" / "scott_3_16.mimjepa_flowers102"
    out = scott("publish", folder, "--repo-id", "org/name", "--dry-run")
    assert "org/name would hold, in one commit:" in out
    assert "kNN of frozen features, top-1 %" in out


def test_pictures(photos, tmp_path):
    small = ["--img-size", 32]
    assert "p.png" in scott("pca", photos, *small, "--out", tmp_path / "p.png", "--look", "blocky")
    assert "a.png" in scott("attention", photos, *small, "--out", tmp_path / "a.png", "--block", 0)
    given = [photos / "red" / "0.png", "--gallery", photos / "red", "--gallery", photos / "blue", "--count", 2]
    rows = json.loads(scott("neighbours", *given, *small, "--out", tmp_path / "n.png", "--json"))
    assert [row["query"] for row in rows] == [str(photos / "red" / "0.png")] * 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"p.png", "a.png", "n.png"}


def test_tables_show_names_as_they_are(photos):
    """Brackets too, which rich would take for its own."""
    (photos / "red" / "0.png").rename(photos / "red" / "0[train].png")
    out = scott("neighbours", photos / "red" / "1.png", "--gallery", photos / "red", "--count", 5, "--img-size", 32)
    assert "0[train].png" in out
    assert re.search(r"0\.\d{3} ", out)


def test_pretrain_from_weights(photos, tmp_path):
    tag = "scott_3_16.mimjepa_flowers102"
    given = ["model.img_size=32", "optim.batch_size=4", "--data", photos, "--recipe", "smoke", "--init", tag]
    assert "local-dir:" in scott("pretrain", *given, "--out", tmp_path / "run")


def test_doctor_as_json():
    rows = {row["what"]: row for row in json.loads(scott("doctor", "--no-speed", "--json"))}
    assert rows["torch"]["found"] in torch.__version__  # which may name its build too
    assert rows["scott_3_16.mimjepa_flowers102"]["state"] == "ok"


def test_embed(photos, tmp_path):
    out = tmp_path / "features.npz"
    assert "12 images, 384 features each, by scott_3_16" in scott("embed", photos, "--out", out)
    assert np.load(out)["features"].shape == (12, 384)


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
    assert "on the test images" in scott("finetune", "model.img_size=32", *given)
    scott("embed", photos, "--out", tmp_path / "f.npz", "--model", tmp_path / "run" / "export", status=2)
    scott("embed", photos, "--out", tmp_path / "f.npz", "--model", f"local-dir:{tmp_path / 'run' / 'export'}")
    scott("embed", photos, "--out", tmp_path / "g.npz", "--model", tmp_path / "run")
    assert (np.load(tmp_path / "f.npz")["features"] == np.load(tmp_path / "g.npz")["features"]).all()


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
        (["pretrain", "--data", "PHOTOS", "--out", "run", "--recipe", "other"], "expected one of ['flowers102'"),
        (["pretrain", "optim.epoch=1", "--data", "PHOTOS", "--out", "run"], "recipe.optim: unknown ['epoch']"),
        (["pretrain", "--data", "PHOTOS", "--out", "run"], "at least one batch of 128 images, found 12"),
        (["pretrain", "--data", "PHOTOS", "--out", "run", "--minutes", "0"], "expected minutes or images_seen, one of"),
        (["embed", "PHOTOS"], "--out"),
        (["pca", "PHOTOS", "--out", "p.pdf"], "p.pdf: expected a picture's name, one of .png, .jpg, .jpeg, .webp"),
        (["attention", "PHOTOS", "--out", "a.png", "--block", "3"], "block: expected -3 to 2, got 3"),
        (["neighbours", "PHOTOS", "--gallery", "nowhere"], "nowhere: expected a folder of images, found nothing there"),
        (["download", "scott_12_16"], "scott_12_16: no such weights are released; expected one of ['scott_3_16"),
        (["convert", "x.pth", "--out", "y"], "x.pth: expected a checkpoint of the original, found no file there"),
        (["publish", "PHOTOS", "--repo-id", "a/b", "--dry-run"], "expected a run that has ended or a folder with"),
        (["pretrain", "--data", "PHOTOS", "--out", "run", "--init", "x"], "init: expected one of ['scott_3_16"),
        (["bench", "resnet18", "--task", "step", "--device", "cpu"], "step: expected one of our models, scott_3_16"),
        (["bench", "scott_3_16", "--img-size", "100", "--device", "cpu"], "multiples of 16 pixels, got 100 x 100"),
        (["embed", "PHOTOS", "--out", "f.npz", "--batch-size", "0"], "batch_size: expected at least 1, got 0"),
        (["probe", "--test", "PHOTOS", "--curve", "c.docx"], "c.docx: expected a picture's name, .png, .svg or .pdf"),
        (["probe", "--test", "PHOTOS", "--curve", "c.png", "--export", "x"], "--curve has no use for --export"),
        (["probe", "--test", "PHOTOS", "--shots", "2", "--seeds", "2"], "probe without --curve has no use for --shots"),
        (
            ["probe", "--test", "PHOTOS", "--train", "PHOTOS", "--zero-shot-neighbours", "--protocol", "paper"],
            "--zero-shot-neighbours has no use for --protocol, --train; leave that out",
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
