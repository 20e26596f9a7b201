"""All images of a run, decoded once: in one flat buffer on disk, mapped into memory, and found again by the next run.

A set too large for that is decoded anew at every use; what is wrong with its files is still found once, at the start.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..progress import track
from .memory import SHARE_OF_DEVICE
from .sources import Row, Sample, load_image, without_warnings

FORMAT = 2  # of the files below
LISTED = 20  # bad files that a message names
LARGEST = 64e9  # bytes of decoded images kept on disk, and at most half of what is free there
PARTIAL, ABANDONED = "partial-", 3600  # seconds


@dataclass(frozen=True)
class Images:
    """Images of any shapes, each reduced to `short_side` pixels on its short side (aspect kept) if it was larger.

    Attributes:
        samples: where each comes from.
        digest: of all their pixels, the same wherever the files lie.
        copies: bool (N,), whether an earlier image has exactly the same pixels.
        sizes: int64 (N, 2), height and width of each.
        offsets: int64 (N,), where each begins in `pixels`.
        pixels: uint8, one image after the other, each (H, W, 3); None if they are decoded at every use.
    """

    samples: list[Sample]
    short_side: int
    digest: str
    copies: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    pixels: Tensor | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, uint8 (3, H, W); a view of the buffer if there is one."""
        if self.pixels is None:
            return torch.from_numpy(downsample(self.samples[index].image, self.short_side)).permute(2, 0, 1)
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def on(self, device: torch.device) -> "Images":
        """The same with the pixels on a GPU, if they take no more than 0.3 of its free memory."""
        if device.type != "cuda" or self.pixels is None:
            return self
        if self.pixels.nbytes > SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, pixels=self.pixels.to(device))


def open_images(samples: Sequence[Sample], short_side: int, *, skip_bad: bool = False) -> Images:
    """Every image, from the cache if the same files were decoded before.

    Args:
        skip_bad: leave bad images out with a note, instead of raising.

    Raises:
        DataError: bad images, with their reasons, or none that is good.
    """
    folder = find_cache_folder() / make_fingerprint(samples, short_side)
    index = read_index(folder)
    if index is None or any(not isinstance(_try(samples[i], short_side), DataError) for i in index["bad"]):
        index = decode(samples, short_side, folder)  # anew, too, if what was bad no longer is: a disk may recover
    if index["bad"]:
        message = _list_bad(index["bad"], len(samples), folder)
        if not skip_bad or len(index["bad"]) == len(samples):
            raise DataError(f"{message}\nremove them, or leave them out with --bad-images skip")
        print(f"{message}\nthey are left out", file=sys.stderr)
    kept = np.array([i not in index["bad"] for i in range(len(samples))])
    sizes, digests = index["sizes"].numpy(), index["digests"].numpy()
    return Images(
        samples=[sample for sample, good in zip(samples, kept) if good],
        short_side=short_side,
        digest=hashlib.blake2b(digests[kept].tobytes(), digest_size=16).hexdigest(),
        copies=index["copies"].numpy()[kept],
        sizes=sizes[kept],
        offsets=_offsets(sizes)[kept],
        pixels=torch.from_numpy(np.memmap(folder / "pixels", mode="c")) if index["kept"] else None,
    )


def _list_bad(bad: dict[int, str], count: int, folder: Path) -> str:
    """Bad images with their reasons; of very many some, and a file that has them all."""
    lines = [f"{len(bad)} of {count} images cannot be used:", *bad.values()]
    if len(bad) > LISTED:
        (folder / "bad_images.txt").write_text("\n".join(lines[1:]) + "\n")
        lines = [*lines[: LISTED + 1], f"... and {len(bad) - LISTED} more: {folder / 'bad_images.txt'}"]
    return "\n".join(lines)


def find_cache_folder() -> Path:
    """Where decoded images are kept: $SCOTT_MODELS_CACHE, or scott_models in the user's cache folder."""
    if folder := os.environ.get("SCOTT_MODELS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scott_models"


def make_fingerprint(samples: Sequence[Sample], short_side: int) -> str:
    """A name for these files as they are now, in this order, at this size."""
    digest = hashlib.sha256(f"{FORMAT} {short_side}".encode())
    for sample in samples:
        digest.update(f"\n{sample.image}".encode())
        if not isinstance(sample.image, Row):
            stat = sample.image.stat()
            digest.update(f" {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def read_index(folder: Path) -> dict[str, Any] | None:
    """What `decode` wrote into a folder; None if there is nothing, or not all of it."""
    try:
        index = torch.load(folder / "index", weights_only=True)
        whole = not index["kept"] or (folder / "pixels").stat().st_size == index["bytes"]
        return index if whole else None
    except Exception:  # absent, cut or foreign: torch, pickle and zip errors of many kinds
        return None


def decode(samples: Sequence[Sample], short_side: int, folder: Path) -> dict[str, Any]:
    """Decode every image, in parallel, into a folder that is there as a whole or not at all; returns its index.

    The folder holds `index` (sizes (N, 2), 0 for bad images, whose reasons are under "bad") and, unless they would
    take too much of the disk, `pixels`. Of two processes at it the one that ends first leaves its folder to both.

    Raises:
        DataError: no room for them.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent)
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent, ignore_cleanup_errors=True) as partial:
            index = _write(samples, short_side, Path(partial))
            theirs = read_index(folder)
            if theirs and theirs["bad"].keys() <= index["bad"].keys():
                return theirs
            shutil.rmtree(folder, ignore_errors=True)
            Path(partial).chmod(0o755)
            Path(partial).rename(folder)
    except OSError as error:
        if theirs := read_index(folder):
            return theirs
        raise DataError(
            f"{folder}: cannot keep the decoded images ({error}); make room, or set SCOTT_MODELS_CACHE to another disk"
        ) from error
    return index


def _write(samples: Sequence[Sample], short_side: int, folder: Path) -> dict[str, Any]:
    sizes, copies = np.zeros((len(samples), 2), dtype=np.int64), np.zeros(len(samples), dtype=bool)
    digests = np.zeros((len(samples), 16), dtype=np.uint8)
    bad: dict[int, str] = {}
    seen: set[bytes] = set()
    limit, written = min(LARGEST, shutil.disk_usage(folder).free / 2), 0
    with without_warnings(), (folder / "pixels").open("wb") as file:
        results = _downsample_in_parallel(samples, short_side)
        for i, result in enumerate(track(results, "decoding", total=len(samples))):
            if isinstance(result, DataError):
                bad[i] = str(result)
                continue
            sizes[i] = result.shape[:2]
            digest = hashlib.blake2b(result.data, digest_size=16, salt=str(result.shape[0]).encode()).digest()
            digests[i] = np.frombuffer(digest, dtype=np.uint8)
            copies[i] = digest in seen
            seen.add(digest)
            written += result.nbytes
            if written <= limit:
                file.write(result.data)
            else:
                file.truncate(0)
        os.fsync(file.fileno())
    if written > limit:
        (folder / "pixels").unlink()
    if copies.any():
        print(f"{copies.sum()} images are exact copies of others; they are kept", file=sys.stderr)
    index = {
        "kept": written <= limit,
        "bytes": written,
        "sizes": torch.from_numpy(sizes),
        "digests": torch.from_numpy(digests),
        "copies": torch.from_numpy(copies),
        "bad": bad,
    }
    torch.save(index, folder / "index")
    return index


def _downsample_in_parallel(samples: Sequence[Sample], short_side: int) -> Iterator[np.ndarray | DataError]:
    """Pixels, or what is wrong with the file, in order; no more than a few images ahead of their use."""
    workers = count_cores()
    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(samples)
        ahead = [pool.submit(_try, sample, short_side) for sample in islice(remaining, 2 * workers)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(_try, sample, short_side) for sample in islice(remaining, 1)]


def count_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _try(sample: Sample, short_side: int) -> np.ndarray | DataError:
    try:
        return downsample(sample.image, short_side)
    except DataError as error:
        return error


def downsample(image: Path | Row, short_side: int) -> np.ndarray:
    """One image, at most `short_side` pixels on its short side: uint8 (H, W, 3).

    Raises:
        DataError: a bad image.
    """
    loaded = load_image(image, short_side)
    scale = short_side / min(loaded.size)
    if scale < 1:
        size = (round(loaded.width * scale), round(loaded.height * scale))
        loaded = loaded.resize(size, Image.Resampling.BICUBIC)
    return np.array(loaded)  # a copy, which torch may write to


def remove_abandoned(cache: Path) -> None:
    """Delete what killed processes left half-written: no write for an hour."""
    for partial in cache.glob(f"{PARTIAL}*"):
        with suppress(OSError):  # its process may be alive, and renaming it now
            if time.time() - max(path.stat().st_mtime for path in (partial, *partial.iterdir())) > ABANDONED:
                shutil.rmtree(partial, ignore_errors=True)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    lengths = sizes.prod(axis=1) * 3
    return lengths.cumsum() - lengths
