"""How much may be kept in memory, so that it need not be made again: shares of what is free, of a GPU's and of RAM."""

import os
from contextlib import suppress
from pathlib import Path

import torch

SHARE_OF_DEVICE = 0.3  # of a GPU's free memory
SHARE_OF_RAM = 0.25  # of what is available, that one thing kept may take
UNKNOWN_RAM = 2**32  # bytes of a machine that does not say how much it has
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def find_room(device: torch.device) -> int:
    """Return the bytes that one thing kept may take: 0.3 of a GPU's free memory, or 0.25 of the RAM available."""
    if device.type != "cuda":
        return int(SHARE_OF_RAM * find_available_ram())
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for nothing now
    return int(SHARE_OF_DEVICE * (torch.cuda.mem_get_info(device)[0] + held))


def choose_place(size: int, device: torch.device) -> torch.device | None:
    """Choose where `size` bytes may be kept: on the device, or else in RAM; None: in neither."""
    places = dict.fromkeys([device, torch.device("cpu")])
    return next((place for place in places if size <= find_room(place)), None)


def find_available_ram() -> int:
    """Return the bytes that this process can still take, within its container's limit, before others are swapped out.

    A system that does not say has half of its memory available.
    """
    free = []
    with suppress(OSError, ValueError, KeyError):  # no Linux
        free.append(_numbers(MEMINFO)["MemAvailable:"] * 1024)
    if not free:
        with suppress(OSError, ValueError, AttributeError):  # no such name, or no such function: Windows
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    with suppress(OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        used = int((CGROUP / "memory.current").read_text()) - _numbers(CGROUP / "memory.stat")["inactive_file"]
        free.append(max(0, int((CGROUP / "memory.max").read_text()) - used))
    return min(free, default=UNKNOWN_RAM)


def _numbers(file: Path) -> dict[str, int]:
    """Read the numbers of a file of lines "name number", by name."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
