"""Two processes on a CPU (gloo) train like one process with the same global batch.

Dropout is off, because each process draws its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scott_models
from scott_models.pretrain.recipe import OBJECTIVES

pytestmark = pytest.mark.slow

DRY = [f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path")]
RECIPE = [
    "model.img_size=32",
    "model.predictor_depth=1",
    "optim.batch_size=4",
    "optim.epochs=7",
    "run.precision=no",
    *DRY,
]
UPDATES = 21

PROCESS = """
import os, signal, sys
from pathlib import Path
import torch
from scott_models.errors import Interrupted
from scott_models.pretrain import Recipe
from scott_models.pretrain.train import Pretraining
from scott_models.training import engine

photos, out, resume, stop, *changes = sys.argv[1:]
compile_with = torch.compile
torch.compile = lambda module: compile_with(module, backend="aot_eager")  # a backend that needs no compiler
set_schedules = engine.set_schedules

def interrupt(optim, optimizer, step, *rest):
    if step == int(stop) and run.engine.rank == run.engine.processes - 1:  # one process gets the signal, all must stop
        os.kill(os.getpid(), signal.SIGINT)
    return set_schedules(optim, optimizer, step, *rest)

engine.set_schedules = interrupt
run = Pretraining(Recipe.load("smoke", changes), [photos], Path(out), resume == "resume", None, False, "target")
try:
    run.train()
except Interrupted as stopped:
    print(stopped)
teacher = run.engine.objective.encoders["target"]
torch.save(teacher.state_dict(), Path(out) / f"teacher{run.engine.rank}.pt")
"""


# At the start of each forward pass, all processes have the first one's BatchNorm statistics.
STATISTICS = """
import sys
from pathlib import Path
import torch
from torch import nn
from scott_models.pretrain import Recipe
from scott_models.training import engine
from scott_models.training.course import Course

class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def inputs(self, crops, draws):
        return (crops / 255,)

    def forward(self, images):
        return self.net(images).square().mean()

    def after_step(self, step, total):
        pass

_, out, _, _, *changes = sys.argv[1:]
recipe = Recipe.load("smoke", changes)
running = engine.Engine(recipe, Path(out), lambda recipe, compiled: Convolutional())
for step in (1, 2):
    images = torch.randint(1, 99 + 99 * running.rank, (2, 3, 32, 32)).byte()
    running.update(recipe, [(torch.zeros(2, 2, dtype=torch.long), images)], step, Course(10), 5)
running.objective.net.eval()(images / 255)
Path(out).mkdir(exist_ok=True)
torch.save(running.parts["net"].state_dict(), Path(out) / f"teacher{running.rank}.pt")
"""


@pytest.fixture
def launch(photos, tmp_path):
    script = tmp_path / "process.py"

    def run(processes, out, *changes, resume=False, stop=0, program=PROCESS, told=True):
        script.write_text(program)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            str(script),
        ]
        arguments = [str(photos), str(tmp_path / out), "resume" if resume else "new", str(stop), *RECIPE, *changes]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(scott_models.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            **({"ACCELERATE_USE_CPU": "true"} if told else {}),
        }
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return tmp_path / out

    return run


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def close(run, expected):
    assert len(losses(run)) == len(losses(expected))
    for ours, theirs in zip(losses(run), losses(expected)):
        assert ours == pytest.approx(theirs, abs=1e-5)
    weights, expected_weights = (
        torch.load(max((folder / "checkpoints").glob("step_*.pt")), weights_only=True)["objective"]
        for folder in (run, expected)
    )
    for part, tensors in expected_weights.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(weights[part][name], tensor, rtol=0, atol=1e-5)


def same_teachers(run):
    first, second = (torch.load(run / f"teacher{rank}.pt", weights_only=True) for rank in (0, 1))
    return all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_two_processes_do_what_one_does(launch):
    one = launch(1, "one")
    assert len(losses(one)) == UPDATES
    two = launch(2, "two")
    close(two, one)
    assert same_teachers(two)
    close(launch(2, "parts", "run.accumulate=2"), one)

    down = launch(2, "down", stop=10)
    assert len(losses(down)) == 10
    assert same_teachers(down)
    close(launch(1, "down", resume=True), one)
    launch(1, "up", stop=10)
    up = launch(2, "up", resume=True)
    close(up, one)
    assert same_teachers(up)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_torchs_launcher_needs_no_word_about_the_cpu(launch):
    close(launch(2, "two", "optim.epochs=2", told=False), launch(1, "one", "optim.epochs=2"))


@pytest.mark.parametrize("name", ["splitmask", "beit", "visible"])
def test_other_objectives_in_two_processes(launch, name):
    """Compare two processes with one; negatives of InfoNCE come from both processes."""
    changes = [*OBJECTIVES.get(name, ["objective.context=visible"]), "objective.words=30"]
    one, two = launch(1, "one", *changes), launch(2, "two", *changes)
    assert len(losses(one)) == UPDATES
    close(two, one)
    assert same_teachers(two)


@pytest.mark.parametrize("term", ["visreg", "infonce"])
def test_pooled_terms_compare_the_images_of_both_processes(launch, term):
    changes = [f"objective.pooled={term}", "objective.projector=32,16", "optim.epochs=1"]
    changes += ["optim.warmup_epochs=0", "run.log_every=1"]
    one, two = launch(1, "one", *changes), launch(2, "two", *changes)
    assert len(losses(one)) == 3  # later, batch norm and ReLU of four images amplify differences in rounding
    close(two, one)
    assert same_teachers(two)


CROPS = {
    "two sizes": [*OBJECTIVES["visreg"], "objective.local_views=1"],
    "another crop": ["objective.pooled=infonce", "objective.views_per_image=2"],
    "which images": OBJECTIVES["diet"],
}


@pytest.mark.parametrize("name", CROPS)
def test_objectives_on_crops_in_two_processes(launch, name):
    changes = [*CROPS[name], "objective.projector=32,16", "optim.epochs=1"]
    changes += ["optim.warmup_epochs=0", "run.log_every=1"]
    one, two = launch(1, "one", *changes), launch(2, "two", *changes)
    assert len(losses(one)) == 3
    # Weights may differ: batch norm of four images amplifies differences in rounding, and Adam makes whole steps of
    # tiny gradients. The losses still agree.
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert same_teachers(two)


def test_two_processes_with_bf16_and_compiled(launch):
    """Use the defaults of GPUs; bf16 rounds differently in smaller batches, so losses are only close."""
    gpu_like = ["run.precision=bf16", "run.compile=on", "optim.epochs=2"]
    one, two = launch(1, "one", "run.precision=bf16", "optim.epochs=2"), launch(2, "two", *gpu_like)
    assert len(losses(two)) == len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), rel=0.01)
    assert same_teachers(two)


def test_two_processes_share_the_statistics_of_batchnorm(launch):
    out = launch(2, "statistics", program=STATISTICS)
    assert same_teachers(out)
    assert torch.load(out / "teacher1.pt", weights_only=True)["1.running_mean"].abs().sum() > 0
