"""Supervised training of a classifier, from random or pretrained weights.

This package holds the recipe, the objective and the run; the engine and the training loop are those of `training`.
"""

from .recipe import FinetuneRecipe
from .train import finetune

__all__ = ["FinetuneRecipe", "finetune"]
