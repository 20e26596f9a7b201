"""From decoded images to the two views of MIM-JEPA, each image with its own draw (paper, Appendix C; released code).

One crop (area 0.2 to 1, aspect 3/4 to 4/3, bicubic) and one flip serve both views, so that content stays in place;
colours are each view's own. A view is left alone with probability 0.4; otherwise, in random order: colour jitter
(0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale 0.1, Gaussian blur of 9x9 pixels 0.3. Random numbers are drawn on
the CPU from the caller's generator, a whole batch at a time; images stay on their device.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..data import Images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT, TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
P_ANY, P_JITTER, P_GRAY, P_BLUR = 0.6, 0.8, 0.1, 0.3
BLUR_SIZE, BLUR_SIGMA = 9, (0.1, 2.0)
VIEWS = ("different", "same", "none")


def random_crops(images: Images, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random crop of each chosen image, resized and perhaps flipped: index (B,) -> uint8 (B, 3, size, size)."""
    boxes = crop_boxes(images.sizes[index], generator)
    flipped = torch.rand(len(index), generator=generator) < 0.5
    crops = torch.stack(
        [
            TF.resized_crop(images[i], *box, size=[size, size], interpolation=TF.InterpolationMode.BICUBIC)
            for i, box in zip(index.tolist(), boxes.tolist())
        ]
    )
    return torch.where(flipped[:, None, None, None], crops.flip(-1), crops)


def crop_boxes(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """RandomResizedCrop's boxes for images of height and width `sizes` (B, 2): (B, 4), top, left, height, width.

    Of ten draws the first that fits counts; if none does, the largest centred box of an allowed aspect.
    """
    height, width = sizes.double().unbind(1)
    draws = torch.rand(4, TRIES, len(sizes), generator=generator, dtype=torch.float64)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[0]) * height * width
    aspect = torch.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * draws[1])
    h, w = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    first = fits.long().argmax(dim=0, keepdim=True)
    h, w, y, x = (values.gather(0, first)[0] for values in (h, w, draws[2], draws[3]))
    none_fits = ~fits.any(dim=0)
    h = torch.where(none_fits, torch.minimum(height, (width / ASPECT[0]).round()), h)
    w = torch.where(none_fits, torch.minimum(width, (height * ASPECT[1]).round()), w)
    top = torch.where(none_fits, (height - h) // 2, (y * (height - h + 1)).floor())
    left = torch.where(none_fits, (width - w) // 2, (x * (width - w + 1)).floor())
    return torch.stack([top, left, h, w], dim=1).long()


def two_views(crops: Tensor, generator: torch.Generator, mode: str = "different") -> tuple[Tensor, Tensor]:
    """Crops uint8 (B, 3, H, W) -> context and target images, float (B, 3, H, W), ImageNet-normalised.

    Args:
        mode: "different", each view its own colours; "same", one draw for both (Table 8); "none", no colour change.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in VIEWS:
        raise ValueError(f"views: expected one of {VIEWS}, got {mode!r}")
    images = crops.float() / 255
    if mode == "none":
        context = target = normalize(images)
    elif mode == "same":
        context = target = normalize(colour_view(images, generator))
    else:
        context, target = (normalize(colour_view(images, generator)) for _ in range(2))
    return context, target


def normalize(images: Tensor) -> Tensor:
    """Images in [0, 1] -> zero mean, unit spread, by ImageNet's statistics."""
    return TF.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD))


def colour_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """One randomly coloured copy of images in [0, 1]: (B, 3, H, W) -> (B, 3, H, W)."""
    batch = len(images)
    drawn = torch.rand(4, batch, generator=generator)
    changed = drawn[0] < P_ANY
    jittered, grayed, blurred = (changed & (draw < p) for draw, p in zip(drawn[1:], (P_JITTER, P_GRAY, P_BLUR)))
    operations: list[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = [
        (jittered, ColourJitter(batch, generator)),
        (grayed, lambda images, chosen: gray(images).expand_as(images)),
        (blurred, GaussianBlur(batch, generator)),
    ]
    return in_random_order(images, operations, generator)


def in_random_order(
    images: Tensor, operations: list[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]], generator: torch.Generator
) -> Tensor:
    """Apply each operation to the images chosen for it, in an order of each image's own.

    Args:
        operations: (chosen, operation): `chosen` bool (B,), `operation(images[i], i)` with the indices i it gets.
    """
    images = images.clone()
    order = torch.rand(len(images), len(operations), generator=generator).argsort(dim=1)
    for place in range(len(operations)):
        for number, (chosen, operation) in enumerate(operations):
            index = torch.nonzero(chosen & (order[:, place] == number)).flatten()
            if len(index):
                on_device = index.to(images.device)
                images[on_device] = operation(images[on_device], index)
    return images


class ColourJitter:
    """Brightness, contrast, saturation and hue, each image with its own strengths and order."""

    def __init__(self, batch: int, generator: torch.Generator) -> None:
        self.generator = generator
        uniform = 2 * torch.rand(4, batch, generator=generator) - 1
        self.brightness, self.contrast, self.saturation = (
            1 + strength * draw for strength, draw in zip((BRIGHTNESS, CONTRAST, SATURATION), uniform)
        )
        self.hue = HUE * uniform[3]

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        def per_image(values: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda chosen: values[index][chosen].view(-1, 1, 1, 1).to(images.device)

        brightness, contrast, saturation, hue = map(
            per_image, (self.brightness, self.contrast, self.saturation, self.hue)
        )
        everyone = torch.ones(len(images), dtype=torch.bool)
        return in_random_order(
            images,
            [
                (everyone, lambda x, i: (x * brightness(i)).clamp(0, 1)),
                (everyone, lambda x, i: blend(x, gray(x).mean(dim=(-2, -1), keepdim=True), contrast(i))),
                (everyone, lambda x, i: blend(x, gray(x), saturation(i))),
                (everyone, lambda x, i: shift_hue(x, hue(i))),
            ],
            self.generator,
        )


class GaussianBlur:
    """A 9x9 Gaussian with reflected borders, each image with its own sigma."""

    def __init__(self, batch: int, generator: torch.Generator) -> None:
        low, high = BLUR_SIGMA
        self.sigma = low + (high - low) * torch.rand(batch, generator=generator)

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        offsets = torch.arange(BLUR_SIZE) - BLUR_SIZE // 2
        kernel = torch.exp(-0.5 * (offsets / self.sigma[index][:, None]) ** 2)
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(images).repeat_interleave(channels, dim=0)
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
    primaries = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (primaries + sextant + 6 * shift).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
