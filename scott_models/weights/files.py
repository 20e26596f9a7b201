"""Find, verify and load weight files: manifest -> file (folder, wheel, Hub) -> sha256 -> tensors.

The tensors of a tag are parsed from the same bytes that were verified. Only safetensors files are read.
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
PIECE = 2**20  # bytes read at a time beyond the expected size of a file

Found = TypeVar("Found")
Check = Callable[[Path, str, Entry, str], Found]  # arguments: file, tag, entry, advice if damaged

logger = logging.getLogger(__name__)


def list_folders() -> list[Path]:
    """List the folders of weights in search order: $SCOTT_MODELS_DIR, the checkout's weights/, the wheel's own folder.

    If the package was installed from a checkout, the weights/ folder of that checkout is last.
    """
    places = [Path(os.path.expanduser(folder))] if (folder := os.environ.get("SCOTT_MODELS_DIR")) else []
    source = [checkout / "weights"] if (checkout := find_source_checkout()) else []
    return [*places, PACKAGE.parent / "weights", PACKAGE / "bundled", *source]


@cache
def find_source_checkout() -> Path | None:
    """Find the checkout that this package was installed from, as noted by the installer (PEP 610); else None."""
    try:
        installed = distribution("scott_models")
        noted = json.loads(installed.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    is_this = Path(str(installed.locate_file(PACKAGE.name))).resolve() == PACKAGE.resolve()
    return Path(url2pathname(urlsplit(noted["url"]).path)) if is_this and "dir_info" in noted else None


def find_file(tag: str) -> Path | None:
    """Find a tag's file in the first folder that has it, not yet verified; return None if no folder has it."""
    file = get_entry(tag)["file"]
    places = (folder / tag / file for folder in list_folders())
    return next((path for path in places if os.path.isfile(path)), None)  # Path.is_file raises where access is denied


def is_released(path: Path, entry: Entry) -> bool:
    """Return True if the path is a file with the sha256 and size of an entry, in a folder that may be read."""
    return os.path.isfile(path) and (sha256(path), path.stat().st_size) == (entry["sha256"], entry["bytes"])


def resolve(tag: str, *, cache_dir: str | Path | None = None, token: str | None = None) -> Path:
    """Return the verified weight file of a tag: from the first folder that has it, or else from the Hub at its commit.

    The file may change after it was verified. `load` returns tensors that were parsed from the verified bytes.

    Args:
        tag: e.g. "scott_3_16.mimjepa_flowers102_cpu".
        cache_dir, token: as `hub.fetch`.

    Raises:
        WeightsError: the manifest does not have the tag, the file was not found or cannot be downloaded, or its sha256
            is not that of the released file.
    """
    return _obtain(tag, verify, cache_dir=cache_dir, token=token)


def load(tag: str, *, cache_dir: str | Path | None = None) -> tuple[Path, dict[str, Tensor]]:
    """Load the weights of a tag, parsed from the verified bytes; return the path of the file and its tensors by name.

    Raises:
        WeightsError: as `resolve`.
    """
    path, content = _obtain(tag, read_verified, cache_dir=cache_dir)
    return path, safetensors.torch.load(content)


def _obtain(tag: str, check: Check[Found], *, cache_dir: str | Path | None = None, token: str | None = None) -> Found:
    """Find a tag's file as `resolve` does, and return the result of a check of the file."""
    entry = get_entry(tag)
    if path := find_file(tag):
        again = f"replace it: scott download {tag} --dir '{path.parents[1]}'"
        restore = "copy it from the release again, or reinstall the package"  # unpublished, so no download can help
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
    """Fetch a published tag's file and return the result of a check; download a damaged file once more.

    Raises:
        WeightsError: the file cannot be downloaded, or is not the released one.
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
    return check(path, tag, entry, f"{entry['repository']} does not hold what was released; do not use it")


def verify(path: Path, tag: str, entry: Entry, advice: str) -> Path:
    """Return the path if its bytes are the released ones.

    Raises:
        WeightsError: the bytes are others; the message has both hashes and the advice.
    """
    if not is_released(path, entry):
        raise _damaged(path, tag, entry, sha256(path), path.stat().st_size, advice)
    return path


def read_verified(path: Path, tag: str, entry: Entry, advice: str) -> tuple[Path, bytes]:
    """Read a file once; return its path and its bytes if the bytes are the released ones.

    Raises:
        WeightsError: as `verify`.
    """
    with path.open("rb") as file:
        content = file.read(entry["bytes"])
        digest, size = hashlib.sha256(content), len(content)
        while further := file.read(PIECE):  # a longer file may not fit into memory
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
    """Return the file's sha256 in hexadecimal; a process hashes a file again only if the file changed."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256(path: Path, *identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
