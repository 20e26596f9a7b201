"""MIM-JEPA: predict, in feature space, what a slowly following target encoder sees where the context is hidden.

An objective is a module with three methods, and the training loop knows no more of it:
`inputs(crops, generator) -> tuple`, `forward(*inputs) -> loss`, `after_step(step, total)`; for what comes of a run,
`encoders`, by name; and if it must look at the images before the first update, `prepare(crops, folder)`. If it has a
`drawing`, which can be pickled, other processes draw with it ahead: `inputs` gets `drawing(draws)`, of numpy arrays, in
place of the draws. Its children with trained parameters are what several processes share; each may be replaced by a
wrapper with a `.module`.
"""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import weights
from ..errors import RecipeError, WeightsError
from ..scott import MODELS, SCOTT, checkpoint_filter_fn
from . import masks
from .augment import TwoViews
from .beit import BEiT
from .draws import Draws
from .plan import Drawing, Plan, nothing
from .pooled import Pooled
from .predictor import Predictor
from .recipe import Mask, Recipe, require
from .schedules import linear
from .splitmask import Decoder, SplitMask
from .vocabulary import Vocabulary

Views = Callable[[Tensor, Draws], tuple[Tensor, Tensor]]


class Student(nn.Module):
    """What is trained, as one module: context encoder, then predictor."""

    def __init__(self, context_encoder: SCOTT, predictor: Predictor) -> None:
        super().__init__()
        self.context_encoder = context_encoder
        self.predictor = predictor

    def forward(self, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Context images (B, 3, H, W), visible bool (B, N) -> two of all patches (B, N, D).

        Returns:
            predicted target features, and the context encoder's own, before the last norm.
        """
        tokens = self.context_encoder.forward_tokens(images, visible)
        return self.predictor(tokens), tokens


def unwrapped(student: Any) -> Student:
    """Itself, or what a wrapper of several processes holds."""
    return getattr(student, "module", student)


class MIMJEPA(nn.Module):
    """Context encoder and predictor, trained; target encoder, their moving average (paper, Section 3.3).

    Args:
        encoder: becomes the context encoder; the target starts as its copy. It needs a mask token.
        views: how crops become (context, target) images: (crops uint8, draws) -> two normalised batches.
        mask: (grid, batch=..., generator=...) -> visible, bool (batch, N).
        ema: decay of the target before the first and at the last update, linear in between.
        pooled: a term on pooled features to add to the loss.

    Raises:
        ValueError: an encoder without a mask token.
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
        if encoder.mask_token is None:
            raise ValueError("encoder: expected a model created with use_mask_token=True, got one without a mask token")
        self.student: Student = Student(encoder, predictor)
        self.target_encoder = deepcopy(encoder).requires_grad_(False).eval()
        self.views = views
        self.mask = mask
        self.ema = ema
        self.pooled: Any = pooled  # several processes wrap it

    @property
    def context_encoder(self) -> SCOTT:
        return unwrapped(self.student).context_encoder

    @property
    def predictor(self) -> Predictor:
        return unwrapped(self.student).predictor

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
        more = nothing if self.pooled is None else getattr(self.pooled, "module", self.pooled).drawing
        return Drawing(self.views, self.mask, self.target_encoder.patch_embed.grid_size, more=more)

    @property
    def drawing(self) -> Drawing | None:
        """Return what draws ahead for `inputs`, if the views can."""
        return self._drawing.ahead

    def inputs(self, crops: Tensor, generator: torch.Generator | Draws | Plan) -> tuple[Tensor, ...]:
        """Crops uint8 (B, 3, H, W) -> context and target images (B, 3, H, W), visible bool (B, N).

        And what the term on pooled features draws.
        """
        return self._drawing.inputs(crops, generator)

    def forward(self, context: Tensor, target: Tensor, visible: Tensor, *drawn: Tensor) -> Tensor:
        """Smooth-L1 (beta 1) between predicted and target features, averaged over the hidden patches: a scalar.

        The term on pooled features is added, if there is one.
        """
        with torch.no_grad():
            targets = self.target_encoder.forward_features(target)
        predictions, tokens = self.student(context, visible)
        distance = F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none").mean(dim=-1)
        hidden = ~visible
        loss = (distance * hidden).sum() / hidden.sum()
        if self.pooled is None:
            return loss
        features = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5)  # as the target's are
        return loss + self.pooled(features.mean(dim=1), targets.mean(dim=1), *drawn)

    def after_step(self, step: int, total: int) -> None:
        """Let the target follow, after the optimiser's update number `step` (1 to `total`)."""
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


def start_from(encoder: SCOTT, init: str, name: str, *, grow: bool = False) -> None:
    """Replace an encoder's fresh weights by trained ones; the mask token stays fresh where those have none.

    Args:
        init: a released tag, "local-dir:FOLDER", or the folder of a run that has ended.
        name: of the encoder's model.
        grow: let the weights be a shallower model's, of any number of heads. Its blocks come first, the others stay
            fresh: they add so little yet that features are about the shallower model's.

    Raises:
        WeightsError: weights that cannot be had, or are another model's.
    """
    if init in weights.manifest():
        model = init.split(".", maxsplit=1)[0]
        require(grow or model == name, "model.name", f"{model}, whose weights {init} are, or model.grow=true", name)
        path, released = weights.load(init)
        heads = weights.registered_args(model)["num_heads"]  # or it would not be a tag's
    else:
        released, folder = None, Path(init.removeprefix("local-dir:"))
        path = next(iter(folder.glob("export/model.safetensors")), folder / "model.safetensors")
        if not path.is_file():
            tags = sorted(weights.manifest())
            raise WeightsError(f"init: expected one of {tags}, a run, or local-dir:FOLDER; found no {path}")
        heads = heads_of(path)
    if heads != (own := encoder.blocks[0].attn.num_heads) and not grow:  # which no shape tells
        raise WeightsError(
            f"init: expected weights of {own} heads, found {heads} in {path}; set model.num_heads={heads}"
        )
    try:
        state = load_file(path) if released is None else released
        if encoder.mask_token is not None:
            state.setdefault("mask_token", encoder.mask_token)
        if grow:
            state |= further_blocks(encoder, state)
        state = checkpoint_filter_fn(state, encoder)
        encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    except (RuntimeError, SafetensorError) as error:  # other shapes; a damaged file
        reason = " ".join(str(error).split("\n")[:2])  # the first of many
        raise WeightsError(f"{path}: cannot start {name}: {reason}") from error


def further_blocks(encoder: SCOTT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's own weights of the blocks that come after those of a shallower model's `state`."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    own = encoder.state_dict().items()
    return {name: tensor for name, tensor in own if name.startswith("blocks.") and int(name.split(".")[1]) >= depth}


def heads_of(path: Path) -> int:
    """How many heads the attention of exported weights has, by the configuration beside them.

    Raises:
        WeightsError: there is none, or not one of a model of this package.
    """
    expected = f"beside the weights the configuration of one of {MODELS}, for the number of heads"
    with weights.reading(path.with_name("config.json"), expected) as config:
        content = json.loads(config.read_text())
        if (model := content["architecture"]) not in MODELS:
            raise LookupError(f"architecture {model!r}")
        return content.get("model_args", {}).get("num_heads") or weights.registered_args(model)["num_heads"]


def build_objective(recipe: Recipe, *, compiled: bool = False) -> nn.Module:
    """The objective a recipe names, around an encoder with fresh weights or those it starts from.

    Args:
        compiled: let torch.compile take the views and, at its first call, the loss.

    Raises:
        RecipeError: a model this package does not have, or settings a model or a mask cannot take.
        WeightsError: weights to start from that cannot be had, or are another model's.
    """
    model, name = recipe.model, recipe.objective.name
    require(model.name in MODELS, "model.name", f"one of {MODELS}", model.name)
    mask = draw_mask(recipe.mask)
    heads = {"num_heads": model.num_heads} if model.num_heads else {}
    try:
        encoder = timm.create_model(
            model.name,
            **heads,
            img_size=model.img_size,
            use_mask_token=name != "splitmask",  # which encodes what it sees alone
            pos_drop_rate=model.pos_drop,
            proj_drop_rate=model.proj_drop,
            attn_drop_rate=model.attn_drop,
            drop_path_rate=model.drop_path,
        )
        mask(encoder.patch_embed.grid_size, batch=1, generator=torch.Generator())
    except (ValueError, AssertionError) as error:  # timm's of heads that do not divide the width
        raise RecipeError(f"recipe: {error}") from error
    if model.init:
        start_from(encoder, model.init, model.name, grow=model.grow)
    views = TwoViews(recipe.data.views, compiled)
    objective = BUILDERS[name](recipe, encoder, views, mask)
    if compiled:
        objective.compile()
    return objective


def draw_mask(mask: Mask) -> Callable[..., Tensor]:
    """How the masks of a recipe are drawn: (grid, batch=..., generator=...) -> visible, bool (batch, N)."""
    kind = masks.random if mask.kind == "random" else partial(masks.blockwise, blocks=mask.blocks)
    return partial(kind, ratio=mask.ratio)


def mimjepa(recipe: Recipe, encoder: SCOTT, views: Views, mask: Callable[..., Tensor]) -> MIMJEPA:
    """MIM-JEPA around an encoder."""
    model = recipe.model
    predictor = Predictor(
        encoder.embed_dim,
        encoder.patch_embed.grid_size,
        num_heads=encoder.blocks[0].attn.num_heads,
        encoder_depth=len(encoder.blocks),
        depth=model.predictor_depth,
        pos_drop=model.pos_drop,
        proj_drop=model.proj_drop,
        attn_drop=model.attn_drop,
        drop_path=model.drop_path,
    )
    ema = recipe.optim.start_ema, recipe.optim.final_ema
    return MIMJEPA(encoder, predictor, views=views, mask=mask, ema=ema, pooled=pooled(recipe, encoder))


def pooled(recipe: Recipe, encoder: SCOTT) -> Pooled | None:
    """Build the term on pooled features that a recipe names."""
    chosen, run = recipe.objective, recipe.run
    if chosen.pooled == "none":
        return None
    several = recipe.optim.batch_size // run.accumulate > 1
    require(several, "run.accumulate", "parts of 2 images or more, which the pooled term compares", run.accumulate)
    settings = {"weight": chosen.pooled_weight, "temperature": chosen.temperature}
    return Pooled(chosen.pooled, encoder.embed_dim, chosen.projector, **settings)


def splitmask(recipe: Recipe, encoder: SCOTT, views: Views, mask: Callable[..., Tensor]) -> SplitMask:
    """SplitMask around an encoder, whose masks are halves."""
    chosen, run, heads = recipe.objective, recipe.run, encoder.blocks[0].attn.num_heads
    require(recipe.mask.ratio == 0.5, "mask.ratio", "0.5, since splitmask splits in halves", recipe.mask.ratio)
    patches = encoder.patch_embed.num_patches
    require(patches > 1, "model.img_size", "more than one patch, to split them in halves", recipe.model.img_size)
    told_apart = recipe.optim.batch_size // run.accumulate > 1 or not chosen.match
    require(told_apart, "run.accumulate", "parts of 2 images or more, to match them", run.accumulate)
    fits = chosen.decoder_dim % heads == chosen.decoder_dim % 4 == 0
    require(fits, "objective.decoder_dim", f"a multiple of 4 and of {heads} heads", chosen.decoder_dim)
    decoder = Decoder(
        encoder.embed_dim,
        encoder.patch_embed.grid_size,
        num_heads=heads,
        encoder_depth=len(encoder.blocks),
        depth=chosen.decoder_depth,
        dim=chosen.decoder_dim,
    )
    settings = {"match": chosen.match, "temperature": chosen.temperature}
    return SplitMask(encoder, decoder, vocabulary(recipe, encoder), views=views, split=mask, **settings)


def beit(recipe: Recipe, encoder: SCOTT, views: Views, mask: Callable[..., Tensor]) -> BEiT:
    """BEiT's form around an encoder."""
    return BEiT(encoder, vocabulary(recipe, encoder), views=views, mask=mask)


def vocabulary(recipe: Recipe, encoder: SCOTT) -> Vocabulary:
    """The words of a recipe, still to be filled."""
    chosen = recipe.objective
    return Vocabulary(encoder.patch_embed.patch_size[0], chosen.words, kind=chosen.vocabulary, seed=recipe.run.seed)


BUILDERS: dict[str, Callable[..., nn.Module]] = {"mimjepa": mimjepa, "splitmask": splitmask, "beit": beit}
