"""Try settings of a short run on a CPU, one at a time, beside plain MIM-JEPA, SplitMask and random weights.

python benchmarks/trial/trial.py --data flowers102 --out benchmarks/trial/results
python benchmarks/trial/trial.py --data flowers102 --out benchmarks/trial/results --crops 40960 --seeds 2 --only plain
python benchmarks/trial/trial.py --data flowers102 --out benchmarks/trial/results --speed
python benchmarks/trial/trial.py --table benchmarks/trial/results

DATA is Oxford Flowers-102, a folder with train, val and test. A row pretrains scott_3_16 at 64 px on all images without
labels. The features are scored on val with the labels of train; test is not used for scores. OUT takes one file for
each run. Finished runs are not repeated, and an interrupted run continues. A run of 40,960 crops takes about six
minutes on two cores with AVX512-bf16. --speed measures images a second of each row's updates, on a machine without
other work. --table writes the results to docs/RESULTS.md.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import timm
import torch
from settings import AFTER, COMMON, RAW, ROWS, name_of
from torch import nn

from scott_models.data.sources import find_samples
from scott_models.errors import report_user_errors
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.pretrain.train import Pretraining
from scott_models.probes.evaluate import probe
from scott_models.weights import export

PAGE = Path(__file__).parents[2] / "docs" / "RESULTS.md"
BEGIN, END = "<!-- made by benchmarks/trial/trial.py -->\n", "<!-- end of the trial -->\n"
RANDOM = "random weights"
CROPS = (40_960, 120_000)
LOOKS = 4  # number of looks of the monitor in a run
PROBES = ("knn", "ridge")
MEASURED = ("speeds.json", "dense.json")


def recipe_of(row: str, images: int, crops: int, seed: int, init: str = "") -> Recipe:
    """Make the recipe of a row for a number of images and of crops to see, a tenth of the crops as warm-up."""
    recipe = Recipe.load("flowers102", [*COMMON, *ROWS[row], f"run.seed={seed}", f'model.init="{init}"'])
    batch = recipe.optim.batch_size
    epochs = crops / (images // batch * batch)
    recipe = recipe.changed("monitor", every=epochs / LOOKS)
    return recipe.changed("optim", epochs=epochs, warmup_epochs=epochs / 10)


class RawRun(Pretraining):
    """Pretrain with the target encoder's features before its last norm; the monitor uses these features too."""

    def build_objective(self, recipe: Recipe, *, images: Callable[[], int], compiled: bool) -> nn.Module:
        objective = build_objective(recipe, images=images, compiled=compiled)
        objective.target_encoder.norm = nn.Identity()
        return objective


def train(row: str, flowers: Path, crops: int, seed: int, run: Path, init: str = "") -> list[dict[str, Any]]:
    """Begin or continue a pretraining, and return the looks of the monitor with the number of crops."""
    recipe = recipe_of(row, len(find_samples([flowers])), crops, seed, init)
    under_way = (RawRun if row == RAW else Pretraining)(recipe, [flowers], run, True, None, False, "target")
    under_way.train()
    under_way.export()
    return [{"crops": step * recipe.optim.batch_size, **asdict(look)} for step, look in under_way.log.health.items()]


def run_row(row: str, flowers: Path, crops: int, seed: int, work: Path, out: Path) -> None:
    """Train and score a row, and write the result to `out`; do nothing if `out` has the result."""
    name = name_of(row, crops, seed)
    if (file := out / f"{name}.json").exists():
        return
    print(f"== {name}", flush=True)
    result = {"row": row, "crops": crops, "seed": seed}
    run = work / name
    if row == RANDOM:
        torch.manual_seed(seed)
        model = timm.create_model("scott_3_16", img_size=64)
        scored = f"local-dir:{export(model, run, dtype=torch.float32)}"
    else:
        scored, init = str(run), ""
        if row in AFTER:
            first, second = AFTER[row]
            init = str(work / name_of(first, crops, seed))
            if not (Path(init) / "export").is_dir():
                train(first, flowers, crops, seed, Path(init))
            result["looks"] = train(second, flowers, crops, seed, run, init)
        else:
            result["looks"] = train(row, flowers, crops, seed, run)
    report = probe(scored, [flowers / "train"], [flowers / "val"], kinds=PROBES, control=False, duplicates=False)
    result["scores"] = {score.probe: score.top1 for score in report.scores}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure_speed(row: str, flowers: Path, work: Path) -> float:
    """Measure images a second of the updates of a row, averaged over the run."""
    recipe = recipe_of(row, len(find_samples([flowers])), CROPS[0], 0).changed("monitor", every=0.0)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run = Pretraining(recipe, [flowers], Path(folder), False, None, False, "target")
        return run.speed_after(0, run.measure_speeds())


def read_results(out: Path) -> list[dict[str, Any]]:
    """Read the results of all runs, in the order of the rows."""
    order = [RANDOM, *ROWS]
    files = sorted(out.glob("*-[0-9]*-[0-9]*.json"))
    return sorted(map(json.loads, map(Path.read_text, files)), key=lambda its: (order.index(its["row"]), its["seed"]))


def make_table(results: Sequence[dict[str, Any]], speeds: dict[str, float], dense: dict[str, float]) -> str:
    """Make a row for each setting: for each number of crops, the scores of all seeds and the mean of the last RankMe.

    Args:
        speeds: images a second of the measured rows.
        dense: scores of dense.py, in percent, of the measured rows.
    """
    lengths = sorted({its["crops"] for its in results})
    head = [
        "setting",
        "images/s",
        *(f"{what}, {n:,} crops" for n in lengths for what in ("kNN", "ridge", "RankMe")),
        "patches",
    ]
    lines = [head, ["---"] * len(head)]
    for row in dict.fromkeys(its["row"] for its in results):
        cells = [row, f"{speeds[row]:.0f}" if row in speeds else "-"]
        for crops in lengths:
            of_all = [its for its in results if its["row"] == row and its["crops"] == crops]
            for kind in PROBES:
                cells.append(" / ".join(f"{its['scores'][kind]:.1f}" for its in of_all) or "-")
            ranks = [its["looks"][-1]["rankme"] for its in of_all if "looks" in its]
            cells.append(f"{mean(ranks):.0f}" if ranks else "-")
        lines.append([*cells, f"{dense[row]:.1f}" if row in dense else "-"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" --- ", "---")


def fill(out: Path, page: Path = PAGE) -> None:
    """Write the table between the page's two marks."""
    speeds, dense = (
        json.loads(file.read_text(encoding="utf-8")) if (file := out / name).exists() else {} for name in MEASURED
    )
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(
        f"{before}{BEGIN}\n{make_table(read_results(out), speeds, dense)}\n{END}{rest.partition(END)[2]}",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: OUT with -work at its end")
    parser.add_argument("--crops", type=int, default=CROPS[1], help=f"crops that a run sees; default {CROPS[1]}")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; default 1")
    parser.add_argument("--only", nargs="+", choices=[RANDOM, *ROWS], default=[RANDOM, *ROWS], help="default: all rows")
    parser.add_argument("--speed", action="store_true", help="only measure speeds")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="only fill docs/RESULTS.md")
    given = parser.parse_args()
    if given.table:
        return fill(given.table)
    if given.data is None or given.out is None:
        parser.error("expected --data and --out, or --table")
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    for folder in (given.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    with report_user_errors():
        if given.speed:
            for row in given.only:
                if row != RANDOM and row not in AFTER:
                    file = given.out / MEASURED[0]
                    speeds = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
                    file.write_text(
                        json.dumps(speeds | {row: measure_speed(row, given.data, work)}, indent=1) + "\n",
                        encoding="utf-8",
                    )
            return None
        for seed in range(given.seeds):
            for row in given.only:
                run_row(row, given.data, given.crops, seed, work, given.out)


if __name__ == "__main__":
    main()
