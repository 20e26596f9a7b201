"""MIM-JEPA: predict, in feature space, what a slowly following target encoder sees where the context is hidden."""

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
    """Join what is trained into one module: context encoder, then predictor."""

    def __init__(self, context_encoder: SCOTT, predictor: Predictor) -> None:
        super().__init__()
        self.context_encoder = context_encoder
        self.predictor = predictor

    def forward(self, images: Tensor, visible: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Context images (B, 3, H, W), visible bool (B, N) -> predicted target features of all patches (B, N, D).

        Args:
            places: of the visible patches, int64 (B, K), if they alone are to be encoded.

        Returns:
            these, and the context encoder's own features, of all patches or of the visible, before the last norm.
        """
        if places is None:
            tokens = self.context_encoder.forward_tokens(images, visible)
            return self.predictor(tokens), tokens
        tokens = self.context_encoder.forward_visible(images, visible, places)
        return self.predictor(tokens, places), tokens


class MIMJEPA(nn.Module):
    """Context encoder and predictor, trained; target encoder, their moving average (paper, Section 3.3).

    Args:
        encoder: becomes the context encoder; the target starts as its copy. Either it or the predictor needs a mask
            token. With the predictor's, the encoder sees the visible patches alone.
        views: how crops become (context, target) images: (crops uint8, draws) -> two normalised batches. `TwoCrops`
            adds a third, of another crop, whose target features the pooled term compares the context with.
        mask: (grid, batch=..., generator=...) -> visible, bool (batch, N).
        ema: decay of the target before the first and at the last update, linear in between.
        pooled: a term on pooled features to add to the loss.

    Raises:
        ValueError: no mask token, or two.
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
        self.pooled: Any = pooled  # several processes wrap it

    @property
    def context_encoder(self) -> SCOTT:
        return unwrap(self.student).context_encoder

    @property
    def predictor(self) -> Predictor:
        return unwrap(self.student).predictor

    @property
    def encoders(self) -> dict[str, SCOTT]:
        """What may be watched and exported."""
        return {"target": self.target_encoder, "context": self.context_encoder}

    def train(self, mode: bool = True) -> "MIMJEPA":
        super().train(mode)
        self.target_encoder.eval()  # the target never drops anything
        return self

    @property
    def _drawing(self) -> Drawing:
        more = draw_nothing if self.pooled is None else unwrap(self.pooled).drawing
        grid, alone = self.target_encoder.patch_embed.grid_size, self.predictor.mask_token is not None
        return Drawing(self.views, self.mask, grid, places=alone, more=more)

    @property
    def drawing(self) -> Drawing | None:
        """Return what draws ahead for `inputs`, if the views can."""
        return self._drawing.ahead

    def inputs(self, crops: Tensor | Sequence[Tensor], generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Crops uint8 (B, 3, H, W) -> context and target images (B, 3, H, W), visible bool (B, N).

        Of two crops of each image, images of the second come third. If the visible patches are encoded alone, the
        places of these and of the hidden ones follow, int64 (B, K) and (B, N - K). Last is what the term on pooled
        features draws.
        """
        return self._drawing.inputs(crops, generator)

    def forward(self, context: Tensor, target: Tensor, *rest: Tensor) -> Tensor:
        """Measure smooth-L1 (beta 1) between predicted and target features, averaged over the hidden patches: a scalar.

        The term on pooled features is added, if there is one.

        Args:
            rest: what `inputs` makes besides, in its order.
        """
        seen = target
        if self.views_per_image == 2:
            seen, rest = torch.cat([target, rest[0]]), rest[1:]
        with torch.no_grad():
            features = self.target_encoder.forward_features(seen)
        targets, compared = features[: len(target)], features[-len(target) :]
        visible, drawn = rest[0], rest[1:]
        places, drawn = (drawn[0], drawn[2:]) if self.predictor.mask_token is not None else (None, drawn)
        predictions, tokens = self.student(context, visible, places)
        distance = F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none").mean(dim=-1)
        hidden = ~visible
        loss = (distance * hidden).sum() / hidden.sum()
        if self.pooled is None:
            return loss
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5)  # as the target's are
        return loss + self.pooled(normed.mean(dim=1), compared.mean(dim=1), *drawn)

    def set_input_size(self, size: int) -> None:
        """Take crops of so many pixels from now on."""
        for encoder in self.encoders.values():
            encoder.set_input_size(size)
        self.predictor.set_grid(self.target_encoder.patch_embed.grid_size)

    def after_step(self, step: float, total: int) -> None:
        """Let the target follow, after update number `step` of `total`; of a run that is finished early in between."""
        self.update_target(linear(step, total=total, start=self.ema[0], final=self.ema[1]))

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """target <- decay * target + (1 - decay) * context, weight by weight, by name."""
        target, context = self._followed
        torch._foreach_mul_(target, decay)
        torch._foreach_add_(target, context, alpha=1 - decay)

    @cached_property
    def _followed(self) -> tuple[list[Tensor], list[Tensor]]:
        """List, once, the weights of the target, and of the context in the same order."""
        context, target = (dict(e.named_parameters()) for e in (self.context_encoder, self.target_encoder))
        return [target[name] for name in context], list(context.values())
