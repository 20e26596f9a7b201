"""Save and load the checkpoints of a run. A checkpoint file is complete at any moment."""

import os
import shutil
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import say
from ..errors import DataError, RecipeError, UserError, WritingError
from ..writing import explain_failure, written_whole


class Checkpoints:
    """Save and load weights, the optimiser's state and the number of updates done.

    The last `keep` checkpoints and `best.pt` are kept. With several processes, only the first one saves. A checkpoint
    does not depend on the number of processes, so a run may resume with another number. A thread writes one file at a
    time while the run goes on. As a context manager, wait at the end until the last file is written.

    Args:
        parts: the modules whose weights are saved, by name.
        identity: digests of what a run must not change when it resumes, such as its images, by name. A checkpoint of
            an older version may lack some of them.
        keep: number of checkpoints to keep, besides `best.pt`.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        identity: dict[str, str],
        keep: int = 2,
    ) -> None:
        self.folder, self.parts, self.optimizer, self.identity, self.keep = folder, parts, optimizer, identity, keep
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.wait()
        except DataError:
            if kind is None:  # otherwise the first error is the one to report
                raise

    def files(self) -> list[Path]:
        """List the checkpoint files of updates (not `best.pt`), the newest first."""
        return sorted(self.folder.glob("step_*.pt"), reverse=True)

    def save(self, step: int, *, best: bool = False) -> None:
        """Wait for the previous file, copy the current state to the CPU and let a thread write the copy.

        Args:
            step: number of updates done.
            best: also write this state as `best.pt`.

        Raises:
            DataError: the previous file cannot be written, as in `wait`.
        """
        self.wait()
        state = copy_to_host(
            {
                "step": step,
                **self.identity,
                "objective": {name: part.state_dict() for name, part in self.parts.items()},
                "optimizer": self.optimizer.state_dict(),
            }
        )
        path = self.folder / f"step_{step:09d}.pt"
        self.writing = self.thread.submit(self._write, path, state, best)

    def wait(self) -> None:
        """Wait until the checkpoint that was saved last is completely written.

        Raises:
            DataError: the file cannot be written, for example on a full disk; the message names the last good
                checkpoint.
        """
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        try:
            writing.result()
        except WritingError as error:
            raise DataError(f"{error}; {self.last_good()}") from error

    def _write(self, path: Path, state: dict[str, Any], best: bool) -> None:
        """Write a temporary file and rename it, so that an interruption leaves the last complete checkpoint."""
        with explain_failure(path):
            self.folder.mkdir(exist_ok=True)
            for left in self.folder.glob(".*.pt"):  # left behind by a process that was killed
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
        """Wait for the file being written, then say in a sentence from which checkpoint the run can resume."""
        with suppress(DataError):  # a file that cannot be written is not the last good one
            self.wait()
        files = self.files()
        return f"the last good checkpoint is {files[0]}; go on with --resume" if files else "there is no checkpoint yet"

    def load(self) -> int:
        """Load the newest complete checkpoint into the modules and the optimiser.

        Newer checkpoints that are damaged are renamed, so that they do not count among the `keep` checkpoints.

        Returns:
            the number of updates done; 0 if there is no checkpoint.

        Raises:
            DataError: there are checkpoints, but all of them are damaged.
            RecipeError: the checkpoint is of a run on other images or labels.
        """
        files = self.files()
        for path in files:
            try:
                if broken := zipfile.ZipFile(path).testzip():  # torch.load verifies no checksums
                    raise ValueError(f"{broken} was changed")
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                step = state["step"]
                self._check_identity(path, state)  # first, since other images or labels may need other shapes
                for name, part in self.parts.items():
                    part.load_state_dict(state["objective"][name])
                self.optimizer.load_state_dict(state["optimizer"])
            except UserError:
                raise
            except Exception as error:  # torch, pickle and zipfile raise many kinds of errors
                say(f"{path}: damaged or foreign, trying an earlier one ({error})")
                continue
            for newer in files[: files.index(path)]:
                with suppress(FileNotFoundError):  # another process has renamed the file already
                    newer.rename(newer.with_suffix(".damaged"))
            return step
        if files:
            raise DataError(f"{self.folder}: expected a checkpoint of this run, found damaged or foreign files only")
        return 0

    def _check_identity(self, path: Path, state: dict[str, Any]) -> None:
        for name, digest in self.identity.items():
            if state.get(name, digest) != digest:
                raise RecipeError(
                    f"{path}: expected the {name} this run began with, found others; give the same {name}, or choose "
                    "another --out"
                )


def copy_to_host(state: Any) -> Any:
    """Copy nested dictionaries and lists, with tensors copied to the CPU, so that no later update changes them."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, list):
        return [copy_to_host(value) for value in state]
    if not isinstance(state, dict):
        return state
    copied = copy(state)  # keeps the attribute of a state_dict that holds the versions of its modules
    copied.update((key, copy_to_host(value)) for key, value in state.items())
    return copied


def _link(path: Path, new: Path) -> None:
    try:
        new.hardlink_to(path)
    except OSError:  # a disk without hard links
        shutil.copyfile(path, new)
