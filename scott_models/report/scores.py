"""What `scott probe --json` prints, as sections: scores beside random weights, each class, mistakes, few labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .charts import Line, draw_bars, draw_curves, draw_matrix
from .page import Chart, Section, State, Table

CONTROL = " (random weights)"  # how the name of a control ends
WORST = 10  # classes, and mistakes, that are listed
Result = dict[str, Any] | list[dict[str, Any]]  # scores, or the points of a curve


def read_result(path: Path) -> Result:
    """Scores or a curve.

    Raises:
        DataError: another file.
    """
    try:
        result: Result = json.loads(path.read_text())
        fields = {"top1", "images", "probe"} if isinstance(result, list) else {"scores", "names", "confusions"}
        entry = result[0] if isinstance(result, list) else result
        if fields <= entry.keys():
            return result
        found = f"one without {sorted(fields - entry.keys())}"
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        found = f"something else ({error})"
    raise DataError(f"{path}: expected scores or a curve that `scott probe --json` printed, found {found}")


def make_title(results: Sequence[Result]) -> str:
    """Of a page without a run."""
    first = results[0][0] if isinstance(results[0], list) else results[0]["scores"][0]
    return f"Frozen features of {name_model(first['model'])}"


def name_model(model: str) -> str:
    """A model's name; of a folder the last one: where it is on somebody's disk is nobody else's affair."""
    of_control = CONTROL if model.endswith(CONTROL) else ""
    path = Path(model.removesuffix(CONTROL).removeprefix("local-dir:"))
    return (path.parent if path.name == "export" else path).name + of_control


def make_sections(result: Result) -> list[Section]:
    return [show_few_labels(result)] if isinstance(result, list) else [show_probes(result), show_classes(result)]


def split_rows(report: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """By probe, the scores of the model, and those of its control."""
    own: dict[str, dict[str, Any]] = {}
    control: dict[str, dict[str, Any]] = {}
    for row in report["scores"]:
        (control if row["model"].endswith(CONTROL) else own)[row["probe"]] = row
    return own, control


def judge_scores(results: Sequence[Result]) -> tuple[State, str]:
    """The verdict of a page without a run: how far the probes are ahead of random weights."""
    for result in results:
        if isinstance(result, dict):
            own, control = split_rows(result)
            best = max(own, key=lambda probe: own[probe]["top1"])
            words = f"{own[best]['top1']:.1f} % by the {best} probe"
            if not control:
                return "unknown", f"{words}; random weights were not scored"
            ahead = sorted(own[probe]["top1"] - control[probe]["top1"] for probe in control)
            state: State = "good" if ahead[0] > 0 else "doubtful" if ahead[-1] > 0 else "bad"
            return state, f"{words}; {ahead[0]:+.1f} to {ahead[-1]:+.1f} points beside random weights"
    return "unknown", ""


def show_probes(report: Mapping[str, Any]) -> Section:
    """Every probe of the model beside its control."""
    own, control = split_rows(report)
    head = ["probe", "top-1 %", "random weights", "difference", "top-5 %", "mean of the classes"]
    rows = [
        [
            name,
            _spread(row),
            _spread(control[name]) if name in control else "-",
            f"{row['top1'] - control[name]['top1']:+.1f}" if name in control else "-",
            _number(row["top5"]),
            _number(row["per_class"]),
        ]
        for name, row in own.items()
    ]
    first = next(iter(own.values()))
    words = (
        f"{name_model(first['model'])} at {first['img_size']} px, protocol {report['protocol']}: "
        f"{report['train']:,} images to train the probes, {report['test']:,} to test them, "
        f"{report['classes']} classes; seeds: {first['seeds']}; the last epoch counts."
    )
    if copies := report["duplicates"]:
        exact, near = len(copies["exact"]), len(copies["near"])
        words += f" Test images that training contains: {exact} exact copies, {near} nearly the same."
    values = ({name: row["top1"] for name, row in group.items()} for group in (own, control))
    chart = Chart(draw_bars(*values), "Top-1 % on the test images; grey: random weights" if control else "Top-1 %")
    return Section("Probes of frozen features", words, charts=[chart], tables=[Table(head, rows)])


def show_classes(report: Mapping[str, Any]) -> Section:
    """What the best probe gets right and wrong, class by class."""
    own, _ = split_rows(report)
    best = max(report["confusions"], key=lambda each: own[each["probe"]]["top1"])
    names, counts = report["names"], report["test_images"]
    known = {name: share for name, share in zip(names, best["of_classes"]) if share is not None}
    ordered = sorted(known, key=lambda name: known[name])
    mistakes = sorted(best["mistaken"], key=lambda pair: -pair[2])
    rows = [[names[i], names[j], images, f"{100 * images / counts[i]:.0f} %"] for i, j, images in mistakes[:WORST]]
    each = [[name, f"{known[name]:.1f}", counts[names.index(name)]] for name in ordered]
    tables = [Table(["is", "taken for", "images", "of the class"], rows)] if rows else []
    tables.append(Table(["class", "top-1 %", "test images"], each, folded=f"all {len(each)} classes, hardest first"))
    shown = [*ordered[:WORST], *ordered[WORST:][-WORST:]]
    which = "The hardest and the easiest classes" if len(shown) < len(ordered) else "Each class"
    charts = [
        Chart(draw_bars({name: known[name] for name in shown}), f"{which}, top-1 %"),
        Chart(
            draw_matrix(show_shares(best, counts), names),
            "Which class is taken for which: share of a class's test images",
        ),
    ]
    title = f"Class by class, by the {best['probe']} probe"
    wrong = sum(images for *_, images in mistakes)
    words = (
        f"{wrong:,} of {report['test']:,} test images are taken for another class; below, the most frequent mistakes."
    )
    return Section(title, words, charts=charts, tables=tables)


def show_shares(confusions: Mapping[str, Any], counts: Sequence[int]) -> list[list[float]]:
    """(classes, classes): of each class's test images, the share that is taken for each class."""
    table = [[0.0] * len(counts) for _ in counts]
    for i, share in enumerate(confusions["of_classes"]):
        table[i][i] = (share or 0) / 100
    for i, j, images in confusions["mistaken"]:
        table[i][j] = images / counts[i]
    return table


def show_few_labels(points: Sequence[Mapping[str, Any]]) -> Section:
    """Accuracy against the number of labelled images a class."""
    models = list(dict.fromkeys(point["model"] for point in points))
    names = {model: name_model(model) for model in models}
    if len({*names.values()}) < len(models):  # of two folders of one name
        names = {model: model for model in models}
    lines: dict[str, Line] = {}
    for model, probe in dict.fromkeys((point["model"], point["probe"]) for point in points):
        line = [point for point in points if (point["model"], point["probe"]) == (model, probe)]
        lines[f"{names[model]}, {probe}"] = [point["images"] for point in line], [point["top1"] for point in line]
    rows = [
        [names[point["model"]], point["probe"], f"{point['images']:.3g}", _spread(point), point["draws"]]
        for point in points
    ]
    chart = Chart(draw_curves(lines, x="labelled images a class", log=True), "Top-1 % on the test images")
    head = ["model", "probe", "images a class", "top-1 %", "draws"]
    words = "Probes on frozen features with few labelled images a class, drawn several times; the last point has all."
    return Section("How few labels will do", words, charts=[chart], tables=[Table(head, rows, folded="the figures")])


def _spread(row: Mapping[str, Any]) -> str:
    return f"{row['top1']:.1f}" + (f" ± {row['spread']:.1f}" if row["spread"] is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
