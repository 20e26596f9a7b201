"""Build what `scott bench` measures: models and MIM-JEPA's step, ready to be called, with their operations counted."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.device import name_compiler_cache
from ..errors import UserError
from ..models.fast_cpu import MULTIPLIES_BFLOAT16, keep_freed_memory
from ..probes.features import load_model

Task = Literal["inference", "step", "inputs", "product"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ORIGINAL = "original "  # in front of a model's name: the authors' implementation of it
PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices that show the peak
EMULATED_PRODUCT = 256  # the same of bfloat16 where it is emulated: a larger one takes minutes
STORED = (320, 427)  # pixels of the images that inputs are made from
STORED_COUNT = 256


@dataclass(frozen=True)
class Contender:
    """Describe what is measured.

    Attributes:
        model: any timm model's name, or one of ours after "original ", for the authors' code.
        task: "inference", images to features; "step", loss, gradients, optimiser and target of MIM-JEPA on ready
            inputs; "inputs", crops, views and masks from decoded images; "product", of two square matrices.
        precision: "bf16" is the weights' dtype in inference, autocast in a step.
        compiled: by torch.compile.
        reference: a checkout of the original, for its models.
    """

    model: str
    task: Task
    precision: str = "fp32"
    batch: int = 16
    img_size: int = 224
    device: str = "cpu"
    compiled: bool = False
    reference: str | None = None

    @property
    def is_emulated(self) -> bool:
        """Tell whether the processor only emulates the precision; its peak then means nothing."""
        return self.precision == "bf16" and self.device == "cpu" and not MULTIPLIES_BFLOAT16

    @property
    def matrix_product(self) -> "Contender":
        """Return the matrix product that shows the machine's peak."""
        rows = EMULATED_PRODUCT if self.is_emulated else PRODUCT[self.device]
        return Contender("matrix product", "product", self.precision, rows, 0, self.device)

    def build(self) -> tuple[Callable[[], object], float]:
        """Build what is called, and count how many images, or FLOP of a product, a call is.

        Raises:
            UserError: no checkout of the original at `reference`, or a step of the original, which is in benchmarks/.
        """
        if self.compiled:
            name_compiler_cache()
        make = {"inference": _inference, "step": _step, "inputs": _inputs, "product": _product}[self.task]
        return make(self), 2 * self.batch**3 if self.task == "product" else self.batch


def _product(contender: Contender) -> Callable[[], object]:
    n, dtype = contender.batch, PRECISIONS[contender.precision]
    a, b = (torch.randn(n, n, device=contender.device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def make_images(contender: Contender, count: int = 1, channels_last: bool = True) -> list[Tensor]:
    shape = (contender.batch, 3, contender.img_size, contender.img_size)
    images = [torch.randn(shape, device=contender.device) for _ in range(count)]
    return [x.contiguous(memory_format=torch.channels_last) for x in images] if channels_last else images


def _inference(contender: Contender) -> Callable[[], object]:
    dtype = PRECISIONS[contender.precision]
    if contender.model.startswith(ORIGINAL):
        model = build_original(contender)[0].eval()
        images = make_images(contender, channels_last=False)[0].to(dtype)
    else:
        model = load_model(contender.model, pretrained=False, img_size=contender.img_size)
        model = model.to(contender.device, memory_format=torch.channels_last)
        images = make_images(contender)[0].to(dtype)
    model = model.to(contender.device, dtype)
    run = torch.compile(model) if contender.compiled else model

    @torch.inference_mode()
    def call() -> object:
        return run(images)

    return call


def _step(contender: Contender) -> Callable[[], object]:
    from ..pretrain.masks import blockwise
    from ..training.course import Course
    from ..training.optimizer import apply_gradients, set_schedules

    grid = (contender.img_size // 16,) * 2
    visible = blockwise(grid, 0.6, contender.batch, torch.Generator()).to(contender.device)
    if contender.model.startswith(ORIGINAL):
        raise UserError(f"{contender.model}: expected one of our models, found the original's step")
    if contender.device == "cpu":
        keep_freed_memory()  # as the engine of a run does
    recipe, objective, optimizer = _objective(contender)
    context, target = make_images(contender, 2)
    steps = iter(range(1, sys.maxsize))
    bf16 = contender.precision == "bf16"

    def call() -> object:
        step = next(steps)
        set_schedules(recipe.optim, optimizer, step, Course(sys.maxsize), 64)
        with torch.autocast(contender.device, torch.bfloat16, enabled=bf16):
            loss = objective(context, target, visible)
        loss.backward()
        apply_gradients(optimizer, loss)
        objective.after_step(step, sys.maxsize)
        return loss

    return call


def _objective(contender: Contender) -> tuple[Any, Any, torch.optim.Optimizer]:
    from ..pretrain.build import build_objective
    from ..pretrain.recipe import Recipe
    from ..training.optimizer import build_optimizer

    recipe = Recipe.load("flowers102", [f"model.name={contender.model}", f"model.img_size={contender.img_size}"])
    objective = build_objective(recipe, compiled=contender.compiled)
    objective = objective.to(contender.device, memory_format=torch.channels_last).train()
    return recipe, objective, build_optimizer(objective)


def _inputs(contender: Contender) -> Callable[[], object]:
    """Make inputs, by one process, from a data set whose decoded images are in memory, uint8."""
    import numpy as np

    from ..data.decoded import Images
    from ..data.loader import Crops, load
    from ..data.order import Order
    from ..training.engine import copy_crops

    _, objective, _ = _objective(contender)
    size, count = STORED[0] * STORED[1] * 3, max(STORED_COUNT, contender.batch)
    pixels = torch.randint(0, 256, (count * size,), dtype=torch.uint8)
    shapes, offsets = np.tile(np.array(STORED), (count, 1)), np.arange(count) * size
    images = Images([], STORED[0], "", np.zeros(count, dtype=bool), shapes, offsets, pixels)
    images = images.on(torch.device(contender.device))
    crops = Crops(images, contender.img_size, 0)
    order, compiled = Order(count, contender.batch, 0), contender.compiled
    batches = load(order, crops, 1, sys.maxsize, 0, objective.drawing, compiled)  # a daemon may start no processes

    def call() -> object:
        [(plan, made)] = next(batches)
        return objective.inputs(copy_crops(made, torch.device(contender.device)), plan)

    return call


def build_original(contender: Contender) -> tuple[nn.Module, Any]:
    """Build the authors' encoder by their code, with the depth and heads of our model; return it and our model."""
    if contender.reference is None:
        raise UserError(f"{contender.model}: expected a checkout of the original, found none; --reference PATH")
    if contender.reference not in sys.path:
        sys.path.insert(0, contender.reference)
    try:
        from src.models.scott import SCOTT as Original  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f"{contender.reference}: expected a checkout of the original, found none ({error})") from error
    ours = timm.create_model(contender.model.removeprefix(ORIGINAL))
    heads = ours.blocks[0].attn.num_heads
    encoder = Original(
        contender.img_size, 16, ours.embed_dim, 3, len(ours.blocks), heads, 0, 0.2, 0.1, 0.1, 0, "swiglu"
    )
    return encoder.to(contender.device), ours


def count_gflop(contender: Contender) -> float | None:
    """Count the operations of one image, by torch on tensors without data; the original has those of our model."""
    if contender.task not in ("inference", "step"):
        return None
    model, size = contender.model.removeprefix(ORIGINAL), contender.img_size
    single = replace(contender, model=model, batch=1, compiled=False)
    images = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        if contender.task == "inference":
            load_model(model, pretrained=False, img_size=size).to("meta")(images)
        else:
            objective = _objective(replace(single, device="cpu"))[1].to("meta")
            visible = torch.empty(1, (size // 16) ** 2, dtype=torch.bool, device="meta")
            objective(images, images, visible).backward()
    return counter.get_total_flops() / 1e9
