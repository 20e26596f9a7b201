"""Random crops of images: area 0.2 to 1 (less for local views), aspect 3/4 to 4/3, bicubic, flipped half the time.

On a CPU torchvision resizes image by image. On a GPU two matrix products resize many images at once. Random numbers
are drawn on the CPU, from one stream per image.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .decoded import Images
from .device import compile_once, copy_to_device
from .random_streams import Draws

Area = tuple[float, float]  # of a crop: the smallest and the largest share of the image's area
AREA, LOCAL_AREA = (0.2, 1.0), (0.05, 0.3)
ASPECT, TRIES = (3 / 4, 4 / 3), 10
CROP_SHARE = 0.875  # of the short side, in evaluation: as resizing to 256 and cropping the central 224
AT_ONCE = 128  # images that are resized together on a device
GREY = 128  # of 255, the middle of the range


def make_random_crops(
    images: Sequence[Tensor], size: int, generator: torch.Generator | Draws, area: Area = AREA
) -> Tensor:
    """Make a random crop of each image, uint8 (3, H, W), flipped half the time: uint8 (B, 3, size, size)."""
    draws = Draws.of(generator, len(images))
    boxes = draw_crop_boxes(torch.tensor([image.shape[-2:] for image in images]), draws, area)
    crops = make_resized_crops(images, boxes, size, TF.InterpolationMode.BICUBIC)
    return torch.where(draws.uniform(1)[0].view(-1, 1, 1, 1) < 0.5, crops.flip(-1), crops)


def make_random_crops_on_device(
    images: Images, indices: Sequence[int], size: int, draws: Draws, area: Area = AREA
) -> Tensor:
    """Make the crops of `make_random_crops` on the device that holds the pixels: uint8 (B, 3, size, size).

    Boxes and flips are the same. Pixels differ by at most 2 of 255, because torchvision rounds between its two passes.
    """
    assert images.pixels is not None
    sizes, offsets = images.sizes[indices], images.offsets[indices]
    return cut_boxes(images.pixels, make_crop_table(sizes, offsets, draws, area), find_largest_box(sizes), size)


def make_crop_table(sizes: np.ndarray, offsets: np.ndarray, draws: Draws, area: Area = AREA) -> np.ndarray:
    """Draw random crops of images, as a table for `cut_boxes`: int64 (B, 7).

    The columns are: top, left, height and width of the box; the image's width; the image's start in the flat buffer,
    in pixels; 1 if the crop is flipped.

    Args:
        sizes, offsets: of each image, as in `Images`.
    """
    boxes = draw_crop_boxes(torch.from_numpy(sizes), draws, area).numpy()
    flipped = draws.uniform(1).numpy() < 0.5
    return np.concatenate([boxes, sizes[:, 1:], offsets[:, None] // 3, flipped.T], axis=1)


def find_largest_box(sizes: np.ndarray) -> tuple[int, int]:
    """Return a height and a width that no box of images of these sizes (N, 2) exceeds, as multiples of 8.

    `cut_boxes` cuts every box at this size. Taken over a whole data set, the size is the same in every batch, so that
    one compiled function serves all batches. A GPU's matrix units need multiples of 8.
    """
    across = np.ceil(sizes[:, ::-1] * ASPECT[1]).astype(np.int64) + 1  # + 1: a box's sides are rounded
    highest, widest = np.minimum(sizes, across).max(axis=0).tolist()
    return -(-highest // 8) * 8, -(-widest // 8) * 8


def cut_boxes(
    pixels: Tensor,
    table: np.ndarray,
    largest: tuple[int, int],
    size: int,
    compiled: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Cut out and resize boxes on the device that holds the pixels: uint8 (B, 3, size, size).

    Args:
        pixels: uint8, flat, as in `Images`.
        table: boxes from `make_crop_table`, int64 (B, 7).
        largest: height and width from `find_largest_box`; every box is cut at this size.
        compiled: use torch.compile, for few kernels.
        dtype: of pixels and weights; by default fp16 on a GPU, which holds every pixel value exactly, else fp32.
    """
    dtype = dtype or (torch.float16 if pixels.device.type == "cuda" else torch.float32)
    resize = compile_once(cut_and_resize) if compiled else cut_and_resize
    parts = copy_to_device(torch.from_numpy(table), pixels.device).split(AT_ONCE)
    crops = [resize(pixels.view(-1, 3), part, largest, size, dtype) for part in parts]
    return crops[0] if len(crops) == 1 else torch.cat(crops)


def cut_and_resize(pixels: Tensor, table: Tensor, largest: tuple[int, int], size: int, dtype: torch.dtype) -> Tensor:
    """Cut crops, uint8 (B, 3, size, size), from pixels (P, 3), for a part of a crop table (B, 7).

    In each row of a box the channels lie one after the other, so that both matrix products need no copies in between.
    """
    highest, widest = largest
    top, left, height, width, row, start, flipped = table[:, :, None].unbind(1)
    y = torch.arange(highest, device=pixels.device).minimum(height - 1)
    x = torch.arange(widest, device=pixels.device).minimum(width - 1)
    cut = pixels[(start + (top + y) * row)[:, :, None] + (left + x)[:, None]].transpose(2, 3)
    cut = cut.to(dtype, memory_format=torch.contiguous_format) - GREY  # fp16 rounds small numbers less
    down = make_resampling(height, highest, size).to(dtype)
    across = make_resampling(width, widest, size, flipped > 0).to(dtype)
    halfway = (cut.flatten(1, 2) @ across.transpose(1, 2)).view(-1, highest, 3 * size)
    resized = (down @ halfway).view(-1, size, 3, size).transpose(1, 2)
    return (resized.round() + GREY).clamp(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)


def make_resampling(length: Tensor, longest: int, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Compute matrices of antialiased bicubic resampling from the first `length` (B, 1) of `longest` samples to `size`.

    Args:
        mirrored: bool (B, 1), true for matrices whose outputs come in reverse order.

    Returns:
        weights, fp32 (B, size, longest); the weights of each output sum to 1.
    """
    scale = (length / size)[:, :, None]
    outputs = torch.arange(size, device=length.device)
    if mirrored is not None:
        outputs = torch.where(mirrored, size - 1 - outputs, outputs)
    centre = (outputs[..., None] + 0.5) * scale
    samples = torch.arange(longest, device=length.device)
    x = ((samples + 0.5 - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys's cubic, a = -1/2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (samples < length[:, :, None])
    return weights / weights.sum(dim=2, keepdim=True)


def make_centre_crops(images: Sequence[Tensor], size: int) -> Tensor:
    """Crop for evaluation: the central square of 0.875 of the short side, bilinear; shapes as `make_random_crops`."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    side = (CROP_SHARE * sizes.amin(dim=1, keepdim=True)).round().long().expand(-1, 2)
    return make_resized_crops(
        images, torch.cat([(sizes - side) // 2, side], dim=1), size, TF.InterpolationMode.BILINEAR
    )


def make_resized_crops(
    images: Sequence[Tensor], boxes: Tensor, size: int, interpolation: TF.InterpolationMode
) -> Tensor:
    """Cut out each image's box (top, left, height, width) and resize with antialiasing: uint8 (B, 3, size, size)."""
    return torch.stack(
        [
            TF.resized_crop(image, *box, size=[size, size], interpolation=interpolation)
            for image, box in zip(images, boxes.tolist())
        ]
    )


def draw_crop_boxes(sizes: Tensor, draws: Draws, area: Area = AREA) -> Tensor:
    """Draw RandomResizedCrop's boxes for images of height and width `sizes` (B, 2).

    The first of ten draws that fits into the image is used. If no draw fits, the box is the largest centred one with
    an allowed aspect.

    Returns:
        top, left, height, width: int64 (B, 4).
    """
    height, width = sizes.double().unbind(1)
    for_area, for_aspect, y, x = (draws.uniform(TRIES) for _ in range(4))
    pixels = (area[0] + (area[1] - area[0]) * for_area) * height * width
    aspect = torch.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * for_aspect)
    h, w = (pixels / aspect).sqrt().round(), (pixels * aspect).sqrt().round()
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    first = fits.long().argmax(dim=0, keepdim=True)
    h, w, y, x = (values.gather(0, first)[0] for values in (h, w, y, x))
    none_fits = ~fits.any(dim=0)
    h = torch.where(none_fits, torch.minimum(height, (width / ASPECT[0]).round()), h)
    w = torch.where(none_fits, torch.minimum(width, (height * ASPECT[1]).round()), w)
    top = torch.where(none_fits, (height - h) // 2, (y * (height - h + 1)).floor())
    left = torch.where(none_fits, (width - w) // 2, (x * (width - w + 1)).floor())
    return torch.stack([top, left, h, w], dim=1).long()
