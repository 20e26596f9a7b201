"""Put an objective on its devices and make updates. Accelerate manages the devices and processes."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..console import say
from ..data.decoded import Images
from ..data.device import name_compiler_cache
from ..data.loader import Crops, Made, load
from ..data.order import Order
from ..data.random_streams import Draws, make_key
from ..errors import RecipeError, TrainingError, UserError
from ..models.fast_cpu import MULTIPLIES_BFLOAT16, keep_freed_memory
from .course import Course
from .optimizer import apply_gradients, build_optimizer, list_persistent_buffers, restore_buffers, set_schedules
from .processes import agree, join
from .settings import Settings, require

S = TypeVar("S", bound=Settings)
BAD_UPDATES = 3  # the run stops after so many skipped updates in a row
TRIAL = 3  # updates that must succeed before torch.compile is trusted
WARM_UPDATES, TIMED_SECONDS = 3, 15


class Engine:
    """Combine objective, optimiser and Accelerate as a recipe says.

    Args:
        out: the run folder.
        build: (recipe, compiled=...) -> the objective.

    Raises:
        RecipeError: settings that do not fit the model, the mask or the machine.
    """

    def __init__(self, recipe: Settings, out: Path, build: Callable[..., Any]) -> None:
        join()
        from accelerate import Accelerator, DistributedDataParallelKwargs

        recipe = resolve_precision(recipe)
        wrapping = DistributedDataParallelKwargs()
        try:
            self.accelerator = Accelerator(
                mixed_precision="no",  # we call autocast ourselves: Accelerate keeps the first precision of a process
                gradient_accumulation_steps=recipe.run.accumulate,
                log_with=list(recipe.run.trackers) or None,
                project_dir=out,
                kwargs_handlers=[wrapping],
            )
        except ValueError as error:
            raise RecipeError(f"recipe.run: {error}") from error
        if len(self.accelerator.log_with) < len(recipe.run.trackers):
            raise RecipeError(f"recipe.run.trackers: expected installed trackers, got {list(recipe.run.trackers)}")
        self.device: torch.device = self.accelerator.device
        bf16 = recipe.run.precision == "bf16"
        self.autocast = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=bf16)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        pieces = self.processes * recipe.run.accumulate
        fits = recipe.optim.batch_size % pieces == 0
        require(fits, "optim.batch_size", f"a multiple of {pieces} (processes times parts)", recipe.optim.batch_size)
        torch.manual_seed(make_seed(recipe, "weights", 0))
        self.compiled = can_compile(recipe, self.device)
        self.on_trial, self.gave_up = TRIAL if self.compiled else 0, False  # updates left; torch.compile failed
        objective = build(recipe, compiled=self.compiled)
        self.objective = objective.to(self.device, memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(self.objective)
        self.parts: dict[str, nn.Module] = dict(self.objective.named_children())  # without wrappers
        self.trained = [name for name, part in self.parts.items() if any(p.requires_grad for p in part.parameters())]
        self.statistics = [buffer for name in self.trained for buffer in list_persistent_buffers(self.parts[name])]
        # Buffers other than running statistics are constants, such as positions: processes need not exchange them.
        wrapping.broadcast_buffers = any(buffer.is_floating_point() for buffer in self.statistics)
        if self.processes > 1:
            for name in self.trained:  # each process has its own copy of the rest, such as a teacher
                setattr(self.objective, name, self.accelerator.prepare(self.parts[name]))
        self.in_a_row = torch.zeros((), device=self.device)  # skipped updates in a row, up to the last update
        self.longest = torch.zeros((), device=self.device)  # longest row of skipped updates so far
        self.skipped = torch.zeros((), device=self.device)

    def order(self, recipe: Settings, images: int) -> Order:
        """Return the order in which this process sees the images."""
        return Order(images, recipe.optim.batch_size, recipe.run.seed, self.rank, self.processes, recipe.run.accumulate)

    def crop(self, images: Images, recipe: Settings) -> Crops:
        """Return the crops of the images, with the number of views that the objective takes.

        Raises:
            RecipeError: the crops of a batch do not fit into memory.
        """
        views, local = getattr(self.objective, "views_per_image", 1), getattr(self.objective, "local_views", 0)
        crops = Crops(images.on(self.device), recipe.model.img_size, recipe.run.seed, views, local)
        run, sharing = recipe.run, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torch's launcher sets this variable
        crops.check_room(recipe.optim.batch_size // self.processes, run.accumulate, run.workers, sharing)
        return crops

    def load(
        self, order: Order, crops: Crops, first: int, last: int, workers: int
    ) -> Generator[list[tuple[Any, Made]], None, None]:
        """Yield the batches of updates `first` to `last`, with the random numbers that this objective needs."""
        return load(order, crops, first, last, workers, getattr(self.objective, "drawing", None), self.compiled)

    def update(
        self, recipe: Settings, batch: Sequence[tuple[Any, Made]], step: int, course: Course, steps_per_epoch: int
    ) -> dict[str, Any]:
        """Make update `step` with this process's parts of a batch, without waiting for the device.

        Args:
            batch: parts of the batch, as `load` yields them.
            step: number of the update, from 1 to `course.total`.
            course: places `step` on the schedules.

        Returns:
            lr and weight_decay, numbers; loss and grad_norm over all processes, scalars on the device.

        Raises:
            TrainingError: the GPU's memory is full, or torch.compile failed and the run may not go on without it.
        """
        lr, weight_decay = set_schedules(recipe.optim, self.optimizer, step, course, steps_per_epoch)
        before = [buffer.clone() for buffer in self.statistics]
        loss = self.accelerator.reduce(self.try_compiled(recipe, batch, step, before), "mean")
        grad_norm, skipped = apply_gradients(self.optimizer, loss)
        restore_buffers(self.statistics, before, skipped)
        self.objective.after_step(course.place(step), course.planned)
        self.in_a_row = (self.in_a_row + skipped) * skipped
        self.longest = torch.maximum(self.longest, self.in_a_row)
        self.skipped += skipped
        return {"loss": loss, "grad_norm": grad_norm, "lr": lr, "weight_decay": weight_decay}

    def try_compiled(
        self, recipe: Settings, batch: Sequence[tuple[Any, Made]], step: int, before: Sequence[Tensor]
    ) -> Tensor:
        """Compute the gradients of a batch. If torch.compile fails in the first updates, go on without it.

        Args:
            batch, step: as in `update`.
            before: the values of `statistics` before the update.

        Returns:
            the loss of this process, a scalar on the device.

        Raises:
            TrainingError: as in `update`.
        """
        if self.on_trial:
            try:
                loss = self.gather_gradients(recipe, batch, step)
                self.on_trial -= 1
                return loss
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # dynamo, inductor, triton and compilers raise many kinds of errors
                self.give_up_compiling(recipe, error)
            self.optimizer.zero_grad()
            restore_buffers(self.statistics, before)
        with torch.compiler.set_stance("force_eager") if self.gave_up else nullcontext():
            return self.gather_gradients(recipe, batch, step)

    def give_up_compiling(self, recipe: Settings, error: Exception) -> None:
        """Report that torch.compile failed, and go on without it.

        Raises:
            TrainingError: the recipe has run.compile=on, or there are other processes, which may go on compiled.
        """
        reason = f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"  # errors have many lines
        if recipe.run.compile == "on" or self.processes > 1:
            choice = "off" if recipe.run.compile == "auto" else "off or auto"
            raise TrainingError(
                f"recipe.run.compile: expected that torch.compile works, found {reason}; set run.compile={choice}"
            ) from error
        say(f"torch.compile failed ({reason}): the run goes on without it, and slower")
        self.on_trial, self.gave_up = 0, True

    def gather_gradients(self, recipe: Settings, batch: Sequence[tuple[Any, Made]], step: int) -> Tensor:
        """Accumulate the gradients of this process's parts of a batch. Return their mean loss, on the device."""
        torch.manual_seed(make_seed(recipe, "dropout", step * self.processes + self.rank))
        losses = []
        for drawn, crops in batch:
            plan = drawn
            if isinstance(drawn, Tensor):  # (epoch, index) rows: the objective has no `drawing` and draws by itself
                epochs, indices = drawn.unbind(1)
                plan = Draws.keyed(make_key(recipe.run.seed, "inputs"), epochs, indices, step)
            inputs = self.objective.inputs(copy_crops(crops, self.device), plan)
            trained = (getattr(self.objective, name) for name in self.trained)
            with explain_out_of_memory(), self.accelerator.accumulate(*trained):
                with self.autocast():
                    loss = self.objective(*inputs)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def on_host(self, values: dict[str, Any]) -> dict[str, float]:
        """Wait for the device and return the values of `update` as plain numbers.

        Also return `skipped`, the number of updates skipped so far, and on a GPU `peak_gib`, its peak memory in GiB.
        """
        numbers = {**{name: float(value) for name, value in values.items()}, "skipped": int(self.skipped.item())}
        if self.device.type == "cuda":
            numbers["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 3)
        return numbers

    def check(self, last_good: Callable[[], str]) -> None:
        """Wait for the device and check how many updates in a row were skipped.

        Args:
            last_good: returns a sentence about the last good checkpoint, for the message.

        Raises:
            TrainingError: three updates in a row were skipped because the loss or a gradient was not finite.
        """
        if self.longest.item() >= BAD_UPDATES:
            raise TrainingError(
                f"the loss or a gradient was not finite in {BAD_UPDATES} updates in a row; lower optim.peak_lr or set "
                f"run.precision=no; {last_good()}"
            )

    def resize(self, size: int) -> None:
        """Set the image size of the objective, in pixels. As in the first updates, torch.compile may fail."""
        self.objective.set_input_size(size)
        self.on_trial = TRIAL if self.compiled and not self.gave_up else 0

    def speed(self, recipe: Settings, order: Order, crops: Crops) -> float:
        """Measure images per second over some updates, and undo these updates afterwards.

        The first process decides how many updates all processes time.
        """
        course = Course(sys.maxsize)
        before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in self.parts.items()}
        batches = self.load(order, crops, 1, sys.maxsize, recipe.run.workers)
        for step in range(1, WARM_UPDATES + 1):
            started = time.monotonic()
            self.update(recipe, next(batches), step, course, order.steps)["loss"].item()
            seconds = agree(time.monotonic() - started)
        updates = max(3, round(TIMED_SECONDS / seconds))
        started = time.monotonic()
        for step in range(WARM_UPDATES + 1, WARM_UPDATES + 1 + updates):
            loss = self.update(recipe, next(batches), step, course, order.steps)["loss"]
        loss.item()
        speed = updates * order.batch / agree(time.monotonic() - started)
        batches.close()
        for name, part in self.parts.items():
            part.load_state_dict(before[name])
        self.optimizer.state.clear()
        for count in (self.in_a_row, self.longest, self.skipped):
            count.zero_()
        return speed

    def on_any(self, flag: bool) -> bool:
        """Return True if the flag is True on any process. All processes must call this."""
        if self.processes == 1:
            return flag
        return self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum").item() > 0


def copy_crops(crops: Made, device: torch.device) -> Made:
    """Copy one batch of crops, or a list of batches, to a device, without waiting for the device."""
    if isinstance(crops, Tensor):
        return crops.to(device, non_blocking=True)
    return [each.to(device, non_blocking=True) for each in crops]


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory is full; set run.accumulate=2 (or 4, ...) to work through a batch in parts ({error})"
        ) from error


def has_bf16() -> bool:
    """Return True if the training device multiplies bfloat16 natively; emulation would be many times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return MULTIPLIES_BFLOAT16


def resolve_precision(recipe: S) -> S:
    """Return the recipe with precision "auto" resolved to "bf16" or "no" for this machine."""
    auto = recipe.run.precision == "auto"
    return recipe.changed("run", precision="bf16" if has_bf16() else "no") if auto else recipe


def can_compile(recipe: Settings, device: torch.device) -> bool:
    """Return True if the recipe asks for torch.compile and the machine has a compiler for it.

    Raises:
        RecipeError: run.compile is "on", but torch.compile would find no compiler.
    """
    if recipe.run.compile == "off" or (recipe.run.compile == "auto" and device.type != "cuda"):
        return False
    # inductor compiles C++ for a CPU; for a GPU triton compiles a little C
    names = ("CXX", "g++", "clang++") if device.type != "cuda" else ("CC", "gcc", "clang")
    if any(shutil.which(os.environ.get(name, name)) for name in names):
        name_compiler_cache()
        return True
    if recipe.run.compile == "on":
        raise RecipeError(
            f"recipe.run.compile: expected a compiler ({names[1]}), found none; install it or set run.compile=off"
        )
    say(f"no compiler ({names[1]}) found: the run goes on without torch.compile, and slower")
    return False


def make_seed(recipe: Settings, purpose: str, number: int) -> int:
    """Return a seed for torch's global generator, which takes 63 bits."""
    return int(make_key(recipe.run.seed, purpose, number)) >> 1
