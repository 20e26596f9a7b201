import numpy as np
import pytest
import torch

from scott_models.data.random_streams import Draws
from scott_models.errors import DataError, RecipeError
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.pretrain.recipe import OBJECTIVES

SMALL = ["model.img_size=32", "model.predictor_depth=1", "optim.batch_size=4", "objective.projector=16,8"]


def built(*changes):
    torch.manual_seed(3)
    return build_objective(Recipe.load("smoke", [*SMALL, *changes])).train()


@pytest.mark.parametrize("term", ["visreg", "sigreg", "vicreg", "infonce"])
def test_a_pooled_term_is_added_and_reaches_encoder_and_projectors(term):
    plain, objective = built(), built(f"objective.pooled={term}", "objective.pooled_weight=2")
    assert all(torch.equal(a, b) for a, b in zip(plain.student.parameters(), objective.student.parameters()))
    assert {name for name, _ in objective.named_children()} == {"student", "target_encoder", "pooled"}
    crops = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    draws = [Draws(np.arange(4, dtype=np.uint64)) for _ in range(3)]
    inputs = objective.inputs(crops, draws[0])
    without = plain.inputs(crops, draws[1])
    # zip leaves out the random numbers of the term, which come last
    assert all(torch.equal(a, b) for a, b in zip(inputs, without))
    assert len(inputs) - len(without) == (term in ("visreg", "sigreg"))
    planned = objective.inputs(crops, objective.drawing(draws[2]))
    assert all(torch.equal(a, b) for a, b in zip(inputs, planned, strict=True))
    for each in (plain, objective):
        torch.manual_seed(4)
        each.loss = each(*(inputs if each is objective else without))
        each.loss.backward()
    assert objective.loss > plain.loss
    for name, parameter in objective.pooled.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    ours, theirs = (each.context_encoder.blocks[0].attn.qkv.weight.grad for each in (objective, plain))
    assert (ours - theirs).abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in objective.target_encoder.parameters())


def test_a_pooled_term_wants_images_to_compare():
    with pytest.raises(RecipeError, match="recipe.run.accumulate.*parts of 2"):
        built("objective.pooled=visreg", "run.accumulate=4")


def test_who_has_a_mask_token():
    assert built().context_encoder.mask_token is not None
    alone = built("objective.context=visible")
    assert alone.context_encoder.mask_token is None
    assert alone.predictor.mask_token is not None
    for name in ("splitmask", "visreg"):
        assert built(*OBJECTIVES[name]).encoders["target"].mask_token is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_linear_layers_are_torchs_own(name):
    """Tools ask for exactly this type, in encoder, predictor, decoder and heads."""
    recipe = Recipe.load("smoke", [*SMALL, *OBJECTIVES[name], "objective.words=30"])
    objective = build_objective(recipe, images=lambda: 5)
    layers = [module for module in objective.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) > 4
    assert {type(layer) for layer in layers} == {torch.nn.Linear}


def test_several_crops_of_each_image():
    objective = built(*OBJECTIVES["visreg"], "objective.views_per_image=3", "objective.local_views=2")
    assert (objective.views_per_image, objective.local_views) == (3, 2)
    assert objective.encoders["target"].dynamic_img_size
    assert not built(*OBJECTIVES["visreg"]).encoders["target"].dynamic_img_size


def test_diet_has_a_class_for_each_image():
    recipe = Recipe.load("smoke", [*OBJECTIVES["diet"], *SMALL])
    assert build_objective(recipe, images=lambda: 7).student.head.out_features == 7
    with pytest.raises(DataError, match="diet: expected 2 images.*found 0"):
        build_objective(recipe)


def test_masks_must_fit_the_small_size_too():
    built("model.img_size=64", "model.small_img_size=32")
    with pytest.raises(RecipeError, match="blocks.*more than 1.*got 1 x 1"):
        built("model.small_img_size=16")
    with pytest.raises(RecipeError, match="model.small_img_size.*enough patches"):
        built("model.small_img_size=16", "mask.kind=random")
    with pytest.raises(RecipeError, match="recipe.run.accumulate.*parts of 2"):
        built(*OBJECTIVES["visreg"], "run.accumulate=4")


def test_infonce_compares_the_context_with_another_crop():
    changes = ["objective.pooled=infonce", "objective.pooled_weight=2"]
    one, two = built(*changes), built(*changes, "objective.views_per_image=2")
    assert (one.views_per_image, two.views_per_image) == (1, 2)
    crops = [torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    context, target, other, visible = two.inputs(crops, Draws(np.arange(4, dtype=np.uint64)))
    first = one.inputs(crops[0], Draws(np.arange(4, dtype=np.uint64)))
    assert torch.equal(context, first[0])
    assert torch.equal(target, first[1])
    for each in (one, two):
        torch.manual_seed(4)
        each.loss = each(*((context, target, other, visible) if each is two else (context, target, visible)))
    plain = built()
    torch.manual_seed(4)
    without = plain(context, target, visible)
    torch.manual_seed(4)
    again = two(context, target, target, visible)  # the other crop is the same crop
    torch.testing.assert_close(again, one.loss)
    assert (two.loss - one.loss).abs() > 1e-4
    assert two.loss > without
    planned = two.inputs(crops, two.drawing(Draws(np.arange(4, dtype=np.uint64))))
    assert all(torch.equal(a, b) for a, b in zip(planned, (context, target, other, visible), strict=True))
