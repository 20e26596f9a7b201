"""Make timm's configuration of each tag, with the location of its weights."""

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

# Arguments of a SCOTT by the kind of its classifier's head; a backbone (None) has no head and needs no arguments.
POOL_ARGS: dict[str | None, dict[str, Any]] = {
    None: {},
    "attentive": {"global_pool": "attentive"},
    "linear": {"fc_norm": True},
}
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # timm's fields for sources of weights


def list_tags(model: str) -> list[str]:
    """List the tags of a model, its default first, e.g. "scott_3_16" -> ["scott_3_16.mimjepa_flowers102_cpu"].

    The order is that of the manifest, which is sorted by tag. Classifiers come last, whatever their names are.
    """
    entries = {tag: entry for tag, entry in valid_entries().items() if tag.split(".")[0] == model}
    return sorted(entries, key=lambda tag: "head" in entries[tag])


def make_pretrained_cfgs() -> dict[str, dict[str, Any]]:
    """Make timm's configuration of each tag. timm lists a tag as pretrained only if its weights have a location."""
    return {
        tag: {
            "input_size": tuple(entry["input_size"]),
            "license": entry["license"],
            **_make_classes(entry),
            **locate_for_timm(tag),
        }
        for tag, entry in valid_entries().items()
    }


def _make_classes(entry: Entry) -> dict[str, Any]:
    names = tuple(entry.get("label_names", ()))
    return {"num_classes": len(names), "label_names": names or None}


def valid_entries() -> dict[str, Entry]:
    """Return the valid entries by tag; an invalid entry is reported only when its weights are requested."""
    entries = {}
    with suppress(WeightsError):  # a damaged manifest
        for tag in manifest():
            with suppress(WeightsError):
                entries[tag] = get_entry(tag)
    return entries


def locate_for_timm(tag: str) -> dict[str, str]:
    """Return the location of a tag's weights as timm's fields; empty if the weights were not found."""
    entry = get_entry(tag)
    if entry["repository"]:
        return {"hf_hub_id": f"{entry['repository']}@{entry['revision']}", "hf_hub_filename": entry["file"]}
    return {"file": str(path)} if (path := find_file(tag)) else {}


def find_tag(config: Any, model: str) -> str | None:
    """Find the tag of a model that a whole timm configuration (PretrainedCfg or dict) is of; None for other weights."""
    fields = config if isinstance(config, dict) else vars(config)
    named = f"{model}.{fields.get('tag')}"
    tags = sorted(list_tags(model), key=lambda tag: tag != named)
    return next((tag for tag in tags if _is_source_of(fields, tag, tag == named)), None)


def _is_source_of(fields: dict[str, Any], tag: str, named: bool) -> bool:
    """Return True if a timm configuration, perhaps taken from a loaded model, describes the weights of a tag."""
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
    """Return timm's overlay for a tag and the tensors to load; None for the tensors if the caller names a source.

    timm would open `file` again and read bytes that were not verified. timm prefers `state_dict` to `file`, and copies
    its content. So `state_dict` holds no tensors here, and the tensors are passed in by timm's filter function.
    """
    if any((overlay or {}).get(name) for name in WEIGHT_SOURCES):
        return {**dict.fromkeys(WEIGHT_SOURCES), **(overlay or {})}, None  # so that the tag's source does not win
    path, tensors = load(tag, cache_dir=cache_dir)
    # the configuration may be that of a model with other classes
    return {**_make_classes(get_entry(tag)), **(overlay or {}), "file": str(path), "state_dict": {"of": tag}}, tensors


def list_zoo() -> list[dict[str, Any]]:
    """List a row for each tag and for each model without weights: its size, data, scores and location of weights.

    Raises:
        WeightsError: the manifest is damaged.
    """
    manifest()  # so that a damaged manifest is reported, and not shown as one without weights
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
    """Describe in words where the weights of a tag would be loaded from."""
    entry = get_entry(tag)
    if path := find_file(tag):
        return str(path.parent)
    return f"{entry['repository']} on the Hub" if entry["repository"] else "not found"


def get_registered_args(model: str, head: str | None = None) -> dict[str, Any]:
    """Return the `model_args` of a registered model, as built from its name and the kind of its head alone."""
    return get_model_args(timm.create_model(model, device="meta", **POOL_ARGS[head]))


def get_head_args(entry: Entry) -> dict[str, Any]:
    """Return the arguments for a tag's head that timm needs, besides the model's name, to build the tag's model."""
    return {"num_classes": len(entry.get("label_names", ())), **POOL_ARGS[entry.get("head")]}
