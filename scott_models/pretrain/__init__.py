"""Pretraining by MIM-JEPA and other objectives.

To read the method, start with `mimjepa.py`, then `predictor.py` and `masks.py`. `recipe.py` holds the settings of a
run, `train.py` runs the training loop. Each other objective has a file of its own. The package itself can be called:
`scott_models.pretrain(recipe, data, out)` calls `scott_models.pretrain.pretrain`.
"""

import sys
from types import ModuleType
from typing import Any

from ..training import schedules
from ..training.budget import Budget
from . import masks
from .finishing import check_finish, finish
from .mimjepa import MIMJEPA
from .predictor import Predictor
from .recipe import Recipe, choose_recipe
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


class _Callable(ModuleType):
    """Make this package callable: a call of the package calls its function `pretrain`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.pretrain(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
