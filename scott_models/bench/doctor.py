"""Examination of a machine for this package: versions, devices, caches, weights, and a short test of its speed."""

import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from .. import __version__
from ..data.decoded import find_cache_folder
from ..errors import WeightsError
from ..progress import track
from ..training.engine import has_bf16
from ..weights.entries import manifest
from ..weights.files import find_file, resolve
from ..weights.timm_configs import describe_location
from .contenders import Contender, Task

State = Literal["ok", "note", "wrong"]
PACKAGES = ("torch", "torchvision", "timm", "huggingface_hub", "safetensors")
EXTRAS = {"accelerate": "train", "datasets": "data", "imagehash": "eval", "matplotlib": "eval"}
SECONDS = 4  # of each speed test
MODEL, BATCH, PIXELS = "scott_3_16", 16, 224


@dataclass(frozen=True)
class Finding:
    """Hold one line: what was examined, whether it is as it should be, and what was found."""

    what: str
    state: State
    found: str


def examine(*, speed: bool = True) -> list[Finding]:
    """Examine the machine, in the order in which a person would ask; nothing is downloaded.

    Args:
        speed: also measure this machine for about ten seconds.
    """
    findings = [*_packages(), *_device(), *_caches(), *_weights()]
    return findings + _speeds() if speed else findings


def _packages() -> list[Finding]:
    found = [Finding("scott_models", "ok", __version__), Finding("Python", "ok", platform.python_version())]
    found += [Finding(name, "ok", version(name)) for name in PACKAGES]
    for name, extra in EXTRAS.items():
        try:
            found.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "note", f"not installed; pip install 'scott_models[{extra}]' if you need it"))
    return found


def _device() -> list[Finding]:
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found = [
            Finding("GPU", "ok", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} in all")
        ]
    else:
        found = [Finding("GPU", "note", "none that torch can use: expect pretraining to take hours")]
    found.append(Finding("CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"))
    found.append(
        Finding("bf16", "ok", "multiplied by the processor itself")
        if has_bf16()
        else Finding("bf16", "note", "not multiplied by the processor itself: training takes fp32")
    )
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    absent = "none found: run.compile=on is not possible on a CPU"
    found.append(Finding("C++ compiler", "ok" if compiler else "note", compiler or absent))
    return found


def _caches() -> list[Finding]:
    from huggingface_hub import constants

    images = find_cache_folder()
    size = sum(file.stat().st_size for file in images.rglob("*") if file.is_file()) / 2**30
    hub = "offline (HF_HUB_OFFLINE), " if constants.HF_HUB_OFFLINE else ""
    token = "a token is set" if os.environ.get("HF_TOKEN") or Path(constants.HF_TOKEN_PATH).is_file() else "no token"
    return [
        Finding("decoded images", "ok", f"{images}: {size:.1f} GiB used, {_free(images):.0f} GiB free"),
        Finding("Hub", "ok", f"{hub}{constants.HF_HUB_CACHE}, {constants.ENDPOINT}, {token}"),
    ]


def _free(folder: Path) -> float:
    """Return the free space, in GiB, of the disk that holds a folder or would hold it."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free / 2**30


def _weights() -> list[Finding]:
    found = []
    for tag, entry in manifest().items():
        try:
            if find_file(tag):
                found.append(Finding(tag, "ok", f"verified, {resolve(tag)}"))
            elif entry["repository"]:
                found.append(
                    Finding(tag, "note", f"{entry['bytes'] / 1e6:.0f} MB would come from {describe_location(tag)}")
                )
            else:
                found.append(Finding(tag, "wrong", "neither here nor published"))
        except WeightsError as error:
            found.append(Finding(tag, "wrong", str(error)))
    return found


def _speeds() -> list[Finding]:
    precision = "bf16" if has_bf16() else "fp32"
    words: dict[Task, str] = {"inference": "inference", "step": "pretraining"}
    return [
        Finding(
            what, "ok", f"{_speed(task, precision):.0f} images/s, {MODEL}, {PIXELS} px, {precision}, batches of {BATCH}"
        )
        for task, what in track(words.items(), "measuring", total=len(words), unit="tests")
    ]


def _speed(task: Task, precision: str) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    call, images = Contender(MODEL, task, precision, BATCH, PIXELS, device).build()
    call()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        calls += 1
    return calls * images / (time.perf_counter() - started)
