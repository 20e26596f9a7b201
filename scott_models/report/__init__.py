"""Write a self-contained HTML page about a run or its probes; the page begins with the verdict.

`run_page` and `scores` make the content, `page` and page.html define the layout, `charts` draws.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .page import Page
from .run_page import is_run, make_page
from .scores import judge_scores, make_sections, make_title, read_result


def write_report(sources: Sequence[str | Path], out: str | Path | None = None, *, neighbours: bool = True) -> Path:
    """Write the page of a run, of results that `scott probe --json` printed, or of a run and its results.

    Args:
        sources: a run's folder, and files with scores or curves; at least one of them.
        out: the page; by default report.html in the run's folder, or next to the first file.
        neighbours: also show nearest neighbours among the images that the run's model was trained on.

    Returns:
        The path of the page.

    Raises:
        DataError: no source, a source that is damaged or of another kind, more than one run, or an `out` that is not an
            .html file in an existing folder.
        WeightsError: `neighbours` is set and the run's weights are damaged.
    """
    paths = [Path(source) for source in sources]
    if not paths:
        raise DataError("expected a run's folder, or a file that `scott probe --json` printed, got nothing")
    runs = [path for path in paths if path.is_dir()]
    if len(runs) > 1 or not all(map(is_run, runs)):
        expected = "one folder of a run, with its recipe.toml and metrics.jsonl"
        raise DataError(f"{', '.join(map(str, runs))}: expected at most {expected}")
    out = Path(out) if out else (runs[0] if runs else paths[0].parent) / "report.html"
    if out.suffix != ".html" or not out.parent.is_dir():
        raise DataError(f"{out}: expected the name of an .html file in a folder that exists")
    results = [read_result(path) for path in paths if path not in runs]
    page = make_page(runs[0], neighbours=neighbours) if runs else Page(make_title(results), *judge_scores(results))
    page.sections[:0] = [section for result in results for section in make_sections(result)]
    page.write(out)
    return out
