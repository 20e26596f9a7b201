"""Commands that evaluate a model: `scott embed`, `scott probe` and `scott report`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import FlagCreatePairsOff, Positional

from ..errors import UserError
from .output import BadImages, Sources, print_json, print_result, show_table

# Repeated from probes/evaluate.py and probes/label_efficiency.py: importing those takes seconds, which --help must not.
Probe = Literal["knn", "ridge", "linear", "attentive"]
PROBES: tuple[Probe, ...] = ("knn", "ridge", "linear", "attentive")
SHOTS = (1, 5, 10)  # labelled images per class


def embed(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    tokens: FlagCreatePairsOff[bool] = False,
    batch_size: int = 32,
    bad_images: BadImages = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Write the features of images to an .npz file.

    The file holds `names`, `features` (images, D) and, with --tokens, `tokens` (images, patches, D).

    For example:
        scott embed photos --out features.npz
        scott embed a.jpg b.jpg --out two.npz --tokens
        scott embed photos --out features.npz --model local-dir:runs/photos/export

    Args:
        images: image files, or folders that are searched recursively.
        out: the .npz file to write.
        model: name of any timm model with weights, local-dir:FOLDER, or the folder of a run.
            `scott list` lists SCOTT's models.
        tokens: also write the features of the patches as `tokens`, in row-major order.
        batch_size: number of images per forward pass.
        bad_images: error stops at images that cannot be used, and lists all of them; skip leaves them out.
        json: print JSON instead of a sentence.
    """
    from ..probes.features import embed

    count, dim = embed(images, out, model, tokens=tokens, batch_size=batch_size, skip_bad=bad_images == "skip")
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
    bad_images: BadImages = "error",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Score frozen features, compared with random weights.

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
        model: name of any timm model with weights, local-dir:FOLDER, or the folder of a run.
        train: a folder with one folder of images per class, or flowers102:ROOT, pets37:ROOT, imagenet100:ROOT, hf:NAME.
            Repeat the option for more sources. If a source has training and test splits, train and val are used.
        test: test images, given as for --train. If a source has training and test splits, test is used.
        probes: classifiers on top of the features: knn (the 10 nearest neighbours), ridge (a ridge classifier),
            linear (a linear layer), attentive (attention over the patches).
        protocol: paper trains the linear and attentive heads for 100 epochs, with new augmented views in each epoch;
            fast computes the features of a few augmented views once.
        seeds: number of random seeds. With several, the table shows means, and the standard deviation of top-1.
        img_size: image size in pixels; by default the size the weights were trained at.
        control: also score the same model with random weights.
        duplicates: search the training images for copies of test images.
        export: folder to write the model with its trained head to, for timm's "local-dir:".
        features: .npz file to write the features behind the scores to:
            `train` (views, images, D), `test` (images, D), labels and names.
        curve: instead, draw the accuracy with few labelled images per class into this picture (.png, .svg or .pdf).
            Each number of images is sampled five times.
        shots: numbers of images per class in that curve; its last point always uses all images.
        beside: another model in that curve; repeat the option for more models.
        zero_shot_neighbours: instead, measure how well each image of --test retrieves the others of its class,
            without training (mean average precision).
        bad_images: error stops at images that cannot be used, and lists all of them; skip leaves them out.
        json: print JSON instead of a table.
    """
    from ..probes import evaluate

    skip_bad = bad_images == "skip"
    score_options = {"--probes": probes != PROBES, "--protocol": protocol != "fast", "--no-duplicates": not duplicates}
    file_options = {"--export": export, "--features": features}
    curve_options = {"--shots": shots != SHOTS, "--beside": beside}
    if curve:
        other_options = {"--seeds": seeds != 1, "--zero-shot-neighbours": zero_shot_neighbours}
        _refuse("--curve", score_options, file_options, other_options)
        from ..probes.label_efficiency import check_picture, draw_curve, measure_label_efficiency

        check_picture(curve, [*train, *test])
        points = measure_label_efficiency(
            [model, *beside], train, test, shots=shots, img_size=img_size, control=control, skip_bad=skip_bad
        )
        draw_curve(points, curve)
        show_table([asdict(point) for point in points], json)
        return
    if zero_shot_neighbours:
        _refuse("--zero-shot-neighbours", score_options, file_options, curve_options, {"--train": train})
        found = evaluate.retrieve(model, test, seeds=seeds, img_size=img_size, control=control, skip_bad=skip_bad)
        show_table([asdict(row) for row in found], json)
        return
    _refuse("probe without --curve", curve_options)
    report = evaluate.probe(
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
        skip_bad=skip_bad,
    )
    if json:
        print_json(asdict(report))
    else:
        show_table([asdict(score) for score in report.scores], False)


def _refuse(command: str, *options: Mapping[str, object]) -> None:
    """Raise UserError for options that were given but that a command would ignore."""
    if given := [name for group in options for name, value in group.items() if value]:
        raise UserError(f"{command} does not use {', '.join(given)}; leave it out")


def report(
    sources: Positional[list[Path]],
    /,
    *,
    out: Path | None = None,
    neighbours: bool = True,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Write an HTML page about a run, or about probe results.

    The page begins with a verdict. Curves, pictures of the features, and settings that differ from the paper follow.
    The file needs no network and no other files. It may show some of your images.

    For example:
        scott report runs/photos
        scott probe --model runs/photos --train mine/train --test mine/test --json > scores.json
        scott probe --curve curve.png --model runs/photos --train mine/train --test mine/test --json > curve.json
        scott report runs/photos scores.json curve.json --out page.html

    Args:
        sources: the folder of a run, and files that `scott probe --json` printed; at least one of them.
            The run may still be in progress.
        out: the .html file to write; by default report.html in the run's folder, or next to the first file.
        neighbours: also show nearest neighbours among the run's images, found by its model.
        json: print JSON instead of a sentence.
    """
    from ..report import write_report

    page = write_report(sources, out, neighbours=neighbours)
    print_result(str(page), {"out": page}, json)
