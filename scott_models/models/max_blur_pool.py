"""MaxBlurPool: the largest value of each window, then a blur, at half the size (Zhang, 2019, arXiv 1904.11486)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_cpu


@torch.fx.wrap
@fast_cpu.shortcut(fast_cpu.max_blur)
def max_blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Take the maximum of 2x2 cells, blur with stride 2: x (B, C, H, W), kernel (1, 1, 3, 3) -> (B, C, H/2, W/2)."""
    x = F.max_pool2d(x, kernel_size=2, stride=1)
    channels = int(x.shape[1])  # a plain number also for ONNX's TorchScript exporter
    return F.conv2d(x, kernel.to(x.dtype).expand(channels, 1, 3, 3), stride=2, padding=1, groups=channels)


class MaxBlurPool(nn.Module):
    """Halve a map without aliasing: (B, C, H, W) -> (B, C, H/2, W/2) for even H and W.

    The maximum over 2x2 is dense, so H - 1 rows remain. The blur is the fixed binomial (1 2 1) with stride 2.
    """

    blur: Tensor

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("blur", torch.empty(1, 1, 3, 3, device=device, dtype=dtype), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the blur's weights, which no checkpoint holds."""
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.blur.copy_(torch.outer(binomial, binomial))

    def forward(self, x: Tensor) -> Tensor:
        return max_blur(x, self.blur)
