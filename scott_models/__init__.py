"""SCOTT vision transformers and MIM-JEPA pretraining. Importing registers the models with timm."""

from . import weights
from .scott import SCOTT

__all__ = ["SCOTT", "__version__", "weights"]
__version__ = "0.1.0"
