import json
import os
import signal
import threading
import time

import pytest
import timm
import torch
from safetensors.torch import load_file

from scott_models.errors import DataError, Interrupted, RecipeError
from scott_models.pretrain import Recipe, pretrain, train

SMALL = ("model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "run.precision=no")


@pytest.fixture
def recipe():
    return Recipe.load("smoke", SMALL)


def state(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def same(a, b):
    return all(torch.equal(a["objective"][name], tensor) for name, tensor in b["objective"].items())


def test_a_run_from_images_to_a_timm_model(recipe, photos, tmp_path):
    out = tmp_path / "run"
    export = pretrain(recipe, [photos], out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["epoch"] == 2
    assert lines[-1]["lr"] == pytest.approx(1e-5)
    assert lines[-1]["weight_decay"] == pytest.approx(0.4)
    assert all(0 < line["loss"] < 10 for line in lines)
    assert Recipe.load(out / "recipe.toml") == recipe
    assert {path.name for path in out.iterdir()} == {"recipe.toml", "metrics.jsonl", "checkpoint.pt", "export"}

    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)
    assert model.pos_drop.p == 0
    target = {
        name.removeprefix("target_encoder."): tensor
        for name, tensor in state(out)["objective"].items()
        if name.startswith("target_encoder.")
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, target[name].bfloat16().float())
    assert load_file(export / "model.safetensors")["mask_token"].dtype == torch.bfloat16


def test_training_learns(photos, tmp_path):
    """On the same few pictures the loss of the last epochs is well below that of the first."""
    recipe = Recipe.load("smoke", [*SMALL, "optim.epochs=8", "optim.peak_lr=0.001", "optim.final_ema=0.996"])
    pretrain(recipe, [photos], tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_a_stopped_run_resumes_to_the_same_weights(recipe, photos, tmp_path, monkeypatch):
    pretrain(recipe, [photos], tmp_path / "whole")

    set_schedules = train.set_schedules

    def interrupt(recipe, optimizer, step, total, steps):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return set_schedules(recipe, optimizer, step, total, steps)

    monkeypatch.setattr(train, "set_schedules", interrupt)
    with pytest.raises(Interrupted, match="stopped after update 4 of 6 and saved; go on with --resume"):
        pretrain(recipe, [photos], tmp_path / "cut")
    assert state(tmp_path / "cut")["step"] == 4
    assert not (tmp_path / "cut" / "export").exists()
    monkeypatch.undo()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 5, "loss": 0.0}) + '\n{"step": 6, "lo')  # logged, then lost with the power
    pretrain(recipe, [photos], tmp_path / "cut", resume=True)
    assert same(state(tmp_path / "cut"), state(tmp_path / "whole"))

    def losses(run):
        return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_another_seed_gives_other_weights(recipe, photos, tmp_path):
    pretrain(recipe, [photos], tmp_path / "a")
    pretrain(Recipe.load("smoke", [*SMALL, "run.seed=1"]), [photos], tmp_path / "b")
    assert not same(state(tmp_path / "a"), state(tmp_path / "b"))


def test_a_new_run_leaves_an_old_one_alone(recipe, photos, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"expected a run to resume \(checkpoint.pt and recipe.toml\), found none"):
        pretrain(recipe, [photos], out, resume=True)
    pretrain(recipe, [photos], out)
    before = (out / "metrics.jsonl").read_text()
    with pytest.raises(RecipeError, match="holds a run already; go on with --resume"):
        pretrain(recipe, [photos], out)
    other = Recipe.load("smoke", [*SMALL, "model.name=scott_7_16"])
    with pytest.raises(RecipeError, match="model.name: 'scott_7_16' and 'scott_3_16'"):
        pretrain(other, [photos], out, resume=True)
    assert (out / "metrics.jsonl").read_text() == before
    with pytest.raises(RecipeError, match="expected images for 6 updates, found images for 12; resume with the same"):
        pretrain(recipe, [photos, photos], out, resume=True)
    (out / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match="checkpoint.pt: expected a checkpoint of this run, found a damaged"):
        pretrain(recipe, [photos], out, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.name=resnet50"], r"recipe.model.name: expected one of \('scott_3_16', .*got 'resnet50'"),
        (["model.img_size=100"], "expected positive multiples of 16 pixels, got 100 x 100"),
        (["model.img_size=16"], "more than 1 rows and columns of patches, got 1 x 1"),
        (["mask.ratio=1.5"], "between 0 and 1, exclusive, got 1.5"),
    ],
)
def test_settings_no_model_can_take(photos, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        pretrain(Recipe.load("smoke", [*SMALL, *changes]), [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mistakes_in_a_recipe_are_told_before_images_are_decoded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "decode", None)
    with pytest.raises(RecipeError, match="multiples of 16"):
        pretrain(Recipe.load("smoke", [*SMALL, "model.img_size=100"]), [photos], tmp_path / "run")


def test_compiling_needs_a_compiler(recipe, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"expected a C\+\+ compiler \(g\+\+\), found none; .*run.compile=false"):
        pretrain(Recipe.load("smoke", [*SMALL, "run.compile=true"]), [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_compiled_run_computes_the_same(photos, tmp_path, monkeypatch):
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_with(module, backend="aot_eager"))
    dry = [*SMALL, *(f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"))]
    for name, changes in (("eager", []), ("compiled", ["run.compile=true"])):
        pretrain(Recipe.load("smoke", [*dry, *changes]), [photos], tmp_path / f"dry-{name}")
    eager, compiled = (state(tmp_path / f"dry-{name}")["objective"] for name in ("eager", "compiled"))
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "hidden"),
    [
        (["mask.kind=random"], 2),
        (["mask.blocks=masked"], 3),
        (["mask.ratio=0.25"], 1),
        (["data.views=none"], 2),
        (["data.views=same"], 2),
    ],
)
def test_settings_reach_the_objective(changes, hidden):
    objective = train.build_objective(Recipe.load("smoke", [*SMALL, "model.img_size=32", *changes]))
    crops = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    context, target, visible = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert torch.equal(context, target) == changes[0].startswith("data.views")
    assert set((~visible).sum(dim=1).tolist()) == {hidden}


def test_fewer_images_than_a_batch(photos, tmp_path):
    with pytest.raises(DataError, match="expected at least one batch of 13 images, found 12"):
        pretrain(Recipe.load("smoke", [*SMALL, "optim.batch_size=13"]), [photos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_vectors_are_not_decayed(recipe):
    objective = train.build_objective(recipe)
    groups = {
        group["decayed"]: {id(p) for p in group["params"]} for group in train.build_optimizer(objective).param_groups
    }
    names = {id(p): name for name, p in objective.named_parameters()}
    assert {names[i] for i in groups[False]} == {
        "predictor.head.1.weight",
        "predictor.head.1.bias",
        "predictor.head.2.bias",
    }
    assert "context_encoder.mask_token" in {names[i] for i in groups[True]}
    assert not any(names[i].startswith("target") for group in groups.values() for i in group)


def test_every_epoch_sees_every_image_once_in_its_own_order(recipe):
    epochs = [torch.cat([train.batch_index(recipe, 12, step, 3) for step in steps]) for steps in ((1, 2, 3), (4, 5, 6))]
    assert all(order.sort().values.tolist() == list(range(12)) for order in epochs)
    assert not torch.equal(*epochs)


def test_stop_requests_end_with_the_block():
    before = signal.getsignal(signal.SIGTERM)
    with train.stop_requests() as stop:
        assert not stop()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        deadline = time.monotonic() + 5
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before
