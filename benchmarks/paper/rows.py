"""The rows of the paper's tables that begin with a pretraining on Flowers-102, and the folders of their runs."""

import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, get_args

from scott_models.bench.contenders import Contender, count_gflop
from scott_models.data.sources import find_samples
from scott_models.pretrain import Recipe

FOLDER = Path(__file__).parent
# In order of importance.
ON_GPU = (
    "scott_12_16", "scott_3_16", "scott_7_16", "scott_9_16", "blocks_masked", "inductive", "scott_vit_12_16",
    "mask_random_0.6",
)  # fmt: skip
ON_CPU = ("scott_12_16_cpu", "scott_9_16_cpu", "scott_7_16_cpu")
TOY = ("model.img_size=32", "data.short_side=36", "optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=4")
UNCOMPILED = "run.compile=off"
Step = Literal["target", "context", "paper"]  # of a row's probes; "paper": the target encoder by the paper's protocol
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True)
class Row:
    """Describe a row of the tables: the recipe of its pretraining, and the folder of its run."""

    name: str
    recipe: str
    changes: tuple[str, ...]
    run: Path

    @classmethod
    def load(cls, name: str, work: Path, changes: Sequence[str] = ()) -> "Row":
        """Read a row from its TOML file, where the first command is the pretraining, and add further changes."""
        command = first_command(name)
        own = [word for word in command if "=" in word]
        return cls(name, command[command.index("--recipe") + 1], (*own, *changes), work / name)

    def changed(self, *changes: str) -> "Row":
        """Return a copy of the row with further changes to its recipe."""
        return replace(self, changes=(*self.changes, *changes))

    @property
    def is_trained(self) -> bool:
        return (self.run / "export" / "model.safetensors").is_file()

    def scores(self, step: Step, seed: int) -> Path:
        """Return the path of the file with the scores of one step and seed."""
        return self.run / "probes" / f"{step}-{seed}.json"

    @cached_property
    def settings(self) -> Recipe:
        return Recipe.load(self.recipe, self.changes)

    def pretraining(self, flowers: Path, run: Path) -> list[str]:
        """Return the command that begins or continues a run of this row in a folder."""
        return [
            sys.executable, "-m", "scott_models.pretrain", self.recipe, *self.changes,
            "--data", str(flowers), "--out", str(run), "--resume",
        ]  # fmt: skip

    def petaflop(self, flowers: Path) -> float:
        """Count the operations of the whole pretraining, in PFLOP."""
        settings = self.settings
        batch = settings.optim.batch_size
        updates = settings.optim.epochs * (len(find_samples([flowers], settings.data.splits)) // batch)
        return updates * batch * gflop_of_step(settings.model.name, settings.model.img_size) / 1e6


@cache
def gflop_of_step(model: str, img_size: int) -> float:
    """Count the operations of one image in an update of MIM-JEPA, in GFLOP."""
    counted = count_gflop(Contender(model, "step", img_size=img_size))
    assert counted is not None
    return counted


def first_command(name: str) -> list[str]:
    """Split a row's first command into words."""
    return shlex.split(tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))["commands"][0])


def known_rows() -> list[str]:
    """List the rows that begin with a pretraining on Flowers-102."""
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return [name for name in names if {"pretrain", "flowers102:ROOT"} <= {*first_command(name)}]
