"""Convert the weight names of the original implementation's checkpoints to those of this package."""

import re

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from ..errors import WeightsError

# Pattern of a weight's name in the original -> its name in SCOTT.
REFERENCE_NAMES = {
    r"tokenizer\.tokenizer\.0\.": "patch_embed.conv1.",
    r"tokenizer\.tokenizer\.3\.": "patch_embed.conv2.",
    r"tokenizer\.proj\.": "patch_embed.proj.",  # the plain ViT
    r"transformer\.msk_embed": "mask_token",
    r"transformer\.blocks\.(\d+)\.self_attn\.(qkv|proj)\.": r"blocks.\1.attn.\2.",
    r"transformer\.blocks\.(\d+)\.ffn_layer\.w12\.": r"blocks.\1.mlp.fc1.",
    r"transformer\.blocks\.(\d+)\.ffn_layer\.last_linear\.": r"blocks.\1.mlp.fc2.",
    r"head\.([12])\.": r"head.\1.",
}


def convert_reference(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an original encoder for `SCOTT(use_mask_token=True)`.

    A prefix that all names share ("encoder.", "module.") is dropped. The original stores its position embedding. SCOTT
    computes the same embedding, so the stored one is compared with it and left out.

    Raises:
        WeightsError: a weight has a name that the original does not use, or the stored position embedding is not the
            2D sin-cos one.
    """
    converted = {}
    for name, tensor in drop_shared_prefix(state_dict).items():
        if name == "transformer.pos_embed":
            _check_position(tensor)
            continue
        for pattern, replacement in REFERENCE_NAMES.items():
            if match := re.match(pattern, name):
                converted[match.expand(replacement) + name[match.end() :]] = tensor
                break
        else:
            raise WeightsError(f"{name}: not a weight of the original SCOTT or of its predictor")
    return converted


def convert_reference_predictor(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an original predictor for `Predictor`, and drop its unused mask token.

    Raises:
        WeightsError: as `convert_reference`.
    """
    converted = convert_reference(state_dict)
    converted.pop("mask_token", None)
    return converted


def drop_shared_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop a prefix that all names share and that is not one of the original's own, e.g. "encoder." or "module."."""
    first = {name.split(".")[0] for name in state_dict}
    if len(first) > 1 or first <= {"tokenizer", "transformer", "head"}:
        return state_dict
    return {name.split(".", 1)[1]: tensor for name, tensor in state_dict.items()}


def _check_position(stored: Tensor) -> None:
    """Check that a stored position embedding (..., N, D) is the 2D sin-cos one.

    The original trains on square images only, so N patches form a grid of sqrt(N) x sqrt(N).
    """
    side = round(stored.shape[-2] ** 0.5)
    expected = build_sincos2d_pos_embed([side, side], stored.shape[-1], interleave_sin_cos=True)
    found = stored.reshape(-1, stored.shape[-1]).float().cpu()
    rounding = max(1e-5, torch.finfo(stored.dtype).eps)
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=rounding):
        raise WeightsError(
            f"transformer.pos_embed: expected the 2D sin-cos positions of a square grid, found "
            f"other values of shape {tuple(stored.shape)}"
        )
