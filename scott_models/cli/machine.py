"""Commands about this machine."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from .output import show_table


def bench(
    models: Positional[tuple[str, ...]] = ("scott_12_16", "vit_small_patch16_224"),
    /,
    *,
    task: tuple[Literal["inference", "step", "inputs"], ...] = ("inference",),
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16"),
    batch_size: tuple[int, ...] = (16,),
    img_size: int = 224,
    compiled: FlagCreatePairsOff[bool] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    reference: Path | None = None,
    rounds: int = 5,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Measure images a second and memory on this machine.

    Speeds stand beside what the machine's matrix products reach.

    For example:
        scott bench
        scott bench scott_3_16 scott_12_16 resnet50 --batch-size 1 64
        scott bench scott_12_16 --task step --precision bf16 --compiled
        scott bench scott_12_16 --task inference step --reference checkout-of-the-original

    Args:
        models: ours or any of timm's; a step and its inputs are ours alone.
        task: inference; step, MIM-JEPA's loss, gradients and update; inputs, what a step is fed with; one or more.
        precision: bf16 is the weights' own in inference, autocast in a step.
        batch_size: images at once.
        img_size: pixels.
        compiled: also by torch.compile, which takes a minute before a step.
        device: auto is the GPU if there is one.
        reference: a checkout of the authors' code, measured beside ours, in fp32 and uncompiled, as it is.
        rounds: turns of every contender; the median counts.
        json: print JSON instead of a table.
    """
    from ..bench.measure import compare

    device = device if device != "auto" else "cuda" if _has_cuda() else "cpu"
    results = compare(models, task, precision, batch_size, img_size, compiled, device, reference, rounds)
    show_table([result.row() for result in results], json)


def doctor(*, speed: bool = True, json: FlagCreatePairsOff[bool] = False) -> None:
    """Show what this machine can do, and what is wrong with it.

    Versions, GPU, bf16, caches, weights, and ten seconds of speed.

    For example:
        scott doctor
        scott doctor --no-speed --json

    Nothing is downloaded. Exit status 1 if something is wrong, e.g. damaged weights.

    Args:
        speed: whether to measure inference and pretraining for about ten seconds.
        json: print JSON instead of a table.
    """
    from ..bench.doctor import examine

    findings = examine(speed=speed)
    show_table([asdict(finding) for finding in findings], json)
    if any(finding.state == "wrong" for finding in findings):
        sys.exit(1)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
