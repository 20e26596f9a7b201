import multiprocessing
import os
import pickle
import time

import pytest
import torch

from scott_models.data import decoded, loader
from scott_models.data.colours import Colours
from scott_models.data.loader import Crops, Planned, load
from scott_models.data.order import Order
from scott_models.data.random_streams import Draws, make_key
from scott_models.data.sources import find_samples
from scott_models.errors import RecipeError
from scott_models.signals import STOPS


@pytest.fixture
def images(photos):
    return decoded.open_images(find_samples([photos]), 36)


@pytest.fixture
def streamed(images, monkeypatch):
    """Return the same images, decoded at every use."""
    monkeypatch.setattr(decoded, "LARGEST", 1)
    for path in decoded.find_cache_folder().glob("*/index"):
        path.unlink()
    again = decoded.open_images(images.samples, 36)
    assert again.pixels is None
    return again


def test_every_epoch_sees_every_image_once_in_its_own_order():
    order = Order(count=13, batch=4, seed=0)
    assert order.steps == 3
    epochs = [[place for step in steps for place in order.of_update(step)] for steps in ((1, 2, 3), (4, 5, 6))]
    for number, epoch in enumerate(epochs):
        assert {where for where, _ in epoch} == {number}
        assert len({index for _, index in epoch}) == 12
        assert max(index for _, index in epoch) <= 12
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    assert Order(count=13, batch=4, seed=1).of_update(1) != order.of_update(1)


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 3)])
def test_processes_and_parts_share_a_batch(processes, parts):
    whole = Order(count=30, batch=12, seed=0)
    made = [list(Order(30, 12, 0, rank, processes, parts).pieces(2, 3)) for rank in range(processes)]
    assert [piece.update for piece in made[0]] == [2] * parts + [3] * parts
    pieces = [[piece.places for piece in of_process] for of_process in made]
    for update in (0, 1):
        shared = [place for rank in pieces for piece in rank[update * parts : (update + 1) * parts] for place in piece]
        assert sorted(shared) == sorted(whole.of_update(2 + update))
    assert {len(piece) for rank in pieces for piece in rank} == {12 // processes // parts}


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_do_not_depend_on_who_makes_them(images, streamed, workers):
    order = Order(count=12, batch=6, seed=3)
    crops = Crops(images, 32, seed=3)
    expected = [batch for [batch] in load(order, crops, 1, 4, workers=0)]
    for (where, made), (where_again, again) in zip(
        expected, (b for [b] in load(order, Crops(streamed, 32, 3), 1, 4, workers))
    ):
        assert torch.equal(where, where_again)
        assert torch.equal(made, again)
    resumed = [batch for [batch] in load(order, crops, 3, 4, workers=0)]
    assert all(torch.equal(a, b) for late, again in zip(expected[2:], resumed) for a, b in zip(late, again))
    halves = [torch.cat([c for _, c in parts]) for parts in load(Order(12, 6, 3, parts=2), crops, 1, 4, workers=0)]
    assert all(torch.equal(whole, half) for (_, whole), half in zip(expected, halves))


def workers_end():
    """Return True if all worker processes end by themselves, which takes a while on a busy machine."""
    for _ in range(20 * loader.GRACE):
        if not multiprocessing.active_children():
            return True
        time.sleep(0.1)
    return False


def test_workers_leave_signals_to_the_parent(streamed):
    """Check that crops keep coming after signals to the whole process group, until the parent has saved."""
    crops = Crops(streamed, 32, seed=0)
    batches = load(Order(count=12, batch=6, seed=0), crops, 1, 6, workers=2)
    for _ in range(2):  # one batch of each worker, so that both have started
        next(batches)
    for child in multiprocessing.active_children():
        for number in STOPS:
            os.kill(child.pid, number)
    assert len(list(batches)) == 4
    assert workers_end()


def test_leaving_early_ends_the_workers(streamed):
    crops = Crops(streamed, 32, seed=0)
    batches = load(Order(count=12, batch=6, seed=0), crops, 1, 60, workers=2)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert workers_end()


@pytest.fixture
def on_device(monkeypatch):
    """Treat images as if they were on a GPU."""
    monkeypatch.setattr(Crops, "on_device", True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["here", "streamed", "on_device"])
def test_plans_do_not_depend_on_who_draws_them(images, request, where, workers):
    order, crops = Order(count=12, batch=6, seed=3, parts=2), Crops(images, 32, seed=3)
    whole = [crops.__getitems__(piece.places) for piece in order.pieces(1, 4)]
    if where != "here":
        given = request.getfixturevalue(where)
        crops = Crops(given or images, 32, seed=3)
    found = [part for parts in load(order, crops, 1, 4, workers, Colours.draw) for part in parts]
    for (places, made), (colours, again) in zip(whole, found, strict=True):
        expected = Colours.draw(Draws.keyed(make_key(3, "inputs"), *places.unbind(1)))
        assert all((ours == theirs).all() for ours, theirs in zip(vars(expected).values(), vars(colours).values()))
        assert (made.int() - again.int()).abs().max() <= (2 if where == "on_device" else 0)


def test_without_a_drawing_places_come(images, on_device):
    order, crops = Order(count=12, batch=6, seed=3), Crops(images, 32, seed=3)
    places = [torch.tensor(order.of_update(step)) for step in (1, 2)]
    found = [where for [(where, _)] in load(order, crops, 1, 2, 1)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(places, found, strict=True))


def test_who_draws_ahead_for_a_gpu_has_no_images(images, on_device):
    order, crops = Order(count=12, batch=6, seed=3), Crops(images, 32, seed=3)
    planned = Planned(crops, Colours.draw)
    assert len(pickle.dumps(planned)) < 2000 + images.sizes.nbytes + images.offsets.nbytes < images.pixels.nbytes
    batches = load(order, crops, 1, 60, 2, Colours.draw)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert workers_end()


def test_a_cpu_that_holds_the_images_starts_nothing(images):
    batches = load(Order(count=12, batch=6, seed=0), Crops(images, 32, seed=0), 1, 6, 2, Colours.draw)
    next(batches)
    assert workers_end()


def test_keys_differ():
    keys = {
        int(make_key(seed, purpose, number)) for seed in (0, 1) for purpose in ("crop", "order") for number in (0, 1)
    }
    assert len(keys) == 8


def test_several_views_of_each_image(images):
    order, one = Order(count=12, batch=6, seed=3), Crops(images, 64, seed=3)
    several = Crops(images, 64, seed=3, views=2, local_views=2)
    for [(where, crop)], [(where_again, views)] in zip(load(order, one, 1, 2, 0), load(order, several, 1, 2, 0)):
        assert torch.equal(where, where_again)
        assert torch.equal(crop, views[0])  # the same as with a single view
        assert [view.shape[-1] for view in views] == [64, 64, 32, 32]
        assert not torch.equal(views[1], views[0])
        assert not torch.equal(views[3], views[2])
    assert [view.size for view in several.at(48).views] == [48, 48, 16, 16]


@pytest.mark.parametrize("where", ["streamed", "on_device"])
def test_several_views_do_not_depend_on_who_makes_them(images, request, where):
    order = Order(count=12, batch=6, seed=3, parts=2)
    expected = [part for parts in load(order, Crops(images, 32, 3, 2, 1), 1, 3, 0) for part in parts]
    crops = Crops(request.getfixturevalue(where) or images, 32, 3, 2, 1)
    found = [part for parts in load(order, crops, 1, 3, 2) for part in parts]
    for (places, views), (places_again, again) in zip(expected, found, strict=True):
        assert torch.equal(places, places_again)
        for view, made in zip(views, again, strict=True):
            assert (view.int() - made.int()).abs().max() <= (2 if where == "on_device" else 0)


def test_more_crops_than_fit_into_memory(images, monkeypatch):
    crops = Crops(images, 64, seed=0, views=2, local_views=4)
    pixels = 128 * 3 * (2 * 64**2 + 4 * 32**2)
    monkeypatch.setattr(loader, "find_available_ram", lambda: 3 * pixels)
    crops.check_room(128, parts=2, workers=9)  # no worker is started for a CPU with decoded images
    monkeypatch.setattr(loader, "find_available_ram", lambda: 6 * pixels - 1)
    with pytest.raises(RecipeError, match="found 6 crops of each of 128 images"):
        crops.check_room(128, parts=2, workers=9, sharing=2)
    monkeypatch.setattr(loader, "find_available_ram", lambda: 3 * pixels - 1)
    with pytest.raises(RecipeError, match="found 6.*128 images.*lower objective.views_per_image"):
        crops.check_room(128, parts=2, workers=9)
    with pytest.raises(RecipeError, match="found 1.*999 images.*lower optim.batch_size"):
        Crops(images, 64, seed=0).check_room(999, parts=1, workers=0)


def test_batches_made_ahead_take_room_too(streamed, monkeypatch):
    crops, pixels = Crops(streamed, 64, seed=0), 12 * 3 * 64**2
    monkeypatch.setattr(loader, "count_cores", lambda: 3)
    monkeypatch.setattr(loader, "find_available_ram", lambda: (1 + 2 * 3 + 4) * pixels)
    crops.check_room(12, parts=1, workers=4)
    monkeypatch.setattr(loader, "find_available_ram", lambda: (1 + 2 * 3 + 4) * pixels - 1)
    with pytest.raises(RecipeError, match="run.workers"):
        crops.check_room(12, parts=1, workers=4)
