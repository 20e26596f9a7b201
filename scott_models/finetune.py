"""Supervised training of a classifier, from scratch or from weights, on the machinery of pretraining."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from . import weights
from .classifiers import Accuracy
from .data import Sample
from .errors import RecipeError, UserError
from .features import evaluation_batches, transform_config
from .labelled import Labelled, find_labelled
from .pretrain import Budget
from .pretrain.augment import Colours, coloured, move_together, normalize
from .pretrain.draws import Draws
from .pretrain.gather import unwrap
from .pretrain.recipe import Run as RunSettings
from .pretrain.recipe import Schedule, Settings, require
from .pretrain.records import write_whole
from .pretrain.store import Images
from .pretrain.train import Run
from .scott import SCOTT

BATCH = 64


@dataclass(frozen=True)
class Model:
    """Any timm model; dropouts that are 0 are not asked of it."""

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
    short_side: int = 320  # pixels, to which larger images are reduced once, aspect kept
    colours: bool = True  # whether views have the colours of pretraining's, or their own

    def __post_init__(self) -> None:
        require(self.short_side >= 16, "data.short_side", "at least 16 pixels", self.short_side)


@dataclass(frozen=True)
class Optim(Schedule):
    epochs: float = 100
    batch_size: int = 64
    warmup_epochs: float = 10
    layer_decay: float = 1.0  # what the learning rate is multiplied with from each layer to the one before
    label_smoothing: float = 0.1
    mixup: float = 0.0  # both parameters of the Beta distribution of two images' shares; 0: none are mixed

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.layer_decay <= 1, "optim.layer_decay", "above 0 and at most 1", self.layer_decay)
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", "from 0 to below 1", self.label_smoothing)
        require(self.mixup >= 0, "optim.mixup", "0 or more", self.mixup)


@dataclass(frozen=True)
class Monitor:
    every: float = 10  # epochs between looks at the test images, which decide nothing; the last is always looked at

    def __post_init__(self) -> None:
        require(self.every > 0, "monitor.every", "more than 0 epochs", self.every)


@dataclass(frozen=True)
class FinetuneRecipe(Settings):
    """Describe supervised training."""

    folder: ClassVar[Path] = Path(__file__).parent / "finetune_recipes"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    monitor: Monitor = field(default_factory=Monitor)
    run: RunSettings = field(default_factory=RunSettings)


def finetune(
    recipe: FinetuneRecipe,
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    out: str | Path,
    resume: bool = False,
    *,
    budget: Budget | None = None,
    skip_bad: bool = False,
) -> Accuracy:
    """Train a classifier of labelled images; returns its accuracy on the test images after the last epoch.

    The run folder `out` receives what pretraining's does; its export/ is the classifier, with the names of its classes.

    Args:
        train, test: sources as `find_labelled` takes them.
        budget, skip_bad: as `scott_models.pretrain.pretrain` takes them.

    Raises:
        as `scott_models.pretrain.pretrain`; WeightsError: a model that cannot be had.
    """
    trained, tested = find_labelled(train, test)
    run = FineTuning(recipe, train, Path(out), resume, budget, skip_bad, trained, tested)
    run.train()
    run.export()
    return run.log.health[run.total]


@dataclass(frozen=True)
class SupervisedPlan:
    """Hold what was drawn for a batch.

    Attributes:
        images: int64 (B,), which of the run's they are.
        colours: None if images keep theirs.
        shares: float64 (B,), of each image where it is mixed with another; none if none are.
    """

    images: np.ndarray
    colours: Colours | None
    shares: np.ndarray


@dataclass(frozen=True)
class SupervisedDrawing:
    """Draw for a batch: other colours if wanted, and the shares of mixed images if `mixup` is not 0."""

    colours: bool
    mixup: float

    def __call__(self, draws: Draws) -> SupervisedPlan:
        assert draws.images is not None
        count = len(draws.seeds) if self.mixup else 0
        colours = Colours.draw(draws) if self.colours else None
        shares = np.random.default_rng(draws.seeds).beta(self.mixup, self.mixup, count) if count else np.empty(0)
        return SupervisedPlan(draws.images.numpy(), colours, shares)


class Supervised(nn.Module):
    """Cross-entropy of a classifier: an objective as pretraining knows them (pretrain/build.py).

    Attributes:
        labels: int64, of all images of the run, on the CPU; set once they are known.
    """

    labels: Tensor

    def __init__(self, model: nn.Module, recipe: FinetuneRecipe, compiled: bool = False) -> None:
        super().__init__()
        self.compiled = compiled
        self.model = model
        self.classes, self.optim, self.colours = model.num_classes, recipe.optim, recipe.data.colours
        config = transform_config(model, recipe.model.img_size)
        self.mean, self.std = config["mean"], config["std"]

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"model": unwrap(self.model)}

    @property
    def drawing(self) -> "SupervisedDrawing":
        """Return what draws ahead for `inputs`."""
        return SupervisedDrawing(self.colours, self.optim.mixup)

    def inputs(self, crops: Tensor, draws: "Draws | SupervisedPlan") -> tuple[Tensor, Tensor]:
        """Crops uint8 (B, 3, H, W) -> images (B, 3, H, W) and the shares of the classes in each (B, classes)."""
        plan = draws if isinstance(draws, SupervisedPlan) else self.drawing(draws)
        if plan.colours:
            images = coloured(crops, plan.colours, self.compiled, self.mean, self.std)
        else:
            images = normalize(crops.float() / 255, self.mean, self.std)
        labels, share = move_together([self.labels[plan.images], torch.from_numpy(plan.shares).float()], crops.device)
        targets = F.one_hot(labels, self.classes).to(images.dtype)
        if len(share):
            images = torch.lerp(images.flip(0), images, share.view(-1, 1, 1, 1))
            targets = torch.lerp(targets.flip(0), targets, share.view(-1, 1))
        return images, targets

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), targets, label_smoothing=self.optim.label_smoothing)

    def after_step(self, step: float, total: int) -> None:
        """Nothing follows a classifier."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group parameters: vectors, biases and what the model names are not decayed; early layers learn slower."""
        named: set[str] = getattr(self.model, "no_weight_decay", set)()  # such as positions and class tokens
        groups = param_groups_layer_decay(
            self.model, weight_decay=1.0, no_weight_decay_list=named, layer_decay=self.optim.layer_decay
        )
        return [{**group, "decayed": group["weight_decay"] > 0} for group in groups]


@dataclass(frozen=True)
class Watched(Accuracy):
    """Hold the accuracy of a classifier under training."""

    def better_than(self, other: "Watched") -> bool:
        """Nothing is chosen on test images."""
        return False

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f"top-5 {self.top5:.2f} %, "
        return f"top-1 {self.top1:.2f} %, {top5}mean per class {self.per_class:.2f} % on the test images"


class Tested:
    """Measures a classifier on all test images."""

    def __init__(self, tested: Labelled, size: int, device: torch.device, autocast: Callable[[], Any]) -> None:
        self.tested, self.size, self.device, self.autocast = tested, size, device, autocast

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Watched:
        was_training = model.training
        model.eval()
        logits = []
        for batch in evaluation_batches(model, self.tested.images, self.size, BATCH, "testing"):
            with self.autocast():
                logits.append(model(batch.to(self.device, memory_format=torch.channels_last)).float().cpu())
        model.train(was_training)
        return Watched(*astuple(Accuracy.of(torch.cat(logits), self.tested.labels)))


class FineTuning(Run):
    """Supervised training under way."""

    kind_of_health = Watched

    def __init__(
        self,
        recipe: FinetuneRecipe,
        data: Sequence[str | Path],
        out: Path,
        resume: bool,
        budget: Budget | None,
        skip_bad: bool,
        trained: Labelled,
        tested: Labelled,
    ) -> None:
        self.trained, self.tested = trained, tested
        super().__init__(recipe, data, out, resume, budget, skip_bad, "model")

    def samples(self, recipe: Any) -> list[Sample]:
        names = (self.trained.names[label] for label in self.trained.labels.tolist())
        return [Sample(image, name) for image, name in zip(self.trained.images, names)]

    def build_objective(self, recipe: Any, *, images: Callable[[], int], compiled: bool) -> nn.Module:
        objective = Supervised(build_classifier(recipe.model, len(self.trained.names)), recipe, compiled)
        if compiled:
            objective.compile()
        return objective

    def build_monitor(self, recipe: Any, images: Images) -> Tested:
        engine = self.engine
        engine.objective.labels = Labelled.of(images.samples, self.trained.names).labels
        return Tested(self.tested, recipe.model.img_size, engine.device, engine.autocast)

    def build_album(self, recipe: Any, images: Images) -> None:
        """None: its model may be of any kind."""

    def verdict(self, now: Any, control: Any) -> str:
        return str(now)

    def watch(self, step: int) -> bool:
        """Never the best: the last epoch counts, and none is chosen by its accuracy on test images."""
        super().watch(step)
        return False

    def write_readme(self) -> None:
        recipe, folder = self.recipe, self.out / "export"
        rows = "".join(f"- update {step}: {accuracy}\n" for step, accuracy in sorted(self.log.health.items()))
        write_whole(
            self.out / "README.md",
            f"""# {recipe.model.name}, a classifier of {len(self.trained.names)} classes

{self.order.count:,} images of {", ".join(map(str, self.data))}; {recipe.optim.epochs:g} epochs from
{recipe.model.weights} weights; {recipe.model.img_size} px; seed {recipe.run.seed}. The whole recipe is recipe.toml,
what it ran on environment.json, every figure metrics.jsonl.

{rows or "Not yet tested."}
The last epoch counts. Once the run has ended, `export/` is a timm model that names its classes:

```python
import scott_models, timm

model = timm.create_model("local-dir:{folder}", pretrained=True)
model.pretrained_cfg["label_names"]
```
""",
        )

    def export(self) -> Path:
        folder = self.out / "export"
        if self.engine.is_main:
            write_whole(self.out / "result.json", json.dumps(asdict(self.log.health[self.total]), indent=2) + "\n")
            names = self.trained.names
            if isinstance(self.encoder, SCOTT):
                weights.export(self.encoder, folder, dtype=torch.float32, label_names=names)
            else:
                size = self.recipe.model.img_size
                self.encoder.pretrained_cfg = {**self.encoder.pretrained_cfg, "input_size": (3, size, size)}
                weights.save_whole(self.encoder, folder, {}, names)
            print(f"trained; use it with timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
        self.engine.accelerator.wait_for_everyone()
        self.engine.accelerator.end_training()
        return folder


def build_classifier(model: Model, classes: int) -> nn.Module:
    """A timm model with a fresh head.

    Raises:
        RecipeError: settings it cannot take.
        WeightsError: weights that cannot be had.
    """
    rates = {"pos_drop_rate": model.pos_drop, "proj_drop_rate": model.proj_drop, "attn_drop_rate": model.attn_drop}
    rates |= {"drop_path_rate": model.drop_path}
    try:
        built = timm.create_model(
            model.name,
            pretrained=model.weights == "pretrained",
            num_classes=classes,
            **{name: rate for name, rate in rates.items() if rate},
        )
        if hasattr(built, "set_input_size"):  # a convolutional network takes any size
            built.set_input_size((model.img_size, model.img_size))
    except UserError:
        raise
    except Exception as error:  # timm, safetensors and torch have no common error for "unknown", "damaged", "foreign"
        raise RecipeError(f"recipe.model: {model.name} cannot be created by timm: {error}") from error
    return built
