"""Hold the settings of a run in frozen dataclasses, which a TOML file fills, for every kind of training."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from ..errors import RecipeError

PAPER_BATCH = 128
TOML_ERRORS = "surrogateescape"  # how recipes are written and read, since they may name files that are not UTF-8
LR_EXPONENT = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}
# Fields that a resumed run may change: they decide how the run goes, not what it learns. (Two change the weights a
# little: the parts of `accumulate` draw other dropout, and torch.compile rounds differently.) The monitor's images are
# not among these fields, since results on different images cannot be compared.
HARMLESS = {
    "monitor": {"every"},
    "run": {"workers", "accumulate", "compile", "log_every", "checkpoint_every", "keep", "trackers"},
}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, with bytes that are not UTF-8 as `os.fsdecode` reads those of file names.

    Raises:
        tomllib.TOMLDecodeError: the file is not TOML.
    """
    return tomllib.loads(path.read_text(encoding="utf-8", errors=TOML_ERRORS))


def to_toml(value: Any) -> str:
    """Return a value of a recipe as TOML. JSON writes it in the same way, but for characters that TOML escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def require(condition: bool, field: str, expected: str, got: object) -> None:
    """Check a condition on a field of the recipe.

    Raises:
        RecipeError: the condition does not hold; the message says what was expected and what was given.
    """
    if not condition:
        raise RecipeError(f"recipe.{field}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class Schedule:
    """Hold the settings of AdamW with the paper's schedules (Table 6).

    The three learning rates are for a batch of 128 images. For another batch size they are all multiplied by
    sqrt(batch_size / 128), which suits Adam's normalised steps. `lr_scaling` may choose batch_size / 128 ("linear") or
    no scaling ("none") instead.
    """

    epochs: float = 300
    batch_size: int = 128  # images per update, over all processes and accumulation steps
    warmup_epochs: float = 40
    start_lr: float = 1e-6
    peak_lr: float = 5e-4
    final_lr: float = 1e-5
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    flat: float = 0.72  # share of the epochs after the warm-up that stay at the peak
    start_weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    finish_after: int = 0  # update after which `--finish` began to end the run
    finish_updates: int = 0  # number of updates of that finish; 0: the run goes on for its epochs

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
        """Return the factor on the learning rates for this batch size; 1 for the paper's batch of 128."""
        return (self.batch_size / PAPER_BATCH) ** LR_EXPONENT[self.lr_scaling]


@dataclass(frozen=True)
class Run:
    """Hold the seed of a run, and its settings for the machine, logs and checkpoints."""

    seed: int = 0
    precision: Literal["auto", "bf16", "no"] = "auto"  # bf16: autocast; auto: bf16 if the device multiplies it natively
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile, which needs a compiler; auto: on a GPU, if it works
    accumulate: int = 1  # parts into which each process splits its share of a batch
    workers: int = 4  # at most, per GPU: processes that draw ahead, and make the crops if it does not hold the images
    log_every: int = 10  # updates between lines of metrics.jsonl
    checkpoint_every: float = 5  # minutes
    keep: int = 2  # last checkpoints to keep, besides the best one by the monitor
    trackers: tuple[str, ...] = ()  # Accelerate's, besides metrics.jsonl: "tensorboard", "wandb", ...

    def __post_init__(self) -> None:
        require(self.seed >= 0, "run.seed", "0 or more", self.seed)
        require(self.accumulate > 0, "run.accumulate", "at least 1 part", self.accumulate)
        require(self.workers >= 0, "run.workers", "0 processes or more", self.workers)
        require(self.log_every > 0, "run.log_every", "at least 1 update", self.log_every)
        require(self.keep > 0, "run.keep", "at least 1 checkpoint", self.keep)


class Settings:
    """Load and compare recipes. This is the base class of every kind of recipe, which is a set of sections of fields.

    Attributes:
        folder: holds the recipes that can be loaded by name.
        model, data, optim, monitor, run: sections, whose fields each kind of recipe defines.
    """

    folder: ClassVar[Path]
    model: Any
    data: Any
    optim: Any
    monitor: Any
    run: Any

    @classmethod
    def load(cls, name: str | Path, changes: Sequence[str] = ()) -> Self:
        """Load a recipe and apply changes.

        Args:
            name: name of a recipe of the package, or path of a .toml file.
            changes: `section.field=value` each.

        Raises:
            RecipeError: there is no such recipe, the file is not valid TOML, or a section, field or value is unknown.
        """
        path = Path(name) if str(name).endswith(".toml") else cls.folder / f"{name}.toml"
        if not path.is_file():
            known = sorted(p.stem for p in cls.folder.glob("*.toml"))
            raise RecipeError(f"recipe: expected one of {known} or the path of a .toml file, got {str(name)!r}")
        try:
            content = read_toml(path)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path}: expected a recipe in TOML ({error})") from None
        for change in changes:
            key, equals, value = change.partition("=")
            section, dot, setting = key.partition(".")
            if not (equals and dot):
                raise RecipeError(f"recipe change: expected section.field=value, got {change!r}")
            fields = content.setdefault(section, {})
            if isinstance(fields, dict):  # otherwise from_dict raises
                fields[setting] = _parse(value)
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build a recipe from a dictionary of sections of fields. Absent fields keep their defaults.

        Raises:
            RecipeError: a section, field or value is unknown; the message names it.
        """
        types = get_type_hints(cls)
        sections = {field.name: types[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        _check_known("recipe", content, sections)
        return cls(**{name: _section(name, sections[name], fields) for name, fields in content.items()})

    @property
    def small_img_size(self) -> int:
        """Return the image size in pixels with which the run begins; 0 if the run has one size."""
        return getattr(self.model, "small_img_size", 0)

    def _sections(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    def to_toml(self) -> str:
        """Return the complete recipe as TOML, defaults included."""
        return "\n".join(
            f"[{section}]\n" + "".join(f"{name} = {to_toml(value)}\n" for name, value in fields.items())
            for section, fields in self._sections().items()
        )

    def flat(self) -> dict[str, Any]:
        """Return all fields as {"optim.epochs": 300.0, ...}, with lists as text, since trackers accept no lists."""
        return {
            f"{section}.{name}": ",".join(map(str, value)) if isinstance(value, tuple) else value
            for section, fields in self._sections().items()
            for name, value in fields.items()
        }

    def changed(self, section: str, **fields: Any) -> Self:
        """Return a copy of the recipe with other values for some fields of a section."""
        sections = {section: dataclasses.replace(getattr(self, section), **fields)}
        return dataclasses.replace(self, **sections)  # type: ignore[type-var]

    def differences(self, other: Self) -> list[str]:
        """List the differences to another recipe, e.g. "model.name: 'scott_3_16' and 'scott_7_16'".

        Fields that a resumed run may change are left out.
        """
        ours, theirs = self._sections(), other._sections()
        return [
            f"{section}.{name}: {value!r} and {theirs[section][name]!r}"
            for section, fields in ours.items()
            for name, value in fields.items()
            if value != theirs[section][name] and name not in HARMLESS.get(section, ())
        ]


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
    """Parse a value as TOML; return the text itself if it is not valid TOML."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
