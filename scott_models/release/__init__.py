"""For whoever publishes weights: manifest entry, model card, upload, offline copy, the authors' checkpoints.

Nothing here is needed to use or to train a model.
"""

from .authors_checkpoints import convert, load_predictor
from .card import card
from .entry import entry_of_run
from .offline import download
from .upload import publish

__all__ = ["card", "convert", "download", "entry_of_run", "load_predictor", "publish"]
