"""Settings of a run: frozen dataclasses that a TOML file fills, the same for every kind of training."""

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
LR_EXPONENT = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}
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
