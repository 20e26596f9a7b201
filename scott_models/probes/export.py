"""Export of a trained probe: backbone and head in one timm model that stores the names of its classes."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from .. import weights
from ..errors import DataError
from ..models.layers import PlainLayerNorm
from ..models.scott import SCOTT
from ..weights import local_dir
from .heads import AttentiveHead, Head


def export_classifier(
    backbone: nn.Module, head: Head, label_names: Sequence[str], folder: Path, input_size: tuple[int, int, int]
) -> Path:
    """Save backbone and head as one fp32 model for `timm.create_model(f"local-dir:{folder}", pretrained=True)`.

    Args:
        backbone: a timm model without a head.
        label_names: names of the classes, in the order of the head's logits; saved as `pretrained_cfg["label_names"]`.
        folder: a folder from `check_export_folder`.
        input_size: channels, height and width of the images that the head was trained on.

    Raises:
        DataError: a model of another family has no place for this head. It takes one linear layer, without a norm.
    """
    model = deepcopy(backbone).float()
    if isinstance(model, SCOTT):
        _attach(model, head)
        return weights.export(model, folder, dtype=torch.float32, label_names=label_names)
    model.reset_classifier(len(label_names))
    last = model.get_classifier()
    fits = isinstance(last, nn.Linear) and last.weight.shape == head[1].weight.shape
    if not fits or not isinstance(head[0], nn.Identity):
        raise DataError(f"export: expected a place for the head, found that {type(model).__name__} has none")
    last.load_state_dict(head[1].state_dict())
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": input_size}
    return local_dir.save_whole(model, folder, {}, label_names)


@torch.no_grad()
def _attach(model: SCOTT, head: Head) -> None:
    before, linear = head
    if isinstance(head, AttentiveHead):
        model.reset_classifier(linear.out_features, "attentive")
        assert model.attn_pool is not None
        model.attn_pool.load_state_dict(before.state_dict())
        model.fc_norm = nn.Identity()
        model.head.load_state_dict(linear.state_dict())
        return
    model.reset_classifier(linear.out_features)
    model.fc_norm = PlainLayerNorm(model.embed_dim)
    model.head.weight.copy_(linear.weight * before.weight)  # the norm's scale and shift become part of the layer
    model.head.bias.copy_(linear.bias + linear.weight @ before.bias)
