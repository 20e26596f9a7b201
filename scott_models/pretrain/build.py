"""Build the objective that a recipe names.

An objective is a module with three methods: `inputs(crops, draws) -> tuple`, `forward(*inputs) -> loss` and
`after_step(step, total)`. It also has `encoders`, a dict of the encoders to monitor and to export. The training loop
uses nothing else. `draws.images` are the indices of the batch's images in the run. An objective may also have:

- `views_per_image` and `local_views`: the numbers of large and of small crops of each image (1 and 0 if absent). With
  more than one crop, `inputs` gets a list of crops, large ones first.
- `drawing`: a function that can be pickled. Worker processes call `drawing(draws)` ahead of time, and `inputs` gets the
  result, which holds numpy arrays, in place of the draws.
- `prepare(crops, folder)`: called before the first update, for an objective that must see images first.
- `set_input_size(size)`: called in runs that begin with small images.

With several processes, each child module with trained parameters may be replaced by a wrapper, which holds the child as
`.module`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..data.views import TwoCrops, TwoViews
from ..errors import DataError, RecipeError
from ..models.scott import MODELS, SCOTT
from ..training.settings import require
from . import masks
from .beit import BEiT
from .diet import DIET
from .mimjepa import MIMJEPA, Views
from .pooled import Pooled
from .predictor import Predictor
from .recipe import Mask, Recipe
from .splitmask import Decoder, SplitMask
from .start import load_start
from .visreg import Comparison, VISReg
from .vocabulary import Vocabulary


class Given(NamedTuple):
    """Hold the arguments of the builders besides the recipe and the encoder.

    Attributes:
        mask: function that samples masks: (grid, batch=..., generator=...) -> visible, bool (batch, N).
        images: function that returns the number of images of the run; a call may take long.
        compiled: True if torch.compile compiles the colour changes.
    """

    mask: Callable[..., Tensor]
    images: Callable[[], int]
    compiled: bool

    def views(self, recipe: Recipe) -> Views:
        """Return the function that makes the views of an image from its crops."""
        pair = TwoViews(recipe.data.views, self.compiled)
        return TwoCrops(pair) if recipe.objective.name == "mimjepa" and recipe.objective.views_per_image == 2 else pair


def build_objective(recipe: Recipe, *, images: Callable[[], int] = int, compiled: bool = False) -> nn.Module:
    """Build the objective that a recipe names, around an encoder with random weights or with those of `model.init`.

    Args:
        images: function that returns the number of images of the run, which an objective with parameters for each
            image needs; by default it returns 0.
        compiled: compile the colour changes and the loss by torch.compile, at their first call.

    Raises:
        DataError: too few images for an objective with a class for each image.
        RecipeError: a model that this package does not have, or settings that the model or the mask cannot take.
        WeightsError: the weights to start from are missing, damaged, or those of another model.
    """
    model, name = recipe.model, recipe.objective.name
    require(model.name in MODELS, "model.name", f"one of {MODELS}", model.name)
    mask = draw_mask(recipe.mask)
    choices = {"num_heads": model.num_heads} if model.num_heads else {}
    several_sizes = name == "visreg" and recipe.objective.local_views > 0
    needs_mask_token = name == "beit" or (name == "mimjepa" and recipe.objective.context == "all")
    try:
        encoder = timm.create_model(
            model.name,
            **choices,
            img_size=model.img_size,
            dynamic_img_size=several_sizes,  # crops of one size need no new positions in each update
            use_mask_token=needs_mask_token,
            pos_drop_rate=model.pos_drop,
            proj_drop_rate=model.proj_drop,
            attn_drop_rate=model.attn_drop,
            drop_path_rate=model.drop_path,
        )
        if name in MASKED:
            for field in ("small_img_size", "img_size") if model.small_img_size else ("img_size",):
                size = getattr(model, field)
                grid = encoder.patch_embed.dynamic_feat_size((size, size))
                visible = mask(grid, batch=1, generator=torch.Generator())
                both = visible.any() and not visible.all()
                require(bool(both), f"model.{field}", "enough patches to hide some and show some", size)
    except (ValueError, AssertionError) as error:  # timm asserts that the heads divide the width
        raise RecipeError(f"recipe: {error}") from error
    if model.init:
        load_start(encoder, model.init, model.name, grow=model.grow)
    objective = BUILDERS[name](recipe, encoder, Given(mask, images, compiled))
    if compiled:
        objective.compile()
    return objective


def draw_mask(mask: Mask) -> Callable[..., Tensor]:
    """Return the mask function of a recipe: (grid, batch=..., generator=...) -> visible, bool (batch, N)."""
    kind = masks.random if mask.kind == "random" else partial(masks.blockwise, blocks=mask.blocks)
    return partial(kind, ratio=mask.ratio)


def mimjepa(recipe: Recipe, encoder: SCOTT, given: Given) -> MIMJEPA:
    """Build MIM-JEPA around an encoder."""
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
        mask_token=recipe.objective.context == "visible",
    )
    ema, term = (recipe.optim.start_ema, recipe.optim.final_ema), pooled(recipe, encoder)
    return MIMJEPA(encoder, predictor, views=given.views(recipe), mask=given.mask, ema=ema, pooled=term)


def pooled(recipe: Recipe, encoder: SCOTT) -> Pooled | None:
    """Build the term on pooled features that a recipe names; return None if there is no such term."""
    chosen = recipe.objective
    if chosen.pooled == "none":
        return None
    require_several(recipe, "since the pooled term compares images")
    settings = {"weight": chosen.pooled_weight, "temperature": chosen.temperature}
    return Pooled(chosen.pooled, encoder.embed_dim, chosen.projector, **settings)


def require_several(recipe: Recipe, why: str) -> None:
    """Raise RecipeError unless each part of a batch has at least two images; `why` ends the message."""
    several = recipe.optim.batch_size // recipe.run.accumulate > 1
    require(several, "run.accumulate", f"parts of 2 images or more, {why}", recipe.run.accumulate)


def visreg(recipe: Recipe, encoder: SCOTT, given: Given) -> VISReg:
    """Build VISReg, or the same objective with another pooled term, around an encoder."""
    chosen = recipe.objective
    require_several(recipe, "since visreg compares images")
    comparison = Comparison(
        chosen.pooled,
        encoder.embed_dim,
        chosen.projector,
        views=chosen.views_per_image or 2,
        weight=chosen.pooled_weight,
        temperature=chosen.temperature,
    )
    views = {"views_per_image": chosen.views_per_image or 2, "local_views": chosen.local_views}
    return VISReg(encoder, comparison, **views, colours=recipe.data.views, compiled=given.compiled)


def diet(recipe: Recipe, encoder: SCOTT, given: Given) -> DIET:
    """Build DIET around an encoder, with a class for each image."""
    smoothing, colours, images = recipe.objective.label_smoothing, recipe.data.views, given.images()
    if images < 2:
        raise DataError(f"diet: expected 2 images or more, found {images}; add images")
    return DIET(encoder, images, label_smoothing=smoothing, colours=colours, compiled=given.compiled)


def splitmask(recipe: Recipe, encoder: SCOTT, given: Given) -> SplitMask:
    """Build SplitMask around an encoder; its masks must hide half of the patches."""
    chosen, heads = recipe.objective, encoder.blocks[0].attn.num_heads
    require(
        recipe.mask.ratio == 0.5, "mask.ratio", "0.5, since splitmask splits patches into halves", recipe.mask.ratio
    )
    if chosen.match:
        require_several(recipe, "since objective.match compares images")
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
    views, words = given.views(recipe), vocabulary(recipe, encoder)
    return SplitMask(encoder, decoder, words, views=views, split=given.mask, **settings)


def beit(recipe: Recipe, encoder: SCOTT, given: Given) -> BEiT:
    """Build BEiT's objective around an encoder."""
    return BEiT(encoder, vocabulary(recipe, encoder), views=given.views(recipe), mask=given.mask)


def vocabulary(recipe: Recipe, encoder: SCOTT) -> Vocabulary:
    """Build the vocabulary of a recipe, without words; `Vocabulary.fill` makes the words."""
    chosen = recipe.objective
    return Vocabulary(encoder.patch_embed.patch_size[0], chosen.words, kind=chosen.vocabulary, seed=recipe.run.seed)


MASKED = ("mimjepa", "splitmask", "beit")
BUILDERS: dict[str, Callable[[Recipe, SCOTT, Given], nn.Module]] = {
    "mimjepa": mimjepa,
    "splitmask": splitmask,
    "beit": beit,
    "visreg": visreg,
    "diet": diet,
}
