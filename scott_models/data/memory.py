"""Limits for data kept in memory to avoid computing it again: shares of a GPU's free memory and of available RAM."""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE_OF_DEVICE = 0.3  # of a GPU's free memory
SHARE_OF_RAM = 0.25  # of the available RAM
UNKNOWN_RAM = 2**32  # bytes, assumed if the machine does not report its memory
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def find_room(device: torch.device) -> int:
    """Return the bytes that one object kept may take: 0.3 of a GPU's free memory, or 0.25 of the available RAM."""
    if device.type != "cuda":
        return int(SHARE_OF_RAM * find_available_ram())
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved, but unused
    return int(SHARE_OF_DEVICE * (torch.cuda.mem_get_info(device)[0] + held))


def choose_place(size: int, device: torch.device) -> torch.device | None:
    """Choose where to keep `size` bytes: on the device, or else in RAM; return None if neither has room."""
    places = dict.fromkeys([device, torch.device("cpu")])
    return next((place for place in places if size <= find_room(place)), None)


def find_available_ram() -> int:
    """Return the bytes that this process can still take within its container's limit without causing swapping.

    If the system does not report its available memory, assume half of its total memory.
    """
    free = []
    with suppress(OSError, ValueError, KeyError):  # not Linux
        free.append(_numbers(MEMINFO)["MemAvailable:"] * 1024)
    if not free:
        with suppress(OSError, ValueError, AttributeError):  # Windows has no such name or function
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        used, limit = (int((CGROUP / f"memory.{name}").read_text(encoding="utf-8")) for name in ("current", "max"))
        free.append(max(0, limit - used + _numbers(CGROUP / "memory.stat")["inactive_file"]))
    return min(free, default=UNKNOWN_RAM)


def _numbers(file: Path) -> dict[str, int]:
    """Read a file of lines "name number" as a dictionary."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
