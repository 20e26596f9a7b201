"""Make sections from the output of `scott probe --json`: scores, accuracy of each class, mistakes, few labels."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .charts import Line, draw_bars, draw_curves, draw_matrix
from .page import Chart, Section, State, Table

CONTROL = " (random weights)"  # the end of a control's model name
WORST = 10  # hardest classes, easiest classes and mistakes to list, each
Result = dict[str, Any] | list[dict[str, Any]]  # scores, or the points of a curve


def read_result(path: Path) -> Result:
    """Read a file with scores or with the points of a curve.

    Raises:
        DataError: the file cannot be read or holds something else.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        fields = {"top1", "images", "probe"} if isinstance(result, list) else {"scores", "names", "confusions"}
        entry = result[0] if isinstance(result, list) else result
        if fields <= entry.keys():
            return result
        found = f"a file without {sorted(fields - entry.keys())}"
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        found = f"another kind of file ({error})"
    raise DataError(f"{path}: expected scores or a curve that `scott probe --json` printed, found {found}")


def make_title(results: Sequence[Result]) -> str:
    """Make the title of a page without a run."""
    first = results[0][0] if isinstance(results[0], list) else results[0]["scores"][0]
    return f"Frozen features of {name_model(first['model'])}"


def name_model(model: str) -> str:
    """Return the name of a model; for a folder its own name, since the path to it is private.

    "local-dir:/disk/runs/a/export" -> "a".
    """
    suffix = CONTROL if model.endswith(CONTROL) else ""
    path = Path(model.removesuffix(CONTROL).removeprefix("local-dir:"))
    return (path.parent if path.name == "export" else path).name + suffix


def make_sections(result: Result) -> list[Section]:
    return [show_few_labels(result)] if isinstance(result, list) else [show_probes(result), show_classes(result)]


def split_rows(report: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the scores of the model and those of its control, each by probe."""
    own: dict[str, dict[str, Any]] = {}
    control: dict[str, dict[str, Any]] = {}
    for row in report["scores"]:
        (control if row["model"].endswith(CONTROL) else own)[row["probe"]] = row
    return own, control


def judge_scores(results: Sequence[Result]) -> tuple[State, str]:
    """Judge how far the probes are ahead of random weights, for a page without a run."""
    for result in results:
        if isinstance(result, dict):
            own, control = split_rows(result)
            best = max(own, key=lambda probe: own[probe]["top1"])
            words = f"{own[best]['top1']:.1f} % by the {best} probe"
            if not control:
                return "unknown", f"{words}; random weights were not scored"
            ahead = sorted(own[probe]["top1"] - control[probe]["top1"] for probe in control)
            state: State = "good" if ahead[0] > 0 else "doubtful" if ahead[-1] > 0 else "bad"
            return state, f"{words}; {ahead[0]:+.1f} to {ahead[-1]:+.1f} points compared with random weights"
    return "unknown", ""


def show_probes(report: Mapping[str, Any]) -> Section:
    """Show each probe of the model next to its control."""
    own, control = split_rows(report)
    head = ["probe", "top-1 %", "random weights", "difference", "top-5 %", "mean over classes"]
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
        f"{report['classes']} classes; seeds: {first['seeds']}; scores of the last epoch."
    )
    if copies := report["duplicates"]:
        exact, near = len(copies["exact"]), len(copies["near"])
        words += f" Test images that are among the training images: {exact} exact copies, {near} near copies."
    values = ({name: row["top1"] for name, row in group.items()} for group in (own, control))
    chart = Chart(draw_bars(*values), "Top-1 % on the test images; grey: random weights" if control else "Top-1 %")
    return Section("Probes of frozen features", words, charts=[chart], tables=[Table(head, rows)])


def show_classes(report: Mapping[str, Any]) -> Section:
    """Show what the best probe gets right and wrong, class by class."""
    own, _ = split_rows(report)
    best = max(report["confusions"], key=lambda each: own[each["probe"]]["top1"])
    names, counts = report["names"], report["test_images"]
    known = {name: share for name, share in zip(names, best["of_classes"]) if share is not None}
    ordered = sorted(known, key=lambda name: known[name])
    mistakes = sorted(best["mistaken"], key=lambda pair: -pair[2])
    rows = [[names[i], names[j], images, f"{100 * images / counts[i]:.0f} %"] for i, j, images in mistakes[:WORST]]
    each = [[name, f"{known[name]:.1f}", counts[names.index(name)]] for name in ordered]
    tables = [Table(["true class", "predicted class", "images", "share of the class"], rows)] if rows else []
    tables.append(Table(["class", "top-1 %", "test images"], each, folded=f"all {len(each)} classes, hardest first"))
    shown = [*ordered[:WORST], *ordered[WORST:][-WORST:]]
    which = "The hardest and the easiest classes" if len(shown) < len(ordered) else "Each class"
    charts = [
        Chart(draw_bars({name: known[name] for name in shown}), f"{which}, top-1 %"),
        Chart(
            draw_matrix(show_shares(best, counts), names),
            "Confusion matrix: of the test images of a true class, the share of each predicted class",
        ),
    ]
    title = f"Class by class, by the {best['probe']} probe"
    wrong = sum(images for *_, images in mistakes)
    words = f"{wrong:,} of {report['test']:,} test images are classified wrongly; below, the most frequent mistakes."
    return Section(title, words, charts=charts, tables=tables)


def show_shares(confusions: Mapping[str, Any], counts: Sequence[int]) -> list[list[float]]:
    """Compute a confusion matrix (true class, predicted class): shares, 0 to 1, of the test images of a true class."""
    table = [[0.0] * len(counts) for _ in counts]
    for i, share in enumerate(confusions["of_classes"]):
        table[i][i] = (share or 0) / 100
    for i, j, images in confusions["mistaken"]:
        table[i][j] = images / counts[i]
    return table


def show_few_labels(points: Sequence[Mapping[str, Any]]) -> Section:
    """Show accuracy against the number of labelled images per class."""
    models = list(dict.fromkeys(point["model"] for point in points))
    names = {model: name_model(model) for model in models}
    if len({*names.values()}) < len(models):  # two folders have the same name
        names = {model: model for model in models}
    lines: dict[str, Line] = {}
    for model, probe in dict.fromkeys((point["model"], point["probe"]) for point in points):
        line = [point for point in points if (point["model"], point["probe"]) == (model, probe)]
        lines[f"{names[model]}, {probe}"] = [point["images"] for point in line], [point["top1"] for point in line]
    rows = [
        [names[point["model"]], point["probe"], f"{point['images']:.3g}", _spread(point), point["draws"]]
        for point in points
    ]
    chart = Chart(draw_curves(lines, x="labelled images per class", log=True), "Top-1 % on the test images")
    head = ["model", "probe", "images per class", "top-1 %", "draws"]
    words = (
        "Probes of frozen features, trained on few labelled images per class, which are sampled several times; "
        "the last point uses all images."
    )
    return Section("How few labels will do", words, charts=[chart], tables=[Table(head, rows, folded="the figures")])


def _spread(row: Mapping[str, Any]) -> str:
    return f"{row['top1']:.1f}" + (f" ± {row['spread']:.1f}" if row["spread"] is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
