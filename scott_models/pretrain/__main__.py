"""Run pretraining by `python -m scott_models.pretrain RECIPE section.field=value ... --data FOLDER --out RUN`.

`accelerate launch` can start this module too. It needs no command-line library, so it also runs on a machine that has
little more than torch, timm and accelerate.
"""

import argparse
from pathlib import Path

from ..errors import report_user_errors
from ..training.settings import to_toml
from . import Budget, Recipe, check_finish, choose_recipe, finish, pretrain
from .recipe import OBJECTIVES

EXAMPLES = """for example:
  python -m scott_models.pretrain flowers102 --data photos --out runs/photos
  python -m scott_models.pretrain flowers102 --data photos --out runs/photos --minutes 90 model.name=scott_3_16
  python -m scott_models.pretrain flowers102 --data photos --out runs/photos model.name=scott_3_16 \\
      --init scott_3_16.mimjepa_flowers102_cpu
  python -m scott_models.pretrain flowers102 --data photos --out runs/photos --resume
  python -m scott_models.pretrain --out runs/photos --finish --minutes 30
  accelerate launch --num_processes 8 -m scott_models.pretrain imagenet100 --data imagenet100:imagenet --out runs/in100
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scott_models.pretrain",
        description="Pretrain a model on your own images, without labels, by MIM-JEPA or another --objective.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = "name of a recipe in the package, or path of a TOML file; default: flowers102 on a GPU, otherwise small"
    parser.add_argument("recipe", nargs="?", help=names)
    parser.add_argument("changes", nargs="*", help="changes to the recipe, as section.field=value")
    parser.add_argument(
        "--data", action="append", default=[], help="folder of images, or flowers102:ROOT, ...; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--objective", choices=OBJECTIVES, help="objective, with its own masks; default: the recipe's")
    parser.add_argument("--init", help="weights to start from: a released tag, local-dir:FOLDER, or a run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--finish", action="store_true", help="finish the stopped run in --out early")
    parser.add_argument("--minutes", type=float, help="fit epochs and schedules to this time")
    parser.add_argument("--images-seen", type=int, help="fit epochs and schedules to this many images")
    parser.add_argument("--epochs", type=float, help="fit schedules to this many epochs")
    parser.add_argument(
        "--bad-images", choices=("error", "skip"), default="error", help="stop at unusable images, or skip them"
    )
    parser.add_argument("--export", choices=("target", "context"), help="encoder to export; default: target")
    with report_user_errors():
        _run(parser.parse_intermixed_args())


def _run(given: argparse.Namespace) -> None:
    if given.recipe and "=" in given.recipe and not given.recipe.endswith(".toml"):  # a change, not a recipe
        given.recipe, given.changes = None, [given.recipe, *given.changes]
    changes = [*OBJECTIVES.get(given.objective, []), *given.changes]
    changes += [f"model.init={to_toml(given.init)}"] if given.init else []
    skip = given.bad_images == "skip"
    budget = Budget.of(given.minutes, given.images_seen, given.epochs)
    if given.finish:
        left = check_finish(given.recipe, changes, budget, given.export)
        finish(given.out, left, given.data, skip_bad=skip)
        return
    recipe = Recipe.load(given.recipe or choose_recipe(given.out if given.resume else None), changes)
    which = {"export": given.export} if given.export else {}
    pretrain(recipe, given.data, given.out, given.resume, budget=budget, skip_bad=skip, **which)


if __name__ == "__main__":
    main()
