"""From a finished run to a release: weights/<tag>/, its measured scores, its entry in weights_manifest.json, its card.

python benchmarks/release.py RUN TAG --flowers FOLDER --recipe NAME --hardware "2 CPU cores"

RUN is the run folder of `scott pretrain`, TAG e.g. scott_3_16.mimjepa_flowers102, FOLDER holds train, val and test with
a folder of images for each class. Scores: frozen pooled features of the official split, 2,040 images of train and val
for training, 6,149 of test for testing, beside the same model with random weights; at the training size and at 224 px.
"""

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from scott_models import __version__, weights
from scott_models.pretrain import Recipe
from scott_models.pretrain.objective import build_objective
from scott_models.probe import probe

CHECKOUT = Path(__file__).parents[1]
MANIFEST = CHECKOUT / "weights_manifest.json"
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
    parser.add_argument("--recipe", required=True, help="name of the recipe the run was made with")
    parser.add_argument("--hardware", required=True)
    arguments = parser.parse_args()

    recipe = Recipe.load(arguments.run / "recipe.toml")
    if differences := Recipe.load(arguments.recipe).differences(recipe):
        parser.error(f"{arguments.run} is no run of {arguments.recipe}: {'; '.join(differences)}")
    if arguments.tag.split(".")[0] != recipe.model.name:
        parser.error(f"{arguments.tag} is no tag of {recipe.model.name}, which {arguments.run} trained")
    lines = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    images_seen = lines[-1]["step"] * recipe.optim.batch_size
    spans = zip([0, *(line["step"] for line in lines)], lines)
    seconds = sum((b["step"] - a) * recipe.optim.batch_size / b["images_per_second"] for a, b in spans)

    last = max((arguments.run / "checkpoints").glob("step_*.pt"))
    state = torch.load(last, map_location="cpu", weights_only=True)["objective"]
    objective = build_objective(recipe)
    for name, part in objective.named_children():
        part.load_state_dict(state[name])
    folder = weights.export(objective.target_encoder, CHECKOUT / "weights" / arguments.tag)
    size = recipe.model.img_size
    target, control = score(f"local-dir:{folder}", arguments.flowers, size, control=True)
    target_224, control_224 = score(f"local-dir:{folder}", arguments.flowers, 224, control=True)
    with tempfile.TemporaryDirectory() as temporary:
        context_folder = weights.export(objective.context_encoder, Path(temporary) / "context")
        (context,) = score(f"local-dir:{context_folder}", arguments.flowers, size, control=False)

    file = folder / "model.safetensors"
    entry = {
        "repository": None,
        "revision": None,
        "file": file.name,
        "sha256": weights.sha256(file),
        "bytes": file.stat().st_size,
        "dtype": "bfloat16",
        "encoder": "target",
        "input_size": [3, size, size],
        "data": "Oxford Flowers-102, all 8,189 images (transductive)",
        "data_terms": "images collected from the web for research; none is part of the weights",
        "license": "apache-2.0",
        "recipe": arguments.recipe,
        "epochs": recipe.optim.epochs,
        "images_seen": images_seen,
        "seed": recipe.run.seed,
        "hardware": arguments.hardware,
        "minutes": round(seconds / 60),
        "versions": {name: version(name) for name in ("torch", "timm", "torchvision")} | {"scott_models": __version__},
        "scores": {
            "knn": round(target["knn"], 1),
            "ridge": round(target["ridge"], 1),
            **{
                f"{metric}_{name}": round(value[metric], 1)
                for name, value in (
                    ("random", control),
                    ("224", target_224),
                    ("224_random", control_224),
                    ("context", context),
                )
                for metric in ("knn", "ridge")
            },
        },
        "protocol": PROTOCOL,
    }
    content = json.loads(MANIFEST.read_text())
    content["weights"][arguments.tag] = entry
    MANIFEST.write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(card(arguments.tag, entry))
    print(json.dumps(entry["scores"], indent=2))


def card(tag: str, entry: dict) -> str:
    """The model card, from the manifest's entry alone."""
    size, scores = entry["input_size"][-1], entry["scores"]
    return f"""---
library_name: timm
license: {entry["license"]}
tags: [image-feature-extraction, timm, self-supervised]
---

# {tag}

A SCOTT vision transformer pretrained from scratch, without labels, by MIM-JEPA (arXiv 2502.18056). These are the
weights of an independent implementation, not the paper's: the run was far shorter and smaller than the paper's.

```python
import scott_models, timm

model = timm.create_model("{tag}", pretrained=True)  # {size} px; img_size=224 for larger images
```

| frozen features, Flowers-102 test, top-1 % | kNN | ridge |
|---|---|---|
| **these weights, {size} px** | **{scores["knn"]}** | **{scores["ridge"]}** |
| random weights, {size} px | {scores["knn_random"]} | {scores["ridge_random"]} |
| these weights, 224 px | {scores["knn_224"]} | {scores["ridge_224"]} |
| random weights, 224 px | {scores["knn_224_random"]} | {scores["ridge_224_random"]} |
| the context encoder of the same run, {size} px | {scores["knn_context"]} | {scores["ridge_context"]} |

Protocol: {entry["protocol"]}.

- **Data:** {entry["data"]}; {entry["data_terms"]}. The test images were seen in pretraining, without labels.
- **Training:** recipe `{entry["recipe"]}`, {entry["epochs"]} epochs, {entry["images_seen"]:,} images, seed
  {entry["seed"]}, {entry["minutes"]} minutes on {entry["hardware"]}; torch {entry["versions"]["torch"]}, timm
  {entry["versions"]["timm"]}.
- **File:** `{entry["file"]}`, the {entry["encoder"]} encoder in {entry["dtype"]}, {entry["bytes"]:,} bytes, sha256
  `{entry["sha256"]}`.
- **Use:** features for small flower-like data sets, a start for your own pretraining, an example of the method. Not
  for decisions about people; not a match for models pretrained on large data sets.
"""


if __name__ == "__main__":
    main()
