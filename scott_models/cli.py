"""The `scott` command: each subcommand calls one function of the package."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from .errors import UserError, told_in_a_sentence

PIPED_WIDTH = 160  # characters of a table that no terminal shows
Sources = Annotated[list[str], UseAppendAction]
# As in probe.py and curve.py, whose import takes seconds that --help should not.
Probe = Literal["knn", "ridge", "linear", "attentive"]
PROBES: tuple[Probe, ...] = ("knn", "ridge", "linear", "attentive")
SHOTS = (1, 5, 10)  # images a class


def pretrain(
    changes: Positional[tuple[str, ...]] = (),
    /,
    *,
    data: Sources,
    out: Path,
    recipe: str = "flowers102",
    resume: FlagCreatePairsOff[bool] = False,
    minutes: float | None = None,
    images_seen: int | None = None,
    bad_images: Literal["error", "skip"] = "error",
    export: Literal["target", "context"] = "target",
) -> None:
    """Pretrain a model on your own images with MIM-JEPA, no labels needed.

    For example:

        scott pretrain --data photos --out runs/photos --recipe flowers102
        scott pretrain --data train --data more --out runs/both optim.epochs=100 model.name=scott_3_16
        scott pretrain --data photos --out runs/photos --recipe flowers102 --resume
        scott pretrain --data photos --out runs/photos --minutes 90 model.name=scott_3_16
        scott pretrain --data flowers102:downloads --out runs/flowers data.splits=train,val

    Several GPUs: accelerate launch -m scott_models.pretrain (docs/scaling.md).

    Args:
        changes: what differs from the recipe, as section.field=value.
        data: a folder of images, searched below too; or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT, hf:NAME; give
            the option again for more.
        out: run folder: recipe, metrics, checkpoints, a README, and at the end export/ for timm's "local-dir:".
        recipe: name of a recipe of the package, or the path of a TOML file.
        resume: go on with the run in --out from its last checkpoint.
        minutes: measure the speed first, then fit epochs and schedules into this time.
        images_seen: fit epochs and schedules to this many images instead.
        bad_images: what to do with images that cannot be used; either way all of them are listed.
        export: which encoder is exported at the end.
    """
    from . import pretrain as training

    training.pretrain(
        training.Recipe.load(recipe, changes),
        data,
        out,
        resume,
        budget=training.Budget.of(minutes, images_seen),
        skip_bad=bad_images == "skip",
        export=export,
    )


def embed(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    tokens: FlagCreatePairsOff[bool] = False,
    batch_size: int = 32,
) -> None:
    """Write the features of images to an .npz file: `names`, `features` (images, D) and, if asked, `tokens`.

    For example:

        scott embed photos --out features.npz
        scott embed a.jpg b.jpg --out two.npz --tokens
        scott embed photos --out features.npz --model local-dir:runs/photos/export

    Args:
        images: image files, or folders, searched below too.
        out: the file to write.
        model: any timm model with weights; SCOTT's are listed by `scott list`.
        tokens: also write the features of the patches, `tokens` (images, patches, D), row by row.
        batch_size: images a forward pass takes.
    """
    from .features import embed

    count, dim = embed(images, out, model, tokens=tokens, batch_size=batch_size)
    print(f"{out}: {count} images, {dim} features each, by {model}")


def probe(
    *,
    model: str = "scott_3_16",
    train: Sources = [],  # noqa: B006 -- tyro's way to say that an option may be given again or not at all
    test: Sources,
    probes: tuple[Probe, ...] = PROBES,
    protocol: Literal["fast", "paper"] = "fast",
    seeds: int = 1,
    img_size: int | None = None,
    control: bool = True,
    duplicates: bool = True,
    export: Path | None = None,
    features: Path | None = None,
    curve: Path | None = None,
    shots: tuple[int, ...] = SHOTS,
    beside: Sources = [],  # noqa: B006
    zero_shot_neighbours: FlagCreatePairsOff[bool] = False,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Score a model's frozen features beside the same model with random weights.

    For example:

        scott probe --train flowers102/train --train flowers102/val --test flowers102/test
        scott probe --train flowers102:downloads --test flowers102:downloads --seeds 3
        scott probe --model runs/photos --train mine/train --test mine/test --probes knn linear
        scott probe --model vit_small_patch14_reg4_dinov2.lvd142m --img-size 224 --train mine/train --test mine/test
        scott probe --protocol paper --probes attentive --train mine/train --test mine/test
        scott probe --export classifier --train mine/train --test mine/test
        scott probe --features features.npz --train mine/train --test mine/test
        scott probe --curve curve.png --shots 1 2 5 10 --train mine/train --test mine/test
        scott probe --zero-shot-neighbours --test mine

    Args:
        model: any timm model with weights, or the folder of a run.
        train: a folder with a folder of images for each class, or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT,
            hf:NAME; give the option again for more. Of a source with splits train and val are taken.
        test: the same, for testing. Of a source with splits test is taken.
        probes: what is put on the features: the 10 nearest neighbours, a ridge classifier, a linear layer, attention.
        protocol: paper trains heads for 100 epochs of fresh augmented views; fast computes a few views once.
        seeds: how often all that is random is drawn; the table then has means and standard deviations.
        img_size: pixels; by default the size the weights were trained at.
        control: score random weights too.
        duplicates: look for test images among the training images.
        export: a folder for the model with its head, which timm's "local-dir:" loads.
        features: an .npz file for the features behind the scores: `train` (views, images, D), `test`, labels, names.
        curve: instead, a picture of the accuracy with few labelled images a class; five draws of them each.
        shots: images a class of that curve; all is always its last point.
        beside: another model of that curve; give the option again for more.
        zero_shot_neighbours: instead, how well images of --test find their class among each other, without training.
        json: print JSON instead of a table.
    """
    from . import probe as probing

    of_scores = {"--probes": probes != PROBES, "--protocol": protocol != "fast", "--no-duplicates": not duplicates}
    of_files = {"--export": export, "--features": features}
    of_curve = {"--shots": shots != SHOTS, "--beside": beside}
    if curve:
        _refuse("--curve", of_scores, of_files, {"--seeds": seeds != 1, "--zero-shot-neighbours": zero_shot_neighbours})
        from .curve import blank_picture, draw_curve, label_efficiency

        blank_picture(curve)
        points = label_efficiency([model, *beside], train, test, shots=shots, img_size=img_size, control=control)
        draw_curve(points, curve)
        _show([asdict(point) for point in points], json)
        return
    if zero_shot_neighbours:
        _refuse("--zero-shot-neighbours", of_scores, of_files, of_curve, {"--train": train})
        found = probing.retrieve(model, test, seeds=seeds, img_size=img_size, control=control)
        _show([asdict(row) for row in found], json)
        return
    _refuse("probe without --curve", of_curve)
    report = probing.probe(
        model,
        train,
        test,
        kinds=probes,
        protocol=protocol,
        seeds=seeds,
        img_size=img_size,
        control=control,
        duplicates=duplicates,
        export=export,
        features=features,
    )
    if json:
        _print_json(asdict(report))
    else:
        _show([asdict(score) for score in report.scores], False)


def _refuse(command: str, *options: Mapping[str, object]) -> None:
    """Options that were given and that a command would ignore."""
    if given := [name for group in options for name, value in group.items() if value]:
        raise UserError(f"{command} has no use for {', '.join(given)}; leave that out")


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
) -> None:
    """Train a classifier of your own classes, from weights or from scratch.

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
    """
    from . import finetune as finetuning
    from .pretrain import Budget

    accuracy = finetuning.finetune(
        finetuning.FinetuneRecipe.load(recipe, changes),
        train,
        test,
        out,
        resume,
        budget=Budget.of(minutes, None),
        skip_bad=bad_images == "skip",
    )
    print(accuracy)


def list_models(*, json: FlagCreatePairsOff[bool] = False) -> None:
    """List models and their weights: parameters, data, measured accuracy, and where the weights would come from.

    For example:

        scott list
        scott list --json

    Args:
        json: print JSON instead of a table.
    """
    from .weights import zoo

    _show(zoo(), json)


def bench(
    models: Positional[tuple[str, ...]] = ("scott_12_16", "vit_small_patch16_224"),
    /,
    *,
    task: tuple[Literal["inference", "step", "inputs"], ...] = ("inference",),
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16"),
    batch_size: tuple[int, ...] = (16,),
    img_size: int = 224,
    compiled: FlagCreatePairsOff[bool] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    reference: Path | None = None,
    rounds: int = 5,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Measure images a second and memory on this machine, each as a share of what its matrix products reach.

    For example:

        scott bench
        scott bench scott_3_16 scott_12_16 resnet50 --batch-size 1 64
        scott bench scott_12_16 --task step --precision bf16 --compiled
        scott bench scott_12_16 --task inference step --reference checkout-of-the-original

    Args:
        models: ours or any of timm's; a step and its inputs are ours alone.
        task: inference; step, MIM-JEPA's loss, gradients and update; inputs, what a step is fed with; one or more.
        precision: bf16 is the weights' own in inference, autocast in a step.
        batch_size: images at once.
        img_size: pixels.
        compiled: also by torch.compile, which takes a minute before a step.
        device: auto is the GPU if there is one.
        reference: a checkout of the authors' code, measured beside ours, in fp32 and uncompiled, as it is.
        rounds: turns of every contender; the median counts.
        json: print JSON instead of a table.
    """
    from .bench import everything

    device = device if device != "auto" else "cuda" if _has_cuda() else "cpu"
    results = everything(models, task, precision, batch_size, img_size, compiled, device, reference, rounds)
    _show([result.row() for result in results], json)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _show(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    table = Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold")  # never cut a name short
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_models,
    "embed": embed,
    "probe": probe,
    "pretrain": pretrain,
    "finetune": finetune,
    "bench": bench,
}


def main() -> None:
    """Run one subcommand; what the user can mend is one sentence on standard error and exit status 2."""
    with told_in_a_sentence():
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="scott", description="Small vision transformers for people who have few images."
        )
