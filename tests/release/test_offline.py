import errno
import json
import os
from pathlib import Path

import pytest
import timm
import torch

from scott_models import weights
from scott_models.errors import WeightsError, WritingError
from scott_models.release.offline import download, find_tag
from scott_models.weights import files, manifest

TAG = "scott_3_16.mimjepa_flowers102_cpu"
CHECKOUT = Path(__file__).parents[2]


def test_models_mean_their_default_tag():
    assert find_tag("scott_3_16") == find_tag(TAG) == TAG
    with pytest.raises(WeightsError, match=r"scott_vit_7_16.*no such weights.*\['scott_12"):
        download(find_tag("scott_vit_7_16"))


def test_without_a_folder_it_is_where_it_would_load_from():
    assert download(TAG) == weights.resolve(TAG)


def test_a_folder_holds_the_whole_release(tmp_path, monkeypatch):
    path = download(TAG, tmp_path / "models")
    assert path == tmp_path / "models" / TAG / "model.safetensors"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "pca.webp")
    ]
    released = CHECKOUT / "weights" / TAG
    config, expected = (json.loads((folder / "config.json").read_text()) for folder in (path.parent, released))
    assert config["architecture"] == expected["architecture"]
    assert config["model_args"] == expected["model_args"]
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path / "models"))
    assert weights.resolve(TAG) == path
    images = torch.randn(2, 3, 112, 112)
    by_name, by_folder = (timm.create_model(n, pretrained=True).eval() for n in (TAG, f"local-dir:{path.parent}"))
    assert by_name.pretrained_cfg["file"] == str(path)
    assert torch.equal(by_name(images), by_folder(images))


@pytest.mark.parametrize("name", ["shutil.copyfile", "pathlib.Path.write_bytes"])  # the weights; the picture after them
def test_a_full_disk_leaves_nothing(name, tmp_path, monkeypatch):
    """Expect a sentence about the place, not about the weights that are copied."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left", "the released weights")

    monkeypatch.setattr(name, full)
    with pytest.raises(WritingError, match=f"models/{TAG}/.*: cannot be written.*make room"):
        download(TAG, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "models").mkdir()
    with pytest.raises(WritingError, match="make room"):
        download(TAG, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", str)
    with pytest.raises(WeightsError, match="~/models: expected a folder.*without a home"):
        download(TAG, "~/models")


def test_what_is_there_stays_and_what_is_damaged_is_replaced(tmp_path, monkeypatch):
    path = download(TAG, tmp_path)
    good, inode = path.read_bytes(), path.stat().st_ino
    assert download(TAG, tmp_path).stat().st_ino == inode
    path.with_name("config.json").unlink()
    download(TAG, tmp_path)
    assert path.with_name("config.json").is_file()
    path.write_bytes(good[:1000])
    monkeypatch.setenv("SCOTT_MODELS_DIR", str(tmp_path))  # the damaged file is found first, and must not be used
    assert download(TAG, tmp_path).read_bytes() == good


def test_folders_that_may_not_be_looked_into(tmp_path, monkeypatch):
    """Skip a folder without permission, e.g. another user's, and search the next one."""
    stat, closed = os.stat, tmp_path / "closed"

    def guarded(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)) and closed in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setenv("SCOTT_MODELS_DIR", str(closed))
    monkeypatch.setattr(os, "stat", guarded)
    assert (
        download(TAG, tmp_path / "models").read_bytes()
        == (CHECKOUT / "weights" / TAG / "model.safetensors").read_bytes()
    )


def test_what_is_there_is_not_verified_by_its_hash_alone(tmp_path, monkeypatch):
    download(TAG, tmp_path)
    monkeypatch.setitem(manifest(), TAG, {**manifest()[TAG], "bytes": 1})
    with pytest.raises(WeightsError, match=r"\(13046296 bytes, expected 1\)"):
        download(TAG, tmp_path)


def test_weights_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "list_folders", lambda: [tmp_path / "empty"])
    monkeypatch.setitem(manifest(), TAG, {**manifest()[TAG], "repository": None, "revision": None})
    with pytest.raises(WeightsError, match="no weight file in any of"):
        download(TAG, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    monkeypatch.setitem(manifest(), TAG, {**manifest()[TAG], "repository": "org/name", "revision": "main"})
    with pytest.raises(WeightsError, match="revision: expected a commit"):
        download(TAG, tmp_path / "models")
