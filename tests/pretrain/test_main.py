import os
import subprocess
import sys
from pathlib import Path

import pytest

import scott_models
from scott_models.pretrain import __main__

SMALL = ["model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "run.precision=no"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scott_models.pretrain", *map(str, arguments)])
    __main__.main()


def test_recipe_changes_and_options_in_any_order(photos, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "smoke", "--data", photos, *SMALL, "--out", tmp_path / "run", "--export", "context")
    assert f"local-dir:{tmp_path / 'run' / 'export'}" in capsys.readouterr().out
    run(monkeypatch, "smoke", *SMALL, "--data", photos, "--out", tmp_path / "run", "--resume")


def test_weights_to_start_from(photos, tmp_path, monkeypatch):
    tag = "scott_3_16.mimjepa_flowers102_cpu"
    run(monkeypatch, "smoke", *SMALL, "--init", tag, "--data", photos, "--out", tmp_path / "run")
    assert f'init = "{tag}"' in (tmp_path / "run" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flower", "--data", "x", "--out", "y"], "scott: recipe: expected one of"),
        (["smoke", "--data", "nowhere", "--out", "y", *SMALL], "scott: nowhere: expected a folder of images"),
        (["smoke", "--data", "x", "--out", "y", "--minutes", "0"], "scott: budget: expected minutes"),
        (["smoke", "--out", "y"], "scott: expected at least one folder of images, got none"),
        (["--out", "y", "--finish", "--minutes", "3"], "scott: y: expected a run to finish, found no checkpoint"),
        (["smoke", "--out", "y", "--finish", "--minutes", "3"], "scott: --finish: expected no recipe and no settings"),
        (["optim.epochs=1", "--out", "y", "--finish", "--epochs", "3"], "scott: --finish: expected no recipe"),
        (["--out", "y", "--finish"], "scott: --finish: expected --minutes, --epochs or --images-seen"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_status:
        run(monkeypatch, *arguments)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_is_brought_to_an_end(photos, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "smoke", "--data", photos, *SMALL, "--out", tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 2.0", "epochs = 20.0"))  # as if the run had been stopped
    run(monkeypatch, "--out", tmp_path / "run", "--finish", "--epochs", "1")
    assert f"local-dir:{tmp_path / 'run' / 'export'}" in capsys.readouterr().out
    assert "finish_after = 6\nfinish_updates = 3\n" in recipe.read_text()


def test_without_a_recipe_it_is_the_one_for_the_machine(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "choose_recipe", lambda out: "smoke")
    run(monkeypatch, *SMALL, "--data", photos, "--out", tmp_path / "run")
    assert 'name = "scott_3_16"\nimg_size = 32\n' in (tmp_path / "run" / "recipe.toml").read_text()


def test_help_shows_examples(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    assert "accelerate launch --num_processes 8 -m scott_models.pretrain" in capsys.readouterr().out


WITHOUT = """
import sys
for name in ("tyro", "rich", "sklearn", "datasets", "scipy", "tensorboard", "pandas", "matplotlib"):
    sys.modules[name] = None  # importing it fails
from scott_models.pretrain.__main__ import main
main()
"""


@pytest.mark.slow
def test_training_needs_little(photos, tmp_path):
    """Train with only torch, torchvision, timm, accelerate, safetensors, einops, numpy and pillow."""
    environment = {**os.environ, "PYTHONPATH": str(Path(scott_models.__file__).parents[1])}
    arguments = ["smoke", "--data", str(photos), "--out", str(tmp_path / "run"), *SMALL]
    command = [sys.executable, "-c", WITHOUT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
