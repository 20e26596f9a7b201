"""A recipe: everything a pretraining run depends on, in frozen dataclasses whose defaults are the paper's table.

A TOML file under `recipes/` says only what differs, and opens with the expected score, hardware, time and command.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch

from ..data.loader import PATCH
from ..training.settings import Run, Schedule, Settings, require


def choose_recipe(out: Path | None = None) -> str:
    """Choose the recipe where none is named: the paper's on a GPU, one for short runs on a CPU.

    Args:
        out: the folder of a run to go on with; if it has a recipe, that.
    """
    if out and (out / "recipe.toml").is_file():
        return str(out / "recipe.toml")
    return "flowers102" if torch.cuda.is_available() else "small"


Term = Literal["none", "visreg", "sigreg", "vicreg", "infonce"]
# By the full name of an objective.
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
DRY = ["model.pos_drop=0", "model.proj_drop=0", "model.attn_drop=0"]  # our choice for the denoising objectives
# What goes with an objective, whatever a recipe says.
OBJECTIVES = {
    "mimjepa": ["data.views=different", "mask.kind=blockwise", "mask.ratio=0.6", "mask.blocks=visible"],
    "splitmask": ["data.views=same", "mask.kind=random", "mask.ratio=0.5", "mask.blocks=visible", *DRY],
    "beit": ["data.views=same", "mask.kind=blockwise", "mask.ratio=0.4", "mask.blocks=masked", *DRY],
    "visreg": ["data.views=different", "objective.pooled=visreg", "objective.pooled_weight=1", *DRY],
    "diet": ["data.views=different", *DRY],
}
# What goes with all of them, unless they say otherwise.
PLAIN = ["context=all", "pooled=none", "views_per_image=0", "local_views=0"]
PLAIN = [f"objective.{setting}" for setting in PLAIN]
OBJECTIVES = {name: [f"objective.name={name}", *PLAIN, *settings] for name, settings in OBJECTIVES.items()}


@dataclass(frozen=True)
class Model:
    """What is trained (paper, Section 4 and Appendix C; dropouts of the released code)."""

    name: str = "scott_12_16"
    img_size: int = 224  # pixels
    small_img_size: int = 0  # pixels with which a run begins; 0: img_size
    small_share: float = 0.75  # of the updates that see these
    predictor_depth: int = 3  # blocks
    pos_drop: float = 0.2
    proj_drop: float = 0.2
    attn_drop: float = 0.1
    drop_path: float = 0.1
    num_heads: int = 0  # of attention; 0: the model's own
    init: str = ""  # weights to start from: a released tag, "local-dir:FOLDER" or a run; random ones if empty
    grow: bool = False  # whether `init` may be a shallower model's: its blocks come first, the others start fresh

    @property
    def start(self) -> str:
        """What the encoder is before the first update, in words."""
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
    splits: tuple[str, ...] = ()  # of a data set's train, val and test; all images if empty (transductive)
    short_side: int = 320  # pixels, to which larger images are reduced once, aspect kept
    views: Literal["different", "same", "none"] = "different"

    def __post_init__(self) -> None:
        known = set(self.splits) <= {"train", "val", "test"}
        require(known, "data.splits", "some of train, val and test", list(self.splits))
        require(self.short_side >= 16, "data.short_side", "at least 16 pixels", self.short_side)


@dataclass(frozen=True)
class Mask:
    kind: Literal["blockwise", "random"] = "blockwise"
    ratio: float = 0.6  # share of patches hidden
    blocks: Literal["visible", "masked"] = "visible"  # which the blocks are: released code, or paper


@dataclass(frozen=True)
class Objective:
    """What is learned (docs/objectives.md).

    The words are of `splitmask` and `beit` (arXiv 2112.10740), the pooled term is of `mimjepa` and `visreg`.
    """

    name: Literal["mimjepa", "splitmask", "beit", "visreg", "diet"] = "mimjepa"
    context: Literal["all", "visible"] = "all"  # what mimjepa's context encoder works through: mask tokens too, or not
    vocabulary: Literal["patches", "kmeans", "projection"] = "patches"
    words: int = 8192  # of the vocabulary; images with fewer patches give fewer
    decoder_depth: int = 2  # blocks of splitmask's decoder
    decoder_dim: int = 0  # its width; 0: the encoder's
    match: float = 1.0  # weight of splitmask's InfoNCE beside the cross-entropy
    temperature: float = 0.2  # of that InfoNCE, and of the pooled one
    pooled: Term = "none"  # on pooled features
    pooled_weight: float = 0.3  # of that term beside the loss
    projector: tuple[int, ...] = (1024, 128)  # widths of the layers in front of that term
    views_per_image: int = 0  # large crops: of visreg 2 or more, of mimjepa 1, or 2 for infonce; 0: the fewest
    local_views: int = 0  # small crops beside them
    label_smoothing: float = 0.8  # of diet

    @property
    def title(self) -> str:
        """What people call it."""
        return TITLES[self.full_name]

    @property
    def full_name(self) -> str:
        """Its name; with a term that is not the name's own, followed by the term's."""
        return self.name if self.pooled in ("none", self.name) else f"{self.name}-{self.pooled}"

    @property
    def compares_images(self) -> bool:
        """Whether the loss depends on which images come together."""
        return self.pooled != "none" or (self.name == "splitmask" and self.match > 0)

    def __post_init__(self) -> None:
        require(self.words > 1, "objective.words", "at least 2", self.words)
        require(self.decoder_depth > 0, "objective.decoder_depth", "at least 1 block", self.decoder_depth)
        wide = self.decoder_dim == 0 or self.decoder_dim >= 32  # below, an MLP would have no width
        require(wide, "objective.decoder_dim", "0 (the encoder's) or at least 32", self.decoder_dim)
        require(self.match >= 0, "objective.match", "a weight of 0 or more", self.match)
        require(self.temperature > 0, "objective.temperature", "more than 0", self.temperature)
        require(self.pooled_weight > 0, "objective.pooled_weight", "a weight above 0", self.pooled_weight)
        wide = len(self.projector) > 0 and min(self.projector) > 0
        require(wide, "objective.projector", "widths of 1 or more", list(self.projector))
        if self.name == "visreg":
            require(self.pooled != "none", "objective.pooled", "a term, which visreg needs", self.pooled)
        elif self.name != "mimjepa":
            require(self.pooled == "none", "objective.pooled", f"none, which {self.name} takes", self.pooled)
        of_mimjepa = self.name == "mimjepa" or self.context == "all"
        require(of_mimjepa, "objective.context", f"all, which {self.name} takes", self.context)
        views, compared = self.views_per_image, self.name == "mimjepa" and self.pooled == "infonce"
        fits = views == 0 or (views > 1 if self.name == "visreg" else views == 1 or (views == 2 and compared))
        expected = "2 or more for visreg, 1 for others, 2 for mimjepa with objective.pooled=infonce too; or 0"
        require(fits, "objective.views_per_image", expected, views)
        fits = self.local_views == 0 or (self.name == "visreg" and self.local_views > 0)
        require(fits, "objective.local_views", "0, or more for visreg", self.local_views)
        smooth = 0 <= self.label_smoothing < 1
        require(smooth, "objective.label_smoothing", "a share from 0 to below 1", self.label_smoothing)


@dataclass(frozen=True)
class Optim(Schedule):
    """The same, and the target encoder's moving average."""

    start_ema: float = 0.996
    final_ema: float = 1.0


@dataclass(frozen=True)
class Monitor:
    """How the run is watched; it changes nothing in the weights."""

    every: float = 10  # epochs; 0: never
    images: int = 2000  # at most, for features and probes
    test: bool = False  # whether the probes are scored on the test split instead of a held-out part of the others

    def __post_init__(self) -> None:
        require(self.every >= 0, "monitor.every", "0 epochs (never) or more", self.every)
        require(self.images >= 10, "monitor.images", "at least 10", self.images)


@dataclass(frozen=True)
class Recipe(Settings):
    """Of pretraining, by MIM-JEPA unless `objective` says otherwise."""

    folder: ClassVar[Path] = Path(__file__).parent / "recipes"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    mask: Mask = field(default_factory=Mask)
    objective: Objective = field(default_factory=Objective)
    optim: Optim = field(default_factory=Optim)
    monitor: Monitor = field(default_factory=Monitor)
    run: Run = field(default_factory=Run)

    def differences(self, other: Self) -> list[str]:
        found = super().differences(other)
        ours, theirs = self.run.accumulate, other.run.accumulate
        if ours != theirs and self.objective.compares_images:  # those of a part
            found.append(f"run.accumulate: {ours!r} and {theirs!r}")
        return found
