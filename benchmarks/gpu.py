"""Every speed that docs/BENCHMARKS.md shows of a GPU, in one command of about ten minutes, and one table.

python benchmarks/gpu.py --data flowers102

DATA is a folder of real images (or what `scott pretrain --data` takes). Measured are inference and step of every model,
the inputs, whole training end to end with memory and the minutes that 300 epochs take, and the kernels a step consists
of. Writes benchmarks/results/gpu.json after each part, and from it the page.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
import timm
import torch
from torch.profiler import ProfilerActivity, profile

from scott_models.bench import measure
from scott_models.contenders import Contender
from scott_models.data import find_samples
from scott_models.pretrain import Recipe
from scott_models.pretrain.engine import Engine
from scott_models.pretrain.loader import Crops
from scott_models.pretrain.store import open_images
from scott_models.scott import MODELS

BESIDE = "vit_small_patch16_224"
EPOCHS = 300


@dataclass(frozen=True)
class Setting:
    """What the parts share; `batch` is the recipe's, `updates` how many are timed end to end."""

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
        for start in range(0, len(contenders), 8):  # a process each, which a GPU's memory holds
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


def training(setting: Setting, model: str) -> tuple[Engine, Callable[[int], float]]:
    """An engine on real images, and what makes so many updates and returns their seconds."""
    changes = [f"model.name={model}", f"model.img_size={setting.img_size}", f"optim.batch_size={setting.batch}"]
    recipe = Recipe.load("flowers102", [*changes, f"run.compile={'on' if setting.compiled else 'off'}"])
    with tempfile.TemporaryDirectory() as out:
        engine = Engine(recipe, Path(out))
    images = open_images(find_samples([setting.data], recipe.data.splits), recipe.data.short_side)
    order = engine.order(recipe, len(images))
    crops = Crops(images.on(engine.device), recipe.model.img_size, recipe.run.seed)
    batches = engine.load(order, crops, 1, sys.maxsize, recipe.run.workers)
    done = 0

    def run(updates: int) -> float:
        nonlocal done
        started = time.perf_counter()
        for _ in range(updates):
            done += 1
            values = engine.update(recipe, next(batches), done, sys.maxsize, order.steps)
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


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "end to end": end_to_end,  # first what matters most
    "profile": kernels,
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
    parser.add_argument("--updates", type=int, default=200, help="timed end to end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uncompiled", action="store_true")
    parser.add_argument("--out", type=Path, help="write the results here, and no page")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.out is None:
        parser.error("no GPU found; to try the script on a CPU give --out")
    setting = Setting(
        device, arguments.data, tuple(arguments.models), arguments.batch, arguments.img_size, arguments.updates,
        arguments.rounds, not arguments.uncompiled,
    )  # fmt: skip
    file = arguments.out or page.RESULTS / "gpu.json"
    kept = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    for name in arguments.parts:
        print(f"== {name}", file=sys.stderr, flush=True)
        kept["parts"][name] = PARTS[name](setting)
        kept["machine"] = torch.cuda.get_device_name() if device == "cuda" else page.machine("a trial on a CPU")
        kept["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, indent=1) + "\n")
        for caption, rows in kept["parts"][name].items():
            print(f"\n{caption}\n\n{page.table(rows)}")
    if arguments.out is None:
        page.write()


if __name__ == "__main__":
    main()
