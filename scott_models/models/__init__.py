"""What computes: SCOTT, its tokenizer and its layers.

`scott.py` is the model, `tokenizer.py` its stem; the other files are the layers of these two.
"""

from .attentive_pool import AttentivePool
from .max_blur_pool import MaxBlurPool
from .scott import SCOTT
from .tokenizer import PatchTokenizer, SparseConvTokenizer

__all__ = ["SCOTT", "AttentivePool", "MaxBlurPool", "PatchTokenizer", "SparseConvTokenizer"]
