"""Write and read metrics.jsonl and environment.json of a run folder.

A run folder also holds recipe.toml, checkpoints/, export/ and README.md.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..console import say
from ..writing import explain_failure, to_json, write_text_whole

PACKAGES = ("scott_models", "torch", "torchvision", "timm", "accelerate", "numpy", "PIL")


class Log:
    """Write metrics.jsonl: lines with the values of an update and the speed since the line before, and monitor lines.

    Attributes:
        health: what the monitor measured, by update; 0 is the random weights.
    """

    def __init__(
        self,
        path: Path,
        done: int,
        batch: int,
        steps_per_epoch: int,
        kind_of_health: type,
        *,
        writes: bool = True,
    ) -> None:
        """Go on after update `done`, and remove the lines that an interrupted run logged after it.

        Args:
            path: of metrics.jsonl.
            done: updates done so far.
            batch: images per update.
            kind_of_health: class that the monitor's lines are read into.
            writes: False for all processes but the first.
        """
        lines = [line for line in read_whole_lines(path) if line["step"] <= done] if done else []
        if writes:
            write_text_whole(path, "".join(to_json(line) + "\n" for line in lines))
        self.batch, self.steps_per_epoch = batch, steps_per_epoch
        self.health = {line["step"]: kind_of_health(**line["monitor"]) for line in lines if "monitor" in line}
        self.file = path.open("a", encoding="utf-8") if writes else None
        self.step, self.time = done, time.monotonic()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file:
            with explain_failure(Path(self.file.name)):
                self.file.close()

    def write(self, step: int, **values: float) -> dict[str, float]:
        """Write a line with the values of an update, its epoch and its speed, and return the line."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch / (now - self.time)
        self.step, self.time = step, now
        line = {"step": step, "epoch": step / self.steps_per_epoch, **values, "images_per_second": round(speed, 2)}
        self._append(line)
        return line

    def monitored(self, step: int, health: Any) -> bool:
        """Write what the monitor measured, and return True if it is the best so far. Step 0 is the random weights."""
        if step in self.health:  # the random weights of a resumed run, measured again
            return False
        best = step > 0 and all(health.better_than(earlier) for at, earlier in self.health.items() if at > 0)
        self.health[step] = health
        self._append({"step": step, "epoch": step / self.steps_per_epoch, "monitor": asdict(health)})
        return best

    def _append(self, line: dict[str, Any]) -> None:
        if self.file:
            with explain_failure(Path(self.file.name)):
                self.file.write(to_json(line) + "\n")
                self.file.flush()


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, without those that are damaged, e.g. cut short by a power failure.

    Return an empty list if there is no file.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def has_control(path: Path) -> bool:
    """Return True if metrics.jsonl holds what the monitor measured before the first update."""
    return any(line["step"] == 0 and "monitor" in line for line in read_whole_lines(path))


def write_environment(path: Path, data: Sequence[str | Path], **facts: Any) -> None:
    """Append one start of a run to the list in a JSON file: its command, data, packages and machine.

    A damaged file is renamed, and a new list begins.

    Args:
        path: of environment.json.
        data: sources of images.
        facts: more entries, which JSON can hold.
    """
    starts = _read_starts(path) if path.exists() else []
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
    write_text_whole(path, to_json(starts, indent=2) + "\n")


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """Read the starts of a run from environment.json; rename the file and return an empty list if it is damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(starts, list):
            return starts
    except ValueError:
        pass
    damaged = path.rename(path.with_suffix(".damaged"))
    say(f"{path}: damaged, and renamed to {damaged.name}; the starts of the run so far are not in the new file")
    return []


def find_exported_encoder(start: dict[str, Any]) -> str:
    """Return the name of the encoder that a run exports, from one of the starts in its environment.json."""
    # Older runs did not store the name: their command has it.
    return start.get("export") or ("context" if "context" in str(start["command"]) else "target")


def count_minutes(lines: Sequence[dict[str, Any]], batch: int) -> int:
    """Return the minutes spent on updates, rounded; arguments as in `count_seconds`."""
    return round(count_seconds(lines, batch) / 60)


def count_seconds(lines: Sequence[dict[str, Any]], batch: int) -> float:
    """Return the seconds spent on updates.

    Args:
        lines: of metrics.jsonl.
        batch: images per update.
    """
    lines = [line for line in lines if "loss" in line]
    spans = zip([0, *(line["step"] for line in lines)], lines)
    return sum((line["step"] - before) * batch / line["images_per_second"] for before, line in spans)
