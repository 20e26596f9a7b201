"""What a run folder holds: recipe.toml, environment.json, metrics.jsonl, checkpoints/, export/, README.md."""

import json
import math
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from .monitor import Health, verdict
from .recipe import Recipe

PACKAGES = ("scott_models", "torch", "torchvision", "timm", "accelerate", "numpy", "PIL")


class Checkpoints:
    """Weights, the optimiser's state and the number of updates done, in files that are whole at any moment.

    The last `keep` are kept, and `best.pt`. Of several processes the first saves, and none shows in what is saved, so
    that a run may go on with another number of them. A thread writes while the run goes on, one file at a time. As a
    context manager, the checkpoints are left when the last file is written.

    Args:
        parts: the modules whose weights are kept, by name.
        images: the digest of the images of the run, which goes on with the same only.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        images: str,
        keep: int = 2,
    ) -> None:
        self.folder, self.parts, self.optimizer, self.images, self.keep = folder, parts, optimizer, images, keep
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: tuple[Path, Future[None]] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.wait()
        except DataError:
            if kind is None:  # or else what went wrong first is told
                raise

    def files(self) -> list[Path]:
        """The checkpoints of updates, the last first."""
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def save(self, step: int, *, best: bool = False) -> None:
        """Copy the state as it is now and leave it to a thread to write, after the file before is written.

        Raises:
            as `wait`, of the file before.
        """
        self.wait()
        state = copy_to_host(
            {
                "step": step,
                "images": self.images,
                "objective": {name: part.state_dict() for name, part in self.parts.items()},
                "optimizer": self.optimizer.state_dict(),
            }
        )
        path = self.folder / f"step_{step:09d}.pt"
        self.writing = path, self.thread.submit(self._write, path, state, best)

    def wait(self) -> None:
        """Wait until what was saved last is a whole file.

        Raises:
            DataError: no room; the last good checkpoint is named.
        """
        if self.writing is None:
            return
        (path, writing), self.writing = self.writing, None
        try:
            writing.result()
        except (OSError, RuntimeError) as error:  # torch's writer wraps some of the former in the latter
            raise DataError(f"{path}: cannot be written ({error}); make room; {self.last_good()}") from error

    def _write(self, path: Path, state: dict[str, Any], best: bool) -> None:
        """Write beside and rename, so that a cut leaves the last whole checkpoint."""
        partial = self.folder / "partial"
        try:
            self.folder.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            if best:
                _link(path, partial)
                partial.replace(self.folder / "best.pt")
        except (OSError, RuntimeError):
            partial.unlink(missing_ok=True)
            raise
        for old in self.files()[self.keep :]:
            old.unlink()

    def last_good(self) -> str:
        """Tell where a run that stops can go on from, once the file under way is written."""
        with suppress(DataError):  # a file that fails is not the last good one
            self.wait()
        files = self.files()
        return f"the last good checkpoint is {files[0]}; go on with --resume" if files else "there is no checkpoint yet"

    def load(self) -> int:
        """Fill the modules and the optimiser from the last checkpoint that is whole; returns the updates done.

        Damaged ones after it are renamed, so that they do not count among those kept. Without any nothing was done.

        Raises:
            DataError: none is whole.
            RecipeError: a run of other images.
        """
        files = self.files()
        for path in files:
            try:
                if broken := zipfile.ZipFile(path).testzip():  # torch does not compare the checksums it wrote
                    raise ValueError(f"{broken} was changed")
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                step, images = state["step"], state["images"]
                for name, part in self.parts.items():
                    part.load_state_dict(state["objective"][name])
                self.optimizer.load_state_dict(state["optimizer"])
            except Exception as error:  # torch, pickle and zip errors of many kinds
                print(f"{path}: damaged or foreign, trying an earlier one ({error})", file=sys.stderr)
                continue
            if images != self.images:
                raise RecipeError(
                    f"{path}: expected the images this run began with, found others; give the same --data"
                )
            for newer in files[: files.index(path)]:
                with suppress(FileNotFoundError):  # another process was first
                    newer.rename(newer.with_suffix(".damaged"))
            return step
        if files:
            raise DataError(f"{self.folder}: expected a checkpoint of this run, found damaged or foreign files only")
        return 0


def copy_to_host(state: Any) -> Any:
    """Copy nested dictionaries and lists, their tensors to the CPU, where no update changes them."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, list):
        return [copy_to_host(value) for value in state]
    if not isinstance(state, dict):
        return state
    copied = copy(state)  # which keeps the versions of modules, an attribute of a state_dict
    copied.update((key, copy_to_host(value)) for key, value in state.items())
    return copied


def _link(path: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(path)
    except OSError:  # a disk without links
        shutil.copyfile(path, new)


class Log:
    """metrics.jsonl: a line now and then, with the speed since the line before, and the monitor's lines."""

    def __init__(
        self,
        path: Path,
        done: int,
        batch: int,
        steps_per_epoch: int,
        kind_of_health: type = Health,
        *,
        writes: bool = True,
    ) -> None:
        """Go on after update `done`, forgetting what a cut run logged beyond it.

        Args:
            kind_of_health: what the monitor's lines are read into.
            writes: False for all processes but the first.
        """
        kept = [line for line in path.read_text().splitlines() if _step(line) <= done] if path.exists() and done else []
        if writes:
            write_whole(path, "".join(line + "\n" for line in kept))
        self.batch, self.steps_per_epoch = batch, steps_per_epoch
        lines = [json.loads(line) for line in kept]
        self.health = {line["step"]: kind_of_health(**line["monitor"]) for line in lines if "monitor" in line}
        self.file = path.open("a") if writes else None
        self.step, self.time = done, time.monotonic()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file:
            self.file.close()

    def write(self, step: int, **values: float) -> dict[str, float]:
        """A line of an update's values; returns it."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch / (now - self.time)
        self.step, self.time = step, now
        line = {"step": step, "epoch": step / self.steps_per_epoch, **values, "images_per_second": round(speed, 2)}
        self._append(line)
        return line

    def monitored(self, step: int, health: Any) -> bool:
        """Note an encoder's health, at step 0 that of random weights; returns whether it is the best so far."""
        if step in self.health:  # a resumed run's random weights
            return False
        best = step > 0 and all(health.better_than(earlier) for at, earlier in self.health.items() if at > 0)
        self.health[step] = health
        self._append({"step": step, "epoch": step / self.steps_per_epoch, "monitor": asdict(health)})
        return best

    def _append(self, line: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(finite(line)) + "\n")
            self.file.flush()


def finite(value: Any) -> Any:
    """Replace floats that are infinite or NaN by None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short with the power
        return float("inf")


def write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that a cut leaves what was there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write_environment(path: Path, data: Sequence[str | Path], **facts: Any) -> None:
    """Add what this start of the run was given and ran on to a list in a JSON file."""
    starts = json.loads(path.read_text()) if path.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    starts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "python": platform.python_version(),
            "packages": {name: import_module(name).__version__ for name in PACKAGES},
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "gpu": gpu,
            "data": [str(source) for source in data],
            **facts,
        }
    )
    write_whole(path, json.dumps(starts, indent=2) + "\n")


def exported(start: dict[str, Any]) -> str:
    """Tell which encoder a run exports, by one of the starts in its environment.json; older ones had no name for it."""
    return start.get("export") or ("context" if "context" in str(start["command"]) else "target")


def write_readme(
    path: Path, recipe: Recipe, sources: Sequence[str | Path], images: int, health: dict[int, Health]
) -> None:
    """Say what the run is, how it fares and what to do with it."""
    done = max(health, default=0)
    start = recipe.model.start
    state = f"After update {done:,}: {verdict(health[done], health[0], start)}." if done else "Not yet watched."
    if recipe.optim.finish_updates:
        planned = round(recipe.optim.epochs * (images // recipe.optim.batch_size))
        state += (
            f" From update {recipe.optim.finish_after:,} of {planned:,} on it was brought to an end in "
            f"{recipe.optim.finish_updates:,} updates."
        )
    small, size = recipe.small_img_size, recipe.model.img_size
    sizes = f"{small}, then {size}" if small else f"{size}"
    rows = "".join(f"| {step or start} | {' | '.join(_cells(value))} |\n" for step, value in sorted(health.items()))
    write_whole(
        path,
        f"""# {recipe.model.name}, pretrained by {recipe.objective.title}

{images:,} images of {", ".join(map(str, sources))}; {recipe.optim.epochs:g} epochs; batches of
{recipe.optim.batch_size}; {sizes} px; seed {recipe.run.seed}. The whole recipe is recipe.toml, what it
ran on environment.json, every figure metrics.jsonl.

{state}

| update | RankMe | spread | mean cosine | kNN % | ridge % |
|---|---|---|---|---|---|
{rows}
Once the run has ended, `export/` is a timm model:

```python
import scott_models, timm

model = timm.create_model("local-dir:{path.parent / "export"}", pretrained=True)  # num_classes=10 adds a classifier
```

A run that was stopped goes on with the command that started it and `--resume`; `scott pretrain --out {path.parent}
--finish --minutes 30` brings it to its end in that time.
""",
    )


def _cells(health: Health) -> list[str]:
    values = (health.rankme, health.spread, health.cosine, health.knn, health.ridge)
    return ["-" if value is None else f"{value:.{digits}f}" for value, digits in zip(values, (1, 2, 2, 1, 1))]
