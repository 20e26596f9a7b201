"""A run that is brought to an end when somebody wants its result, however long it was planned."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..training.budget import Budget
from ..training.run import check_level
from ..training.run_folder import find_exported_encoder
from .recipe import Recipe
from .train import Pretraining


def finish(out: str | Path, budget: Budget, data: Sequence[str | Path] = (), *, skip_bad: bool = False) -> Path:
    """Bring a run that was stopped to an early end; returns the folder of the exported encoder.

    From its last update on the learning rate falls by a cosine, and the target's and the weights' decay go on, to the
    values that the recipe ends with. recipe.toml says so, and `pretrain` with `resume` goes on with a finish that is
    cut. The run's images and what it exports are as they were.

    Args:
        out: a run folder.
        budget: for what is left.
        data: where the run's images are now; by default where they were.
        skip_bad: as `pretrain`; a run that did so goes on with it.

    Raises:
        RecipeError: a run that never started, is still warming up, is being finished already or has ended.
        as `pretrain`.
    """
    out = Path(out)
    start, done = read_last_start(out)
    recipe = Recipe.load(out / "recipe.toml")
    optim = recipe.optim
    if optim.finish_updates and done < optim.finish_after + optim.finish_updates:
        raise RecipeError(f"{out}: is being finished already; go on with --resume")
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
    """Read how a run was started the last time, as environment.json has it, and its last checkpoint's update.

    Raises:
        RecipeError: it has no checkpoint, or lacks what says how it was started.
    """
    steps = [int(path.stem.removeprefix("step_")) for path in (out / "checkpoints").glob("step_*.pt")]
    if not steps:
        raise RecipeError(f"{out}: expected a run to finish, found no checkpoint of one")
    try:
        start = json.loads((out / "environment.json").read_text())[-1]
        if not (out / "recipe.toml").is_file() or not {"images", "data", "command"} <= start.keys():
            raise LookupError("something is missing")
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise RecipeError(
            f"{out}: expected recipe.toml and environment.json of the run to finish, found none or damaged ones "
            f"({error}); go on with the command that started it, and --resume"
        ) from None
    return start, max(steps)


def check_finish(
    recipe: str | None, settings: Sequence[str], budget: Budget | None, export: str | None = None
) -> Budget:
    """Refuse what a command line gives beside `--finish` and contradicts it; returns the budget.

    Raises:
        RecipeError: a recipe, settings or what to export, which the run has; or no budget.
    """
    if recipe or settings or export:
        given = recipe or " ".join(settings) or f"--export {export}"
        raise RecipeError(f"--finish: expected no recipe and no settings, which the run has, got {given}")
    if budget is None:
        raise RecipeError("--finish: expected --minutes, --epochs or --images-seen for what is left of the run")
    return budget
