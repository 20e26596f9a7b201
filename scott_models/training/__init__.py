"""What every kind of training needs: the engine, the loop, the run folder, the settings, the schedules.

No method is known here by name.
"""

from .budget import Budget
from .engine import Engine
from .run import Run
from .settings import Settings

__all__ = ["Budget", "Engine", "Run", "Settings"]
