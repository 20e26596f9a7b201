"""Commands that train."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from .output import Sources, print_json, print_result


def pretrain(
    changes: Positional[tuple[str, ...]] = (),
    /,
    *,
    data: Sources = [],  # noqa: B006 -- tyro's way to say that an option may be given again or not at all
    out: Path,
    recipe: str | None = None,
    objective: Literal["mimjepa", "splitmask", "beit", "visreg", "diet"] | None = None,
    init: str | None = None,
    resume: FlagCreatePairsOff[bool] = False,
    finish: FlagCreatePairsOff[bool] = False,
    minutes: float | None = None,
    images_seen: int | None = None,
    epochs: float | None = None,
    bad_images: Literal["error", "skip"] = "error",
    export: Literal["target", "context"] | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Pretrain a model on your own images, no labels needed.

    The method is MIM-JEPA (docs/pretraining.md); there are others, too (docs/objectives.md).

    For example:
        scott pretrain --data photos --out runs/photos --recipe flowers102
        scott pretrain --data train --data more --out runs/both optim.epochs=100 model.name=scott_3_16
        scott pretrain --data photos --out runs/photos --recipe flowers102 --resume
        scott pretrain --data photos --out runs/photos --minutes 90 model.name=scott_3_16
        scott pretrain --out runs/photos --finish --minutes 30
        scott pretrain --data photos --out runs/more --init scott_3_16.mimjepa_flowers102_cpu model.name=scott_3_16
        scott pretrain --data flowers102:downloads --out runs/flowers data.splits=train,val
        scott pretrain --data photos --out runs/halves --objective splitmask model.name=scott_3_16

    Several GPUs: accelerate launch -m scott_models.pretrain (docs/scaling.md).

    Args:
        changes: what differs from the recipe, as section.field=value.
        data: a folder of images, searched below too; or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT, hf:NAME; give
            the option again for more.
        out: run folder: recipe, metrics, checkpoints, a README, and at the end export/ for timm's "local-dir:".
        recipe: name of a recipe of the package, or the path of a TOML file; by default flowers102, the paper's, on a
            GPU, and small elsewhere.
        objective: what is learned, with the masks and views that its paper gives it; by default the recipe's.
        init: weights that the encoders start from: a released tag, local-dir:FOLDER, or the folder of a run.
        resume: go on with the run in --out from its last checkpoint.
        finish: bring the run in --out, which was stopped, to an early end in --minutes, --epochs or --images-seen; it
            knows its recipe and its data.
        minutes: measure the speed first, then fit epochs and schedules into this time.
        images_seen: fit epochs and schedules to this many images instead.
        epochs: fit schedules to so many epochs instead.
        bad_images: what to do with images that cannot be used; either way all of them are listed.
        export: which encoder is exported at the end, by default the target.
        json: print JSON instead of a sentence.
    """
    from .. import pretrain as training
    from ..pretrain.recipe import OBJECTIVES

    budget, skip = training.Budget.of(minutes, images_seen, epochs), bad_images == "skip"
    started = [f"model.init={dumps(init)}"] if init else []
    settings = [*OBJECTIVES.get(objective or "", []), *changes, *started]
    with redirect_stdout(sys.stderr if json else sys.stdout):
        if finish:
            left = training.check_finish(recipe, settings, budget, export)
            exported = training.finish(out, left, data, skip_bad=skip)
        else:
            loaded = training.Recipe.load(recipe or training.choose_recipe(out if resume else None), settings)
            which = export or "target"
            exported = training.pretrain(loaded, data, out, resume, budget=budget, skip_bad=skip, export=which)
    if json:
        lines = map(loads, (out / "metrics.jsonl").read_text().splitlines())
        looks = [line["monitor"] for line in lines if "monitor" in line]
        print_json({"export": exported, "health": looks[-1] if looks else None})


def finetune(
    changes: Positional[tuple[str, ...]] = (),
    /,
    *,
    train: Sources,
    test: Sources,
    out: Path,
    recipe: str = "finetune",
    resume: FlagCreatePairsOff[bool] = False,
    minutes: float | None = None,
    bad_images: Literal["error", "skip"] = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Train a classifier of your own classes.

    It starts from weights, or from scratch.

    For example:
        scott finetune --train mine/train --test mine/test --out runs/mine
        scott finetune --train mine/train --test mine/test --out runs/mine model.name=local-dir:runs/photos/export
        scott finetune --train mine/train --test mine/test --out runs/mine optim.layer_decay=0.75 optim.mixup=0.2
        scott finetune --recipe scratch --train flowers102:downloads --test flowers102:downloads --out runs/scratch

    Args:
        changes: what differs from the recipe, as section.field=value.
        train: a folder with a folder of images for each class, or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT,
            hf:NAME; give the option again for more. Of a source with splits train and val are taken.
        test: the same, for testing; it decides nothing. Of a source with splits test is taken.
        out: run folder: recipe, metrics, checkpoints, a README, and at the end export/ for timm's "local-dir:".
        recipe: name of a recipe of the package, or the path of a TOML file.
        resume: go on with the run in --out from its last checkpoint.
        minutes: measure the speed first, then fit epochs and schedules into this time.
        bad_images: what to do with images that cannot be used; either way all of them are listed.
        json: print JSON instead of a sentence.
    """
    from ..finetune import FinetuneRecipe
    from ..finetune import train as training
    from ..training.budget import Budget

    with redirect_stdout(sys.stderr if json else sys.stdout):
        accuracy = training.finetune(
            FinetuneRecipe.load(recipe, changes),
            train,
            test,
            out,
            resume,
            budget=Budget.of(minutes, None),
            skip_bad=bad_images == "skip",
        )
    print_result(str(accuracy), {"export": out / "export", **asdict(accuracy)}, json)
