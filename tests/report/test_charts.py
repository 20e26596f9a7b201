import re
import warnings

from scott_models.report.charts import CONTROL, POINTS, draw_bars, draw_curves, draw_matrix, thin_out


def test_a_chart_is_one_element_in_the_page_s_ink():
    svg = draw_curves({"loss": ([0, 1, 2], [3.0, 2.0, 1.0])}, x="epoch", levels={"random weights": 2.5})
    assert svg.startswith('<svg class="chart" viewBox="')
    assert svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg
    assert "<text" in svg  # text, not shapes
    assert "epoch" in svg
    assert "random weights" in svg
    assert "http://www.w3.org/1999/xlink" not in svg or 'href="http' not in svg
    assert svg == draw_curves({"loss": ([0, 1, 2], [3.0, 2.0, 1.0])}, x="epoch", levels={"random weights": 2.5})


def test_class_names_of_any_characters():
    svg = draw_bars({"caf\udce9": 50.0, "$a$": 40.0})
    assert r"caf\udce9" in svg
    assert "$a$" in svg


def test_long_lines_are_thinned():
    many = list(range(100_000))
    svg = draw_curves({"loss": (many, [float(i) for i in many])}, x="update")
    assert len(re.findall(r"\bL ", svg)) < 2 * POINTS


def test_thinned_lines_keep_their_spikes_and_their_ends():
    at, values = list(range(10_000)), [0.0] * 10_000
    values[1234], values[5678], values[-1] = 9.0, -9.0, 1.0
    kept = thin_out((at, values))
    assert len(kept[0]) < 1.1 * POINTS
    assert {(0, 0.0), (1234, 9.0), (5678, -9.0), (9999, 1.0)} <= set(zip(*kept))
    assert list(kept[0]) == sorted(kept[0])


def test_every_line_is_drawn_and_controls_are_grey():
    lines = {f"line {i}": ([0, 1], [0.0, i]) for i in range(6)} | {"m (random weights), knn": ([0, 1], [1.0, 2.0])}
    svg = draw_curves(lines, x="images")
    assert all(name in svg for name in lines)
    assert CONTROL in svg


def test_names_are_no_formulas():
    names = {"a $\\frac{$ b": 1.0, "$x$": 2.0, "鸟": 3.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw_bars(names)
    assert all(name.replace("\\", "") in svg.replace("\\", "") for name in names)


def test_bars_have_the_names_and_their_control():
    svg = draw_bars({"knn": 50.0, "ridge": 60.0}, {"knn": 20.0})
    assert "knn" in svg
    assert "ridge" in svg


def test_few_classes_have_figures_many_only_colours():
    few = draw_matrix([[0.75, 0.25], [0, 1]], ["a", "b"])
    assert ">75</text>" in few
    assert ">25</text>" in few
    many = draw_matrix([[float(i == j) for j in range(40)] for i in range(40)], [f"class {i}" for i in range(40)])
    assert "class 39" not in many
