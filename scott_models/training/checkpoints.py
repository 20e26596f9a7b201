"""Checkpoints of a run, whole at any moment."""

import os
import shutil
import sys
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from ..writing import written_whole


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
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob(".*.pt"):  # by a process that was killed
            left.unlink()
        with written_whole(path) as beside, beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if best:
            with written_whole(self.folder / "best.pt") as beside:
                _link(path, beside)
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
    try:
        new.hardlink_to(path)
    except OSError:  # a disk without links
        shutil.copyfile(path, new)
