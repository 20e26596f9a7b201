"""Measure all speeds of a GPU in docs/BENCHMARKS.md, in about ten minutes.

python benchmarks/gpu.py --data flowers102

DATA is a folder of real images, or another source that `scott pretrain --data` takes. The parts are: training end to
end, with memory and the minutes for 300 epochs; the kernels of a step; crops and views alone; other ways to compute the
tokenizer's pools; the step of each model, and its inputs; inference of each model. After each part the script writes
benchmarks/results/gpu.json, and at the end the page.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
import timm
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from scott_models.bench.contenders import Contender
from scott_models.bench.measure import measure
from scott_models.data.crops import cut_boxes, find_largest_box
from scott_models.data.decoded import open_images
from scott_models.data.loader import Boxes, Crops, Planned
from scott_models.data.order import Order
from scott_models.data.random_streams import Draws
from scott_models.data.sources import find_samples
from scott_models.models.max_blur_pool import MaxBlurPool
from scott_models.models.scott import MODELS
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.training.course import Course
from scott_models.training.engine import Engine

BESIDE = "vit_small_patch16_224"
EPOCHS = 300


@dataclass(frozen=True)
class Setting:
    """Hold the settings of all parts; `updates` is the number of updates, or of calls, that are timed."""

    device: str
    data: str
    models: tuple[str, ...]
    batch: int
    img_size: int
    updates: int
    rounds: int
    compiled: bool


def inference(setting: Setting) -> dict[str, Any]:
    rows = []
    for batch in (1, setting.batch):
        modes = (False, True) if setting.compiled else (False,)
        contenders = [
            Contender(model, "inference", precision, batch, setting.img_size, setting.device, mode)
            for model in (*setting.models, BESIDE)
            if model != BESIDE or setting.img_size == 224
            for precision in ("fp32", "bf16")
            for mode in modes
        ]
        for start in range(0, len(contenders), 8):  # each has its own process, and eight fit in a GPU's memory
            rows += [result.row() for result in measure(contenders[start : start + 8], setting.rounds)]
    return {"inference": rows}


def step(setting: Setting) -> dict[str, Any]:
    contenders = [
        Contender(model, "step", "bf16", setting.batch, setting.img_size, setting.device, setting.compiled)
        for model in setting.models
    ]
    feeding = Contender(
        setting.models[0], "inputs", "fp32", setting.batch, setting.img_size, setting.device, setting.compiled
    )
    return {"step and inputs": [result.row() for result in measure([*contenders, feeding], setting.rounds)]}


def prepared(setting: Setting, model: str) -> tuple[Engine, Recipe, Order, Crops]:
    """Prepare an engine, its recipe, and crops of real images."""
    changes = [f"model.name={model}", f"model.img_size={setting.img_size}", f"optim.batch_size={setting.batch}"]
    recipe = Recipe.load("flowers102", [*changes, f"run.compile={'on' if setting.compiled else 'off'}"])
    with tempfile.TemporaryDirectory() as out:
        engine = Engine(recipe, Path(out), build_objective)
    images = open_images(find_samples([setting.data], recipe.data.splits), recipe.data.short_side)
    order = engine.order(recipe, len(images))
    crops = engine.crop(images, recipe)
    return engine, recipe, order, crops


def training(setting: Setting, model: str) -> tuple[Engine, Callable[[int], float]]:
    """Build an engine on real images, and a function that makes a number of updates and returns the seconds."""
    engine, recipe, order, crops = prepared(setting, model)
    batches = engine.load(order, crops, 1, sys.maxsize, recipe.run.workers)
    done = 0

    def run(updates: int) -> float:
        nonlocal done
        started = time.perf_counter()
        for _ in range(updates):
            done += 1
            values = engine.update(recipe, next(batches), done, Course(sys.maxsize), order.steps)
        values["loss"].item()
        return time.perf_counter() - started

    return engine, run


def end_to_end(setting: Setting) -> dict[str, Any]:
    rows = []
    for model in setting.models:
        engine, run = training(setting, model)
        run(min(20, setting.updates))
        on_gpu = engine.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = run(setting.updates)
        speed = setting.updates * setting.batch / seconds
        rows.append(
            {
                "model": model,
                "batch": setting.batch,
                "pixels": setting.img_size,
                "images/s": round(speed, 1),
                "peak GB": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
                f"minutes for {EPOCHS} epochs of 8,189 images": round(EPOCHS * 8189 / speed / 60, 1),
            }
        )
    return {"end to end": rows}


def kernels(setting: Setting) -> dict[str, Any]:
    engine, run = training(setting, setting.models[0])
    run(min(20, setting.updates))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if engine.device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        run(3)
    events = profiled.key_averages()
    on_gpu = engine.device.type == "cuda"
    times = {event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) for event in events}
    counts = {event.key: event.count for event in events}
    total = sum(times.values())
    most = sorted(times, key=times.__getitem__, reverse=True)[:25]
    return {
        "profile": [
            {
                "kernel": name[:80].replace("|", "/"),
                "calls a step": round(counts[name] / 3, 1),
                "ms a step": round(times[name] / 3e3, 3),
                "%": round(100 * times[name] / total, 1),
            }
            for name in most
        ]
    }


def timed(setting: Setting, function: Callable[[], object]) -> dict[str, float]:
    """Measure milliseconds of a call until the device is done, and until the call has only launched its kernels."""
    wait = torch.cuda.synchronize if setting.device == "cuda" else lambda: None
    for _ in range(3):
        function()
    wait()
    started = time.perf_counter()
    for _ in range(setting.updates):
        function()
    told = time.perf_counter() - started
    wait()
    done = time.perf_counter() - started
    return {"ms": round(1e3 * done / setting.updates, 3), "ms to launch": round(1e3 * told / setting.updates, 3)}


def inputs(setting: Setting) -> dict[str, Any]:
    """Time the work before the first layer, part by part."""
    engine, _, order, crops = prepared(setting, setting.models[0])
    objective, pixels = engine.objective, crops.images.pixels
    assert pixels is not None, "images are expected to fit into memory"
    pieces = order.pieces(1, sys.maxsize)
    boxes, key = Boxes(crops), Planned(crops, None).key
    where, [table] = boxes.__getitems__(next(pieces).places)
    largest = find_largest_box(crops.images.sizes)

    def plan() -> Any:
        return objective.drawing(Draws.keyed(key, *where.unbind(1)))

    def cut() -> torch.Tensor:
        return cut_boxes(pixels, table, largest, crops.size, engine.compiled)

    drawn, made = plan(), cut()
    calls: dict[str, Callable[[], object]] = {
        "boxes drawn, by the CPU": lambda: boxes.__getitems__(next(pieces).places),
        "colours and masks drawn, by the CPU": plan,
        "crops": cut,
        "views and masks": lambda: objective.inputs(made, drawn),
    }
    return {"inputs": [{"what": what, **timed(setting, call)} for what, call in calls.items()]}


def slices(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Blur a map by 1-2-1 along one dimension, at every second place; the map has a border of one cell."""
    length = x.shape[dim] - 2
    first, middle, last = (x[(slice(None),) * dim + (slice(i, i + length, 2),)] for i in range(3))
    return 0.25 * first + 0.5 * middle + 0.25 * last


def max_then_blur(blur: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Build the pool with another blur; the blur takes a map with a border of zeros."""

    def pool(x: torch.Tensor) -> torch.Tensor:
        x = torch.maximum(x[:, :, :, :-1], x[:, :, :, 1:])
        return blur(F.pad(torch.maximum(x[:, :, :-1], x[:, :, 1:]), (1, 1, 1, 1)))

    return pool


def by_nine(x: torch.Tensor) -> torch.Tensor:
    """Blur a map with a border of one cell by the sum of nine slices."""
    rows, columns, kernel = x.shape[2] - 1, x.shape[3] - 1, (0.25, 0.5, 0.25)
    parts = [
        kernel[i] * kernel[j] * x[:, :, i : i + rows - 1 : 2, j : j + columns - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    return sum(parts[1:], parts[0])


def pools(setting: Setting) -> dict[str, Any]:
    """Time the two pools of the tokenizer, in bf16 and channels last, and other ways to compute the same pools."""
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "as it is": MaxBlurPool().to(setting.device),
        "nine slices": max_then_blur(by_nine),
        "three slices, twice": max_then_blur(lambda x: slices(slices(x, 2), 3)),
    }
    rows = []
    for channels, side in ((64, setting.img_size // 2), (384, setting.img_size // 8)):
        shape = setting.batch, channels, side, side
        x = torch.randn(shape, device=setting.device, dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        expected = ways["as it is"](x)
        for name, way in ways.items():
            for compiled in (False, True) if setting.compiled else (False,):
                torch.compiler.reset()  # all ways are one function to the compiler, which allows eight versions
                pool = torch.compile(way) if compiled else way
                torch.testing.assert_close(pool(x), expected, rtol=0.02, atol=0.02)
                there = x.detach().requires_grad_()
                grad = torch.ones_like(expected)
                forward = timed(setting, torch.no_grad()(lambda pool=pool, x=x: pool(x)))
                both = timed(setting, lambda pool=pool, x=there, grad=grad: torch.autograd.grad(pool(x), x, grad))
                rows.append(
                    {
                        "map": " x ".join(map(str, shape)),
                        "way": name,
                        "compiled": compiled,
                        "forward, ms": forward["ms"],
                        "forward and backward, ms": both["ms"],
                    }
                )
    return {"max blur": rows}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "end to end": end_to_end,  # the most important part first
    "profile": kernels,
    "inputs": inputs,
    "max blur": pools,
    "step": step,
    "inference": inference,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["scott_12_16", *(m for m in MODELS if m != "scott_12_16")])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--updates", type=int, default=200, help="timed updates or calls; default 200")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uncompiled", action="store_true")
    parser.add_argument("--out", type=Path, help="file for the results; the page is not written")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.out is None:
        parser.error("no GPU found; to try the script on a CPU give --out")
    setting = Setting(
        device, arguments.data, tuple(arguments.models), arguments.batch, arguments.img_size, arguments.updates,
        arguments.rounds, not arguments.uncompiled,
    )  # fmt: skip
    file = arguments.out or page.RESULTS / "gpu.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"parts": {}}
    failed = []
    for name in arguments.parts:
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            kept["parts"][name] = PARTS[name](setting)
        except Exception:  # any error: the other parts are still worth measuring
            traceback.print_exc()
            failed.append(name)
            continue
        kept["machine"] = torch.cuda.get_device_name() if device == "cuda" else page.machine("a trial on a CPU")
        kept["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
        for caption, rows in kept["parts"][name].items():
            print(f"\n{caption}\n\n{page.table(rows)}")
    if arguments.out is None:
        page.write()
    if failed:
        sys.exit(f"failed, with their words above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
