"""MIM-JEPA pretraining: masks and predictor -> objective -> training loop."""

from . import masks, schedules
from .objective import MIMJEPA
from .predictor import Predictor
from .recipe import Recipe
from .train import pretrain

__all__ = ["MIMJEPA", "Predictor", "Recipe", "masks", "pretrain", "schedules"]
