"""The one crop of an image that both views share: area 0.2 to 1, aspect 3/4 to 4/3, bicubic, perhaps flipped.

On a CPU torchvision resizes image by image; on a GPU a whole batch is resized at once, by two matrix products. Random
numbers are drawn on the CPU, a stream for each image.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .augment import moved
from .draws import Draws
from .store import Images

AREA, ASPECT, TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
CROP_SHARE = 0.875  # of the short side, in evaluation: resize 256, centre crop 224
AT_ONCE = 64  # images


def random_crops(images: Sequence[Tensor], size: int, generator: torch.Generator | Draws) -> Tensor:
    """A random crop of each image, resized and perhaps flipped: uint8 (3, H, W) each -> uint8 (B, 3, size, size)."""
    draws = Draws.of(generator, len(images))
    boxes = crop_boxes(torch.tensor([image.shape[-2:] for image in images]), draws)
    crops = resized_crops(images, boxes, size, TF.InterpolationMode.BICUBIC)
    return torch.where(draws.uniform(1)[0].view(-1, 1, 1, 1) < 0.5, crops.flip(-1), crops)


def random_crops_on_device(images: Images, indices: Sequence[int], size: int, draws: Draws) -> Tensor:
    """`random_crops` of images whose pixels are on a device, and there: uint8 (B, 3, size, size).

    The same boxes and flips; pixels differ from torchvision's, which rounds between its two passes, by 1 or 2 of 255.
    """
    assert images.pixels is not None
    chosen = torch.tensor(indices)
    sizes, offsets = torch.from_numpy(images.sizes)[chosen], torch.from_numpy(images.offsets)[chosen]
    boxes = crop_boxes(sizes, draws)
    flipped = draws.uniform(1)[0] < 0.5
    table = torch.cat([boxes, sizes[:, 1:], offsets[:, None], flipped[:, None]], dim=1)
    parts = zip(moved(table, images.pixels.device).split(AT_ONCE), boxes[:, 2:].split(AT_ONCE))
    return torch.cat([_cut_and_resized(images.pixels, part, extents.amax(dim=0), size) for part, extents in parts])


def _cut_and_resized(pixels: Tensor, table: Tensor, largest: Tensor, size: int) -> Tensor:
    """Boxes of images in a flat buffer -> uint8 (B, 3, size, size).

    Args:
        table: int64 (B, 7): top, left, height and width of the box, width of the image, its place in `pixels`, flipped.
        largest: (2,), on the CPU, height and width that all boxes are cut as large as.
    """
    highest, widest = largest.tolist()
    top, left, height, width, row, offset, flipped = table[:, :, None].unbind(1)
    y = torch.arange(highest, device=pixels.device).minimum(height - 1)
    x = torch.arange(widest, device=pixels.device).minimum(width - 1)
    rows, columns = offset + (top + y) * row * 3, (left + x) * 3
    channels = torch.arange(3, device=pixels.device)
    cut = pixels[rows[:, :, None, None] + columns[:, None, :, None] + channels].float()
    down, across = resampling(height, highest, size), resampling(width, widest, size)
    across = torch.where(flipped[:, :, None] > 0, across.flip(1), across)
    resized = (down @ cut.flatten(2)).view(-1, size, widest, 3)
    resized = resized.permute(0, 3, 1, 2) @ across[:, None].transpose(-2, -1)
    return resized.round().clamp(0, 255).to(torch.uint8)


def resampling(length: Tensor, longest: int, size: int) -> Tensor:
    """Antialiased bicubic resampling as matrices: from the first `length` (B, 1) of `longest` samples to `size`.

    Returns:
        weights, fp32 (B, size, longest); those of an output sum to 1.
    """
    scale = (length / size)[:, :, None]
    centre = (torch.arange(size, device=length.device)[:, None] + 0.5) * scale
    samples = torch.arange(longest, device=length.device)
    x = ((samples + 0.5 - centre) / scale.clamp(min=1)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys's cubic, a = -1/2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * (samples < length[:, :, None])
    return weights / weights.sum(dim=2, keepdim=True)


def centre_crops(images: Sequence[Tensor], size: int) -> Tensor:
    """The evaluation's crop: the central square of 0.875 of the short side, bilinear; shapes as in `random_crops`."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    side = (CROP_SHARE * sizes.amin(dim=1, keepdim=True)).round().long().expand(-1, 2)
    return resized_crops(images, torch.cat([(sizes - side) // 2, side], dim=1), size, TF.InterpolationMode.BILINEAR)


def resized_crops(images: Sequence[Tensor], boxes: Tensor, size: int, interpolation: TF.InterpolationMode) -> Tensor:
    """Each image's box (top, left, height, width), resized with antialiasing: uint8 (B, 3, size, size)."""
    return torch.stack(
        [
            TF.resized_crop(image, *box, size=[size, size], interpolation=interpolation)
            for image, box in zip(images, boxes.tolist())
        ]
    )


def crop_boxes(sizes: Tensor, draws: Draws) -> Tensor:
    """RandomResizedCrop's boxes for images of height and width `sizes` (B, 2): (B, 4), top, left, height, width.

    Of ten draws the first that fits counts; if none does, the largest centred box of an allowed aspect.
    """
    height, width = sizes.double().unbind(1)
    for_area, for_aspect, y, x = (draws.uniform(TRIES) for _ in range(4))
    area = (AREA[0] + (AREA[1] - AREA[0]) * for_area) * height * width
    aspect = torch.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * for_aspect)
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    first = fits.long().argmax(dim=0, keepdim=True)
    h, w, y, x = (values.gather(0, first)[0] for values in (h, w, y, x))
    none_fits = ~fits.any(dim=0)
    h = torch.where(none_fits, torch.minimum(height, (width / ASPECT[0]).round()), h)
    w = torch.where(none_fits, torch.minimum(width, (height * ASPECT[1]).round()), w)
    top = torch.where(none_fits, (height - h) // 2, (y * (height - h + 1)).floor())
    left = torch.where(none_fits, (width - w) // 2, (x * (width - w + 1)).floor())
    return torch.stack([top, left, h, w], dim=1).long()
