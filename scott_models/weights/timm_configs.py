"""What timm is told of each tag: its configuration, and where its weights are."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from ..errors import WeightsError
from .entries import Entry, get_entry, manifest
from .files import find_file, load
from .local_dir import get_model_args

# What a classifier's head needs of a SCOTT, as arguments; nothing of a backbone's, which has none.
POOL_ARGS: dict[str | None, dict[str, Any]] = {
    None: {},
    "attentive": {"global_pool": "attentive"},
    "linear": {"fc_norm": True},
}
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # timm's names for where weights come from


def list_tags(model: str) -> list[str]:
    """The tags of a model, its default first, e.g. "scott_3_16" -> ["scott_3_16.mimjepa_flowers102_cpu"].

    The order is the manifest's, which is that of the tags; classifiers come last, whatever they are called.
    """
    entries = {tag: entry for tag, entry in valid_entries().items() if tag.split(".")[0] == model}
    return sorted(entries, key=lambda tag: "head" in entries[tag])


def make_pretrained_cfgs() -> dict[str, dict[str, Any]]:
    """What timm needs to know of each tag. A tag counts as pretrained for timm only if its weights can be had."""
    return {
        tag: {
            "input_size": tuple(entry["input_size"]),
            "license": entry["license"],
            "num_classes": len(names := tuple(entry.get("label_names", ()))),
            "label_names": names or None,
            **locate_for_timm(tag),
        }
        for tag, entry in valid_entries().items()
    }


def valid_entries() -> dict[str, Entry]:
    """The entries by tag that lead nowhere astray; what is wrong with one is told when its weights are asked for."""
    entries = {}
    with suppress(WeightsError):  # of a whole manifest
        for tag in manifest():
            with suppress(WeightsError):
                entries[tag] = get_entry(tag)
    return entries


def locate_for_timm(tag: str) -> dict[str, str]:
    """Where a tag's weights are, in timm's words."""
    entry = get_entry(tag)
    if entry["repository"]:
        return {"hf_hub_id": f"{entry['repository']}@{entry['revision']}", "hf_hub_filename": entry["file"]}
    return {"file": str(path)} if (path := find_file(tag)) else {}


def find_tag(config: Any, model: str) -> str | None:
    """Which of a model's tags a whole timm configuration (PretrainedCfg or dict) is of; None of other weights."""
    fields = config if isinstance(config, dict) else vars(config)
    named = f"{model}.{fields.get('tag')}"
    tags = sorted(list_tags(model), key=lambda tag: tag != named)
    return next((tag for tag in tags if _is_source_of(fields, tag, tag == named)), None)


def _is_source_of(fields: dict[str, Any], tag: str, named: bool) -> bool:
    """Whether the weights of a timm configuration, which may be what one of our models ended with, are a tag's."""
    entry = get_entry(tag)
    if any(fields.get(name) for name in ("source", "url", "state_dict")):
        return False
    if file := fields.get("file"):
        *_, repository, _, folder, name = ("", "", "", *Path(file).parts)
        cached = (f"models--{entry['repository']}".replace("/", "--"), entry["revision"])
        return name == entry["file"] and (folder == tag or (repository, folder) == cached)
    hub_id, name = fields.get("hf_hub_id"), fields.get("hf_hub_filename") or entry["file"]
    return (hub_id, name) == (locate_for_timm(tag).get("hf_hub_id"), entry["file"]) and (named or hub_id is not None)


def make_overlay(
    tag: str, overlay: Mapping[str, Any] | None, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
    """Make timm's overlay for a tag, and the tensors to load; none where the overlay names the caller's own source.

    timm would open `file` once more, and so read bytes that nobody verified. `state_dict` outranks `file`, and timm
    copies whatever is in it: so it holds no tensor, and timm's filter is where the tensors come in.
    """
    if any((overlay or {}).get(name) for name in WEIGHT_SOURCES):
        return {**dict.fromkeys(WEIGHT_SOURCES), **(overlay or {})}, None  # or the tag's own would outrank the caller's
    path, tensors = load(tag, cache_dir=cache_dir)
    return {**(overlay or {}), "file": str(path), "state_dict": {"of": tag}}, tensors


def list_zoo() -> list[dict[str, Any]]:
    """A row for each model without weights and for each tag: what it is, what it scored, where it would load from."""
    manifest()  # or one that is damaged would look like one without weights
    rows = []
    for model in timm.list_models(module="scott"):
        for tag in list_tags(model):
            entry = get_entry(tag)
            rows.append(
                {
                    **_size(model, get_head_args(entry)),
                    "tag": tag.split(".", 1)[1],
                    "data": entry["data"] + _classes(entry),
                    "pixels": entry["input_size"][-1],
                    "kNN %": entry["scores"].get("knn"),
                    "ridge %": entry["scores"].get("ridge"),
                    "weights": describe_location(tag),
                }
            )
        if not list_tags(model):
            rows.append({**_size(model, {}), **dict.fromkeys(("tag", "data", "pixels", "kNN %", "ridge %", "weights"))})
    return rows


def _size(model: str, args: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(p.numel() for p in timm.create_model(model, device="meta", **args).parameters())
    return {"model": model, "parameters (M)": round(parameters / 1e6, 1)}


def _classes(entry: Entry) -> str:
    if "head" not in entry:
        return ""
    top1 = entry["scores"].get(entry["head"])
    return f"; {len(entry['label_names'])} classes" + (f", top-1 {top1} %" if top1 is not None else "")


def describe_location(tag: str) -> str:
    """Where the weights of a tag would load from, for people."""
    entry = get_entry(tag)
    if path := find_file(tag):
        return str(path.parent)
    return f"{entry['repository']} on the Hub" if entry["repository"] else "not here"


def get_registered_args(model: str, head: str | None = None) -> dict[str, Any]:
    """`model_args` of a model of this package, as its name alone makes it, or as a tag does that has such a head."""
    return get_model_args(timm.create_model(model, device="meta", **POOL_ARGS[head]))


def get_head_args(entry: Entry) -> dict[str, Any]:
    """What timm must be told of a tag's head, besides the model's name, to build what its file holds."""
    return {"num_classes": len(entry.get("label_names", ())), **POOL_ARGS[entry.get("head")]}
