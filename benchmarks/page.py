"""Write docs/BENCHMARKS.md from benchmarks/results/*.json.

python benchmarks/page.py

Parts that a results file lacks are shown as not measured. No figure is typed by hand.
"""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"
PAGE = CHECKOUT / "docs" / "BENCHMARKS.md"
NOT_MEASURED = "Not measured."

INTRODUCTION = """# Benchmarks

`python benchmarks/cpu.py --reference CHECKOUT` and `python benchmarks/gpu.py --data IMAGES` made this page. Every
figure comes from their results in [benchmarks/results](../benchmarks/results). `scott bench` measures the same on your
machine.

How it is measured:

- Every contender runs in a process of its own, and the contenders take turns. A turn is one call, and then a second or
  more that is timed.
- *Images a second* are the median of the turns. "x" columns are medians of ratios within a turn.
- *% of peak* compares operations with a large matrix product of the same dtype in the same turns. torch counts the
  operations, two per multiply-accumulate: 11.16 GFLOP for an image through SCOTT-12/16, 51.4 for its pretraining step.
- *Peak MiB* is the largest resident memory of the process on a CPU, and of tensors on a GPU.
- *Original* is the authors' code as it is: fp32, uncompiled.
- A *step* is loss, gradients, AdamW and the target's update on ready inputs, with the paper's dropout."""

BESIDE = "vit_small_patch16_224"
# task, model, precision, reference ("% of peak" or another model), smallest value that meets the target
TARGETS = (
    ("inference", "scott_12_16", "fp32", "original scott_12_16", 1.3),
    ("inference", "scott_12_16", "fp32", "% of peak", 88),
    ("inference", "scott_12_16", "fp32", BESIDE, 0.84),
    ("inference", "scott_12_16", "bf16", "original scott_12_16", 4),
    ("inference", "scott_12_16", "bf16", "% of peak", 62),
    ("inference", "scott_12_16", "bf16", BESIDE, 0.95),
    ("step of scott_12_16", "scott_12_16", "bf16", "original scott_12_16", 3),
    ("step of scott_3_16", "scott_3_16", "bf16", "original scott_3_16", 3),
)
TARGETS_WITHOUT_AVX512 = (
    ("inference", "scott_12_16", "fp32", "% of peak", 88),
    ("inference", "scott_12_16", "fp32", BESIDE, 0.84),
    ("step of scott_12_16", "scott_12_16", "fp32", "original scott_12_16", 1.3),
    ("step of scott_3_16", "scott_3_16", "fp32", "original scott_3_16", 1.3),
)


def environment() -> dict[str, str]:
    """Return environment variables with which Python imports this checkout, even if the package is not installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}


def machine(what: str) -> str:
    """Describe this machine in words: `what` and the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    bf16 = " with AVX512-bf16" if "avx512_bf16" in flags else ""
    return f"{what}, {names[0] if names else platform.processor() or platform.machine()}{bf16}"


def table(rows: list[dict[str, Any]]) -> str:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def targets(tables: dict[str, Any], aims: Sequence[tuple[str, str, str, str, float]]) -> list[dict[str, Any]]:
    rows = []
    for task, model, precision, against, least in aims:
        column = against if against == "% of peak" else f"x {against}"
        found = {r["mode"]: r[column] for r in tables[task] if (r["model"], r["precision"]) == (model, precision)}
        rows.append({"target": f"{task.split()[0]} of {model}, {precision}: {column}", "at least": least, **found})
    return rows


AIMS = {"headline": TARGETS, "avx2": TARGETS_WITHOUT_AVX512}
CPU_PARTS = {
    "headline": "Beside the original and timm",
    "parts_of_a_step": "Our short ways beside torch's own",
    "models": "Every model",
    "inputs": "Feeding the step",
    "growth": "As work grows",
    "data": "As data grows",
    "start": "Start-up",
}
NARROW_PARTS = {"headline": "Beside the original and timm"}
AVX2_PARTS = {"avx2": "Beside the original and timm, in fp32"}
GPU_PARTS = {
    "end to end": "End to end",
    "profile": "Where a step's time goes",
    "inputs": "Crops and views alone",
    "max blur": "Max and blur, in three ways",
    "step": "Step and inputs",
    "inference": "Inference",
}

HOST_PARTS = {"host": "For a batch of 128 at 224 px"}


def section(title: str, file: Path, parts: dict[str, str]) -> str:
    if not file.exists():
        return f"## {title}\n\n{NOT_MEASURED}"
    results = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    blocks = [f"## {title}\n\n{results['machine']}; {versions}."]
    for name, headline in parts.items():
        blocks.append(f"### {headline}")
        tables = results["parts"].get(name)
        if tables is None:
            blocks.append(NOT_MEASURED)
            continue
        if name in AIMS:
            blocks.append(table(targets(tables, AIMS[name])))
        for caption, rows in tables.items():
            blocks.append(f"{caption[:1].upper()}{caption[1:]}:\n\n{table(rows)}" if len(tables) > 1 else table(rows))
    return "\n\n".join(blocks)


def write() -> None:
    notes = (RESULTS / "notes.md").read_text(encoding="utf-8").strip()
    cpu = section("CPU", RESULTS / "cpu.json", CPU_PARTS)
    narrow = section("CPU whose AVX512 is no faster than AVX2", RESULTS / "narrow.json", NARROW_PARTS)
    avx2 = section("CPU without AVX512", RESULTS / "avx2.json", AVX2_PARTS)
    gpu = section("One GPU", RESULTS / "gpu.json", GPU_PARTS)
    host = section("What a GPU's step costs the processor", RESULTS / "host.json", HOST_PARTS)
    PAGE.write_text(f"{INTRODUCTION}\n\n{cpu}\n\n{narrow}\n\n{avx2}\n\n{gpu}\n\n{host}\n\n{notes}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
