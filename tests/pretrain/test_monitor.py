import json
import math
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from scott_models import SCOTT
from scott_models.data import decoded
from scott_models.data.colours import normalize
from scott_models.data.crops import make_centre_crops
from scott_models.data.sources import find_samples
from scott_models.errors import RecipeError
from scott_models.pretrain import Recipe, monitor
from scott_models.pretrain.monitor import Health, Monitor, choose_images, give_advice, judge

RANDOM = Health(rankme=40, spread=0.4, cosine=0.8, knn=20, ridge=40)


def test_figures_of_known_features():
    isotropic = Health.of(torch.cat([torch.eye(8), -torch.eye(8)]))
    assert isotropic.rankme == pytest.approx(8)
    assert isotropic.spread == pytest.approx(1)
    assert isotropic.cosine == pytest.approx(-1 / 15)  # one of the 15 others is opposite, the rest are at right angles
    collapsed = Health.of(torch.ones(10, 8))
    assert collapsed.rankme == pytest.approx(1)
    assert collapsed.spread == pytest.approx(0, abs=1e-6)
    assert collapsed.cosine == pytest.approx(1)
    plane = Health.of(torch.cat([torch.randn(100, 2), torch.zeros(100, 6)], dim=1))
    assert 1.5 < plane.rankme <= 2


@pytest.mark.parametrize(
    ("now", "word"),
    [
        (Health(80, 0.6, 0.5, 30, 45), "healthy: "),
        (Health(80, 0.6, 0.5, 15, 35), "healthy features, but no better than random weights yet: "),
        (Health(80, 0.6, 0.5, 15, 45), "healthy: "),
        (Health(80, 0.6, 0.5), "healthy: "),
        (Health(15, 0.4, 0.8, 15, 45), "healthy: "),  # narrow, as early in a run, but a probe gains
        (Health(15, 0.4, 0.8, 15, 35), "partial collapse, "),
        (Health(15, 0.4, 0.8), "partial collapse, "),
        (Health(50, 0.1, 0.99), "partial collapse, "),
        (Health(1.2, 0.3, 0.9), "dead, "),
        (Health(30, 0.001, 1.0, 1, 1), "dead, "),
        (Health(math.nan, 0, 1), "dead, "),
    ],
)
def test_verdict_in_words_with_its_figures(now, word):
    line = judge(now, RANDOM)
    assert line.startswith(word)
    assert (
        f"RankMe {now.rankme:.1f} (40.0), spread {now.spread:.2f} (0.40), mean cosine {now.cosine:.2f} (0.80)" in line
    )
    assert ("kNN" in line) == (now.knn is not None)


def test_better_is_more_knn_or_without_labels_more_rank():
    assert Health(10, 1, 0, knn=30, ridge=1).better_than(Health(90, 1, 0, knn=20, ridge=9))
    assert Health(90, 1, 0).better_than(Health(80, 1, 0))
    assert not Health(80, 1, 0).better_than(Health(80, 1, 0))


@pytest.fixture
def split_photos(tmp_path):
    """Write ten training and four test images for each of two classes, and a copy of a training image."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for name, colour in (("blue", (40, 60, 220)), ("red", (120, 20, 20))):
            folder = tmp_path / "split" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-20, 20, (40, 40, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    train = tmp_path / "split" / "train"
    (train / "red" / "copy.png").write_bytes((train / "red" / "0.png").read_bytes())
    return tmp_path / "split"


def chosen(images, count=100, test=False):
    parts = choose_images(images, count, test, np.random.default_rng(0))
    return [[images.samples[i] for i in part] for part in parts]


def test_probes_see_no_test_image_unless_asked(split_photos):
    images = decoded.open_images(find_samples([split_photos]), 36)
    train, held_out = chosen(images)
    assert (len(train), len(held_out)) == (16, 4)
    assert {(sample.split, sample.label) for sample in held_out} == {("train", "red"), ("train", "blue")}
    assert all(sample.split == "train" for sample in train)
    both = [sample.image.name for sample in train + held_out if sample.label == "red"]
    assert len(both) == 10  # the copy is left out: a probe would know it already
    assert not {sample.image for sample in train} & {sample.image for sample in held_out}
    train, held_out = chosen(images, test=True)
    assert {sample.split for sample in train} == {"train"}
    assert {sample.split for sample in held_out} == {"test"}
    assert [len(part) for part in chosen(images, count=10)] == [8, 2]
    inductive = decoded.open_images(find_samples([split_photos], ["train"]), 36)
    with pytest.raises(RecipeError, match="monitor.test.*labelled images.*test split"):
        chosen(inductive, test=True)


def test_without_labels_features_alone(photos):
    for path in photos.glob("*/*.png"):
        path.rename(photos / f"{path.parent.name}-{path.name}")
    images = decoded.open_images(find_samples([photos]), 36)
    train, held_out = chosen(images)
    assert (len(train), held_out) == (12, [])
    health = Monitor(images, tiny_recipe(), torch.device("cpu"), nullcontext)(model())
    assert health.knn is None
    assert health.rankme > 1


def tiny_recipe():
    return Recipe.load("smoke", ["model.img_size=32"])


def model():
    return SCOTT(img_size=32, embed_dim=32, depth=1, num_heads=2, proj_drop_rate=0.5, pos_drop_rate=0.5)


def test_watching_changes_nothing(split_photos):
    images = decoded.open_images(find_samples([split_photos]), 36)
    watching, encoder = Monitor(images, tiny_recipe(), torch.device("cpu"), nullcontext), model().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    first, second = watching(encoder), watching(encoder)
    assert first == second
    assert first.knn == 100  # red and blue
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_crops_are_made_once(split_photos, monkeypatch):
    """Compare with crops made at each look, bit for bit; processes that never look make no crops."""
    images = decoded.open_images(find_samples([split_photos]), 36)
    encoder = model().eval()
    watching = Monitor(images, tiny_recipe(), torch.device("cpu"), nullcontext)
    expected = [
        torch.cat([make_centre_crops([images[i]], 32) for i in part]) for part in (watching.train, watching.held_out)
    ]
    monkeypatch.setattr(monitor, "make_centre_crops", None)
    assert watching.crops.dtype == torch.uint8
    assert torch.equal(watching.crops, torch.cat(expected))
    features = encoder.forward_features(normalize(torch.cat(expected).float() / 255)).mean(dim=1).detach()
    assert Health.of(features).rankme == watching(encoder).rankme
    for idle in (
        Monitor(images, tiny_recipe(), torch.device("cpu"), nullcontext, watches=False),
        Monitor(images, tiny_recipe().changed("monitor", every=0.0), torch.device("cpu"), nullcontext),
    ):
        assert not hasattr(idle, "crops")


@pytest.mark.parametrize(("free", "kept_there"), [(10 * 20 * 3 * 32 * 32, True), (10 * 20 * 3 * 32 * 32 - 1, False)])
def test_crops_are_kept_on_a_gpu_with_room(split_photos, monkeypatch, free, kept_there):
    images = decoded.open_images(find_samples([split_photos]), 36)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: device)
    crops = Monitor(images, tiny_recipe(), torch.device("cuda"), nullcontext).crops
    assert (crops == torch.device("cuda")) is kept_there


def test_weights_that_are_no_numbers_are_dead(split_photos):
    images = decoded.open_images(find_samples([split_photos]), 36)
    encoder = model()
    torch.nn.init.constant_(encoder.patch_embed.conv1.weight, math.nan)
    health = Monitor(images, tiny_recipe(), torch.device("cpu"), nullcontext)(encoder)
    assert judge(health, RANDOM).startswith("dead")
    assert "NaN" not in json.dumps(asdict(health))  # NaN is not valid JSON


def looks(*knn):
    return {step: Health(40, 0.5, 0.5, score, 40) for step, score in enumerate(knn)}


def test_advice_to_end_a_run_that_rises_no_more():
    assert (
        give_advice(looks(20, 25, 30, 29, 30, 28))
        == "; kNN has not risen for 3 looks: stop the run by Ctrl-C and finish it by --finish"
    )
    assert give_advice(looks(20, 25, 30, 29, 30)) == ""  # not long enough
    assert give_advice(looks(20, 18, 17, 16, 15, 14)) == ""  # never above its start, so there is nothing to keep
    assert give_advice(looks(20, 25, 30, 31, 32, 33)) == ""
    assert give_advice({}) == give_advice({0: Health(40, 0.5, 0.5)}) == ""
