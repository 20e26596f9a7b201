"""Hold a recipe of supervised training in frozen dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ..training.settings import Run as RunSettings
from ..training.settings import Schedule, Settings, require


@dataclass(frozen=True)
class Model:
    """Describe a timm model. Dropout rates of 0 are not passed to timm, since not all models take them."""

    name: str = "scott_3_16"
    weights: Literal["pretrained", "random"] = "pretrained"
    img_size: int = 224  # pixels
    pos_drop: float = 0.0
    proj_drop: float = 0.0
    attn_drop: float = 0.0
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"model.{name}", "a rate from 0 to below 1", rate)


@dataclass(frozen=True)
class Data:
    short_side: int = 320  # pixels; larger images are downsampled to it once, with their aspect ratio
    colours: bool = True  # change colours as in pretraining; false: images keep their colours

    def __post_init__(self) -> None:
        require(self.short_side >= 16, "data.short_side", "at least 16 pixels", self.short_side)


@dataclass(frozen=True)
class Optim(Schedule):
    epochs: float = 100
    batch_size: int = 64
    warmup_epochs: float = 10
    layer_decay: float = 1.0  # factor on the learning rate from each layer to the layer before it
    label_smoothing: float = 0.1
    mixup: float = 0.0  # both parameters of the Beta distribution of the shares of two mixed images; 0: no mixing

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.layer_decay <= 1, "optim.layer_decay", "above 0 and at most 1", self.layer_decay)
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", "from 0 to below 1", self.label_smoothing)
        require(self.mixup >= 0, "optim.mixup", "0 or more", self.mixup)


@dataclass(frozen=True)
class Monitor:
    every: float = 10  # epochs between tests, and one after the last epoch; nothing is chosen by their results

    def __post_init__(self) -> None:
        require(self.every > 0, "monitor.every", "more than 0 epochs", self.every)


@dataclass(frozen=True)
class FinetuneRecipe(Settings):
    """Hold all settings of supervised training."""

    folder: ClassVar[Path] = Path(__file__).parent / "recipes"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    monitor: Monitor = field(default_factory=Monitor)
    run: RunSettings = field(default_factory=RunSettings)
