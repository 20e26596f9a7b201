"""Publish weights: manifest entry, model card, upload, offline copy and conversion of the authors' checkpoints.

Nothing here is needed to use or to train a model.
"""

from .authors_checkpoints import convert, load_predictor
from .card import make_card
from .entry import make_entry
from .offline import download
from .upload import publish

__all__ = ["convert", "download", "load_predictor", "make_card", "make_entry", "publish"]
