"""Maps of patch features of a set of images, together with the pixels that the model saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..data.bad_images import all_bad_listed
from ..data.images import load_image
from ..errors import DataError
from ..probes.features import forward_features, resolve_transform_config
from ..progress import track

PATCHES_AT_ONCE = 12_544  # 64 images of 14 x 14 patches
SHOWN = 256  # images at most: all are in memory at once, and a picture of more would be too large to read


@dataclass(frozen=True)
class Seen:
    """Hold I images as a model sees them.

    Attributes:
        pictures: the squares that were cut out of the images.
        inputs: (I, 3, H, W), normalised.
    """

    pictures: list[Image.Image]
    inputs: Tensor


def look_at(model: nn.Module, images: Sequence[Path], img_size: int | None = None) -> Seen:
    """Read the largest square in the middle of each image, at the size the model takes.

    Args:
        img_size: pixels, as given to `load_model`; by default the size the weights were trained at.

    Raises:
        DataError: there are too many images, or an image cannot be used.
    """
    if len(images) > SHOWN:
        raise DataError(f"expected at most {SHOWN} images to draw, found {len(images)}; give fewer")
    config = {**resolve_transform_config(model, img_size), "crop_pct": 1.0, "crop_mode": "center"}
    transform = create_transform(**config)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with all_bad_listed(images):
        inputs = torch.stack([transform(load_image(image)) for image in track(images, "reading", total=len(images))])
    pixels = rearrange(((inputs * std + mean).clamp(0, 1) * 255).round().byte(), "b c h w -> b h w c")
    return Seen([Image.fromarray(each.numpy()) for each in pixels], inputs)


def compute_patch_maps(model: nn.Module, inputs: Tensor, what: str = "features") -> Tensor:
    """Compute the patch features of images (I, 3, H, W) -> (I, h, w, D), fp32.

    Raises:
        DataError: the model has no patch tokens.
    """
    grid = get_grid(model, inputs)
    at_once = max(1, PATCHES_AT_ONCE // (grid[0] * grid[1]))
    maps = []
    for batch in track(inputs.split(at_once), what, total=len(inputs), size=at_once):
        _, tokens = forward_features(model, batch)
        if tokens is None or tokens.shape[1] != grid[0] * grid[1]:
            raise DataError(f"expected a model with {grid[0]} x {grid[1]} patch tokens, found {type(model).__name__}")
        maps.append(rearrange(tokens.cpu(), "b (h w) d -> b h w d", h=grid[0]))
    return torch.cat(maps)


def get_grid(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches.

    Raises:
        DataError: the model has no patches, or a side of the images is not a multiple of the patch size.
    """
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is None:
        raise DataError(f"expected a vision transformer, which has patch features, found {type(model).__name__}")
    size = (size, size) if isinstance(size, int) else size
    if inputs.shape[-2] % size[0] or inputs.shape[-1] % size[1]:
        raise DataError(
            f"img_size: expected multiples of {size[0]} pixels, got {inputs.shape[-2]} x {inputs.shape[-1]}"
        )
    return inputs.shape[-2] // size[0], inputs.shape[-1] // size[1]
