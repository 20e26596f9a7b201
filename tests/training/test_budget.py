import math

import pytest

from scott_models.data.order import Order
from scott_models.errors import RecipeError
from scott_models.pretrain import Budget, Recipe

ORDER = Order(count=1030, batch=100, seed=0)  # 10 updates, 1,000 images an epoch


def test_images_seen(capsys):
    recipe = Budget(images_seen=40_000).fit(Recipe(), ORDER, speed=0, spent=100, monitor=3)
    assert recipe.optim.epochs == 40
    assert recipe.optim.warmup_epochs == pytest.approx(40 * 40 / 300)
    assert "budget: 40 epochs chosen (40,000 images, warm-up 5.33 epochs)\n" in capsys.readouterr().err


def test_minutes_pay_for_everything(capsys):
    """Subtract the start, the monitor and a reserve of 2 % from the time; the rest is for images."""
    recipe = Recipe.load("smoke", ["monitor.every=5"])
    optim = Budget(minutes=60).fit(recipe, ORDER, speed=50, spent=100, monitor=10).optim
    assert "budget: 50.0 images/s measured; " in capsys.readouterr().err
    seconds = 100 + optim.epochs * 1000 / 50 + (1 + optim.epochs / 5) * 10
    assert seconds == pytest.approx(0.98 * 3600, abs=1)
    unwatched = Recipe.load("smoke", ["monitor.every=0"])
    optim = Budget(minutes=60).fit(unwatched, ORDER, speed=50, spent=100, monitor=0).optim
    assert 100 + optim.epochs * 20 == pytest.approx(0.98 * 3600, abs=1)


def test_part_of_an_epoch_is_enough():
    assert Budget(images_seen=500).fit(Recipe(), ORDER, speed=1, spent=0, monitor=0).optim.epochs == 0.5


def test_too_little():
    found = {Budget(minutes=1): "1.0 images/s.*1.0 minutes", Budget(images_seen=20): "0.02 epochs"}
    for budget, words in found.items():
        with pytest.raises(RecipeError, match=f"one update.*{words}"):
            budget.fit(Recipe(), ORDER, speed=1, spent=61, monitor=0)


def test_epochs():
    optim = Budget(epochs=30).fit(Recipe(), ORDER, speed=1, spent=0, monitor=0).optim
    assert (optim.epochs, optim.warmup_epochs) == (30, pytest.approx(4))


def test_what_is_left_of_a_run_that_is_brought_to_an_end(capsys):
    unwatched = Recipe.load("smoke", ["monitor.every=0", "optim.epochs=9"])
    optim = Budget(epochs=2.5).finish(unwatched, ORDER, done=40, speed=1, spent=0, monitor=0).optim
    assert (optim.finish_after, optim.finish_updates, optim.epochs) == (40, 25, 9)
    assert "finish: after update 40 of 90 the run ends in 25 updates (2.5 epochs)" in capsys.readouterr().err
    optim = Budget(minutes=10).finish(unwatched, ORDER, done=40, speed=10, spent=88, monitor=0).optim
    assert optim.finish_updates == 50  # 500 seconds are left
    assert Budget(images_seen=700).finish(unwatched, ORDER, 1, speed=1, spent=0, monitor=0).optim.finish_updates == 7
    with pytest.raises(RecipeError, match="expected enough for one update"):
        Budget(minutes=1).finish(unwatched, ORDER, done=40, speed=1, spent=59, monitor=0)


def test_one_of_the_three():
    assert Budget.of(None, None) is None
    assert Budget.of(5, None) == Budget(minutes=5)
    assert Budget.of(None, None, 3) == Budget(epochs=3)
    for given in ((None, None), (5, 100), (0, None), (None, -3), (5, None, 2), (math.inf, None)):
        with pytest.raises(RecipeError, match="budget.*minutes, images_seen or epochs"):
            Budget(*given)
