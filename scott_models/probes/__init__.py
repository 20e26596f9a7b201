"""What frozen features of any timm model are worth: classifiers, trained heads, scores beside random weights.

`features.py` computes the features, `evaluate.py` scores them.
"""

from .evaluate import probe, retrieve
from .features import embed, extract, load_model

__all__ = ["embed", "extract", "load_model", "probe", "retrieve"]
