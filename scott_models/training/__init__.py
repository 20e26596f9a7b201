"""Code that every kind of training shares: the engine, the loop, the run folder, the settings and the schedules.

Nothing here depends on a particular training method.
"""

from .budget import Budget
from .engine import Engine
from .run import Run
from .settings import Settings

__all__ = ["Budget", "Engine", "Run", "Settings"]
