"""Recipes: all settings of a pretraining run, as frozen dataclasses. The defaults are those of the paper's table.

A TOML file in `recipes/` sets only what differs from the defaults. The comment at its head gives the expected score,
hardware, time and command.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch

from ..data.loader import PATCH
from ..training.settings import Run, Schedule, Settings, require


def choose_recipe(out: Path | None = None) -> str:
    """Choose the recipe if no name is given: the paper's on a GPU, one for short runs on a CPU.

    Args:
        out: run folder to resume; if it has a recipe.toml, that recipe is chosen.
    """
    if out and (out / "recipe.toml").is_file():
        return str(out / "recipe.toml")
    return "flowers102" if torch.cuda.is_available() else "small"


Term = Literal["none", "visreg", "sigreg", "vicreg", "infonce"]
# Titles by `Objective.full_name`.
TITLES = {
    "mimjepa": "MIM-JEPA",
    "splitmask": "SplitMask",
    "beit": "BEiT's objective",
    "visreg": "VISReg",
    "visreg-sigreg": "LeJEPA's objective",
    "visreg-vicreg": "VICReg",
    "visreg-infonce": "InfoNCE between crops",
    "diet": "DIET",
    "mimjepa-visreg": "MIM-JEPA with VISReg's term",
    "mimjepa-sigreg": "MIM-JEPA with LeJEPA's term",
    "mimjepa-vicreg": "MIM-JEPA with VICReg's terms",
    "mimjepa-infonce": "MIM-JEPA with an InfoNCE term",
}
DRY = ["model.pos_drop=0", "model.proj_drop=0", "model.attn_drop=0"]  # our choice for all objectives but mimjepa
# Settings that `--objective` sets, whatever the recipe says.
OBJECTIVES = {
    "mimjepa": ["data.views=different", "mask.kind=blockwise", "mask.ratio=0.6", "mask.blocks=visible"],
    "splitmask": ["data.views=same", "mask.kind=random", "mask.ratio=0.5", "mask.blocks=visible", *DRY],
    "beit": ["data.views=same", "mask.kind=blockwise", "mask.ratio=0.4", "mask.blocks=masked", *DRY],
    "visreg": ["data.views=different", "objective.pooled=visreg", "objective.pooled_weight=1", *DRY],
    "diet": ["data.views=different", *DRY],
}
# Settings of every objective, unless its own list above says otherwise.
PLAIN = ["context=all", "pooled=none", "views_per_image=0", "local_views=0"]
PLAIN = [f"objective.{setting}" for setting in PLAIN]
OBJECTIVES = {name: [f"objective.name={name}", *PLAIN, *settings] for name, settings in OBJECTIVES.items()}


@dataclass(frozen=True)
class Model:
    """Describe the model to train (paper, Section 4 and Appendix C; dropout rates of the released code)."""

    name: str = "scott_12_16"
    img_size: int = 224  # pixels
    small_img_size: int = 0  # pixels of the first updates; 0: img_size
    small_share: float = 0.75  # share of the updates with small_img_size
    predictor_depth: int = 3  # blocks
    pos_drop: float = 0.2
    proj_drop: float = 0.2
    attn_drop: float = 0.1
    drop_path: float = 0.1
    num_heads: int = 0  # attention heads; 0: the model's own number
    init: str = ""  # weights to start from: a released tag, "local-dir:FOLDER" or a run; empty: random weights
    grow: bool = False  # init may be of a shallower model: its blocks come first, the others start at random

    @property
    def start(self) -> str:
        """Return, in words, the weights of the encoder before the first update."""
        return self.init or "random weights"

    def __post_init__(self) -> None:
        require(self.num_heads >= 0, "model.num_heads", "0 (the model's own) or more", self.num_heads)
        small = self.small_img_size
        fits = 0 <= small < self.img_size and small % PATCH == 0
        require(fits, "model.small_img_size", f"0, or a multiple of {PATCH} px below {self.img_size}", small)
        require(0 < self.small_share < 1, "model.small_share", "a share above 0 and below 1", self.small_share)
        require(not self.grow or bool(self.init), "model.grow", "false without model.init to grow from", self.grow)
        require(self.predictor_depth > 0, "model.predictor_depth", "at least 1 block", self.predictor_depth)
        for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"model.{name}", "a rate from 0 to below 1", rate)


@dataclass(frozen=True)
class Data:
    """Describe the images to train on."""

    splits: tuple[str, ...] = ()  # some of train, val and test; empty: all images (transductive)
    short_side: int = 320  # pixels; larger images are downsampled to it once, with their aspect ratio kept
    views: Literal["different", "same", "none"] = "different"  # colour changes of an image's views

    def __post_init__(self) -> None:
        known = set(self.splits) <= {"train", "val", "test"}
        require(known, "data.splits", "some of train, val and test", list(self.splits))
        require(self.short_side >= 16, "data.short_side", "at least 16 pixels", self.short_side)


@dataclass(frozen=True)
class Mask:
    """Describe the masks, as `masks.blockwise` and `masks.random` sample them."""

    kind: Literal["blockwise", "random"] = "blockwise"
    ratio: float = 0.6  # share of patches to hide
    blocks: Literal["visible", "masked"] = "visible"  # what the blocks are: visible (released code), masked (paper)


@dataclass(frozen=True)
class Objective:
    """Describe the objective (docs/objectives.md).

    `splitmask` and `beit` use a vocabulary of words (arXiv 2112.10740). `mimjepa` and `visreg` take a pooled term.
    """

    name: Literal["mimjepa", "splitmask", "beit", "visreg", "diet"] = "mimjepa"
    context: Literal["all", "visible"] = "all"  # patches in mimjepa's context encoder; hidden ones are mask tokens
    vocabulary: Literal["patches", "kmeans", "projection"] = "patches"
    words: int = 8192  # size of the vocabulary; smaller if the images have fewer patches
    decoder_depth: int = 2  # blocks of splitmask's decoder
    decoder_dim: int = 0  # width of splitmask's decoder; 0: the encoder's width
    match: float = 1.0  # weight of splitmask's InfoNCE beside the cross-entropy
    temperature: float = 0.2  # of splitmask's InfoNCE and of the pooled infonce
    pooled: Term = "none"  # term on pooled features
    pooled_weight: float = 0.3  # weight of the pooled term in the loss
    projector: tuple[int, ...] = (1024, 128)  # widths of the layers in front of the pooled term
    views_per_image: int = 0  # large crops: visreg 2 or more, mimjepa 1, or 2 with infonce; 0: the smallest number
    local_views: int = 0  # small crops of visreg
    label_smoothing: float = 0.8  # of diet, 0 to below 1

    @property
    def title(self) -> str:
        """Return the title for READMEs and reports."""
        return TITLES[self.full_name]

    @property
    def full_name(self) -> str:
        """Return the name, followed by the pooled term unless the term is the default of that name."""
        return self.name if self.pooled in ("none", self.name) else f"{self.name}-{self.pooled}"

    @property
    def compares_images(self) -> bool:
        """Tell whether the loss of an image depends on the other images of the batch."""
        return self.pooled != "none" or (self.name == "splitmask" and self.match > 0)

    def __post_init__(self) -> None:
        require(self.words > 1, "objective.words", "at least 2", self.words)
        require(self.decoder_depth > 0, "objective.decoder_depth", "at least 1 block", self.decoder_depth)
        wide = self.decoder_dim == 0 or self.decoder_dim >= 32  # for smaller widths the MLP's hidden width rounds to 0
        require(wide, "objective.decoder_dim", "0 (the encoder's) or at least 32", self.decoder_dim)
        require(self.match >= 0, "objective.match", "a weight of 0 or more", self.match)
        require(self.temperature > 0, "objective.temperature", "more than 0", self.temperature)
        require(self.pooled_weight > 0, "objective.pooled_weight", "a weight above 0", self.pooled_weight)
        wide = len(self.projector) > 0 and min(self.projector) > 0
        require(wide, "objective.projector", "widths of 1 or more", list(self.projector))
        if self.name == "visreg":
            require(self.pooled != "none", "objective.pooled", "a term for visreg", self.pooled)
        elif self.name != "mimjepa":
            require(self.pooled == "none", "objective.pooled", f"'none' for {self.name}", self.pooled)
        of_mimjepa = self.name == "mimjepa" or self.context == "all"
        require(of_mimjepa, "objective.context", f"'all' for {self.name}", self.context)
        views, compared = self.views_per_image, self.name == "mimjepa" and self.pooled == "infonce"
        fits = views == 0 or (views > 1 if self.name == "visreg" else views == 1 or (views == 2 and compared))
        expected = "0, 2 or more for visreg, 1 for the others, also 2 for mimjepa with objective.pooled=infonce"
        require(fits, "objective.views_per_image", expected, views)
        fits = self.local_views == 0 or (self.name == "visreg" and self.local_views > 0)
        require(fits, "objective.local_views", "0, or more for visreg", self.local_views)
        smooth = 0 <= self.label_smoothing < 1
        require(smooth, "objective.label_smoothing", "a share from 0 to below 1", self.label_smoothing)


@dataclass(frozen=True)
class Optim(Schedule):
    """Add the decay of the target encoder's moving average to the schedules of the optimiser."""

    start_ema: float = 0.996  # decay before the first update
    final_ema: float = 1.0  # decay at the last update, linear in between


@dataclass(frozen=True)
class Monitor:
    """Describe how the run is monitored. Monitoring does not change the weights."""

    every: float = 10  # epochs between two looks; 0: never
    images: int = 2000  # largest number of images for features and probes
    test: bool = False  # score the probes on the test split instead of on held-out images of the other splits

    def __post_init__(self) -> None:
        require(self.every >= 0, "monitor.every", "0 epochs (never) or more", self.every)
        require(self.images >= 10, "monitor.images", "at least 10", self.images)


@dataclass(frozen=True)
class Recipe(Settings):
    """Hold all settings of a pretraining run, by MIM-JEPA unless `objective` names another method."""

    folder: ClassVar[Path] = Path(__file__).parent / "recipes"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    mask: Mask = field(default_factory=Mask)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    monitor: Monitor = field(default_factory=Monitor)
    run: Run = field(default_factory=Run)

    def differences(self, other: Self) -> list[str]:
        """List the settings in which another recipe would train other weights, as `Settings.differences` does."""
        found = super().differences(other)
        ours, theirs = self.run.accumulate, other.run.accumulate
        if ours != theirs and self.objective.compares_images:  # only images of the same part are compared
            found.append(f"run.accumulate: {ours!r} and {theirs!r}")
        return found
