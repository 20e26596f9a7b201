import json
import os
import pickle
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch._subclasses.fake_tensor import FakeTensorMode

import scott_models
from scott_models import weights
from scott_models.data import colours
from scott_models.data.random_streams import Draws
from scott_models.errors import DataError, RecipeError
from scott_models.finetune import train
from scott_models.finetune.objective import Supervised
from scott_models.finetune.recipe import FinetuneRecipe
from scott_models.finetune.train import Watched, build_classifier, finetune, keep_configuration
from scott_models.training.course import Course
from scott_models.training.optimizer import build_optimizer, set_schedules
from scott_models.weights import local_dir

RECIPES = sorted(path.stem for path in FinetuneRecipe.folder.glob("*.toml"))
SMALL = ("model.img_size=32",)


def objective(*changes):
    recipe = FinetuneRecipe.load("smoke", [*SMALL, *changes])
    made = Supervised(build_classifier(recipe.model, 3), recipe)
    made.labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return made


def draws(*images):
    return Draws.keyed(np.uint64(1), torch.zeros(len(images), dtype=torch.long), torch.tensor(images))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_tells_what_it_costs(name):
    FinetuneRecipe.load(name)
    head = (FinetuneRecipe.folder / f"{name}.toml").read_text().split("\n\n")[0]
    assert all(word in head for word in ("Expected", "Hardware", "Command"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.start_ema=0.9", r"recipe.optim: unknown \['start_ema'\]"),
        ("optim.layer_decay=0", "recipe.optim.layer_decay.*above 0.*at most 1.*got 0"),
        ("optim.label_smoothing=1", "recipe.optim.label_smoothing: expected from 0 to below 1"),
        ("optim.mixup=-1", "recipe.optim.mixup: expected 0 or more"),
        ("monitor.every=0", "recipe.monitor.every: expected more than 0 epochs"),
        ("model.drop_path=1", "recipe.model.drop_path.*0 to below 1"),
        ("data.short_side=8", "recipe.data.short_side: expected at least 16 pixels"),
        ("mask.ratio=0.5", r"recipe: unknown \['mask'\]"),
    ],
)
def test_settings_nobody_can_take(change, message):
    with pytest.raises(RecipeError, match=message):
        FinetuneRecipe.load("smoke", [change])


def test_images_keep_their_labels_whatever_the_batch():
    crops = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    images, targets = objective().inputs(crops, draws(5, 0, 4))
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert torch.equal(images, objective().inputs(crops, draws(5, 0, 4))[0])
    plain, _ = objective("data.colours=false").inputs(crops, draws(5, 0, 4))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(plain, (crops / 255 - mean) / std)


def test_mixup_mixes_images_and_labels_alike():
    crops = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255)])
    images, targets = objective("optim.mixup=1", "data.colours=false").inputs(crops, draws(0, 1))
    dark, bright = objective("data.colours=false").inputs(crops, draws(0, 1))[0]
    for image, target in zip(images, targets):
        assert target.sum() == pytest.approx(1)
        assert 0 < target[0] < 1
        torch.testing.assert_close(image, target[0] * dark + target[1] * bright, atol=1e-4, rtol=1e-4)
    assert targets[0, 0] != pytest.approx(targets[1, 0].item())  # each image has its own share


@pytest.mark.parametrize("changes", [(), ("data.colours=false",), ("optim.mixup=0.4",)])
def test_what_is_drawn_elsewhere_gives_the_same_inputs(changes):
    made = objective(*changes)
    crops = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    plan = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(made.drawing))(draws(5, 0, 4, 2))))
    for here, there in zip(made.inputs(crops, draws(5, 0, 4, 2)), made.inputs(crops, plan), strict=True):
        assert torch.equal(here, there)


def test_inputs_on_a_gpu_are_compiled_and_never_wait(monkeypatch):
    """Check with fake GPU tensors."""
    empty, compiled = torch.empty, []

    def unpinned(*size, pin_memory=False, **settings):
        return empty(*size, **settings)

    monkeypatch.setattr(torch, "empty", unpinned)  # pinning needs a GPU
    monkeypatch.setattr(
        "scott_models.data.colours.compile_once", lambda function: compiled.append(function) or function
    )
    made = objective("optim.mixup=0.4")
    made.compiled = True
    plan = made.drawing(draws(5, 0, 4))
    colours._channels.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = made.inputs(torch.empty(3, 3, 32, 32, dtype=torch.uint8, device="cuda"), plan)
    colours._channels.cache_clear()
    assert [(tuple(tensor.shape), tensor.device.type) for tensor in inputs] == [
        ((3, 3, 32, 32), "cuda"),
        ((3, 3), "cuda"),
    ]
    assert compiled == [colours.recolour_batch]


def test_labels_are_smoothed():
    made = objective("optim.label_smoothing=0.3").eval()
    images, targets = made.inputs(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), draws(0, 1))
    logits = made.model(images).log_softmax(dim=1)
    expected = -(0.7 * logits[[0, 1], [0, 1]] + 0.1 * logits.sum(dim=1)).mean()
    torch.testing.assert_close(made(images, targets), expected)


def test_layers_below_learn_more_slowly():
    made = objective("optim.layer_decay=0.5", "optim.peak_lr=0.001", "optim.lr_scaling=none")
    optimizer = build_optimizer(made)
    recipe = FinetuneRecipe.load("smoke", ["optim.peak_lr=0.001", "optim.lr_scaling=none"])
    set_schedules(recipe.optim, optimizer, 5, Course(10), 5)
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        for p in group["params"]
        for name, parameter in made.model.named_parameters()
        if parameter is p
    }
    assert len(rates) == len(list(made.model.parameters()))
    assert rates["head.weight"] == pytest.approx(1e-3)
    steps = [rates[f"blocks.{i}.mlp.fc1.weight"] / rates[f"blocks.{i + 1}.mlp.fc1.weight"] for i in range(2)]
    assert steps == [pytest.approx(0.5)] * 2
    assert rates["patch_embed.conv1.weight"] == pytest.approx(rates["blocks.0.mlp.fc1.weight"] / 2)
    decayed = {id(p) for group in optimizer.param_groups if group["decayed"] for p in group["params"]}
    assert id(made.model.head.weight) in decayed
    assert id(made.model.head.bias) not in decayed


def test_what_a_model_names_is_not_decayed():
    """Check a ViT of timm, which names its positions and its class token; SCOTT names no parameters."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    made = Supervised(model, FinetuneRecipe.load("smoke", SMALL))
    decayed = {id(p) for group in build_optimizer(made).param_groups if group["decayed"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert {"pos_embed", "cls_token"} <= model.no_weight_decay()
    assert not names & model.no_weight_decay()
    assert {"patch_embed.proj.weight", "head.weight"} <= names


def test_the_whole_way_from_folders_to_a_classifier(photos, tmp_path, capsys):
    recipe = FinetuneRecipe.load("smoke", [*SMALL, "optim.epochs=8", "optim.peak_lr=0.002"])
    accuracy = finetune(recipe, [photos], [photos], tmp_path / "run")
    assert accuracy.top1 == 100  # the classes are red and blue images
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert not model.blocks[-1].drop_path.__dict__.get("drop_prob")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    watched = {line["step"]: line["monitor"]["top1"] for line in lines if "monitor" in line}
    assert min(watched) == 0
    assert watched[max(watched)] == 100
    assert "top-1 100.00 %" in (tmp_path / "run" / "README.md").read_text()
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()
    assert "trained; use it with timm.create_model('local-dir:" in capsys.readouterr().out


def test_a_stopped_run_goes_on_to_the_same_weights(photos, tmp_path, monkeypatch):
    recipe = FinetuneRecipe.load("smoke", SMALL)
    finetune(recipe, [photos], [photos], tmp_path / "whole")
    out = tmp_path / "cut"
    cut = FinetuneRecipe.load("smoke", [*SMALL, "run.checkpoint_every=0"])
    stop_early(cut, photos, out, monkeypatch)
    finetune(cut, [photos], [photos], out, resume=True)
    names = [tmp_path / name / "export" / "model.safetensors" for name in ("whole", "cut")]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.fixture
def older(tmp_path):
    """Save an encoder as exports were before: with the mask token."""
    model = timm.create_model("scott_3_16", img_size=32, use_mask_token=True)
    return local_dir.save_whole(deepcopy(model), tmp_path / "older", local_dir.get_model_args(model), [])


def test_a_mask_token_is_not_trained(older):
    """Check an older export, which has a mask token that images without masks do not use."""
    made = objective(f"model.name=local-dir:{older}")
    made(*made.inputs(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), draws(0, 1))).backward()
    assert not [name for name, parameter in made.named_parameters() if parameter.grad is None]


def test_a_run_that_trained_a_mask_token_resumes(older, photos, tmp_path, monkeypatch):
    """Check a run that an older version began from an older export: it has the token, and kept no configuration."""
    recipe, out = FinetuneRecipe.load("smoke", [*SMALL, f"model.name=local-dir:{older}"]), tmp_path / "run"
    with monkeypatch.context() as before:
        before.setattr(train, "build_classifier", lambda *given, **_: build_classifier(*given, mask_token=True))
        ended = finetune(recipe, [photos], [photos], out)
    shutil.rmtree(out / "model")
    assert finetune(recipe, [photos], [photos], out, resume=True) == ended


PROCESS = """
import sys
from pathlib import Path
from scott_models.finetune import FinetuneRecipe, finetune

photos, out, *changes = sys.argv[1:]
finetune(FinetuneRecipe.load("smoke", changes), [photos], [photos], out)
"""


@pytest.mark.slow
def test_two_processes_on_an_older_export(older, photos, tmp_path):
    """Check the second step, which DistributedDataParallel refuses if a parameter had no use in the first."""
    (script := tmp_path / "process.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    changes = [*SMALL, f"model.name=local-dir:{older}", "optim.batch_size=4", "optim.epochs=2", "run.precision=no"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(scott_models.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [*launch, str(photos), str(tmp_path / "run"), *changes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


def test_any_timm_model(photos, tmp_path):
    save_for_hf(timm.create_model("resnet10t"), tmp_path / "resnet", safe_serialization=True)
    changes = ["model.img_size=64", f"model.name=local-dir:{tmp_path / 'resnet'}", "optim.epochs=1"]
    finetune(FinetuneRecipe.load("smoke", changes), [photos], [photos], tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True)
    assert (model.num_classes, model.pretrained_cfg["input_size"]) == (2, (3, 64, 64))


def stop_early(recipe, photos, out, monkeypatch):
    """Cut a run with a checkpoint after its second update."""
    after_step = Supervised.after_step

    def stop(self, step, total):
        after_step(self, step, total)
        if step == 2:
            raise OSError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "after_step", stop)
        with pytest.raises(DataError, match="power cut"):
            finetune(recipe, [photos], [photos], out)


def test_a_run_resumes_only_with_its_labels(photos, tmp_path, monkeypatch):
    recipe, out = FinetuneRecipe.load("smoke", [*SMALL, "run.checkpoint_every=0"]), tmp_path / "run"
    stop_early(recipe, photos, out, monkeypatch)
    (photos / "blue" / "5.png").rename(photos / "red" / "!.png")  # the order of all images stays
    with pytest.raises(RecipeError, match="labels this run began with.*found others"):
        finetune(recipe, [photos], [photos], out, resume=True)
    (photos / "red" / "!.png").rename(photos / "blue" / "5.png")
    (photos / "red").rename(photos / "rouge")
    with pytest.raises(RecipeError, match="labels"):
        finetune(recipe, [photos], [photos], out, resume=True)
    (photos / "green").mkdir()
    (photos / "rouge" / "0.png").rename(photos / "green" / "0.png")  # another number of classes
    with pytest.raises(RecipeError, match="found others"):
        finetune(recipe, [photos], [photos], out, resume=True)
    for path in (out / "checkpoints").glob("step_*.pt"):  # as an older version wrote it
        content = torch.load(path, weights_only=True)
        assert content.pop("labels")
        torch.save(content, path)
    (photos / "green" / "0.png").rename(photos / "rouge" / "0.png")
    (photos / "green").rmdir()
    finetune(recipe, [photos], [photos], out, resume=True)


@pytest.mark.parametrize("name", ["resnet10t", "scott_3_16"])
def test_a_run_resumes_without_the_model_it_began_with(photos, tmp_path, monkeypatch, name):
    source = tmp_path / "source"
    if name == "resnet10t":
        save_for_hf(timm.create_model(name), source, safe_serialization=True)
    else:
        weights.export(timm.create_model(name, img_size=32, use_mask_token=True), source)
    changes = ["model.img_size=64", f"model.name=local-dir:{source}", "run.checkpoint_every=0"]
    recipe = FinetuneRecipe.load("smoke", changes)
    finetune(recipe, [photos], [photos], tmp_path / "whole")
    stop_early(recipe, photos, tmp_path / "cut", monkeypatch)
    source.rename(tmp_path / "gone")
    finetune(recipe, [photos], [photos], tmp_path / "cut", resume=True)
    for file in ("model.safetensors", "config.json"):
        whole, cut = (tmp_path / run / "export" / file for run in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def test_a_run_resumes_without_weights_of_timm(photos, tmp_path, monkeypatch):
    """Check that nothing is looked for, in a folder or on the Hub, which may be out of reach."""
    recipe, out = FinetuneRecipe.load("smoke", [*SMALL, "run.checkpoint_every=0"]), tmp_path / "run"
    finetune(recipe, [photos], [photos], tmp_path / "whole")
    stop_early(recipe, photos, out, monkeypatch)
    create, asked = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or create(*a, **k))
    finetune(recipe, [photos], [photos], out, resume=True)
    assert asked == [False]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / "export" / name).read_bytes() == (out / "export" / name).read_bytes()


def test_an_ended_run_that_lost_its_log_is_tested_again(photos, tmp_path):
    recipe, out = FinetuneRecipe.load("smoke", SMALL), tmp_path / "run"
    accuracy = finetune(recipe, [photos], [photos], out)
    (out / "metrics.jsonl").unlink()
    assert finetune(recipe, [photos], [photos], out, resume=True) == accuracy


@pytest.mark.parametrize("source", ["hf-hub", "hf_hub"])
def test_the_configuration_of_a_model_of_the_hub_is_kept(tmp_path, monkeypatch, source):
    (tmp_path / "cached.json").write_text("{}")
    monkeypatch.setattr("scott_models.finetune.train.download_from_hf", lambda *asked: tmp_path / "cached.json")
    keep_configuration(f"{source}:me/mine", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"
    keep_configuration("resnet18", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_model_nobody_knows(photos, tmp_path):
    with pytest.raises(RecipeError, match="recipe.model: scot cannot be created by timm"):
        finetune(FinetuneRecipe.load("smoke", ["model.name=scot"]), [photos], [photos], tmp_path / "run")


def test_no_epoch_is_chosen_on_test_images():
    assert not Watched(90.0, None, 90.0).better_than(Watched(10.0, None, 10.0))
