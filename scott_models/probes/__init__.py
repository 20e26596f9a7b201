"""Probes: classifiers and trained heads on the frozen features of any timm model, compared with random weights.

`features.py` computes the features; `evaluate.py` scores the probes.
"""

from .evaluate import probe, retrieve
from .features import embed, extract, load_model

__all__ = ["embed", "extract", "load_model", "probe", "retrieve"]
