"""Nearest neighbours: the images of a gallery whose features are most similar to those of a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

from ..data.bad_images import all_bad_listed, find_good_images
from ..data.images import load_image
from ..errors import DataError
from ..probes.features import extract, load_model, to_device
from ..progress import track
from .sheet import check_drawable, draw_sheet

CELL = 160  # pixels


@dataclass(frozen=True)
class Neighbour:
    """Describe an image of the gallery by the cosine between its pooled features and the query's, -1 to 1."""

    query: str
    image: str
    cosine: float


def draw_neighbours(
    queries: Sequence[str | Path],
    gallery: Sequence[str | Path],
    out: str | Path | None,
    name: str | nn.Module,
    *,
    count: int = 8,
    img_size: int | None = None,
    skip_bad: bool = False,
) -> list[list[Neighbour]]:
    """Find the images of the gallery nearest to each query, nearest first; a query is not its own neighbour.

    Args:
        queries, gallery: files, or folders that are searched with their subfolders.
        out: the picture to write, with a row for each query; no picture if None.
        name: any timm model, "local-dir:FOLDER", or the folder of a run; or a model that `load_model` returned for
            the same `img_size`.
        img_size: pixels; by default the size the weights were trained at.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Raises:
        DataError: a file cannot be used or written, the gallery has no other image, or count is below 1.
        WeightsError: the model cannot be loaded, or cannot take the image size.
    """
    if count < 1:
        raise DataError(f"count: expected at least 1 neighbour, got {count}")
    query_paths = find_good_images(queries, skip_bad=skip_bad)
    found_images = find_good_images(gallery, skip_bad=skip_bad)
    gallery_paths = [*{path.resolve(): path for path in found_images}.values()]  # folders may overlap
    out = check_drawable(out, len(query_paths), CELL, beside=[*queries, *gallery]) if out else None
    model = to_device(load_model(name, img_size=img_size) if isinstance(name, str) else name)
    with all_bad_listed([*query_paths, *gallery_paths]):
        features = [
            F.normalize(torch.from_numpy(extract(model, paths, img_size=img_size, what=what)[0]), dim=1)
            for paths, what in ((query_paths, "queries"), (gallery_paths, "gallery"))
        ]
    cosines = features[0] @ features[1].T
    found = []
    for path, row in zip(query_paths, cosines):
        order = [int(i) for i in row.argsort(descending=True) if gallery_paths[int(i)].resolve() != path.resolve()]
        if not order:
            raise DataError(f"{path}: expected another image in the gallery, found only itself")
        found.append([Neighbour(str(path), str(gallery_paths[i]), row[i].item()) for i in order[:count]])
    if out:
        shown = track(zip(query_paths, found), "reading", total=len(query_paths), unit="rows")
        rows = [[(_make_thumbnail(path), path.name), *map(_add_caption, near)] for path, near in shown]
        draw_sheet(rows, out, cell=CELL)
    return found


def _add_caption(near: Neighbour) -> tuple[Image.Image, str]:
    path = Path(near.image)
    return _make_thumbnail(path), f"{path.parent.name}/{path.name} {near.cosine:.2f}"


def _make_thumbnail(path: Path) -> Image.Image:
    return ImageOps.fit(load_image(path), (CELL, CELL), Image.Resampling.LANCZOS)
