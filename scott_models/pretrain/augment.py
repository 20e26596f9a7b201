"""From decoded images to the two views of MIM-JEPA, each image with its own draw (paper, Appendix C; released code).

One crop (area 0.2 to 1, aspect 3/4 to 4/3, bicubic) and one flip serve both views, so that content stays in place;
colours are each view's own. A view is left alone with probability 0.4; otherwise, in random order: colour jitter
(0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale 0.1, Gaussian blur of 9x9 pixels 0.3. Random numbers are drawn on
the CPU, a stream for each image; pixels are worked on in whole batches, on the device they are on.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .draws import Draws

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
P_ANY, P_JITTER, P_GRAY, P_BLUR = 0.6, 0.8, 0.1, 0.3
BLUR_SIZE, BLUR_SIGMA = 9, (0.1, 2.0)
PIECE = 8  # images that a CPU's caches hold while their colours change
VIEWS = ("different", "same", "none")

RGB = tuple[float, float, float]
Operation = Callable[[Tensor, Tensor], Tensor]  # images[i], i -> images


def two_views(
    crops: Tensor, generator: torch.Generator | Draws, mode: str = "different", compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Crops uint8 (B, 3, H, W) -> context and target images, float (B, 3, H, W), ImageNet-normalised.

    Args:
        mode: "different", each view its own colours; "same", one draw for both (Table 8); "none", no colour change.
        compiled: on a GPU, jitter the whole batch in a few kernels of torch.compile's.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in VIEWS:
        raise ValueError(f"views: expected one of {VIEWS}, got {mode!r}")
    draws = Draws.of(generator, len(crops))
    if mode == "none":
        context = target = normalize(crops.float() / 255)
    elif mode == "same":
        context = target = coloured(crops, Colours.draw(draws), compiled)
    else:
        context, target = (coloured(crops, Colours.draw(draws), compiled) for _ in range(2))
    return context, target


def coloured(
    crops: Tensor, colours: "Colours", compiled: bool = False, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD
) -> Tensor:
    """Crops uint8 (B, 3, H, W) -> images with other colours, normalised; on a CPU in pieces that its caches hold."""
    on_cpu = crops.device.type == "cpu"
    size = PIECE if on_cpu else len(crops)
    pieces = zip(crops.split(size), colours.split(size))
    return torch.cat(
        [normalize(change(piece.float() / 255, compiled and not on_cpu), mean, std) for piece, change in pieces]
    )


def normalize(images: Tensor, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> Tensor:
    """Images in [0, 1] -> zero mean, unit spread, by default by ImageNet's statistics."""
    return (images - _channels(mean, images.device)) / _channels(std, images.device)


@cache
def _channels(values: RGB, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


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

    def split(self, size: int) -> list["Colours"]:
        """Those of the first `size` images, of the next, and so on."""
        pieces = [getattr(self, field.name).split(size, dim=-1) for field in fields(self)]
        return [Colours(*piece) for piece in zip(*pieces)]

    def __call__(self, images: Tensor, compiled: bool = False) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> the same."""
        jitter_at, gray_at, blur_at = self.order
        images = images.clone()
        # Gray and blur commute, being linear, so only their places beside the jitter matter.
        self.gray_and_blur_(images, gray_at < jitter_at, blur_at < jitter_at)
        if compiled:
            images = self.jittered_at_once(images)
        else:
            self.jitter_(images)
        self.gray_and_blur_(images, gray_at > jitter_at, blur_at > jitter_at)
        return images

    def gray_and_blur_(self, images: Tensor, gray_now: Tensor, blur_now: Tensor) -> None:
        on_some_(images, self.grayed & gray_now, lambda x, i: gray(x).expand_as(x))
        on_some_(images, self.blurred & blur_now, lambda x, i: gaussian_blur(x, self.sigma[i]))

    def jitter_(self, images: Tensor) -> None:
        def factor(values: Tensor, chosen: Tensor) -> Tensor:
            return moved(values[chosen].to(images.dtype), images.device).view(-1, 1, 1, 1)

        operations: tuple[Operation, ...] = (
            lambda x, i: (x * factor(self.brightness, i)).clamp(0, 1),
            lambda x, i: blend(x, gray(x).mean(dim=(-2, -1), keepdim=True), factor(self.contrast, i)),
            lambda x, i: blend(x, gray(x), factor(self.saturation, i)),
            lambda x, i: shift_hue(x, factor(self.hue, i)),
        )
        for place in range(len(operations)):
            for operation, its_place in zip(operations, self.jitter_order):
                on_some_(images, self.jittered & (its_place == place), operation)

    def jittered_at_once(self, images: Tensor) -> Tensor:
        numbers = [self.jittered[None], self.jitter_order, *(values[None] for values in self._factors)]
        packed = moved(torch.cat([n.to(images.dtype) for n in numbers]), images.device)
        return _compiled(jitter_everyone)(images, packed[:, :, None, None, None])

    @property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.brightness, self.contrast, self.saturation, self.hue


def on_some_(images: Tensor, chosen: Tensor, operation: Operation) -> None:
    """Put `operation(images[i], i)` in place of the images chosen, bool (B,)."""
    index = torch.nonzero(chosen).flatten()
    if len(index):
        on_device = moved(index, images.device)
        images[on_device] = operation(images[on_device], index)


def jitter_everyone(images: Tensor, packed: Tensor) -> Tensor:
    """The jitter of a whole batch without branches: every operation at every place, of which one counts.

    Args:
        packed: (9, B, 1, 1, 1): whether an image is jittered; the places of brightness, contrast, saturation and hue
            in its order; their four values.
    """
    jittered, order, (brightness, contrast, saturation, hue) = packed[0], packed[1:5], packed[5:]
    before = images
    for place in range(4):
        now, grey = order == place, gray(images)
        images = torch.where(
            now[0],
            (images * brightness).clamp(0, 1),
            torch.where(
                now[1],
                blend(images, grey.mean(dim=(-2, -1), keepdim=True), contrast),
                torch.where(now[2], blend(images, grey, saturation), shift_hue(images, hue)),
            ),
        )
    return torch.where(jittered > 0, images, before)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


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
