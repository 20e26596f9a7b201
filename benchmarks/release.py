"""Make a release from the results of a row: weights/<tag>/, an entry in weights_manifest.json, and a card.

python benchmarks/release.py RESULTS ROW TAG --hardware "2 CPU cores" --pictures IMAGES...

RESULTS is the output folder of benchmarks/paper/reproduce.py. TAG is e.g. scott_12_16.mimjepa_flowers102_cpu. If the
weights are in parts, the parts are joined. The scores are those of the probes with protocol `fast`, so that all cards
can be compared.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from scott_models.errors import WeightsError, report_user_errors
from scott_models.pictures.pca import draw_pca
from scott_models.pretrain import Recipe
from scott_models.release.card import PICTURE, make_card
from scott_models.release.entry import make_entry
from scott_models.weights import entries, files
from scott_models.weights.entries import Entry, write_entry

CHECKOUT = Path(__file__).parents[1]
DATA = {
    "": "Oxford Flowers-102, all 8,189 images (transductive)",
    "train,val": "Oxford Flowers-102, the 2,040 images of train and val (inductive)",
}
TERMS = "images collected from the web for research; none is part of the weights"
# Ending of a row's name by reproduce.py -> ending of a probe's name in the manifest.
ENDINGS = {"": "", " (random weights)": "_random", " (context encoder)": "_context"}


def joined(run: Path, sha256: str) -> Path:
    """Return the weight file of a run folder; join the parts of the weights first if the file does not exist.

    Raises:
        WeightsError: the weights are missing, or their sha256 is another.
    """
    whole = run / "export" / "model.safetensors"
    parts = sorted(whole.parent.glob(f"{whole.name}.part*"), key=lambda path: int(path.suffix.removeprefix(".part")))
    if parts and not whole.exists():
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    if not whole.is_file() or files.sha256(whole) != sha256:
        raise WeightsError(f"{whole}: expected sha256 {sha256}, found other bytes or none; fetch the parts again")
    return whole


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    """Return top-1 % of the probes with protocol `fast`, by their names in the manifest."""
    fast = [score for score in results["scores"] if score["protocol"] == "fast"]
    return {
        score["probe"] + ENDINGS[score["model"].removeprefix(results["row"])]: round(score["top1"], 1) for score in fast
    }


def protocol_of(results: dict[str, Any]) -> str:
    """Describe in words how the scores were measured."""
    first = results["scores"][0]
    seeds = first["seeds"]
    return (
        f"scott probe, protocol fast, {first['img_size']} px, official split: {results['train']:,} images of train and "
        f"val to train, {results['test']:,} of test to test; top-1 %, last epoch, mean of {seeds} "
        f"seed{'s' if seeds > 1 else ''}"
    )


def release(results: Path, row: str, tag: str, hardware: str, pictures: list[Path]) -> Entry:
    """Write the release and return its entry.

    Raises:
        WeightsError: the tag is of another model, weights are missing or have another sha256, or the run's records are
            damaged.
    """
    run = results / row
    recipe = Recipe.load(run / "recipe.toml")
    if tag.split(".", maxsplit=1)[0] != recipe.model.name:
        raise WeightsError(f"{tag}: expected a tag of {recipe.model.name}, which {run} trained")
    measured = json.loads((results / f"{row}.json").read_text(encoding="utf-8"))
    joined(run, measured["sha256"])
    entry = make_entry(run, license="apache-2.0", data=DATA[",".join(recipe.data.splits)], data_terms=TERMS)
    entry |= {
        "datasets": ["flowers102"],
        "hardware": hardware,
        "scores": scores_of(measured),
        "protocol": protocol_of(measured),
    }
    folder = CHECKOUT / "weights" / tag
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(run / "export" / name, folder / name)
    draw_pca(pictures, folder / PICTURE, f"local-dir:{folder}", img_size=448)
    (folder / "README.md").write_text(make_card(tag, entry, picture=True), encoding="utf-8")
    write_entry(entries.PATH, tag, entry)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("row")
    parser.add_argument("tag")
    parser.add_argument("--hardware", required=True, help="hardware of the training, in words")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="images for the card's picture")
    given = parser.parse_args()
    with report_user_errors():
        entry = release(given.results, given.row, given.tag, given.hardware, given.pictures)
    print(json.dumps(entry["scores"], indent=2))


if __name__ == "__main__":
    main()
