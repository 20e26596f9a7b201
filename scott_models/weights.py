"""Weights: manifest -> file (folder, wheel, Hub) -> sha256 -> timm, and back into timm's layout.

Tensors of a tag are parsed from the very bytes that were verified, wherever they came from; only safetensors are read.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import safetensors.torch
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from . import hub
from .errors import UserError, WeightsError
from .manifest import PACKAGE, Entry, entry_of, manifest
from .reference import convert_reference, convert_reference_predictor

__all__ = ["convert_reference", "convert_reference_predictor", "export", "load", "manifest", "resolve"]

# What a classifier's head needs of a SCOTT, as arguments; nothing of a backbone's, which has none.
POOL_ARGS: dict[str | None, dict[str, Any]] = {
    None: {},
    "attentive": {"global_pool": "attentive"},
    "linear": {"fc_norm": True},
}
PIECE = 2**20  # bytes that are read at once of a file that is too long
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # timm's names for where weights come from

Found = TypeVar("Found")
Check = Callable[[Path, str, Entry, str], Found]  # of a file, its tag, its entry, and what to do if it is damaged

logger = logging.getLogger(__name__)


def tags_of(model: str) -> list[str]:
    """The tags of a model, its default first, e.g. "scott_3_16" -> ["scott_3_16.mimjepa_flowers102_cpu"].

    The order is the manifest's, which is that of the tags; classifiers come last, whatever they are called.
    """
    entries = {tag: entry for tag, entry in usable().items() if tag.split(".")[0] == model}
    return sorted(entries, key=lambda tag: "head" in entries[tag])


def folders() -> list[Path]:
    """Where weights are looked for, in order: $SCOTT_MODELS_DIR, the checkout's weights/, the wheel's own.

    A package that was installed from a checkout also looks into that checkout's weights/, for as long as it is there.
    """
    places = [Path(os.path.expanduser(folder))] if (folder := os.environ.get("SCOTT_MODELS_DIR")) else []
    source = [checkout / "weights"] if (checkout := installed_from()) else []
    return [*places, PACKAGE.parent / "weights", PACKAGE / "bundled", *source]


@cache
def installed_from() -> Path | None:
    """The checkout that this package was installed from, as the installer notes it (PEP 610); None of other sources."""
    try:
        installed = distribution("scott_models")
        noted = json.loads(installed.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    is_this = Path(str(installed.locate_file(PACKAGE.name))).resolve() == PACKAGE.resolve()
    return Path(url2pathname(urlsplit(noted["url"]).path)) if is_this and "dir_info" in noted else None


def find(tag: str) -> Path | None:
    """The first folder's file of a tag in the manifest, not yet verified; None if no folder has it."""
    file = entry_of(tag)["file"]
    places = (folder / tag / file for folder in folders())
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
    return _obtain(tag, verified, cache_dir=cache_dir, token=token)


def load(tag: str, *, cache_dir: str | Path | None = None) -> tuple[Path, dict[str, Tensor]]:
    """Load the tensors of a tag by name, parsed from the bytes that were verified, and say which file they are from.

    Raises:
        WeightsError: as `resolve`.
    """
    path, content = _obtain(tag, read, cache_dir=cache_dir)
    return path, safetensors.torch.load(content)


def _obtain(tag: str, check: Check[Found], *, cache_dir: str | Path | None = None, token: str | None = None) -> Found:
    """Apply a check to a tag's file, where `resolve` looks for it."""
    entry = entry_of(tag)
    if path := find(tag):
        again = f"replace it: scott download {tag} --dir '{path.parents[1]}'"
        restore = "take it from the release again, or reinstall the package"  # there is nothing to download
        return check(path, tag, entry, again if entry["repository"] else restore)
    if entry["repository"] is None:
        looked = ", ".join(str(folder / tag) for folder in folders())
        raise WeightsError(f"{tag}: no weight file in any of {looked}; put the released folder into one of them")
    return from_hub(tag, entry, check, cache_dir=cache_dir, token=token)


def from_hub(
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


def verified(path: Path, tag: str, entry: Entry, advice: str) -> Path:
    """The same path, if its bytes are the released ones.

    Raises:
        WeightsError: other bytes; both hashes are named, and what to do.
    """
    if not is_released(path, entry):
        raise _damaged(path, tag, entry, sha256(path), path.stat().st_size, advice)
    return path


def read(path: Path, tag: str, entry: Entry, advice: str) -> tuple[Path, bytes]:
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


def export(
    model: nn.Module, folder: Path, *, dtype: torch.dtype = torch.bfloat16, label_names: Sequence[str] = ()
) -> Path:
    """Save a SCOTT for `timm.create_model(f"local-dir:{folder}", pretrained=True)`, whole or not at all.

    Dropout belongs to training and our tag to our weights, so the saved configuration has neither.
    """
    saved = deepcopy(model)
    saved.pretrained_cfg = {**model.pretrained_cfg, "input_size": (model.in_chans, *model.patch_embed.img_size)}
    return save_whole(saved.to(dtype), folder, model_args(model), label_names)


def model_args(model: nn.Module) -> dict[str, Any]:
    """What timm must be told to build a SCOTT again, besides its name."""
    return {
        "img_size": model.patch_embed.img_size,
        "in_chans": model.in_chans,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "use_mask_token": model.mask_token is not None,
        "global_pool": model.global_pool,
        "fc_norm": isinstance(model.fc_norm, nn.LayerNorm),
    }


def registered_args(model: str, head: str | None = None) -> dict[str, Any]:
    """`model_args` of a model of this package, as its name alone makes it, or as a tag does that has such a head."""
    return model_args(timm.create_model(model, device="meta", **POOL_ARGS[head]))


def head_args(entry: Entry) -> dict[str, Any]:
    """What timm must be told of a tag's head, besides the model's name, to build what its file holds."""
    return {"num_classes": len(entry.get("label_names", ())), **POOL_ARGS[entry.get("head")]}


@contextmanager
def reading(path: Path, expected: str) -> Iterator[Path]:
    """Around the use of what a file says: whatever is damaged or foreign in it is told in a sentence.

    Raises:
        WeightsError: expected what, found something else.
    """
    try:
        yield path
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise WeightsError(
            f"{path}: expected {expected}, found something else ({type(error).__name__}: {error})"
        ) from error


def infinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those in which a number is none, or infinite."""
    return [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]


def save_whole(model: nn.Module, folder: Path, model_args: dict[str, Any], label_names: Sequence[str]) -> Path:
    """Save a timm model, which is changed, in timm's layout: written beside `folder` and renamed."""
    model = model.to("cpu", memory_format=torch.contiguous_format)
    with replaced(folder) as partial:
        # safetensors' own writer makes a file that its owner alone may read
        (partial / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
        write_config(model, partial / "config.json", model_args, label_names)
    return folder


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place once it is full."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        partial = Path(beside) / folder.name  # with everyone's permissions, which that one has not
        partial.mkdir()
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def write_config(model: nn.Module, path: Path, model_args: dict[str, Any], label_names: Sequence[str] = ()) -> None:
    """config.json of a timm model, whose `pretrained_cfg` is changed.

    `num_classes` stands at its top alone: transformers passes it on its own, and cannot take it from `model_args` too.
    So do `label_names`: those that the model's weights came with may have been other classes. That a model took images
    of any size belongs to its training, and older timm does not keep it.
    """
    model.pretrained_cfg = {**model.pretrained_cfg, "tag": None, "license": None}
    labels = {"label_names": list(label_names)} if label_names else {}
    if label_names:
        model.pretrained_cfg["label_names"] = None
    save_config_for_hf(model, path, model_config=labels, model_args=model_args)  # a Path: older timm opens it
    config = json.loads(path.read_text())
    for name in ("num_classes", "dynamic_img_size"):
        config.get("model_args", {}).pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n")
