"""weights_manifest.json: of each tag's weights which bytes they are, where, made how, and what they score.

It is the one source of truth: timm's configurations, model cards and tables are made from it. Other programs read the
same in weights_manifest.schema.json.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import TypedDict

from .errors import WeightsError

PACKAGE = Path(__file__).parent
# A checkout has it above the package, where a link leads to it; archives of it may hold that link as text.
ABOVE = PACKAGE.parent / "weights_manifest.json"
PATH = ABOVE if ABOVE.is_file() and (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE / ABOVE.name


class Entry(TypedDict):
    """What is known of the weights of a tag.

    Attributes:
        repository, revision: "organisation/name" on the Hugging Face Hub and its commit, 40 hexadecimal digits; both
            None while unpublished.
        file, sha256, bytes, dtype: the weight file, which bytes it is, and the tensors' type in it.
        encoder: of MIM-JEPA's two, the one in the file: "target" or "context".
        input_size: channels, height and width it was trained at.
        data, datasets, data_terms: what it was trained on, in words and as short names, and what the data allow.
        license: of the weights.
        recipe, epochs, images_seen, seed, hardware, minutes, versions: how they were made.
        scores, protocol: measured top-1 %, e.g. "knn", and of what it is compared with, e.g. "knn_random"; and how.
    """

    repository: str | None
    revision: str | None
    file: str
    sha256: str
    bytes: int
    dtype: str
    encoder: str
    input_size: list[int]
    data: str
    datasets: list[str]
    data_terms: str
    license: str
    recipe: str
    epochs: float
    images_seen: int
    seed: int
    hardware: str
    minutes: int
    versions: dict[str, str]
    scores: dict[str, float]
    protocol: str


TAG = r"scott_[a-z0-9_]+\.[a-z0-9_]+"
# What an entry may not say, whoever wrote it: files outside the tag's own folder, and bytes or commits nobody pinned.
RULES = {
    "file": (r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", "the plain name of a .safetensors file"),
    "sha256": (r"[0-9a-f]{64}", "64 hexadecimal digits"),
    "repository": (r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", "organisation/name, or null"),
    "revision": (r"[0-9a-f]{40}", "a commit of 40 hexadecimal digits, or null"),
    "license": (r"[a-z0-9][a-z0-9.-]*", "an SPDX identifier in lower case"),
}


@cache
def manifest() -> dict[str, Entry]:
    """The entries by tag, e.g. "scott_3_16.mimjepa_flowers102", as they are written."""
    return json.loads(PATH.read_text())["weights"]


def entry_of(tag: str) -> Entry:
    """The entry of a tag.

    Raises:
        WeightsError: a tag the manifest does not know, or an entry that would lead astray.
    """
    for known in manifest():
        if known.split(".")[0] == tag:  # a model whose only tags are none
            checked(known, manifest()[known])
    if tag not in manifest():
        raise WeightsError(f"{tag}: no such weights are released; expected one of {sorted(manifest())}")
    return checked(tag, manifest()[tag])


def checked(tag: str, entry: Entry) -> Entry:
    """The same entry, if what it names is a file of its own folder and one commit.

    Raises:
        WeightsError: the first field that is not as it must be.
    """
    if not isinstance(entry, dict):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry, found {entry!r}")
    if not re.fullmatch(TAG, tag):
        raise WeightsError(f"{PATH.name}: expected tags like 'scott_3_16.mimjepa_flowers102', found {tag!r}")
    if missing := sorted(Entry.__annotations__.keys() - entry.keys()):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry of all fields, found none of {missing}")
    for name, (pattern, expected) in RULES.items():
        value = entry.get(name)
        unpublished = value is None and name in ("repository", "revision")
        if not unpublished and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise WeightsError(f"{PATH.name}: {tag}: {name}: expected {expected}, found {value!r}")
    size = entry.get("input_size")
    if not (isinstance(size, list) and len(size) == 3 and all(isinstance(side, int) and side > 0 for side in size)):
        raise WeightsError(f"{PATH.name}: {tag}: input_size: expected channels, height and width, found {size!r}")
    if (entry["repository"] is None) != (entry["revision"] is None):
        raise WeightsError(
            f"{PATH.name}: {tag}: expected repository and revision both or neither, found {entry['repository']!r} and "
            f"{entry['revision']!r}"
        )
    return entry


def write_entry(path: Path, tag: str, entry: Entry) -> None:
    """Add or replace a tag's entry in a manifest, whole or not at all; a file that is not there is begun.

    Raises:
        WeightsError: an entry that would lead astray, or a file that is no manifest.
    """
    checked(tag, entry)
    path = path.resolve()  # or a link would become a file
    content = {"weights": {**entries_in(path), tag: entry}}
    if path.exists():
        content = json.loads(path.read_text()) | content
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def entries_in(path: Path) -> dict[str, Entry]:
    """The entries of a manifest that may be written; none of one that is not there yet.

    Raises:
        WeightsError: a file that is no manifest, or a folder that is not there.
    """
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: expected a manifest in a folder that exists")
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text())["weights"])
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{path}: expected a manifest like weights_manifest.json, found something else") from error
