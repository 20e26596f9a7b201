import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from scott_models.data import decoded
from scott_models.data.loader import Crops
from scott_models.data.sources import find_samples
from scott_models.errors import DataError, UserError
from scott_models.pretrain import vocabulary
from scott_models.pretrain.vocabulary import FILE, PER_CROP, Vocabulary, cut_patches, make_words

SIZE = 48  # pixels: 9 patches


@pytest.fixture
def crops(photos):
    return Crops(decoded.open_images(find_samples([photos]), 60), SIZE, seed=0)


def test_patches_row_by_row():
    images = torch.randn(2, 3, 32, 48)
    patches = cut_patches(images, 16)
    assert patches.shape == (2, 6, 768)
    second_row = images[1, :, 16:, :16].flatten()
    torch.testing.assert_close(patches[1, 3], second_row / second_row.norm())


@pytest.mark.parametrize("kind", ["patches", "kmeans", "projection"])
def test_words_are_directions_that_a_seed_decides(crops, kind):
    words = make_words(crops, 16, kind, size=12, seed=0)
    assert words.shape == (12, 768)
    torch.testing.assert_close(words.norm(dim=1), torch.ones(12))
    assert torch.equal(make_words(crops, 16, kind, size=12, seed=0), words)
    assert not torch.equal(make_words(crops, 16, kind, size=12, seed=1), words)
    assert len(words.unique(dim=0)) == 12


def test_projections_look_at_no_image(crops, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "others").mkdir()
    for i in range(12):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "others" / f"{i}.png")
    others = Crops(decoded.open_images(find_samples([tmp_path / "others"]), 60), SIZE, seed=0)
    for kind, alike in (("projection", True), ("patches", False)):
        made = [make_words(source, 16, kind, size=12, seed=0) for source in (crops, others)]
        assert torch.equal(*made) == alike


def test_words_that_are_patches_are_of_every_kind_of_image(crops, monkeypatch):
    """Check that words come from red and from blue pictures, and at most `PER_CROP` of them from one crop."""
    asked = []
    getitems = Crops.__getitems__
    monkeypatch.setattr(Crops, "__getitems__", lambda self, places: asked.extend(places) or getitems(self, places))
    words = make_words(crops, 16, "patches", size=5 * PER_CROP, seed=0).view(-1, 3, 256).mean(dim=-1)
    red = words[:, 0] > words[:, 2]
    assert 0 < red.sum() < len(words)
    assert len(set(asked)) == 5


def test_centres_find_the_clusters(crops):
    """Expect one centre for each of two kinds of patches."""
    words = make_words(crops, 16, "kmeans", size=2, seed=0).view(2, 3, 256).mean(dim=-1)
    assert sorted((words[:, 0] > words[:, 2]).tolist()) == [False, True]


def test_as_many_words_as_the_images_have_patches(crops):
    assert len(make_words(crops, 16, "patches", size=8192, seed=0)) == 12 * 9


def test_tokens_are_the_nearest_words(crops, tmp_path, monkeypatch):
    filled = Vocabulary(16, 40)
    filled.fill(crops, tmp_path)
    images = torch.randn(3, 3, SIZE, SIZE)
    cosines = cut_patches(images, 16) @ filled.words.T
    assert torch.equal(filled(images), cosines.argmax(dim=-1))
    monkeypatch.setattr("scott_models.pretrain.vocabulary.PIECE", 7 * 40)  # 7 patches at a time
    assert torch.equal(filled(images), cosines.argmax(dim=-1))
    own = filled.words[5].view(1, 3, 16, 16).repeat(1, 1, 3, 3)
    assert (filled(7 * own) == 5).all()  # the contrast does not matter


def test_a_run_keeps_its_words(crops, tmp_path, monkeypatch):
    first, again = Vocabulary(16, 20), Vocabulary(16, 20)
    first.fill(crops, tmp_path / "run")
    monkeypatch.setattr(vocabulary, "make_words", None)  # words are read, not made again
    again.fill(crops, tmp_path / "run")
    assert torch.equal(again.words, first.words)
    assert torch.equal(load_file(tmp_path / "run" / FILE)["words"], first.words)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]
    assert first.state_dict() == {}  # checkpoints do not hold the words


@pytest.mark.parametrize("changes", [{"seed": 1}, {"size": 30}, {"kind": "projection"}])
def test_other_words_are_made_anew_before_a_run_began_and_refused_afterwards(crops, tmp_path, changes, capsys):
    Vocabulary(16, 20).fill(crops, tmp_path)
    other, expected = Vocabulary(16, **{"size": 20, **changes}), Vocabulary(16, **{"size": 20, **changes})
    other.fill(crops, tmp_path)
    expected.fill(crops, tmp_path / "of its own")
    assert torch.equal(other.words, expected.words)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000001.pt").touch()
    with pytest.raises(DataError, match=r"words \(patches 20 0 16 48 .*found others.*delete it"):
        Vocabulary(16, 20).fill(crops, tmp_path)
    (tmp_path / FILE).unlink()
    other.fill(crops, tmp_path)
    assert "expected the run's words, found no file" in capsys.readouterr().err
    assert torch.equal(other.words, expected.words)


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_damaged_words_are_told(crops, tmp_path, damage):
    Vocabulary(16, 20).fill(crops, tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    content = {"cut": whole[:1000], "empty": b"", "foreign": save({"weights": torch.zeros(2)})}[damage]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match="words.*damaged file.*delete it"):
        Vocabulary(16, 20).fill(crops, tmp_path)


def test_kmeans_is_asked_for_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match="kmeans"):
        Vocabulary(16, 20, kind="kmeans")


def test_without_words_there_are_no_tokens():
    with pytest.raises(RuntimeError, match="expected words, found none"):
        Vocabulary(16)(torch.zeros(1, 3, 32, 32))
