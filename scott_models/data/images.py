"""Load images: as RGB, upright, or refused with a sentence that says why."""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from ..errors import DataError, UserError

SMALLEST_SIDE = 16  # pixels: one patch
ENOUGH = 1024  # pixels of the short side that a JPEG beyond Pillow's limit keeps at least
ORIENTATION = 0x0112  # tag of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, LARGEST_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # values of PHOTOMETRIC and SAMPLE_FORMAT
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # chunks that say how an image looks


class BadImage(DataError):
    """Report an image that cannot be used, with its path."""


@dataclass(frozen=True)
class Row:
    """Refer to an image without a file of its own: row `index` of a Hugging Face data set, in column `column`."""

    name: str
    dataset: Any
    index: int
    column: str

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def open(self) -> Image.Image:
        return self.dataset[self.index][self.column]


def load_image(path: str | Path | Row, short_side: int | None = None) -> Image.Image:
    """Load an image as RGB, turned upright by its EXIF orientation.

    Transparent pixels are shown on white. Of an animation only the first picture is loaded. Of 16 bits the upper eight
    are kept. Metadata that cannot be read are ignored.

    Args:
        short_side: the pixels needed on the short side. A larger JPEG is then decoded at a half, a quarter or an
            eighth of its size, as long as each side keeps at least twice `short_side`. A JPEG with more pixels than
            Pillow opens is always decoded at such a fraction.

    Raises:
        BadImage: the file cannot be opened, is not an image or is damaged; or the image is too large for Pillow, has
            32 bits per channel, or is smaller than one patch on a side.
    """
    try:
        with _open(path) as file:
            if short_side:
                file.draft(None, (2 * short_side, 2 * short_side))
            loaded = _load(file, path)
            image = _to_rgb(loaded, path)
            orientation = _read_orientation(loaded)
            image = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    except UnidentifiedImageError:
        raise BadImage(f"{path}: expected an image, found another kind of file") from None
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{path}: expected an image of a size that Pillow opens, found a larger one ({error}); make the image "
            "smaller, or set SCOTT_MAX_PIXELS to a larger number of pixels"
        ) from None
    except (FileNotFoundError, PermissionError) as error:
        raise BadImage(f"{path}: cannot be opened ({error.strerror})") from None
    except UserError:
        raise
    except Exception as error:  # damage makes decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise BadImage(f"{path}: expected a whole image, found a damaged one ({error})") from None
    if min(image.size) < SMALLEST_SIDE:
        raise BadImage(
            f"{path}: expected at least {SMALLEST_SIDE} pixels on each side, found {image.width} x {image.height}"
        )
    return image


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress warnings about odd but readable files while many threads decode; unreadable files raise errors.

    Warning filters belong to the whole process, so a single thread must not change them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def prepare_pillow() -> None:
    """Let Pillow read HEIC if pillow-heif is installed, and take its limit of pixels from $SCOTT_MAX_PIXELS.

    Raises:
        UserError: SCOTT_MAX_PIXELS is not a number.
    """
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    if limit := os.environ.get("SCOTT_MAX_PIXELS"):
        if not limit.isdecimal():
            raise UserError(f"SCOTT_MAX_PIXELS: expected a number of pixels such as 400000000, found {limit!r}")
        Image.MAX_IMAGE_PIXELS = int(limit)


def _open(path: str | Path | Row) -> Image.Image:
    """Open an image without decoding its pixels."""
    if isinstance(path, Row):
        return path.open()
    prepare_pillow()
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        with Path(path).open("rb") as file:
            if file.read(3) != b"\xff\xd8\xff":
                raise
        return _open_large_jpeg(path)
    except Exception:
        if whole := _drop_metadata(Path(path)):
            return Image.open(whole)
        raise


def _open_large_jpeg(path: str | Path) -> Image.Image:
    """Open a JPEG beyond Pillow's limit at a fraction of its size, so that its pixels are within the limit."""
    image = JpegImagePlugin.JpegImageFile(path)  # Image.open would refuse the size of the file
    image.draft(None, (ENOUGH, ENOUGH))
    Image._decompression_bomb_check(image.size)
    return image


def _load(file: Image.Image, path: str | Path | Row) -> Image.Image:
    """Decode the pixels; metadata behind the pixels of a PNG may fail too."""
    try:
        file.load()
        return file
    except Exception:
        if not isinstance(path, Row) and file.format == "PNG" and (whole := _drop_metadata(Path(path))):
            return Image.open(whole)
        raise


def _drop_metadata(path: Path) -> BytesIO | None:
    """Return a PNG without texts and colour profile, whose size Pillow limits; None for other files."""
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            return None
        content = PNG_SIGNATURE + file.read()
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place : place + 12 + length]
        place += len(chunk)
        if chunk[4:8] in PNG_PIXELS:
            kept.append(chunk)
    return BytesIO(b"".join(kept))


def _read_orientation(image: Image.Image) -> int | None:
    with suppress(Exception):  # damaged EXIF raises many kinds of errors, and the pixels are whole
        return image.getexif().get(ORIENTATION)
    return None


def _to_rgb(image: Image.Image, path: str | Path | Row) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _keep_eight_bits(image, path).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _keep_eight_bits(image: Image.Image, path: str | Path | Row) -> Image.Image:
    """Keep the upper eight of 9 to 16 bits of a grey image, which Pillow would clip to white."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    signed = image.mode == "I" and tags.get(SAMPLE_FORMAT) == (SIGNED,) and tags.get(BITS) == (16,)
    of_16_bits = image.mode.startswith("I;16") or signed or (image.format == "PPM" and image.mode == "I")
    if not of_16_bits:
        raise BadImage(f"{path}: expected 8 or 16 bits per channel, found 32; convert it to 8-bit RGB")
    values = np.asarray(image).astype(np.int64) + (2**15 if signed else 0)
    bits = tags.get(BITS, (16,))[0]
    if not signed and (largest := tags.get(LARGEST_VALUE)):  # 12 bits of a camera in a file of 16
        bits = min(bits, max(8, int(np.max(largest)).bit_length()))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts files of 8 bits alone
        values = 2**bits - 1 - values
    return Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
