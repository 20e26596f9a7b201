"""Images from folders: found, checked, turned upright, decoded once."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import DataError
from .progress import track

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST_SIDE = 16  # pixels: one patch
LISTED = 20  # bad files that an error names


def find_images(folders: Sequence[str | Path]) -> list[Path]:
    """Every image file below the folders (flat, nested, or by class), sorted within each; a file stands for itself.

    Raises:
        DataError: no folder at all, or one that is not there or holds no image.
    """
    if not folders:
        raise DataError("expected at least one folder of images, got none")
    found = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise DataError(f"{folder}: expected a folder of images, found nothing there")
        inside = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        inside = [path for path in inside if path.is_file()]
        if not inside:
            raise DataError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none in this folder or below")
        found += inside
    return found


def load_image(path: str | Path) -> Image.Image:
    """One image file, upright by its EXIF orientation, as RGB; transparency shows white.

    Raises:
        DataError: a file that is no image or is damaged, or an image smaller than one patch on a side.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable metadata; what cannot be read raises
            with Image.open(path) as file:
                if file.mode in ("I", "F"):
                    raise DataError(f"{path}: expected 8 or 16 bits a channel, found 32; convert it to 8-bit RGB")
                image = _to_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found a file that is none") from None
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # damage makes decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: expected a whole image, found a damaged one ({error})") from None
    if min(image.size) < SMALLEST_SIDE:
        raise DataError(
            f"{path}: expected at least {SMALLEST_SIDE} pixels on each side, found {image.width} x {image.height}"
        )
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip it to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Images:
    """Decoded images of any shapes in one flat buffer.

    Attributes:
        pixels: uint8, all images one after the other, each (H, W, 3).
        offsets: int64 (N,), where each begins.
        sizes: int64 (N, 2), height and width of each.
    """

    paths: list[Path]
    pixels: Tensor
    offsets: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, uint8 (3, H, W), a view of the buffer."""
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        return self.pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)


def decode(paths: Sequence[Path], short_side: int) -> Images:
    """Decode all images once, in parallel, larger ones reduced to `short_side` pixels (aspect kept) on the short side.

    Raises:
        DataError: bad files, all of them listed with their reasons.
    """

    def one(path: Path) -> Any:
        """The pixels, or what is wrong with the file."""
        try:
            image = load_image(path)
        except DataError as error:
            return error
        scale = short_side / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        return np.asarray(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(track(pool.map(one, paths), "decoding", total=len(paths)))
    bad = [str(result) for result in results if isinstance(result, DataError)]
    if bad:
        more = [f"... and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
        raise DataError("\n".join([f"{len(bad)} of {len(results)} images cannot be used:", *bad[:LISTED], *more]))
    sizes = torch.tensor([array.shape[:2] for array in results])
    lengths = sizes.prod(dim=1) * 3
    pixels = torch.from_numpy(np.concatenate([array.reshape(-1) for array in results]))
    return Images(list(paths), pixels, lengths.cumsum(0) - lengths, sizes)
