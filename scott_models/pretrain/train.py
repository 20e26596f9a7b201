"""Pretraining: the function `pretrain`, and the run behind it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .. import weights
from ..data.decoded import Images
from ..data.sources import Sample, find_samples
from ..training.budget import Budget
from ..training.lock import hold_folder
from ..training.run import Run
from ..writing import write_text_whole
from .album import PICTURES, Album
from .build import build_objective
from .monitor import Health, Monitor, give_advice, judge, pick_evenly
from .recipe import Recipe


def pretrain(
    recipe: Recipe,
    data: Sequence[str | Path],
    out: str | Path,
    resume: bool = False,
    *,
    budget: Budget | None = None,
    skip_bad: bool = False,
    export: Literal["target", "context"] = "target",
) -> Path:
    """Pretrain a model on the images of `data`; return the folder of the exported encoder.

    The run writes recipe.toml, environment.json, metrics.jsonl, checkpoints/, looks/ and README.md into `out` and, at
    the end, export/ in timm's local-dir layout. Under `accelerate launch` every process calls this function with the
    same arguments.

    Args:
        recipe: all settings of the run.
        data: folders of images, or names of data sets, as `scott_models.data.find_samples` takes them. All their
            images are used, unless `recipe.data.splits` names splits.
        out: run folder; created if it does not exist.
        resume: continue the run in `out` from its last checkpoint; without a checkpoint, start a new run.
        budget: minutes, images or epochs; the schedules are fitted to it. A resumed run keeps its fitted epochs.
        skip_bad: leave out images that cannot be used, instead of raising an error.
        export: encoder to export, and to monitor during the run.

    Raises:
        DataError: an image cannot be used, there are fewer images than a batch, or `out` cannot be written to.
        RecipeError: settings do not fit, `out` holds a run but `resume` is False, the run to resume has another recipe
            or other images, or another process trains in `out`.
        WeightsError: the weights to start from are missing, damaged, or those of another model.
        TrainingError: the loss or a gradient was NaN or infinite in three updates in a row.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped the run, after it saved a checkpoint.
    """
    with hold_folder(Path(out)):
        run = Pretraining(recipe, data, Path(out), resume, budget, skip_bad, export)
        run.train()
        return run.export()


class Pretraining(Run):
    """Run one pretraining, from its recipe to the export."""

    kind_of_health = Health
    outcome = "pretrained"

    def samples(self, recipe: Any) -> list[Sample]:
        return find_samples(self.data, recipe.data.splits, skip_bad=self.skip_bad)

    def build_objective(self, recipe: Any, *, images: Callable[[], int], compiled: bool) -> nn.Module:
        if not self.loads_start:
            recipe = recipe.changed("model", init="", grow=False)
        return build_objective(recipe, images=images, compiled=compiled)

    def build_monitor(self, recipe: Any, images: Images) -> Monitor:
        engine = self.engine
        return Monitor(images, recipe, engine.device, engine.autocast, watches=engine.is_main)

    def build_album(self, recipe: Any, images: Images) -> Album:
        """Build an album of some of the monitor's images, spread over the classes."""
        assert isinstance(self.monitor, Monitor)
        chosen = [images[i] for i in pick_evenly(self.monitor.held_out or self.monitor.train, PICTURES)]
        return Album(self.out / "looks", chosen, recipe.model.img_size, self.encoder, self.engine.autocast)

    def verdict(self, now: Any, control: Any) -> str:
        found, step, optim = judge(now, control, self.recipe.model.start), max(self.log.health), self.recipe.optim
        may_finish = optim.warmup_epochs * self.order.steps <= step < self.total and not optim.finish_updates
        return found + give_advice(self.log.health) if may_finish else found

    def write_readme(self) -> None:
        write_readme(self.out / "README.md", self.recipe, self.data, self.order.count, self.log.health)

    def write_export(self, folder: Path) -> None:
        weights.export(self.encoder, folder)


def write_readme(
    path: Path, recipe: Recipe, sources: Sequence[str | Path], images: int, health: dict[int, Health]
) -> None:
    """Write the README of a run: its settings, its health so far, and how to use its result.

    Args:
        sources: the `data` of `pretrain`.
        images: number of images of the run.
        health: the monitor's results by update; 0 is before the first update.
    """
    done = max(health, default=0)
    start = recipe.model.start
    watched = done > 0 and 0 in health  # the first look may have been lost with metrics.jsonl
    state = f"After update {done:,}: {judge(health[done], health[0], start)}." if watched else "Not monitored yet."
    if recipe.optim.finish_updates:
        planned = round(recipe.optim.epochs * (images // recipe.optim.batch_size))
        state += (
            f" After update {recipe.optim.finish_after:,} of {planned:,} the run was finished early, in "
            f"{recipe.optim.finish_updates:,} more updates."
        )
    small, size = recipe.small_img_size, recipe.model.img_size
    sizes = f"{small}, then {size}" if small else f"{size}"
    rows = "".join(f"| {step or start} | {' | '.join(_cells(value))} |\n" for step, value in sorted(health.items()))
    write_text_whole(
        path,
        f"""# {recipe.model.name}, pretrained by {recipe.objective.title}

{images:,} images of {", ".join(map(str, sources))}; {recipe.optim.epochs:g} epochs; batches of
{recipe.optim.batch_size}; {sizes} px; seed {recipe.run.seed}. recipe.toml has all settings, environment.json
the machine and the software, metrics.jsonl all figures.

{state}

| update | RankMe | spread | mean cosine | kNN % | ridge % |
|---|---|---|---|---|---|
{rows}
Once the run has ended, `export/` holds a timm model:

```python
import scott_models, timm

model = timm.create_model("local-dir:{path.parent / "export"}", pretrained=True)  # num_classes=10 adds a classifier
```

To continue a stopped run, repeat the command that started it, with `--resume`. To finish it early, in 30 minutes:
`scott pretrain --out {path.parent} --finish --minutes 30`.
""",
    )


def _cells(health: Health) -> list[str]:
    values = (health.rankme, health.spread, health.cosine, health.knn, health.ridge)
    return ["-" if value is None else f"{value:.{digits}f}" for value, digits in zip(values, (1, 2, 2, 1, 1))]
