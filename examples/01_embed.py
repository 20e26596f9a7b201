"""Embed images with a pretrained SCOTT and print the nearest neighbour of each image.

python examples/01_embed.py             on the sample pictures next to this file
python examples/01_embed.py my/photos   on any folder of images
"""

import sys
from pathlib import Path

import timm
import torch

import scott_models  # noqa: F401 -- importing registers the models with timm
from scott_models.data import find_images, load_image
from scott_models.errors import DataError, report_user_errors

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"

with report_user_errors():  # a folder or an image that cannot be used: one sentence, no traceback
    paths = find_images([folder])
    if len(paths) == 1:
        raise DataError(f"{folder}: expected at least two images to compare, found one; add images")
    model = timm.create_model("scott_3_16", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        features = torch.cat([model(transform(load_image(path))[None]) for path in paths])

features = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
similarity = (features @ features.T).fill_diagonal_(-1)
print(f"{len(paths)} images, {features.shape[1]} features each; nearest neighbours by cosine:")
for path, (value, nearest) in zip(paths, zip(*similarity.max(dim=1)), strict=True):
    print(f"{path.name:>20} -> {paths[int(nearest)].name:<20} {float(value):.2f}")
