import pytest
import torch
from sklearn.linear_model import LogisticRegression

from scott_models.data.order import Order
from scott_models.errors import TrainingError
from scott_models.probes import heads
from scott_models.probes.heads import (
    AttentiveHead,
    LinearHead,
    choose_held_out,
    select_features,
    solve_linear,
    train_heads,
)


@pytest.fixture
def patches():
    """Draw features of sixty images with six patches; one patch of each image shows its class, one of three."""
    labels = torch.arange(3).repeat(20)
    features = torch.randn(60, 6, 32)
    features[:, 2] += 3 * torch.randn(3, 32)[labels]
    return features, labels


def source(features, seen=None):
    def of(pieces):
        for places in pieces:
            if seen is not None:
                seen.append(places.tolist())
            chosen = features[places[:, 1]]
            yield chosen.mean(dim=1), chosen

    return of


def test_both_heads_learn_side_by_side(patches):
    features, labels = patches
    both = [LinearHead(32, 3), AttentiveHead(32, 3)]
    train_heads(both, source(features), labels, seed=0, epochs=200)
    for head in both:
        assert not head.training
        found = head(select_features(head, features.mean(dim=1), features)).argmax(dim=1)
        assert (found == labels).float().mean() > 0.9


def test_every_epoch_sees_every_image_of_full_batches(patches):
    features, labels = patches
    seen = []
    train_heads([LinearHead(32, 3)], source(features, seen), labels, seed=0, epochs=3)
    assert [len(places) for places in seen] == [60, 60, 60]
    assert {(epoch, i) for places in seen for epoch, i in places} == {(e, i) for e in range(3) for i in range(60)}


def test_a_seed_decides(patches):
    features, labels = patches
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        head = AttentiveHead(32, 3)
        train_heads([head], source(features), labels, seed=seed, epochs=3)
        weights.append(head[1].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_solving_is_logistic_regression_of_all_views(patches):
    features, labels = patches
    views = torch.stack([features.mean(dim=1), features[:, 2]])
    head = LinearHead(32, 3)
    strength = solve_linear(head, views, labels, seed=0)
    normed = torch.nn.functional.layer_norm(views, (32,)).flatten(0, 1).double()
    theirs = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(normed, labels.repeat(2))
    found = head(views.flatten(0, 1)).softmax(dim=1)
    torch.testing.assert_close(found.double(), torch.from_numpy(theirs.predict_proba(normed)), atol=2e-3, rtol=0)


def test_without_a_norm_the_head_is_one_linear_layer(patches):
    features, labels = patches
    head = LinearHead(32, 3, norm=False)
    solve_linear(head, features[None, :, 2], labels, seed=0)
    assert (head[1](features[:, 2]).argmax(dim=1) == labels).float().mean() > 0.9


def test_held_out_are_a_fifth_of_each_class_and_never_the_last():
    labels = torch.tensor([0] * 20 + [1] * 3 + [2])
    held_out = choose_held_out(labels, seed=0)
    assert [held_out[labels == name].sum().item() for name in range(3)] == [4, 1, 0]
    assert not torch.equal(held_out, choose_held_out(labels, seed=1))


def spoiled(features, bad):
    """Return a source whose features at the bad places, (epoch, image), are NaN."""

    def of(pieces):
        for places in pieces:
            chosen = features[places[:, 1]]
            spoilt = torch.tensor([(epoch, i) in bad for epoch, i in places.tolist()])
            yield chosen.mean(dim=1), torch.where(spoilt[:, None, None], torch.nan, chosen)

    return of


def test_skipped_updates_are_told_once(patches, capsys):
    features, labels = patches
    features, labels = features.repeat(3, 1, 1), labels.repeat(3)  # 180 images: two batches of 64 an epoch
    places = {(epoch, i) for epoch in (1, 3) for i in order_of(180, epoch)[:64]}
    train_heads([AttentiveHead(32, 3)], spoiled(features, places), labels, seed=0, epochs=5, what="mine")
    expected = "mine: 2 of 10 updates were skipped: their loss or gradients were not finite\n"
    assert capsys.readouterr().err == expected


def order_of(count, epoch):
    order = Order(count, 64, 0)
    return [i for step in range(order.steps) for _, i in order.of_update(epoch * order.steps + step + 1)]


def test_an_epoch_without_an_update_ends_the_training(patches):
    features, labels = patches
    both = [LinearHead(32, 3), AttentiveHead(32, 3)]
    places = {(2, i) for i in range(60)}
    with pytest.raises(TrainingError, match="mine.*finite loss.*epoch 3"):
        train_heads(both, spoiled(features, places), labels, seed=0, epochs=4, what="mine")


def test_small_steps_take_one_thread(patches, monkeypatch):
    """Expect as many threads afterwards as before, also after an error."""
    features, labels = patches
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        used = []
        head = AttentiveHead(32, 3)
        head.register_forward_pre_hook(lambda module, inputs: used.append(torch.get_num_threads()))
        train_heads([head], source(features), labels, seed=0, epochs=1)
        monkeypatch.setattr(heads, "FEW", 60 * 6 * 32 - 1)
        train_heads([head], source(features), labels, seed=0, epochs=1)
        assert used == [1, 2]
        with pytest.raises(IndexError), heads.limit_threads(features[0]):
            features[60]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
