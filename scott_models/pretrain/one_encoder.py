"""What objectives share that train one encoder and have no other."""

from typing import Any

from torch import nn

from ..models.scott import SCOTT
from ..training.processes import unwrap


class OneEncoder(nn.Module):
    """An objective whose encoder is its student's.

    Attributes:
        student: with an `encoder`, and a `set_grid` if it has positions of its own; several processes wrap it.
    """

    student: Any

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """What may be watched and exported: there is one encoder, whatever it is asked for as."""
        encoder = unwrap(self.student).encoder
        return {"target": encoder, "context": encoder}

    def set_input_size(self, size: int) -> None:
        """Take crops of so many pixels from now on."""
        student = unwrap(self.student)
        student.encoder.set_input_size(size)
        if hasattr(student, "set_grid"):
            student.set_grid(student.encoder.patch_embed.grid_size)

    def after_step(self, step: float, total: int) -> None:
        """Nothing follows an update."""
