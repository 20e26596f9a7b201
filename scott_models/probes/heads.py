"""Heads on the features of a frozen model, trained or solved for: the paper's linear and attentive probes.

Source: paper, Appendix E; released code where the paper is silent. 100 epochs of AdamW in batches of 64. The learning
rate rises from 1e-6 to 5e-4 in 20 epochs, stays there for 72 % of the rest, and falls to 1e-5 by a cosine. Weight decay
goes from 0.04 to 0.4.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..console import say
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

WARM_UP, BATCH = 0.2, 64  # share of the epochs; images
INVERSE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of logistic regression; at 100, solvers differ by percentage points
FEW = 2**23  # numbers; features of 64 images with 196 patches of 384 features are 5 million


class LinearHead(nn.Sequential):
    """Map pooled features (B, D) to logits by LayerNorm and a linear layer, or without `norm` by the layer alone."""

    takes_patches = False

    def __init__(self, dim: int, classes: int, *, norm: bool = True) -> None:
        super().__init__(nn.LayerNorm(dim) if norm else nn.Identity(), make_classifier(dim, classes))


class AttentiveHead(nn.Sequential):
    """Map patch features (B, N, D) to logits by an attentive pool and a linear layer."""

    takes_patches = True

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(AttentivePool(dim), make_classifier(dim, classes))


Head = LinearHead | AttentiveHead


def make_classifier(dim: int, classes: int) -> nn.Linear:
    """Create the last layer of a head: truncated-normal weights of standard deviation 0.02, biases 0."""
    linear = nn.Linear(dim, classes)
    draw_normal(linear.weight, 0.02)
    nn.init.zeros_(linear.bias)
    return linear


def train_heads(
    heads: Sequence[Head],
    features: Callable[[Iterator[Tensor]], Iterable[Features]],
    labels: Tensor,
    *,
    seed: int,
    epochs: int,
    what: str = "heads",
) -> None:
    """Train heads side by side on the same batches; the CPU waits for a GPU only at the end of an epoch.

    Args:
        features: a function from batches of places, int64 (B, 2), epoch and image, to the features of each batch.
        labels: int64 (M,), of all training images, on the device where `features` takes places.
        seed: seed for the order of images and for dropout.

    Raises:
        TrainingError: a head had no update in a whole epoch, because its loss or gradients were never finite.
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
                    f"{what}: expected a finite loss and gradients, "
                    f"found NaN or infinity at every step of epoch {epoch + 1}; "
                    "inspect the model's features, which --features saves"
                )
            before = now
    if any(before):
        say(f"{what}: {max(before):.0f} of {total} updates were skipped: their loss or gradients were not finite")
    for head in heads:
        head.eval()


@contextmanager
def limit_threads(features: Tensor) -> Iterator[None]:
    """Limit torch to one thread inside the context, for features on a CPU with at most FEW numbers.

    A step has about a hundred small operations, and threads wait for each other after each operation. With other work
    on the same two cores, two threads took five to ten times as long for a step as one thread. On idle cores, two
    threads were 1.3 times as fast.
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
    """List all places of an epoch, moved to the device together: int64 (steps, B, 2)."""
    steps = range(epoch * order.steps + 1, (epoch + 1) * order.steps + 1)
    return to_device(device, torch.tensor([order.of_update(step) for step in steps]))


def select_features(head: Head, pooled: Tensor, patches: Tensor | None) -> Tensor:
    """Select the features of a batch that a head takes, in fp32 on the head's device."""
    features = patches if head.takes_patches else pooled
    assert features is not None
    return to_device(head[1].weight.device, features).float()


def to_device(device: torch.device, tensor: Tensor) -> Tensor:
    """Move a tensor to a device; a move from a CPU does not wait for the device's earlier work."""
    return tensor if tensor.device == device else copy_to_device(tensor, device)


def solve_linear(head: LinearHead, features: Tensor, labels: Tensor, seed: int, what: str = "") -> float:
    """Fit a head by logistic regression to some views of every image: features (views, M, D), labels (M,).

    The strength is the one of INVERSE_STRENGTHS with the best top-1 accuracy on the first view of held-out images: a
    fifth of each class, at least one image but never all. Without any held-out image it is 1. The head is then fitted
    to all images.

    Args:
        seed: seed for the choice of held-out images.
        what: name of the progress bar; no bar if empty.

    Returns:
        the chosen inverse strength.
    """
    with torch.no_grad():
        features = head[0](features.to(head[1].weight.device))  # the norm still has its initial parameters
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
    """Choose a fifth of each class, at least one image but never all: labels (M,) -> bool (M,)."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name in labels.unique():
        members = order[labels[order] == name]
        held_out[hold_out(members)[1]] = True
    return held_out
