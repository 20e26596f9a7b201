"""The cost of a training step, counted without a clock: operations, kernels, graph breaks, waits of the host."""

import re
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scott_models.models import fast_cpu
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.training.optimizer import apply_gradients, build_optimizer


@pytest.fixture(scope="module")
def paper():
    """Build the paper's SCOTT-12/16 without dropout, which only adds random numbers."""
    rates = [f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path")]
    return build_objective(Recipe.load("flowers102", rates)).train()


@pytest.fixture(scope="module")
def inputs():
    visible = torch.rand(1, 196, generator=torch.Generator().manual_seed(0)).argsort(dim=1) < 79
    return torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 224, 224), visible


# The fused attention of a CPU, which the counter of some torch versions (2.14) leaves out.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def gmac(function, *arguments):
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        function(*arguments)
    return counter.get_total_flops() / 2e9


def test_operations_are_those_the_estimates_rest_on(paper, inputs):
    """Check GMAC: encoder 5.58, of which 0.944 in the second convolution; predictor 1.158; whole step 25.7."""
    encoder = paper.target_encoder
    with torch.no_grad():
        assert gmac(encoder.forward_features, inputs[0]) == pytest.approx(5.58, abs=0.01)
        assert gmac(encoder.patch_embed.conv2, torch.zeros(1, 64, 56, 56)) == pytest.approx(0.944, abs=0.001)
        assert gmac(paper.predictor, torch.zeros(1, 196, 384)) == pytest.approx(1.158, abs=0.001)
    assert gmac(lambda: paper(*inputs).backward()) == pytest.approx(25.7, rel=0.02)


@pytest.mark.slow
def test_the_objective_is_one_graph(paper, inputs):
    explained = torch._dynamo.explain(paper)(*inputs)
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0


class Kernels(TorchDispatchMode):
    """Count operations that compute something; views are free."""

    VIEWS = re.compile(
        "(_unsafe_)?view|reshape|permute|transpose|t|as_strided|(un)?squeeze|expand|select|slice|detach|alias"
        "|split(_with_sizes)?|unbind|(new_)?empty(_like|_strided)?"
    )

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        self.found[name] += not self.VIEWS.fullmatch(name)
        return function(*args, **(kwargs or {}))


def test_a_step_has_no_more_kernels_than_it_had(monkeypatch):
    """Count with every dropout, in fp32, on any processor; torch versions differ, so a tenth more is allowed."""
    monkeypatch.setattr(fast_cpu, "CONVOLVES_FASTER", False)
    objective = build_objective(Recipe.load("smoke", ["model.name=scott_3_16"])).train()
    objective.to(memory_format=torch.channels_last)
    size = objective.target_encoder.patch_embed.img_size
    images = torch.zeros(2, 3, *size).contiguous(memory_format=torch.channels_last)  # as in the engine
    grid = objective.target_encoder.patch_embed.grid_size
    visible = torch.rand(2, grid[0] * grid[1]).argsort(dim=1) < 5
    optimizer = build_optimizer(objective)
    with Kernels() as forward:
        loss = objective(images, images, visible)
    with Kernels() as backward:
        loss.backward()
    with Kernels() as update:
        apply_gradients(optimizer, loss)
        objective.after_step(1, 10)
    assert forward.found.total() < 1.1 * 276
    assert backward.found.total() < 1.1 * 223
    assert update.found.total() < 1.1 * 119


class Waits(TorchDispatchMode):
    """Record operations whose result the host must know; they stall the queue of a GPU."""

    KINDS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        if name.split(".")[0] in self.KINDS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_its_device(paper, inputs):
    optimizer = build_optimizer(paper)
    with Waits() as waits:
        loss = paper(*inputs)
        loss.backward()
        apply_gradients(optimizer, loss)
        paper.after_step(1, 10)
    assert waits.found == []
    with Waits() as waits:
        loss.item()
    assert waits.found == ["_local_scalar_dense"]
