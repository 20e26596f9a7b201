"""Supervised training of a classifier, from scratch or from weights.

It is a recipe, an objective and a run on the machinery of `training`.
"""

from .recipe import FinetuneRecipe
from .train import finetune

__all__ = ["FinetuneRecipe", "finetune"]
