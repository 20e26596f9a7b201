"""Convert checkpoints of the original implementation to folders that timm reads.

The original saves three `state_dict`s for each run: context-encoder_checkpoint.pth, target-encoder_checkpoint.pth and
predictor_checkpoint.pth. The run's config.yaml is in the same folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .. import weights
from ..errors import WeightsError, WritingError
from ..models.scott import MODELS
from ..pretrain.predictor import Predictor
from ..weights import local_dir
from ..weights.authors_keys import convert_reference, convert_reference_predictor, drop_shared_prefix
from ..weights.local_dir import check_export_folder
from ..writing import to_json


def convert(checkpoint: str | Path, out: str | Path, *, num_heads: int | None = None) -> Path:
    """Convert an encoder for timm's "local-dir:", or a predictor for `load_predictor`, in fp32; return the folder.

    Width, depth, tokenizer and image size are read from the tensors. The number of attention heads is not in
    the tensors. It is `num_heads`, or by default the number in config.yaml in the checkpoint's folder. The mask token
    is left out, as in every export; `weights.convert_reference` keeps it.

    Raises:
        WeightsError: the file is not such a checkpoint, or the number of heads is unknown or does not fit.
        DataError: `out` cannot be created, or holds other files than an earlier conversion's.
    """
    checkpoint, folder = Path(checkpoint), check_export_folder(out)
    state = _read(checkpoint)
    heads = _heads(checkpoint.with_name("config.yaml")) if num_heads is None else num_heads
    if heads < 1:
        raise WeightsError(f"num_heads: expected at least 1, got {heads}")
    try:
        state = drop_shared_prefix(state)
        if any(name.startswith("tokenizer.") for name in state):
            return weights.export(_encoder(state, heads), folder, dtype=torch.float32)
        return _save_predictor(state, heads, folder)
    except WeightsError as error:  # a name or position embedding that is not the original's
        raise WeightsError(f"{checkpoint}: {error}") from error
    except WritingError:  # e.g. a full disk
        raise
    except Exception as error:  # KeyError of a missing name, RuntimeError of another shape, ...
        raise WeightsError(f"{checkpoint}: expected an encoder or a predictor of the original ({error})") from error


def load_predictor(folder: str | Path) -> Predictor:
    """Load a predictor that `convert` wrote.

    Raises:
        WeightsError: `convert` did not write the folder, or its files are damaged.
    """
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["predictor"]
        predictor = Predictor(**settings)
        predictor.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    except Exception as error:  # other files, damaged files or other names in the files
        raise WeightsError(f"{folder}: expected a predictor that `scott convert` wrote ({error})") from error
    return predictor


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a pickle. Other objects are refused before they can run code."""
    if not path.is_file():
        raise WeightsError(f"{path}: expected a checkpoint of the original, found no file there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, torch errors; torch's message advises to run the code
        raise WeightsError(
            f"{path}: expected a whole file with tensors only, found a damaged file or other objects; nothing was run "
            f"({type(error).__name__})"
        ) from error
    pairs = state.items() if isinstance(state, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        raise WeightsError(f"{path}: expected a state_dict of names and tensors, found {type(state).__name__}")
    if names := local_dir.find_non_finite(state):
        raise WeightsError(f"{path}: expected finite numbers, found NaN or infinity in {names[:3]}; training failed")
    return dict(state)


def _heads(config: Path) -> int:
    try:
        return int(yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["num_heads"])
    except Exception as error:  # no file, no YAML, other content
        raise WeightsError(
            f"{config}: expected the run's settings with model.num_heads; copy the file there or pass --num-heads "
            f"({type(error).__name__})"
        ) from error


def _encoder(state: dict[str, Tensor], heads: int) -> nn.Module:
    plain = "tokenizer.proj.weight" in state
    patches = state["transformer.pos_embed"].shape[-2]
    depth = _depth(state)
    name = f"scott_{'vit_' if plain else ''}{depth}_16"
    first = state["tokenizer.proj.weight" if plain else "tokenizer.tokenizer.0.weight"]
    model = timm.create_model(
        name if name in MODELS else "scott_vit_12_16" if plain else "scott_12_16",
        img_size=16 * round(patches**0.5),
        in_chans=first.shape[1],
        embed_dim=state["transformer.pos_embed"].shape[-1],
        depth=depth,
        num_heads=heads,
        use_mask_token=True,
    )
    model.load_state_dict(convert_reference(state))
    return model


def _save_predictor(state: dict[str, Tensor], heads: int, folder: Path) -> Path:
    patches, width = state["transformer.pos_embed"].shape[-2:]
    settings: dict[str, Any] = {"embed_dim": width, "num_patches": patches, "num_heads": heads, "depth": _depth(state)}
    settings["encoder_depth"] = 1  # affects only the initial weights, which are replaced
    tensors = convert_reference_predictor(state)
    Predictor(**settings).load_state_dict(tensors)
    with local_dir.folder_written_whole(folder) as partial:
        (partial / "model.safetensors").write_bytes(save(tensors))
        (partial / "config.json").write_text(to_json({"predictor": settings}, indent=2) + "\n", encoding="utf-8")
    return folder


def _depth(state: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.blocks."))
