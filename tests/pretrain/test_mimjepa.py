"""Parity with the original implementation, and properties that must hold for any weights."""

import pytest
import torch

from scott_models import SCOTT
from scott_models.pretrain import MIMJEPA, Predictor, Recipe
from scott_models.pretrain.recipe import Optim
from scott_models.training.course import Course
from scott_models.training.optimizer import apply_gradients, build_optimizer, set_schedules
from scott_models.weights import convert_reference, convert_reference_predictor


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture
def original(recording):
    """Rebuild the recorded model: the objective in training mode without any dropout."""
    tensors, settings = recording
    encoder = SCOTT(
        img_size=settings["img_size"],
        embed_dim=settings["embed_dim"],
        depth=settings["depth"],
        num_heads=settings["num_heads"],
        use_mask_token=True,
        dynamic_img_size=False,
    )
    encoder.load_state_dict(convert_reference(part(tensors, "encoder.")))
    predictor = Predictor(
        settings["embed_dim"],
        encoder.patch_embed.num_patches,
        num_heads=settings["num_heads"],
        encoder_depth=settings["depth"],
        depth=settings["predictor_depth"],
    )
    predictor.load_state_dict(convert_reference_predictor(part(tensors, "predictor.")))
    objective = MIMJEPA(encoder, predictor)
    objective.target_encoder.load_state_dict(convert_reference(part(tensors, "target.")))
    return objective.train()


@pytest.fixture
def inputs(recording):
    return [recording[0][name] for name in ("in.context", "in.target", "in.visible")]


def our_parameter(objective, name):
    """Return the parameter with this name in the recording, e.g. "encoder.transformer.msk_embed"."""
    module, rest = name.split(".", 1)
    modules = {
        "encoder": objective.context_encoder,
        "target": objective.target_encoder,
        "predictor": objective.predictor,
    }
    return modules[module].get_parameter(*convert_reference({rest: None}))


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@torch.no_grad()
def test_outputs(original, inputs, recording):
    expected = part(recording[0], "out.")
    context, target, visible = inputs
    encoder = original.context_encoder
    masked = encoder.forward_tokens(context, visible)
    # 2e-5: tokens reach 7.4, and a channels-last convolution sums its 3,136 products in another order
    close(encoder.patch_embed(context), expected["tokens_full"], 2e-5)
    close(encoder.patch_embed(context, visible), expected["tokens_visible"], 2e-5)
    close(encoder.forward_tokens(context), expected["features_full"], 1e-5)
    close(masked, expected["features_masked"], 1e-5)
    close(encoder.get_attention(context)[0], expected["attention_last"], 1e-5)
    close(original.target_encoder.forward_features(target), expected["targets"], 1e-5)
    close(original.predictor(masked), expected["predictions"], 1e-5)


def test_loss_and_gradients(original, inputs, recording):
    loss = original(*inputs)
    assert loss.item() == pytest.approx(recording[1]["losses"][0], abs=1e-5)
    loss.backward()
    gradients = part(recording[0], "grad.")
    assert len(gradients) == 6
    for name, expected in gradients.items():
        close(our_parameter(original, name).grad, expected, 1e-5 * expected.abs().max().item())


def worst_after_three_updates(objective, inputs, recording, *, ema_first=False, **optim):
    """Run three updates of the training loop, perhaps with a mistake.

    Returns:
        the largest differences from the recorded weights and losses.
    """
    tensors, settings = recording
    # 100 updates, 13 of them warm-up; the first three are recorded. All other settings are the paper's defaults.
    recipe = Recipe(optim=Optim(**{"epochs": 100, "warmup_epochs": 13, **optim}))
    objective.ema = (recipe.optim.start_ema, recipe.optim.final_ema)
    optimizer = build_optimizer(objective)
    if ema_first:
        follow, steps = objective.after_step, iter((1, 2, 3))
        optimizer.register_step_pre_hook(lambda *_: follow(next(steps), 100))
        objective.after_step = lambda step, total: None
    losses = []
    for k in (1, 2, 3):
        set_schedules(recipe.optim, optimizer, k, Course(100), steps_per_epoch=1)
        loss = objective(*inputs)
        losses.append(loss.item())
        loss.backward()
        apply_gradients(optimizer, loss)
        objective.after_step(k, 100)
    expected = part(tensors, "after3.")
    assert len(expected) == 4
    worst = max((our_parameter(objective, name) - tensor).abs().max().item() for name, tensor in expected.items())
    return worst, max(abs(loss - theirs) for loss, theirs in zip(losses, settings["losses"]))


def test_three_updates(original, inputs, recording):
    weights, losses = worst_after_three_updates(original, inputs, recording)
    assert weights < 2e-7
    assert losses < 1e-5


@pytest.mark.parametrize(
    "mistake",
    [
        {"start_weight_decay": 0.0, "final_weight_decay": 0.0},
        {"start_ema": 0.99604, "final_ema": 0.99604},  # constant at the value of the first update
        {"ema_first": True},
        {"warmup_epochs": 12},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_three_updates_notice_a_mistake(original, inputs, recording, mistake):
    weights, _ = worst_after_three_updates(original, inputs, recording, **mistake)
    assert weights > 2e-7


@pytest.fixture
def objective(tiny):
    return MIMJEPA(tiny, Predictor(32, (4, 4), num_heads=2, encoder_depth=2, depth=1)).train()


def test_target_is_a_frozen_copy_without_dropout(objective):
    assert objective.context_encoder.training
    assert not objective.target_encoder.training
    assert not any(p.requires_grad for p in objective.target_encoder.parameters())
    for name, parameter in objective.context_encoder.named_parameters():
        copied = objective.target_encoder.get_parameter(name)
        assert torch.equal(copied, parameter)
        assert copied.data_ptr() != parameter.data_ptr()


def test_loss_counts_hidden_patches_only(objective, visible, monkeypatch):
    targets = torch.randn(2, 16, 32)
    monkeypatch.setattr(objective.target_encoder, "forward_features", lambda images: targets)
    monkeypatch.setattr(
        objective.predictor, "forward", lambda features: torch.where(visible[..., None], 100.0, targets + 3)
    )
    assert objective(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64), visible).item() == pytest.approx(2.5)


def test_inputs_and_after_step(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    context, target, visible = objective.inputs(crops, torch.Generator().manual_seed(0))
    again = objective.inputs(crops, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((context, target, visible), again))
    assert visible.sum(dim=1).tolist() == [7] * 4
    with torch.no_grad():
        for parameter in objective.context_encoder.parameters():
            parameter.fill_(1)
        for parameter in objective.target_encoder.parameters():
            parameter.fill_(0)
    objective.after_step(5, 10)  # the decay is half way from 0.996 to 1
    assert all(torch.allclose(p, torch.tensor(0.002)) for p in objective.target_encoder.parameters())
    objective.after_step(10, 10)
    assert all(torch.allclose(p, torch.tensor(0.002)) for p in objective.target_encoder.parameters())


def test_weights_are_listed_once(objective, monkeypatch):
    objective.after_step(1, 10)
    objective.student = Wrapper(objective.student)  # as with several processes
    before = [parameter.clone() for parameter in objective.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in objective.context_encoder.parameters():
            parameter.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "named_parameters", None)  # calling it took longer than the update
        objective.after_step(2, 10)
    after = list(objective.target_encoder.parameters())
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_encoder_needs_a_mask_token():
    model = SCOTT(img_size=64, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="use_mask_token=True"):
        MIMJEPA(model, Predictor(32, 16, num_heads=2, encoder_depth=1))


@pytest.fixture
def alone():
    """Build an objective whose context encoder encodes only the visible patches."""
    torch.manual_seed(0)
    encoder = SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2)
    predictor = Predictor(32, (4, 4), num_heads=2, encoder_depth=2, depth=1, mask_token=True)
    return MIMJEPA(encoder, predictor).train()


def test_visible_patches_are_encoded_alone(alone):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    context, target, visible, places, hidden = alone.inputs(crops, torch.Generator().manual_seed(0))
    assert (places.shape, hidden.shape) == ((4, 7), (4, 9))
    assert visible.gather(1, places).all()
    assert not visible.gather(1, hidden).any()
    loss = alone(context, target, visible, places, hidden)
    shown = visible.view(4, 1, 4, 4).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    assert torch.equal(alone(torch.where(shown, context, 100.0), target, visible, places, hidden), loss)
    assert not torch.equal(alone(torch.where(shown, 100.0, context), target, visible, places, hidden), loss)
    predictions, tokens = alone.student(context, visible, places)
    assert (predictions.shape, tokens.shape) == ((4, 16, 32), (4, 7, 32))
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in alone.student.parameters())


def test_the_other_sees_mask_tokens(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    assert len(objective.inputs(crops, torch.Generator())) == 3
    assert objective.predictor.mask_token is None


def test_a_smaller_size_and_back(objective):
    crops = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    before = objective(*objective.inputs(crops, torch.Generator().manual_seed(0)))
    objective.set_input_size(48)
    inputs = objective.inputs(crops[..., :48, :48], torch.Generator().manual_seed(0))
    assert inputs[2].shape == (4, 9)
    fresh = Predictor(32, (3, 3), num_heads=2, encoder_depth=2, depth=1)
    fresh.load_state_dict(objective.predictor.state_dict())
    tokens = objective.context_encoder.forward_tokens(inputs[0], inputs[2])
    assert torch.equal(fresh(tokens), objective.predictor(tokens))
    objective(*inputs).backward()
    objective.set_input_size(64)
    assert torch.equal(objective(*objective.inputs(crops, torch.Generator().manual_seed(0))), before)


def test_two_mask_tokens_are_one_too_many(tiny):
    with pytest.raises(ValueError, match="or else a predictor with mask_token=True"):
        MIMJEPA(tiny, Predictor(32, 16, num_heads=2, encoder_depth=1, mask_token=True))
