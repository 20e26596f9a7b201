"""MIM-JEPA pretraining: masks and predictor -> objective -> engine -> training loop."""

from . import masks, schedules
from .budget import Budget
from .engine import choose_recipe
from .finishing import check_finish, finish
from .mimjepa import MIMJEPA
from .predictor import Predictor
from .recipe import Recipe
from .train import pretrain

__all__ = [
    "MIMJEPA",
    "Budget",
    "Predictor",
    "Recipe",
    "check_finish",
    "choose_recipe",
    "finish",
    "masks",
    "pretrain",
    "schedules",
]
