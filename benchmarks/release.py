"""From a finished run to a release: weights/<tag>/, its measured scores, its entry in weights_manifest.json, its card.

python benchmarks/release.py RUN TAG --flowers FOLDER --hardware "2 CPU cores" --pictures IMAGES...

RUN is the run folder of `scott pretrain`, TAG e.g. scott_3_16.mimjepa_flowers102_cpu, FOLDER holds train, val and test with
a folder of images for each class. Scores: frozen pooled features of the official split, 2,040 images of train and val
for training, 6,149 of test for testing, beside the same model with random weights; at the training size and at 224 px.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from scott_models import manifest, weights
from scott_models.manifest import write_entry
from scott_models.pca import draw_pca
from scott_models.pretrain import Recipe
from scott_models.pretrain.objective import build_objective
from scott_models.probe import probe
from scott_models.release import PICTURE, card, entry_of_run

CHECKOUT = Path(__file__).parents[1]
PROTOCOL = (
    "frozen average-pooled features, evaluation transform (resize 1/0.875, centre crop, bilinear); official "
    "Flowers-102 split, train+val 2,040 images to train, test 6,149 to test; kNN: majority of 10 by cosine; "
    "ridge: standardised features, strength by leave-one-out on the training images; top-1 %, last epoch; "
    "control: random weights, seed 0"
)


def score(model: str, flowers: Path, size: int, control: bool) -> list[dict[str, float]]:
    """Top-1 % by probe, of a model and, if asked, of its control."""
    report = probe(
        model, [flowers], [flowers], kinds=("knn", "ridge"), img_size=size, control=control, duplicates=False
    )
    print(*report.scores, sep="\n", flush=True)
    top1 = [(score.probe, score.top1) for score in report.scores]
    return [dict(top1[i : i + 2]) for i in range(0, len(top1), 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("tag")
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="images of the card's picture")
    arguments = parser.parse_args()
    run, tag = arguments.run, arguments.tag
    recipe = Recipe.load(run / "recipe.toml")
    if tag.split(".")[0] != recipe.model.name:
        parser.error(f"{tag} is no tag of {recipe.model.name}, which {run} trained")

    data = "Oxford Flowers-102, all 8,189 images (transductive)"
    terms = "images collected from the web for research; none is part of the weights"
    entry = entry_of_run(run, license="apache-2.0", data=data, data_terms=terms)
    size = recipe.model.img_size
    target, control = score(f"local-dir:{run / 'export'}", arguments.flowers, size, control=True)
    target_224, control_224 = score(f"local-dir:{run / 'export'}", arguments.flowers, 224, control=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = weights.export(context_encoder(run, recipe), Path(temporary) / "context")
        (context,) = score(f"local-dir:{folder}", arguments.flowers, size, control=False)
    scored = {"": target, "_random": control, "_224": target_224, "_224_random": control_224, "_context": context}
    entry |= {
        "datasets": ["flowers102"],
        "hardware": arguments.hardware,
        "scores": {probe + end: round(of[probe], 1) for end, of in scored.items() for probe in ("knn", "ridge")},
        "protocol": PROTOCOL,
    }
    folder = CHECKOUT / "weights" / tag
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(run / "export" / name, folder / name)
    draw_pca(arguments.pictures, folder / PICTURE, f"local-dir:{folder}", img_size=448)
    (folder / "README.md").write_text(card(tag, entry, picture=True))
    write_entry(manifest.PATH, tag, entry)
    print(json.dumps(entry["scores"], indent=2))


def context_encoder(run: Path, recipe: Recipe) -> nn.Module:
    """The other encoder of a run that exported its target."""
    last = max((run / "checkpoints").glob("step_*.pt"))
    state = torch.load(last, map_location="cpu", weights_only=True)["objective"]
    objective = build_objective(recipe)
    for name, part in objective.named_children():
        part.load_state_dict(state[name])
    return objective.context_encoder


if __name__ == "__main__":
    main()
