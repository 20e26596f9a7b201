"""All images of a run, decoded once into a flat buffer on disk, which is mapped into memory and serves later runs.

A data set too large for the disk is decoded at every use. Its bad files are still found once, at the start.
"""

import hashlib
import os
import shutil
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

from ..console import say
from ..errors import DataError, WritingError
from ..progress import track
from ..writing import explain_failure
from .bad_images import ADVICE, list_bad
from .images import Row, load_image, without_warnings
from .memory import SHARE_OF_DEVICE
from .sources import Sample

FORMAT = 3  # version of the cache's files
LARGEST = 64e9  # the most bytes of decoded images on disk, or half of the free space if that is less
PARTIAL, ABANDONED = "partial-", 3600  # prefix of unfinished folders; seconds without a write until they are deleted


@dataclass(frozen=True)
class Images:
    """Hold images of any shapes, downsampled to at most `short_side` pixels on the short side (aspect kept).

    Attributes:
        samples: the source of each image.
        digest: hash of all pixels, independent of where the files lie.
        copies: bool (N,), whether an earlier image has exactly the same pixels.
        sizes: int64 (N, 2), height and width of each image.
        offsets: int64 (N,), where each image begins in `pixels`.
        pixels: uint8, one image after the other, each (H, W, 3); None if images are decoded at every use.
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
        """Return image `index`, uint8 (3, H, W): a view of `pixels`, or newly decoded if `pixels` is None."""
        if self.pixels is None:
            return torch.from_numpy(downsample(self.samples[index].image, self.short_side)).permute(2, 0, 1)
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def on(self, device: torch.device) -> "Images":
        """Return the images with their pixels on a GPU, or `self` if the pixels exceed 0.3 of the GPU's free memory."""
        if device.type != "cuda" or self.pixels is None:
            return self
        if self.pixels.nbytes > SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, pixels=self.pixels.to(device))


def open_images(samples: Sequence[Sample], short_side: int, *, skip_bad: bool = False) -> Images:
    """Open every image, from the cache if the same files were decoded before.

    Args:
        skip_bad: leave out bad images with a note, instead of raising.

    Raises:
        DataError: images are bad (the message gives reasons), no image is good, or the disk has no room.
    """
    folder = find_cache_folder() / make_fingerprint(samples, short_side)
    index = read_index(folder)
    if index is None or any(not isinstance(_try(samples[i], short_side), DataError) for i in index["bad"]):
        index = decode(samples, short_side, folder)  # also if a bad image can be read now: a disk may recover
    if index["bad"]:
        message = list_bad(index["bad"], len(samples), folder / "bad_images.txt")
        if not skip_bad or len(index["bad"]) == len(samples):
            raise DataError(f"{message}\n{ADVICE}")
        say(f"{message}\nthey are left out")
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


def find_cache_folder() -> Path:
    """Return the folder of decoded images: $SCOTT_MODELS_CACHE, or scott_models in the user's cache folder.

    For a user without a home, e.g. a number that a container was started with, it lies among the temporary files.
    """
    try:
        if folder := os.environ.get("SCOTT_MODELS_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scott_models"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return Path(tempfile.gettempdir()) / f"scott_models-{getattr(os, 'getuid', int)()}"


def make_fingerprint(samples: Sequence[Sample], short_side: int) -> str:
    """Hash these files, their order and `short_side` to 32 hexadecimal digits.

    A file is its path, its size, and the times of the last change of its content and of its inode: `cp -p` and others
    set the first time, but cannot set the second.
    """
    digest = hashlib.sha256(f"{FORMAT} {short_side}".encode())
    for sample in samples:
        digest.update(b"\n" + os.fsencode(str(sample.image)))  # names need not be UTF-8
        if not isinstance(sample.image, Row):
            with suppress(OSError):  # a file that is gone is a bad image
                stat = sample.image.stat()
                digest.update(f" {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}".encode())
    return digest.hexdigest()[:32]


def read_index(folder: Path) -> dict[str, Any] | None:
    """Read the index that `decode` wrote into a folder; return None if the folder is absent or incomplete."""
    try:
        index = torch.load(folder / "index", weights_only=True)
        whole = not index["kept"] or (folder / "pixels").stat().st_size == index["bytes"]
        return index if whole else None
    except Exception:  # absent, cut or foreign: torch, pickle and zip raise many kinds of errors
        return None


def decode(samples: Sequence[Sample], short_side: int, folder: Path) -> dict[str, Any]:
    """Decode every image, in parallel, into a folder that appears complete or not at all; return its index.

    The folder holds the file `index` and, unless the pixels would take too much of the disk, the file `pixels`. The
    index has sizes (N, 2), 0 for bad images, and the reasons of bad images under "bad". If two processes decode the
    same images, both use the folder of the first to finish, unless the second could read images that are bad there.

    Raises:
        DataError: the disk has no room for the decoded images, or cannot be written to.
    """
    try:
        with explain_failure(folder):
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
    except WritingError as error:
        if theirs := read_index(folder):
            return theirs
        raise DataError(f"{error}, or set SCOTT_MODELS_CACHE to a folder for decoded images on another disk") from error
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
        say(f"{copies.sum()} images are exact copies of others; they are kept")
    index = {
        "kept": written <= limit,
        "bytes": written,
        "sizes": torch.from_numpy(sizes),
        "digests": torch.from_numpy(digests),
        "copies": torch.from_numpy(copies),
        "bad": bad,
    }
    with (folder / "index").open("wb") as file:  # torch's own writer hides the system's error
        torch.save(index, file)
    return index


def _downsample_in_parallel(samples: Sequence[Sample], short_side: int) -> Iterator[np.ndarray | DataError]:
    """Yield the pixels of each image in order, or the error of a bad file; decode only a few images ahead."""
    workers = count_cores()
    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(samples)
        ahead = [pool.submit(_try, sample, short_side) for sample in islice(remaining, 2 * workers)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(_try, sample, short_side) for sample in islice(remaining, 1)]


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _try(sample: Sample, short_side: int) -> np.ndarray | DataError:
    try:
        return downsample(sample.image, short_side)
    except DataError as error:
        return error


def downsample(image: Path | Row, short_side: int) -> np.ndarray:
    """Load an image and downsample it to at most `short_side` pixels on its short side: uint8 (H, W, 3).

    Raises:
        DataError: the image is bad.
    """
    loaded = load_image(image, short_side)
    scale = short_side / min(loaded.size)
    if scale < 1:
        size = (round(loaded.width * scale), round(loaded.height * scale))
        loaded = loaded.resize(size, Image.Resampling.BICUBIC)
    return np.array(loaded)  # a copy, because torch needs a writable array


def remove_abandoned(cache: Path) -> None:
    """Delete the unfinished folders that killed processes left: folders without a write for an hour."""
    for partial in cache.glob(f"{PARTIAL}*"):
        with suppress(OSError):  # a live process may be renaming the folder now
            if time.time() - max(path.stat().st_mtime for path in (partial, *partial.iterdir())) > ABANDONED:
                shutil.rmtree(partial, ignore_errors=True)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    lengths = sizes.prod(axis=1) * 3
    return lengths.cumsum() - lengths
