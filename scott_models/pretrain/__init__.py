"""MIM-JEPA pretraining: masks and predictor -> objective -> engine -> training loop."""

from . import masks, schedules
from .budget import Budget
from .finishing import check_finish, finish
from .mimjepa import MIMJEPA
from .predictor import Predictor
from .recipe import Recipe
from .train import pretrain

__all__ = ["MIMJEPA", "Budget", "Predictor", "Recipe", "check_finish", "finish", "masks", "pretrain", "schedules"]
