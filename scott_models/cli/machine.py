"""Commands about this machine: `scott bench` and `scott doctor`."""

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
    """Measure images per second and memory on this machine.

    Each speed is also given as a percentage of the peak: the speed of large matrix products on the same machine.

    For example:
        scott bench
        scott bench scott_3_16 scott_12_16 resnet50 --batch-size 1 64
        scott bench scott_12_16 --task step --precision bf16 --compiled
        scott bench scott_12_16 --task inference --reference checkout-of-the-original

    Args:
        models: SCOTT's models or any other timm models; the tasks step and inputs measure SCOTT's only.
        task: one or more of inference, step and inputs.
            A step of MIM-JEPA is loss, gradients and update; inputs is the preparation of its inputs.
        precision: one or more; bf16 means bf16 weights for inference, and autocast for a step.
        batch_size: number of images per batch, one or more.
        img_size: image size in pixels.
        compiled: also measure with torch.compile; compiling a step takes about a minute.
        device: auto uses the GPU if there is one.
        reference: folder of a checkout of the authors' code, measured next to ours in inference: unchanged, in fp32,
            not compiled.
        rounds: number of rounds. Each round measures every combination once; the median is shown.
        json: print JSON instead of a table.
    """
    from ..bench.measure import compare

    device = device if device != "auto" else "cuda" if _has_cuda() else "cpu"
    results = compare(models, task, precision, batch_size, img_size, compiled, device, reference, rounds)
    show_table([result.row() for result in results], json)


def doctor(*, speed: bool = True, json: FlagCreatePairsOff[bool] = False) -> None:
    """Show what this machine can do, and what is wrong with it.

    The table lists versions, GPU, bf16, caches, weights, and the speed measured in about ten seconds.

    For example:
        scott doctor
        scott doctor --no-speed --json

    Nothing is downloaded. The exit status is 1 if something is wrong, e.g. damaged weights.

    Args:
        speed: measure the speed of inference and pretraining for about ten seconds.
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
