"""Measure the processor's work for a GPU's training step: milliseconds of Python per batch, without the GPU's own.

python benchmarks/host.py --batch 128 --workers 4

Three things are measured, as medians: the time to draw boxes, colours and masks; the main process's time to receive a
batch from worker processes that draw ahead; and the bookkeeping of an update, on the real list of parameters with one
number in each parameter. The script writes benchmarks/results/host.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import page
import torch

from scott_models.data.crops import make_crop_table
from scott_models.data.decoded import Images
from scott_models.data.loader import Boxes, Crops, Planned, iterate
from scott_models.data.order import Order
from scott_models.data.random_streams import Draws
from scott_models.data.views import TwoViews
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective, draw_mask
from scott_models.training.optimizer import apply_gradients, build_optimizer

SIZE, STORED, COUNT = 224, (320, 427), 8189  # pixels of a crop and of stored images; images
KEY = np.uint64(7)


class WithoutPixels(Crops):
    """Stand for crops of images on a GPU; this machine needs no GPU."""

    on_device = True


def crops() -> Crops:
    sizes = np.tile(np.array(STORED), (COUNT, 1))
    images = Images([], STORED[0], "", np.zeros(COUNT, dtype=bool), sizes, np.arange(COUNT) * sizes[0].prod() * 3, None)
    return WithoutPixels(images, SIZE, 0)


def median(call: Callable[[int], object], rounds: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure the median milliseconds of a call; the function receives the number of the call."""
    times = []
    for number in range(rounds + 3):
        started = clock()
        call(number)
        times.append(clock() - started)
    return round(1e3 * statistics.median(times[3:]), 3)


def drawn(batch: int, rounds: int) -> dict[str, float]:
    """Time the work of the worker processes, which draw ahead."""
    indices, boxes = torch.arange(batch), Boxes(crops())
    sizes, offsets = boxes.sizes[:batch], boxes.offsets[:batch]
    mask = draw_mask(Recipe.load("flowers102").mask)

    def draws(number: int) -> Draws:
        return Draws.keyed(KEY, torch.full_like(indices, number), indices)

    calls: dict[str, Callable[[int], object]] = {
        "boxes": lambda number: make_crop_table(sizes, offsets, draws(number)),
        "colours of both views": lambda number: TwoViews().draw(draws(number)),
        "masks": lambda number: mask((SIZE // 16,) * 2, batch=batch, generator=draws(number)),
    }
    return {f"drawing {what}": median(call, rounds) for what, call in calls.items()}


def received(objective: Any, batch: int, workers: int, rounds: int, pause: float) -> dict[str, float]:
    """Time the main process: its processor time for a batch, and the time until the batch is there."""
    order = Order(COUNT, batch, 0)
    batches = iterate(Planned(crops(), objective.drawing), order.pieces(1, sys.maxsize), workers)

    def wait() -> None:
        time.sleep(pause)  # as long as the GPU's step

    spent, passed = [], []
    for _ in range(rounds + 3):
        wait()
        started, began = time.thread_time(), time.perf_counter()
        next(batches)
        spent.append(time.thread_time() - started)
        passed.append(time.perf_counter() - began)
    del batches
    return {
        "receiving a batch, processor time": round(1e3 * statistics.median(spent[3:]), 3),
        "receiving a batch, until it is there": round(1e3 * statistics.median(passed[3:]), 3),
    }


def bookkeeping(objective: Any, rounds: int) -> dict[str, float]:
    """Time an update's bookkeeping; each parameter has one number, so that almost only Python is timed."""
    for parameter in objective.parameters():
        parameter.data = torch.zeros([1] * parameter.ndim)
    optimizer = build_optimizer(objective)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients, loss = [torch.zeros_like(parameter) for parameter in trained], torch.zeros(())

    def update(number: int) -> None:
        for parameter, gradient in zip(trained, gradients):
            parameter.grad = gradient
        apply_gradients(optimizer, loss)

    return {
        "gradients and optimiser": median(update, rounds),
        "the target's average": median(lambda number: objective.after_step(number + 1, 10**6), rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scott_12_16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4, help="worker processes that draw ahead")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--pause", type=float, default=29, help="milliseconds of a GPU's step, between batches")
    parser.add_argument("--out", type=Path, default=page.RESULTS / "host.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    objective = build_objective(Recipe.load("flowers102", [f"model.name={arguments.model}"]))
    found = {
        **drawn(arguments.batch, arguments.rounds),
        **received(objective, arguments.batch, arguments.workers, arguments.rounds, arguments.pause / 1e3),
        **bookkeeping(objective, arguments.rounds),
    }
    rows = [{"what": what, "ms a batch": value} for what, value in found.items()]
    settings = {name: getattr(arguments, name) for name in ("model", "batch", "workers", "rounds", "pause")}
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    kept = {
        "machine": page.machine("one thread of each process"),
        "versions": versions,
        "settings": settings,
        "parts": {"host": {"host": rows}},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(page.table(rows))


if __name__ == "__main__":
    main()
