"""The base class of objectives with one encoder and no target encoder."""

from typing import Any

from torch import nn

from ..models.scott import SCOTT
from ..training.processes import unwrap


class OneEncoder(nn.Module):
    """Hold the student of an objective; the student's encoder is the only one.

    Attributes:
        student: module with an `encoder`, and with `set_grid` if it has positions of its own. With several processes a
            wrapper replaces it.
    """

    student: Any

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """Return the encoders that can be monitored and exported: the same one under both names."""
        encoder = unwrap(self.student).encoder
        return {"target": encoder, "context": encoder}

    def set_input_size(self, size: int) -> None:
        """Set the side of the crops, in pixels, from now on."""
        student = unwrap(self.student)
        student.encoder.set_input_size(size)
        if hasattr(student, "set_grid"):
            student.set_grid(student.encoder.patch_embed.grid_size)

    def after_step(self, step: float, total: int) -> None:
        """Do nothing: there is no target encoder to update."""
