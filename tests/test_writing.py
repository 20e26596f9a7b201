"""Test that files are written whole or not at all, and what is said where they cannot be written."""

import errno
import json
import math
import os

import pytest

from scott_models.errors import DataError, WritingError
from scott_models.writing import describe_failure, explain_failure, to_json, write_text_whole, written_whole


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_text_whole(path, "before")

    def write(fail):
        with written_whole(path) as new:
            new.write_text("half")
            fail()

    with pytest.raises(WritingError, match="a.txt: cannot be written.*No space.*make room"):
        write(full)
    with pytest.raises(ZeroDivisionError):
        write(lambda: 1 / 0)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(WritingError, match="a.txt: cannot be written.*directory.*check the folder"):
        write_text_whole(tmp_path / "a.txt", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_the_longest_name_that_a_disk_takes(tmp_path):
    path = tmp_path / ("a" * 251 + ".txt")
    write_text_whole(path, "text")
    assert path.read_text() == "text"


def test_an_error_that_a_library_raised_over_the_systems(tmp_path):
    def save():
        try:
            full()
        finally:
            raise RuntimeError("torch's writer: unexpected position")

    with pytest.raises(WritingError, match="No space.*make room"), explain_failure(tmp_path):
        save()
    with pytest.raises(RuntimeError, match="mistake"), explain_failure(tmp_path):
        raise RuntimeError("mistake")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "(why); make room or choose another"),
        (errno.EDQUOT, "(why); make room or choose another"),
        (errno.EROFS, "(why); check the folder and its disk or choose another"),
        (errno.EACCES, "(why); check the folder and its disk or choose another"),
        (errno.EMFILE, "(why); allow more open files, e.g. by `ulimit -n 4096` or choose another"),
    ],
)
def test_only_a_full_disk_needs_room(number, words):
    assert describe_failure(OSError(number, "why"), "choose another") == words
    assert describe_failure(OSError("encoder error")).startswith("(encoder error); check")
    assert issubclass(WritingError, DataError)


def test_names_that_are_not_utf_8(tmp_path):
    """Write them as escapes for readers, or as their bytes for this package."""
    name = os.fsdecode(b"caf\xe9")
    write_text_whole(tmp_path / "README.md", f"images of {name}")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "images of caf\\udce9"
    write_text_whole(tmp_path / "a", name, errors="surrogateescape")
    assert (tmp_path / "a").read_bytes() == b"caf\xe9"


def test_json_has_neither_nan_nor_infinity():
    value = {"loss": math.nan, "rates": [1.0, -math.inf], "more": ({"of": math.inf},), "count": 3, "name": None}
    kept = {"loss": None, "rates": [1.0, None], "more": [{"of": None}], "count": 3, "name": None}
    assert json.loads(to_json(value)) == kept
    assert to_json(math.nan, indent=2) == "null"
    assert json.loads(to_json({"path": os.fsdecode(b"caf\xe9")})) == {"path": os.fsdecode(b"caf\xe9")}
