"""Principal components of patch features over a whole set of images, drawn as colours.

As in DINOv2's figures, the first component separates foreground from background. Three components of the foreground
patches alone become red, green and blue. The same colour means the same thing in all images of a set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.bad_images import find_good_images
from ..errors import DataError
from ..probes.features import check_npz_path, load_model, save_npz, to_device
from .patch_maps import compute_patch_maps, look_at
from .sheet import Look, check_drawable, draw_map, draw_sheet

CLIPPED = 0.01  # share of the foreground at either end of a component whose colours are clipped


@dataclass(frozen=True)
class Components:
    """Hold the principal components of I images of h x w patches.

    Attributes:
        first: (I, h, w), the first component of all patches, higher in the foreground.
        foreground: bool (I, h, w).
        colours: (I, h, w, 3) in 0 ... 1, black in the background.
    """

    first: Tensor
    foreground: Tensor
    colours: Tensor


def draw_pca(
    images: Sequence[str | Path],
    out: str | Path,
    name: str | nn.Module,
    *,
    img_size: int | None = None,
    look: Look = "smooth",
    token_map: str | Path | None = None,
    skip_bad: bool = False,
) -> Components:
    """Draw a row for each image: the image as the model sees it, its first component, foreground and colours.

    Args:
        images: files, or folders that are searched with their subfolders.
        out: the picture to write.
        name: any timm model with patch tokens, "local-dir:FOLDER", or the folder of a run; or a model that
            `load_model` returned for the same `img_size`.
        img_size: pixels, a multiple of the patch size; larger sizes give finer maps; by default the size the weights
            were trained at.
        token_map: an .npz file for `names`, `features` (I, h, w, D), `first`, `foreground` and `colours`.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Raises:
        DataError: a file cannot be used or written, the model has no patch tokens, or there is only one patch.
        WeightsError: the model cannot be loaded, or cannot take the image size.
    """
    paths, kept = find_good_images(images, skip_bad=skip_bad), check_npz_path(token_map) if token_map else None
    out = check_drawable(out, len(paths), beside=images)
    model = to_device(load_model(name, img_size=img_size) if isinstance(name, str) else name)
    seen = look_at(model, paths, img_size)
    tokens = compute_patch_maps(model, seen.inputs)
    if tokens[..., 0].numel() < 2:
        raise DataError("expected more than one patch to compare, found one; give more images or a larger img_size")
    found = find_components(tokens)
    if kept:
        arrays = {"first": found.first, "foreground": found.foreground, "colours": found.colours, "features": tokens}
        save_npz(kept, names=[str(path) for path in paths], **{key: value.numpy() for key, value in arrays.items()})
    low, high = found.first.min(), found.first.max()
    side = (seen.inputs.shape[-2], seen.inputs.shape[-1])
    rows = []
    for i, path in enumerate(paths):
        first = (found.first[i] - low) / (high - low).clamp(min=1e-12)
        maps = {"first component": first, "foreground": found.foreground[i], "components of it": found.colours[i]}
        pictures = [
            (draw_map(values, side, "blocky" if values.dtype == torch.bool else look), words)
            for words, values in maps.items()
        ]
        rows.append([(seen.pictures[i], path.name), *pictures])
    draw_sheet(rows, out)
    return found


def find_components(tokens: Tensor) -> Components:
    """Find the principal components of the patch features (I, h, w, D) of a set of images.

    Otsu's threshold divides the first component into two sides. The foreground is the side that is rarer at the images'
    borders than inside, because a photographed object is rarely at the edge. The sign of a component is arbitrary. For
    the colours, it is chosen so that the feature with the largest weight counts upwards.
    """
    maps = tokens.double()
    first = project(maps.flatten(0, 2), 1)[:, 0].view(maps.shape[:3])
    foreground = first > find_threshold(first)
    if touches_border(foreground) > select_inside(foreground):
        first, foreground = -first, ~foreground
    colours = torch.zeros(*maps.shape[:3], 3, dtype=maps.dtype)
    if foreground.sum() > 3:
        shares = project(maps[foreground], 3)
        low, high = (shares.quantile(share, dim=0) for share in (CLIPPED, 1 - CLIPPED))
        colours[foreground] = ((shares - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return Components(first.float(), foreground, colours.float())


def project(features: Tensor, count: int) -> Tensor:
    """Project features (n, D) onto their first principal components: (n, count), with reproducible signs."""
    centred = features - features.mean(dim=0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions.flip(1)[:, :count]
    heaviest = directions.abs().argmax(dim=0)
    return centred @ (directions * directions.gather(0, heaviest[None]).sign())


def find_threshold(values: Tensor) -> float:
    """Find the threshold that leaves the least variance within both sides (Otsu, 1979)."""
    ordered = values.flatten().sort().values
    n = torch.arange(1, len(ordered), dtype=ordered.dtype)
    below = ordered.cumsum(0)[:-1]
    between = (below / n - (ordered.sum() - below) / (len(ordered) - n)).square() * n * (len(ordered) - n)
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def touches_border(foreground: Tensor) -> float:
    """Compute the share of foreground among the outermost patches of masks (I, h, w)."""
    edge = torch.ones_like(foreground)
    edge[:, 1:-1, 1:-1] = False
    return foreground[edge].double().mean().item()


def select_inside(foreground: Tensor) -> float:
    """Compute the share of foreground among the inner patches of masks (I, h, w)."""
    return foreground[:, 1:-1, 1:-1].double().mean().item()
