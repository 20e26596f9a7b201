"""Models that compute: SCOTT, its tokenizer and its layers.

`scott.py` is the model, `tokenizer.py` its stem; the other files are the layers of these two.
"""

from .attentive_pool import AttentivePool
from .masked_conv import MaskedConv2d
from .max_blur_pool import MaxBlurPool
from .scott import SCOTT
from .tokenizer import PatchTokenizer, SparseConvTokenizer

__all__ = ["SCOTT", "AttentivePool", "MaskedConv2d", "MaxBlurPool", "PatchTokenizer", "SparseConvTokenizer"]
