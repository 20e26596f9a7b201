import pickle

import numpy as np
import pytest
from PIL import Image

from scott_models.data.images import load_image
from scott_models.data.sources import find_samples, read_imagenet100_classes
from scott_models.errors import DataError

GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)


def layout(root, *names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(GRADIENT, i)).save(path)


def known(samples, root):
    return [(sample.image.relative_to(root).as_posix(), sample.label, sample.split) for sample in samples]


def test_labels_and_splits_of_folders(tmp_path):
    layout(tmp_path, "flat.png", "cat/a.png", "train/cat/b.png", "valid/dog/c.png", "Test/d.png")
    assert known(find_samples([tmp_path]), tmp_path) == [
        ("Test/d.png", None, "test"),
        ("cat/a.png", "cat", None),
        ("flat.png", None, None),
        ("train/cat/b.png", "cat", "train"),
        ("valid/dog/c.png", "dog", "val"),
    ]
    assert known(find_samples([tmp_path], ["train", "val"]), tmp_path) == [
        ("train/cat/b.png", "cat", "train"),
        ("valid/dog/c.png", "dog", "val"),
    ]
    assert known(find_samples([tmp_path / "train", tmp_path / "Test"]), tmp_path) == [
        ("train/cat/b.png", "cat", "train"),
        ("Test/d.png", None, "test"),
    ]
    message = r"splits \['test'\].*none of \['test'\].*there are \['train'\]"
    with pytest.raises(DataError, match=message):
        find_samples([tmp_path / "train"], ["test"])
    with pytest.raises(DataError, match="there are no splits"):
        find_samples([tmp_path / "cat"], ["train"])


def test_a_class_may_be_named_like_a_split(tmp_path):
    """Check each level that a name like train may have: a split, a class in a split, a class beside others."""
    layout(tmp_path / "vehicles", "train/a.png", "bus/b.png", "plane/2020/c.png")
    assert {(sample.label, sample.split) for sample in find_samples([tmp_path / "vehicles"])} == {
        ("train", None),
        ("bus", None),
        ("plane", None),
    }
    for names in (("train", "bus"), ("valid", "invalid"), ("test", "control")):
        root = tmp_path / names[0] / "test"
        layout(root, *(f"{name}/a.png" for name in names))
        assert {(sample.label, sample.split) for sample in find_samples([root])} == {(n, "test") for n in names}


def test_splits_in_a_folder_that_is_named_like_one(tmp_path):
    layout(tmp_path / "test", "train/cat/a.png", "val/dog/b.png")
    assert known(find_samples([tmp_path / "test"]), tmp_path / "test") == [
        ("train/cat/a.png", "cat", "train"),
        ("val/dog/b.png", "dog", "val"),
    ]


def test_a_class_may_have_folders(tmp_path):
    layout(tmp_path, "cat/2020/a.png", "cat/2021/b.png", "dog/2020/c.png", "dog/2020/deep/d.png")
    assert [sample.label for sample in find_samples([tmp_path])] == ["cat", "cat", "dog", "dog"]


def test_imagenet100_is_a_choice_of_classes(tmp_path):
    assert len(read_imagenet100_classes()) == 100
    chosen = min(read_imagenet100_classes())
    layout(tmp_path, f"train/{chosen}/a.JPEG", "train/n00000000/b.JPEG", f"val/{chosen}/c.JPEG")
    assert known(find_samples([f"imagenet100:{tmp_path}"]), tmp_path) == [
        (f"train/{chosen}/a.JPEG", chosen, "train"),
        (f"val/{chosen}/c.JPEG", chosen, "val"),
    ]
    with pytest.raises(DataError, match="n01440764.*none of the 100"):
        find_samples([f"imagenet100:{tmp_path / 'train' / 'n00000000'}"])


def test_torchvisions_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    layout(base / "images", "Abyssinian_1.jpg", "beagle_1.jpg", "beagle_2.jpg")
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n")
    (base / "annotations" / "test.txt").write_text("beagle_2 1 2 1\n")
    samples = find_samples([f"pets37:{tmp_path}"])
    assert [sample.split for sample in samples] == ["train", "train", "test"]
    assert [sample.label for sample in samples[:2]] == ["Abyssinian", "Beagle"]
    assert load_image(samples[0].image).size == (30, 40)
    with pytest.raises(DataError, match="expected torchvision's OxfordIIITPet"):
        find_samples([f"pets37:{tmp_path / 'nowhere'}"])


def test_torchvisions_flowers(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)  # the check wants the real files
    base = tmp_path / "flowers-102"
    layout(base / "jpg", *(f"image_{i:05d}.jpg" for i in range(1, 7)))
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 1, 2, 1, 2]})
    savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    samples = find_samples([f"flowers102:{tmp_path}"])
    assert [sample.split for sample in samples] == ["train", "train", "val", "val", "test", "test"]
    assert [sample.label for sample in samples] == 3 * ["pink primrose", "hard-leaved pocket orchid"]
    assert load_image(samples[0].image).size == (30, 40)
    assert len(find_samples([f"flowers102:{tmp_path}"], ["train", "val"])) == 4


@pytest.mark.deploy
@pytest.mark.needs("datasets")
def test_hugging_face_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    layout(tmp_path / "images", "a.png", "b.png")
    files = [str(tmp_path / "images" / name) for name in ("a.png", "b.png")]
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]))
    made = datasets.Dataset.from_dict({"picture": files, "kind": [1, -1]}, features=features)
    datasets.DatasetDict(train=made, validation=made.select([1])).save_to_disk(tmp_path / "saved")
    samples = find_samples([f"hf:{tmp_path / 'saved'}"])
    assert [(sample.label, sample.split) for sample in samples] == [("dog", "train"), (None, "train"), (None, "val")]
    assert np.array_equal(np.asarray(load_image(samples[0].image)), GRADIENT)
    assert pickle.loads(pickle.dumps(samples[0])).label == "dog"  # samples reach worker processes pickled
    made.remove_columns("picture").save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match=r"expected a column of images, found \['kind'\]"):
        find_samples([f"hf:{tmp_path / 'bare'}"])
    with pytest.raises(DataError, match="cannot be loaded by datasets"):
        find_samples([f"hf:{tmp_path / 'images'}"])
