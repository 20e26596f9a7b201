"""Sheets of small pictures in rows, drawn by `scott pca`, `attention` and `neighbours`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.files import check_outside
from ..errors import DataError
from ..progress import track
from ..writing import written_whole

Look = Literal["smooth", "blocky"]
GAP, CAPTION = 6, 18  # pixels
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
CELL = 224  # pixels of a picture's longer side
LARGEST = {".webp": 2**14 - 1, ".jpg": 2**16 - 1, ".jpeg": 2**16 - 1}  # pixels of a side
PAPER, INK = (255, 255, 255), (60, 60, 60)
# From dark to bright; equal steps look equal, also to the colour-blind (matplotlib's "magma", at eight points).
GLOW = np.array(
    [
        (0, 0, 4),
        (34, 17, 80),
        (95, 24, 127),
        (152, 45, 128),
        (211, 67, 110),
        (248, 118, 92),
        (254, 187, 129),
        (252, 253, 191),
    ]
)


def check_drawable(path: str | Path, rows: int = 1, cell: int = CELL, *, beside: Sequence[str | Path] = ()) -> Path:
    """Validate early that a sheet with this number of rows can be written at this path, and return the path.

    Args:
        beside: the images that are shown, and their folders, among which the sheet must not lie.

    Raises:
        DataError: the format is unknown or cannot hold this number of rows, the folder does not exist, or the sheet
            would be one of the images.
    """
    path = Path(path)
    check_outside(path, beside)
    if path.suffix.lower() not in FORMATS or not path.parent.is_dir():
        raise DataError(f"{path}: expected a picture's name, one of {', '.join(FORMATS)}, in a folder that exists")
    largest = LARGEST.get(path.suffix.lower())
    if largest and rows > (most := (largest - GAP) // (cell + CAPTION + GAP)):
        raise DataError(f"{path}: expected at most {most} rows, found {rows}; write a .png")
    return path


def draw_map(values: Tensor, side: tuple[int, int], look: Look) -> Image.Image:
    """Draw a map of h x w patches as a picture.

    Single values (0 ... 1) are drawn as a glow, three values as red, green and blue, and True as white.

    Args:
        side: (height, width) of the picture, pixels.
        look: "smooth" interpolates between patches; "blocky" shows the patches.
    """
    array = values.float().clamp(0, 1).numpy()
    if values.dtype == torch.bool:
        array = array[..., None].repeat(3, axis=-1)
    elif array.ndim == 2:
        place = array * (len(GLOW) - 1)
        array = np.stack([np.interp(place, np.arange(len(GLOW)), GLOW[:, c]) for c in range(3)], axis=-1) / 255
    picture = Image.fromarray((array * 255).round().astype(np.uint8))
    how = Image.Resampling.BICUBIC if look == "smooth" else Image.Resampling.NEAREST
    return picture.resize((side[1], side[0]), how)


def draw_sheet(rows: Sequence[Sequence[tuple[Image.Image, str]]], path: Path, *, cell: int = CELL) -> None:
    """Write rows of pictures with captions below them to a file, whole or not at all.

    Args:
        cell: pixels of a picture's longer side.
    """
    font = ImageFont.load_default(size=12)
    step_x, step_y = cell + GAP, cell + CAPTION + GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * step_x + GAP, len(rows) * step_y + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(track(rows, "drawing", total=len(rows), unit="rows")):
        for j, (picture, caption) in enumerate(row):
            scale = cell / max(picture.size)
            how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            x, y = GAP + j * step_x, GAP + i * step_y
            sheet.paste(picture.convert("RGB").resize(size, how), (x, y))
            draw.text((x, y + cell + 1), _shorten(caption, font, cell), fill=INK, font=font)
    with written_whole(path) as beside:
        sheet.save(beside)


def join_pictures(pictures: Sequence[Image.Image], cell: int) -> Image.Image:
    """Join pictures side by side, each resized to a square of `cell` pixels."""
    row = Image.new("RGB", (len(pictures) * (cell + GAP) - GAP, cell), PAPER)
    for i, picture in enumerate(pictures):
        row.paste(picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS), (i * (cell + GAP), 0))
    return row


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut off the start of a text that is too wide, because names differ at their ends."""
    whole = text
    while text and font.getlength(text if text == whole else "…" + text) > width:
        text = text[1:]
    return text if text == whole else "…" + text
