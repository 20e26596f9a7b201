"""What timm is told of each tag: its configuration, and where its weights are."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from ..errors import WeightsError
from .entries import Entry, entry_of, manifest
from .files import find, load
from .local_dir import model_args

# What a classifier's head needs of a SCOTT, as arguments; nothing of a backbone's, which has none.
POOL_ARGS: dict[str | None, dict[str, Any]] = {
    None: {},
    "attentive": {"global_pool": "attentive"},
    "linear": {"fc_norm": True},
}
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # timm's names for where weights come from


def tags_of(model: str) -> list[str]:
    """The tags of a model, its default first, e.g. "scott_3_16" -> ["scott_3_16.mimjepa_flowers102_cpu"].

    The order is the manifest's, which is that of the tags; classifiers come last, whatever they are called.
    """
    entries = {tag: entry for tag, entry in usable().items() if tag.split(".")[0] == model}
    return sorted(entries, key=lambda tag: "head" in entries[tag])


def pretrained_cfgs() -> dict[str, dict[str, Any]]:
    """What timm needs to know of each tag. A tag counts as pretrained for timm only if its weights can be had."""
    return {
        tag: {
            "input_size": tuple(entry["input_size"]),
            "license": entry["license"],
            "num_classes": len(names := tuple(entry.get("label_names", ()))),
            "label_names": names or None,
            **source(tag),
        }
        for tag, entry in usable().items()
    }


def usable() -> dict[str, Entry]:
    """The entries by tag that lead nowhere astray; what is wrong with one is told when its weights are asked for."""
    entries = {}
    with suppress(WeightsError):  # of a whole manifest
        for tag in manifest():
            with suppress(WeightsError):
                entries[tag] = entry_of(tag)
    return entries


def source(tag: str) -> dict[str, str]:
    """Where a tag's weights are, in timm's words."""
    entry = entry_of(tag)
    if entry["repository"]:
        return {"hf_hub_id": f"{entry['repository']}@{entry['revision']}", "hf_hub_filename": entry["file"]}
    return {"file": str(path)} if (path := find(tag)) else {}


def tag_in(config: Any, model: str) -> str | None:
    """Which of a model's tags a whole timm configuration (PretrainedCfg or dict) is of; None of other weights."""
    fields = config if isinstance(config, dict) else vars(config)
    named = f"{model}.{fields.get('tag')}"
    tags = sorted(tags_of(model), key=lambda tag: tag != named)
    return next((tag for tag in tags if _is_source_of(fields, tag, tag == named)), None)


def _is_source_of(fields: dict[str, Any], tag: str, named: bool) -> bool:
    """Whether the weights of a timm configuration, which may be what one of our models ended with, are a tag's."""
    entry = entry_of(tag)
    if any(fields.get(name) for name in ("source", "url", "state_dict")):
        return False
    if file := fields.get("file"):
        *_, repository, _, folder, name = ("", "", "", *Path(file).parts)
        cached = (f"models--{entry['repository']}".replace("/", "--"), entry["revision"])
        return name == entry["file"] and (folder == tag or (repository, folder) == cached)
    hub_id, name = fields.get("hf_hub_id"), fields.get("hf_hub_filename") or entry["file"]
    return (hub_id, name) == (source(tag).get("hf_hub_id"), entry["file"]) and (named or hub_id is not None)


def pretrained_cfg_overlay(
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


def zoo() -> list[dict[str, Any]]:
    """A row for each model without weights and for each tag: what it is, what it scored, where it would load from."""
    manifest()  # or one that is damaged would look like one without weights
    rows = []
    for model in timm.list_models(module="scott"):
        for tag in tags_of(model):
            entry = entry_of(tag)
            rows.append(
                {
                    **_size(model, head_args(entry)),
                    "tag": tag.split(".", 1)[1],
                    "data": entry["data"] + _classes(entry),
                    "pixels": entry["input_size"][-1],
                    "kNN %": entry["scores"].get("knn"),
                    "ridge %": entry["scores"].get("ridge"),
                    "weights": place(tag),
                }
            )
        if not tags_of(model):
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


def place(tag: str) -> str:
    """Where the weights of a tag would load from, for people."""
    entry = entry_of(tag)
    if path := find(tag):
        return str(path.parent)
    return f"{entry['repository']} on the Hub" if entry["repository"] else "not here"


def registered_args(model: str, head: str | None = None) -> dict[str, Any]:
    """`model_args` of a model of this package, as its name alone makes it, or as a tag does that has such a head."""
    return model_args(timm.create_model(model, device="meta", **POOL_ARGS[head]))


def head_args(entry: Entry) -> dict[str, Any]:
    """What timm must be told of a tag's head, besides the model's name, to build what its file holds."""
    return {"num_classes": len(entry.get("label_names", ())), **POOL_ARGS[entry.get("head")]}
