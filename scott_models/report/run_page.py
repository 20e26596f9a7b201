"""The page of a run folder: is it alive, how did it go, what does it see, how does it differ from the paper's."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
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
from ..training.run_folder import count_seconds
from ..training.schedules import linear
from ..training.settings import Settings
from .charts import Line, draw_curves
from .page import Chart, Page, Picture, Section, State, Table, Tile

LOOKS = 8  # of the album, at most
QUERIES, GALLERY, ALIKE = 6, 400, 6  # images asked for, images looked through, images shown of each
STATES: dict[str, State] = {"healthy": "good", "healthy features": "doubtful", "partial collapse": "bad", "dead": "bad"}
# What metrics.jsonl has of an update -> what stands below its curve.
CURVES = {
    "loss": "Loss. It tells nothing of the features: it may fall while all of them become one.",
    "lr": "Learning rate",
    "weight_decay": "Weight decay",
    "grad_norm": "Norm of the gradients",
    "images_per_second": "Images a second",
}
WATCHED = {
    "rankme": "RankMe, how many dimensions the features use",
    "spread": "Spread of the features over images, 0 to 1",
}
PROBES = {"knn": "kNN", "ridge": "ridge", "top1": "top-1", "top5": "top-5", "per_class": "mean of the classes"}


def is_run(folder: Path) -> bool:
    """Whether a folder is what `scott pretrain` or `scott finetune` write."""
    return (folder / "recipe.toml").is_file() and (folder / "metrics.jsonl").is_file()


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run folder says.

    Attributes:
        recipe, paper: its settings, and those of the same kind that nobody changed.
        updates, looks: the lines of metrics.jsonl, of updates and of the monitor.
        starts: of each time it was started, what it was given and ran on.
    """

    folder: Path
    recipe: Any
    paper: Settings
    updates: list[dict[str, Any]]
    looks: list[dict[str, Any]]
    starts: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Records":
        """Of a run under way too.

        Raises:
            DataError: damaged files.
        """
        kind: type[Settings] = Recipe if is_pretraining(folder) else FinetuneRecipe
        try:
            lines = read_log(folder / "metrics.jsonl")
            starts = json.loads((folder / "environment.json").read_text())
            looks = [line for line in lines if "monitor" in line]
            recipe = kind.load(folder / "recipe.toml")
            paper = kind().changed("run", precision=recipe.run.precision)  # which "auto" chose
            return cls(folder, recipe, paper, [line for line in lines if "loss" in line], looks, starts)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder}: expected a run's files, found damaged ones ({error})") from error

    @property
    def pretraining(self) -> bool:
        return isinstance(self.recipe, Recipe)

    @property
    def course(self) -> Course | None:
        """Its updates; None before the first was logged."""
        if not self.updates:
            return None
        last, optim = self.updates[-1], self.recipe.optim
        planned = round(optim.epochs * last["step"] / last["epoch"])
        return Course(planned, optim.finish_after, optim.finish_updates)

    @property
    def start(self) -> str:
        """What pretraining started from, without where that is."""
        return name_start(self.recipe) or "random weights"

    @property
    def name(self) -> str:
        """The model's, of a folder the last one."""
        return Path(self.recipe.model.name.removeprefix("local-dir:")).name


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that a power cut left unfinished is not there.

    Raises:
        ValueError: another line that is no JSON.
    """
    texts = path.read_text().splitlines()
    lines = [json.loads(text) for text in texts[:-1]]
    with suppress(ValueError):
        lines += map(json.loads, texts[-1:])
    return lines


def make_page(folder: Path, *, neighbours: bool = True) -> Page:
    """Everything that a run's folder tells.

    Raises:
        DataError: a folder with damaged files.
        WeightsError: weights that are damaged, where neighbours are asked for.
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
    """The verdict, and what else must be known to believe it."""
    done, total = (run.updates[-1]["step"] if run.updates else 0), run.course.total if run.course else None
    ended = done == total
    notes = [] if ended else [f"Not at its end: update {done:,} of {f'{total:,}' if total else 'an unknown number'}."]
    if len(run.looks) < 2:
        return "unknown", "not watched yet", notes
    now, control = run.looks[-1]["monitor"], run.looks[0]["monitor"]
    if not run.pretraining:
        return "unknown", f"top-1 {now['top1']:.1f} % of the test images", notes
    words, _, figures = judge(Health(**now), Health(**control), run.start).partition(": ")
    return STATES[words.split(",")[0]], words, [figures.replace("; in brackets", ". In brackets") + ".", *notes]


def make_tiles(run: Records) -> list[Tile]:
    """The figures at a glance."""
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
    """What the monitor found, look by look."""
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
    return Section("Is it alive?" if start else "How it fares", charts=charts)


def make_curves(run: Records) -> Section | None:
    """The curves of the updates."""
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
        words = "EMA: how much of the target encoder stays as it was in an update"
        charts.append(Chart(draw_curves({"ema": (epochs, decay)}, x="epoch"), words))
    skipped = sum(line["loss"] is None for line in run.updates)
    words = f"{skipped} of the updates that were logged had no finite loss and were skipped." if skipped else ""
    return Section("Curves", words, charts=charts)


def show_looks(run: Records) -> Section | None:
    """The album: principal components of the patches of a few images, look by look."""
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
        "Principal components of the patch features of these images together: what the first one separates as "
        "background is black, three components of the rest are red, green and blue. Alike colours within a row mean "
        "alike features; rows have nothing in common."
    )
    return Section("What it sees", words, pictures=pictures)


def show_neighbours(run: Records) -> Section:
    """Images of the run that its model finds alike, if they are here."""
    title, sources = "What it finds alike", run.starts[-1]["data"]
    if not (run.folder / "export").is_dir() and not any((run.folder / "checkpoints").glob("step_*.pt")):
        return Section(title, "There is no checkpoint yet.")
    try:
        images = [sample.image for sample in find_samples(sources, run.recipe.data.splits)]
    except (UserError, OSError):
        images = []
    files = [image for image in images if isinstance(image, Path)]
    if len(files) < 2:
        names = ", ".join(map(name_source, map(str, sources)))
        return Section(title, f"The run's images are not here as files, seen from this folder: {names}.")
    gallery = pick_evenly(files, GALLERY)
    asked = pick_evenly(gallery, QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "neighbours.webp"
        try:
            draw_neighbours(asked, gallery, out, str(run.folder), count=min(ALIKE, len(gallery) - 1))
        except DataError as error:  # an image that training left out, for one
            return Section(title, f"Not drawn: {error}.")
        picture = Picture.of(out, "Nearest neighbours by the cosine of pooled features")
    words = f"Left, images of the run; beside each the nearest among {len(gallery):,} of the run's images."
    return Section(title, words, pictures=[picture])


def list_settings(run: Records) -> Section:
    """The recipe, what differs first."""
    ours, theirs = run.recipe.flat(), run.paper.flat()
    ours |= {"model.name": run.name} | ({"model.init": name_start(run.recipe)} if run.pretraining else {})
    head = ["setting", "this run", "paper" if run.pretraining else "default"]
    rows = [[name, _shown(value), _shown(theirs[name])] for name, value in ours.items()]
    differs = [row for row in rows if row[1] != row[2]]
    same = [row[:2] for row in rows if row[1] == row[2]]
    words = "Where this run differs." if differs else "Nothing differs."
    tables = [Table(head, differs, range(len(differs)))] if differs else []
    return Section(
        "Recipe", words, tables=[*tables, Table(head[:2], same, folded=f"{len(same)} settings that are the same")]
    )


def list_hardware(run: Records) -> Section:
    """What it ran on, and how it was started."""
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
    """JSON has no NaN."""
    return float("nan") if value is None else value
