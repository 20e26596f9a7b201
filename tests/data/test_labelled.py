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


def test_a_role_without_a_split_of_its_own_takes_nothing(photos, tmp_path):
    """Check that no role falls back to the images of the other one."""
    for split in ("train", "val"):
        shutil.copytree(photos, tmp_path / "data" / split)
    with pytest.raises(DataError, match=r"split test.*found only \['train', 'val'\].*data/train"):
        find_labelled([tmp_path / "data"], [tmp_path / "data"])
    train, test = find_labelled([tmp_path / "data"], [tmp_path / "data" / "val"])
    assert len(train) == 24
    assert len(test) == 12
    shutil.rmtree(tmp_path / "data" / "train")
    (tmp_path / "data" / "val").rename(tmp_path / "data" / "test")
    with pytest.raises(DataError, match=r"split train or val.*found only \['test'\]"):
        find_labelled([tmp_path / "data"], [photos])


def test_test_images_among_the_training_images_are_noted(photos, tmp_path, capfd):
    find_labelled([photos], [photos])
    assert "12 of 12 test images are training images" in capfd.readouterr().err
    (tmp_path / "link").symlink_to(photos)
    find_labelled([photos], [tmp_path / "link"])
    assert "12 of 12" in capfd.readouterr().err
    shutil.copytree(photos, tmp_path / "copy")
    find_labelled([photos], [tmp_path / "copy"])
    assert "test images" not in capfd.readouterr().err


def test_images_outside_of_splits_are_counted(photos, tmp_path, capfd):
    for split in ("train", "test", "extra"):
        shutil.copytree(photos, tmp_path / "data" / split)
    train, test = find_labelled([tmp_path / "data"], [tmp_path / "data"])
    assert len(train) == len(test) == 12
    assert "12 images belong to no split" in capfd.readouterr().err


def test_bad_images_of_both_roles_are_left_out(photos, tmp_path, capfd):
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / split)
        (tmp_path / split / "blue" / "bad.png").write_text("no image")
    train, test = find_labelled([tmp_path / "train"], [tmp_path / "test"], skip_bad=True)
    assert len(train) == len(test) == 12
    assert capfd.readouterr().err.count("bad.png") == 2
    assert len(find_labelled_unsplit([tmp_path / "train"], skip_bad=True)) == 12
