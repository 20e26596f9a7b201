"""Weights that a run starts from, in place of random ones."""

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
    """Replace an encoder's fresh weights by trained ones; the mask token stays fresh where those have none.

    Args:
        init: a released tag, "local-dir:FOLDER", or the folder of a run that has ended.
        name: of the encoder's model.
        grow: let the weights be a shallower model's, of any number of heads. Its blocks come first, the others stay
            fresh: they add so little yet that features are about the shallower model's.

    Raises:
        WeightsError: weights that cannot be had, or are another model's.
    """
    if init in weights.manifest():
        model = init.split(".", maxsplit=1)[0]
        require(grow or model == name, "model.name", f"{model}, whose weights {init} are, or model.grow=true", name)
        path, released = weights.load(init)
        heads = timm_configs.get_registered_args(model)["num_heads"]  # or it would not be a tag's
    else:
        released, folder = None, Path(init.removeprefix("local-dir:"))
        path = next(iter(folder.glob("export/model.safetensors")), folder / "model.safetensors")
        if not path.is_file():
            tags = sorted(weights.manifest())
            raise WeightsError(f"init: expected one of {tags}, a run, or local-dir:FOLDER; found no {path}")
        heads = find_num_heads(path)
    if heads != (own := encoder.blocks[0].attn.num_heads) and not grow:  # which no shape tells
        raise WeightsError(
            f"init: expected weights of {own} heads, found {heads} in {path}; set model.num_heads={heads}"
        )
    try:
        state = load_file(path) if released is None else released
        if encoder.mask_token is not None:
            state.setdefault("mask_token", encoder.mask_token)
        if grow:
            state |= check_further_blocks(encoder, state)
        state = checkpoint_filter_fn(state, encoder)
        encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    except (RuntimeError, SafetensorError) as error:  # other shapes; a damaged file
        reason = " ".join(str(error).split("\n")[:2])  # the first of many
        raise WeightsError(f"{path}: cannot start {name}: {reason}") from error


def check_further_blocks(encoder: SCOTT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's own weights of the blocks that come after those of a shallower model's `state`."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    own = encoder.state_dict().items()
    return {name: tensor for name, tensor in own if name.startswith("blocks.") and int(name.split(".")[1]) >= depth}


def find_num_heads(path: Path) -> int:
    """How many heads the attention of exported weights has, by the configuration beside them.

    Raises:
        WeightsError: there is none, or not one of a model of this package.
    """
    expected = f"beside the weights the configuration of one of {MODELS}, for the number of heads"
    with local_dir.read_record(path.with_name("config.json"), expected) as config:
        content = json.loads(config.read_text())
        if (model := content["architecture"]) not in MODELS:
            raise LookupError(f"architecture {model!r}")
        return content.get("model_args", {}).get("num_heads") or timm_configs.get_registered_args(model)["num_heads"]
