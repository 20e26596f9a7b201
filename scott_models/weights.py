"""Weights: manifest -> file -> sha256 -> timm, and the names of the original implementation's checkpoints.

`weights_manifest.json` is the one source of truth: each tag's file, hash, origin and measured numbers. A file is
verified before a tensor of it is read, wherever it came from.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from .errors import WeightsError
from .layers import sincos_2d

PACKAGE = Path(__file__).parent
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "state_dict")  # timm's names for where weights come from


@cache
def manifest() -> dict[str, dict[str, Any]]:
    """The entries of weights_manifest.json by tag, e.g. "scott_3_16.mimjepa_flowers102"."""
    # A checkout has it above the package, where a link leads to it; archives of it may hold that link as text.
    folder = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else PACKAGE
    return json.loads((folder / "weights_manifest.json").read_text())["weights"]


def tags_of(model: str) -> list[str]:
    """The tags of a model, its default first, e.g. "scott_3_16" -> ["scott_3_16.mimjepa_flowers102"]."""
    return [tag for tag in manifest() if tag.split(".")[0] == model]


def folders() -> list[Path]:
    """Where weights are looked for, in order: $SCOTT_MODELS_DIR, the checkout's weights/, the wheel's own."""
    places = [Path(folder).expanduser()] if (folder := os.environ.get("SCOTT_MODELS_DIR")) else []
    return [*places, PACKAGE.parent / "weights", PACKAGE / "bundled"]


def find(tag: str) -> Path | None:
    """The first folder's file of a tag in the manifest, not yet verified; None if no folder has it."""
    candidates = (folder / tag / manifest()[tag]["file"] for folder in folders())
    return next((path for path in candidates if path.is_file()), None)


def resolve(tag: str) -> Path:
    """The verified weight file of a tag, e.g. "scott_3_16.mimjepa_flowers102".

    Raises:
        WeightsError: a tag the manifest does not know, a file no folder holds, or one whose sha256 is not the
            released file's.
    """
    if tag not in manifest():
        raise WeightsError(f"{tag}: no such weights are released; expected one of {sorted(manifest())}")
    path = find(tag)
    if path is None:
        looked = ", ".join(str(folder / tag) for folder in folders())
        raise WeightsError(f"{tag}: no weight file in any of {looked}; put the released folder into one of them")
    expected, found = manifest()[tag]["sha256"], sha256(path)
    if found != expected:
        raise WeightsError(
            f"{path}: damaged or not the released weights of {tag}: expected sha256 {expected}, found {found} "
            f"({path.stat().st_size} bytes, expected {manifest()[tag]['bytes']}); replace the file"
        )
    return path


def sha256(path: Path) -> str:
    """The file's sha256 in hexadecimal; hashed once a process unless the file changed."""
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _sha256(path: Path, *identity: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pretrained_cfgs() -> dict[str, dict[str, Any]]:
    """What timm needs to know of each tag. A tag counts as pretrained for timm only if its file is here."""
    cfgs = {}
    for tag, entry in manifest().items():
        path = find(tag)
        cfgs[tag] = {
            "input_size": tuple(entry["input_size"]),
            "license": entry["license"],
            **({"file": str(path)} if path else {}),
        }
    return cfgs


def pretrained_cfg_overlay(tag: str, overlay: dict[str, Any] | None) -> dict[str, Any]:
    """timm's overlay with the verified file of a tag, unless the caller's overlay names a source of its own."""
    if any((overlay or {}).get(source) for source in WEIGHT_SOURCES):
        return {"file": None, **(overlay or {})}  # or the tag's file would outrank the caller's url or repository
    return {**(overlay or {}), "file": str(resolve(tag))}


def zoo() -> list[dict[str, Any]]:
    """A row for each model without weights and for each tag: what it is, what it scored, where it would load from."""
    rows = []
    for model in timm.list_models(module="scott"):
        parameters = sum(p.numel() for p in timm.create_model(model, device="meta").parameters())
        common = {"model": model, "parameters (M)": round(parameters / 1e6, 1)}
        for tag in tags_of(model):
            entry, path = manifest()[tag], find(tag)
            rows.append(
                {
                    **common,
                    "tag": tag.split(".", 1)[1],
                    "data": entry["data"],
                    "pixels": entry["input_size"][-1],
                    "kNN %": entry["scores"]["knn"],
                    "ridge %": entry["scores"]["ridge"],
                    "weights": str(path.parent) if path else "not here",
                }
            )
        if not tags_of(model):
            rows.append({**common, **dict.fromkeys(("tag", "data", "pixels", "kNN %", "ridge %", "weights"))})
    return rows


# What the original calls a weight -> what SCOTT calls it.
REFERENCE_NAMES = {
    r"tokenizer\.tokenizer\.0\.": "patch_embed.conv1.",
    r"tokenizer\.tokenizer\.3\.": "patch_embed.conv2.",
    r"transformer\.msk_embed": "mask_token",
    r"transformer\.blocks\.(\d+)\.self_attn\.(qkv|proj)\.": r"blocks.\1.attn.\2.",
    r"transformer\.blocks\.(\d+)\.ffn_layer\.w12\.": r"blocks.\1.mlp.fc1.",
    r"transformer\.blocks\.(\d+)\.ffn_layer\.last_linear\.": r"blocks.\1.mlp.fc2.",
    r"head\.([12])\.": r"head.\1.",
}


def convert_reference(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder of the original implementation, renamed for `SCOTT(use_mask_token=True)`.

    A first name that all keys share ("encoder.", "module.") is dropped. The original stores its position; ours is
    computed, so the stored one is compared and left out.

    Raises:
        WeightsError: a weight whose name is not the original's, or a stored position other than the 2D sin-cos one.
    """
    converted = {}
    for name, tensor in _without_shared_prefix(state_dict).items():
        if name == "transformer.pos_embed":
            _check_position(tensor)
            continue
        for pattern, replacement in REFERENCE_NAMES.items():
            if match := re.match(pattern, name):
                converted[match.expand(replacement) + name[match.end() :]] = tensor
                break
        else:
            raise WeightsError(f"{name}: not a weight of the original SCOTT; known are {list(REFERENCE_NAMES)}")
    return converted


def convert_reference_predictor(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for `Predictor`; the original's predictor carries a mask token that nothing uses, which goes."""
    converted = convert_reference(state_dict)
    converted.pop("mask_token", None)
    return converted


def _without_shared_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    first = {name.split(".")[0] for name in state_dict}
    if len(first) > 1 or first <= {"tokenizer", "transformer", "head"}:
        return state_dict
    return {name.split(".", 1)[1]: tensor for name, tensor in state_dict.items()}


def _check_position(stored: Tensor) -> None:
    """The original trains on square images only, so N patches are sqrt(N) x sqrt(N)."""
    side = round(stored.shape[-2] ** 0.5)
    expected = sincos_2d((side, side), stored.shape[-1])
    found = stored.reshape(-1, stored.shape[-1]).float().cpu()
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5):
        raise WeightsError(
            f"transformer.pos_embed: expected the 2D sin-cos positions of a square grid, found others "
            f"of shape {tuple(stored.shape)}"
        )


def export(
    model: nn.Module, folder: Path, *, dtype: torch.dtype = torch.bfloat16, label_names: Sequence[str] = ()
) -> Path:
    """Save a SCOTT for `timm.create_model(f"local-dir:{folder}", pretrained=True)`, whole or not at all.

    Dropout belongs to training and our tag to our weights, so the saved configuration has neither.
    """
    size = model.patch_embed.img_size
    saved = deepcopy(model)
    saved.pretrained_cfg = {**model.pretrained_cfg, "input_size": (model.in_chans, *size)}
    model_args = {"img_size": size, "use_mask_token": model.mask_token is not None, "global_pool": model.global_pool}
    model_args["fc_norm"] = isinstance(model.fc_norm, nn.LayerNorm)
    return save_whole(saved.to(dtype), folder, model_args, label_names)


def save_whole(model: nn.Module, folder: Path, model_args: dict[str, Any], label_names: Sequence[str]) -> Path:
    """Save a timm model, which is changed, in timm's layout: written beside `folder` and renamed."""
    model = model.to("cpu", memory_format=torch.contiguous_format)
    model.pretrained_cfg = {**model.pretrained_cfg, "tag": None, "license": None}
    config = {"label_names": list(label_names)} if label_names else {}
    partial = folder.with_name(folder.name + ".partial")
    save_for_hf(model, str(partial), model_config=config, model_args=model_args, safe_serialization=True)
    _leave_classes_to_the_config(partial / "config.json")
    if folder.exists():
        shutil.rmtree(folder)
    return partial.rename(folder)


def _leave_classes_to_the_config(path: Path) -> None:
    """transformers passes the number of classes on its own, and cannot take it from `model_args` as well."""
    config = json.loads(path.read_text())
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
