"""The training loop. It wires the data, an objective, the optimiser and the schedules, and knows no method by name.

Every random number of update k comes from a seed made of (seed, k), and the order of epoch e from (seed, e), so a
checkpoint holds weights, the optimiser's state and one integer, and a resumed run goes on as if never stopped.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from .. import weights
from ..data import Images, decode, find_images
from ..errors import DataError, Interrupted, RecipeError, needs_extra
from ..progress import track
from ..scott import MODELS
from . import augment, masks
from .objective import MIMJEPA
from .predictor import Predictor
from .recipe import Recipe, require
from .records import Checkpoint, Log
from .schedules import linear, warmup_flat_cosine


def pretrain(recipe: Recipe, data: Sequence[str | Path], out: str | Path, resume: bool = False) -> Path:
    """Pretrain on all images below the folders `data`; returns the folder of the exported target encoder.

    The run folder `out` receives recipe.toml, metrics.jsonl, checkpoint.pt and, at the end, export/ in timm's
    local-dir layout.

    Raises:
        DataError: folders or files that cannot be used, or fewer images than a batch.
        RecipeError: a run folder in use and no `resume`, or a resumed run of another recipe or other data.
        Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    with needs_extra("train"):
        from accelerate import Accelerator

    out = Path(out)
    check_run_folder(recipe, out, resume)
    accelerator = Accelerator(mixed_precision=recipe.run.precision)
    torch.manual_seed(seed_for(recipe, "weights", 0))
    objective = build_objective(recipe).to(accelerator.device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(objective)
    compute_loss = compiled(objective) if recipe.run.compile else objective
    images = load_images(recipe, find_images(data))

    batch, steps = recipe.optim.batch_size, len(images) // recipe.optim.batch_size
    total = recipe.optim.epochs * steps
    checkpoint = Checkpoint(out / "checkpoint.pt", objective, optimizer, total)
    done = checkpoint.load() if resume else 0
    if not resume:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.toml").write_text(recipe.to_toml())

    saved = time.monotonic()
    with Log(out / "metrics.jsonl", done) as log, stop_requests() as stop:
        remaining = range(done + 1, total + 1)
        for step in track(remaining, "pretraining", total=total * batch, size=batch, done=done * batch):
            lr, weight_decay = set_schedules(recipe, optimizer, step, total, steps)
            generator = torch.Generator().manual_seed(seed_for(recipe, "step", step))
            torch.manual_seed(seed_for(recipe, "dropout", step))
            index = batch_index(recipe, len(images), step, steps)
            crops = augment.random_crops(images, index, recipe.model.img_size, generator)
            inputs = objective.inputs(crops.to(accelerator.device, non_blocking=True), generator)
            with accelerator.autocast():
                loss = compute_loss(*inputs)
            update(objective, optimizer, loss, step, total)

            if step % recipe.run.log_every == 0 or step == total:
                log.write(step, batch, epoch=step / steps, loss=loss.item(), lr=lr, weight_decay=weight_decay)
            if stop() or step == total or time.monotonic() - saved > 60 * recipe.run.checkpoint_every:
                checkpoint.save(step)
                saved = time.monotonic()
            if stop() and step < total:
                raise Interrupted(f"{out}: stopped after update {step} of {total} and saved; go on with --resume")
    return weights.export(objective.target_encoder, out / "export")


def update(objective: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, step: int, total: int) -> None:
    """Update number `step` (1 to `total`): gradients, optimiser, and only then the objective's own step."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step, total)


def check_run_folder(recipe: Recipe, out: Path, resume: bool) -> None:
    """Refuse to overwrite a run, to resume what is not there, or to go on with another recipe."""
    checkpoint, stored = out / "checkpoint.pt", out / "recipe.toml"
    if resume and not (checkpoint.is_file() and stored.is_file()):
        raise RecipeError(f"{out}: expected a run to resume (checkpoint.pt and recipe.toml), found none")
    if resume and (differences := recipe.differences(Recipe.load(stored))):
        raise RecipeError(f"{out}: cannot resume with another recipe (asked for and found): {'; '.join(differences)}")
    if not resume and checkpoint.exists():
        raise RecipeError(f"{out}: holds a run already; go on with --resume or choose another --out")


def load_images(recipe: Recipe, paths: list[Path]) -> Images:
    if len(paths) < recipe.optim.batch_size:
        raise DataError(
            f"expected at least one batch of {recipe.optim.batch_size} images, found {len(paths)}; "
            "add images or lower optim.batch_size"
        )
    return decode(paths, recipe.data.short_side)


def build_objective(recipe: Recipe) -> MIMJEPA:
    """Context encoder, predictor and target encoder as the recipe has them, with fresh weights.

    Raises:
        RecipeError: a model this package does not have, or settings a model or a mask cannot take.
    """
    model, mask = recipe.model, recipe.mask
    require(model.name in MODELS, "model.name", f"one of {MODELS}", model.name)
    kind = masks.random if mask.kind == "random" else partial(masks.blockwise, blocks=mask.blocks)
    draw_mask = partial(kind, ratio=mask.ratio)
    try:
        encoder = timm.create_model(
            model.name,
            img_size=model.img_size,
            use_mask_token=True,
            pos_drop_rate=model.pos_drop,
            proj_drop_rate=model.proj_drop,
            attn_drop_rate=model.attn_drop,
            drop_path_rate=model.drop_path,
        )
        draw_mask(encoder.patch_embed.grid_size, batch=1, generator=torch.Generator())
    except ValueError as error:
        raise RecipeError(f"recipe: {error}") from error
    predictor = Predictor(
        encoder.embed_dim,
        encoder.patch_embed.grid_size,
        num_heads=encoder.blocks[0].attn.num_heads,
        encoder_depth=len(encoder.blocks),
        depth=model.predictor_depth,
        pos_drop=model.pos_drop,
        proj_drop=model.proj_drop,
        attn_drop=model.attn_drop,
        drop_path=model.drop_path,
    )
    return MIMJEPA(
        encoder,
        predictor,
        views=partial(augment.two_views, mode=recipe.data.views),
        mask=draw_mask,
        ema=(recipe.optim.start_ema, recipe.optim.final_ema),
    )


def build_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """AdamW as in the released code: vectors and biases are not decayed, everything else is, the mask token too."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "decayed": True},
        {"params": [p for p in trained if p.ndim <= 1], "decayed": False, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_schedules(
    recipe: Recipe, optimizer: torch.optim.Optimizer, step: int, total: int, steps_per_epoch: int
) -> tuple[float, float]:
    """Set what update `step` uses; returns its learning rate and weight decay."""
    optim = recipe.optim
    lr = warmup_flat_cosine(
        step,
        total=total,
        warmup=round(optim.warmup_epochs * steps_per_epoch),
        start=optim.start_lr,
        peak=optim.peak_lr,
        final=optim.final_lr,
        flat=optim.flat,
    )
    weight_decay = linear(step, total=total, start=optim.start_weight_decay, final=optim.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0
    return lr, weight_decay


def compiled(objective: nn.Module) -> Any:
    """torch.compile, after a look whether it can work.

    Raises:
        RecipeError: no C++ compiler on a machine without a GPU.
    """
    if not torch.cuda.is_available() and not shutil.which(os.environ.get("CXX", "g++")):
        raise RecipeError(
            "recipe.run.compile: expected a C++ compiler (g++), found none; install it or set run.compile=false"
        )
    return torch.compile(objective)


def batch_index(recipe: Recipe, count: int, step: int, steps_per_epoch: int) -> Tensor:
    """The images of update `step` (from 1): its part of the epoch's order, whose incomplete last batch is dropped."""
    epoch, place = divmod(step - 1, steps_per_epoch)
    generator = torch.Generator().manual_seed(seed_for(recipe, "order", epoch))
    order = torch.randperm(count, generator=generator)
    return order[place * recipe.optim.batch_size : (place + 1) * recipe.optim.batch_size]


def seed_for(recipe: Recipe, purpose: str, number: int) -> int:
    """A seed for each purpose and number of a run, unlike its neighbours'."""
    entropy = (recipe.run.seed, int.from_bytes(purpose.encode()), number)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@contextmanager
def stop_requests() -> Iterator[Any]:
    """While open, Ctrl-C and SIGTERM do not kill but make the function it yields return True."""
    requests: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda number, frame: requests.append(number)) for number in signals]
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)
