import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from scott_models.data import decode, find_images, load_image
from scott_models.errors import DataError

GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)


def test_finds_flat_nested_and_by_class_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "deep/d.tif", "deep/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert names == ["a.png", "b.JPG", "deep/d.tif", "deep/er/c.webp"]
    assert find_images([tmp_path / "deep", tmp_path / "a.png"])[-1] == tmp_path / "a.png"


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere: expected a folder of images, found nothing there"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"expected images \(.jpg, .*\), found none in this folder or below"):
        find_images([tmp_path])
    with pytest.raises(DataError, match="expected at least one folder"):
        find_images([])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(GRADIENT).save(path, **options)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 40))
    assert np.abs(np.asarray(image).astype(int) - GRADIENT).max() <= (12 if suffix == "jpg" else 0)


def test_every_mode_becomes_rgb(tmp_path):
    def loaded(image, name):
        image.save(tmp_path / name)
        image = load_image(tmp_path / name)
        assert image.mode == "RGB"
        return np.asarray(image)

    colour = Image.fromarray(GRADIENT)
    gray = np.repeat(np.asarray(colour.convert("L"))[..., None], 3, axis=2)
    assert np.array_equal(loaded(colour.convert("L"), "gray.png"), gray)
    assert np.array_equal(
        loaded(Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) << 8), "gray16.png"), gray
    )
    palette = colour.convert("P")
    assert np.array_equal(loaded(palette, "palette.png"), np.asarray(palette.convert("RGB")))
    assert np.array_equal(loaded(colour.convert("RGBA"), "opaque.png"), GRADIENT)
    assert np.abs(loaded(colour.convert("CMYK"), "cmyk.tif").astype(int) - GRADIENT).max() <= 2
    clear = colour.convert("RGBA")
    clear.putalpha(0)
    assert (loaded(clear, "clear.png") == 255).all()
    bilevel = loaded(colour.convert("1"), "bilevel.png")
    assert set(np.unique(bilevel)) == {0, 255}


def test_rotated_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    lying = Image.fromarray(np.rot90(GRADIENT).copy())
    lying.save(tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "rotated.png")), GRADIENT)


def bad_files(folder):
    """Four files that cannot be used, by name, with what is said of each."""
    Image.fromarray(GRADIENT).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    Image.fromarray(GRADIENT[:10]).save(folder / "tiny.png")
    return {
        "cut.png": "expected a whole image, found a damaged one",
        "empty.jpg": "expected an image, found a file that is none",
        "text.jpg": "expected an image, found a file that is none",
        "tiny.png": "expected at least 16 pixels on each side, found 30 x 10",
    }


def test_bad_files_are_named_with_their_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tiff", "png"])
def test_damage_anywhere_is_no_traceback(tmp_path, suffix):
    """Files cut at any place, and files with a run of zeros, are refused or read, never anything else."""
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 25)):
        zeroed = whole[:place] + bytes(min(64, len(whole) - place)) + whole[place + 64 :]
        for content in (whole[:place], zeroed):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                load_image(path)
                continue
            refused += 1
    assert refused > 10


def test_more_than_16_bits_are_refused(tmp_path):
    for mode in ("I", "F"):
        Image.new(mode, (20, 20)).save(tmp_path / "deep.tif")
        with pytest.raises(DataError, match="expected 8 or 16 bits a channel, found 32"):
            load_image(tmp_path / "deep.tif")


def test_decoding_lists_all_bad_files(tmp_path):
    expected = bad_files(tmp_path)
    with pytest.raises(DataError, match="4 of 5 images cannot be used") as caught:
        decode(find_images([tmp_path]), 32)
    for name, reason in expected.items():
        assert f"{name}: {reason}" in str(caught.value)


def test_decoded_images_keep_their_shapes(photos, tmp_path):
    Image.fromarray(GRADIENT).save(photos / "red" / "0.png")
    paths = find_images([photos])
    images = decode(paths, 36)
    assert len(images) == 12
    assert images[0].dtype == torch.uint8
    assert images[0].shape == (3, 36, 40)  # reduced from 72 x 80
    small = paths.index(photos / "red" / "0.png")
    assert torch.equal(images[small], torch.from_numpy(GRADIENT).permute(2, 0, 1))  # never enlarged
    blue, red = (images[i].float().mean(dim=(1, 2)) for i in (0, 11))
    assert blue.argmax() == 2
    assert red.argmax() == 0
