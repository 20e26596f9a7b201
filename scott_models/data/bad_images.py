"""Name all bad images of a job at once, or leave them out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..console import say
from ..errors import DataError
from ..progress import track
from .files import find_images
from .images import SMALLEST_SIDE, BadImage, Row, load_image
from .parallel import load_batches

LISTED = 20  # the most bad files that a message names
AT_ONCE = 256  # images that are checked between two states of the progress bar
ADVICE = "remove them, or leave them out with --bad-images skip"


def find_bad(images: Sequence[Path | Row]) -> dict[int, str]:
    """Decode every image; return the reason of each bad image, by its index."""

    def find_reason(image: Path | Row) -> str | None:
        try:
            load_image(image, SMALLEST_SIDE)  # JPEGs at a fraction, which is faster
        except BadImage as error:
            return str(error)
        return None

    chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
    reasons: list[str | None] = []
    for found in load_batches(track(chunks, "checking", total=len(images), size=AT_ONCE), find_reason, list):
        reasons += found
    return {i: reason for i, reason in enumerate(reasons) if reason}


def list_bad(bad: Mapping[int, str], count: int, more: Path | None = None) -> str:
    """List bad images with their reasons, one on a line; of many only the first.

    Args:
        count: number of images in all.
        more: file to write all reasons to if there are too many to list.
    """
    lines = [f"{len(bad)} of {count} images cannot be used:", *bad.values()]
    if len(bad) > LISTED:
        if more:
            more.write_text("\n".join(lines[1:]) + "\n", encoding="utf-8", errors="backslashreplace")
        lines = [*lines[: LISTED + 1], f"... and {len(bad) - LISTED} more{f': {more}' if more else ''}"]
    return "\n".join(lines)


def leave_out_bad(images: Sequence[Path | Row]) -> list[int]:
    """Return the indices of the good images, and list the bad images in a note.

    Raises:
        DataError: all images are bad.
    """
    bad = find_bad(images)
    if bad:
        message = list_bad(bad, len(images))
        if len(bad) == len(images):
            raise DataError(message)
        say(f"{message}\nthey are left out")
    return [i for i in range(len(images)) if i not in bad]


def find_good_images(folders: Sequence[str | Path], *, skip_bad: bool = False) -> list[Path]:
    """Find the image files below folders as `find_images` does; with `skip_bad` leave out the bad ones, with a note."""
    paths = find_images(folders, skip_bad=skip_bad)
    return [paths[i] for i in leave_out_bad(paths)] if skip_bad else paths


def check_images(images: Sequence[Path | Row]) -> None:
    """Validate early: decode every image before long work.

    Raises:
        DataError: images are bad; the message lists them.
    """
    if bad := find_bad(images):
        raise DataError(f"{list_bad(bad, len(images))}\n{ADVICE}")


@contextmanager
def all_bad_listed(images: Sequence[Path | Row]) -> Iterator[None]:
    """Work on images in this context: if one of them is bad, check the others too and raise a list of all bad ones.

    Raises:
        DataError: an image is bad.
    """
    try:
        yield
    except BadImage as error:
        bad = find_bad(images)
        if len(bad) < 2:  # its own sentence says it all; or it has changed since
            raise
        raise DataError(f"{list_bad(bad, len(images))}\n{ADVICE}") from error
