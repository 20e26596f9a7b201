"""Make a classifier from released weights: an attentive probe on Oxford Flowers-102, with its entry and card.

python benchmarks/release_head.py TAG --flowers FOLDER

The classifier is written to weights/<tag>_probe/. TAG is e.g. scott_12_16.mimjepa_flowers102_cpu. FOLDER holds train,
val and test, and each of these has a folder for every class, in the official order. The head is trained on train and
val (protocol `fast`, seed 0). With --classifier the head is taken from a folder that `scott probe --export` wrote for
the same weights. The score is that of the released file, in bfloat16, on test.
"""

import argparse
import json
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.datasets import Flowers102

from scott_models import weights
from scott_models.data.labelled import Labelled, find_labelled
from scott_models.errors import WeightsError, report_user_errors
from scott_models.probes.classifiers import Accuracy
from scott_models.probes.evaluate import probe
from scott_models.probes.features import load_evaluation_batches, to_device
from scott_models.release.card import make_card
from scott_models.release.entry import find_dtype
from scott_models.weights import entries, files
from scott_models.weights.entries import Entry, write_entry

CHECKOUT = Path(__file__).parents[1]
NAMES = tuple(Flowers102.classes)


@torch.no_grad()
def accuracy(model: nn.Module, tested: Labelled) -> Accuracy:
    """Measure the accuracy of a classifier on labelled images."""
    model = to_device(model.eval())
    batches = load_evaluation_batches(model, tested.images, None, 64, "test")
    logits = [model(images.to(next(model.parameters()).device)).cpu() for images in batches]
    return Accuracy.of(torch.cat(logits), tested.labels)


def release_head(tag: str, flowers: Path, names: tuple[str, ...] = NAMES, classifier: Path | None = None) -> Entry:
    """Write the release and return its entry.

    Args:
        classifier: a folder that `scott probe --export` wrote for the tag's weights; by default a head is trained.

    Raises:
        WeightsError: the tag is not released, or the classifier has other weights.
        DataError: the images cannot be used.
    """
    backbone = entries.get_entry(tag)
    folder = CHECKOUT / "weights" / f"{tag}_probe"
    trained, tested = find_labelled([flowers], [flowers])
    assert len(trained.names) == len(names)
    with tempfile.TemporaryDirectory() as temporary:
        _, released = weights.load(tag)
        if classifier is None:
            classifier = Path(temporary) / "classifier"
            probe(tag, [flowers], [flowers], kinds=("attentive",), control=False, duplicates=False, export=classifier)
        found = load_file(classifier / "model.safetensors")
        released.pop("mask_token", None)  # which no export has
        if not all(torch.equal(found[name], tensor.float()) for name, tensor in released.items()):
            raise WeightsError(f"{classifier}: expected a classifier on the weights of {tag}, found others")
        model = timm.create_model(f"local-dir:{classifier}", pretrained=True)
        weights.export(model, folder, label_names=names)
    top1 = accuracy(timm.create_model(f"local-dir:{folder}", pretrained=True), tested).top1
    file = folder / backbone["file"]
    size = backbone["input_size"][-1]
    entry: Entry = {
        **backbone,
        "repository": None,
        "revision": None,
        "sha256": files.sha256(file),
        "bytes": file.stat().st_size,
        "dtype": find_dtype(file),
        "head": "attentive",
        "label_names": list(names),
        "scores": {"attentive": round(top1, 1)},
        "protocol": f"the classifier itself, {size} px: its head was trained on the {len(trained):,} images of train "
        f"and val with their labels (scott probe, protocol fast, seed 0, last epoch); {len(tested):,} images of test",
    }
    (folder / "README.md").write_text(make_card(folder.name, entry), encoding="utf-8")
    write_entry(entries.PATH, folder.name, entry)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, help="folder that `scott probe --export` wrote")
    given = parser.parse_args()
    with report_user_errors():
        print(json.dumps(release_head(given.tag, given.flowers, classifier=given.classifier)["scores"], indent=2))


if __name__ == "__main__":
    main()
