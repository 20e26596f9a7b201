"""What a run folder remembers: the last whole checkpoint, and a line of metrics now and then."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DataError, RecipeError


class Checkpoint:
    """Weights, the optimiser's state and the number of updates done, in one file that is whole at any moment."""

    def __init__(self, path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, total: int) -> None:
        self.path, self.objective, self.optimizer, self.total = path, objective, optimizer, total

    def save(self, step: int) -> None:
        """Write beside and rename, so that a cut leaves the last whole checkpoint."""
        partial_path = self.path.with_suffix(".partial")
        with partial_path.open("wb") as file:
            torch.save(
                {
                    "step": step,
                    "total": self.total,
                    "objective": self.objective.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        partial_path.replace(self.path)

    def load(self) -> int:
        """Fill the objective and the optimiser; returns the number of updates done.

        Raises:
            DataError: a damaged or foreign file.
            RecipeError: a run of another number of updates, because its images were others.
        """
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            step, total = state["step"], state["total"]
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch, pickle and zip errors of many kinds
            raise DataError(
                f"{self.path}: expected a checkpoint of this run, found a damaged or foreign file"
            ) from error
        if total != self.total:
            raise RecipeError(
                f"{self.path}: expected images for {total} updates, found images for {self.total}; "
                "resume with the same --data"
            )
        return step


class Log:
    """metrics.jsonl: a line now and then, with the speed since the line before."""

    def __init__(self, path: Path, done: int) -> None:
        """Go on after update `done`, forgetting what a cut run logged beyond it."""
        kept = [line for line in path.read_text().splitlines() if _step(line) <= done] if path.exists() and done else []
        path.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.step, self.time = done, time.monotonic()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def write(self, step: int, batch: int, **values: float) -> None:
        now = time.monotonic()
        speed = (step - self.step) * batch / (now - self.time)
        self.step, self.time = step, now
        self.file.write(json.dumps({"step": step, **values, "images_per_second": round(speed, 2)}) + "\n")
        self.file.flush()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short with the power
        return float("inf")
