"""Train a classifier on labelled images, from random or pretrained weights, by the training loop of pretraining."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import download_from_hf
from torch import nn

from .. import weights
from ..data.bad_images import check_images
from ..data.decoded import Images
from ..data.labelled import Labelled, find_labelled
from ..data.sources import Sample
from ..errors import RecipeError, UserError
from ..models.scott import SCOTT
from ..probes.classifiers import Accuracy
from ..probes.features import load_evaluation_batches
from ..training.budget import Budget
from ..training.lock import hold_folder
from ..training.processes import agree
from ..training.run import Run
from ..weights import local_dir
from ..writing import to_json, write_text_whole
from .objective import Supervised
from .recipe import FinetuneRecipe, Model

BATCH = 64  # images per forward pass of a test
ARCHITECTURE = "model"  # folder of the run folder, with timm's configuration of a model that is not timm's own


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
    """Train a classifier on labelled images.

    The run folder `out` holds the same files as in pretraining. Its export/ is the classifier, with the names of its
    classes. model/ is the configuration of a model from a folder or the Hub, which the run then needs no more.

    Args:
        train, test: sources of images, as `find_labelled` takes them.
        out: the run folder.
        resume: go on from the last checkpoint in `out`, if there is one.
        budget, skip_bad: as in `scott_models.pretrain.pretrain`.

    Returns:
        the accuracy on the test images after the last epoch, in percent.

    Raises:
        WeightsError: the weights of one of this package's models were not found or are damaged.
        as `scott_models.pretrain.pretrain`.
    """
    trained, tested = find_labelled(train, test, skip_bad=skip_bad)
    if not skip_bad:
        check_images(tested.images)
    with hold_folder(Path(out)):
        run = FineTuning(recipe, train, Path(out), resume, budget, skip_bad, trained, tested)
        run.train()
        measured: Any = run.log.health.get(run.total)  # on the first process
        accuracy: Accuracy = agree(measured)
        run.export()
    return accuracy


@dataclass(frozen=True)
class Watched(Accuracy):
    """Hold the accuracy of a classifier during training, in percent."""

    def better_than(self, other: "Watched") -> bool:
        """Return False: no checkpoint is chosen by its accuracy on test images."""
        return False

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f"top-5 {self.top5:.2f} %, "
        return f"top-1 {self.top1:.2f} %, {top5}mean per class {self.per_class:.2f} % on the test images"


class Tested:
    """Measure the accuracy of a classifier on all test images."""

    def __init__(self, tested: Labelled, size: int, device: torch.device, autocast: Callable[[], Any]) -> None:
        self.tested, self.size, self.device, self.autocast = tested, size, device, autocast

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Watched:
        was_training = model.training
        model.eval()
        logits = []
        for batch in load_evaluation_batches(model, self.tested.images, self.size, BATCH, "testing"):
            with self.autocast():
                logits.append(model(batch.to(self.device, memory_format=torch.channels_last)).float().cpu())
        model.train(was_training)
        return Watched(*astuple(Accuracy.of(torch.cat(logits), self.tested.labels)))


class FineTuning(Run):
    """Run supervised training, from the first update to the export."""

    kind_of_health = Watched
    outcome = "trained"

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
        if self.engine.is_main and not self.resuming:
            keep_configuration(recipe.model.name, out / ARCHITECTURE)

    def identify(self, images: Images) -> dict[str, str]:
        names = [*self.trained.names, "", *(str(sample.label) for sample in images.samples)]
        labels = "\0".join(names).encode(errors="surrogateescape")
        return {**super().identify(images), "labels": blake2b(labels, digest_size=16).hexdigest()}

    def samples(self, recipe: Any) -> list[Sample]:
        names = (self.trained.names[label] for label in self.trained.labels.tolist())
        return [Sample(image, name) for image, name in zip(self.trained.images, names)]

    def build_objective(self, recipe: Any, *, images: Callable[[], int], compiled: bool) -> nn.Module:
        model, kept = recipe.model, self.out / ARCHITECTURE
        # A run that an older version began, which kept no configuration, trains the mask token of an export too.
        older = not self.loads_start and ":" in model.name and not kept.is_dir()
        if not self.loads_start:
            name = f"local-dir:{kept}" if ":" in model.name and kept.is_dir() else model.name
            model = replace(model, weights="random", name=name)
        objective = Supervised(build_classifier(model, len(self.trained.names), mask_token=older), recipe, compiled)
        if compiled:
            objective.compile()
        return objective

    def build_monitor(self, recipe: Any, images: Images) -> Tested:
        engine = self.engine
        engine.objective.labels = Labelled.of(images.samples, self.trained.names).labels
        return Tested(self.tested, recipe.model.img_size, engine.device, engine.autocast)

    def build_album(self, recipe: Any, images: Images) -> None:
        """Return None: an album needs a SCOTT encoder, and the model may be any timm model."""

    def verdict(self, now: Any, control: Any) -> str:
        return str(now)

    def watch(self, step: int) -> bool:
        """Measure the classifier and return False: the last epoch counts, no epoch is chosen by its test accuracy."""
        super().watch(step)
        return False

    def write_readme(self) -> None:
        recipe, folder = self.recipe, self.out / "export"
        rows = "".join(f"- update {step}: {accuracy}\n" for step, accuracy in sorted(self.log.health.items()))
        write_text_whole(
            self.out / "README.md",
            f"""# {recipe.model.name}, a classifier of {len(self.trained.names)} classes

{self.order.count:,} images of {", ".join(map(str, self.data))}; {recipe.optim.epochs:g} epochs from
{recipe.model.weights} weights; {recipe.model.img_size} px; seed {recipe.run.seed}. The whole recipe is in recipe.toml,
the machine and packages in environment.json, all measurements in metrics.jsonl.

{rows or "Not yet tested."}
The last epoch counts. Once the run has ended, `export/` is a timm model that names its classes:

```python
import scott_models, timm

model = timm.create_model("local-dir:{folder}", pretrained=True)
model.pretrained_cfg["label_names"]
```
""",
        )

    def write_export(self, folder: Path) -> None:
        write_text_whole(self.out / "result.json", to_json(asdict(self.log.health[self.total]), indent=2) + "\n")
        names = self.trained.names
        if isinstance(self.encoder, SCOTT):
            weights.export(self.encoder, folder, dtype=torch.float32, label_names=names)
        else:
            size = self.recipe.model.img_size
            self.encoder.pretrained_cfg = {**self.encoder.pretrained_cfg, "input_size": (3, size, size)}
            local_dir.save_whole(self.encoder, folder, {}, names)


def keep_configuration(name: str, folder: Path) -> None:
    """Keep config.json of a model that timm loads from a folder or the Hub, so that the run can resume without these.

    Args:
        name: timm's name of the model; nothing is kept of a model that timm knows by its name.
        folder: folder to write config.json to.
    """
    source, _, place = name.partition(":")
    if source == "local-dir":
        config = Path(place) / "config.json"
    elif source in ("hf-hub", "hf_hub"):
        config = Path(download_from_hf(place, "config.json"))  # timm has just read it from the cache
    else:
        return
    folder.mkdir(exist_ok=True)
    write_text_whole(folder / "config.json", config.read_text(encoding="utf-8"))


def build_classifier(model: Model, classes: int, *, mask_token: bool = False) -> nn.Module:
    """Build a timm model with a new head for `classes` classes.

    Args:
        mask_token: keep the mask token that exports of older versions have.

    Raises:
        RecipeError: timm cannot create the model with these settings, or cannot load the weights of its own models.
        WeightsError: the weights of one of this package's models were not found or are damaged.
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
        if isinstance(built, SCOTT) and not mask_token:
            built.mask_token = None  # distributed training refuses parameters without a use
        if hasattr(built, "set_input_size"):  # a convolutional network takes any size
            built.set_input_size((model.img_size, model.img_size))
    except UserError:
        raise
    except Exception as error:  # timm, safetensors and torch have no common error for "unknown", "damaged", "foreign"
        raise RecipeError(f"recipe.model: {model.name} cannot be created by timm: {error}") from error
    return built
