"""Train a classifier by cross-entropy: an objective for the training loop."""

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
        images: int64 (B,), indices of the images among those of the run.
        colours: changes of the colours; None if images keep their colours.
        shares: float64 (B,), share of each image in its mixture with another image; empty without mixup.
    """

    images: np.ndarray
    colours: Colours | None
    shares: np.ndarray


@dataclass(frozen=True)
class SupervisedDrawing:
    """Draw the random numbers of a batch.

    Args:
        colours: also draw changes of the colours.
        mixup: both parameters of the Beta distribution of the shares of mixed images; 0: draw no shares.
    """

    colours: bool
    mixup: float

    def __call__(self, draws: Draws) -> SupervisedPlan:
        assert draws.images is not None
        count = len(draws.seeds) if self.mixup else 0
        colours = Colours.draw(draws) if self.colours else None
        shares = np.random.default_rng(draws.seeds).beta(self.mixup, self.mixup, count) if count else np.empty(0)
        return SupervisedPlan(draws.images.numpy(), colours, shares)


class Supervised(nn.Module):
    """Train a classifier by cross-entropy, with the methods of an objective that pretrain/build.py describes.

    Args:
        model: any timm model with `num_classes` outputs.
        compiled: change colours by a compiled function.

    Attributes:
        labels: int64 (images,), the classes of all images of the run, on the CPU; set once the images are known.
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
        """Return what draws ahead the random numbers that `inputs` needs; it can be pickled."""
        return SupervisedDrawing(self.colours, self.optim.mixup)

    def inputs(self, crops: Tensor, draws: "Draws | SupervisedPlan") -> tuple[Tensor, Tensor]:
        """Turn crops, uint8 (B, 3, H, W), into images and targets.

        Args:
            draws: a plan that was drawn before, or the random numbers to draw it from.

        Returns:
            normalised images, float (B, 3, H, W), and the share of each class in each image, float (B, classes).
        """
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
        """Do nothing: there is no target network to update."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters by weight decay and learning rate.

        Vectors, biases and the parameters in the model's `no_weight_decay()` have no weight decay. The learning rate
        of a layer is that of the next layer times `layer_decay`.
        """
        named: set[str] = getattr(self.model, "no_weight_decay", set)()  # such as positions and class tokens
        groups = param_groups_layer_decay(
            self.model, weight_decay=1.0, no_weight_decay_list=named, layer_decay=self.optim.layer_decay
        )
        return [{**group, "decayed": group["weight_decay"] > 0} for group in groups]
