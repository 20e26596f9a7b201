"""Commands that train: `scott pretrain` and `scott finetune`."""

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from .output import Sources, print_json, print_result


def pretrain(
    changes: Positional[tuple[str, ...]] = (),
    /,
    *,
    data: Sources = [],  # noqa: B006 -- how tyro declares an option that may be repeated or left out
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
    """Pretrain a model on your own images, without labels.

    The default method is MIM-JEPA (docs/pretraining.md). For other methods, see docs/objectives.md.

    For example:
        scott pretrain --data photos --out runs/photos --recipe flowers102
        scott pretrain --data train --data more --out runs/both optim.epochs=100 model.name=scott_3_16
        scott pretrain --data photos --out runs/photos --recipe flowers102 --resume
        scott pretrain --data photos --out runs/photos --minutes 90 model.name=scott_3_16
        scott pretrain --out runs/photos --finish --minutes 30
        scott pretrain --data photos --out runs/more --init scott_3_16.mimjepa_flowers102_cpu model.name=scott_3_16
        scott pretrain --data flowers102:downloads --out runs/flowers data.splits=train,val
        scott pretrain --data photos --out runs/halves --objective splitmask model.name=scott_3_16

    To train on several GPUs, use accelerate launch -m scott_models.pretrain (docs/scaling.md).

    Args:
        changes: changes to the recipe, each as section.field=value.
        data: a folder of images, searched recursively, or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT, hf:NAME.
            Repeat the option for more sources.
        out: run folder, for the recipe, metrics, checkpoints, a README,
            and at the end export/ for timm's "local-dir:".
        recipe: name of a recipe in the package, or path of a TOML file.
            By default flowers102 (the paper's recipe) on a GPU, and small without one.
        objective: training objective, with the masks and views of its paper; by default the recipe's objective.
        init: weights that the encoders start from: a released tag, local-dir:FOLDER, or the folder of a run.
        resume: continue the run in --out from its last checkpoint.
        finish: bring the stopped run in --out to an early end, within --minutes, --epochs or --images-seen.
            The run keeps its recipe and its images; --data says where the images are now, if they were moved.
        minutes: measure the speed first, then fit epochs and schedules to this time.
        images_seen: instead of --minutes, fit epochs and schedules to this number of images.
        epochs: instead of --minutes, fit schedules to this number of epochs.
        bad_images: error stops at images that cannot be used, skip leaves them out; both list all of them.
        export: which encoder to export at the end; by default the target encoder.
        json: print JSON instead of a sentence.
    """
    from .. import pretrain
    from ..pretrain.recipe import OBJECTIVES
    from ..training.settings import to_toml

    budget, skip = pretrain.Budget.of(minutes, images_seen, epochs), bad_images == "skip"
    started = [f"model.init={to_toml(init)}"] if init else []
    settings = [*OBJECTIVES.get(objective or "", []), *changes, *started]
    with redirect_stdout(sys.stderr if json else sys.stdout):
        if finish:
            left = pretrain.check_finish(recipe, settings, budget, export)
            exported = pretrain.finish(out, left, data, skip_bad=skip)
        else:
            loaded = pretrain.Recipe.load(recipe or pretrain.choose_recipe(out if resume else None), settings)
            which = export or "target"
            exported = pretrain.pretrain(loaded, data, out, resume, budget=budget, skip_bad=skip, export=which)
    if json:
        lines = map(loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
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
    """Train a classifier for your own classes.

    Training starts from pretrained weights, or from scratch.

    For example:
        scott finetune --train mine/train --test mine/test --out runs/mine
        scott finetune --train mine/train --test mine/test --out runs/mine model.name=local-dir:runs/photos/export
        scott finetune --train mine/train --test mine/test --out runs/mine optim.layer_decay=0.75 optim.mixup=0.2
        scott finetune --recipe scratch --train flowers102:downloads --test flowers102:downloads --out runs/scratch

    Args:
        changes: changes to the recipe, each as section.field=value.
        train: a folder with one folder of images per class, or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT, hf:NAME.
            Repeat the option for more sources. If a source has training and test splits, train and val are used.
        test: test images, given as for --train. They do not influence training.
            If a source has training and test splits, test is used.
        out: run folder, for the recipe, metrics, checkpoints, a README,
            and at the end export/ for timm's "local-dir:".
        recipe: name of a recipe in the package, or path of a TOML file.
        resume: continue the run in --out from its last checkpoint.
        minutes: measure the speed first, then fit epochs and schedules to this time.
        bad_images: error stops at images that cannot be used, skip leaves them out; both list all of them.
        json: print JSON instead of a sentence.
    """
    from .. import finetune
    from ..training import Budget

    with redirect_stdout(sys.stderr if json else sys.stdout):
        accuracy = finetune.finetune(
            finetune.FinetuneRecipe.load(recipe, changes),
            train,
            test,
            out,
            resume,
            budget=Budget.of(minutes, None),
            skip_bad=bad_images == "skip",
        )
    print_result(str(accuracy), {"export": out / "export", **asdict(accuracy)}, json)
