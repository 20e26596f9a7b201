import numpy as np
import pytest
from PIL import Image, ImageDraw

from scott_models.data.duplicates import find_duplicates


@pytest.fixture
def pictures(tmp_path):
    """Write eight pictures of random discs; return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(8):
        picture = Image.new("RGB", (200, 160), tuple(rng.integers(0, 255, 3).tolist()))
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y, r = rng.integers(0, 200), rng.integers(0, 160), rng.integers(10, 60)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 255, 3).tolist()))
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    return paths


def test_exact_and_near_copies_are_told_apart(pictures, tmp_path):
    copy, small = tmp_path / "copy.webp", tmp_path / "small.jpg"
    Image.open(pictures[1]).save(copy, lossless=True)
    Image.open(pictures[2]).resize((100, 80)).save(small, quality=70)
    found = find_duplicates(pictures[:4], [*pictures[4:], copy, small])
    assert found.exact == [(str(copy), str(pictures[1]))]
    assert found.near == [(str(small), str(pictures[2]))]
    assert "1 test images are exact copies of training images, 1 more are nearly the same" in str(found)
    assert str(copy) in str(found)


def test_different_pictures_are_none(pictures):
    found = find_duplicates(pictures[:4], pictures[4:])
    assert not found.exact
    assert not found.near
    assert str(found) == "no test image is a copy of a training image, exact or near"
