import shutil

import pytest

from scott_models.data.labelled import find_labelled, find_labelled_unsplit
from scott_models.errors import DataError


def test_classes_are_folders_numbered_by_name(photos):
    train, test = find_labelled([photos], [photos])
    assert train.names == test.names == ["blue", "red"]
    assert train.labels.tolist() == [0] * 6 + [1] * 6
    assert [path.parent.name for path in train.images] == ["blue"] * 6 + ["red"] * 6
    assert [path.name for path in train.only(train.labels.nonzero()[:2, 0]).images] == ["0.png", "1.png"]


def test_one_source_with_splits_serves_both(photos, tmp_path):
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        for name in ("blue", "red"):
            folder = tmp_path / "split" / split / name
            folder.mkdir(parents=True)
            shutil.copy(photos / name / f"{number}.png", folder)
    train, test = find_labelled([tmp_path / "split"], [tmp_path / "split"])
    assert sorted(path.stem for path in train.images) == ["0", "0", "1", "1"]
    assert [path.stem for path in test.images] == ["2", "2"]
    only_val, _ = find_labelled([tmp_path / "split" / "val"], [photos])
    assert len(only_val) == 2
    assert len(find_labelled_unsplit([tmp_path / "split"])) == 6


def test_test_classes_must_be_trained(photos, tmp_path):
    for name in ("blue", "green"):
        shutil.copytree(photos / "blue", tmp_path / "train" / name)
    with pytest.raises(DataError, match=r"found no training images of \['red'\]"):
        find_labelled([tmp_path / "train"], [photos])


def test_images_without_a_class_are_told(photos):
    with pytest.raises(DataError, match="each class.*6 of 6 images without"):
        find_labelled([photos / "blue"], [photos])


def test_one_class_is_too_few(photos, tmp_path):
    shutil.copytree(photos / "blue", tmp_path / "one" / "blue")
    with pytest.raises(DataError, match=r"classes: expected at least two, found \['blue'\]"):
        find_labelled([tmp_path / "one"], [tmp_path / "one"])


def test_what_is_missing_but_harmless_is_noted(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "train")
    shutil.copytree(photos / "blue", tmp_path / "train" / "green")
    for path in sorted((tmp_path / "train" / "green").iterdir())[1:]:
        path.unlink()
    find_labelled([tmp_path / "train"], [photos])
    notes = capsys.readouterr().err
    assert "no test images of ['green']" in notes
    assert "a single training image of ['green']" in notes


def test_nothing_given():
    with pytest.raises(DataError, match="at least one folder.*none"):
        find_labelled([], ["somewhere"])
