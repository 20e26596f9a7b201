"""Measurements on this machine: the speed of models, and what the machine can do.

`contenders.py` builds what `measure.py` times; `doctor.py` examines the machine.
"""

from .contenders import Contender
from .doctor import examine

__all__ = ["Contender", "examine"]
