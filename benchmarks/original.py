"""The authors' training step, for benchmarks/cpu.py: the authors' modules and optimiser, in the order of their loop."""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from scott_models.bench.contenders import Contender, build_original, make_images
from scott_models.pretrain.masks import blockwise


@dataclass(frozen=True)
class OriginalStep(Contender):
    """Describe a training step of the original, whose checkout is at `reference`. The step does no logging."""

    def build(self) -> tuple[Callable[[], object], float]:
        return _build_step(self), self.batch


def _build_step(contender: Contender) -> Callable[[], object]:
    context_encoder, ours = build_original(contender)
    grid = (contender.img_size // 16,) * 2
    visible = blockwise(grid, 0.6, contender.batch, torch.Generator()).to(contender.device)
    from src.models.predictor import Predictor
    from src.optimizer import get_optimizer

    dim, depth, heads = ours.embed_dim, len(ours.blocks), ours.blocks[0].attn.num_heads
    predictor = Predictor(dim, visible.shape[1], 0, depth, 3, heads, "swiglu", 0, 0.2, 0.1, 0.1).to(contender.device)
    target_encoder = deepcopy(context_encoder).eval()
    trained = nn.ModuleList([context_encoder.train(), predictor.train()])
    optimizer = get_optimizer(trained, sys.maxsize, 64, 1e-6, 5e-4, 1e-5, 0.72, 0.04, 0.4)
    context, target = make_images(contender, 2, channels_last=False)
    keep, hidden = visible.int(), (~visible).float()

    def call() -> object:
        with torch.no_grad():
            wanted = nn.functional.layer_norm(target_encoder(target), (dim,))
        optimizer.zero_grad()
        found = predictor(context_encoder(context, keep))
        error = nn.functional.smooth_l1_loss(found * hidden[..., None], wanted * hidden[..., None], reduction="none")
        loss = (error.mean(dim=-1).sum(dim=-1) / hidden.sum(dim=-1)).mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for theirs, own in zip(context_encoder.parameters(), target_encoder.parameters()):
                own.mul_(0.996).add_(0.004 * theirs)
        return loss.item()

    return call
