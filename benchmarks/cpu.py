"""Measure all speeds of a CPU in docs/BENCHMARKS.md; this takes about half an hour on a quiet machine.

python benchmarks/cpu.py --reference CHECKOUT --threads 2

CHECKOUT is the authors' code (https://github.com/inescopresearch/scott). After each part the script writes
benchmarks/results/cpu.json (avx2.json for the part avx2), and makes the page from these files. With --parts only the
named parts are measured again, and the results of the other parts are kept:

python benchmarks/cpu.py --reference CHECKOUT --parts headline start
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import kernels
import numpy as np
import page
import timm
import torch
from original import OriginalStep
from PIL import Image

from scott_models.bench.contenders import ORIGINAL, Contender
from scott_models.bench.measure import Result, measure
from scott_models.models.scott import MODELS

RESULTS = Path(__file__).parent / "results" / "cpu.json"
BESIDE = "vit_small_patch16_224"
HELD_TO_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
COUNTS = (1_000, 10_000, 100_000)  # of synthetic images


def ratios(results: list[Result], against: Result) -> list[dict[str, Any]]:
    return [{**result.row(), f"x {against.contender.model}": round(result.times(against), 2)} for result in results]


def headline(reference: str, threads: int) -> dict[str, Any]:
    """Measure the targets in turns: inference beside the original and timm, and the step beside the original."""
    original = Contender(f"{ORIGINAL}scott_12_16", "inference", reference=reference)
    ours = [Contender("scott_12_16", "inference", p, compiled=c) for p in ("fp32", "bf16") for c in (False, True)]
    beside = [Contender(BESIDE, "inference", p, compiled=c) for p in ("fp32", "bf16") for c in (False, True)]
    results = measure([original, *ours, *beside], 5, threads)
    rows = ratios(results, results[0])
    for row, result in zip(rows, results):
        same = [r for r in results if r.contender.model == BESIDE and r.contender.precision == row["precision"]]
        mode = next(r for r in same if r.contender.compiled == result.contender.compiled)
        row[f"x {BESIDE}"] = round(result.times(mode), 2)
    tables = {"inference": rows}
    for name in ("scott_12_16", "scott_3_16"):
        original = OriginalStep(ORIGINAL + name, "step", reference=reference)
        modes = (("fp32", False), ("bf16", False), ("bf16", True))
        ours = [Contender(name, "step", precision, compiled=mode) for precision, mode in modes]
        results = measure([original, *ours], 5, threads)
        tables[f"step of {name}"] = ratios(results, results[0])
    return tables


def avx2(reference: str, threads: int) -> dict[str, Any]:
    """Measure the fp32 targets of processors without AVX512, with torch and its libraries held to AVX2."""
    original = Contender(f"{ORIGINAL}scott_12_16", "inference", reference=reference)
    with patch.dict(os.environ, HELD_TO_AVX2):  # the contenders' processes inherit it
        results = measure([original, *(Contender(name, "inference") for name in ("scott_12_16", BESIDE))], 7, threads)
        tables = {"inference": ratios(results, results[0])}
        for row, result in zip(tables["inference"], results):
            row[f"x {BESIDE}"] = round(result.times(results[-1]), 2)
        for name in ("scott_12_16", "scott_3_16"):
            step = OriginalStep(ORIGINAL + name, "step", reference=reference)
            results = measure([step, Contender(name, "step")], 5, threads)
            tables[f"step of {name}"] = ratios(results, results[0])
    return tables


def models(reference: str, threads: int) -> dict[str, Any]:
    """Measure every model, in small and large batches."""
    rows = []
    names = (*MODELS, BESIDE)
    for batch in (1, 16, 64):
        rows += [r.row() for r in measure([Contender(n, "inference", "bf16", batch) for n in names], 3, threads)]
    fp32 = [r.row() for r in measure([Contender(name, "inference", "fp32") for name in names], 3, threads)]
    steps = [r.row() for r in measure([Contender(name, "step", "bf16") for name in MODELS], 3, threads)]
    return {"inference, bf16": rows, "inference, fp32": fp32, "step, bf16": steps}


def inputs(reference: str, threads: int) -> dict[str, Any]:
    """Measure crops, views and masks beside the step that takes them, on the same cores."""
    rows = []
    for name, size, batch in (("scott_3_16", 112, 64), ("scott_3_16", 224, 64), ("scott_12_16", 224, 64)):
        common = {"batch": batch, "img_size": size}
        feeding, step = measure(
            [Contender(name, "inputs", **common), Contender(name, "step", "bf16", **common)], 5, threads
        )
        rows.append(
            {
                "model": name,
                "pixels": size,
                "batch": batch,
                "inputs, images/s": round(feeding.speed, 1),
                "step, images/s": round(step.speed, 1),
                "inputs' share of the time, %": round(100 * step.speed / (step.speed + feeding.speed), 1),
            }
        )
    return {"inputs": rows}


def growth(reference: str, threads: int) -> dict[str, Any]:
    """Measure time and memory of step and inference against batch, pixels and depth, with the slope in logarithms."""
    grown: dict[str, list[Contender]] = {
        "step against batch": [Contender("scott_3_16", "step", "bf16", b) for b in (8, 16, 32, 64, 128)],
        "inference against batch": [Contender("scott_12_16", "inference", "bf16", b) for b in (1, 4, 16, 64, 128)],
        "step against pixels": [Contender("scott_3_16", "step", "bf16", 8, s) for s in (112, 224, 448, 672)],
        "inference against pixels": [Contender("scott_12_16", "inference", "bf16", 4, s) for s in (112, 224, 448, 672)],
        "step against depth": [Contender(f"scott_{d}_16", "step", "bf16", 8) for d in (3, 7, 9, 12)],
    }
    tables = {}
    for name, contenders in grown.items():
        results = measure(contenders, 3, threads)
        varied = name.rsplit(" ", 1)[1]
        sizes = [
            {"batch": c.batch, "pixels": c.img_size, "depth": int(c.model.split("_")[1])}[varied] for c in contenders
        ]
        seconds = [r.contender.batch / r.speed for r in results]
        slopes = [None, *np.round(np.diff(np.log(seconds)) / np.diff(np.log(sizes)), 2).tolist()]
        tables[name] = [
            {
                "model": r.contender.model,
                varied: n,
                "ms": round(1e3 * s, 1),
                "slope": slope,
                "peak MiB": round(r.peak_mib),
            }
            for r, n, s, slope in zip(results, sizes, seconds, slopes)
        ]
    return tables


OPEN = """
import sys, time
from scott_models.data import find_samples
from scott_models.data.loader import Crops, Order
from scott_models.data.decoded import open_images
def memory():  # private memory of this process in MiB, without the mapped file of the cache
    lines = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(lines["RssAnon"].split()[0]) / 1024
before = memory()
start = time.perf_counter()
samples = find_samples([sys.argv[1]])
found = time.perf_counter()
images = open_images(samples, 320)
opened = time.perf_counter()
Crops(images, 32, 0).__getitems__(Order(len(images), 64, 0).of_update(1))
first = time.perf_counter()
print(found - start, opened - found, first - opened, memory() - before)
"""


def data(reference: str, threads: int) -> dict[str, Any]:
    """Measure a run's start-up against the number of images of 40 x 40 pixels, first decoded and then cached."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, made = Path(folder) / "images", 0
        noise = np.random.default_rng(0)
        for count in COUNTS:
            for i in range(made, count):
                path = root / f"{i // 1000:03}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path, compress_level=0)
            made = count
            for state in ("decoded", "cached"):
                command = [sys.executable, "-c", OPEN, str(root)]
                environment = {**page.environment(), "SCOTT_MODELS_CACHE": str(Path(folder) / "cache")}
                ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                find, opening, first, memory = (float(number) for number in ran.stdout.split())
                rows.append(
                    {
                        "images": count,
                        "state": state,
                        "find files, s": round(find, 2),
                        "open, s": round(opening, 2),
                        "first batch, ms": round(1e3 * first, 1),
                        "memory grown, MiB": round(memory),
                    }
                )
    return {"images": rows}


def start(reference: str, threads: int) -> dict[str, Any]:
    """Measure seconds from the start of Python to the end of a command; medians of turns."""
    commands = {
        "import timm": ["-c", "import timm"],
        "import scott_models": ["-c", "import scott_models"],
        "scott --help": ["-c", "import sys; sys.argv = ['scott', '--help']; from scott_models.cli import main; main()"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(9):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=page.environment())
            seconds[name].append(time.perf_counter() - started)
    return {"start": [{"what": name, "s": round(statistics.median(times), 2)} for name, times in seconds.items()]}


def parts_of_a_step(reference: str, threads: int) -> dict[str, Any]:
    """Measure each of our short ways beside torch's own."""
    torch.set_num_threads(threads)
    return {"parts of a step": kernels.rows()}


PARTS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    part.__name__: part for part in (headline, avx2, parts_of_a_step, models, inputs, growth, data, start)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a checkout of the authors' code")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    reference = str(Path(arguments.reference).resolve())
    for name in arguments.parts:
        print(f"== {name}", file=sys.stderr, flush=True)
        file = RESULTS.with_name("avx2.json") if name == "avx2" else RESULTS
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"parts": {}}
        kept["parts"][name] = PARTS[name](reference, arguments.threads)
        kept["machine"] = page.machine(f"{arguments.threads} threads of {platform.machine()}")
        kept["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        page.write()


if __name__ == "__main__":
    main()
