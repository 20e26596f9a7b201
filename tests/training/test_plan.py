"""Check that a plan drawn in another process gives the same inputs as drawing here."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from scott_models.data import colours
from scott_models.data import crops as crops_module
from scott_models.data.random_streams import Draws
from scott_models.data.views import TwoViews
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.training.plan import Plan

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
    """Return an object as it arrives from another process."""
    return pickle.loads(pickle.dumps(thing))


def leaves(thing):
    if hasattr(thing, "__dataclass_fields__"):
        thing = vars(thing).values()
    return [thing] if isinstance(thing, np.ndarray) else [leaf for part in thing for leaf in leaves(part)]


def test_a_plan_gives_the_same_inputs(objective, crops):
    plan = sent(sent(objective.drawing)(draws()))
    assert isinstance(plan, Plan)
    assert 0 < len(leaves(plan)) <= 13  # few arrays, all of numpy: `leaves` fails on others
    for here, there in zip(objective.inputs(crops, draws()), objective.inputs(crops, plan), strict=True):
        assert torch.equal(here, there)


def test_views_of_the_users_own_draw_when_they_have_crops(objective, crops):
    expected = objective.inputs(crops, draws())
    mode = objective.views.mode
    objective.views = TwoViews(mode).__call__  # a bound method has no `draw`
    assert objective.drawing is None
    for ours, theirs in zip(expected, objective.inputs(crops, draws()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_inputs_on_a_gpu_never_wait(objective, monkeypatch, compiled):
    """Check with fake GPU tensors that no operation mixes devices, or reads a number from the GPU."""
    empty = torch.empty

    def unpinned(*size, pin_memory=False, **settings):
        return empty(*size, **settings)

    monkeypatch.setattr(torch, "empty", unpinned)  # pinning needs a GPU
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for module in (colours, crops_module):
        monkeypatch.setattr(module, "compile_once", lambda function: function)
    objective.views = TwoViews(objective.views.mode, compiled)
    shapes, offsets = np.tile(np.array([80, 100]), (5, 1)), np.arange(5) * 24000
    plan, table = objective.drawing(draws()), crops_module.make_crop_table(shapes, offsets, draws())
    colours._channels.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        if hasattr(objective, "vocabulary"):
            objective.vocabulary.words = torch.empty(20, 768, device="cuda")
        pixels = torch.empty(5 * 24000, dtype=torch.uint8, device="cuda")
        made = crops_module.cut_boxes(pixels, table, crops_module.find_largest_box(shapes), 48, compiled)
        found = objective.inputs(made, plan)
    colours._channels.cache_clear()
    assert made.shape == (5, 3, 48, 48)
    assert {tensor.device.type for tensor in (made, *found)} == {"cuda"}


def test_unknown_views():
    with pytest.raises(ValueError, match="got 'other'"):
        TwoViews("other")
