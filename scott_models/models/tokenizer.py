"""Image -> tokens: SCOTT's masked sparse-convolution stem, and the plain patches of the ablation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masked_conv import MaskedConv2d, hide
from .max_blur_pool import MaxBlurPool


@torch.fx.wrap
def patch_grid(
    size: tuple[int, int], patch: int, padded: bool = False, only: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Count the rows and columns of patches of an image of (height, width) pixels.

    Args:
        padded: images are filled up to multiples of the patch.
        only: the one size that is accepted.

    Raises:
        ValueError: another size than `only`, or sides that are no multiples of the patch and not padded.
    """
    height, width = size
    if only is not None and size != only:
        raise ValueError(
            f"image size: this model takes {only[0]} x {only[1]} pixels, got {height} x {width}; "
            "resize the images, or create the model with img_size=... or dynamic_img_size=True"
        )
    above = (height + patch - 1) // patch, (width + patch - 1) // patch
    if padded:
        return above
    if height % patch > 0 or width % patch > 0 or height < patch or width < patch:
        low, wide = max(1, height // patch) * patch, max(1, width // patch) * patch
        raise ValueError(
            f"image size: expected positive multiples of {patch} pixels, got {height} x {width}; "
            f"the nearest are {low} x {wide} and {above[0] * patch} x {above[1] * patch}"
        )
    return above


def square(patch_size: int | Sequence[int]) -> int:
    """Return the side of a patch in pixels, given as timm may give it: 16, (16, 16) or [16, 16]."""
    sides = {patch_size} if isinstance(patch_size, int) else {*patch_size}
    if len(sides) != 1:
        raise ValueError(f"patch_size: expected square patches, got {patch_size}")
    return sides.pop()


class _Tokenizer(nn.Module, ABC):
    """Hold what both tokenizers share, the grid and its checks, under timm's names for a patch embedding.

    Args:
        img_size: height and width in pixels, each a multiple of the patch size.
        strict_img_size: accept images of `img_size` only; otherwise any multiple of the patch size.
        dynamic_img_pad: fill images up to multiples of the patch size, with zeros at the right and the bottom.
        output_fmt: "NLC" gives tokens (B, N, D), "NHWC" a map (B, H/p, W/p, D).

    Raises:
        ValueError: a size that is no positive multiple of the patch size, or not the model's where it is strict; a
            `visible` that is not boolean or not (B, N).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
        output_fmt: str = "NLC",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **timm_options: object,
    ) -> None:
        super().__init__()
        self.patch_size = (square(patch_size),) * 2
        self.strict_img_size = strict_img_size
        self.dynamic_img_pad = dynamic_img_pad
        self.output_fmt = output_fmt
        self.build(in_chans, embed_dim, device=device, dtype=dtype)
        self.set_input_size(img_size)

    @abstractmethod
    def build(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        """Create the layers, on the device and with the dtype in `dd`."""

    @abstractmethod
    def init_weights(self) -> None:
        """Draw fresh weights."""

    @abstractmethod
    def embed(self, images: Tensor, visible: Tensor | None) -> Tensor:
        """Embed images (B, C, H, W), visible bool (B, 1, rows, columns) -> a map (B, D, rows, columns)."""

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        if patch_size is not None and square(patch_size) != self.patch_size[0]:
            raise ValueError(f"patch_size: this tokenizer's is {self.patch_size} and cannot change, got {patch_size}")
        if img_size is None:
            return
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = self.dynamic_feat_size((height, width))
        self.img_size = (height, width)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Return how many pixels wide a token is, as timm asks for it."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Count the rows and columns of the patch grid of an image of (height, width) pixels."""
        return patch_grid(img_size, self.patch_size[0], self.dynamic_img_pad)

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embed images (B, C, H, W), visible bool (B, N), True = may be seen -> tokens (B, N, D), zero where hidden."""
        batch, _, height, width = images.shape
        patch, only = self.patch_size[0], self.img_size if self.strict_img_size else None
        rows, columns = patch_grid((height, width), patch, self.dynamic_img_pad, only)
        if self.dynamic_img_pad:
            images = F.pad(images, (0, columns * patch - width, 0, rows * patch - height))
        if visible is not None:
            if visible.dtype != torch.bool or visible.shape != (batch, rows * columns):
                raise ValueError(
                    f"visible: expected torch.bool of shape {[batch, rows * columns]} (images, patches), "
                    f"got {visible.dtype} of shape {list(visible.shape)}"
                )
            visible = visible.view(batch, 1, rows, columns)
        x = self.embed(images, visible)
        return x.flatten(2).transpose(1, 2) if self.output_fmt == "NLC" else x.permute(0, 2, 3, 1)


class SparseConvTokenizer(_Tokenizer):
    """Embed patches by SCOTT's stem: two masked 7x7 convolutions of stride 2, each with ReLU and a max-blur pool.

    Hidden cells are zeroed in the image, after each convolution and after each pool. So nothing hidden reaches a
    visible token, however far the receptive fields (61 px) overlap. They are not zeroed between a pool's maximum and
    its blur: with 224 px that map is 111 wide, which is no multiple of the 14 patches. Source: paper, Table 3.
    """

    def build(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        if self.patch_size[0] != 16:
            raise ValueError(
                f"patch_size: the sparse_conv tokenizer halves four times, so expected 16, got {self.patch_size[0]}"
            )
        self.conv1 = MaskedConv2d(in_chans, 64, kernel_size=7, stride=2, padding=3, bias=False, **dd)
        self.pool1 = MaxBlurPool(**dd)
        self.conv2 = MaskedConv2d(64, embed_dim, kernel_size=7, stride=2, padding=3, bias=False, **dd)
        self.pool2 = MaxBlurPool(**dd)

    def init_weights(self) -> None:
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def embed(self, images: Tensor, visible: Tensor | None) -> Tensor:
        # Channels last is faster (docs/BENCHMARKS.md). torch.func.vmap knows no memory formats, but permutations.
        x = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        x = F.relu(self.conv1(x, visible))
        x = self.pool1(x)
        x = F.relu(self.conv2(x, visible))
        return hide(self.pool2(x), visible)


class PatchTokenizer(_Tokenizer):
    """Embed patches by the plain stem of the paper's ablation (Table 2): one convolution over disjoint patches."""

    def build(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        side = self.patch_size[0]
        self.proj = nn.Conv2d(in_chans, embed_dim, side, stride=side, **dd)

    def init_weights(self) -> None:
        # The paper does not say how its plain stem starts; the sparse stem's rule serves both.
        nn.init.kaiming_normal_(self.proj.weight, nonlinearity="relu")
        nn.init.zeros_(self.proj.bias)

    def embed(self, images: Tensor, visible: Tensor | None) -> Tensor:
        return hide(self.proj(images), visible)  # disjoint patches cannot leak
