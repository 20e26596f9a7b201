"""The `scott` command: each subcommand calls one function of the package."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import reduce
from json import dumps, loads
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, subcommand

from .errors import UserError, told_in_a_sentence

NUMBERS = re.compile(r"\[\n\s+[-+.\deE]+(,\s+[-+.\deE]+)*\s+\]")  # a list of them, which goes on one line
NO_LIMIT = 100_000  # characters of a line that no terminal shows
Sources = Annotated[list[str], UseAppendAction]
# As in probe.py and curve.py, whose import takes seconds that --help should not.
Probe = Literal["knn", "ridge", "linear", "attentive"]
PROBES: tuple[Probe, ...] = ("knn", "ridge", "linear", "attentive")
SHOTS = (1, 5, 10)  # images a class


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
    from . import pretrain as training
    from .pretrain.recipe import OBJECTIVES

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
        _print_json({"export": exported, "health": looks[-1] if looks else None})


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
    from .features import embed

    count, dim = embed(images, out, model, tokens=tokens, batch_size=batch_size)
    facts = {"out": out, "images": count, "features": dim, "model": model}
    _tell(f"{out}: {count} images, {dim} features each, by {model}", facts, json)


def pca(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    img_size: int | None = None,
    look: Literal["smooth", "blocky"] = "smooth",
    token_map: Path | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw what patches have in common, as colours.

    These are principal components of their features over all images.

    For example:
        scott pca a.jpg b.jpg c.jpg --out picture.png --img-size 448
        scott pca photos --out picture.png --model runs/photos --look blocky
        scott pca photos --out picture.png --model vit_small_patch14_reg4_dinov2.lvd142m --img-size 448

    A row for each image: what the model saw, the first component of all patches, which of them are foreground, and
    three components of the foreground as red, green and blue. The same colour means the same thing in all of them.

    Args:
        images: image files, or folders, searched below too; alike ones give the clearest pictures.
        out: the picture to write, .png, .jpg or .webp.
        model: any timm model with patch tokens, or the folder of a run.
        img_size: pixels, in whole patches; more of them make finer maps; by default what the weights were trained at.
        look: smooth goes from patch to patch bit by bit; blocky shows the patches.
        token_map: an .npz file for names, features, first component, foreground and colours of the patches.
        json: print JSON instead of a sentence.
    """
    from .pca import draw_pca

    drawn = draw_pca(images, out, model, img_size=img_size, look=look, token_map=token_map).first
    count, *patches = drawn.shape
    _tell(str(out), {"out": out, "token_map": token_map, "images": count, "patches": patches, "model": model}, json)


def attention(
    images: Positional[list[Path]],
    /,
    *,
    out: Path,
    model: str = "scott_3_16",
    img_size: int | None = None,
    block: int = -1,
    look: Literal["smooth", "blocky"] = "smooth",
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw how much attention each patch gets, head by head.

    For example:
        scott attention a.jpg b.jpg --out attention.png --img-size 448
        scott attention photos --out attention.png --model runs/photos --block 0

    Args:
        images: image files, or folders, searched below too.
        out: the picture to write, .png, .jpg or .webp; every map is as bright as its brightest patch.
        model: one of ours, or the folder of a run.
        img_size: pixels, in whole patches; by default what the weights were trained at.
        block: which transformer block; negative ones count from the last.
        look: smooth goes from patch to patch bit by bit; blocky shows the patches.
        json: print JSON instead of a sentence.
    """
    from .attend import draw_attention

    count, heads, *patches = draw_attention(images, out, model, img_size=img_size, block=block, look=look).shape
    facts = {"out": out, "images": count, "heads": heads, "patches": patches, "block": block, "model": model}
    _tell(str(out), facts, json)


def neighbours(
    queries: Positional[list[Path]],
    /,
    *,
    gallery: Annotated[list[Path], UseAppendAction],
    out: Path | None = None,
    model: str = "scott_3_16",
    count: int = 8,
    img_size: int | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Find the images of a gallery that are most like yours.

    Likeness is the cosine of what a model pools two images to.

    For example:
        scott neighbours a.jpg b.jpg --gallery photos --out neighbours.png
        scott neighbours a.jpg --gallery photos --gallery more --count 3 --json

    Args:
        queries: image files, or folders, searched below too.
        gallery: the same; give the option again for more. A query is not its own neighbour.
        out: a picture to write, .png, .jpg or .webp, a row for each query.
        model: any timm model, or the folder of a run.
        count: neighbours of each.
        img_size: pixels; by default what the weights were trained at.
        json: print JSON instead of a table.
    """
    from .neighbours import draw_neighbours

    found = draw_neighbours(queries, gallery, out, model, count=count, img_size=img_size)
    rows = [asdict(near) for each in found for near in each]
    _show(rows if json else [{**row, "cosine": f"{row['cosine']:.3f}"} for row in rows], json)


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
    from .report import write_report

    page = write_report(sources, out, neighbours=neighbours)
    _tell(str(page), {"out": page}, json)


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
    from . import finetune as finetuning
    from .pretrain import Budget

    with redirect_stdout(sys.stderr if json else sys.stdout):
        accuracy = finetuning.finetune(
            finetuning.FinetuneRecipe.load(recipe, changes),
            train,
            test,
            out,
            resume,
            budget=Budget.of(minutes, None),
            skip_bad=bad_images == "skip",
        )
    _tell(str(accuracy), {"export": out / "export", **asdict(accuracy)}, json)


def list_models(*, json: FlagCreatePairsOff[bool] = False) -> None:
    """List models and weights, what they score and where they are.

    For example:
        scott list
        scott list --json

    Args:
        json: print JSON instead of a table.
    """
    from .weights import zoo

    _show(zoo(), json)


def download(
    names: Positional[tuple[str, ...]] = (),
    /,
    *,
    dir: Path | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Fetch and verify weights, for a machine without a network.

    For example:
        scott download
        scott download scott_3_16 --dir weights
        SCOTT_MODELS_DIR=weights HF_HUB_OFFLINE=1 python train.py

    Args:
        names: models or tags, as `scott list` shows them; all if none is given.
        dir: a folder for SCOTT_MODELS_DIR, here or on another machine; by default the Hub's cache, where it is needed.
        json: print JSON instead of a sentence.
    """
    from . import download as downloading
    from .manifest import entry_of, manifest

    found = []
    for tag in dict.fromkeys(downloading.tag_of(name) for name in names or manifest()):
        file = downloading.download(tag, dir)
        found.append({"tag": tag, "file": file, "sha256": entry_of(tag)["sha256"]})
        if not json:
            _print(f"{tag}: verified, {file}")
    if json:
        _print_json(found)
    elif dir:
        _print(f"use it with SCOTT_MODELS_DIR={shlex.quote(str(dir.resolve()))}")


def publish(
    source: Positional[Path],
    /,
    *,
    repo_id: str,
    tag: str | None = None,
    license: str | None = None,
    data: str | None = None,
    data_terms: str | None = None,
    scores: Path | None = None,
    picture: Path | None = None,
    manifest: Path | None = None,
    private: FlagCreatePairsOff[bool] = False,
    dry_run: FlagCreatePairsOff[bool] = False,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Upload a run to the Hugging Face Hub, with a model card.

    A model's folder will do too; what was uploaded is read back and compared.

    For example:
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --dry-run
        scott probe --model runs/photos --train mine/train --test mine/test --json > s.json
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --picture pca.png --scores s.json
        scott publish weights/scott_3_16.mimjepa_flowers102_cpu --repo-id org/scott_3_16.mimjepa_flowers102_cpu

    It needs a token that may write: `hf auth login`, or HF_TOKEN.

    Args:
        source: a run of `scott pretrain` that has ended, the folder of a release, or a timm folder with a README.md.
        repo_id: organisation/name; it is made if it is not there.
        tag: the manifest's name for the weights; by default the repository's, with the model's in front.
        license: of the weights, e.g. apache-2.0.
        data: what a run was trained on, in words; by default how many images of which folders.
        data_terms: what the data allow.
        scores: a file with what `scott probe --json` printed; by default what the run's monitor measured.
        picture: of the card, as `scott pca` draws one; it may show images of yours.
        manifest: a file the entry is written into; by default the checkout's weights_manifest.json, if this is one.
        private: whether a new repository is.
        dry_run: show everything, upload nothing.
        json: print JSON instead of sentences.
    """
    from .publish import publish as publish_release

    facts: dict[str, Any] = {"license": license, "data": data, "data_terms": data_terms, "scores": scores}
    facts["picture"] = picture
    options: dict[str, Any] = {"tag": tag, "manifest_file": manifest, "private": private, "dry_run": dry_run}
    done = publish_release(source, repo_id, **options, **facts)
    _tell(str(done), done.facts(), json)


def convert(
    checkpoint: Positional[Path],
    /,
    *,
    out: Path,
    num_heads: int | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Turn a checkpoint of the authors' code into a timm folder.

    For example:
        scott convert logs/target-encoder_checkpoint.pth --out scott_12_16
        scott convert target-encoder_checkpoint.pth --num-heads 4 --out scott_12_16
        scott embed photos --out features.npz --model local-dir:scott_12_16
        scott pretrain --init local-dir:scott_12_16 model.num_heads=4 --data photos --out runs/photos

    Args:
        checkpoint: context-encoder, target-encoder or predictor, .pth; only tensors are read of it.
        out: a new folder, or that of an earlier conversion.
        num_heads: of attention; by default what config.yaml beside the checkpoint says.
        json: print JSON instead of a sentence.
    """
    from .convert import convert as convert_checkpoint

    folder = convert_checkpoint(checkpoint, out, num_heads=num_heads)
    _tell(f"{folder}: converted", {"checkpoint": checkpoint, "out": folder}, json)


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
    """Measure images a second and memory on this machine.

    Speeds stand beside what the machine's matrix products reach.

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


def doctor(*, speed: bool = True, json: FlagCreatePairsOff[bool] = False) -> None:
    """Show what this machine can do, and what is wrong with it.

    Versions, GPU, bf16, caches, weights, and ten seconds of speed.

    For example:
        scott doctor
        scott doctor --no-speed --json

    Nothing is downloaded. Exit status 1 if something is wrong, e.g. damaged weights.

    Args:
        speed: whether to measure inference and pretraining for about ten seconds.
        json: print JSON instead of a table.
    """
    from .doctor import examine

    findings = examine(speed=speed)
    _show([asdict(finding) for finding in findings], json)
    if any(finding.state == "wrong" for finding in findings):
        sys.exit(1)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _show(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    terminal = sys.stdout.isatty()
    table = Table() if terminal else Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=not terminal)  # never cut a name short
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(width=None if terminal else NO_LIMIT)
    with console.capture() as text:
        console.print(table)
    _print("\n".join(line.rstrip() for line in text.get().splitlines()))


def _cell(value: object) -> Text:
    """As it is: of a bare string rich would take "[...]" and ":...:" for its own. Plain text has a row on each line."""
    text = f"{value:.1f}" if isinstance(value, float) else "-" if value in (None, "") else str(value)
    return Text(text if sys.stdout.isatty() else " ".join(text.splitlines()))


def _tell(sentence: str, facts: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
    else:
        _print(sentence)


def _print_json(value: object) -> None:
    text = dumps(value, indent=2, default=str)  # of what we print only paths are foreign to JSON
    _print(NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would complain at its end


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_models,
    "download": download,
    "embed": embed,
    "pca": pca,
    "attention": attention,
    "neighbours": neighbours,
    "probe": probe,
    "report": report,
    "pretrain": pretrain,
    "finetune": finetune,
    "publish": publish,
    "convert": convert,
    "bench": bench,
    "doctor": doctor,
}


DESCRIPTION = """Small vision transformers for people who have few images.

For example:
    scott list
    scott embed photos --out features.npz
    scott pca photos --out picture.png --img-size 448
    scott probe --train mine/train --test mine/test
    scott pretrain --data photos --out runs/photos --minutes 90
    scott finetune --train mine/train --test mine/test --out runs/mine
    scott COMMAND --help

Exit status:
    0    done
    1    something is wrong, or went wrong
    2    a mistake that you can put right, told in a sentence
    130  stopped, by Ctrl-C or SIGTERM

Shell completion, exit statuses, JSON: docs/commands.md
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; what the user can mend is one sentence on standard error and exit status 2.

    Args:
        arguments: the words after `scott`, by default those of the command line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    for decoration in ("utf8_boxes", "ansi_codes"):  # tyro asks of neither whether its errors go to a terminal
        tyro._experimental_options[decoration] = terminal
    commands: Any = reduce(
        or_,
        (
            Annotated[Any, subcommand(name, constructor=command, description=_described(command, words[:1] == [name]))]
            for name, command in COMMANDS.items()
        ),
    )
    with told_in_a_sentence():
        tyro.cli(commands, prog="scott", description=DESCRIPTION, args=words)


def _described(command: Callable[..., None], asked: bool) -> str | None:
    """Say what a command does, in a line where all are listed; where it is asked None, for its whole docstring."""
    return None if asked else str(command.__doc__).split("\n", maxsplit=1)[0]
