import os
import subprocess
import sys

import pytest

from scott_models.data.files import check_outside, find_images, is_run_folder
from scott_models.errors import DataError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(root, **options):
    return [path.relative_to(root).as_posix() for path in find_images([root], **options)]


def test_finds_flat_nested_and_by_class_in_order(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "deep/er/c.webp", "deep/d.tif", "deep/notes.txt")
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == ["a.png", "b.JPG", "deep/d.tif", "deep/er/c.webp"]
    assert find_images([tmp_path / "deep", tmp_path / "a.png"])[-1] == tmp_path / "a.png"


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "real/a.png")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "class").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "given")
    assert find_images([tmp_path / "given"]) == [tmp_path / "given" / "class" / "a.png"]


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere: .*found nothing"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"images \(.jpg, .*\), found none"):
        find_images([tmp_path])
    with pytest.raises(DataError, match="expected at least one folder"):
        find_images([])
    touch(tmp_path, "scan.dcm")
    with pytest.raises(DataError, match=r"found none.*besides 1 \.dcm"):
        find_images([tmp_path])


def test_files_of_systems_are_no_images(tmp_path, capfd):
    touch(tmp_path, "a.png", "._a.png", ".hidden.png", "__MACOSX/a.png", ".Trash-1000/a.png", "@eaDir/a.png")
    touch(tmp_path, "$RECYCLE.BIN/a.png", "System Volume Information/a.png", "lost+found/a.png", ".thumbnails/a.png")
    assert names(tmp_path) == ["a.png"]
    assert capfd.readouterr().err == ""
    assert names(tmp_path / ".thumbnails") == ["a.png"]  # a hidden folder may be given itself


def test_the_pictures_of_a_run_are_no_images(tmp_path):
    touch(tmp_path, "a.png", "run/recipe.toml", "run/environment.json", "run/looks/1.png")
    assert is_run_folder(tmp_path / "run")
    assert names(tmp_path) == ["a.png"]
    assert names(tmp_path / "run") == ["looks/1.png"]  # unless the run is what was given


def test_pictures_of_other_formats_are_counted(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("scott_models.data.files.find_spec", lambda name: None)
    touch(tmp_path, "a.png", "a.jfif", "a.avif", "a.jp2", "a.ppm", "b.heic", "c.HEIC", "d.dng", "labels.csv")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path) == ["a.avif", "a.jfif", "a.jp2", "a.png", "a.ppm"]
    note = capfd.readouterr().err
    assert "1 .dng" in note
    assert "2 .heic" in note
    assert "pillow-heif" in note
    assert "1 links" in note
    assert ".csv" not in note
    monkeypatch.setattr("scott_models.data.files.find_spec", lambda name: "as if it were installed")
    assert "b.heic" in names(tmp_path)


def test_folders_that_cannot_be_entered(tmp_path, capfd, monkeypatch):
    touch(tmp_path, "open/a.png", "closed/b.png")
    walk = os.walk

    def refuse(root, onerror=None, **options):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "closed")))
        return (step for step in walk(root, **options) if "closed" not in step[0])

    monkeypatch.setattr("os.walk", refuse)  # root may read everything
    with pytest.raises(DataError, match="cannot be entered.*closed.*Permission denied.*--bad-images skip"):
        find_images([tmp_path])
    assert names(tmp_path, skip_bad=True) == ["open/a.png"]
    assert "closed (Permission denied)" in capfd.readouterr().err


def test_walking_reports_a_closed_folder(tmp_path):
    """Check by a process without root's rights that os.walk reports what it cannot enter."""
    touch(tmp_path, "closed/b.png", "a.png")
    (tmp_path / "closed").chmod(0)
    code = "import sys; from scott_models.data.files import find_images; find_images([sys.argv[1]])"
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    try:
        command = [*drop, sys.executable, "-c", code, str(tmp_path)]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs setpriv")
    finally:
        (tmp_path / "closed").chmod(0o755)
    if "setpriv" in ran.stderr:
        pytest.skip("setpriv cannot drop rights here")
    assert "cannot be entered" in ran.stderr


def test_a_picture_may_not_join_its_images(tmp_path):
    touch(tmp_path, "photos/a.png")
    check_outside(tmp_path / "out.png", [tmp_path / "photos", tmp_path / "photos" / "a.png"])
    for inside in ("photos/out.png", "photos/deep/out.png"):
        with pytest.raises(DataError, match="outside of.*photos"):
            check_outside(tmp_path / inside, [tmp_path / "photos"])
    with pytest.raises(DataError, match=r"a\.png"):
        check_outside(tmp_path / "photos" / "a.png", [tmp_path / "photos" / "a.png"])
