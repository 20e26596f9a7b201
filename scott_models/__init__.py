"""SCOTT vision transformers and MIM-JEPA pretraining. Importing registers the models with timm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import weights
from .models.scott import SCOTT

if TYPE_CHECKING:
    from . import pretrain
    from .pretrain import Recipe
    from .probes import embed, load_model, probe

__all__ = ["SCOTT", "Recipe", "__version__", "embed", "load_model", "pretrain", "probe", "weights"]
__version__ = "0.1.0"

# Where the rest is: imported on first use, so that `import scott_models` takes hardly longer than `import timm`.
LAZY = {"Recipe": ".pretrain", "embed": ".probes", "load_model": ".probes", "probe": ".probes"}


def __getattr__(name: str) -> Any:
    if name == "pretrain":  # a package that is also its function
        return import_module(".pretrain", __name__)
    if name in LAZY:
        return getattr(import_module(LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
