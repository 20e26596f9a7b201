"""Measure the time that SplitMask saves by encoding each half of an image alone: the table of docs/objectives.md.

python benchmarks/dropping.py

The table has milliseconds of a batch, forward and backward, in bf16 with 2 threads; the contenders take turns. The
first two columns compare one half alone with all places, where the hidden half has mask tokens. The other columns have
the whole loss of each objective, and the loss of SplitMask without dropping.
"""

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
from kernels import milliseconds
from page import table
from torch import Tensor, nn

from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.pretrain.recipe import OBJECTIVES
from scott_models.pretrain.splitmask import SplitMask, SplitStudent

DRY = [f"model.{name}=0" for name in ("pos_drop", "proj_drop", "attn_drop", "drop_path")]


def undropped(self: SplitStudent, images: Tensor, first: Tensor, *places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute SplitStudent.forward, except that the blocks see mask tokens in the places of the other half."""
    one, other = (self.decoder(self.encoder.forward_tokens(images, half)[half], half) for half in (first, ~first))
    return self.head(torch.where(first[..., None], other, one)), one.mean(dim=1), other.mean(dim=1)


def objective_of(name: str, model: str, pixels: int) -> nn.Module:
    """Build an objective by its recipe, without dropout and with random words."""
    sizes = [f"model.name={model}", f"model.img_size={pixels}", "data.short_side=320"]
    objective = build_objective(Recipe.load("flowers102", [*OBJECTIVES[name], *sizes, *DRY]))
    if name != "mimjepa":
        vocabulary = objective.vocabulary
        vocabulary.words = nn.functional.normalize(torch.randn(vocabulary.size, 768), dim=1)
    return objective.train()


def loss(objective: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """Return a function that computes the loss and the gradients."""

    def call() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = objective(*inputs)
        value.backward()

    return call


def encoder(model: str, pixels: int, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions that encode with gradients: the first all places, the second one half alone."""
    images = torch.randn(batch, 3, pixels, pixels)
    net = timm.create_model(model, img_size=pixels, use_mask_token=True)
    half = torch.rand(batch, (pixels // 16) ** 2).argsort(dim=1) < (pixels // 16) ** 2 // 2

    def call(forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                tokens = forward(images, half)
            tokens.float().square().mean().backward()

        return run

    return call(net.forward_tokens), call(net.forward_visible)


def row(model: str, pixels: int, batch: int) -> dict[str, Any]:
    places, half = milliseconds(*encoder(model, pixels, batch))
    crops = torch.randint(0, 256, (batch, 3, pixels, pixels), dtype=torch.uint8)
    objectives = {name: objective_of(name, model, pixels) for name in OBJECTIVES}
    whole = objective_of("splitmask", model, pixels)
    assert isinstance(whole, SplitMask)
    mask_token = nn.Parameter(torch.zeros(1, 1, whole.student.encoder.embed_dim))
    whole.student.encoder.mask_token = mask_token
    whole.student.forward = undropped.__get__(whole.student)
    calls = []
    for objective in (*objectives.values(), whole):
        calls.append(loss(objective, objective.inputs(crops, torch.Generator().manual_seed(0))))
    times = milliseconds(*calls)
    return {
        "model": model,
        "pixels": pixels,
        "all places": places,
        "half": half,
        "half / all": round(half / places, 2),
        **{f"{name}, loss": time for name, time in zip([*OBJECTIVES, "splitmask undropped"], times)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    batch = parser.parse_args().batch
    torch.set_num_threads(2)
    sizes = (("scott_3_16", 64), ("scott_3_16", 224), ("scott_12_16", 224), ("scott_vit_12_16", 224))
    print(table([row(model, pixels, batch) for model, pixels in sizes]))


if __name__ == "__main__":
    main()
