"""Commands that say what a model is worth."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from ..errors import UserError
from .output import Sources, print_json, print_result, show_table

# As in probe.py and curve.py, whose import takes seconds that --help should not.
Probe = Literal["knn", "ridge", "linear", "attentive"]
PROBES: tuple[Probe, ...] = ("knn", "ridge", "linear", "attentive")
SHOTS = (1, 5, 10)  # images a class


def embed(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    tokens: FlagCreatePairsOff[bool] = False,
    batch_size: int = 32,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Write the features of images to an .npz file.

    It holds `names`, `features` (images, D) and, if asked, `tokens`.

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
        json: print JSON instead of a sentence.
    """
    from ..probes.features import embed

    count, dim = embed(images, out, model, tokens=tokens, batch_size=batch_size)
    facts = {"out": out, "images": count, "features": dim, "model": model}
    print_result(f"{out}: {count} images, {dim} features each, by {model}", facts, json)


def probe(
    *,
    model: str = "scott_3_16",
    train: Sources = [],  # noqa: B006
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
    """Score frozen features, beside those of random weights.

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
    from ..probes import evaluate as probing

    of_scores = {"--probes": probes != PROBES, "--protocol": protocol != "fast", "--no-duplicates": not duplicates}
    of_files = {"--export": export, "--features": features}
    of_curve = {"--shots": shots != SHOTS, "--beside": beside}
    if curve:
        _refuse("--curve", of_scores, of_files, {"--seeds": seeds != 1, "--zero-shot-neighbours": zero_shot_neighbours})
        from ..probes.label_efficiency import check_picture, draw_curve, measure_label_efficiency

        check_picture(curve)
        points = measure_label_efficiency(
            [model, *beside], train, test, shots=shots, img_size=img_size, control=control
        )
        draw_curve(points, curve)
        show_table([asdict(point) for point in points], json)
        return
    if zero_shot_neighbours:
        _refuse("--zero-shot-neighbours", of_scores, of_files, of_curve, {"--train": train})
        found = probing.retrieve(model, test, seeds=seeds, img_size=img_size, control=control)
        show_table([asdict(row) for row in found], json)
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
        print_json(asdict(report))
    else:
        show_table([asdict(score) for score in report.scores], False)


def _refuse(command: str, *options: Mapping[str, object]) -> None:
    """Options that were given and that a command would ignore."""
    if given := [name for group in options for name, value in group.items() if value]:
        raise UserError(f"{command} has no use for {', '.join(given)}; leave that out")


def report(
    sources: Positional[list[Path]],
    /,
    *,
    out: Path | None = None,
    neighbours: bool = True,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Show a run, or a probe's results, as one HTML page.

    The verdict comes first, then curves, what the run sees, and where its recipe differs from the paper's. The file
    needs no network and no other file; it may show images of yours.

    For example:
        scott report runs/photos
        scott probe --model runs/photos --train mine/train --test mine/test --json > scores.json
        scott probe --curve curve.png --model runs/photos --train mine/train --test mine/test --json > curve.json
        scott report runs/photos scores.json curve.json --out page.html

    Args:
        sources: the folder of a run, under way too, and files that `scott probe --json` printed; at least one of them.
        out: the page; by default report.html in the run's folder, or beside the first file.
        neighbours: also show which of the run's images its model finds alike.
        json: print JSON instead of a sentence.
    """
    from ..report import write_report

    page = write_report(sources, out, neighbours=neighbours)
    print_result(str(page), {"out": page}, json)
