import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scott_models.errors import DataError
from scott_models.probe import RIDGE_STRENGTHS, knn, labels_of, probe, ridge


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


def test_scikit_learn_says_the_same():
    """Overlapping classes of unequal size, in features of unequal spread, one of them constant."""
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c", "d"], p=[0.4, 0.3, 0.2, 0.1], size=300)
    centres = dict(zip("abcd", rng.normal(size=(4, 24))))
    features = np.stack([centres[label] for label in labels]) + 1.5 * rng.normal(size=(300, 24))
    features = (features * np.logspace(-1, 1, 24)).astype(np.float32)
    features[:, 3] = 2
    train, test = features[:200], features[200:]
    neighbours = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(train, labels[:200])
    linear = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=RIDGE_STRENGTHS)).fit(train, labels[:200])
    assert (knn(train, labels[:200], test) == neighbours.predict(test)).all()
    assert (ridge(train, labels[:200], test) == linear.predict(test)).all()
    assert 0.4 < (linear.predict(test) == labels[200:]).mean() < 0.95


@pytest.mark.parametrize("images", [20, 60])
def test_ridge_chooses_as_scikit_learn_with_few_images(images):
    rng = np.random.default_rng(images)
    labels = np.array(["a", "b", "c", "d"]).repeat(images // 4)
    features = rng.normal(size=(images, 40)) + 0.4 * np.eye(40)[np.arange(images) // (images // 4)]
    new = rng.normal(size=(500, 40))
    linear = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=RIDGE_STRENGTHS)).fit(features, labels)
    assert (ridge(features, labels, new) == linear.predict(new)).mean() > 0.995


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
    assert pretrained.knn > control.knn + 12
    assert pretrained.ridge > control.ridge + 8
