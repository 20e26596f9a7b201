"""Weights: manifest -> file (folder, wheel, Hub) -> sha256 -> timm, and back into timm's layout.

Tensors of a tag are parsed from the very bytes that were verified, wherever they came from; only safetensors are read.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import safetensors.torch
from torch import Tensor

from ..errors import WeightsError
from . import hub
from .authors_keys import convert_reference, convert_reference_predictor
from .entries import PACKAGE, Entry, get_entry, manifest
from .local_dir import export

__all__ = ["convert_reference", "convert_reference_predictor", "export", "load", "manifest", "resolve"]
PIECE = 2**20  # bytes that are read at once of a file that is too long

Found = TypeVar("Found")
Check = Callable[[Path, str, Entry, str], Found]  # of a file, its tag, its entry, and what to do if it is damaged

logger = logging.getLogger(__name__)


def list_folders() -> list[Path]:
    """Where weights are looked for, in order: $SCOTT_MODELS_DIR, the checkout's weights/, the wheel's own.

    A package that was installed from a checkout also looks into that checkout's weights/, for as long as it is there.
    """
    places = [Path(os.path.expanduser(folder))] if (folder := os.environ.get("SCOTT_MODELS_DIR")) else []
    source = [checkout / "weights"] if (checkout := find_source_checkout()) else []
    return [*places, PACKAGE.parent / "weights", PACKAGE / "bundled", *source]


@cache
def find_source_checkout() -> Path | None:
    """The checkout that this package was installed from, as the installer notes it (PEP 610); None of other sources."""
    try:
        installed = distribution("scott_models")
        noted = json.loads(installed.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    is_this = Path(str(installed.locate_file(PACKAGE.name))).resolve() == PACKAGE.resolve()
    return Path(url2pathname(urlsplit(noted["url"]).path)) if is_this and "dir_info" in noted else None


def find_file(tag: str) -> Path | None:
    """The first folder's file of a tag in the manifest, not yet verified; None if no folder has it."""
    file = get_entry(tag)["file"]
    places = (folder / tag / file for folder in list_folders())
    return next((path for path in places if os.path.isfile(path)), None)  # Path's own raises where it may not look


def is_released(path: Path, entry: Entry) -> bool:
    """Whether a file is there, where one may look, and its bytes are an entry's."""
    return os.path.isfile(path) and (sha256(path), path.stat().st_size) == (entry["sha256"], entry["bytes"])


def resolve(tag: str, *, cache_dir: str | Path | None = None, token: str | None = None) -> Path:
    """Find the verified weight file of a tag: in the first folder that has it, or else on the Hub at the pinned commit.

    Whoever reads the path afterwards may find other bytes there; `load` gives the tensors of those that were verified.

    Args:
        tag: e.g. "scott_3_16.mimjepa_flowers102_cpu".
        cache_dir, token: of the Hub, as `hub.fetch` takes them.

    Raises:
        WeightsError: a tag the manifest does not know, a file that is nowhere or cannot be downloaded, or one whose
            sha256 is not the released file's.
    """
    return _obtain(tag, verify, cache_dir=cache_dir, token=token)


def load(tag: str, *, cache_dir: str | Path | None = None) -> tuple[Path, dict[str, Tensor]]:
    """Load the tensors of a tag by name, parsed from the bytes that were verified, and say which file they are from.

    Raises:
        WeightsError: as `resolve`.
    """
    path, content = _obtain(tag, read_verified, cache_dir=cache_dir)
    return path, safetensors.torch.load(content)


def _obtain(tag: str, check: Check[Found], *, cache_dir: str | Path | None = None, token: str | None = None) -> Found:
    """Apply a check to a tag's file, where `resolve` looks for it."""
    entry = get_entry(tag)
    if path := find_file(tag):
        again = f"replace it: scott download {tag} --dir '{path.parents[1]}'"
        restore = "take it from the release again, or reinstall the package"  # there is nothing to download
        return check(path, tag, entry, again if entry["repository"] else restore)
    if entry["repository"] is None:
        looked = ", ".join(str(folder / tag) for folder in list_folders())
        raise WeightsError(f"{tag}: no weight file in any of {looked}; put the released folder into one of them")
    return fetch_checked(tag, entry, check, cache_dir=cache_dir, token=token)


def fetch_checked(
    tag: str,
    entry: Entry,
    check: Check[Found],
    *,
    cache_dir: str | Path | None = None,
    token: str | None = None,
) -> Found:
    """Apply a check to a published tag's file; one that is damaged in the cache is downloaded once more.

    Raises:
        WeightsError: it cannot be downloaded, or is not what was released.
    """
    path = hub.fetch(tag, entry, cache_dir=cache_dir, token=token)
    try:
        return check(path, tag, entry, "a fresh download failed too")
    except WeightsError as damaged:
        logger.warning("%s: damaged, downloading it again", path)
        try:
            path = hub.fetch(tag, entry, cache_dir=cache_dir, token=token, fresh=True)
        except WeightsError as error:
            raise WeightsError(f"{damaged}: {error}") from error
    return check(path, tag, entry, f"{entry['repository']} does not hold what was released, do not use it")


def verify(path: Path, tag: str, entry: Entry, advice: str) -> Path:
    """The same path, if its bytes are the released ones.

    Raises:
        WeightsError: other bytes; both hashes are named, and what to do.
    """
    if not is_released(path, entry):
        raise _damaged(path, tag, entry, sha256(path), path.stat().st_size, advice)
    return path


def read_verified(path: Path, tag: str, entry: Entry, advice: str) -> tuple[Path, bytes]:
    """Read a file once, and return its path and bytes if they are the released ones.

    Raises:
        WeightsError: as `verified`.
    """
    with path.open("rb") as file:
        content = file.read(entry["bytes"])
        digest, size = hashlib.sha256(content), len(content)
        while further := file.read(PIECE):  # of a longer file, which need not fit into memory
            digest.update(further)
            size += len(further)
    if (digest.hexdigest(), size) != (entry["sha256"], entry["bytes"]):
        raise _damaged(path, tag, entry, digest.hexdigest(), size, advice)
    return path, content


def _damaged(path: Path, tag: str, entry: Entry, found: str, size: int, advice: str) -> WeightsError:
    return WeightsError(
        f"{path}: damaged or not the released weights of {tag}: expected sha256 {entry['sha256']}, found "
        f"{found} ({size} bytes, expected {entry['bytes']}); {advice}"
    )


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal; hashed once a process unless the file changed."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256(path: Path, *identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
