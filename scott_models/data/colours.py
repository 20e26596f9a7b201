"""Random colours for the two views of MIM-JEPA, drawn for each image (paper, Appendix C; released code).

Both views share one crop (area 0.2 to 1, aspect 3/4 to 4/3, bicubic) and one flip, so that content stays in place.
Each view has its own colours. A view stays unchanged with probability 0.4. Otherwise these changes are applied in
random order: colour jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, grayscale with 0.1, Gaussian blur of 9x9 pixels
with 0.3. Random numbers are drawn on the CPU, from one stream per image. Pixels are processed in batches, on the
device that holds them.
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
# For brightness, contrast, saturation and hue: the value that changes nothing, and the largest distance from it.
NEUTRAL, STRENGTHS = (1, 1, 1, 0), (0.4, 0.4, 0.2, 0.1)
P_ANY, P_KINDS = 0.6, (0.8, 0.1, 0.3)  # of any change; of jitter, grayscale and blur in a changed view
BLUR_SIZE, BLUR_SIGMA = 9, (0.1, 2.0)
PIECE = 8  # number of images that a CPU's caches hold while their colours change

RGB = tuple[float, float, float]
Operation = Callable[[Tensor, np.ndarray], Tensor]  # (images[i], i) -> images


def change_colours(
    crops: Tensor, colours: "Colours", compiled: bool = False, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD
) -> Tensor:
    """Change the colours of crops uint8 (B, 3, H, W) and normalise them: float32 (B, 3, H, W).

    On a CPU the batch is processed in pieces that its caches hold.
    """
    if crops.device.type != "cpu":
        images = colours.at_once(crops) if compiled else colours(crops.float() / 255)
        return normalize(images, mean, std)
    pieces = zip(crops.split(PIECE), colours.split(PIECE))
    images = [normalize(change(piece.float() / 255), mean, std) for piece, change in pieces]
    return images[0] if len(images) == 1 else torch.cat(images)


def normalize(images: Tensor, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> Tensor:
    """Normalise images in [0, 1] by the mean and standard deviation of each channel, by default ImageNet's."""
    return (images - _channels(mean, images.device)) / _channels(std, images.device)


@cache
def _channels(values: RGB, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)


@dataclass(frozen=True)
class Colours:
    """Hold the colour changes of each image of a batch; calling the object applies them.

    Attributes:
        chosen: bool (3, B), whether an image is jittered, made grey, blurred.
        order: int64 (3, B), the position of jitter, grayscale and blur in an image's order.
        factors: float64 (4, B), factors of brightness, contrast and saturation, then the shift of the hue in turns of
            the colour circle.
        jitter_order: int64 (4, B), the position of each of these four in the jitter.
        sigma: float64 (B,), standard deviation of the blur, in pixels.
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
        """Split the changes into those of the first `size` images, of the next `size` images, and so on."""
        parts = [slice(start, start + size) for start in range(0, len(self.sigma), size)]
        return [Colours(*(getattr(self, field.name)[..., part] for field in fields(self))) for part in parts]

    def __call__(self, images: Tensor) -> Tensor:
        """Change images (B, 3, H, W) in [0, 1]; return new images of the same shape and range."""
        before, after = self.sides
        images = images.clone()
        # Grayscale and blur are linear and commute, so only their positions relative to the jitter matter.
        self.gray_and_blur_(images, *before)
        self.jitter_(images)
        self.gray_and_blur_(images, *after)
        return images

    def at_once(self, crops: Tensor) -> Tensor:
        """Change crops uint8 (B, 3, H, W) on a device to images in [0, 1], with a single copy to it and few kernels."""
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
        """Return which images are made grey and blurred before the jitter, and which after it: bool (2, B) each."""
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
    """Replace the chosen images, bool (B,), by `operation(images[i], i)`, where i are their indices."""
    index = np.flatnonzero(chosen)
    if len(index):
        on_device = copy_to_device(torch.from_numpy(index), images.device)
        images[on_device] = operation(images[on_device], index)


def blur_some_(images: Tensor, index: Tensor, kernels: Tensor) -> None:
    """Blur the images of `index`, int64 (K,), in place with kernels (K, 9); all tensors are on one device."""
    if len(index):
        images[index] = apply_kernels(images[index], kernels)


def recolour_batch(images: Tensor, packed: Tensor) -> Tensor:
    """Jitter and grey a whole batch without branches: every step computes all operations and keeps one result.

    Args:
        packed: (11, B, 1, 1, 1). Rows 0 to 2: whether an image is jittered, made grey before the jitter, made grey
            after it. Rows 3 to 6: the positions of brightness, contrast, saturation and hue in the jitter. Rows 7 to
            10: the values of these four.
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
    """Blur images (B, C, H, W) with 9x9 Gaussians of sigma (B,) pixels and reflected borders -> (B, C, H, W)."""
    return apply_kernels(images, copy_to_device(make_blur_kernels(sigma).to(images.dtype), images.device))


def make_blur_kernels(sigma: np.ndarray) -> Tensor:
    """Compute one-dimensional Gaussians: sigma float64 (B,) in pixels -> weights float64 (B, 9) with sum 1."""
    offsets = torch.arange(BLUR_SIZE) - BLUR_SIZE // 2
    kernels = torch.exp(-0.5 * (offsets / torch.from_numpy(sigma)[:, None]) ** 2)
    return kernels / kernels.sum(dim=1, keepdim=True)


def apply_kernels(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter images (B, C, H, W) vertically and horizontally with kernels (B, 9) and reflected borders."""
    count, channels, height, width = images.shape
    kernels = kernels.repeat_interleave(channels, dim=0)
    border = BLUR_SIZE // 2
    x = F.pad(images, (border, border, border, border), mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, kernels[:, None, :, None], groups=count * channels)
    x = F.conv2d(x, kernels[:, None, None, :], groups=count * channels)
    return x.view(count, channels, height, width)


def to_gray(images: Tensor) -> Tensor:
    """Compute the luma (ITU-R 601) of RGB images: (B, 3, H, W) -> (B, 1, H, W)."""
    return TF.rgb_to_grayscale(images, num_output_channels=1)


def blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Compute share * images + (1 - share) * other, clipped to [0, 1]; share (B, 1, 1, 1) may exceed 1."""
    return torch.lerp(other, images, share).clamp(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of RGB images in [0, 1] by `shift` (B, 1, 1, 1), in turns of the colour circle.

    The way back from hue to RGB needs no branch. For the shifted hue h, value v (the largest channel) and chroma c
    (largest less smallest channel): k = (5, 3, 1) + 6 h modulo 6, and channel = v - c * clamp(min(k, 4 - k), 0, 1).
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
