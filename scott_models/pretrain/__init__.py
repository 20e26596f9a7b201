"""MIM-JEPA pretraining: masks and predictor -> objective -> engine -> training loop.

`mimjepa.py` is the method, `recipe.py` its settings; other objectives have a file each. The package can be called:
`scott_models.pretrain(recipe, data, out)` is `scott_models.pretrain.pretrain`.
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
    """A package whose name is also that of its function: calling it calls that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.pretrain(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
