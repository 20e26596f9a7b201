"""Every code block of README, CONTRIBUTING and docs runs, and the examples of every command parse.

The commands are run as they are written, in a folder that holds what the documents talk about; sizes alone are shrunk,
by `smaller` below: images of 32 px, an epoch, batches of four, one look instead of seconds of measuring.
"""

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import replace
from functools import wraps
from io import StringIO
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scott_models import cli
from scott_models.bench import doctor
from scott_models.bench.measure import Result
from scott_models.finetune.recipe import FinetuneRecipe
from scott_models.pretrain import Budget, Recipe
from scott_models.probes import evaluate
from scott_models.release import upload
from scott_models.training import engine
from scott_models.training.settings import Settings
from scott_models.weights import entries

from .documents import CHECKOUT, DOCUMENTS, LANGUAGES, Block, Command, blocks, commands, examples
from .hub_server import Hub
from .hub_world import World

# How commands begin that cannot run here, and why. What such a command asks of our own ones is parsed all the same.
ELSEWHERE = {
    "pip install": "everything is installed here; .ci/run installs as README says (that the extras exist is tested)",
    "pytest": "it is what runs this",
    "ruff": ".ci/run runs it",
    "mypy": ".ci/run runs it",
    "bash .ci/run": "it runs this",
    "accelerate launch": "it needs several GPUs",
    "python benchmarks/paper/reproduce.py": "it takes hours; tests/benchmarks/test_reproduce.py has it at toy scale",
    "python benchmarks/paper/lease.py": "tests/benchmarks/test_reproduce.py makes these calls at toy scale",
    "python3": "the same, on a machine that is lent",
    "python benchmarks/heads.py": "it measures; tests/bench/test_measure.py has it at toy scale",
    "python benchmarks/paper/rehearse_lease.py": "tests/benchmarks/test_reproduce.py calls what it calls",
    "python benchmarks/sample_efficiency/study.py": "it takes hours; test_sample_efficiency.py has it at toy scale",
    "python benchmarks/sample_efficiency/trial.py": "it takes an hour; test_sample_efficiency.py has it at toy scale",
    "python benchmarks/trial/trial.py": "it takes a night; tests/benchmarks/test_trial.py has it at toy scale",
    "python benchmarks/trial/dense.py": "it wants what that leaves; tests/benchmarks/test_trial.py has its score",
    "python benchmarks/release.py": "it wants what that leaves; tests/benchmarks/test_reproduce.py makes one of it",
    "python benchmarks/release_head.py": "it wants Flowers-102's 102 classes; test_reproduce.py has two",
}
# What the text around a document's Python takes for granted.
PRELUDES = {
    "README.md": "import torch; images, visible = torch.rand(1, 3, 224, 224), torch.rand(1, 196) < 0.5",
    "docs/evaluation.md": "import torch; images = torch.rand(2, 3, 112, 112)",
}
SMALL = {
    "model": {"img_size": 32},
    "optim": {"epochs": 1, "warmup_epochs": 0, "batch_size": 4},
    "monitor": {"every": 1},
    "run": {"precision": "no", "compile": "off", "workers": 0},
}
# Stands for timm's script of that name, which is not in its wheel, and for one of the reader's own.
TRAIN = """
import argparse, sys, timm
parser = argparse.ArgumentParser()
parser.add_argument("data", nargs="?")
parser.add_argument("--model", default="scott_3_16")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--pretrained", action="store_true")
given = parser.parse_args()
import scott_models
timm.create_model(given.model, pretrained=True, num_classes=given.num_classes)
"""
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
RUNNABLE = [block for block in BLOCKS if block.language in LANGUAGES]
SHOWN = {"scott": cli.DESCRIPTION}
SHOWN["python -m scott_models.pretrain"] = runpy.run_module("scott_models.pretrain.__main__")["EXAMPLES"]
SHOWN |= {f"scott {name}": str(command.__doc__) for name, command in cli.COMMANDS.items()}


@pytest.fixture(autouse=True, scope="module")
def smaller(tmp_path_factory):
    """The same commands on less, none of which may ask another machine or write into the checkout."""
    load, epochs, connect = Settings.load.__func__, Budget._epochs, socket.socket.connect

    def load_small(kind, name, changes=()):
        recipe = load(kind, name, changes)  # what is wrong with it is told before anything is shrunk
        if Path(name).name == "recipe.toml":  # of a run, which is small already
            return recipe
        for section, fields in SMALL.items():
            recipe = recipe.changed(section, **fields)
        return recipe

    def measure(several, rounds, threads=None):
        """Each contender called once: processes of their own would import torch anew, each of them."""
        several = [replace(contender, batch=2, img_size=32) for contender in several]
        for contender in several:
            contender.build()[0]()
        return [Result(contender, [1.0], None, None, [1.0]) for contender in several]

    def only_loopback(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        return connect(self, address)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is not worth sharing
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SCOTT_MODELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(Settings, "load", classmethod(load_small))
        patched.setattr(Budget, "_epochs", lambda *given: min(1, epochs(*given)))
        patched.setattr(engine, "TIMED_SECONDS", 0)
        patched.setattr(evaluate, "EPOCHS", 2)
        patched.setattr("scott_models.bench.measure.measure", measure)
        for name, value in {"SECONDS": 0, "BATCH": 2, "PIXELS": 32}.items():
            patched.setattr(doctor, name, value)
        ours = tmp_path_factory.mktemp("checkout") / entries.PATH.name
        shutil.copy(entries.PATH, ours)
        patched.setattr(entries, "PATH", ours)
        patched.setattr(upload, "CHECKOUTS", ours)
        patched.setattr(socket.socket, "connect", only_loopback)
        yield
    torch.set_num_threads(threads)


class Place:
    """A folder that a document's commands run in, one after the other, and the names of its Python."""

    def __init__(self, folder: Path, prelude: str = "") -> None:
        self.folder, self.prelude = folder, prelude
        self.names: dict[str, object] = {}
        self.done: set[int] = set()

    def run_python(self, block: Block) -> None:
        """What comes before a block belongs to it, and runs once."""
        if not self.names:
            exec(self.prelude, self.names)
        for each in RUNNABLE:
            before = (each.document, each.language) == (block.document, "python") and each.line <= block.line
            if before and each.line not in self.done:
                self.done.add(each.line)
                with chdir(self.folder):
                    exec(compile("\n" * each.line + each.code, f"<{each}>", "exec"), self.names)

    def run(self, command: Command) -> None:
        """In this process if it is Python's, and as a process if not."""
        words = command.words
        trains = {"pretrain", "finetune", "scott_models.pretrain"} & {*words}
        if trains and "--out" in words and "--resume" not in words:
            run = self.folder / words[words.index("--out") + 1]
            if "--finish" in words:
                as_if_stopped(run)
            else:  # a document may make the same run twice, for two readers; none of them has it yet
                shutil.rmtree(run, ignore_errors=True)
        if command.starts("scott publish") and "--dry-run" not in words:
            return self.upload(words)
        output, handler = StringIO(), signal.getsignal(signal.SIGTERM)
        with (
            chdir(self.folder),
            patch.dict(os.environ, {**command.environment, "HOME": str(self.folder)}),
            patch.object(sys, "argv", sys.argv),
            patch.object(sys, "path", [*sys.path]),
            patch.object(tempfile, "tempdir", tempfile.gettempdir()),
            redirect_stdout(output),
        ):
            try:
                with ending_well(command):
                    self.start([os.path.expanduser(word) for word in words])
            finally:
                signal.signal(signal.SIGTERM, handler)  # told_in_a_sentence has another
            self.hand_on(command, output.getvalue())
        print(output.getvalue())

    def hand_on(self, command: Command, text: str) -> None:
        """What a command said to the file or the command behind it."""
        if command.file:
            Path(command.file).write_text(text)
        if command.reader:
            done = subprocess.run(command.reader.words, check=True, text=True, input=text, stdout=subprocess.PIPE)
            self.hand_on(command.reader, done.stdout)

    def start(self, words: list[str]) -> None:
        match words:
            case ["scott", *_]:
                sys.argv = words
                cli.main()
            case ["python", "-m", module, *given] if module.startswith("scott_models"):
                sys.argv = [module, *given]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["python", script, *given] if script.endswith(".py"):
                sys.argv, sys.path[0] = [script, *given], str(Path(script).resolve().parent)
                with closing_pages(script):
                    runpy.run_path(script, run_name="__main__")
            case _:
                print(subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout, end="")

    def upload(self, words: list[str]) -> None:
        """By a process of its own, as the Hub's client needs it, to a Hub on loopback that this folder is linked to."""
        with Hub() as hub, tempfile.TemporaryDirectory() as folder:
            world = World(hub, Path(folder))
            for name in ("pyproject.toml", entries.PATH.name):
                shutil.copy(CHECKOUT / name, world.site / name)
            for path in self.folder.iterdir():
                if not (world.site / path.name).exists():
                    (world.site / path.name).symlink_to(path)
            process = world.start("from scott_models.cli import main; main()", *words[1:], HF_TOKEN=hub.may_write)
            shown, errors = process.communicate()
            assert process.returncode == 0, errors
            assert "published and read back" in shown


def as_if_stopped(run: Path) -> None:
    """Let a run that has ended have many epochs still before it."""
    recipe = run / "recipe.toml"
    recipe.write_text(re.sub(r"^epochs = .*$", "epochs = 50.0", recipe.read_text(), flags=re.MULTILINE))
    shutil.rmtree(run / "export")


@contextmanager
def ending_well(command: Command):
    """Around a command that may leave by sys.exit."""
    try:
        yield
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{command}: exit status {end.code}")


@contextmanager
def closing_pages(script: str):
    """What would serve a page until Ctrl-C serves it once."""
    with pytest.MonkeyPatch.context() as patched:
        if script == "examples/app.py":
            import gradio

            def look_once(page):
                with urlopen(page.local_url) as answer:
                    assert answer.status == 200
                page.close()

            patched.setattr(gradio.Blocks, "block_thread", look_once)
        yield


def elsewhere(command: Command) -> str | None:
    """Why it cannot run here."""
    return next((reason for words, reason in ELSEWHERE.items() if command.starts(words)), None)


def parse(command: Command) -> bool:
    """Let a command of ours read its arguments, and its recipe, and do nothing; whether there was one."""
    words, calls = command.words, []
    if "-m" in words and words[words.index("-m") + 1] == "scott_models.pretrain":
        words = words[words.index("-m") - 1 :]
    if command.starts("pip install"):
        extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {*",".join(re.findall(r"\[(.*)\]", command.words[-1])).split(",")} - {""} <= extras.keys()
    if words[0] != "scott" and words[1:3] != ["-m", "scott_models.pretrain"]:
        return False

    def told(name, function):
        @wraps(function)
        def tell(*given, **named):
            calls.append(name)
            if kind := {"pretrain": Recipe, "finetune": FinetuneRecipe}.get(name):
                kind.load(named.get("recipe") or "small", *given)

        return tell

    with pytest.MonkeyPatch.context() as patched:
        for name, function in cli.COMMANDS.items():
            patched.setitem(cli.COMMANDS, name, told(name, function))
        for name in ("pretrain", "finish"):
            patched.setattr(f"scott_models.pretrain.{name}", lambda *given, name=name, **named: calls.append(name))
        patched.setattr(sys, "argv", words[2:] if words[0] != "scott" else words)
        with ending_well(command):
            cli.main() if words[0] == "scott" else runpy.run_module("scott_models.pretrain", run_name="__main__")
    return len(calls) == 1 or "--help" in words


def pictures(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Two classes of small pictures, a folder each."""
    for name, colour in (("blue", (40, 60, 220)), ("red", (120, 20, 20))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-20, 20, (72, 80 + i, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def ready(smaller, recording, tmp_path_factory):
    """A folder with everything the documents talk about."""
    folder, rng = tmp_path_factory.mktemp("ready"), np.random.default_rng(0)
    pictures(folder / "photos", 4, rng)
    for split in ("mine/train", "mine/test", "flowers102/train", "flowers102/val", "flowers102/test"):
        pictures(folder / split, 3, rng)
    for i, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        Image.open(folder / "photos" / "red" / f"{i}.png").save(folder / name)
    for name in ("examples", "benchmarks"):
        shutil.copytree(CHECKOUT / name, folder / name)
    (folder / "train.py").write_text(TRAIN)
    tensors, settings = recording  # as the original writes a run folder; README has its files at hand
    state = {name.removeprefix("target."): value for name, value in tensors.items() if name.startswith("target.")}
    for logs in (folder / "logs", folder):
        logs.mkdir(exist_ok=True)
        torch.save(state, logs / "target-encoder_checkpoint.pth")
        (logs / "config.yaml").write_text(yaml.safe_dump({"model": {"num_heads": settings["num_heads"]}}))
    place = Place(folder)
    for line in (
        "scott pretrain --recipe smoke --data photos --out runs/photos",
        "scott probe --train mine/train --test mine/test --probes linear --no-control --export classifier",
    ):
        place.run(*commands(line))
    return folder


@pytest.fixture(scope="module")
def place_of(ready, tmp_path_factory):
    """Each document's own copy of that folder."""
    places: dict[Path, Place] = {}

    def copy(file: str, to: str) -> None:
        (os.link if os.path.getsize(file) > 1e6 else shutil.copy)(file, to)  # nobody writes into large files

    def place_of(document: Path) -> Place:
        if document not in places:
            folder = tmp_path_factory.mktemp(document.stem) / "here"
            shutil.copytree(ready, folder, copy_function=copy)
            places[document] = Place(folder, PRELUDES.get(str(document.relative_to(CHECKOUT)), ""))
        return places[document]

    return place_of


@pytest.mark.docs
@pytest.mark.needs("gradio", "datasets")
@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_block(block, place_of):
    place = place_of(block.document)
    if block.language == "python":
        place.run_python(block)
        return
    left = []
    for command in commands(block.code):
        if reason := elsewhere(command):
            assert parse(command) or "scott_models.pretrain" not in command.words
            left.append(f"{command}: {reason}")
        else:
            place.run(command)
    if len(left) == len(commands(block.code)):
        pytest.skip("; ".join(left))


EXAMPLES = [(of, command) for of, text in SHOWN.items() for command in examples(text)]


@pytest.mark.parametrize(("of", "command"), EXAMPLES, ids=str)
def test_example_parses(of, command):
    """COMMAND stands for any of them; a script of the reader's is none of ours."""
    words = ["list" if word == "COMMAND" else word for word in command.words]
    assert parse(Command(words)) or command.starts("python train.py")


def test_every_command_shows_examples_of_itself():
    for of in SHOWN:
        assert any(command.starts(of) for command in examples(SHOWN[of])), of


def test_what_cannot_run_is_still_there():
    """A reason for a command that no document has any more is to be taken out."""
    found = [command for block in RUNNABLE if block.language == "sh" for command in commands(block.code)]
    found += [command.reader for command in found if command.reader]
    assert [words for words in ELSEWHERE if not any(command.starts(words) for command in found)] == []
    assert {*PRELUDES} <= {str(block.document.relative_to(CHECKOUT)) for block in RUNNABLE}


def test_no_code_is_hidden_from_these_tests():
    """By a fence of another spelling, or by another name of a language."""
    for document in DOCUMENTS:
        assert document.read_text().count("```") == 2 * len(blocks(document)), document
    assert {block.language for block in BLOCKS} <= {*LANGUAGES, "toml", "json"}


def test_shells_lines():
    code = 'A=1 B="2 3" scott x | jq ".[] | .a" > y.json  # why\n\npip install ".[a]" \\\n  && scott z\n# nothing\n'
    assert commands(code) == [
        Command(["scott", "x"], {"A": "1", "B": "2 3"}, reader=Command(["jq", ".[] | .a"], file="y.json")),
        Command(["pip", "install", ".[a]"]),
        Command(["scott", "z"]),
    ]
    for line in ("a; b", "a $(b)", "a &", "a $b"):
        with pytest.raises(ValueError, match="expected commands, &&, | and > alone"):
            commands(line)
