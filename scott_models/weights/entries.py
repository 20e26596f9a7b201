"""weights_manifest.json: of each tag's weights which bytes they are, where, made how, and what they score.

It is the one source of truth: timm's configurations, model cards and tables are made from it. What an entry must look
like is in weights_manifest.schema.json, for us and for other programs.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NotRequired, TypedDict

from ..errors import WeightsError
from ..writing import write_text_whole

PACKAGE = Path(__file__).parents[1]
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
        objective: what was learned, where that is not MIM-JEPA alone: "splitmask", "mimjepa-infonce", ...
        head, label_names: of a classifier alone: the kind of probe behind the encoder, "attentive" or "linear", and its
            classes in the order of the logits.
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
    objective: NotRequired[str]
    head: NotRequired[str]
    label_names: NotRequired[list[str]]


TAG = r"scott_[a-z0-9_]+\.[a-z0-9_]+"
# What an entry may say, by field, in the words of JSON Schema; an error reads "expected <description>".
SCHEMA = json.loads(PATH.with_name("weights_manifest.schema.json").read_text())["$defs"]["entry"]
RULES: dict[str, dict[str, Any]] = SCHEMA["properties"]
KINDS = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict, "null": NoneType}


def is_valid(value: Any, rule: dict[str, Any]) -> bool:
    """Whether a value is as a rule says, of those words of JSON Schema that `RULES` use."""
    kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    if isinstance(value, bool) or not any(isinstance(value, KINDS[kind]) for kind in kinds):
        return False
    match value:
        case str():
            matches = re.fullmatch(rule.get("pattern", r"[\s\S]*"), value) is not None
            return matches and len(value) >= rule.get("minLength", 0) and value in rule.get("enum", [value])
        case int() | float():  # infinity is none, and what is no number compares with none
            low, high = rule.get("minimum", -math.inf), rule.get("maximum", math.inf)
            within = low <= value <= high and rule.get("exclusiveMinimum", -math.inf) < value < math.inf
            return within and ("multipleOf" not in rule or value % rule["multipleOf"] == 0)
        case list():
            rules = rule.get("prefixItems") or [rule["items"]] * len(value)
            enough = rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", math.inf)
            each = enough and all(map(is_valid, value, rules))
            return each and not (rule.get("uniqueItems") and len(set(value)) < len(value))  # of words
        case dict():
            names = rule.get("propertyNames", {}).get("pattern", r"[\s\S]*")
            known = value.keys() >= set(rule.get("required", [])) and all(re.fullmatch(names, name) for name in value)
            return known and all(is_valid(item, rule["additionalProperties"]) for item in value.values())
    return True


@cache
def manifest() -> dict[str, Entry]:
    """The entries by tag, e.g. "scott_3_16.mimjepa_flowers102_cpu", as they are written.

    Raises:
        WeightsError: the package's file is none.
    """
    return read_manifest(PATH)["weights"]


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest's whole content.

    Raises:
        WeightsError: a file that is no manifest, or cannot be read.
    """
    try:
        content = json.loads(path.read_text())
        dict.keys(content["weights"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path}: expected a manifest like weights_manifest.json, found something else ({error}); restore it"
        ) from error
    return content


def get_entry(tag: str) -> Entry:
    """The entry of a tag.

    Raises:
        WeightsError: a tag the manifest does not know, or an entry that would lead astray.
    """
    for known in manifest():
        if known.split(".")[0] == tag:  # a model whose only tags are none
            validate_entry(known, manifest()[known])
    if tag not in manifest():
        raise WeightsError(f"{tag}: no such weights are released; expected one of {sorted(manifest())}")
    return validate_entry(tag, manifest()[tag])


def validate_entry(tag: str, entry: Entry) -> Entry:
    """The same entry, if it is as the schema says: what it names is a file of its own folder and one commit.

    Raises:
        WeightsError: the first field that is not as it must be.
    """
    if not isinstance(entry, dict):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry, found {entry!r}")
    if not re.fullmatch(TAG, tag):
        raise WeightsError(f"{PATH.name}: expected tags like 'scott_3_16.mimjepa_flowers102_cpu', found {tag!r}")
    if missing := sorted(set(SCHEMA["required"]) - entry.keys()):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry of all fields, found none of {missing}")
    if unknown := sorted(entry.keys() - RULES.keys()):
        raise WeightsError(f"{PATH.name}: {tag}: unknown {unknown}; known are {list(RULES)}")
    fields: dict[str, Any] = {**entry}
    for name, rule in RULES.items():
        if name in fields and not is_valid(fields[name], rule):
            raise WeightsError(f"{PATH.name}: {tag}: {name}: expected {rule['description']}, found {fields[name]!r}")
    if (entry["repository"] is None) != (entry["revision"] is None):
        raise WeightsError(
            f"{PATH.name}: {tag}: expected repository and revision both or neither, found {entry['repository']!r} and "
            f"{entry['revision']!r}"
        )
    if len(of_head := [name for name in ("head", "label_names") if name in entry]) == 1:
        raise WeightsError(
            f"{PATH.name}: {tag}: expected head and label_names both or neither, found {of_head[0]} alone"
        )
    return entry


def write_entry(path: Path, tag: str, entry: Entry) -> None:
    """Add or replace a tag's entry in a manifest, whole or not at all; a file that is not there is begun.

    Entries are kept in the order of their tags, for a model's first tag is its default: "x.mimjepa" comes before
    "x.mimjepa_cpu", and that before the classifier "x.mimjepa_cpu_probe".

    Raises:
        WeightsError: an entry that would lead astray, or a file that is no manifest.
    """
    validate_entry(tag, entry)
    path = path.resolve()  # or a link would become a file
    with lock_folder(path.parent):
        entries = {**read_entries(path), tag: entry}
        content = {**(read_manifest(path) if path.exists() else {}), "weights": dict(sorted(entries.items()))}
        write_text_whole(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is in here for the same folder, where the system can lock one."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of a manifest that may be written; none of one that is not there yet.

    Raises:
        WeightsError: a file that is no manifest, or a folder that is not there.
    """
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: expected a manifest in a folder that exists")
    return dict(read_manifest(path)["weights"]) if path.exists() else {}
