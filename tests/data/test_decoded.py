import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scott_models.data import decoded
from scott_models.data.bad_images import LISTED
from scott_models.data.sources import Sample, find_samples
from scott_models.errors import DataError


@pytest.fixture
def samples(photos):
    return find_samples([photos])


def cached():
    return list(decoded.find_cache_folder().iterdir())


def test_decoded_images_keep_their_shapes(photos):
    gradient = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    Image.fromarray(gradient).save(photos / "red" / "0.png")
    images = decoded.open_images(find_samples([photos]), 36)
    assert len(images) == 12
    assert images[0].dtype == torch.uint8
    assert images[0].shape == (3, 36, 40)  # reduced from 72 x 80
    small = [sample.image for sample in images.samples].index(photos / "red" / "0.png")
    assert images[small].shape == (3, 40, 30)
    assert torch.equal(images[small], torch.from_numpy(gradient).permute(2, 0, 1))  # never enlarged
    blue, red = (images[i].float().mean(dim=(1, 2)) for i in (0, 11))
    assert blue.argmax() == 2
    assert red.argmax() == 0


def test_the_next_run_finds_them_decoded(samples, monkeypatch):
    first = decoded.open_images(samples, 36)
    monkeypatch.setattr(decoded, "decode", None)
    second = decoded.open_images(samples, 36)
    assert all(torch.equal(first[i], second[i]) for i in range(12))
    with pytest.raises(TypeError):  # another size needs another cache
        decoded.open_images(samples, 40)


def test_a_changed_file_is_decoded_again(samples):
    before = decoded.open_images(samples, 36)[0].clone()
    Image.new("RGB", (80, 72), "green").save(samples[0].image)
    assert not torch.equal(decoded.open_images(samples, 36)[0], before)
    assert len(cached()) == 2


def test_other_content_of_the_same_size_and_time_is_noticed(tmp_path):
    """Check a copy that keeps the time of the last change, as `cp -p`, rsync and archives do."""
    path = tmp_path / "a.bmp"  # without compression, so that all contents have one size
    Image.new("RGB", (20, 20), "red").save(path)
    before, found = path.stat(), [Sample(path)]
    red = decoded.open_images(found, 20)
    Image.new("RGB", (20, 20), "blue").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert decoded.open_images(found, 20).digest != red.digest


def test_a_file_that_is_gone_is_a_bad_image(photos):
    found = find_samples([photos])
    found[3].image.unlink()
    with pytest.raises(DataError, match="1 of 12.*\n.*opened"):
        decoded.open_images(found, 20)
    assert len(decoded.open_images(found, 20, skip_bad=True)) == 11


def test_writing_to_an_image_leaves_the_cache_alone(samples):
    images = decoded.open_images(samples, 36)
    before = images[0].clone()
    images.pixels.zero_()
    assert torch.equal(decoded.open_images(samples, 36)[0], before)


@pytest.mark.parametrize("name", ["pixels", "index"])
def test_a_cut_cache_is_made_anew(samples, name):
    before = decoded.open_images(samples, 36)[3].clone()
    (folder,) = cached()
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert torch.equal(decoded.open_images(samples, 36)[3], before)
    assert (folder / name).stat().st_size == len(whole)


def test_a_stop_while_writing_leaves_nothing(samples, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        decoded.open_images(samples, 36)
    assert cached() == []


def test_what_a_killed_process_left_is_removed_in_time(samples):
    decoded.find_cache_folder().mkdir(exist_ok=True)
    old, new = (decoded.find_cache_folder() / f"{decoded.PARTIAL}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "pixels").write_bytes(b"half")
    hours_ago = time.time() - 2 * decoded.ABANDONED
    for path in (old / "pixels", old):
        os.utime(path, (hours_ago, hours_ago))
    decoded.open_images(samples, 36)
    assert not old.exists()
    assert new.exists()  # another process may be writing there


def test_a_full_disk_is_told_in_a_sentence(samples, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match="No space left.*make room.*SCOTT_MODELS_CACHE.*decoded images"):
        decoded.open_images(samples, 36)
    assert cached() == []


def test_large_sets_are_decoded_at_every_use(samples, monkeypatch):
    kept = decoded.open_images(samples, 36)
    for folder in cached():
        (folder / "index").unlink()
    monkeypatch.setattr(decoded, "LARGEST", kept.pixels.nbytes - 1)
    streamed = decoded.open_images(samples, 36)
    assert streamed.pixels is None
    assert all(torch.equal(kept[i], streamed[i]) for i in range(12))
    assert np.array_equal(kept.sizes, streamed.sizes)
    assert [path.name for path in cached()[0].iterdir()] == ["index"]
    monkeypatch.setattr(decoded, "decode", None)
    assert decoded.open_images(samples, 36).pixels is None  # bad files are known without decoding again


def test_bad_files_are_all_listed(tmp_path, bad_files, monkeypatch, capsys):
    samples = find_samples([tmp_path])
    for _ in range(2):  # the second time, the cache's index lists the bad files
        with pytest.raises(DataError, match="4 of 5 images cannot be used") as caught:
            decoded.open_images(samples, 32)
        for name, reason in bad_files.items():
            assert f"{name}: {reason}" in str(caught.value)
        assert "--bad-images skip" in str(caught.value)
        monkeypatch.setattr(decoded, "decode", None)
    images = decoded.open_images(samples, 32, skip_bad=True)
    assert [sample.image.name for sample in images.samples] == ["whole.png"]
    assert images[0].shape == (3, 40, 30)
    assert "they are left out" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(DataError, match="4 of 4"):
        decoded.open_images([s for s in samples if s.image.name != "whole.png"], 32, skip_bad=True)


def test_what_was_bad_may_be_mended(photos, monkeypatch):
    """Check that an image that failed once is tried again by the next run."""
    load, broken = decoded.load_image, photos / "red" / "0.png"

    def hiccup(image, *arguments):
        if image == broken:
            raise DataError(f"{image}: expected a whole image, found a damaged one (input/output error)")
        return load(image, *arguments)

    monkeypatch.setattr(decoded, "load_image", hiccup)
    assert len(decoded.open_images(find_samples([photos]), 36, skip_bad=True)) == 11
    monkeypatch.undo()
    assert len(decoded.open_images(find_samples([photos]), 36, skip_bad=True)) == 12


def test_of_two_processes_the_first_to_end_serves_both(samples, monkeypatch):
    write, others = decoded._write, []

    def overtaken(samples, short_side, folder):
        index = write(samples, short_side, folder)
        if not others:
            others.append(None)
            others[0] = decoded.open_images(samples, short_side)
        return index

    monkeypatch.setattr(decoded, "_write", overtaken)
    ours = decoded.open_images(samples, 36)
    assert torch.equal(ours[3], others[0][3])
    assert len(cached()) == 1


def test_very_many_bad_images_are_listed_in_a_file(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(LISTED + 3):
        (folder / f"{i:02d}.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"and 3 more: .*bad_images.txt") as caught:
        decoded.open_images(find_samples([folder]), 36)
    listed = next(decoded.find_cache_folder().glob("*/bad_images.txt")).read_text().splitlines()
    assert len(listed) == LISTED + 3
    assert "21.png" not in str(caught.value)
    assert "21.png" in listed[21]


def test_the_digest_is_of_the_pixels(photos, tmp_path):
    before = decoded.open_images(find_samples([photos]), 36).digest
    moved = photos.rename(tmp_path / "moved")
    assert decoded.open_images(find_samples([moved]), 36).digest == before
    Image.new("RGB", (80, 72), "green").save(moved / "red" / "0.png")
    assert decoded.open_images(find_samples([moved]), 36).digest != before


def test_copies_are_known(photos, capsys):
    (photos / "red" / "copy.png").write_bytes((photos / "blue" / "3.png").read_bytes())
    images = decoded.open_images(find_samples([photos]), 36)
    names = [sample.image.name for sample, copy in zip(images.samples, images.copies) if copy]
    assert names == ["copy.png"]
    assert "1 images are exact copies" in capsys.readouterr().err


def test_the_cache_of_a_user_without_a_home(monkeypatch):
    """Imitate a container that was started with a number for a user, which no list of users has."""
    monkeypatch.setattr("os.path.expanduser", str)
    for name in ("SCOTT_MODELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert decoded.find_cache_folder().parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("XDG_CACHE_HOME", "/disk")
    assert decoded.find_cache_folder() == Path("/disk/scott_models")
