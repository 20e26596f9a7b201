import shutil

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from timm.models import save_for_hf

from scott_models.data.files import find_images
from scott_models.data.labelled import find_labelled
from scott_models.errors import DataError
from scott_models.probes import evaluate as module
from scott_models.probes import pixel_cache
from scott_models.probes.classifiers import Accuracy, knn
from scott_models.probes.evaluate import probe, retrieve
from scott_models.probes.features import compute_features, extract, load_model
from scott_models.probes.frozen import Frozen
from scott_models.probes.heads import LinearHead, solve_linear


@pytest.fixture
def quick(monkeypatch):
    """Train heads for one epoch instead of a hundred."""
    monkeypatch.setattr(module, "EPOCHS", 1)


@pytest.fixture
def resnet(tmp_path):
    """Return the name of a convolutional network whose random weights timm loads as pretrained ones."""
    save_for_hf(timm.create_model("resnet10t"), tmp_path / "resnet", safe_serialization=True)
    return f"local-dir:{tmp_path / 'resnet'}"


def test_scores_of_every_kind_beside_the_control(photos, quick):
    report = probe("scott_3_16", [photos], [photos], img_size=32)
    assert [score.probe for score in report.scores] == ["knn", "ridge", "linear", "attentive"] * 2
    assert [score.model for score in report.scores] == ["scott_3_16"] * 4 + ["scott_3_16 (random weights)"] * 4
    assert all(score.img_size == 32 and score.seeds == 1 and score.spread is None for score in report.scores)
    assert [score.top1 for score in report.scores[:3]] == [100, 100, 100]  # red and blue, seen in training
    assert (report.train, report.test, report.classes, report.protocol) == (12, 12, 2, "fast")


def test_images_are_read_once_for_all_models(photos, quick, monkeypatch):
    """Expect three reads of each image: for the evaluation crop in training and in testing, and for random views."""
    monkeypatch.setattr(module, "VIEWS", 1)
    read, load = [], pixel_cache.load_image
    monkeypatch.setattr(pixel_cache, "load_image", lambda path: (read.append(path), load(path))[1])
    report = probe("scott_3_16", [photos], [photos], img_size=32, seeds=2, duplicates=False)
    assert len(report.scores) == 8
    assert len(read) == 3 * 12
    read.clear()
    retrieve("scott_3_16", [photos], img_size=32, seeds=2)
    assert len(read) == 12


def test_a_test_set_inside_training_is_reported(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "test")
    report = probe("scott_3_16", [photos], [tmp_path / "test"], kinds=["knn"], img_size=32, control=False)
    assert len(report.duplicates.exact) == 12
    assert "12 test images are exact copies of training images" in capsys.readouterr().err


def test_the_papers_protocol_trains_on_fresh_views(photos, quick, monkeypatch):
    monkeypatch.setattr(module, "Cache", None)
    kinds = ["linear", "attentive"]
    report = probe("scott_3_16", [photos], [photos], kinds=kinds, protocol="paper", img_size=32, control=False)
    assert [score.probe for score in report.scores] == kinds


def test_several_seeds_have_a_spread(photos, quick):
    report = probe("scott_3_16", [photos], [photos], kinds=["knn", "attentive"], seeds=3, img_size=32)
    assert all(score.seeds == 3 for score in report.scores)
    assert report.scores[0].spread == 0  # the same features, the same neighbours
    assert report.scores[1].spread > 0  # three heads of one epoch
    assert len({score.model for score in report.scores}) == 2


def test_the_exported_classifier_scores_as_the_probe(photos, tmp_path, quick, capsys):
    folder = tmp_path / "classifier"
    report = probe("scott_3_16", [photos], [photos], img_size=32, control=False, export=folder)
    assert "exported with the attentive head: timm.create_model('local-dir:" in capsys.readouterr().err
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]
    logits = torch.cat([model(batch) for batch in images_of(model, photos)])
    right = (logits.argmax(dim=1) == torch.tensor([0] * 6 + [1] * 6)).float().mean().item()
    assert 100 * right == pytest.approx(report.scores[-1].top1)


def test_the_features_behind_the_scores(photos, tmp_path, quick):
    probe("scott_3_16", [photos], [photos], img_size=32, control=True, features=tmp_path / "all.npz")
    probe("scott_3_16", [photos], [photos], kinds=["knn"], img_size=32, control=False, features=tmp_path / "few.npz")
    features, few = np.load(tmp_path / "all.npz"), np.load(tmp_path / "few.npz")
    assert features["train"].shape == (1 + module.VIEWS, 12, 384)
    assert features["classes"].tolist() == ["blue", "red"]
    assert features["train_labels"].tolist() == features["test_labels"].tolist() == [0] * 6 + [1] * 6
    assert features["test_images"].tolist() == [str(path) for path in find_images([photos])]
    expected = extract(load_model("scott_3_16", img_size=32), find_images([photos]), img_size=32)[0]
    for found in (features["train"][0], features["test"], few["train"][0], few["test"]):
        assert np.abs(found - expected).max() < 1e-5
    assert np.abs(features["train"][1] - expected).max() > 0.1
    assert few["train"].shape == (1, 12, 384)


def images_of(model, photos):
    seen = []
    hook = model.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    list(compute_features(model, find_images([photos]), None, 32, "x"))
    hook.remove()
    return seen


def test_models_of_other_families(photos, tmp_path, capsys, resnet):
    report = probe(resnet, [photos], [photos], img_size=64, control=False, export=tmp_path / "out", duplicates=False)
    assert [score.probe for score in report.scores] == ["knn", "ridge", "linear"]
    assert "attentive: expected a model with patch tokens, found that local-dir:" in capsys.readouterr().err
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 2


def test_other_families_are_exported_with_the_linear_head(photos, tmp_path, quick, capsys):
    save_for_hf(timm.create_model("vit_tiny_patch16_224", img_size=32), tmp_path / "vit", safe_serialization=True)
    name, same = f"local-dir:{tmp_path / 'vit'}", {"img_size": 32, "control": False, "duplicates": False}
    kinds = ["linear", "attentive"]
    report = probe(name, [photos], [photos], kinds=kinds, export=tmp_path / "out", **same)
    assert [score.probe for score in report.scores] == kinds
    assert "exported with the linear head" in capsys.readouterr().err
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 2
    with pytest.raises(DataError, match="export.*linear probe.*local-dir:"):
        probe(name, [photos], [photos], kinds=["attentive"], export=tmp_path / "other", **same)


def test_what_cannot_be_probed_is_one_sentence(photos, resnet):
    with pytest.raises(DataError, match="attentive: expected a model with patch tokens"):
        probe(resnet, [photos], [photos], kinds=["attentive"], img_size=64)
    with pytest.raises(DataError, match="seeds: expected at least 1, got 0"):
        probe("scott_3_16", [photos], [photos], seeds=0)
    with pytest.raises(DataError, match="seeds: expected at least 1, got 0"):
        retrieve("scott_3_16", [photos], seeds=0)
    with pytest.raises(DataError, match="probes: expected at least one of"):
        probe("scott_3_16", [photos], [photos], kinds=[])
    with pytest.raises(DataError, match=r"export.*\['linear', 'attentive'\].*probes"):
        probe("scott_3_16", [photos], [photos], kinds=["knn"], export="out")


def test_an_export_never_replaces_what_is_not_one(photos, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    monkeypatch.setattr(module, "find_labelled", None)  # the check comes first
    for folder in ("mine", "mine/thesis.txt", "nowhere/classifier", "."):
        with pytest.raises(DataError, match="new folder.*earlier export"):
            probe("scott_3_16", [photos], [photos], export=tmp_path / folder)
    with pytest.raises(DataError, match="no folder .*nowhere to"):
        probe("scott_3_16", [photos], [photos], export=tmp_path / "nowhere" / "classifier")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years"


def test_retrieval_needs_no_training_images(photos):
    rows = retrieve("scott_3_16", [photos], img_size=32, seeds=2)
    assert [row.model for row in rows] == ["scott_3_16", "scott_3_16 (random weights)"]
    assert rows[0].mean_ap > 90  # blue finds blue
    assert rows[0].spread is None
    assert rows[1].spread is not None
    assert (rows[0].images, rows[0].classes) == (12, 2)


@pytest.mark.slow
def test_released_weights_are_ahead_of_the_control_on_real_images(flowers):
    """Use 1,020 training and 1,020 validation images; the manifest has the scores on the whole test split."""
    kinds = ["knn", "ridge"]
    report = probe("scott_3_16", [flowers / "train"], [flowers / "val"], kinds=kinds, duplicates=False)
    knn, ridge, control_knn, control_ridge = (score.top1 for score in report.scores)
    assert knn > control_knn + 12
    assert ridge > control_ridge + 8


@pytest.mark.slow
def test_scikit_learn_agrees_on_real_images(flowers):
    """Allow a difference of 0.3 points on the features of 1,020 training and 1,020 validation images."""
    trained, tested = find_labelled([flowers / "train"], [flowers / "val"])
    frozen = Frozen(load_model("scott_3_16"), "scott_3_16")
    train, test = frozen.pooled(trained.images, "train"), frozen.pooled(tested.images, "val")
    votes = Accuracy.of(knn(train, trained.labels, test, 102), tested.labels)
    neighbours = KNeighborsClassifier(10, metric="cosine", algorithm="brute").fit(train, trained.labels)
    assert votes.top1 == pytest.approx(100 * neighbours.score(test, tested.labels), abs=0.3)
    head = LinearHead(384, 102)
    strength = solve_linear(head, train[None], trained.labels, seed=0)
    normed = [torch.nn.functional.layer_norm(part, (384,)).double() for part in (train, test)]
    theirs = LogisticRegression(C=strength, max_iter=5000).fit(normed[0], trained.labels)
    ours = Accuracy.of(head(test), tested.labels).top1
    assert ours == pytest.approx(100 * theirs.score(normed[1], tested.labels), abs=0.3)
    assert ours > 20
