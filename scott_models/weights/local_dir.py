"""Save models in timm's local-dir layout: config.json and model.safetensors, whole or not at all."""

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
from ..writing import explain_failure, to_json


def export(
    model: nn.Module, folder: Path, *, dtype: torch.dtype = torch.bfloat16, label_names: Sequence[str] = ()
) -> Path:
    """Save a SCOTT for `timm.create_model(f"local-dir:{folder}", pretrained=True)`, whole or not at all.

    The files hold no mask token: only pretraining uses it, and distributed training refuses parameters without a use.
    The saved configuration has no dropout, which belongs to training, and no tag, which belongs to released weights.

    Args:
        dtype: of the saved tensors.
        label_names: the classes in the order of the logits.
    """
    saved = deepcopy(model)
    saved.mask_token = None
    saved.pretrained_cfg = {**model.pretrained_cfg, "input_size": (model.in_chans, *model.patch_embed.img_size)}
    return save_whole(saved.to(dtype), folder, get_model_args(saved), label_names)


def get_model_args(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that timm needs to build a SCOTT again, besides its name."""
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
    """Yield the path, and turn the errors of reading and using the file's content into one sentence.

    Raises:
        WeightsError: the file cannot be read, or its content is damaged or not what `expected` describes.
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
    """List the tensors that contain NaN or infinity."""
    return [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]


def save_whole(model: nn.Module, folder: Path, model_args: dict[str, Any], label_names: Sequence[str]) -> Path:
    """Save a timm model in timm's layout: written beside `folder`, then renamed. The model itself is changed."""
    model = model.to("cpu", memory_format=torch.contiguous_format)
    with folder_written_whole(folder) as partial:
        # safetensors' own writer makes a file that only its owner may read
        (partial / "model.safetensors").write_bytes(safetensors.torch.save(model.state_dict()))
        write_config(model, partial / "config.json", model_args, label_names)
    return folder


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` if the block ends without an error.

    Raises:
        WritingError: the folder cannot be written.
    """
    with explain_failure(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            partial = Path(beside) / folder.name  # has the usual permissions; only its owner may read `beside`
            partial.mkdir()
            yield partial
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)


def write_config(model: nn.Module, path: Path, model_args: dict[str, Any], label_names: Sequence[str] = ()) -> None:
    """Write config.json of a timm model. The model's `pretrained_cfg` is changed.

    `num_classes` is written at the top level only: transformers passes it separately and fails if `model_args` has it
    too. `label_names` are written at the top level only, because the weights that the model started from may have other
    classes, whose names and descriptions are left out. `dynamic_img_size` is left out: it belongs to training, and
    older timm does not save it.
    """
    model.pretrained_cfg = {**model.pretrained_cfg, "tag": None, "license": None, "num_classes": model.num_classes}
    labels = {"label_names": list(label_names)} if label_names else {}
    if label_names:
        model.pretrained_cfg |= {"label_names": None, "label_descriptions": None}
    save_config_for_hf(model, path, model_config=labels, model_args=model_args)  # older timm needs a Path
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("num_classes", "dynamic_img_size"):
        config.get("model_args", {}).pop(name, None)
    path.write_text(to_json(config, indent=2) + "\n", encoding="utf-8")


EXPORTED = {"config.json", "model.safetensors"}


def check_export_folder(folder: str | Path) -> Path:
    """Return the resolved path of a folder that an export may create or replace.

    Validate early: the model to export may take long to train.

    Raises:
        DataError: the path is a file or a folder with other files than an earlier export's, or its parent does not
            exist.
    """
    path = Path(folder).resolve()
    if path.is_dir() and {file.name for file in path.iterdir()} <= EXPORTED:
        return path
    if not path.exists() and path.parent.is_dir():
        return path
    found = "other files there" if path.exists() else f"no folder {path.parent} to put it in"
    raise DataError(f"{folder}: expected the name of a new folder or of an earlier export, found {found}")
