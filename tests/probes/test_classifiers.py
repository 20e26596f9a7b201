import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scott_models.probes.classifiers import (
    RIDGE_STRENGTHS,
    Accuracy,
    count_confusions,
    knn,
    logistic,
    ridge,
    score_retrieval,
)


@pytest.fixture
def overlapping():
    """Draw four overlapping classes of unequal size; features have unequal spread, and one feature is constant."""
    rng = np.random.default_rng(0)
    labels = rng.choice(4, p=[0.4, 0.3, 0.2, 0.1], size=300)
    features = rng.normal(size=(4, 24))[labels] + 1.5 * rng.normal(size=(300, 24))
    features = (features * np.logspace(-1, 1, 24)).astype(np.float32)
    features[:, 3] = 2
    return torch.from_numpy(features).split([200, 100]), torch.from_numpy(labels).split([200, 100])


@pytest.mark.parametrize("classify", [knn, ridge])
def test_separable_classes_are_found(classify):
    labels = torch.arange(3).repeat_interleave(20)
    features = torch.randn(3, 16)[labels] + 0.1 * torch.randn(60, 16)
    scores = classify(features, labels, features + 0.1 * torch.randn(60, 16), 3)
    assert (scores.argmax(dim=1) == labels).all()


def test_knn_is_a_vote_of_ten_by_cosine():
    train = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 4 + [[-1.0, 0.0]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 10)
    assert knn(train, labels, torch.tensor([[100.0, 1.0]]), 3).tolist() == [[6, 4, -torch.inf]]
    assert knn(train, labels, torch.tensor([[-0.01, 0.0]]), 3).argmax() == 2
    assert knn(train, labels, torch.tensor([[1.0, 0.1]]), 3, neighbours=1).tolist() == [[1, -torch.inf, -torch.inf]]


def test_scikit_learn_says_the_same(overlapping):
    (train, test), (labels, wanted) = overlapping
    neighbours = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(train, labels)
    assert (knn(train, labels, test, 4).argmax(dim=1).numpy() == neighbours.predict(test)).all()
    linear = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=RIDGE_STRENGTHS)).fit(train, labels)
    assert (ridge(train, labels, test, 4).argmax(dim=1).numpy() == linear.predict(test)).all()
    assert 0.4 < (linear.predict(test) == wanted.numpy()).mean() < 0.95


@pytest.mark.parametrize("images", [20, 60])
def test_ridge_chooses_as_scikit_learn_with_few_images(images):
    rng = np.random.default_rng(images)
    labels = np.arange(4).repeat(images // 4)
    features = rng.normal(size=(images, 40)) + 0.4 * np.eye(40)[labels]
    new = rng.normal(size=(500, 40))
    linear = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=RIDGE_STRENGTHS)).fit(features, labels)
    scores = ridge(*map(torch.from_numpy, (features, labels, new)), 4)
    assert (scores.argmax(dim=1).numpy() == linear.predict(new)).mean() > 0.995


def test_strengths_that_ridge_chooses_from():
    """Check the strengths, because published scores depend on them."""
    assert len(RIDGE_STRENGTHS) == 13
    np.testing.assert_allclose(RIDGE_STRENGTHS, np.geomspace(1e-1, 1e5, 13))


@pytest.mark.parametrize("inverse_strength", [0.01, 1.0, 100.0])
def test_logistic_regression_is_scikit_learns(overlapping, inverse_strength):
    (train, test), (labels, _) = overlapping
    theirs = LogisticRegression(C=inverse_strength, max_iter=20_000, tol=1e-8).fit(train.double(), labels)
    weight, bias = logistic(train, labels, 4, inverse_strength)
    scores = torch.softmax(test.double() @ weight.T + bias, dim=1).numpy()
    np.testing.assert_allclose(scores, theirs.predict_proba(test.double()), atol=2e-3)


def test_accuracy_is_scikit_learns(overlapping):
    (train, test), (labels, wanted) = overlapping
    scores = ridge(train, labels, test, 4)
    accuracy = Accuracy.of(scores, wanted)
    assert accuracy.top1 == pytest.approx(100 * top_k_accuracy_score(wanted, scores, k=1))
    assert accuracy.per_class == pytest.approx(100 * balanced_accuracy_score(wanted, scores.argmax(dim=1)))
    assert accuracy.top5 is None  # with four classes it would always be 100
    many, labels = torch.randn(500, 12), torch.randint(12, (500,))
    assert Accuracy.of(many, labels).top5 == pytest.approx(100 * top_k_accuracy_score(labels, many, k=5))


def test_of_equal_scores_the_first_class_counts_and_none_without_a_vote():
    scores = torch.tensor([[1.0, 1.0, 0, 0, 0, 0, -torch.inf]] * 3)
    assert Accuracy.of(scores, torch.tensor([0, 1, 6])).top1 == pytest.approx(100 / 3)
    assert Accuracy.of(scores, torch.tensor([0, 1, 6])).top5 == pytest.approx(200 / 3)
    assert Accuracy.of(torch.full((1, 7), -torch.inf), torch.tensor([0])).top5 == 0


def test_confusion_counts_what_is_taken_for_what():
    scores = torch.tensor([[3.0, 1, 0], [0, 2, 1], [5, 2, 1], [-torch.inf, 1, 1]])
    assert count_confusions(scores, torch.tensor([0, 1, 1, 2])).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_retrieval_is_mean_average_precision(overlapping):
    (features, _), (labels, _) = overlapping
    unit = torch.nn.functional.normalize(features, dim=1)
    expected = []
    for i in range(len(labels)):
        others = torch.arange(len(labels)) != i
        expected.append(average_precision_score(labels[others] == labels[i], (unit @ unit[i])[others]))
    assert score_retrieval(features, labels) == pytest.approx(100 * np.mean(expected), abs=1e-3)


def test_retrieval_asks_only_for_what_can_be_found():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert score_retrieval(features, torch.tensor([0, 0, 1])) == 100
