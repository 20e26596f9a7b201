"""Draw curves, bars and confusion matrices as SVG, in the text colour of the page, for light and dark pages."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from ..errors import needs_extra

INK = "#010203"  # replaced in the SVG by the text colour of the page
COLOURS = ("#2f81c7", "#e0782f", "#2f9e6e", "#b05bbd")  # visible on white and on black
CONTROL = "#8b8f98"
POINTS = 600  # about as many points of a line as a reader can see

Line = tuple[Sequence[float], Sequence[float]]  # x and y


def draw_curves(
    lines: Mapping[str, Line], *, x: str, levels: Mapping[str, float] | None = None, log: bool = False
) -> str:
    """Draw lines, given by name, and return the SVG element.

    Args:
        x: label of the horizontal axis.
        levels: heights of dashed horizontal lines to compare with, by name.
        log: make the horizontal axis logarithmic.
    """
    figure, axes = _figure(5.2, 2.9)
    for (name, line), colour in zip(lines.items(), cycle(COLOURS)):
        at, values = thin_out(line)
        shown = CONTROL if "random weights" in name else colour
        axes.plot(at, values, color=shown, label=_plain(name), marker="." if len(at) < 40 else None)
    for name, level in (levels or {}).items():
        axes.axhline(level, color=CONTROL, linestyle="--", linewidth=1, label=_plain(name))
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x)
    if len(lines) + len(levels or {}) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def thin_out(line: Line) -> Line:
    """Thin out a line that has more than `POINTS` points.

    The first and the last point are kept, and the lowest and the highest point of each stretch between them.
    """
    at, values = line
    if len(at) <= POINTS:
        return line
    stretches = (range(i, min(i + 2 * len(at) // POINTS, len(at))) for i in range(0, len(at), 2 * len(at) // POINTS))
    ends = {end(stretch, key=lambda i: values[i]) for stretch in stretches for end in (min, max)}
    kept = sorted(ends | {0, len(at) - 1})
    return [at[i] for i in kept], [values[i] for i in kept]


def draw_bars(values: Mapping[str, float], beside: Mapping[str, float] | None = None) -> str:
    """Draw a bar for each name, 0 to 100 %, and below it a grey one from `beside`; return the SVG element."""
    figure, axes = _figure(5.2, 0.5 + 0.24 * len(values))
    names = list(values)
    places = range(len(names))
    height = 0.36 if beside else 0.72
    axes.barh([-i for i in places], list(values.values()), height, align="edge", color=COLOURS[0])
    if beside:
        axes.barh([-i for i in places], [beside.get(name, 0) for name in names], -height, align="edge", color=CONTROL)
    axes.set_yticks([-i + (0 if beside else height / 2) for i in places], map(_plain, names))
    axes.set_ylim(-len(names) + 0.4, 1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.grid(axis="y", visible=False)
    return _svg(figure)


def draw_matrix(shares: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """Draw a confusion matrix of shares, 0 to 1, and return the SVG element; up to 15 classes get names and numbers."""
    few = len(names) <= 15
    figure, axes = _figure(5.2, 4.6)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if few:
        places = range(len(names))
        axes.set_xticks(places, map(_plain, names), rotation=40, ha="right")
        axes.set_yticks(places, map(_plain, names))
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if share:
                    dark = share < 0.6
                    axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color="w" if dark else "k")
    figure.colorbar(picture, shrink=0.8)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Create a figure, width and height in inches, and its axes."""
    with needs_extra("eval"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25, color=INK)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _plain(name: str) -> str:
    """Escape a name: matplotlib would read a formula in it, and refuses the bytes of one that is not UTF-8."""
    return name.encode(errors="backslashreplace").decode().replace("$", r"\$")


def _svg(figure: Any) -> str:
    """Return the SVG element of a figure, scaled by the page, in the font and text colour of the page."""
    from matplotlib import rc_context

    for axes in figure.axes[1:]:  # the colour bar
        axes.tick_params(colors=INK)
    if legend := figure.axes[0].get_legend():
        for text in legend.get_texts():
            text.set_color(INK)
    buffer = io.StringIO()
    # text stays text, and the same figure gives the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "scott_models"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts draw the text, not matplotlib's
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg class="chart" viewBox="\1">', svg, count=1, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return svg.replace("'DejaVu Sans'", "system-ui").replace(INK, "currentColor")
