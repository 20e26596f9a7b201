"""Test the recipe `small` on images that it was not chosen for: skin lesions, and microscope images of nuclei.

python benchmarks/trial/other_images.py --data folder --out benchmarks/trial/results

FOLDER holds lesions/{train,test}/{melanoma,other} (ISIC 2017), lesions-unlabelled and
nuclei/{train,test}/{images,masks} (Data Science Bowl 2018, masks of 0 and 1). `small` and plain MIM-JEPA pretrain
scott_3_16 at 64 px, seed 0, on the images of train and those without labels. Random weights are scored too.
Lesions: the score is the area under the ROC curve of melanoma on test, by kNN and by ridge, because four of five
lesions are not melanoma. Nuclei: patches of 128 test images at 224 px are classified as nucleus or background by kNN
among the patches of 128 training images; the score is the intersection over union of the nucleus patches. An
interrupted run continues, and finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from dense import SIZE, patches_of, score
from settings import COMMON
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from scott_models.data.files import find_images
from scott_models.data.images import load_image
from scott_models.data.labelled import find_labelled
from scott_models.errors import report_user_errors
from scott_models.pretrain import Recipe
from scott_models.pretrain.monitor import pick_evenly
from scott_models.pretrain.train import Pretraining
from scott_models.probes.classifiers import knn, ridge
from scott_models.probes.features import extract, load_model

METHODS = {
    "plain": ("flowers102", COMMON),
    "small": ("small", ("model.img_size=64", "data.short_side=96")),
}
RANDOM = "random weights"
LESIONS, NUCLEI = "lesions", "nuclei"
SOURCES = {LESIONS: ("lesions/train", "lesions-unlabelled"), NUCLEI: ("nuclei/train/images",)}
LOOKED_AT = 128  # images of train, and as many of test
PATCH = 16  # pixels
NEIGHBOURS = 100  # enough votes to rank lesions finely


def train(method: str, sources: list[Path], crops: int, run: Path) -> None:
    """Pretrain on all images of the sources, with a tenth of the crops as warm-up."""
    name, settings = METHODS[method]
    recipe = Recipe.load(name, [*settings, "run.seed=0"])
    batch = recipe.optim.batch_size
    epochs = crops / (len(find_images(sources)) // batch * batch)
    recipe = recipe.changed("optim", epochs=epochs, warmup_epochs=epochs / 10).changed("monitor", every=epochs / 4)
    under_way = Pretraining(recipe, sources, run, True, None, False, "target")
    under_way.train()
    under_way.export()


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Compute how often, in percent, a positive image scores higher than a negative image; ties count half."""
    higher = scores[positive][:, None] - scores[~positive]
    return 100 * ((higher > 0).double() + (higher == 0).double() / 2).mean().item()


def score_lesions(name: str, pretrained: bool, data: Path) -> dict[str, float]:
    """Score a frozen model's features by two classifiers of melanoma: area under the ROC curve in percent."""
    model = load_model(name, img_size=64, pretrained=pretrained).eval()
    train, test = find_labelled([data / "lesions" / "train"], [data / "lesions" / "test"])
    known, new = (torch.from_numpy(extract(model, split.images, img_size=64)[0]) for split in (train, test))
    melanoma = train.names.index("melanoma")
    votes = knn(known, train.labels, new, 2, NEIGHBOURS)[:, melanoma]
    ridged = ridge(known, train.labels, new, 2)[:, melanoma]
    positive = test.labels == melanoma
    return {"knn": area_under_curve(votes.clamp(min=0), positive), "ridge": area_under_curve(ridged, positive)}


def score_nuclei(name: str, pretrained: bool, data: Path) -> dict[str, float]:
    """Score a frozen model's patches against the drawn masks; a patch is nucleus if at least half of it is masked."""
    folders = [data / "nuclei" / split / "images" for split in ("train", "test")]
    images = [path for folder in folders for path in pick_evenly(find_images([folder]), LOOKED_AT)]
    masks = [pil_to_tensor(load_image(path.parents[1] / "masks" / f"{path.stem}.png"))[:1].float() for path in images]
    squares = torch.stack([resize(center_crop(mask, [min(mask.shape[1:])] * 2), [SIZE, SIZE]) for mask in masks])
    nucleus = F.avg_pool2d(squares, PATCH)[:, 0] >= 0.5
    return {"patches": score(patches_of(name, images, pretrained), nucleus)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with lesions, lesions-unlabelled and nuclei")
    parser.add_argument("--out", type=Path, required=True, help="folder for other_images.json")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: OUT with -work at its end")
    parser.add_argument("--crops", type=int, default=40_960, help="crops that a run sees; default 40960")
    given = parser.parse_args()
    work = given.work or given.out.with_name(f"{given.out.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    file = given.out / "other_images.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with report_user_errors():
        for kind, sources in SOURCES.items():
            of_kind = score_lesions if kind == LESIONS else score_nuclei
            for method in (RANDOM, *METHODS):
                if method in found.get(kind, {}):
                    continue
                run = work / f"{method}-{kind}-{given.crops}"
                if method == RANDOM:
                    torch.manual_seed(0)
                else:
                    train(method, [given.data / source for source in sources], given.crops, run)
                scores = of_kind("scott_3_16" if method == RANDOM else str(run), method != RANDOM, given.data)
                found.setdefault(kind, {})[method] = scores
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(kind, method, scores, flush=True)


if __name__ == "__main__":
    main()
