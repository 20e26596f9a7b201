"""Fine-tune a pretrained SCOTT on labelled images: first the head alone, then all layers, with less change lower down.

python examples/02_finetune.py                        on the sample pictures: train on two of each flower, test on one
python examples/02_finetune.py mine/train mine/test   on folders with one folder of images per class
"""

import sys
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import freeze, unfreeze
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm

import scott_models  # noqa: F401 -- importing registers the models with timm
from scott_models.data import find_images, find_labelled, load_image
from scott_models.errors import report_user_errors


def find_pairs(train, test):
    """Find the images of two folders: (path, number of its class) of each for training and for testing; the classes."""
    found = find_labelled([train], [test])
    return *([*zip(part.images, part.labels.tolist())] for part in found), found[0].names


def find_sample_pairs(folder):
    """Find the sample pictures in the same way: their class is the file name without the number."""
    paths = find_images([folder])
    names = sorted({path.stem[:-2] for path in paths})
    pairs = [(path, names.index(path.stem[:-2])) for path in paths]
    return *([pair for pair in pairs if ("_3" in pair[0].stem) == last] for last in (False, True)), names


if len(sys.argv) not in (1, 3):
    sys.exit(__doc__)
torch.manual_seed(0)
with report_user_errors():  # folders, classes or weights that cannot be used: one sentence, no traceback
    own = sys.argv[1:]
    train, test, names = find_pairs(*own) if own else find_sample_pairs(Path(__file__).parent / "images")
    model = timm.create_model("scott_3_16", pretrained=True, num_classes=len(names), drop_path_rate=0.1)
config = resolve_model_data_config(model)
augmented = create_transform(**config, is_training=True, auto_augment=None, scale=(0.4, 1.0))
centred = create_transform(**config)


def batches(pairs, transform, shuffle=False):
    def collate(chosen):
        images = torch.stack([transform(load_image(path)) for path, _ in chosen])
        return images, torch.tensor([label for _, label in chosen])

    return DataLoader(pairs, batch_size=32, shuffle=shuffle, collate_fn=collate)


def run(epochs, **settings):
    optimizer = create_optimizer_v2(model, "adamw", weight_decay=0.05, **settings)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs)  # timm's schedule respects layer_decay
    for epoch in (bar := tqdm(range(epochs))):
        model.train()
        for images, labels in batches(train, augmented, shuffle=True):
            loss = cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step(epoch + 1)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        right = torch.cat([model(images).argmax(dim=1) == labels for images, labels in batches(test, centred)])
    return f"{100 * right.float().mean().item():.1f} % of {len(test)} test images"


body = [name for name, _ in model.named_children() if name != "head"]
with report_user_errors():  # a damaged image
    freeze(model, body)
    print("head alone:", run(10, lr=3e-3))
    unfreeze(model, body)
    print("everything:", run(20, lr=5e-4, layer_decay=0.75))
