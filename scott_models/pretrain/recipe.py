"""A recipe: everything a pretraining run depends on, in frozen dataclasses whose defaults are the paper's table.

A TOML file under `recipes/` says only what differs, and opens with the expected score, hardware, time and command.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from ..errors import RecipeError

PAPER_BATCH = 128
PATCH = 16  # pixels
LR_EXPONENT = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}
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
# What a resumed run may change: how it goes, not what it learns (though parts of a batch draw their dropout anew, and
# torch.compile rounds otherwise). The monitor's images it may not: looks at others do not compare.
HARMLESS = {
    "monitor": {"every"},
    "run": {"workers", "accumulate", "compile", "log_every", "checkpoint_every", "keep", "trackers"},
}


def require(condition: bool, field: str, expected: str, got: object) -> None:
    """Raise RecipeError, in the words all settings share, unless the condition holds."""
    if not condition:
        raise RecipeError(f"recipe.{field}: expected {expected}, got {got!r}")


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
class Schedule:
    """AdamW with the paper's schedules (Table 6).

    The learning rates are for a batch of 128 images. For other batches all three are multiplied by
    sqrt(batch_size / 128), as suits Adam's normalised steps, unless `lr_scaling` says "linear" or "none".
    """

    epochs: float = 300
    batch_size: int = 128  # images an update sees, of all processes and accumulation steps together
    warmup_epochs: float = 40
    start_lr: float = 1e-6
    peak_lr: float = 5e-4
    final_lr: float = 1e-5
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    flat: float = 0.72  # share of the epochs after the warm-up at the peak
    start_weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    finish_after: int = 0  # update after which `--finish` brought the run to an end
    finish_updates: int = 0  # and how many it took; 0: the run goes on for its epochs

    def __post_init__(self) -> None:
        require(self.epochs > 0, "optim.epochs", "more than 0", self.epochs)
        require(self.batch_size > 0, "optim.batch_size", "at least 1 image", self.batch_size)
        fits = 0 <= self.warmup_epochs < self.epochs
        require(fits, "optim.warmup_epochs", f"less than the {self.epochs:g} epochs", self.warmup_epochs)
        require(0 <= self.flat <= 1, "optim.flat", "a share from 0 to 1", self.flat)
        require(self.finish_after >= 0, "optim.finish_after", "0 updates or more", self.finish_after)
        require(self.finish_updates >= 0, "optim.finish_updates", "0 updates or more", self.finish_updates)

    @property
    def lr_factor(self) -> float:
        """What a batch of another size than the paper's makes of the learning rates."""
        return (self.batch_size / PAPER_BATCH) ** LR_EXPONENT[self.lr_scaling]


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
class Run:
    seed: int = 0
    precision: Literal["auto", "bf16", "no"] = "auto"  # bf16 autocast; auto: where the device multiplies bf16 itself
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, if it works. A CPU needs a compiler
    accumulate: int = 1  # parts in which each process works through its share of a batch
    workers: int = 4  # at most, for each GPU: processes that draw ahead, and make crops of images it does not hold
    log_every: int = 10  # updates between lines of metrics.jsonl
    checkpoint_every: float = 5  # minutes
    keep: int = 2  # checkpoints, the last ones; besides them the best by monitor
    trackers: tuple[str, ...] = ()  # of Accelerate, besides metrics.jsonl: "tensorboard", "wandb", ...

    def __post_init__(self) -> None:
        require(self.seed >= 0, "run.seed", "0 or more", self.seed)
        require(self.accumulate > 0, "run.accumulate", "at least 1 part", self.accumulate)
        require(self.workers >= 0, "run.workers", "0 processes or more", self.workers)
        require(self.log_every > 0, "run.log_every", "at least 1 update", self.log_every)
        require(self.keep > 0, "run.keep", "at least 1 checkpoint", self.keep)


class Settings:
    """Sections of fields that a TOML file may set: what recipes of all kinds share.

    Attributes:
        folder: where those with a name are.
        model, data, optim, monitor, run: sections that every kind has, with fields of its own.
    """

    folder: ClassVar[Path]
    model: Any
    data: Any
    optim: Any
    monitor: Any
    run: Any

    @classmethod
    def load(cls, name: str | Path, changes: Sequence[str] = ()) -> Self:
        """A recipe by name (those of the package) or by the path of a TOML file, then `section.field=value` changes.

        Raises:
            RecipeError: no such recipe, or one that is no TOML, or an unknown section, field or value.
        """
        path = Path(name) if str(name).endswith(".toml") else cls.folder / f"{name}.toml"
        if not path.is_file():
            known = sorted(p.stem for p in cls.folder.glob("*.toml"))
            raise RecipeError(f"recipe: expected one of {known} or the path of a .toml file, got {str(name)!r}")
        try:
            content = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: expected a recipe in TOML ({error})") from None
        for change in changes:
            key, equals, value = change.partition("=")
            section, dot, setting = key.partition(".")
            if not (equals and dot):
                raise RecipeError(f"recipe change: expected section.field=value, got {change!r}")
            fields = content.setdefault(section, {})
            if isinstance(fields, dict):  # if not, from_dict says so
                fields[setting] = _parse(value)
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Sections of fields; what is absent keeps its default, what is unknown raises RecipeError by name."""
        types = get_type_hints(cls)
        sections = {field.name: types[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        _check_known("recipe", content, sections)
        return cls(**{name: _section(name, sections[name], fields) for name, fields in content.items()})

    @property
    def small_img_size(self) -> int:
        """Pixels with which the run begins; 0 where there is one size."""
        return getattr(self.model, "small_img_size", 0)

    def _sections(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # every kind is a dataclass

    def to_toml(self) -> str:
        """The complete recipe, defaults included."""
        # JSON's strings and numbers are TOML's.
        return "\n".join(
            f"[{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
            for section, fields in self._sections().items()
        )

    def flat(self) -> dict[str, Any]:
        """{"optim.epochs": 300.0, ...}; lists as text, as trackers want them."""
        return {
            f"{section}.{name}": ",".join(map(str, value)) if isinstance(value, tuple) else value
            for section, fields in self._sections().items()
            for name, value in fields.items()
        }

    def changed(self, section: str, **fields: Any) -> Self:
        """The same with other values of some fields of a section."""
        sections = {section: dataclasses.replace(getattr(self, section), **fields)}
        return dataclasses.replace(self, **sections)  # type: ignore[type-var]

    def differences(self, other: Self) -> list[str]:
        """Where another recipe would give other weights, e.g. "model.name: 'scott_3_16' and 'scott_7_16'".

        Or where its monitor would measure other images.
        """
        ours, theirs = self._sections(), other._sections()
        return [
            f"{section}.{name}: {value!r} and {theirs[section][name]!r}"
            for section, fields in ours.items()
            for name, value in fields.items()
            if value != theirs[section][name] and name not in HARMLESS.get(section, ())
        ]


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


def _section(name: str, kind: type, fields: Any) -> Any:
    if not isinstance(fields, Mapping):
        raise RecipeError(f"recipe.{name}: expected a section with fields, got {fields!r}")
    types = get_type_hints(kind)
    _check_known(f"recipe.{name}", fields, types)
    return kind(**{key: _value(f"recipe.{name}.{key}", types[key], value) for key, value in fields.items()})


def _value(where: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{where}: expected one of {list(get_args(kind))}, got {value!r}")
        return value
    if get_origin(kind) is tuple:
        of, called = (int, "whole numbers") if int in get_args(kind) else (str, "names")
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        if of is int:
            items = [int(item) if isinstance(item, str) and item.isdecimal() else item for item in items]
        if not all(type(item) is of for item in items):
            raise RecipeError(f"{where}: expected a list of {called}, got {value!r}")
        return tuple(items)
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: expected a finite number, got {value!r}")
    if type(value) is not kind:
        raise RecipeError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _check_known(where: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise RecipeError(f"{where}: unknown {unknown}; known are {list(known)}")


def _parse(value: str) -> Any:
    """A value as TOML would read it, or else the bare text."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
