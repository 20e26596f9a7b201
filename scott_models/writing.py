"""Write files so that each is either complete or unchanged, even if writing is interrupted; make the JSON in them."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import WritingError, advise


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write. At the end, rename this file to `path`; after an error, remove it.

    The temporary file lies in the folder of `path`. It has the same suffix, and a name that no other process uses.

    Raises:
        WritingError: the file cannot be written.
    """
    beside = path.with_name(f".{path.stem[:32]}-{uuid4().hex}{path.suffix}")
    try:
        with explain_failure(path):
            yield beside
            beside.replace(path)
    finally:
        with suppress(OSError):  # the disk was lost or is read-only: the first error tells
            beside.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str, errors: str = "backslashreplace") -> None:
    """Write a text file in UTF-8, completely or not at all.

    Args:
        errors: how to write what UTF-8 lacks, i.e. the bytes of names that are not UTF-8: by default as escapes for
            readers; by "surrogateescape" as these bytes, for a file that is read with the same `errors`.

    Raises:
        WritingError: the file cannot be written.
    """
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8", errors=errors)


@contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Write a file in this context, and do nothing else: an error of the system becomes a sentence.

    Raises:
        WritingError: the file cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        system: BaseException | None = error
        while system is not None and not isinstance(system, OSError):  # torch's writer raises another error after it
            system = system.__context__
        if system is None:
            raise
        raise WritingError(f"{path}: cannot be written {describe_failure(system)}") from error


def describe_failure(error: OSError, otherwise: str = "") -> str:
    """Return why something cannot be written, and what to do, e.g. "(No space left on device); make room".

    Args:
        otherwise: what else the user may do, after "or".
    """
    advice = [advise(error) or "check the folder and its disk", *([otherwise] if otherwise else [])]
    return f"({error.strerror or error}); {' or '.join(advice)}"


def to_json(value: Any, **options: Any) -> str:
    """Return a value as JSON. NaN and infinity, which JSON lacks, become null at any depth.

    Args:
        options: of `json.dumps`.
    """
    return json.dumps(replace_non_finite(value), allow_nan=False, **options)


def replace_non_finite(value: Any) -> Any:
    """Replace floats that are infinite or NaN by None, at any depth, since JSON has neither."""
    if isinstance(value, dict):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
