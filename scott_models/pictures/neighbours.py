"""Which images of a gallery a model finds most alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import nn

from ..data.sources import find_images, load_image
from ..errors import DataError
from ..probes.features import extract, load_model, to_device
from ..progress import track
from .sheet import check_drawable, draw_sheet

CELL = 160  # pixels


@dataclass(frozen=True)
class Neighbour:
    """An image of the gallery, and the cosine between its pooled features and the query's, -1 to 1."""

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
) -> list[list[Neighbour]]:
    """Find the nearest images of the gallery of each query, the nearest first; a query is not its own neighbour.

    Args:
        queries, gallery: files, or folders, searched below too.
        out: a picture to write, a row for each query; None: none.
        name: any timm model, "local-dir:FOLDER", or the folder of a run; or what `load_model` made of it with the
            same `img_size`.
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        DataError: files that cannot be used or written, or a gallery without another image.
        WeightsError: a model or an image size that cannot be had.
    """
    if count < 1:
        raise DataError(f"count: expected at least 1 neighbour, got {count}")
    asked = find_images(queries)
    held = [*{path.resolve(): path for path in find_images(gallery)}.values()]  # folders may overlap
    out = check_drawable(out, len(asked), CELL) if out else None
    model = to_device(load_model(name, img_size=img_size) if isinstance(name, str) else name)
    features = [
        torch.nn.functional.normalize(torch.from_numpy(extract(model, paths, img_size=img_size, what=what)[0]), dim=1)
        for paths, what in ((asked, "queries"), (held, "gallery"))
    ]
    cosines = features[0] @ features[1].T
    found = []
    for path, row in zip(asked, cosines):
        order = [int(i) for i in row.argsort(descending=True) if held[int(i)].resolve() != path.resolve()]
        if not order:
            raise DataError(f"{path}: expected another image in the gallery, found only itself")
        found.append([Neighbour(str(path), str(held[i]), row[i].item()) for i in order[:count]])
    if out:
        shown = track(zip(asked, found), "reading", total=len(asked), unit="rows")
        rows = [[(_make_thumbnail(path), path.name), *map(_add_caption, near)] for path, near in shown]
        draw_sheet(rows, out, cell=CELL)
    return found


def _add_caption(near: Neighbour) -> tuple[Image.Image, str]:
    path = Path(near.image)
    return _make_thumbnail(path), f"{path.parent.name}/{path.name} {near.cosine:.2f}"


def _make_thumbnail(path: Path) -> Image.Image:
    return ImageOps.fit(load_image(path), (CELL, CELL), Image.Resampling.LANCZOS)
