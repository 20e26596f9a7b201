"""Finish a stopped run early: bring its schedules to their end in fewer updates than planned."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..training.budget import Budget
from ..training.lock import hold_folder
from ..training.run import check_level
from ..training.run_folder import find_exported_encoder
from .recipe import Recipe
from .train import Pretraining


def finish(out: str | Path, budget: Budget, data: Sequence[str | Path] = (), *, skip_bad: bool = False) -> Path:
    """Finish a stopped run early; return the folder of the exported encoder.

    From the last update on, the learning rate falls to its final value by a cosine. The decay of the target encoder and
    the weight decay run through the rest of their schedules. recipe.toml records the finish, so `pretrain` with
    `resume` continues a finish that is stopped. The run keeps its images and the encoder that it exports.

    Args:
        out: run folder.
        budget: minutes, images or epochs that are left.
        data: where the run's images are now; by default where they were.
        skip_bad: as in `pretrain`; a run that skipped bad images continues to skip them.

    Raises:
        RecipeError: the run never started, is still in its warm-up, is being finished already or has ended, or another
            process trains in `out`.
        DataError, WeightsError, TrainingError, Interrupted: as in `pretrain`.
    """
    with hold_folder(Path(out)):
        return _finish(Path(out), budget, data, skip_bad)


def _finish(out: Path, budget: Budget, data: Sequence[str | Path], skip_bad: bool) -> Path:
    start, done = read_last_start(out)
    recipe = Recipe.load(out / "recipe.toml")
    optim = recipe.optim
    if optim.finish_updates and done < optim.finish_after + optim.finish_updates:
        raise RecipeError(f"{out}: expected a run to finish, found one being finished already; go on with --resume")
    if optim.finish_updates:
        raise RecipeError(f"{out}: expected a run to finish, found one that has ended, after update {done:,}")
    check_level(out, recipe, done, start["images"] // recipe.optim.batch_size)
    skip_bad = skip_bad or start.get("skip_bad", False)
    run = Pretraining(
        recipe, data or start["data"], out, True, None, skip_bad, find_exported_encoder(start), ending=budget
    )
    run.train()
    return run.export()


def read_last_start(out: Path) -> tuple[dict[str, Any], int]:
    """Read the last start of a run from environment.json, and the update of its last checkpoint.

    Raises:
        RecipeError: the run has no checkpoint, or recipe.toml or environment.json is missing or damaged.
    """
    steps = [int(path.stem.removeprefix("step_")) for path in (out / "checkpoints").glob("step_*.pt")]
    if not steps:
        raise RecipeError(f"{out}: expected a run to finish, found no checkpoint")
    try:
        start = json.loads((out / "environment.json").read_text(encoding="utf-8"))[-1]
        if not (out / "recipe.toml").is_file() or not {"images", "data", "command"} <= start.keys():
            raise LookupError("an entry or recipe.toml is missing")
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise RecipeError(
            f"{out}: expected recipe.toml and environment.json of the run to finish, found missing or damaged ones "
            f"({error}); repeat the command that started the run, with --resume"
        ) from None
    return start, max(steps)


def check_finish(
    recipe: str | None, settings: Sequence[str], budget: Budget | None, export: str | None = None
) -> Budget:
    """Check the options beside `--finish`; return the budget.

    Raises:
        RecipeError: a recipe, settings or an encoder to export are given, which the run has already, or no budget.
    """
    if recipe or settings or export:
        given = recipe or " ".join(settings) or f"--export {export}"
        raise RecipeError(f"--finish: expected no recipe and no settings, since the run has them, got {given}")
    if budget is None:
        raise RecipeError("--finish: expected --minutes, --epochs or --images-seen for the rest of the run")
    return budget
