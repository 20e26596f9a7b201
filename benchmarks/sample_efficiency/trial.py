"""Try settings of SplitMask that its paper leaves open: short runs with one changed setting, beside our choice.

python benchmarks/sample_efficiency/trial.py --data flowers102 --out benchmarks/sample_efficiency/trial

A run pretrains on all images, half as long as the study at its CPU scale. The features are scored on val with
the labels of train; test is not used for scores. OUT takes one file for each setting. An interrupted run continues. The
table is printed.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from study import SCALES, train

from scott_models.errors import report_user_errors
from scott_models.probes.evaluate import probe

SCALE = replace(SCALES["cpu"], images_seen=SCALES["cpu"].images_seen // 2)
SETTINGS = {
    "our choice": (),
    "our choice, another seed": ("run.seed=1",),
    "temperature 0.05": ("objective.temperature=0.05",),
    "temperature 0.1": ("objective.temperature=0.1",),
    "temperature 0.5": ("objective.temperature=0.5",),
    "no InfoNCE": ("objective.match=0",),
    "InfoNCE weighs 0.25": ("objective.match=0.25",),
    "decoder 192 wide": ("objective.decoder_dim=192",),
    "words by k-means": ("objective.vocabulary=kmeans",),
    "words by projection": ("objective.vocabulary=projection",),
}
PROBES = ("knn", "ridge")


def row(name: str, flowers: Path, work: Path, out: Path) -> dict[str, float]:
    """Return the scores of a setting, by probe; train and score first if `out` has no result."""
    short = name.replace(",", "").replace(" ", "-")
    file, run = out / f"{short}.json", work / short
    if not file.exists():
        print(f"== {name}", flush=True)
        train("splitmask", flowers, SCALE, 0, run, SETTINGS[name])
        report = probe(str(run), [flowers / "train"], [flowers / "val"], kinds=PROBES, control=False, duplicates=False)
        scores = {score.probe: score.top1 for score in report.scores}
        file.write_text(
            json.dumps({"setting": name, "changes": SETTINGS[name], "scores": scores}, indent=1) + "\n",
            encoding="utf-8",
        )
    return json.loads(file.read_text(encoding="utf-8"))["scores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train and val")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: OUT with -work at its end")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=SETTINGS, help="settings to try; default: all")
    given = parser.parse_args()
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    for folder in (given.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    with report_user_errors():
        rows = {name: row(name, given.data, work, given.out) for name in given.only}
    print("| splitmask | kNN | ridge |\n|---|---|---|")
    for name, scores in rows.items():
        print(f"| {name} | {scores['knn']:.1f} | {scores['ridge']:.1f} |")


if __name__ == "__main__":
    main()
