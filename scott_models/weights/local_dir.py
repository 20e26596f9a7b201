"""A model as timm's local-dir layout: config.json and model.safetensors, whole or not at all."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ..errors import DataError, UserError, WeightsError


def export(
    model: nn.Module, folder: Path, *, dtype: torch.dtype = torch.bfloat16, label_names: Sequence[str] = ()
) -> Path:
    """Save a SCOTT for `timm.create_model(f"local-dir:{folder}", pretrained=True)`, whole or not at all.

    Dropout belongs to training and our tag to our weights, so the saved configuration has neither.
    """
    saved = deepcopy(model)
    saved.pretrained_cfg = {**model.pretrained_cfg, "input_size": (model.in_chans, *model.patch_embed.img_size)}
    return save_whole(saved.to(dtype), folder, get_model_args(model), label_names)


def get_model_args(model: nn.Module) -> dict[str, Any]:
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


@contextmanager
def read_record(path: Path, expected: str) -> Iterator[Path]:
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


def find_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those in which a number is none, or infinite."""
    return [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]


def save_whole(model: nn.Module, folder: Path, model_args: dict[str, Any], label_names: Sequence[str]) -> Path:
    """Save a timm model, which is changed, in timm's layout: written beside `folder` and renamed."""
    model = model.to("cpu", memory_format=torch.contiguous_format)
    with folder_written_whole(folder) as partial:
        # safetensors' own writer makes a file that its owner alone may read
        (partial / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
        write_config(model, partial / "config.json", model_args, label_names)
    return folder


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
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


EXPORTED = {"config.json", "model.safetensors"}


def check_export_folder(folder: str | Path) -> Path:
    """The path of a folder that an export may take or replace: ask before what takes long.

    Raises:
        DataError: a file, a folder that holds anything but an earlier export, or one whose parent is not there.
    """
    path = Path(folder).resolve()
    if path.is_dir() and {file.name for file in path.iterdir()} <= EXPORTED:
        return path
    if not path.exists() and path.parent.is_dir():
        return path
    found = "other files there" if path.exists() else f"no folder {path.parent} to put it in"
    raise DataError(f"{folder}: expected the name of a new folder or of an earlier export, found {found}")
