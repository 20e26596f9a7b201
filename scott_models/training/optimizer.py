"""Build AdamW as in the released code, set its schedules and apply gradients.

A step of the optimiser changes nothing if the loss or a gradient is not finite.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .course import Course
from .schedules import linear
from .settings import Schedule


def apply_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Step the optimiser, unless the loss or a gradient is not finite. Clear the gradients in either case.

    The decision stays on the device: fused AdamW reads it from `found_inf`, which a gradient scaler would set.

    Returns:
        the norm of all gradients, and 1 if the step was skipped, else 0: scalars on the device.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    skipped = 1 - (norm.isfinite() & loss.isfinite()).float()
    optimizer.found_inf = skipped
    optimizer.step()
    optimizer.zero_grad()
    return norm, skipped


def list_persistent_buffers(module: nn.Module) -> list[Tensor]:
    """List the buffers that checkpoints hold, such as BatchNorm's statistics, which training changes."""
    buffers = dict(module.named_buffers())
    return [buffers[name] for name in module.state_dict() if name in buffers]


@torch.no_grad()
def restore_buffers(buffers: Sequence[Tensor], before: Sequence[Tensor], skipped: Tensor | None = None) -> None:
    """Restore the earlier values of buffers. With `skipped`, a scalar on their device, do so only if it is above 0."""
    for buffer, old in zip(buffers, before):
        buffer.copy_(old if skipped is None else torch.where(skipped > 0, old, buffer))


def build_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """Build AdamW as in the released code.

    Vectors and biases have no weight decay; all other parameters have, the mask token too. An objective with a method
    `parameter_groups` chooses the groups instead: `decayed` is True for groups with weight decay, and `lr_scale`
    is a factor on their learning rate.
    """
    if hasattr(objective, "parameter_groups"):
        groups = objective.parameter_groups()
    else:
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "decayed": True},
            {"params": [p for p in trained if p.ndim <= 1], "decayed": False, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_schedules(
    optim: Schedule, optimizer: torch.optim.Optimizer, step: int, course: Course, steps_per_epoch: int
) -> tuple[float, float]:
    """Set the learning rate and weight decay of update `step` in the optimiser, and return both."""
    lr = optim.lr_factor * course.lr(
        step,
        warmup=round(optim.warmup_epochs * steps_per_epoch),
        start=optim.start_lr,
        peak=optim.peak_lr,
        final=optim.final_lr,
        flat=optim.flat,
    )
    start, final = optim.start_weight_decay, optim.final_weight_decay
    weight_decay = linear(course.place(step), total=course.planned, start=start, final=final)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0
    return lr, weight_decay
