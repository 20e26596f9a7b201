"""Heads on features of a frozen model, trained or solved for: the paper's linear and attentive probe.

Source: paper, Appendix E; released code where it is silent: 100 epochs of AdamW in batches of 64, learning rate 1e-6
to 5e-4 in 20 epochs, level for 72 % of the rest, a cosine down to 1e-5, weight decay 0.04 to 0.4.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.device import copy_to_device
from ..data.labelled import hold_out
from ..data.order import Order
from ..errors import TrainingError
from ..models.attentive_pool import AttentivePool
from ..models.layers import draw_normal
from ..progress import track
from ..training.course import Course
from ..training.optimizer import apply_gradients, build_optimizer, set_schedules
from ..training.settings import Schedule
from .classifiers import Accuracy, logistic
from .features import Features

WARM_UP, BATCH = 0.2, 64  # a share of the epochs, images
INVERSE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of a logistic regression; at 100 solvers disagree by points
FEW = 2**23  # numbers: a batch of 64 images of 196 patches of 384 has 5 million


class LinearHead(nn.Sequential):
    """Pooled features (B, D) -> logits: LayerNorm, linear; or linear alone, without `norm`."""

    takes_patches = False

    def __init__(self, dim: int, classes: int, *, norm: bool = True) -> None:
        super().__init__(nn.LayerNorm(dim) if norm else nn.Identity(), make_classifier(dim, classes))


class AttentiveHead(nn.Sequential):
    """Patch features (B, N, D) -> logits: attentive pool, linear."""

    takes_patches = True

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(AttentivePool(dim), make_classifier(dim, classes))


Head = LinearHead | AttentiveHead


def make_classifier(dim: int, classes: int) -> nn.Linear:
    """The last layer of a head: truncated-normal weights of spread 0.02, no bias yet."""
    linear = nn.Linear(dim, classes)
    draw_normal(linear.weight, 0.02)
    nn.init.zeros_(linear.bias)
    return linear


def train(
    heads: Sequence[Head],
    features: Callable[[Iterator[Tensor]], Iterable[Features]],
    labels: Tensor,
    *,
    seed: int,
    epochs: int,
    what: str = "heads",
) -> None:
    """Train heads side by side on the same batches; on a GPU an epoch is begun before it is waited for.

    Args:
        features: for batches of places, int64 (B, 2), epoch and image, the features of each.
        labels: int64 (M,), of all training images, on the device where `features` takes places.
        seed: of the order of images and of dropout.

    Raises:
        TrainingError: an epoch of which no update was made, since the loss or a gradient was not finite in any.
    """
    batch, device = min(BATCH, len(labels)), heads[0][1].weight.device
    optim = Schedule(epochs=epochs, warmup_epochs=WARM_UP * epochs, batch_size=batch, lr_scaling="none")
    order = Order(len(labels), batch, seed)
    total = epochs * order.steps
    optimizers = [build_optimizer(head.train()) for head in heads]
    skipped, before = torch.zeros(len(heads), device=device), [0.0] * len(heads)
    torch.manual_seed(seed)
    pieces = (places for epoch in range(epochs) for places in list_epoch_places(order, epoch, labels.device))
    batches = track(features(pieces), what, total=total * batch, size=batch)
    for step, (pooled, patches) in enumerate(batches, 1):
        epoch, place = divmod(step - 1, order.steps)
        if place == 0:
            wanted = to_device(device, labels[list_epoch_places(order, epoch, labels.device)[..., 1]])
        for i, (head, optimizer) in enumerate(zip(heads, optimizers)):
            set_schedules(optim, optimizer, step, Course(total), order.steps)
            seen = select_features(head, pooled, patches)
            with limit_threads(seen):
                loss = F.cross_entropy(head(seen), wanted[place])
                loss.backward()
                skipped[i] += apply_gradients(optimizer, loss)[1]
        if place == order.steps - 1:
            now = skipped.tolist()
            if any(after - earlier == order.steps for after, earlier in zip(now, before)):
                raise TrainingError(
                    f"{what}: expected a finite loss and gradients, found none in all of epoch {epoch + 1}; "
                    "look at the model's features, which --features keeps"
                )
            before = now
    if any(before):
        print(
            f"{what}: {max(before):.0f} of {total} updates were skipped: their loss or gradients were not finite",
            file=sys.stderr,
        )
    for head in heads:
        head.eval()


@contextmanager
def limit_threads(features: Tensor) -> Iterator[None]:
    """Let torch use one thread inside, for features of a CPU, unless they are more than FEW numbers.

    Threads wait for each other at each of a step's hundred small operations. Beside other work on the same two cores
    two threads took five to ten times as long for a step as one; on idle ones they were 1.3 times as fast.
    """
    before = torch.get_num_threads()
    few = features.device.type == "cpu" and features.numel() <= FEW and before > 1
    try:
        if few:
            torch.set_num_threads(1)
        yield
    finally:
        if few:
            torch.set_num_threads(before)


def list_epoch_places(order: Order, epoch: int, device: torch.device) -> Tensor:
    """List all places of an epoch, moved at once: int64 (steps, B, 2)."""
    steps = range(epoch * order.steps + 1, (epoch + 1) * order.steps + 1)
    return to_device(device, torch.tensor([order.of_update(step) for step in steps]))


def select_features(head: Head, pooled: Tensor, patches: Tensor | None) -> Tensor:
    """Select the features of a batch that a head looks at, in fp32 on its device."""
    features = patches if head.takes_patches else pooled
    assert features is not None
    return to_device(head[1].weight.device, features).float()


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Move a tensor to a device; from a CPU without waiting for what the device is doing."""
    return tensor if tensor.device == device else copy_to_device(tensor, device)


def solve_linear(head: LinearHead, features: Tensor, labels: Tensor, seed: int, what: str = "") -> float:
    """Fill a head with the logistic regression of some views of every image: features (views, M, D), labels (M,).

    Its strength is the one of INVERSE_STRENGTHS that is best on the first view of a fifth of the images, of each class
    at least one and never the last, left out of the fit; the head is then fitted to all.

    Args:
        seed: of the choice of those images.
        what: name of a progress bar; without one there is none.

    Returns:
        the inverse strength chosen.
    """
    with torch.no_grad():
        features = head[0](features.to(head[1].weight.device))  # a fresh norm, which has not learned anything
    labels = labels.to(features.device)
    classes = head[1].out_features
    held_out = choose_held_out(labels.cpu(), seed).to(features.device)

    def fit(chosen: Tensor, inverse_strength: float, rough: bool = False) -> tuple[Tensor, Tensor]:
        some = features[:, chosen].flatten(0, 1)
        return logistic(some, labels[chosen].repeat(len(features)), classes, inverse_strength, rough=rough)

    def top1(inverse_strength: float) -> float:
        weight, bias = fit(~held_out, inverse_strength, rough=True)
        scores = F.linear(features[0, held_out].double(), weight, bias)
        return Accuracy.of(scores, labels[held_out]).top1

    strengths: Iterable[float] = INVERSE_STRENGTHS
    if what:
        strengths = track(strengths, what, total=len(INVERSE_STRENGTHS), unit="fits")
    with limit_threads(features):
        best = max(strengths, key=top1) if held_out.any() else 1.0
        weight, bias = fit(torch.ones_like(held_out), best)
    with torch.no_grad():
        head[1].weight.copy_(weight)
        head[1].bias.copy_(bias)
    head.eval()
    return best


def choose_held_out(labels: Tensor, seed: int) -> Tensor:
    """One image of five, of each class at least one and never the last: labels (M,) -> bool (M,)."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name in labels.unique():
        members = order[labels[order] == name]
        held_out[hold_out(members)[1]] = True
    return held_out
