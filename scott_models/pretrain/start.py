"""Trained weights that a run starts from, instead of random ones."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .. import weights
from ..errors import WeightsError
from ..models.scott import MODELS, SCOTT, checkpoint_filter_fn
from ..training.settings import require
from ..weights import local_dir, timm_configs


def load_start(encoder: SCOTT, init: str, name: str, *, grow: bool = False) -> None:
    """Replace an encoder's random weights by trained ones; the mask token stays random if the file has none.

    Args:
        encoder: changed in place.
        init: a released tag, "local-dir:FOLDER", or the folder of a run that has ended.
        name: model name of the encoder.
        grow: accept the weights of a shallower model, with any number of heads. Its blocks come first. The other blocks
            stay random; they change features so little that these stay close to the shallower model's.

    Raises:
        RecipeError: `init` is a tag of another model, and `grow` is False.
        WeightsError: the weights are missing, damaged, or those of another model or number of heads.
    """
    if init in weights.manifest():
        model = init.split(".", maxsplit=1)[0]
        require(grow or model == name, "model.name", f"{model}, the model of {init}, or model.grow=true", name)
        path, released = weights.load(init)
        heads = timm_configs.get_registered_args(model)["num_heads"]  # released weights have the model's own number
    else:
        released, folder = None, Path(init.removeprefix("local-dir:"))
        path = next(iter(folder.glob("export/model.safetensors")), folder / "model.safetensors")
        if not path.is_file():
            tags = sorted(weights.manifest())
            raise WeightsError(f"init: expected one of {tags}, a run, or local-dir:FOLDER, found no {path}")
        heads = find_num_heads(path)
    if heads != (own := encoder.blocks[0].attn.num_heads) and not grow:  # which the shapes of the weights do not show
        raise WeightsError(
            f"init: expected weights of {own} heads, found {heads} in {path}; set model.num_heads={heads}"
        )
    try:
        state = load_file(path) if released is None else released
        if encoder.mask_token is not None:
            state.setdefault("mask_token", encoder.mask_token)
        if grow:
            state |= take_further_blocks(encoder, state)
        state = checkpoint_filter_fn(state, encoder)
        encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    except (RuntimeError, SafetensorError) as error:  # wrong shapes, or a damaged file
        reason = " ".join(str(error).split("\n")[:2])  # torch lists every wrong shape; show the first
        raise WeightsError(f"{path}: cannot start {name}: {reason}") from error


def take_further_blocks(encoder: SCOTT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's own weights of the blocks that the shallower model of `state` lacks."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    own = encoder.state_dict().items()
    return {name: tensor for name, tensor in own if name.startswith("blocks.") and int(name.split(".")[1]) >= depth}


def find_num_heads(path: Path) -> int:
    """Read the number of attention heads of exported weights from the config.json beside them.

    Raises:
        WeightsError: config.json is missing or damaged, or names a model that this package does not have.
    """
    expected = f"the configuration of one of {MODELS}, for the number of heads"
    with local_dir.read_record(path.with_name("config.json"), expected) as config:
        content = json.loads(config.read_text(encoding="utf-8"))
        if (model := content["architecture"]) not in MODELS:
            raise LookupError(f"architecture {model!r}")
        return content.get("model_args", {}).get("num_heads") or timm_configs.get_registered_args(model)["num_heads"]
