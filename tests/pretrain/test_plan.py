"""What is drawn in another process gives the inputs that are drawn here."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scott_models.pretrain import Recipe
from scott_models.pretrain.augment import TwoViews, two_views
from scott_models.pretrain.draws import Draws
from scott_models.pretrain.objective import build_objective
from scott_models.pretrain.plan import Plan

RECIPES = "smoke", "splitmask-flowers102", "beit-flowers102"
SMALL = "model.name=scott_3_16", "model.img_size=48", "model.predictor_depth=1"


@pytest.fixture(params=[(name, views) for name in RECIPES for views in ("different", "same", "none")])
def objective(request):
    name, views = request.param
    made = build_objective(Recipe.load(name, [*SMALL, f"data.views={views}"]))
    if hasattr(made, "vocabulary"):
        made.vocabulary.words = F.normalize(torch.randn(20, 768), dim=1)
    return made


@pytest.fixture
def crops():
    return torch.randint(0, 256, (5, 3, 48, 48), dtype=torch.uint8)


def draws():
    return Draws(np.arange(5, dtype=np.uint64), torch.arange(5))


def sent(thing):
    """As it comes out of another process."""
    return pickle.loads(pickle.dumps(thing))


def leaves(thing):
    if hasattr(thing, "__dataclass_fields__"):
        thing = vars(thing).values()
    return [thing] if isinstance(thing, np.ndarray) else [leaf for part in thing for leaf in leaves(part)]


def test_a_plan_gives_the_same_inputs(objective, crops):
    plan = sent(sent(objective.drawing)(draws()))
    assert isinstance(plan, Plan)
    assert 0 < len(leaves(plan)) <= 13  # few arrays, and of numpy's, or `leaves` would fail
    for here, there in zip(objective.inputs(crops, draws()), objective.inputs(crops, plan), strict=True):
        assert torch.equal(here, there)


def test_views_of_the_users_own_draw_when_they_have_crops(objective, crops):
    expected = objective.inputs(crops, draws())
    mode = objective.views.mode
    objective.views = lambda crops, draws: two_views(crops, draws, mode)
    assert objective.drawing is None
    for ours, theirs in zip(expected, objective.inputs(crops, draws()), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_views():
    with pytest.raises(ValueError, match="got 'other'"):
        TwoViews("other")
