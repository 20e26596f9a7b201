"""Fine-tune a pretrained SCOTT on labelled images: first the head alone, then everything, lower layers more slowly.

python examples/02_finetune.py                        the sample pictures: two of each flower to train on, one to test
python examples/02_finetune.py mine/train mine/test   folders with a folder of images for each class
"""

import sys
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import freeze, unfreeze
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm

import scott_models  # noqa: F401 -- importing registers the models with timm
from scott_models.data import find_images, load_image

HEAD_EPOCHS, EPOCHS, BATCH = 10, 20, 32


def labelled(paths):
    """(path, class): the class is the name of the folder, or of a sample picture what stands before its number."""
    return [(path, path.stem.split("_")[0] if path.parent.name == "images" else path.parent.name) for path in paths]


if len(sys.argv) == 3:
    train, test = (labelled(find_images([folder])) for folder in sys.argv[1:])
else:
    pictures = labelled(find_images([Path(__file__).parent / "images"]))
    train, test = ([pair for pair in pictures if ("_3" in pair[0].stem) == last] for last in (False, True))
names = sorted({name for _, name in train})
number = {name: i for i, name in enumerate(names)}

torch.manual_seed(0)
model = timm.create_model("scott_3_16", pretrained=True, num_classes=len(names), drop_path_rate=0.1)
config = resolve_model_data_config(model)
augment = create_transform(**config, is_training=True, auto_augment=None, scale=(0.4, 1.0))
plain = create_transform(**config)


def batches(pairs, transform, shuffle):
    data = [(path, number[name]) for path, name in pairs]
    load = lambda chosen: [torch.stack([transform(load_image(path)) for path, _ in chosen]), [i for _, i in chosen]]  # noqa: E731
    return DataLoader(data, BATCH, shuffle=shuffle, collate_fn=load)


def run(epochs, **settings):
    optimizer = create_optimizer_v2(model, "adamw", weight_decay=0.05, **settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] * group.get("lr_scale", 1) for group in optimizer.param_groups], total_steps=epochs
    )
    for _ in (bar := tqdm(range(epochs))):
        model.train()
        for images, labels in batches(train, augment, shuffle=True):
            loss = cross_entropy(model(images), torch.tensor(labels), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        right = [model(images).argmax(1) == torch.tensor(labels) for images, labels in batches(test, plain, False)]
    return 100 * torch.cat(right).float().mean().item()


freeze(model, [name for name, _ in model.named_children() if name != "head"])
print(f"head alone: {run(HEAD_EPOCHS, lr=3e-3):.1f} % of {len(test)} test images")
unfreeze(model, [name for name, _ in model.named_children() if name != "head"])
print(f"everything: {run(EPOCHS, lr=5e-4, layer_decay=0.75):.1f} % of {len(test)} test images")
