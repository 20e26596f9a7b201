"""Read, validate and write weights_manifest.json, which describes the released weights of each tag.

The manifest is the single source of truth: timm's configurations, model cards and tables are made from it. The schema
of an entry is weights_manifest.schema.json, for this package and for other programs.
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
from ..writing import explain_failure, to_json, write_text_whole

PACKAGE = Path(__file__).parents[1]
# In a checkout the manifest is above the package, and the package has a link to it. An archive of a checkout may hold
# that link as a text file, so the file above the package comes first.
ABOVE = PACKAGE.parent / "weights_manifest.json"
PATH = ABOVE if ABOVE.is_file() and (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE / ABOVE.name
SCHEMA = PATH.with_name("weights_manifest.schema.json")


class Entry(TypedDict):
    """Describe the weights of a tag.

    Attributes:
        repository, revision: "organisation/name" on the Hugging Face Hub and a commit of 40 hexadecimal digits; both
            are None while the weights are unpublished.
        file, sha256, bytes, dtype: the weight file's name, its hash, its size, and the type of its tensors.
        encoder: the encoder of MIM-JEPA that is in the file, "target" or "context".
        input_size: channels, height and width of the training images.
        data, datasets, data_terms: the training data in words, their short names, and their terms of use.
        license: the license of the weights.
        recipe, epochs, images_seen, seed, hardware, minutes, versions: how the weights were trained.
        scores, protocol: measured top-1 %, e.g. "knn", with those of controls, e.g. "knn_random"; and the protocol.
        objective: the pretraining objective if it is not plain MIM-JEPA, e.g. "splitmask" or "mimjepa-infonce".
        head, label_names: for a classifier only: the kind of probe on the encoder, "attentive" or "linear", and the
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
KINDS = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict, "null": NoneType}


def is_valid(value: Any, rule: dict[str, Any]) -> bool:
    """Return True if a value satisfies a rule of JSON Schema; only the keywords of our schema are supported."""
    kinds = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    if isinstance(value, bool) or not any(isinstance(value, KINDS[kind]) for kind in kinds):
        return False
    match value:
        case str():
            matches = re.fullmatch(rule.get("pattern", r"[\s\S]*"), value) is not None
            return matches and len(value) >= rule.get("minLength", 0) and value in rule.get("enum", [value])
        case int() | float():  # infinity is refused, and NaN fails every comparison
            low, high = rule.get("minimum", -math.inf), rule.get("maximum", math.inf)
            within = low <= value <= high and rule.get("exclusiveMinimum", -math.inf) < value < math.inf
            return within and ("multipleOf" not in rule or value % rule["multipleOf"] == 0)
        case list():
            rules = rule.get("prefixItems") or [rule["items"]] * len(value)
            enough = rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", math.inf)
            each = enough and all(map(is_valid, value, rules))
            return each and not (rule.get("uniqueItems") and len(set(value)) < len(value))  # all are strings
        case dict():
            names = rule.get("propertyNames", {}).get("pattern", r"[\s\S]*")
            known = value.keys() >= set(rule.get("required", [])) and all(re.fullmatch(names, name) for name in value)
            return known and all(is_valid(item, rule["additionalProperties"]) for item in value.values())
    return True


@cache
def read_rules() -> dict[str, dict[str, Any]]:
    """Read the rule of each field of an entry, as JSON Schema has it, from weights_manifest.schema.json.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        return json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]["entry"]["properties"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{SCHEMA}: expected the schema of manifests, found ({error}); restore it") from error


@cache
def manifest() -> dict[str, Entry]:
    """Return the entries of the package's manifest by tag, e.g. "scott_3_16.mimjepa_flowers102_cpu", not validated.

    Raises:
        WeightsError: the package's file is not a manifest, or cannot be read.
    """
    return read_manifest(PATH)["weights"]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the whole content of a manifest.

    Raises:
        WeightsError: the file is not a manifest, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        dict.keys(content["weights"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path}: expected a manifest like weights_manifest.json, found something else ({error}); restore it"
        ) from error
    return content


def get_entry(tag: str) -> Entry:
    """Return the validated entry of a tag.

    Raises:
        WeightsError: the manifest does not have the tag, or its entry is invalid.
    """
    for known in manifest():
        if known.split(".")[0] == tag:  # a model's name without a tag: report what is wrong with its entries
            validate_entry(known, manifest()[known])
    if tag not in manifest():
        raise WeightsError(f"{tag}: no such weights are released; expected one of {sorted(manifest())}")
    return validate_entry(tag, manifest()[tag])


def validate_entry(tag: str, entry: Entry) -> Entry:
    """Return the entry if it is valid by the schema, which admits only a file in the tag's own folder and one commit.

    Raises:
        WeightsError: the entry or its tag is invalid; the message names the first invalid field.
    """
    if not isinstance(entry, dict):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry, found {entry!r}")
    if not re.fullmatch(TAG, tag):
        raise WeightsError(f"{PATH.name}: expected tags like 'scott_3_16.mimjepa_flowers102_cpu', found {tag!r}")
    if missing := sorted(Entry.__required_keys__ - entry.keys()):
        raise WeightsError(f"{PATH.name}: {tag}: expected an entry with all fields, found no {missing}")
    rules = read_rules()
    if unknown := sorted(entry.keys() - rules.keys()):
        raise WeightsError(f"{PATH.name}: {tag}: unknown fields {unknown}; the known fields are {list(rules)}")
    fields: dict[str, Any] = {**entry}
    for name, rule in rules.items():
        if name in fields and not is_valid(fields[name], rule):
            raise WeightsError(f"{PATH.name}: {tag}: {name}: expected {rule['description']}, found {fields[name]!r}")
    if (entry["repository"] is None) != (entry["revision"] is None):
        raise WeightsError(
            f"{PATH.name}: {tag}: expected repository and revision both or neither, found {entry['repository']!r} and "
            f"{entry['revision']!r}"
        )
    if len(head_fields := [name for name in ("head", "label_names") if name in entry]) == 1:
        raise WeightsError(
            f"{PATH.name}: {tag}: expected head and label_names both or neither, found {head_fields[0]} alone"
        )
    return entry


def write_entry(path: Path, tag: str, entry: Entry) -> None:
    """Add or replace a tag's entry in a manifest, which is written whole or not at all, and created if it is missing.

    Entries are sorted by tag, because a model's first tag is its default: "x.mimjepa" comes before "x.mimjepa_cpu",
    and "x.mimjepa_cpu" before the classifier "x.mimjepa_cpu_probe".

    Raises:
        WeightsError: the entry is invalid, the file is not a manifest, or its folder does not exist.
        WritingError: the file cannot be written.
    """
    validate_entry(tag, entry)
    path = path.resolve()  # so that a link to the file stays a link
    read_entries(path)  # a folder that does not exist cannot be locked
    with explain_failure(path), lock_folder(path.parent):
        entries = {**read_entries(path), tag: entry}
        content = {**(read_manifest(path) if path.exists() else {}), "weights": dict(sorted(entries.items()))}
        write_text_whole(path, to_json(content, indent=2) + "\n")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, after waiting for other processes and threads; do nothing if it cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_entries(path: Path) -> dict[str, Entry]:
    """Read the entries of a manifest before it is written; return no entries if the file does not exist yet.

    Raises:
        WeightsError: the file is not a manifest, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: expected a manifest in a folder that exists")
    return dict(read_manifest(path)["weights"]) if path.exists() else {}
