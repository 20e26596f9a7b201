"""From decoded images to the two views of MIM-JEPA, each image with its own draw (paper, Appendix C; released code).

One crop (area 0.2 to 1, aspect 3/4 to 4/3, bicubic) and one flip serve both views, so that content stays in place;
colours are each view's own. A view is left alone with probability 0.4; otherwise, in random order: colour jitter
(0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale 0.1, Gaussian blur of 9x9 pixels 0.3. Random numbers are drawn on
the CPU, a stream for each image; pixels are worked on in whole batches, on the device they are on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .draws import Draws

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT, TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
P_ANY, P_JITTER, P_GRAY, P_BLUR = 0.6, 0.8, 0.1, 0.3
BLUR_SIZE, BLUR_SIGMA = 9, (0.1, 2.0)
CROP_SHARE = 0.875  # of the short side, in evaluation: resize 256, centre crop 224
VIEWS = ("different", "same", "none")

Operation = Callable[[Tensor, Tensor], Tensor]  # images[i], i -> images


def random_crops(images: Sequence[Tensor], size: int, generator: torch.Generator | Draws) -> Tensor:
    """A random crop of each image, resized and perhaps flipped: uint8 (3, H, W) each -> uint8 (B, 3, size, size)."""
    draws = Draws.of(generator, len(images))
    boxes = crop_boxes(torch.tensor([image.shape[-2:] for image in images]), draws)
    flipped = draws.uniform(1)[0] < 0.5
    crops = resized_crops(images, boxes, size, TF.InterpolationMode.BICUBIC)
    return torch.where(moved(flipped, crops.device)[:, None, None, None], crops.flip(-1), crops)


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


def two_views(crops: Tensor, generator: torch.Generator | Draws, mode: str = "different") -> tuple[Tensor, Tensor]:
    """Crops uint8 (B, 3, H, W) -> context and target images, float (B, 3, H, W), ImageNet-normalised.

    Args:
        mode: "different", each view its own colours; "same", one draw for both (Table 8); "none", no colour change.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in VIEWS:
        raise ValueError(f"views: expected one of {VIEWS}, got {mode!r}")
    draws = Draws.of(generator, len(crops))
    images = crops.float() / 255
    if mode == "none":
        context = target = normalize(images)
    elif mode == "same":
        context = target = normalize(Colours.draw(draws)(images))
    else:
        context, target = (normalize(Colours.draw(draws)(images)) for _ in range(2))
    return context, target


def normalize(images: Tensor) -> Tensor:
    """Images in [0, 1] -> zero mean, unit spread, by ImageNet's statistics."""
    mean, std = _imagenet(images.device)
    return (images - mean) / std


@cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device, without waiting for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Colours:
    """What happens to the colours of each image of a batch; calling it does it.

    Attributes:
        jittered, grayed, blurred: bool (B,), which of the three an image gets.
        order: (3, B), the place of each of the three in an image's order.
        brightness, contrast, saturation: (B,), factors; hue: (B,), turns of the colour circle.
        jitter_order: (4, B), the place of each of these four.
        sigma: (B,), of the blur, in pixels.
    """

    jittered: Tensor
    grayed: Tensor
    blurred: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    jitter_order: Tensor
    sigma: Tensor

    @classmethod
    def draw(cls, draws: Draws) -> "Colours":
        changed = draws.uniform(1)[0] < P_ANY
        jittered, grayed, blurred = (
            changed & (draw < p) for draw, p in zip(draws.uniform(3), (P_JITTER, P_GRAY, P_BLUR))
        )
        brightness, contrast, saturation, hue = (
            strength * (2 * draw - 1)
            for strength, draw in zip((BRIGHTNESS, CONTRAST, SATURATION, HUE), draws.uniform(4))
        )
        order, jitter_order = draws.uniform(3).argsort(dim=0), draws.uniform(4).argsort(dim=0)
        low, high = BLUR_SIGMA
        sigma = low + (high - low) * draws.uniform(1)[0]
        return cls(
            jittered, grayed, blurred, order, 1 + brightness, 1 + contrast, 1 + saturation, hue, jitter_order, sigma
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> the same."""
        return in_order(
            images,
            [
                (self.jittered, self.jitter),
                (self.grayed, lambda x, i: gray(x).expand_as(x)),
                (self.blurred, lambda x, i: gaussian_blur(x, self.sigma[i])),
            ],
            self.order,
        )

    def jitter(self, images: Tensor, index: Tensor) -> Tensor:
        def factor(values: Tensor, chosen: Tensor) -> Tensor:
            return moved(values[index[chosen]].to(images.dtype), images.device).view(-1, 1, 1, 1)

        everyone = torch.ones(len(images), dtype=torch.bool)
        return in_order(
            images,
            [
                (everyone, lambda x, i: (x * factor(self.brightness, i)).clamp(0, 1)),
                (
                    everyone,
                    lambda x, i: blend(x, gray(x).mean(dim=(-2, -1), keepdim=True), factor(self.contrast, i)),
                ),
                (everyone, lambda x, i: blend(x, gray(x), factor(self.saturation, i))),
                (everyone, lambda x, i: shift_hue(x, factor(self.hue, i))),
            ],
            self.jitter_order[:, index],
        )


def in_order(images: Tensor, operations: Sequence[tuple[Tensor, Operation]], order: Tensor) -> Tensor:
    """Apply each operation to the images chosen for it, in an order of each image's own.

    Args:
        operations: (chosen, operation): `chosen` bool (B,), `operation(images[i], i)` with the indices i it gets.
        order: (operations, B), the place of each operation.
    """
    images = images.clone()
    for place in range(len(operations)):
        for (chosen, operation), its_place in zip(operations, order):
            index = torch.nonzero(chosen & (its_place == place)).flatten()
            if len(index):
                on_device = moved(index, images.device)
                images[on_device] = operation(images[on_device], index)
    return images


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """A 9x9 Gaussian with reflected borders: images (B, C, H, W), sigma (B,) in pixels -> (B, C, H, W)."""
    count, channels, height, width = images.shape
    offsets = torch.arange(BLUR_SIZE) - BLUR_SIZE // 2
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images.dtype).repeat_interleave(channels, dim=0)
    kernel = moved(kernel, images.device)
    border = BLUR_SIZE // 2
    x = F.pad(images, (border, border, border, border), mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, :, None], groups=count * channels)
    x = F.conv2d(x, kernel[:, None, None, :], groups=count * channels)
    return x.view(count, channels, height, width)


def gray(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) of RGB images: (B, 3, H, W) -> (B, 1, H, W)."""
    return TF.rgb_to_grayscale(images, num_output_channels=1)


def blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * images + (1 - share) * other, kept in [0, 1]; share (B, 1, 1, 1) may exceed 1."""
    return torch.lerp(other, images, share).clamp(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB images in [0, 1] by `shift` (B, 1, 1, 1), in turns of the colour circle.

    A pixel's channels are its value less its chroma times how far its hue is from each primary, so the turn needs no
    branch: with k = (5, 3, 1) + 6 h modulo 6, channel = v - c * clamp(min(k, 4 - k), 0, 1).
    """
    value, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - low
    red, green, blue = images.split(1, dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    primaries = torch.arange(5, 0, -2, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    k = (primaries + sextant + 6 * shift).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
