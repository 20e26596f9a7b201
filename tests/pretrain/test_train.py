import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import scott_models
from scott_models.data import decoded
from scott_models.data.files import is_run_folder
from scott_models.errors import DataError, Interrupted, RecipeError, TrainingError, WeightsError
from scott_models.pretrain import Budget, Recipe, check_finish, finish, pretrain, train
from scott_models.pretrain.album import Album
from scott_models.pretrain.recipe import OBJECTIVES
from scott_models.probes.features import load_model
from scott_models.signals import HANG_UP, STOPS, stop_requests
from scott_models.training import checkpoints, engine, run_folder
from scott_models.training.lock import hold_folder
from scott_models.training.run import check_run_folder

pytestmark = pytest.mark.usefixtures("toy")
SMALL = ("model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "run.precision=no")


@pytest.fixture
def recipe():
    return Recipe.load("smoke", SMALL)


def state(run):
    return torch.load(max((run / "checkpoints").glob("step_*.pt")), weights_only=True)


def same(a, b):
    return all(
        torch.equal(a["objective"][part][name], tensor)
        for part, tensors in b["objective"].items()
        for name, tensor in tensors.items()
    )


def lines(run, kind="loss"):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if kind in line]


def losses(run):
    return [line["loss"] for line in lines(run)]


def test_a_run_from_images_to_a_timm_model(recipe, photos, tmp_path, capsys):
    out = tmp_path / "run"
    export = pretrain(recipe, [photos], out)
    logged = lines(out)
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[-1]["epoch"] == 2
    assert logged[-1]["lr"] == pytest.approx(1e-5 * (4 / 128) ** 0.5)
    assert logged[-1]["weight_decay"] == pytest.approx(0.4)
    assert all(0 < line["loss"] < 10 and line["grad_norm"] > 0 and line["skipped"] == 0 for line in logged)
    assert [line["step"] for line in lines(out, "monitor")] == [0, 3, 6]
    assert "epoch 2: healthy" in capsys.readouterr().err
    assert Recipe.load(out / "recipe.toml") == recipe
    assert {path.name for path in out.iterdir()} == {
        *("recipe.toml", "environment.json", "metrics.jsonl", "README.md", "checkpoints", "export", "looks")
    }
    readme = (out / "README.md").read_text()
    assert "| random weights |" in readme
    assert "After update 6: healthy" in readme
    (start,) = json.loads((out / "environment.json").read_text())
    assert (start["images"], start["processes"], start["after"]) == (12, 1, 0)

    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)
    assert model.pos_drop.p == 0
    target = state(out)["objective"]["target_encoder"]
    exported = load_file(export / "model.safetensors")
    assert target.keys() - exported.keys() == {"mask_token"}  # which a checkpoint keeps
    assert model.mask_token is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, target[name].bfloat16().float())
        assert exported[name].dtype == torch.bfloat16


def test_a_run_keeps_the_precision_it_began_with(recipe, photos, tmp_path):
    """Resume as on another machine, where "auto" would choose another precision."""
    auto, out = recipe.changed("run", precision="auto"), tmp_path / "run"
    pretrain(recipe, [photos], out)
    (out / "recipe.toml").write_text(recipe.changed("run", precision="bf16").to_toml())
    assert check_run_folder(auto, out, True, None).run.precision == "bf16"
    with pytest.raises(RecipeError, match=r"run\.precision: 'no' and 'bf16'"):
        check_run_folder(recipe, out, True, None)


def test_the_context_encoder_may_be_exported_instead(recipe, photos, tmp_path):
    export = pretrain(recipe, [photos], tmp_path / "run", export="context")
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert model.mask_token is None
    student = state(tmp_path / "run")["objective"]["student"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, student[f"context_encoder.{name}"].bfloat16().float())


def test_training_learns(photos, tmp_path):
    """Check that the loss of the last two epochs is well below that of the first two, on the same few pictures."""
    changes = ["optim.epochs=8", "optim.peak_lr=0.001", "optim.lr_scaling=none", "optim.final_ema=0.996"]
    pretrain(Recipe.load("smoke", [*SMALL, *changes]), [photos], tmp_path / "run")
    found = losses(tmp_path / "run")
    assert sum(found[-6:]) < 0.8 * sum(found[:6])


def interrupt_at(update, monkeypatch):
    """Press Ctrl-C during an update, until `monkeypatch.undo`."""
    set_schedules = engine.set_schedules

    def interrupt(optim, optimizer, step, course, steps):
        if step == update:
            os.kill(os.getpid(), signal.SIGINT)
        return set_schedules(optim, optimizer, step, course, steps)

    monkeypatch.setattr(engine, "set_schedules", interrupt)


def test_a_stopped_run_resumes_to_the_same_weights(recipe, photos, tmp_path, monkeypatch):
    pretrain(recipe, [photos], tmp_path / "whole")
    interrupt_at(4, monkeypatch)
    with pytest.raises(Interrupted, match="stopped after update 4 of 6.*--resume"):
        pretrain(recipe, [photos], tmp_path / "cut")
    assert state(tmp_path / "cut")["step"] == 4
    assert not (tmp_path / "cut" / "export").exists()
    monkeypatch.undo()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 5, "loss": 0.0}) + '\n{"step": 6, "lo')  # as if the power failed after logging
    pretrain(recipe, [photos], tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert lines(tmp_path / "cut", "monitor") == lines(tmp_path / "whole", "monitor")
    assert [start["after"] for start in json.loads((tmp_path / "cut" / "environment.json").read_text())] == [0, 4]


@pytest.mark.parametrize("name", ["splitmask", "beit"])
def test_other_objectives_learn_resume_and_export(name, photos, tmp_path, monkeypatch):
    more = ("optim.epochs=4", "optim.peak_lr=0.01", "objective.words=30")
    recipe = Recipe.load("smoke", [*OBJECTIVES[name], *SMALL, *more])
    export = pretrain(recipe, [photos], tmp_path / "whole")
    found = losses(tmp_path / "whole")
    assert len(found) == 12
    assert sum(found[-3:]) < 0.95 * sum(found[:3])
    interrupt_at(5, monkeypatch)
    with pytest.raises(Interrupted, match="stopped after update 5 of 12"):
        pretrain(recipe, [photos], tmp_path / "cut")
    monkeypatch.undo()
    student = state(tmp_path / "cut")["objective"]["student"]
    unfinished = load_model(str(tmp_path / "cut"))
    assert torch.equal(unfinished.blocks[0].mlp.fc1.weight, student["encoder.blocks.0.mlp.fc1.weight"])
    words = (tmp_path / "cut" / "vocabulary.safetensors").read_bytes()
    assert words == (tmp_path / "whole" / "vocabulary.safetensors").read_bytes()
    pretrain(recipe, [photos], tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == found
    assert (tmp_path / "cut" / "vocabulary.safetensors").read_bytes() == words

    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    student = state(tmp_path / "whole")["objective"]["student"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, student[f"encoder.{key}"].bfloat16().float())


CROPS = ("objective.projector=16,8", "objective.local_views=1")


@pytest.mark.parametrize("name", ["visreg", "diet"])
def test_objectives_on_crops_resume_and_export(name, photos, tmp_path, monkeypatch):
    crops = CROPS if name == "visreg" else ()
    recipe = Recipe.load("smoke", [*OBJECTIVES[name], *SMALL, *crops, "optim.epochs=3", "monitor.every=0"])
    export = pretrain(recipe, [photos], tmp_path / "whole")
    found = losses(tmp_path / "whole")
    interrupt_at(5, monkeypatch)
    with pytest.raises(Interrupted, match="stopped after update 5 of 9"):
        pretrain(recipe, [photos], tmp_path / "cut")
    monkeypatch.undo()
    pretrain(recipe, [photos], tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == found
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert model.mask_token is None
    assert model.dynamic_img_size
    assert "dynamic_img_size" not in (export / "config.json").read_text()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 32)


@pytest.mark.parametrize("name", ["mimjepa", "splitmask", "beit", "visreg", "diet"])
def test_small_images_first(name, photos, tmp_path, monkeypatch):
    """Train half of the updates at half the size; looks, features and the export have the whole size."""
    sizes = ["model.img_size=64", "model.small_img_size=32", "model.small_share=0.5", "objective.words=30"]
    recipe = Recipe.load("smoke", [*OBJECTIVES[name], *SMALL, *sizes, "monitor.every=1"])
    seen, inputs = [], engine.Engine.gather_gradients

    def note(self, recipe, batch, step):
        made = batch[0][1]
        seen.append((made if isinstance(made, torch.Tensor) else made[0]).shape[-1])
        return inputs(self, recipe, batch, step)

    monkeypatch.setattr(engine.Engine, "gather_gradients", note)
    export = pretrain(recipe, [photos], tmp_path / "whole")
    assert seen == [32, 32, 32, 64, 64, 64]
    assert tuple(timm.create_model(f"local-dir:{export}").pretrained_cfg["input_size"]) == (3, 64, 64)
    for update in (2, 3, 4):
        interrupt_at(update, monkeypatch)
        with pytest.raises(Interrupted):
            pretrain(recipe, [photos], tmp_path / f"cut{update}")
        monkeypatch.undo()
        pretrain(recipe, [photos], tmp_path / f"cut{update}", resume=True)
        assert same(state(tmp_path / f"cut{update}"), state(tmp_path / "whole"))
        assert lines(tmp_path / f"cut{update}", "monitor") == lines(tmp_path / "whole", "monitor")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), (*OBJECTIVES["visreg"], "objective.pooled=infonce", *CROPS)])
def test_compiled_runs_of_two_sizes(changes, photos, tmp_path, monkeypatch, capsys):
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_with(function, backend="aot_eager"))
    dry = [f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path")]
    sizes = ["model.img_size=64", "model.small_img_size=32", "monitor.every=0"]
    for choice in ("off", "on"):
        recipe = Recipe.load("smoke", [*changes, *SMALL, *sizes, *dry, f"run.compile={choice}"])
        pretrain(recipe, [photos], tmp_path / choice)
    assert "torch.compile failed" not in capsys.readouterr().err
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), rel=1e-3)


def test_a_budget_of_two_sizes_measures_both(photos, tmp_path, monkeypatch):
    recipe = Recipe.load("smoke", [*SMALL, "model.img_size=64", "model.small_img_size=32", "monitor.every=0"])
    monkeypatch.setattr(engine.Engine, "speed", lambda self, recipe, order, crops: 6400 / crops.size)
    monkeypatch.setattr(train.Pretraining, "train", lambda self: None)
    monkeypatch.setattr(Budget, "fit", lambda self, recipe, *_: recipe)
    run = train.Pretraining(recipe, [photos], tmp_path / "run", False, Budget(minutes=5), False, "target")
    assert run.engine.objective.target_encoder.patch_embed.img_size == (64, 64)
    speeds = run.measure_speeds()
    assert speeds == {32: 200, 64: 100}
    # the first 4 of 6 updates are small
    assert run.speed_after(0, speeds) == pytest.approx(1 / (4 / 6 / 200 + 2 / 6 / 100))
    assert run.speed_after(3, speeds) == pytest.approx(1 / (1 / 3 / 200 + 2 / 3 / 100))
    assert run.speed_after(5, speeds) == pytest.approx(100)
    assert run.speed_after(0, {}) == 0


def stop_early(recipe, photos, out, monkeypatch, update=6):
    interrupt_at(update, monkeypatch)
    with pytest.raises(Interrupted):
        pretrain(recipe, [photos], out)
    monkeypatch.undo()


def test_a_run_is_brought_to_an_end(photos, tmp_path, monkeypatch, capsys):
    recipe = Recipe.load("smoke", [*SMALL, "optim.epochs=20", "monitor.every=0"])
    stop_early(recipe, photos, tmp_path / "whole", monkeypatch)
    export = finish(tmp_path / "whole", Budget(epochs=2))
    assert (export / "model.safetensors").is_file()
    logged = lines(tmp_path / "whole")
    assert [line["step"] for line in logged] == list(range(1, 13))
    rates = [line["lr"] for line in logged[5:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(recipe.optim.final_lr * recipe.optim.lr_factor)
    assert logged[-1]["weight_decay"] == pytest.approx(recipe.optim.final_weight_decay)
    assert "after update 6 of 60 the run ends in 6 updates (2 epochs)" in capsys.readouterr().err
    assert "finish_after = 6\nfinish_updates = 6\n" in (tmp_path / "whole" / "recipe.toml").read_text()
    assert "After update 6 of 60 the run was finished early, in 6 more" in (tmp_path / "whole/README.md").read_text()

    stop_early(recipe, photos, tmp_path / "cut", monkeypatch)
    interrupt_at(9, monkeypatch)
    with pytest.raises(Interrupted, match="stopped after update 9 of 12"):
        finish(tmp_path / "cut", Budget(epochs=2))
    monkeypatch.undo()
    with pytest.raises(RecipeError, match="finished already.*--resume"):
        finish(tmp_path / "cut", Budget(epochs=2))
    pretrain(recipe, [photos], tmp_path / "cut", resume=True)  # by the command that started the run
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_new_run_does_not_inherit_a_finish(recipe, photos, tmp_path):
    pretrain(recipe.changed("optim", finish_after=2, finish_updates=1), [photos], tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 6


def test_a_finish_leaves_out_the_bad_images_that_the_run_left_out(photos, tmp_path, monkeypatch):
    (photos / "broken.png").write_bytes(b"no image")
    recipe = Recipe.load("smoke", [*SMALL, *OBJECTIVES["diet"], "optim.epochs=20", "monitor.every=0"])
    interrupt_at(6, monkeypatch)
    with pytest.raises(Interrupted):
        pretrain(recipe, [photos], tmp_path / "run", skip_bad=True)
    monkeypatch.undo()
    assert len(state(tmp_path / "run")["objective"]["student"]["head.bias"]) == 12  # no class for the broken image
    assert finish(tmp_path / "run", Budget(epochs=1)).is_dir()


def test_minutes_to_bring_a_run_to_its_end_leave_no_trace_of_measuring(photos, tmp_path, monkeypatch):
    recipe = Recipe.load("smoke", [*SMALL, "optim.epochs=20", "monitor.every=0"])
    for name in ("minutes", "epochs"):
        stop_early(recipe, photos, tmp_path / name, monkeypatch)
    monkeypatch.setattr(engine, "TIMED_SECONDS", 0.1)
    monkeypatch.setattr(Budget, "_epochs", lambda *_: 2)
    finish(tmp_path / "minutes", Budget(minutes=5))
    finish(tmp_path / "epochs", Budget(epochs=2))
    assert same(state(tmp_path / "minutes"), state(tmp_path / "epochs"))


def test_what_cannot_be_finished(recipe, photos, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="run to finish.*no checkpoint"):
        finish(tmp_path / "none", Budget(epochs=1))
    stop_early(recipe, photos, tmp_path / "damaged", monkeypatch, update=4)
    environment = tmp_path / "damaged" / "environment.json"
    for text in ("[{", "[]", '[{"images": 12}]'):
        environment.write_text(text)
        with pytest.raises(RecipeError, match=r"expected recipe.toml and environment.json .* damaged ones .* --resume"):
            finish(tmp_path / "damaged", Budget(epochs=1))
    pretrain(recipe, [photos], tmp_path / "ended")
    with pytest.raises(RecipeError, match="ended.*after update 6"):
        finish(tmp_path / "ended", Budget(epochs=1))
    longer = recipe.changed("optim", epochs=9)
    stop_early(longer, photos, tmp_path / "finished", monkeypatch)
    finish(tmp_path / "finished", Budget(epochs=1))
    with pytest.raises(RecipeError, match="ended.*after update 9"):
        finish(tmp_path / "finished", Budget(epochs=1))
    stop_early(recipe, photos, tmp_path / "early", monkeypatch, update=2)
    with pytest.raises(RecipeError, match="warm-up.*update 2 of 3.*--resume"):
        finish(tmp_path / "early", Budget(epochs=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, ["optim.epochs=3"], Budget(epochs=1)), "no recipe.*no settings.*got optim.epochs=3"),
        (("smoke", [], Budget(epochs=1)), "no settings.*got smoke"),
        ((None, [], Budget(epochs=1), "context"), "no settings.*got --export context"),
        ((None, [], None), "expected --minutes, --epochs or --images-seen"),
    ],
)
def test_what_is_not_given_beside_finish(given, message):
    with pytest.raises(RecipeError, match=message):
        check_finish(*given)
    assert check_finish(None, [], Budget(epochs=1)) == Budget(epochs=1)


COMMAND = (sys.executable, "-c", "from scott_models.pretrain.__main__ import main; main()", "smoke", *SMALL)
LONG = ("optim.epochs=10", "run.checkpoint_every=0", "monitor.every=3", "model.name=scott_3_16")


def command(photos, out, *more):
    environment = {**os.environ, "PYTHONPATH": str(Path(scott_models.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = [*COMMAND, *LONG, "--data", str(photos), "--out", str(out), *more]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def when(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_any_moment_a_run_resumes_to_the_same_weights(photos, tmp_path):
    """Kill a run after its first checkpoint, while it writes a checkpoint, and much later."""
    whole = command(photos, tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    out = tmp_path / "cut"
    checkpoints = out / "checkpoints"

    def saved(step):
        return lambda: any(int(path.stem.split("_")[1]) >= step for path in checkpoints.glob("step_*.pt"))

    moments = (saved(1), lambda: any(checkpoints.glob(".*.pt")) and saved(8)(), saved(20))
    for i, moment in enumerate(moments):
        process = command(photos, out, *(["--resume"] if i else []))
        when(moment, process)
        process.kill()
        process.wait()
        process.stderr.close()
        assert not (out / "export").exists()
    last = command(photos, out, "--resume")
    assert last.wait() == 0, last.stderr.read()
    assert same(state(out), state(tmp_path / "whole"))
    assert losses(out) == losses(tmp_path / "whole")
    for process in (whole, last):
        process.stderr.close()


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_a_sentence(photos, tmp_path):
    process = command(photos, tmp_path / "run")
    when(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(lines(tmp_path / "run")) > 2, process)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "and saved; go on with --resume" in told
    assert "Traceback" not in told


def test_another_seed_gives_other_weights(recipe, photos, tmp_path):
    pretrain(recipe, [photos], tmp_path / "a")
    pretrain(Recipe.load("smoke", [*SMALL, "run.seed=1"]), [photos], tmp_path / "b")
    assert not same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_new_run_leaves_an_old_one_alone(recipe, photos, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, [photos], out)
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(RecipeError, match="holds a run already.*--resume"):
        pretrain(recipe, [photos], out)
    other = Recipe.load("smoke", [*SMALL, "model.name=scott_7_16"])
    with pytest.raises(RecipeError, match="model.name: 'scott_7_16' and 'scott_3_16'"):
        pretrain(other, [photos], out, resume=True)
    Image.new("RGB", (80, 72), "green").save(photos / "red" / "0.png")
    with pytest.raises(RecipeError, match="images this run.*found others"):
        pretrain(recipe, [photos], out, resume=True)
    assert (out / "metrics.jsonl").read_text() == before
    (out / "recipe.toml").rename(out / "elsewhere.toml")
    with pytest.raises(RecipeError, match="recipe.toml.*run to resume.*found none"):
        pretrain(recipe, [photos], out, resume=True)
    (out / "elsewhere.toml").rename(out / "recipe.toml")
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="found damaged or foreign files only"):
        pretrain(recipe, [photos], out, resume=True)


def test_resume_before_the_first_checkpoint_starts_anew(recipe, photos, tmp_path, capsys):
    """Resume a run without a checkpoint, as batch systems do, or as after a kill in the first minutes."""
    pretrain(recipe, [photos], tmp_path / "run", resume=True)
    assert "no checkpoint to go on from; starting anew" in capsys.readouterr().err
    assert len(losses(tmp_path / "run")) == 6


def test_moved_images_are_the_same_images(recipe, photos, tmp_path):
    pretrain(recipe, [photos], tmp_path / "run")
    pretrain(recipe, [photos.rename(tmp_path / "moved")], tmp_path / "run", resume=True)


def test_what_does_not_change_the_weights_may_change_on_the_way(recipe, photos, tmp_path):
    pretrain(recipe, [photos], tmp_path / "run")
    quiet = Recipe.load("smoke", [*SMALL, "run.log_every=3", "monitor.every=0"])
    pretrain(quiet, [photos], tmp_path / "run", resume=True)


def test_a_budget_is_kept_by_a_resumed_run(recipe, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "TIMED_SECONDS", 0.01)
    budget = Budget(images_seen=48)
    pretrain(recipe, [photos], tmp_path / "run", budget=budget)
    assert "4 epochs chosen (48 images" in capsys.readouterr().err
    assert lines(tmp_path / "run")[-1]["step"] == 12
    assert Recipe.load(tmp_path / "run" / "recipe.toml").optim.epochs == 4
    pretrain(recipe, [photos], tmp_path / "run", resume=True, budget=budget)
    chosen = Recipe.load("smoke", [*SMALL, "optim.epochs=4", "optim.warmup_epochs=2"])
    pretrain(chosen, [photos], tmp_path / "same")
    assert same(state(tmp_path / "same"), state(tmp_path / "run"))


def test_minutes(recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.Engine, "speed", lambda *_: 10.0)
    ticks = itertools.count()
    monkeypatch.setattr("scott_models.training.run.time.monotonic", lambda: 1e-6 * next(ticks))
    pretrain(recipe, [photos], tmp_path / "run", budget=Budget(minutes=0.05))
    assert lines(tmp_path / "run")[-1]["step"] == round(0.05 * 60 * 0.98 * 10 / 4)


def test_bad_images_are_left_out_when_asked(recipe, photos, tmp_path, capsys):
    (photos / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 13 images.*\n.*broken.png.*an image"):
        pretrain(recipe, [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrain(recipe, [photos], tmp_path / "run", skip_bad=True)
    assert "broken.png" in capsys.readouterr().err


def test_inductive_training_leaves_the_test_split_alone(recipe, photos, tmp_path):
    split = tmp_path / "split"
    for i, path in enumerate(sorted(photos.glob("*/*.png"))):
        target = split / ("test" if i % 3 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    inductive = Recipe.load("smoke", [*SMALL, "data.splits=train"])
    pretrain(inductive, [split], tmp_path / "run")
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert start["images"] == 8


def test_mistakes_in_a_recipe_are_told_before_images_are_decoded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("scott_models.training.run.open_images", None)
    with pytest.raises(RecipeError, match="multiples of 16"):
        pretrain(Recipe.load("smoke", [*SMALL, "model.img_size=100"]), [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_a_batch(photos, tmp_path):
    with pytest.raises(DataError, match="batch of 13.*found 12"):
        pretrain(Recipe.load("smoke", [*SMALL, "optim.batch_size=13"]), [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run(recipe, photos, tmp_path, monkeypatch):
    apply_gradients = engine.apply_gradients
    calls = []

    def spoil(optimizer, loss):
        calls.append(1)
        return apply_gradients(optimizer, loss * (float("nan") if len(calls) > 3 else 1))

    monkeypatch.setattr(engine, "apply_gradients", spoil)
    with pytest.raises(TrainingError, match="not finite.*3 updates.*last good.*0003.pt"):
        pretrain(recipe, [photos], tmp_path / "run")


def test_a_full_disk_keeps_the_last_checkpoint(recipe, photos, tmp_path, monkeypatch):
    save = torch.save

    def full(content, file):
        if isinstance(content, dict) and content.get("step", 0) > 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(DataError, match="No space left.*last good.*0003.pt"):
        pretrain(recipe, [photos], tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    pretrain(recipe, [photos], tmp_path / "run", resume=True)


def test_a_run_ends_when_its_last_checkpoint_is_whole(recipe, photos, tmp_path, monkeypatch):
    """Check the order: last checkpoint, README, export; and that a stop reports after its checkpoint."""
    order = []
    save, readme, export = torch.save, train.write_readme, train.weights.export

    def slow(content, file):
        time.sleep(0.3)
        save(content, file)
        order.append(content.get("step"))  # None for an index of decoded images

    monkeypatch.setattr(checkpoints.torch, "save", slow)
    monkeypatch.setattr(train, "write_readme", lambda *args: (order.append("README"), readme(*args)))
    monkeypatch.setattr(train.weights, "export", lambda *args: (order.append("export"), export(*args)))
    with monkeypatch.context() as interrupted:
        interrupt_at(4, interrupted)
        with pytest.raises(Interrupted, match="after update 4 of 6 and saved"):
            pretrain(recipe, [photos], tmp_path / "run")
    assert order[-1] == 4
    pretrain(recipe, [photos], tmp_path / "run", resume=True)
    assert order[-3:] == [6, "README", "export"]


def test_a_disk_full_elsewhere_names_the_last_checkpoint(recipe, photos, tmp_path, monkeypatch):
    def full(log, line):
        if line["step"] > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.Log, "_append", full)
    with pytest.raises(DataError, match="No space left.*last good.*0003.pt"):
        pretrain(recipe, [photos], tmp_path / "run")


def test_not_every_error_of_the_system_is_a_full_disk(recipe, photos, tmp_path, monkeypatch):
    run = train.Pretraining(recipe, [photos], tmp_path / "run", False, None, False, "target")

    def fail(*arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(engine.Engine, "update", fail)
    with pytest.raises(DataError, match="Too many open files.*ulimit.*no checkpoint yet") as raised:
        run.train()
    assert "written" not in str(raised.value)


def test_a_run_in_another_thread(recipe, photos, tmp_path):
    """Train where Python lets nobody handle signals, as in a web server or a notebook's background job."""
    exported = []
    thread = threading.Thread(target=lambda: exported.append(pretrain(recipe, [photos], tmp_path / "run")))
    thread.start()
    thread.join()
    assert exported == [tmp_path / "run" / "export"]


def test_a_run_whose_console_is_lost(recipe, photos, tmp_path, monkeypatch, lost):
    monkeypatch.setattr(sys, "stderr", lost)
    monkeypatch.setattr(sys, "stdout", lost)
    with monkeypatch.context() as interrupted:
        interrupt_at(4, interrupted)
        with pytest.raises(Interrupted, match="after update 4 of 6 and saved"):
            pretrain(recipe, [photos], tmp_path / "run")
    assert pretrain(recipe, [photos], tmp_path / "run", resume=True).is_dir()


def test_folders_whose_names_are_not_utf_8(recipe, photos, tmp_path, capsys):
    odd = photos.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    out = tmp_path / os.fsdecode(b"run\xe9")
    export = pretrain(recipe, [odd], out)
    assert r"caf\udce9" in (out / "README.md").read_text()
    assert json.loads((out / "environment.json").read_text())[-1]["data"] == [str(odd)]
    assert pretrain(recipe, [odd], out, resume=True) == export


def test_images_that_are_all_the_same(tmp_path, capsys):
    """Expect a verdict, and null for what is no number, since one image has no other to be compared with."""
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("RGB", (60, 50), "white").save(tmp_path / "photos" / f"{i}.png")
    pretrain(Recipe.load("smoke", SMALL), [tmp_path / "photos"], tmp_path / "run")
    assert "dead, all images have nearly the same features" in capsys.readouterr().err
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    looks = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines() if "monitor" in line]
    assert {look["monitor"]["cosine"] for look in looks} == {None}


def test_images_too_many_to_keep_decoded(recipe, photos, tmp_path, monkeypatch):
    pretrain(recipe, [photos], tmp_path / "kept")
    monkeypatch.setenv("SCOTT_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "LARGEST", 1)
    pretrain(recipe, [photos], tmp_path / "streamed")
    assert same(state(tmp_path / "kept"), state(tmp_path / "streamed"))


def test_an_image_lost_on_the_way_is_one_sentence(recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "LARGEST", 1)
    run = train.Pretraining(recipe, [photos], tmp_path / "run", False, None, False, "target")
    (photos / "red" / "0.png").unlink()
    with pytest.raises(DataError, match=r"^.*red/0.png.*cannot be opened.*\(No such file.*\)$"):
        run.train()


@pytest.mark.deploy
@pytest.mark.needs("tensorboard")
def test_trackers_get_the_same_figures(photos, tmp_path):
    recipe = Recipe.load("smoke", [*SMALL, "run.trackers=tensorboard"])
    pretrain(recipe, [photos], tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run" / "scott_models").glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    assert [event.value for event in accumulator.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"))
    assert len(accumulator.Scalars("rankme")) == 2


def test_odd_images(recipe, tmp_path):
    """Train on huge, wide, tiny, grey, CMYK, animated and duplicate images in one folder."""
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (3000, 2500), "red").save(folder / "huge.jpg")
    Image.new("RGB", (800, 20), "green").save(folder / "wide.png")
    Image.new("RGB", (16, 16), "blue").save(folder / "tiny.png")
    Image.new("L", (60, 50), 90).save(folder / "grey.png")
    Image.new("CMYK", (60, 50), (9, 90, 9, 0)).save(folder / "cmyk.jpg")
    frames = [Image.new("RGB", (60, 50), colour) for colour in ("cyan", "pink")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    for i in range(2):
        Image.new("RGB", (60, 50), "white").save(folder / f"twin{i}.png")
    pretrain(recipe, [folder], tmp_path / "run")
    assert all(0 < loss < 10 for loss in losses(tmp_path / "run"))


@pytest.mark.parametrize("number", STOPS)
def test_stop_requests_end_with_the_block(number, lost, monkeypatch):
    monkeypatch.setattr(sys, "stderr", lost)
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop()
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        deadline = time.monotonic() + 5
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop()
        assert signal.getsignal(signal.SIGTERM) is before  # a second signal would kill
        if HANG_UP:
            os.kill(os.getpid(), HANG_UP)  # but not that of the terminal, which may come several times
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def begun(recipe, photos, tmp_path, monkeypatch):
    """Stop a run that began with the weights of another run; return its recipe and its folder."""
    pretrain(Recipe.load("smoke", [*SMALL, "monitor.every=0", "run.seed=5"]), [photos], tmp_path / "first")
    started = recipe.changed("model", init=f"local-dir:{tmp_path / 'first' / 'export'}")
    pretrain(started, [photos], tmp_path / "whole")
    stop_early(started, photos, tmp_path / "run", monkeypatch, update=4)
    return started, tmp_path / "run"


def test_a_run_resumes_without_the_weights_it_began_with(begun, photos, tmp_path):
    started, out = begun
    (tmp_path / "first").rename(tmp_path / "gone")
    pretrain(started, [photos], out, resume=True)
    assert same(state(out), state(tmp_path / "whole"))
    assert lines(out, "monitor") == lines(tmp_path / "whole", "monitor")
    for path in (out / "checkpoints").glob("*"):
        path.unlink()
    with pytest.raises(WeightsError, match="init.*found no .*first"):  # without a checkpoint the run begins anew
        pretrain(started, [photos], out, resume=True)


def test_a_finish_needs_no_weights_to_begin_with(begun, photos, tmp_path):
    _, out = begun
    (tmp_path / "first").rename(tmp_path / "gone")
    assert finish(out, Budget(epochs=1)).is_dir()


def test_without_its_log_a_run_measures_the_weights_it_began_with_again(begun, photos, tmp_path, capsys):
    started, out = begun
    (out / "metrics.jsonl").unlink()
    first = tmp_path / "first"
    first.rename(tmp_path / "gone")
    with pytest.raises(WeightsError, match="init.*found no .*first"):
        pretrain(started, [photos], out, resume=True)
    assert "metrics.jsonl: expected a look before the first update" in capsys.readouterr().err
    pretrain(started.changed("monitor", every=0), [photos], out, resume=True)
    (tmp_path / "gone").rename(first)
    (out / "metrics.jsonl").unlink()
    pretrain(started, [photos], out, resume=True)
    assert lines(out, "monitor")[0] == lines(tmp_path / "whole", "monitor")[0]
    assert [line["step"] for line in lines(out, "monitor")] == [0, 6]  # an ended run is measured at its end
    assert "After update 6: " in (out / "README.md").read_text()


def test_a_log_without_its_first_look(recipe, photos, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe, [photos], out)
    log = out / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"step": 0' not in line))
    pretrain(recipe.changed("monitor", every=0), [photos], out, resume=True)
    assert "Not monitored yet" in (out / "README.md").read_text()


def test_one_run_in_a_folder(recipe, photos, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop_early(recipe, photos, out, monkeypatch, update=4)
    assert not list(out.glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with hold_folder(out):
        for train_again in (
            lambda: pretrain(recipe, [photos], out, resume=True),
            lambda: pretrain(recipe, [photos], out),
            lambda: finish(out, Budget(epochs=1)),
        ):
            with pytest.raises(RecipeError, match=f"no other run.*process {os.getpid()} on host"):
                train_again()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    pretrain(recipe, [photos], out, resume=True)


def test_a_run_folder_that_is_a_file(recipe, photos, tmp_path):
    (tmp_path / "run").write_text("notes")
    with pytest.raises(DataError, match=r"run: expected a folder.*--out"):
        pretrain(recipe, [photos], tmp_path / "run")


def test_a_recipe_edited_between_two_parts(recipe, photos, tmp_path):
    out, budget = tmp_path / "run", Budget(epochs=2)
    pretrain(recipe, [photos], out, budget=budget)
    stored = (out / "recipe.toml").read_text()
    for edited in (stored.replace("epochs = 2", "epochs = two"), stored.replace("peak_lr", "peak_rate"), "[mask"):
        (out / "recipe.toml").write_text(edited)
        with pytest.raises(RecipeError, match=r"run: cannot resume by its recipe\.toml"):
            pretrain(recipe, [photos], out, resume=True, budget=budget)
    (out / "recipe.toml").write_text(stored.replace("\nepochs = 2\n", "\nepochs = 1.5\n"))
    with pytest.raises(RecipeError, match=r"recipe\.toml: expected at least the 6 updates.*found 4"):
        pretrain(recipe, [photos], out, resume=True, budget=budget)


def test_pictures_come_after_what_marks_a_run_folder(photos, tmp_path, monkeypatch):
    """Cut a run before its first look: others must see that its pictures are no data."""

    def cut(album, step, encoder):
        raise KeyboardInterrupt

    monkeypatch.setattr(Album, "add", cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain(Recipe.load("smoke", SMALL), [photos], tmp_path / "run")
    assert is_run_folder(tmp_path / "run")
    assert not (tmp_path / "run" / "looks").exists()


def test_a_run_that_starts_from_released_weights(recipe, photos, tmp_path, capsys, toy):
    """Check that verdict and README name the start, and that the run resumes as any other."""
    toy.undo()
    tag = "scott_3_16.mimjepa_flowers102_cpu"
    started = recipe.changed("model", init=tag, predictor_depth=1)
    export = pretrain(started, [photos], tmp_path / "run")
    assert f"in brackets: {tag}" in capsys.readouterr().err
    readme = (tmp_path / "run" / "README.md").read_text()
    assert f"| {tag} | " in readme
    assert "random weights" not in readme
    assert (export / "model.safetensors").is_file()
    assert Recipe.load(tmp_path / "run" / "recipe.toml") == started
    with pytest.raises(RecipeError, match="cannot resume with another recipe .*model.init"):
        pretrain(recipe, [photos], tmp_path / "run", resume=True)
    assert pretrain(started, [photos], tmp_path / "run", resume=True) == export
