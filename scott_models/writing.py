"""Write files so that each is either complete or unchanged, even if writing is interrupted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write. At the end, rename this file to `path`; after an error, remove it.

    The temporary file lies in the folder of `path`. It has the same suffix, and a name that no other process uses.
    """
    beside = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
