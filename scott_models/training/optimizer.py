"""The optimiser: AdamW as in the released code, its schedules, and updates that leave no trace if they failed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .course import Course
from .schedules import linear
from .settings import Schedule


def apply_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Let the optimiser step and forget the gradients, unless the loss or one of them is not finite.

    The decision stays on the device: fused AdamW takes it as `found_inf`, as a gradient scaler would give it.

    Returns:
        the gradients' norm, and 1 if the step was skipped, else 0: scalars on the device.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    skipped = 1 - (norm.isfinite() & loss.isfinite()).float()
    optimizer.found_inf = skipped
    optimizer.step()
    optimizer.zero_grad()
    return norm, skipped


def list_persistent_buffers(module: nn.Module) -> list[Tensor]:
    """List what training changes besides parameters and a checkpoint holds, such as BatchNorm's statistics."""
    buffers = dict(module.named_buffers())
    return [buffers[name] for name in module.state_dict() if name in buffers]


@torch.no_grad()
def restore_buffers(buffers: Sequence[Tensor], before: Sequence[Tensor], skipped: Tensor | None = None) -> None:
    """Give buffers the values they had before; with `skipped`, a scalar on their device, only if it is not 0."""
    for buffer, old in zip(buffers, before):
        buffer.copy_(old if skipped is None else torch.where(skipped > 0, old, buffer))


def build_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """AdamW as in the released code: vectors and biases are not decayed, everything else is, the mask token too.

    An objective that has `parameter_groups` decides for itself which are `decayed`, and what their learning rate is
    multiplied with, `lr_scale`.
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
    """Set what update `step` uses; returns its learning rate and weight decay."""
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
