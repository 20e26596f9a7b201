"""Cross-entropy of a classifier, as an objective that the training loop knows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from ..data.colours import Colours, change_colours, normalize
from ..data.device import copy_together
from ..data.random_streams import Draws
from ..probes.features import resolve_transform_config
from ..training.processes import unwrap
from .recipe import FinetuneRecipe


@dataclass(frozen=True)
class SupervisedPlan:
    """Hold what was drawn for a batch.

    Attributes:
        images: int64 (B,), which of the run's they are.
        colours: None if images keep theirs.
        shares: float64 (B,), of each image where it is mixed with another; none if none are.
    """

    images: np.ndarray
    colours: Colours | None
    shares: np.ndarray


@dataclass(frozen=True)
class SupervisedDrawing:
    """Draw for a batch: other colours if wanted, and the shares of mixed images if `mixup` is not 0."""

    colours: bool
    mixup: float

    def __call__(self, draws: Draws) -> SupervisedPlan:
        assert draws.images is not None
        count = len(draws.seeds) if self.mixup else 0
        colours = Colours.draw(draws) if self.colours else None
        shares = np.random.default_rng(draws.seeds).beta(self.mixup, self.mixup, count) if count else np.empty(0)
        return SupervisedPlan(draws.images.numpy(), colours, shares)


class Supervised(nn.Module):
    """Cross-entropy of a classifier: an objective as pretraining knows them (pretrain/build.py).

    Attributes:
        labels: int64, of all images of the run, on the CPU; set once they are known.
    """

    labels: Tensor

    def __init__(self, model: nn.Module, recipe: FinetuneRecipe, compiled: bool = False) -> None:
        super().__init__()
        self.compiled = compiled
        self.model = model
        self.classes, self.optim, self.colours = model.num_classes, recipe.optim, recipe.data.colours
        config = resolve_transform_config(model, recipe.model.img_size)
        self.mean, self.std = config["mean"], config["std"]

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"model": unwrap(self.model)}

    @property
    def drawing(self) -> "SupervisedDrawing":
        """Return what draws ahead for `inputs`."""
        return SupervisedDrawing(self.colours, self.optim.mixup)

    def inputs(self, crops: Tensor, draws: "Draws | SupervisedPlan") -> tuple[Tensor, Tensor]:
        """Crops uint8 (B, 3, H, W) -> images (B, 3, H, W) and the shares of the classes in each (B, classes)."""
        plan = draws if isinstance(draws, SupervisedPlan) else self.drawing(draws)
        if plan.colours:
            images = change_colours(crops, plan.colours, self.compiled, self.mean, self.std)
        else:
            images = normalize(crops.float() / 255, self.mean, self.std)
        labels, share = copy_together([self.labels[plan.images], torch.from_numpy(plan.shares).float()], crops.device)
        targets = F.one_hot(labels, self.classes).to(images.dtype)
        if len(share):
            images = torch.lerp(images.flip(0), images, share.view(-1, 1, 1, 1))
            targets = torch.lerp(targets.flip(0), targets, share.view(-1, 1))
        return images, targets

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), targets, label_smoothing=self.optim.label_smoothing)

    def after_step(self, step: float, total: int) -> None:
        """Nothing follows a classifier."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group parameters: vectors, biases and what the model names are not decayed; early layers learn slower."""
        named: set[str] = getattr(self.model, "no_weight_decay", set)()  # such as positions and class tokens
        groups = param_groups_layer_decay(
            self.model, weight_decay=1.0, no_weight_decay_list=named, layer_decay=self.optim.layer_decay
        )
        return [{**group, "decayed": group["weight_decay"] > 0} for group in groups]
