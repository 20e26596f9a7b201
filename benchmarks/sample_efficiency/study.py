"""Compare objectives, supervised training from scratch and random weights, on few and on many images.

python benchmarks/sample_efficiency/study.py --scale cpu --data flowers102 --out benchmarks/sample_efficiency/results
python benchmarks/sample_efficiency/study.py --scale gpu --data flowers102 --out results --seeds 3
python benchmarks/sample_efficiency/study.py --table benchmarks/sample_efficiency/results

DATA is Oxford Flowers-102, a folder with train, val and test. An objective pretrains without labels on 10, 25 and 100 %
of all 8,189 images, and all runs see equally many images. Supervised training uses the labels of those of these images
that are in train or val. Then each encoder is frozen and probed with all labels of train and val, and scored on test.
OUT has a folder for each scale, with one file for each cell of the table. Finished cells are not repeated, and an
interrupted run continues. --table writes the results and pictures to docs/RESULTS.md.

--scenes tests whether an image must show one thing in its middle. Each objective pretrains on the central squares of
the images, and on as many mosaics of four squares. Mosaics also have smaller things and seams, so each objective also
pretrains on mosaics that show one square four times.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import timm
import torch
from PIL import Image, ImageOps

from scott_models.data.images import load_image
from scott_models.data.sources import Sample, find_samples
from scott_models.errors import DataError, report_user_errors
from scott_models.finetune.recipe import FinetuneRecipe
from scott_models.finetune.train import finetune
from scott_models.pretrain import Recipe, pretrain
from scott_models.pretrain.recipe import OBJECTIVES
from scott_models.probes.evaluate import probe
from scott_models.progress import track
from scott_models.training.run_folder import count_seconds
from scott_models.weights import export
from scott_models.weights.local_dir import folder_written_whole

PAGE = Path(__file__).parents[2] / "docs" / "RESULTS.md"
PICTURES = PAGE.parent / "pictures"
BEGIN, END = "<!-- made by benchmarks/sample_efficiency/study.py -->\n", "<!-- end of the study -->\n"
SHARES = ("0.1", "0.25", "1")  # of all images
SCENES = ("squares", "mosaics", "repeated")
SUPERVISED, RANDOM = "supervised", "random weights"
METHODS = (*OBJECTIVES, SUPERVISED)
PROBES = ("knn", "linear", "attentive")


@dataclass(frozen=True)
class Scale:
    """Hold the settings that all cells share; `settings` apply to pretraining and to supervised training."""

    model: str
    img_size: int
    images_seen: int
    batch_size: int
    words: int
    settings: tuple[str, ...]


DRY = tuple(f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path"))
CPU = Scale("scott_3_16", 64, 40_960, 64, 1024, (*DRY, "data.short_side=96", "optim.lr_scaling=none"))
SCALES = {
    "cpu": CPU,
    "cpu-long": replace(CPU, images_seen=4 * CPU.images_seen),
    "gpu": Scale("scott_12_16", 224, 300 * 8189, 128, 8192, ()),
    "toy": Scale("scott_3_16", 32, 24, 4, 20, (*DRY, "data.short_side=36")),
}


def subset(samples: Sequence[Sample], root: Path, share: float, seed: int, folder: Path) -> Path:
    """Make a folder of links to a share of the images, by split and class; a larger share contains a smaller one."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    for i in order[: round(share * len(samples))]:
        path = Path(str(samples[i].image))
        link = folder / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
    return folder


def scenes(kind: str, samples: Sequence[Sample], side: int, seed: int, folder: Path) -> Path:
    """Make as many pictures of `side` pixels as there are images, and return the folder of the pictures.

    Args:
        kind: "squares": the central square of each image; "mosaics": four of these squares at half the size;
            "repeated": one square at half the size, four times.
    """
    if folder.is_dir():
        return folder
    part = side if kind == "squares" else side // 2
    shown = track(samples, kind, total=len(samples))
    parts = [ImageOps.fit(load_image(sample.image), (part, part)) for sample in shown]
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed)).tolist()
    with folder_written_whole(folder) as partial:
        for place, i in enumerate(order):
            others = [order[(place + k) % len(order)] for k in range(4)] if kind == "mosaics" else 4 * [i]
            scene = Image.new("RGB", (side, side))
            for k, other in enumerate(others):  # with "squares", the first covers the whole scene
                scene.paste(parts[other], (k % 2 * part, k // 2 * part))
            scene.save(partial / f"{i:05d}.png", compress_level=1)
    return folder


def epochs_of(scale: Scale, images: int) -> list[str]:
    """Return the settings of epochs with which `images` images give the scale's updates, a tenth of them as warm-up."""
    epochs = scale.images_seen / (images // scale.batch_size * scale.batch_size)
    return [f"optim.epochs={epochs:.6f}", f"optim.warmup_epochs={epochs / 10:.6f}"]


def sources(method: str, images: Path) -> list[Path]:
    """Return the folders to train a method on: train and val for supervised training, otherwise the whole folder."""
    labelled = [images / split for split in ("train", "val") if (images / split).is_dir()]
    return labelled if method == SUPERVISED else [images]


def train(method: str, images: Path, scale: Scale, seed: int, run: Path, changes: Sequence[str] = ()) -> None:
    """Train a run from the start, or continue it; `changes` are settings of pretraining that override the others."""
    found = sources(method, images)
    common = [f"model.name={scale.model}", f"model.img_size={scale.img_size}", f"run.seed={seed}"]
    common += [f"optim.batch_size={scale.batch_size}", *scale.settings]
    common += epochs_of(scale, len(find_samples(found)))
    if method == SUPERVISED:
        recipe = FinetuneRecipe.load("scratch", [*common, f"monitor.every={scale.images_seen}"])
        finetune(recipe, found, found, run, resume=True)  # a small share lacks some classes of test
        return
    own = [*OBJECTIVES[method], f"objective.words={scale.words}", "monitor.every=0"]
    if scale.images_seen < 300 * 8189:  # a short run needs a faster target encoder (docs/RESULTS.md)
        own += ["optim.start_ema=0.99", "optim.final_ema=0.998"]
    pretrain(Recipe.load("flowers102", [*own, *common, *changes]), found, run, resume=True)


def cell(method: str, kind: str, seed: int, flowers: Path, scale: Scale, work: Path, out: Path) -> None:
    """Train and probe a method, and write the result to `out`; do nothing if `out` has the result.

    Args:
        kind: the images: a share of all images, or one of SCENES.

    Raises:
        DataError: `out` has a result of another scale.
    """
    name = f"{method}-{kind}-{seed}"
    file, run = out / f"{name}.json", work / name
    if done(file, scale):
        return
    samples, folder = find_samples([flowers]), work / f"images-{kind}-{seed}"
    if kind in SCENES:
        images = scenes(kind, samples, 2 * scale.img_size, seed, folder)
    else:
        images = subset(samples, flowers, float(kind), seed, folder)
    train(method, images, scale, seed, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = {
        "method": method,
        "kind": kind,
        "images": len(find_samples(sources(method, images))),
        "seed": seed,
        "scale": asdict(scale),
        "minutes": round(count_seconds(lines, scale.batch_size) / 60, 1),
        "scores": scores(str(run), flowers),
    }
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def untrained(seed: int, flowers: Path, scale: Scale, work: Path, out: Path) -> None:
    """Probe random weights, and write the result to `out`; do nothing if `out` has the result."""
    name = f"random-0-{seed}"
    file = out / f"{name}.json"
    if done(file, scale):
        return
    torch.manual_seed(seed)
    model = timm.create_model(scale.model, img_size=scale.img_size)
    folder = export(model, work / name, dtype=torch.float32)
    result = {"method": RANDOM, "kind": "0", "images": 0, "seed": seed, "scale": asdict(scale), "minutes": 0}
    result["scores"] = scores(f"local-dir:{folder}", flowers)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def done(file: Path, scale: Scale) -> bool:
    """Return True if a cell's result exists; otherwise print the name of the cell and return False.

    Raises:
        DataError: the result is of another scale.
    """
    if not file.exists():
        print(f"== {file.stem}", flush=True)
        return False
    if (its := json.loads(file.read_text(encoding="utf-8"))["scale"]) != json.loads(json.dumps(asdict(scale))):
        raise DataError(f"{file}: expected a result of this scale, found one of {its}; choose another --out")
    return True


def scores(model: str, flowers: Path) -> dict[str, float]:
    """Compute top-1 % on test, by probe."""
    report = probe(model, [flowers], [flowers], kinds=PROBES, control=False, duplicates=False)
    return {score.probe: score.top1 for score in report.scores}


Results = dict[tuple[str, str], list[dict[str, Any]]]


def gathered(out: Path, kinds: Sequence[str]) -> Results:
    """Read the results of all seeds by method and kind of images, in the order of the table."""
    found: Results = {}
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    order = [RANDOM, SUPERVISED, *reversed(OBJECTIVES)]
    for kind in ("0", *kinds):
        of_kind = [result for result in results if result["kind"] == kind]
        for result in sorted(of_kind, key=lambda result: (order.index(result["method"]), result["seed"])):
            found.setdefault((result["method"], kind), []).append(result)
    return found


def table(found: Results, first: str) -> str:
    """Make a row for each method and kind of images, with means and standard deviations over the seeds."""
    head = [first, "objective", "seeds", *PROBES, "minutes of a run"]
    rows = [head, ["---"] * len(head)]
    for (method, kind), results in found.items():
        cells = []
        for probe_kind in PROBES:
            each = [result["scores"][probe_kind] for result in results]
            cells.append(f"{mean(each):.1f}" + (f" ± {stdev(each):.1f}" if len(each) > 1 else ""))
        share = kind if kind in SCENES else f"{float(kind):.0%}"
        count = f"{round(mean(result['images'] for result in results)):,}"  # the number of labels depends on the seed
        images = f"{share}: {count} {'labelled' if method == SUPERVISED else 'images'}" if results[0]["images"] else "-"
        minutes = f"{mean(result['minutes'] for result in results):.0f}"
        rows.append([images, method, str(len(results)), *cells, minutes])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace(" --- ", "---")


def draw(found: Results, file: Path) -> None:
    """Draw the results as a picture: a panel for each probe, a line for each objective."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(PROBES), sharey=True), PROBES):
        for method in dict.fromkeys(method for method, _ in found):
            line = [results for (its, _), results in found.items() if its == method]
            scores = [[result["scores"][kind] for result in results] for results in line]
            if method == RANDOM:
                axes.axhline(mean(scores[0]), color="0.6", linestyle=":", label=method)
                continue
            spread = [stdev(each) if len(each) > 1 else 0 for each in scores]
            shares = [100 * float(results[0]["kind"]) for results in line]
            axes.errorbar(shares, [mean(each) for each in scores], spread, marker="o", capsize=2, label=method)
        axes.set(title=kind, xlabel="% of the images", xscale="log")
        ticks = [100 * float(share) for share in SHARES]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("top-1 % on test")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(file, dpi=120)


def fill(out: Path, page: Path = PAGE, pictures: Path = PICTURES) -> None:
    """Write the tables of all scales between the page's two marks, and a picture of each scale with several shares."""
    blocks = []
    for name, scale in SCALES.items():
        shares, of_scenes = gathered(out / name, SHARES), gathered(out / name, SCENES)
        if shares:
            what = f"{scale.model}, {scale.img_size} px, {scale.images_seen:,} images seen"
            blocks += [f"{what} (`--scale {name}`):\n", table(shares, "trained on")]
        if len({kind for _, kind in shares} - {"0"}) > 1:
            picture = pictures / f"sample_efficiency_{name}.png"
            draw(shares, picture)
            shown = "Top-1 by the share of the images, a line for each objective"
            blocks.append(f"![{shown}](pictures/{picture.name})\n")
        if any(kind in SCENES for _, kind in of_scenes):
            blocks.append(table(of_scenes, "images are"))
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{chr(10).join(blocks)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--data", type=Path, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: OUT with -work at its end")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; default 1")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shares", nargs="+", choices=SHARES, default=SHARES)
    parser.add_argument("--scenes", action="store_true", help="train on squares and mosaics instead of shares")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="only fill docs/RESULTS.md")
    given = parser.parse_args()
    if given.table:
        fill(given.table)
        return
    if given.data is None or given.out is None:
        parser.error("expected --data and --out, or --table")
    out = given.out / given.scale
    work = (given.work or given.out.with_name(f"{given.out.name}-work")) / given.scale
    for folder in (out, work):
        os.makedirs(folder, exist_ok=True)
    with report_user_errors():
        for seed in range(given.seeds):
            untrained(seed, given.data, SCALES[given.scale], work, out)
            for kind in SCENES if given.scenes else given.shares[::-1]:
                for method in [m for m in given.methods if not (given.scenes and m == SUPERVISED)]:
                    cell(method, kind, seed, given.data, SCALES[given.scale], work, out)


if __name__ == "__main__":
    main()
