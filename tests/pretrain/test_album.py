import errno
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from scott_models.errors import WritingError
from scott_models.pictures.sheet import GAP
from scott_models.pretrain.album import CELL, PICTURES, Album


@pytest.fixture
def album(tiny, tmp_path):
    images = [torch.randint(256, (3, 80, 70 + i), dtype=torch.uint8) for i in range(PICTURES + 1)]
    return Album(tmp_path / "looks", images, 64, tiny, nullcontext)


def test_strips_of_finer_maps(album, tiny):
    assert album.encoder.patch_embed.grid_size == (8, 8)
    assert tiny.patch_embed.grid_size == (4, 4)  # the encoder itself is unchanged
    album.add(0, tiny)
    torch.nn.init.normal_(tiny.patch_embed.conv2.weight)
    album.add(123, tiny)
    size = (PICTURES * (CELL + GAP) - GAP, CELL)
    found = {path.name: Image.open(path) for path in album.folder.iterdir()}
    assert {name: picture.size for name, picture in found.items()} == dict.fromkeys(
        ("images.webp", "step_000000000.webp", "step_000000123.webp"), size
    )
    first, second = (np.asarray(found[f"step_{step:09d}.webp"], dtype=float) for step in (0, 123))
    assert np.abs(first - second).mean() > 5  # each drawn with the weights of its step


def test_a_full_disk(album, tiny, monkeypatch):
    album.add(0, tiny)

    def full(picture, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left")

    before = sorted(album.folder.iterdir())
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WritingError, match="looks/images.webp: cannot be written.*make room"):
        album.add(1, tiny)
    assert sorted(album.folder.iterdir()) == before


def test_broken_weights_have_no_picture(album, tiny):
    torch.nn.init.constant_(tiny.patch_embed.conv2.weight, float("nan"))
    album.add(7, tiny)
    assert not album.folder.exists()
