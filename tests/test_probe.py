import numpy as np
import pytest

from scott_models.errors import DataError
from scott_models.probe import knn, labels_of, probe, ridge


@pytest.mark.parametrize("predict", [knn, ridge])
def test_separable_classes_are_found(predict):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    labels = np.array(["a", "b", "c"]).repeat(20)
    features = centres.repeat(20, axis=0) + 0.1 * rng.normal(size=(60, 16))
    assert (predict(features, labels, features + 0.1 * rng.normal(size=(60, 16))) == labels).all()


def test_knn_is_a_vote_of_ten_by_cosine():
    train = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 4 + [[-1.0, 0.0]] * 10)
    labels = np.array(["near"] * 6 + ["side"] * 4 + ["away"] * 10)
    assert knn(train, labels, np.array([[100.0, 1.0]])) == ["near"]
    assert knn(train, labels, np.array([[-0.01, 0.0]])) == ["away"]


def test_labels_are_folders(photos):
    assert set(labels_of(sorted(photos.glob("*/*.png")))) == {"blue", "red"}


def test_probe_scores_the_control_beside_the_weights(photos):
    scores = probe("scott_3_16", [photos], [photos], img_size=32)
    assert [score.model for score in scores] == ["scott_3_16", "scott_3_16 (random weights)"]
    assert all(score.img_size == 32 for score in scores)
    assert scores[0].ridge == 100  # red and blue, seen in training


def test_test_classes_must_be_trained(photos):
    with pytest.raises(DataError, match=r"found no training images of \['red'\]"):
        probe("scott_3_16", [photos / "blue"], [photos])


def test_released_weights_are_ahead_of_the_control_on_real_images(flowers):
    """1,020 training images and 1,020 of the validation split; the whole test split's figures stand in the manifest."""
    pretrained, control = probe("scott_3_16", [flowers / "train"], [flowers / "val"])
    assert pretrained.knn > control.knn + 5
    assert pretrained.ridge > control.ridge + 1
