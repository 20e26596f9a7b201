"""The training loop. It connects the data, an objective, the optimiser and the schedules, and names no method.

Every random number follows from the run's seed and a counter: those of an image from its epoch and index, the dropout
of an update from the number of the update. So a checkpoint holds only weights, the optimiser's state and one integer,
and a resumed run goes on as if it had never stopped.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..console import say, show
from ..data.decoded import Images, open_images
from ..data.loader import Made
from ..data.sources import Sample
from ..errors import DataError, Interrupted, RecipeError, WritingError, describe_system_error
from ..progress import track
from ..signals import stop_requests
from ..writing import write_text_whole
from .budget import Budget
from .checkpoints import Checkpoints
from .course import Course
from .engine import Engine, resolve_precision
from .processes import agree, join
from .run_folder import Log, has_control, write_environment
from .settings import TOML_ERRORS, Settings, require

S = TypeVar("S", bound=Settings)


def check_level(out: Path, recipe: Settings, done: int, steps: int) -> None:
    """Check that a run is past its warm-up and has not ended.

    Args:
        out: the run folder, for messages.
        done: updates done so far.
        steps: updates per epoch.

    Raises:
        RecipeError: the run has ended, or it is still in its warm-up.
    """
    optim = recipe.optim
    total, warmup = round(optim.epochs * steps), round(optim.warmup_epochs * steps)
    if done >= total:
        raise RecipeError(f"{out}: expected a run to finish, found one that has ended, after update {done:,}")
    if done < warmup:
        raise RecipeError(
            f"{out}: expected a run past its warm-up, found update {done:,} of {warmup:,}; go on with --resume first"
        )


class Run(ABC):
    """Train from the first update to the export. A subclass says what is trained, and how it is monitored.

    Args:
        recipe: settings of a kind that the subclass knows.
        data: sources of images.
        out: the run folder.
        resume: go on from the last checkpoint in `out`, if there is one.
        budget: the limit that epochs and schedules are fitted to; a resumed run keeps its epochs and schedules.
        skip_bad: leave out images that cannot be used, instead of raising.
        export: the name of the encoder to monitor and export, among `encoders` of the objective.
        ending: the limit for the rest of the run, which then ends early.

    Raises:
        as `scott_models.pretrain.pretrain`.
    """

    kind_of_health: type  # what the monitor returns
    outcome: str  # what the model is at the end, e.g. "pretrained"

    def __init__(
        self,
        recipe: Any,
        data: Sequence[str | Path],
        out: Path,
        resume: bool,
        budget: Budget | None,
        skip_bad: bool,
        export: str,
        *,
        ending: Budget | None = None,
    ) -> None:
        started = time.monotonic()
        self.out, self.data, self.skip_bad = out, data, skip_bad
        self.recipe = recipe = resolve_precision(check_run_folder(recipe, out, resume, budget))
        self.resuming = resuming = resume and any((out / "checkpoints").glob("step_*.pt"))
        self.loads_start = not resuming or self.misses_control()
        count = lambda: len(self.images)  # noqa: E731 -- lazy: errors of the recipe show before images are decoded
        self.engine = engine = Engine(recipe, out, partial(self.build_objective, images=count))
        images = self.images
        if len(images) < recipe.optim.batch_size:
            raise DataError(
                f"expected at least one batch of {recipe.optim.batch_size} images, found {len(images)}; "
                "add images or lower optim.batch_size"
            )
        self.order = order = engine.order(recipe, len(images))
        self.crops, self.size = engine.crop(images, recipe), recipe.model.img_size
        self.encoder = engine.objective.encoders[export]
        if hasattr(engine.objective, "prepare"):
            with engine.accelerator.main_process_first():  # the other processes, on other machines too, read its files
                engine.objective.prepare(self.crops, out)
        self.monitor = self.build_monitor(recipe, images)
        self.album = self.build_album(recipe, images) if engine.is_main and recipe.monitor.every else None
        before_control = time.monotonic()
        self.control = self.monitor(self.encoder) if engine.is_main and recipe.monitor.every else None
        monitoring = time.monotonic() - before_control
        fitted = ending or (None if resuming else budget)
        speeds = self.measure_speeds() if fitted and fitted.minutes else {}
        if budget and not resuming:
            speed, spent = self.speed_after(0, speeds), time.monotonic() - started
            self.recipe = recipe = agree(budget.fit(recipe, order, speed, spent, monitoring))
        planned = round(recipe.optim.epochs * order.steps)
        require(planned > 0, "optim.epochs", f"enough for one of {order.steps} updates", recipe.optim.epochs)
        identity = self.identify(images)
        self.checkpoints = Checkpoints(out / "checkpoints", engine.parts, engine.optimizer, identity, recipe.run.keep)
        self.done = self.checkpoints.load() if resuming else 0
        if ending:
            check_level(out, recipe, self.done, order.steps)  # again: the last checkpoint may have been damaged
            speed, spent = self.speed_after(self.done, speeds), time.monotonic() - started
            self.recipe = recipe = agree(ending.finish(recipe, order, self.done, speed, spent, monitoring))
        self.course = Course(planned, recipe.optim.finish_after, recipe.optim.finish_updates)
        self.total = self.course.total
        if self.done > self.total:
            raise RecipeError(
                f"{out / 'recipe.toml'}: expected at least the {self.done:,} updates of the last checkpoint, found "
                f"{self.total:,}; restore its section optim"
            )
        if engine.is_main:
            self.write_start(export)
        engine.accelerator.init_trackers("scott_models", config=recipe.flat())
        self.log = Log(
            out / "metrics.jsonl", self.done, order.batch, order.steps, self.kind_of_health, writes=engine.is_main
        )
        if self.control:
            self.log.monitored(0, self.control)
            if self.album and not self.done:
                self.album.add(0, self.encoder)
            self.control = self.log.health[0]  # in a resumed run the value measured at its start
        if engine.is_main:
            self.write_readme()

    @cached_property
    def images(self) -> Images:
        """Return all images. The first process of each machine decodes them; the others find them decoded."""
        with join().local_main_process_first():
            samples = self.samples(self.recipe)
            return open_images(samples, self.recipe.data.short_side, skip_bad=self.skip_bad)

    @abstractmethod
    def samples(self, recipe: Any) -> list[Sample]:
        """List all images of the run's sources."""

    @abstractmethod
    def build_objective(self, recipe: Any, *, images: Callable[[], int], compiled: bool) -> nn.Module:
        """Build the objective that the run trains.

        Unless `loads_start` is True, a checkpoint will replace all weights, so trained ones need not be loaded.

        Args:
            images: returns the number of images of the run.
            compiled: compile the objective by torch.compile.
        """

    @abstractmethod
    def build_monitor(self, recipe: Any, images: Images) -> Callable[[Any], Any]:
        """Build the monitor: a function of an encoder whose result, a `kind_of_health`, has `better_than`."""

    @abstractmethod
    def build_album(self, recipe: Any, images: Images) -> Any:
        """Build the album, which keeps pictures of the run by its method `add(step, encoder)`; None: no pictures."""

    @abstractmethod
    def verdict(self, now: Any, control: Any) -> str:
        """Describe in one line what the monitor measured now, compared with the control (random weights)."""

    @abstractmethod
    def write_readme(self) -> None:
        """Write README.md of the run folder: what the run is, its results so far, and how to use its model."""

    @abstractmethod
    def write_export(self, folder: Path) -> None:
        """Save the trained model for timm's "local-dir:"."""

    def write_start(self, export: str) -> None:
        """Write recipe.toml, and add this start of the run to environment.json."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_text_whole(self.out / "recipe.toml", self.recipe.to_toml(), errors=TOML_ERRORS)
        facts = {"images": self.order.count, "processes": self.engine.processes, "after": self.done, "export": export}
        write_environment(self.out / "environment.json", self.data, **facts, skip_bad=self.skip_bad)

    def misses_control(self) -> bool:
        """Return True if the monitor must measure the weights before the first update again, in a run that resumes."""
        log = self.out / "metrics.jsonl"
        if not self.recipe.monitor.every or has_control(log):
            return False
        if join().is_main_process:
            say(f"{log}: expected a look before the first update, found none; making it from the initial weights")
        return True

    def identify(self, images: Images) -> dict[str, str]:
        """Return digests of what must not change when the run resumes, by name."""
        return {"images": images.digest}

    def measure_speeds(self) -> dict[int, float]:
        """Measure images per second for each image size of the run, by size in pixels."""
        sizes = [size for size in (self.recipe.small_img_size, self.recipe.model.img_size) if size]
        speeds = {}
        for size in sizes:
            if len(sizes) > 1:
                self.engine.resize(size)
            speeds[size] = self.engine.speed(self.recipe, self.order, self.crops.at(size))
        return speeds

    def speed_after(self, done: int, speeds: dict[int, float]) -> float:
        """Return images per second, averaged over the planned updates after `done`; 0 if `speeds` is empty."""
        if not speeds:
            return 0.0
        small, whole = self.recipe.small_img_size, speeds[self.recipe.model.img_size]
        if not small:
            return whole
        planned = max(done + 1, round(self.recipe.optim.epochs * self.order.steps))
        share = max(0, Course(planned).last_small(self.recipe.model.small_share) - done) / (planned - done)
        return 1 / (share / speeds[small] + (1 - share) / whole)

    def batches(self) -> Generator[list[tuple[Any, Made]], None, None]:
        """Yield the batches of the remaining updates, each at its image size."""
        engine, model, small = self.engine, self.recipe.model, self.recipe.small_img_size
        share = model.small_share if small else 0
        for first, last, size in self.course.sizes(self.done + 1, small, share, model.img_size):
            self.size = size
            if small:
                engine.resize(size)
            with closing(engine.load(self.order, self.crops.at(size), first, last, self.recipe.run.workers)) as batches:
                yield from batches

    def train(self) -> None:
        """Make the remaining updates, with logging, monitoring and checkpoints.

        Raises:
            DataError: a file of the run folder cannot be written, an image can no longer be read, or the system failed.
            TrainingError: three updates in a row were not finite, the GPU's memory is full or torch.compile failed.
            Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after saving.
        """
        try:
            self._train()
        except WritingError as error:
            raise DataError(f"{error}; {self.checkpoints.last_good()}") from error
        except OSError as error:  # not of writing a file, e.g. too many files are open
            raise DataError(
                f"{self.out}: stopped by the system ({describe_system_error(error)}); {self.checkpoints.last_good()}"
            ) from error

    def _train(self) -> None:
        engine, order, run = self.engine, self.order, self.recipe.run
        watch_every = max(1, round(self.recipe.monitor.every * order.steps))
        updates: Iterable[int] = range(self.done + 1, self.total + 1)
        if engine.is_main:
            size, total = order.batch, self.total * order.batch
            updates = track(updates, "training", total=total, size=size, done=self.done * size)
        batches = self.batches()
        saved = time.monotonic()
        with self.log, self.checkpoints, closing(batches), stop_requests() as stop:
            for step, batch in zip(updates, batches):
                values = engine.update(self.recipe, batch, step, self.course, order.steps)
                last = step == self.total
                logged = last or step % run.log_every == 0
                looked = logged or engine.device.type == "cpu"  # on a GPU a check waits for the device: do few
                if looked:
                    engine.check(self.checkpoints.last_good)
                stopping = engine.on_any(stop()) if looked or engine.processes == 1 else False
                if logged:
                    engine.accelerator.log(self.log.write(step, **engine.on_host(values)), step=step)
                watched = self.control is not None and (last or step % watch_every == 0)
                best = watched and self.watch(step)
                due = time.monotonic() - saved > 60 * run.checkpoint_every
                if engine.is_main and (last or stopping or best or due):
                    self.checkpoints.save(step, best=best)
                    saved = time.monotonic()
                if last or stopping:
                    self.checkpoints.wait()
                if watched:
                    self.write_readme()
                if stopping and not last:
                    engine.accelerator.wait_for_everyone()  # a launcher ends all processes once one has exited
                    raise Interrupted(
                        f"{self.out}: stopped after update {step} of {self.total} and saved; go on with --resume"
                    )
            if self.control is not None and self.total not in self.log.health:  # an ended run that lost its log
                self.watch(self.total)
                self.write_readme()

    def watch(self, step: int) -> bool:
        """Run the monitor, log and print what it measured, and return True if it is the best so far."""
        assert self.control is not None
        whole = self.recipe.model.img_size
        if self.size != whole:  # the monitor always measures at the full image size
            self.engine.objective.set_input_size(whole)
        health = self.monitor(self.encoder)
        best = self.log.monitored(step, health)
        if self.album:
            self.album.add(step, self.encoder)
        if self.size != whole:
            self.engine.objective.set_input_size(self.size)
        self.engine.accelerator.log(asdict(health), step=step)
        say(f"epoch {step / self.order.steps:.4g}: {self.verdict(health, self.control)}")
        return best

    def export(self) -> Path:
        """Export the trained model from the first process, end the run on all, and return the model's folder.

        At the end print how to load the model.
        """
        folder = self.out / "export"
        if self.engine.is_main:
            self.write_export(folder)
        self.engine.accelerator.wait_for_everyone()
        self.engine.accelerator.end_training()
        if self.engine.is_main:
            show(f"{self.outcome}; use it with timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")
        return folder


def check_run_folder(recipe: S, out: Path, resume: bool, budget: Budget | None) -> S:
    """Check that a run does not overwrite another one, and does not resume with another recipe.

    Returns:
        the recipe. For a run that resumes, the epochs that its budget gave it, the end that a finish gave it and the
        precision that "auto" was resolved to are filled in from the stored recipe.

    Raises:
        RecipeError: `out` holds a run and `resume` is False, the stored recipe is missing, or the recipes differ.
    """
    stored_path = out / "recipe.toml"
    checkpoints = list((out / "checkpoints").glob("step_*.pt"))
    if checkpoints and not resume:
        raise RecipeError(f"{out}: holds a run already; go on with --resume or choose another --out")
    if checkpoints and not stored_path.is_file():
        raise RecipeError(f"{stored_path}: expected the recipe of the run to resume, found none")
    if not checkpoints:
        if resume:  # it was killed early, or the script of a batch job always resumes
            say(f"{out}: no checkpoint to go on from; starting anew")
        return recipe.changed("optim", finish_after=0, finish_updates=0)  # a recipe from another run may have set these
    try:
        stored = type(recipe).load(stored_path)
    except RecipeError as error:
        raise RecipeError(
            f"{out}: cannot resume by its recipe.toml, which is damaged or of another kind: {error}"
        ) from error
    ending = {name: getattr(stored.optim, name) for name in ("finish_after", "finish_updates")}
    recipe = recipe.changed("optim", **ending)
    if budget:
        chosen = stored.optim
        recipe = recipe.changed("optim", epochs=chosen.epochs, warmup_epochs=chosen.warmup_epochs)
    if recipe.run.precision == "auto":
        recipe = recipe.changed("run", precision=stored.run.precision)
    if differences := recipe.differences(stored):
        raise RecipeError(f"{out}: cannot resume with another recipe (asked for and found): {'; '.join(differences)}")
    return recipe
