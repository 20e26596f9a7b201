"""From decoded images to the two views of MIM-JEPA, each image with its own draw (paper, Appendix C; released code).

One crop (area 0.2 to 1, aspect 3/4 to 4/3, bicubic) and one flip serve both views, so that content stays in place;
colours are each view's own. A view is left alone with probability 0.4; otherwise, in random order: colour jitter
(0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale 0.1, Gaussian blur of 9x9 pixels 0.3. Random numbers are drawn on
the CPU, a stream for each image; pixels are worked on in whole batches, on the device they are on.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from .device import compile_once, copy_to_device, copy_together
from .random_streams import Draws

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of brightness, contrast, saturation and hue: the factor that changes nothing, and how far it may be from that.
NEUTRAL, STRENGTHS = (1, 1, 1, 0), (0.4, 0.4, 0.2, 0.1)
P_ANY, P_KINDS = 0.6, (0.8, 0.1, 0.3)  # of any change; of jitter, gray and blur, if any
BLUR_SIZE, BLUR_SIGMA = 9, (0.1, 2.0)
PIECE = 8  # images that a CPU's caches hold while their colours change

RGB = tuple[float, float, float]
Operation = Callable[[Tensor, np.ndarray], Tensor]  # images[i], i -> images


def change_colours(
    crops: Tensor, colours: "Colours", compiled: bool = False, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD
) -> Tensor:
    """Crops uint8 (B, 3, H, W) -> images with other colours, normalised; on a CPU in pieces that its caches hold."""
    if crops.device.type != "cpu":
        images = colours.at_once(crops) if compiled else colours(crops.float() / 255)
        return normalize(images, mean, std)
    pieces = zip(crops.split(PIECE), colours.split(PIECE))
    images = [normalize(change(piece.float() / 255), mean, std) for piece, change in pieces]
    return images[0] if len(images) == 1 else torch.cat(images)


def normalize(images: Tensor, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> Tensor:
    """Images in [0, 1] -> zero mean, unit spread, by default by ImageNet's statistics."""
    return (images - _channels(mean, images.device)) / _channels(std, images.device)


@cache
def _channels(values: RGB, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


@dataclass(frozen=True)
class Colours:
    """Hold what happens to the colours of each image of a batch; calling it does it.

    Attributes:
        chosen: bool (3, B), whether an image is jittered, made grey, blurred.
        order: int64 (3, B), the place of each of the three in an image's order.
        factors: float64 (4, B), of brightness, contrast and saturation; then the hue's, in turns of the colour circle.
        jitter_order: int64 (4, B), the place of each of these four.
        sigma: float64 (B,), of the blur, in pixels.
    """

    chosen: np.ndarray
    order: np.ndarray
    factors: np.ndarray
    jitter_order: np.ndarray
    sigma: np.ndarray

    @classmethod
    def draw(cls, draws: Draws) -> "Colours":
        changed, for_kinds, strengths, order, jitter_order, sigma = np.split(
            draws.uniform(16).numpy(), (1, 4, 8, 11, 15)
        )
        low, high = BLUR_SIGMA
        return cls(
            (changed < P_ANY) & (for_kinds < np.array(P_KINDS)[:, None]),
            order.argsort(axis=0),
            np.array(NEUTRAL)[:, None] + np.array(STRENGTHS)[:, None] * (2 * strengths - 1),
            jitter_order.argsort(axis=0),
            low + (high - low) * sigma[0],
        )

    def split(self, size: int) -> list["Colours"]:
        """Split them into those of the first `size` images, of the next, and so on."""
        parts = [slice(start, start + size) for start in range(0, len(self.sigma), size)]
        return [Colours(*(getattr(self, field.name)[..., part] for field in fields(self))) for part in parts]

    def __call__(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> the same."""
        before, after = self.sides
        images = images.clone()
        # Gray and blur commute, being linear, so only their places beside the jitter matter.
        self.gray_and_blur_(images, *before)
        self.jitter_(images)
        self.gray_and_blur_(images, *after)
        return images

    def at_once(self, crops: Tensor) -> Tensor:
        """Change crops uint8 (B, 3, H, W) on a device to images in [0, 1], by one copy to it and few kernels."""
        (gray_first, blur_first), (gray_last, blur_last) = self.sides
        rows = np.concatenate([[self.chosen[0], gray_first, gray_last], self.jitter_order, self.factors])
        indices = [np.flatnonzero(blurred) for blurred in (blur_first, blur_last)]
        kernels = [make_blur_kernels(self.sigma[index]).float() for index in indices]
        numbers = torch.from_numpy(rows).float()
        together = copy_together([numbers, *map(torch.from_numpy, indices), *kernels], crops.device)
        numbers, index_first, index_last, kernels_first, kernels_last = together
        images = crops.float() / 255
        blur_some_(images, index_first, kernels_first)
        images = compile_once(recolour_batch)(images, numbers[:, :, None, None, None])
        blur_some_(images, index_last, kernels_last)
        return images

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Tell which images are made grey and blurred before the jitter, and which after it: bool (2, B) each."""
        first = self.order[1:] < self.order[0]
        return self.chosen[1:] & first, self.chosen[1:] & ~first

    def gray_and_blur_(self, images: Tensor, gray_now: np.ndarray, blur_now: np.ndarray) -> None:
        change_some_(images, gray_now, lambda x, i: to_gray(x).expand_as(x))
        change_some_(images, blur_now, lambda x, i: gaussian_blur(x, self.sigma[i]))

    def jitter_(self, images: Tensor) -> None:
        def factor(row: int, chosen: np.ndarray) -> Tensor:
            values = torch.from_numpy(self.factors[row, chosen]).to(images.dtype)
            return copy_to_device(values, images.device).view(-1, 1, 1, 1)

        operations: tuple[Operation, ...] = (
            lambda x, i: (x * factor(0, i)).clamp(0, 1),
            lambda x, i: blend(x, to_gray(x).mean(dim=(-2, -1), keepdim=True), factor(1, i)),
            lambda x, i: blend(x, to_gray(x), factor(2, i)),
            lambda x, i: shift_hue(x, factor(3, i)),
        )
        for place in range(len(operations)):
            for operation, its_place in zip(operations, self.jitter_order):
                change_some_(images, self.chosen[0] & (its_place == place), operation)


def change_some_(images: Tensor, chosen: np.ndarray, operation: Operation) -> None:
    """Put `operation(images[i], i)` in place of the images chosen, bool (B,)."""
    index = np.flatnonzero(chosen)
    if len(index):
        on_device = copy_to_device(torch.from_numpy(index), images.device)
        images[on_device] = operation(images[on_device], index)


def blur_some_(images: Tensor, index: Tensor, kernels: Tensor) -> None:
    """Blur some images in place: index int64 (K,), kernels (K, 9), on the images' device."""
    if len(index):
        images[index] = apply_kernels(images[index], kernels)


def recolour_batch(images: Tensor, packed: Tensor) -> Tensor:
    """Jitter and grey a whole batch without branches: at every place by all operations, of which one counts.

    Args:
        packed: (11, B, 1, 1, 1): whether an image is jittered, made grey before that, made grey after it; the places
            of brightness, contrast, saturation and hue in its order; their four values.
    """
    jittered, gray_first, gray_last = packed[:3]
    order, (brightness, contrast, saturation, hue) = packed[3:7], packed[7:]
    images = torch.where(gray_first > 0, to_gray(images), images)
    before = images
    for place in range(4):
        now, grey = order == place, to_gray(images)
        images = torch.where(
            now[0],
            (images * brightness).clamp(0, 1),
            torch.where(
                now[1],
                blend(images, grey.mean(dim=(-2, -1), keepdim=True), contrast),
                torch.where(now[2], blend(images, grey, saturation), shift_hue(images, hue)),
            ),
        )
    images = torch.where(jittered > 0, images, before)
    return torch.where(gray_last > 0, to_gray(images), images)


def gaussian_blur(images: Tensor, sigma: np.ndarray) -> Tensor:
    """A 9x9 Gaussian with reflected borders: images (B, C, H, W), sigma (B,) in pixels -> (B, C, H, W)."""
    return apply_kernels(images, copy_to_device(make_blur_kernels(sigma).to(images.dtype), images.device))


def make_blur_kernels(sigma: np.ndarray) -> Tensor:
    """Compute Gaussians along one side: sigma float64 (B,) in pixels -> weights, float64 (B, 9), of sum 1."""
    offsets = torch.arange(BLUR_SIZE) - BLUR_SIZE // 2
    kernels = torch.exp(-0.5 * (offsets / torch.from_numpy(sigma)[:, None]) ** 2)
    return kernels / kernels.sum(dim=1, keepdim=True)


def apply_kernels(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter images (B, C, H, W) down and across by kernels (B, 9), with reflected borders."""
    count, channels, height, width = images.shape
    kernels = kernels.repeat_interleave(channels, dim=0)
    border = BLUR_SIZE // 2
    x = F.pad(images, (border, border, border, border), mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, kernels[:, None, :, None], groups=count * channels)
    x = F.conv2d(x, kernels[:, None, None, :], groups=count * channels)
    return x.view(count, channels, height, width)


def to_gray(images: Tensor) -> Tensor:
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
