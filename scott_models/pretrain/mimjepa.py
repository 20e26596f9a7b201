"""MIM-JEPA: predict, in feature space, the patches that are hidden from the context encoder.

The context encoder sees an image with most patches hidden. From its features the predictor predicts those of a target
encoder, which sees the whole image. The target encoder is a moving average of the context encoder.

Source: paper (arXiv 2502.18056), Section 3.3.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.random_streams import Draws
from ..data.views import TwoCrops, TwoViews
from ..models.scott import SCOTT
from ..training.plan import Drawing, Plan, draw_nothing
from ..training.processes import unwrap
from ..training.schedules import linear
from . import masks
from .pooled import Pooled
from .predictor import Predictor

Views = Callable[[Any, Draws], tuple[Tensor, ...]]


class Student(nn.Module):
    """Join the two trained parts in one module: the context encoder, then the predictor."""

    def __init__(self, context_encoder: SCOTT, predictor: Predictor) -> None:
        super().__init__()
        self.context_encoder = context_encoder
        self.predictor = predictor

    def forward(self, images: Tensor, visible: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode the context images, then predict the target features of all patches.

        Args:
            images: context images (B, 3, H, W).
            visible: bool (B, N), True for visible patches.
            places: indices of the visible patches, int64 (B, K); if given, only these patches are encoded.

        Returns:
            predictions (B, N, D), and the context encoder's features before its last norm: (B, N, D) of all patches,
            or (B, K, D) of the visible patches if `places` is given.
        """
        if places is None:
            tokens = self.context_encoder.forward_tokens(images, visible)
            return self.predictor(tokens), tokens
        tokens = self.context_encoder.forward_visible(images, visible, places)
        return self.predictor(tokens, places), tokens


class MIMJEPA(nn.Module):
    """Train a context encoder and a predictor; the target encoder is a moving average of the context encoder.

    Source: paper, Section 3.3.

    Args:
        encoder: becomes the context encoder; the target encoder starts as a copy of it.
        predictor: predicts the target features. Either the encoder or the predictor has a mask token. If the
            predictor has one, the context encoder encodes only the visible patches.
        views: function that makes context and target images: (crops uint8, draws) -> two normalised batches.
            `TwoCrops` adds a third batch, from another crop; the pooled term compares its target features with the
            context features.
        mask: function that samples masks: (grid, batch=..., generator=...) -> visible, bool (batch, N).
        ema: decay of the moving average before the first and at the last update, linear in between.
        pooled: term on pooled features to add to the loss; None for no such term.

    Raises:
        ValueError: neither the encoder nor the predictor has a mask token, or both have one.
    """

    def __init__(
        self,
        encoder: SCOTT,
        predictor: Predictor,
        *,
        views: Views = TwoViews(),  # noqa: B008 -- a constant
        mask: Callable[..., Tensor] = partial(masks.blockwise, ratio=0.6),  # noqa: B008 -- a constant
        ema: tuple[float, float] = (0.996, 1.0),
        pooled: Pooled | None = None,
    ) -> None:
        super().__init__()
        if (encoder.mask_token is None) == (predictor.mask_token is None):
            raise ValueError(
                "encoder: expected a model created with use_mask_token=True, or else a predictor with mask_token=True"
            )
        self.student: Student = Student(encoder, predictor)
        self.target_encoder = deepcopy(encoder).requires_grad_(False).eval()
        self.views, self.views_per_image = views, 2 if isinstance(views, TwoCrops) else 1
        self.mask = mask
        self.ema = ema
        self.pooled: Any = pooled  # Any: with several processes a wrapper replaces it

    @property
    def context_encoder(self) -> SCOTT:
        """Return the context encoder, without the wrapper of several processes."""
        return unwrap(self.student).context_encoder

    @property
    def predictor(self) -> Predictor:
        """Return the predictor, without the wrapper of several processes."""
        return unwrap(self.student).predictor

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """Return the encoders that can be monitored and exported, by name."""
        return {"target": self.target_encoder, "context": self.context_encoder}

    def train(self, mode: bool = True) -> "MIMJEPA":
        super().train(mode)
        self.target_encoder.eval()  # no dropout in the target encoder, not even in training
        return self

    @property
    def _drawing(self) -> Drawing:
        more = draw_nothing if self.pooled is None else unwrap(self.pooled).drawing
        grid, only_visible = self.target_encoder.patch_embed.grid_size, self.predictor.mask_token is not None
        return Drawing(self.views, self.mask, grid, places=only_visible, more=more)

    @property
    def drawing(self) -> Drawing | None:
        """Return a function that draws random numbers for `inputs` ahead of time; None if the views cannot."""
        return self._drawing.ahead

    def inputs(self, crops: Tensor | Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Make the arguments of `forward` from crops uint8 (B, 3, H, W); two of each image with `TwoCrops`.

        Returns, in this order:
            - context images and target images, (B, 3, H, W) each;
            - with two crops of each image: target images of the second crop, (B, 3, H, W);
            - visible, bool (B, N);
            - if only the visible patches are encoded: indices of the visible and of the hidden patches, int64 (B, K)
              and (B, N - K);
            - the random numbers of the pooled term, if it needs any.
        """
        return self._drawing.inputs(crops, generator)

    def forward(self, context: Tensor, target: Tensor, *rest: Tensor) -> Tensor:
        """Compute the loss, a scalar: smooth L1 (beta 1) between predicted and target features of the hidden patches.

        It is averaged over features and hidden patches. The pooled term is added, if there is one.

        Args:
            context: context images (B, 3, H, W).
            target: target images (B, 3, H, W).
            rest: the other results of `inputs`, in the same order.
        """
        target_images = target
        if self.views_per_image == 2:
            target_images, rest = torch.cat([target, rest[0]]), rest[1:]
        with torch.no_grad():
            features = self.target_encoder.forward_features(target_images)
        # The pooled term compares the context with the second crop, or with the same crop if there is only one.
        targets, other_targets = features[: len(target)], features[-len(target) :]
        visible, drawn = rest[0], rest[1:]
        places, drawn = (drawn[0], drawn[2:]) if self.predictor.mask_token is not None else (None, drawn)
        predictions, tokens = self.student(context, visible, places)
        distance = F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none").mean(dim=-1)
        hidden = ~visible
        loss = (distance * hidden).sum() / hidden.sum()
        if self.pooled is None:
            return loss
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5)  # like the target features
        return loss + self.pooled(normed.mean(dim=1), other_targets.mean(dim=1), *drawn)

    def set_input_size(self, size: int) -> None:
        """Set the side of the crops, in pixels, from now on."""
        for encoder in self.encoders.values():
            encoder.set_input_size(size)
        self.predictor.set_grid(self.target_encoder.patch_embed.grid_size)

    def after_step(self, step: float, total: int) -> None:
        """Update the target encoder after update `step` of `total`.

        `step` is fractional in a run that is finished early: the rest of the schedule then passes in fewer updates.
        """
        self.update_target(linear(step, total=total, start=self.ema[0], final=self.ema[1]))

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """Set each target weight to decay * target + (1 - decay) * context."""
        target, context = self._weight_pairs
        torch._foreach_mul_(target, decay)
        torch._foreach_add_(target, context, alpha=1 - decay)

    @cached_property
    def _weight_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """List the weights of the target encoder and, in the same order, of the context encoder.

        Cached, because listing the weights by name takes longer than updating them.
        """
        context, target = (dict(e.named_parameters()) for e in (self.context_encoder, self.target_encoder))
        return [target[name] for name in context], list(context.values())
