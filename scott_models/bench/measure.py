"""Images a second and memory of any timm model and of MIM-JEPA's step, beside this machine's own matrix products.

Every contender runs in a process of its own, with its own memory, and they take turns: a round is one measurement of
each, so that whatever slows the machine slows all, and two are compared round by round.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..errors import UserError
from ..models.scott import MODELS
from ..progress import track
from ..signals import leave_to_parent
from .contenders import ORIGINAL, Contender, Task, count_gflop

WARM_UP, ROUND = 3, 1.0  # calls; seconds at least that a round measures


@dataclass(frozen=True)
class Result:
    """Hold what was measured: images a second in every round, peak memory, operations, and the peak beside it.

    Attributes:
        rounds: images a second, or FLOP/s of a product.
        peak_mib: of the process on a CPU, of tensors on a GPU, while measured; None where the system does not tell.
        gflop: of one image, counted; None where that has no meaning.
        peaks: FLOP/s of the matrix product in the same rounds.
    """

    contender: Contender
    rounds: list[float]
    peak_mib: float | None
    gflop: float | None
    peaks: list[float]

    @property
    def speed(self) -> float:
        """Return the median of images a second."""
        return median(self.rounds)

    @property
    def share(self) -> float | None:
        """Return the share of the machine's peak, the median of the rounds; None where the peak means nothing."""
        if self.gflop is None or self.contender.is_emulated:
            return None
        return median(mine * self.gflop * 1e9 / peak for mine, peak in zip(self.rounds, self.peaks))

    def times(self, other: "Result") -> float:
        """Return how many times as fast as the other this is, the median of the rounds."""
        return median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds))

    def row(self) -> dict[str, Any]:
        """Return the result as a row of a table or of JSON."""
        contender = self.contender
        return {
            "model": contender.model,
            "task": contender.task,
            "mode": "compiled" if contender.compiled else "eager",
            "precision": contender.precision,
            "batch": contender.batch,
            "pixels": contender.img_size,
            "images/s": round(self.speed, 2),
            "% of peak": None if self.share is None else round(100 * self.share, 1),
            "peak MiB": None if self.peak_mib is None else round(self.peak_mib),
        }


def compare(
    models: Sequence[str],
    tasks: Sequence[Task],
    precisions: Sequence[str],
    batches: Sequence[int],
    img_size: int,
    compiled: bool,
    device: str,
    reference: Path | None,
    rounds: int,
) -> list[Result]:
    """Measure every combination of the arguments of `scott bench`; those of one task and batch take turns.

    Raises:
        UserError: a device, model, size or reference that cannot be had.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a GPU that torch can use, found none")
    results = []
    for task, batch in product(tasks, batches):
        contenders = []
        for model in models:
            ours, plain = model in MODELS, Contender(model, task, "fp32", batch, img_size, device)
            if not ours and task != "inference":
                continue
            if reference and ours and "_vit_" not in model and task == "inference":
                contenders.append(replace(plain, model=ORIGINAL + model, reference=str(reference.resolve())))
            modes = (False, True) if compiled and task != "inputs" else (False,)
            kinds = product(precisions if task != "inputs" else ("fp32",), modes)
            contenders += [replace(plain, precision=kind, compiled=mode) for kind, mode in kinds]
        if not contenders:
            raise UserError(f"{task}: expected one of our models, {', '.join(MODELS)}, found {', '.join(models)}")
        results += measure(contenders, rounds)
    return results


def measure(contenders: Sequence[Contender], rounds: int = 5, threads: int | None = None) -> list[Result]:
    """Measure contenders, which take turns `rounds` times.

    Args:
        threads: of each on a CPU; by default torch's choice.

    Raises:
        UserError: a contender that cannot be built; with its own error.
    """
    products = list(dict.fromkeys(contender.matrix_product for contender in contenders))
    spawn = get_context("spawn")
    workers: list[tuple[Any, Connection]] = []
    try:
        for contender in [*contenders, *products]:  # what cannot be built is known before products take their time
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(contender, threads, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is noticed
            workers.append((process, ours))
        for process, connection in track(workers, "warming up", total=len(workers), unit="contenders"):
            _answer(process, connection)
        speeds: list[list[float]] = [[] for _ in workers]
        turns = [(worker, values) for _ in range(1 + rounds) for worker, values in zip(workers, speeds)]
        for (process, connection), values in track(turns, "measuring", total=len(turns), unit="turns"):
            connection.send("go")
            values.append(_answer(process, connection))
        memory = []
        for process, connection in workers:
            connection.send("stop")
            memory.append(_answer(process, connection))
    finally:
        for process, _ in workers:
            process.kill()
    speeds = [values[1:] for values in speeds]  # the first turn showed how many calls fill one
    peaks = dict(zip(products, speeds[len(contenders) :]))
    return [
        Result(contender, own, peak, count_gflop(contender), peaks[contender.matrix_product])
        for contender, own, peak in zip(contenders, speeds, memory)
    ]


def _answer(process: Any, connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except EOFError:
        process.join()
        raise UserError(f"bench: a measuring process ended with status {process.exitcode}; is memory short?") from None
    if isinstance(answer, str):
        raise UserError(f"bench: {answer}")
    return answer


def _work(contender: Contender, threads: int | None, connection: Connection) -> None:
    """Build a contender in a process of its own, warm up, then measure at each request."""
    leave_to_parent()
    if threads:
        torch.set_num_threads(threads)
    try:
        call, amount = contender.build()
        for _ in range(WARM_UP):
            call()
    except Exception as error:  # whatever it is, it is told where people look
        connection.send(f"{contender.model}, {contender.task}: {error or type(error).__name__}")
        return
    _forget_peak(contender)
    connection.send(None)
    calls = 1
    while connection.recv() == "go":
        call()  # a system may have taken back what an idle process held
        _wait(contender)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        _wait(contender)
        seconds = time.perf_counter() - started
        connection.send(calls * amount / seconds)
        calls = max(1, round(ROUND * calls / seconds))
    connection.send(_peak(contender))


def _wait(contender: Contender) -> None:
    if contender.device == "cuda":
        torch.cuda.synchronize()


def _forget_peak(contender: Contender) -> None:
    if contender.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (refs := Path("/proc/self/clear_refs")).exists():
        refs.write_text("5", encoding="utf-8")  # the kernel's highest resident size begins anew


def _peak(contender: Contender) -> float | None:
    if contender.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if not (status := Path("/proc/self/status")).exists():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
