"""Attention maps of the heads of a block, drawn as pictures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.bad_images import find_good_images
from ..errors import DataError
from ..probes.features import load_model, to_device
from ..progress import track
from .patch_maps import get_grid, look_at
from .sheet import Look, check_drawable, draw_map, draw_sheet


def draw_attention(
    images: Sequence[str | Path],
    out: str | Path,
    name: str | nn.Module,
    *,
    img_size: int | None = None,
    block: int = -1,
    look: Look = "smooth",
    skip_bad: bool = False,
) -> Tensor:
    """Draw a row for each image: the image as the model sees it, then a map for each head.

    Args:
        images, out, name, img_size, look, skip_bad: as in `draw_pca`; the model is one of ours.
        block: index of the transformer block; negative indices count from the last block.

    Returns:
        the maps, (I, heads, h, w).

    Raises:
        DataError: a file cannot be used or written, the model is of another family, or the model has no such block.
        WeightsError: the model cannot be loaded, or cannot take the image size.
    """
    paths = find_good_images(images, skip_bad=skip_bad)
    out = check_drawable(out, len(paths), beside=images)
    model = to_device(load_model(name, img_size=img_size) if isinstance(name, str) else name)
    seen = look_at(model, paths, img_size)
    maps = draw_maps(model, seen.inputs, block)
    side = (seen.inputs.shape[-2], seen.inputs.shape[-1])
    rows = []
    for picture, path, heads in zip(seen.pictures, paths, maps):
        bright = heads / heads.amax(dim=(-2, -1), keepdim=True)
        drawn = [(draw_map(each, side, look), f"head {i}") for i, each in enumerate(bright, start=1)]
        rows.append([(picture, path.name), *drawn])
    draw_sheet(rows, out)
    return maps


@torch.no_grad()
def draw_maps(model: nn.Module, inputs: Tensor, block: int = -1) -> Tensor:
    """Compute the attention to each patch, averaged over all attending patches: (I, 3, H, W) -> (I, heads, h, w).

    Raises:
        DataError: the model has no `get_attention`, or no such block.
    """
    if not hasattr(model, "get_attention"):
        raise DataError(
            f"attention: expected one of our models, which can return attention, found {type(model).__name__}"
        )
    depth = len(model.blocks)
    if not -depth <= block < depth:
        raise DataError(f"block: expected {-depth} to {depth - 1}, got {block}")
    rows, columns = get_grid(model, inputs)
    device = next(model.parameters()).device
    maps = []
    for image in track(inputs.split(1), "attention", total=len(inputs)):  # one by one: N x N numbers a head
        (attention,) = model.get_attention(image.to(device), (block,))
        maps.append(attention.mean(dim=2).view(1, -1, rows, columns).float().cpu())
    return torch.cat(maps)
