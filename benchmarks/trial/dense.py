"""Test whether losses on whole images cost detail: classify patches as flower or background by nearest neighbours.

python benchmarks/trial/dense.py --data flowers102 --work benchmarks/trial/results-work --out benchmarks/trial/results

The expected flower patches are the foreground that `scott pca` finds with the released scott_12_16 at 224 px, the same
for all encoders. A frozen encoder gives the features of the 14 x 14 patches of 64 images of train and 64 of val. A
patch of val is classified by its 10 nearest patches of train. The score is the intersection over union of the flower
patches. Random weights are scored too, because colour alone separates many patches. A row is scored by its run with
most crops and seed 0.
"""

import argparse
import json
from pathlib import Path

import torch
from settings import ROWS, name_of
from torch import Tensor

from scott_models.data.files import find_images
from scott_models.errors import report_user_errors
from scott_models.pictures.patch_maps import compute_patch_maps, look_at
from scott_models.pictures.pca import find_components
from scott_models.pretrain.monitor import pick_evenly
from scott_models.probes.classifiers import knn
from scott_models.probes.features import load_model

SIZE, IMAGES = 224, 64
TEACHER = "scott_12_16.mimjepa_flowers102_cpu"


def patches_of(name: str, images: list[Path], pretrained: bool = True) -> Tensor:
    """Compute the patch features (I, h, w, D) of images by a model."""
    model = load_model(name, img_size=SIZE, pretrained=pretrained)
    return compute_patch_maps(model, look_at(model, images, SIZE).inputs)


def intersection_over_union(found: Tensor, expected: Tensor) -> float:
    """Compute the intersection over union of two bool tensors of the same shape, in percent."""
    return 100 * ((found & expected).sum() / (found | expected).sum()).item()


def score(features: Tensor, foreground: Tensor) -> float:
    """Predict the foreground of half of the images by the other half.

    Args:
        features: (I, h, w, D).
        foreground: bool (I, h, w).

    Returns:
        the intersection over union in percent.
    """
    train, test = (half.flatten(0, 2) for half in features.chunk(2))
    known, expected = (half.flatten() for half in foreground.chunk(2))
    return intersection_over_union(knn(train, known.long(), test, 2).argmax(dim=1) == 1, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train and val")
    parser.add_argument("--work", type=Path, required=True, help="folder with the runs of trial.py")
    parser.add_argument("--out", type=Path, required=True, help="folder with the results of trial.py; takes dense.json")
    given = parser.parse_args()
    with report_user_errors():
        images = [path for split in ("train", "val") for path in pick_evenly(find_images([given.data / split]), IMAGES)]
        foreground = find_components(patches_of(TEACHER, images)).foreground
        torch.manual_seed(0)
        scores = {"random weights": score(patches_of("scott_3_16", images, pretrained=False), foreground)}
        for row in ROWS:
            runs = given.work.glob(f"{name_of(row, '[0-9]*', 0)}/export")
            if most := max(runs, key=lambda path: int(path.parent.name.split("-")[-2]), default=None):
                scores[row] = score(patches_of(str(most.parent), images), foreground)
        (given.out / "dense.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{row}: {iou:.1f}" for row, iou in scores.items()))


if __name__ == "__main__":
    main()
