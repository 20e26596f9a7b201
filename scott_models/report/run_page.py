"""Make the page of a run folder: verdict, curves, pictures of the features, settings and hardware."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.sources import find_samples
from ..errors import DataError, UserError
from ..finetune.recipe import FinetuneRecipe
from ..pictures.neighbours import draw_neighbours
from ..pretrain.monitor import Health, judge, pick_evenly
from ..pretrain.recipe import Recipe
from ..release.entry import is_pretraining, name_source, name_start
from ..training.course import Course
from ..training.run_folder import count_seconds, read_whole_lines
from ..training.schedules import linear
from ..training.settings import Settings
from .charts import Line, draw_curves
from .page import Chart, Page, Picture, Section, State, Table, Tile

LOOKS = 8  # about as many looks of the album as are shown; the last one always is
QUERIES, GALLERY, NEIGHBOURS = 6, 400, 6  # images: queries, searched, shown per query
STATES: dict[str, State] = {"healthy": "good", "healthy features": "doubtful", "partial collapse": "bad", "dead": "bad"}
# Field of an update in metrics.jsonl -> caption of its curve.
CURVES = {
    "loss": "Loss. The loss says nothing about the features: it can fall while all features become the same.",
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "grad_norm": "Gradient norm",
    "images_per_second": "Images per second",
}
WATCHED = {
    "rankme": "RankMe, the effective number of dimensions that the features use",
    "spread": "Spread of the features over images, 0 to 1",
}
PROBES = {"knn": "kNN", "ridge": "ridge", "top1": "top-1", "top5": "top-5", "per_class": "mean over classes"}


def is_run(folder: Path) -> bool:
    """Return True if a folder is a run of `scott pretrain` or `scott finetune`."""
    return (folder / "recipe.toml").is_file() and (folder / "metrics.jsonl").is_file()


@dataclasses.dataclass(frozen=True)
class Records:
    """Hold what the files of a run folder say.

    Attributes:
        recipe: the settings of the run.
        paper: the default settings of the same kind of run; of pretraining, the paper's.
        updates: the lines of metrics.jsonl that describe updates.
        looks: the lines of metrics.jsonl that the monitor wrote.
        starts: for each start of the run, its arguments, software and hardware.
    """

    folder: Path
    recipe: Any
    paper: Settings
    updates: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Records":
        """Read the files of a run folder. The run may still be in progress.

        Raises:
            DataError: a file is missing or damaged.
        """
        kind: type[Settings] = Recipe if is_pretraining(folder) else FinetuneRecipe
        try:
            lines = read_whole_lines(folder / "metrics.jsonl")
            starts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            looks = [line for line in lines if "monitor" in line]
            recipe = kind.load(folder / "recipe.toml")
            paper = kind().changed("run", precision=recipe.run.precision)  # "auto" may have chosen it
            return cls(folder, recipe, paper, [line for line in lines if "loss" in line], looks, starts)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder}: expected a run's files, found damaged ones ({error})") from error

    @property
    def pretraining(self) -> bool:
        return isinstance(self.recipe, Recipe)

    @property
    def course(self) -> Course | None:
        """Return the course of the updates, or None if no update was logged yet."""
        if not self.updates:
            return None
        last, optim = self.updates[-1], self.recipe.optim
        planned = round(optim.epochs * last["step"] / last["epoch"])
        return Course(planned, optim.finish_after, optim.finish_updates)

    @property
    def start(self) -> str:
        """Return what pretraining started from: "random weights", or the name of the weights without their path."""
        return name_start(self.recipe) or "random weights"

    @property
    def name(self) -> str:
        """Return the name of the model; if the model is a folder, the folder's own name."""
        return Path(self.recipe.model.name.removeprefix("local-dir:")).name


def make_page(folder: Path, *, neighbours: bool = True) -> Page:
    """Make the whole page of a run folder.

    Raises:
        DataError: a file of the run is missing or damaged.
        WeightsError: `neighbours` is set and the weights are damaged.
    """
    run = Records.read(folder)
    state, words, notes = judge_run(run)
    sections = [describe_progress(run), make_curves(run)]
    if album := show_looks(run):
        sections.append(album)
    if neighbours and run.pretraining:
        sections.append(show_neighbours(run))
    sections += [list_settings(run), list_hardware(run)]
    if run.pretraining and (folder / "export").is_dir():
        usage = (
            f"import scott_models, timm\n\nmodel = timm.create_model({f'local-dir:{folder}/export'!r}, pretrained=True)"
        )
        sections.append(Section("Use it", code=f"{usage}  # num_classes=10 adds a classifier"))
    title = f"{run.name}, {f'pretrained by {run.recipe.objective.title}' if run.pretraining else 'fine-tuned'}"
    return Page(f"{title}: {folder.resolve().name}", state, words, notes, make_tiles(run), [s for s in sections if s])


def judge_run(run: Records) -> tuple[State, str, list[str]]:
    """Return state and text of the verdict, and notes that qualify it."""
    done, total = (run.updates[-1]["step"] if run.updates else 0), run.course.total if run.course else None
    ended = done == total
    notes = [] if ended else [f"Not finished: update {done:,} of {f'{total:,}' if total else 'an unknown number'}."]
    if len(run.looks) < 2:
        return "unknown", "not monitored yet", notes
    now, control = run.looks[-1]["monitor"], run.looks[0]["monitor"]
    if not run.pretraining:
        return "unknown", f"top-1 {now['top1']:.1f} % of the test images", notes
    words, _, figures = judge(Health(**now), Health(**control), run.start).partition(": ")
    return STATES[words.split(",")[0]], words, [figures.replace("; in brackets", ". In brackets") + ".", *notes]


def make_tiles(run: Records) -> list[Tile]:
    """Make the tiles with the key figures."""
    found = []
    if run.looks:
        now, control = run.looks[-1]["monitor"], run.looks[0]["monitor"]
        found += [
            Tile(words, f"{now[name]:.1f} %", f"{control[name]:.1f} {run.start}" if run.pretraining else "")
            for name, words in PROBES.items()
            if now.get(name) is not None
        ]
        if now.get("rankme") is not None:
            found.append(Tile("RankMe", f"{now['rankme']:.1f}", f"{control['rankme']:.1f} {run.start}"))
    if run.course:
        batch, last = run.recipe.optim.batch_size, run.updates[-1]
        epochs = run.recipe.optim.epochs * run.course.total / run.course.planned
        seconds = count_seconds(run.updates, batch)
        speed = last["step"] * batch / seconds
        found += [
            Tile("images seen", f"{last['step'] * batch:,}", f"{last['epoch']:.3g} of {epochs:.3g} epochs"),
            Tile("time", _duration(round(seconds / 60)), "of updates"),
            Tile("speed", f"{speed:,.{1 if speed < 100 else 0}f} images/s", _device(run)),
        ]
    return found


def describe_progress(run: Records) -> Section | None:
    """Draw the measurements of the monitor, look by look."""
    looks = run.looks
    if len(looks) < 2:
        return None
    charts = []
    start = run.start if run.pretraining else ""
    probes = {words: _line(looks, name) for name, words in PROBES.items() if looks[0]["monitor"].get(name) is not None}
    if probes:
        control = {f"{words}, {start}": line[1][0] for words, line in probes.items()} if start else {}
        words = "Accuracy of probes on frozen features, %" if start else "Accuracy on the test images, %"
        charts.append(Chart(draw_curves(probes, x="epoch", levels=control), words))
    for name, words in WATCHED.items():
        if looks[0]["monitor"].get(name) is not None:
            line = _line(looks, name)
            charts.append(Chart(draw_curves({"this run": line}, x="epoch", levels={start: line[1][0]}), words))
    return Section("Is it alive?" if start else "Progress", charts=charts)


def make_curves(run: Records) -> Section | None:
    """Draw the curves of the updates."""
    if not run.updates:
        return None
    epochs = [line["epoch"] for line in run.updates]
    charts = [
        Chart(draw_curves({name: (epochs, [_number(line[name]) for line in run.updates])}, x="epoch"), words)
        for name, words in CURVES.items()
        if any(line.get(name) is not None for line in run.updates)
    ]
    if run.pretraining and run.recipe.objective.name == "mimjepa" and (course := run.course):
        optim = run.recipe.optim
        decay = [
            linear(course.place(line["step"]), total=course.planned, start=optim.start_ema, final=optim.final_ema)
            for line in run.updates
        ]
        words = "EMA decay: the share of the target encoder that an update keeps"
        charts.append(Chart(draw_curves({"ema": (epochs, decay)}, x="epoch"), words))
    skipped = sum(line["loss"] is None for line in run.updates)
    words = f"{skipped} of the logged updates had no finite loss and were skipped." if skipped else ""
    return Section("Curves", words, charts=charts)


def show_looks(run: Records) -> Section | None:
    """Show the album: principal components of the patch features of a few images, look by look."""
    first = run.folder / "looks" / "images.webp"
    steps = sorted((run.folder / "looks").glob("step_*.webp"))
    if not (first.is_file() and steps):
        return None
    chosen = [steps[i] for i in pick_evenly(range(len(steps)), LOOKS)]
    chosen = list(dict.fromkeys([*chosen, steps[-1]]))
    per_epoch = run.updates[-1]["step"] / run.updates[-1]["epoch"] if run.updates else 1
    pictures = [Picture.of(first, "Images of the run")]
    for path in chosen:
        epoch = int(path.stem.removeprefix("step_")) / per_epoch
        pictures.append(Picture.of(path, f"epoch {epoch:.3g}" if epoch else run.start))
    words = (
        "Principal components of the patch features, computed over the images of a row together. Patches that the "
        "first component separates as background are black; three components of the others are red, green and blue. "
        "Similar colours within a row mean similar features; colours of different rows cannot be compared."
    )
    return Section("What the model sees", words, pictures=pictures)


def show_neighbours(run: Records) -> Section:
    """Show nearest neighbours among the images of the run, if the images are on this machine."""
    title, sources = "Nearest neighbours", run.starts[-1]["data"]
    if not (run.folder / "export").is_dir() and not any((run.folder / "checkpoints").glob("step_*.pt")):
        return Section(title, "There is no checkpoint yet.")
    try:
        images = [sample.image for sample in find_samples(sources, run.recipe.data.splits, skip_bad=True)]
    except (UserError, OSError):
        images = []
    files = [image for image in images if isinstance(image, Path)]
    if len(files) < 2:
        names = ", ".join(map(name_source, map(str, sources)))
        return Section(title, f"The run's images were not found as files from the current folder: {names}.")
    gallery = pick_evenly(files, GALLERY)
    asked = pick_evenly(gallery, QUERIES)
    skip = run.starts[-1].get("skip_bad", False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "neighbours.webp"
        try:
            draw_neighbours(
                asked, gallery, out, str(run.folder), count=min(NEIGHBOURS, len(gallery) - 1), skip_bad=skip
            )
        except DataError as error:  # e.g. an image that training skipped
            return Section(title, f"Not drawn: {error}.")
        picture = Picture.of(out, "Nearest neighbours by the cosine of pooled features")
    words = f"Left: images of the run. Right: the nearest neighbours of each among {len(gallery):,} images of the run."
    return Section(title, words, pictures=[picture])


def list_settings(run: Records) -> Section:
    """List the settings of the run, first those that differ from the paper or the default."""
    ours, theirs = run.recipe.flat(), run.paper.flat()
    ours |= {"model.name": run.name} | ({"model.init": name_start(run.recipe)} if run.pretraining else {})
    head = ["setting", "this run", "paper" if run.pretraining else "default"]
    rows = [[name, _shown(value), _shown(theirs[name])] for name, value in ours.items()]
    differs = [row for row in rows if row[1] != row[2]]
    same = [row[:2] for row in rows if row[1] == row[2]]
    words = "Settings in which this run differs." if differs else "No setting differs."
    tables = [Table(head, differs, range(len(differs)))] if differs else []
    return Section(
        "Recipe", words, tables=[*tables, Table(head[:2], same, folded=f"{len(same)} settings that are the same")]
    )


def list_hardware(run: Records) -> Section:
    """List hardware, software and starts of the run."""
    start = run.starts[-1]
    facts = {
        "processor": _device(run),
        "system": start["system"],
        "images": f"{start['images']:,} of {', '.join(dict.fromkeys(name_source(str(s)) for s in start['data']))}",
        "processes": start["processes"],
        **start["packages"],
        "Python": start["python"],
        "started": ", ".join(
            each["started"] + (f" (after update {each['after']:,})" if each["after"] else "") for each in run.starts
        ),
    }
    return Section("Hardware and software", tables=[Table(["", ""], list(facts.items()))])


def _device(run: Records) -> str:
    start = run.starts[-1]
    return start["gpu"] or f"{start['cpus']} CPU cores"


def _duration(minutes: int) -> str:
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else "under a minute"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "-"


def _line(looks: Sequence[dict[str, Any]], name: str) -> Line:
    return [look["epoch"] for look in looks], [_number(look["monitor"][name]) for look in looks]


def _number(value: float | None) -> float:
    """Return NaN for None: JSON has no NaN."""
    return float("nan") if value is None else value
