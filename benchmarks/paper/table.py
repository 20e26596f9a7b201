"""Fill docs/RESULTS.md with the paper's figures beside ours.

python benchmarks/paper/table.py RESULTS

A TOML file beside this script describes a row of the paper's tables: the paper's figures, the cost of a run, and the
commands, which write RESULTS/<name>.json. A row without this file is shown as not run. The result of a smaller run than
the paper's belongs in a row of its own, with a `scale` that names the difference. A figure that the paper lacks, or
that is not known, is nan.
"""

import argparse
import json
import tomllib
from math import isnan
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent
PAGE = ROWS.parents[1] / "docs" / "RESULTS.md"
BEGIN, END = "<!-- made by benchmarks/paper/table.py -->\n", "<!-- end -->\n"
NOT_RUN = "not run yet"
OTHERS = ("(random weights)", "(context encoder)")


def rows() -> dict[str, dict[str, Any]]:
    """Read all TOML files, by name."""
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(ROWS.glob("*.toml"))}


def measured(file: Path) -> dict[str, float]:
    """Read top-1 % by probe from a file of `scott probe --json`, `scott finetune` or reproduce.py.

    If a probe has several scores, the last score counts. With both protocols that is the score by the paper's protocol.
    """
    result = json.loads(file.read_text(encoding="utf-8"))
    if "scores" not in result:
        return {"top1": result["top1"]}
    trained = [score for score in result["scores"] if not score["model"].endswith(OTHERS)]
    return {score["probe"]: score["top1"] for score in trained}


def table(results: Path) -> str:
    """Make a table for each kind of pretraining, because inductive and transductive figures cannot be compared."""
    sections: dict[str, list[str]] = {}
    for name, row in rows().items():
        file = results / f"{name}.json"
        ours = measured(file) if file.is_file() else {}
        for probe, paper in row["paper"].items():
            found = ours.get(probe)
            cells = [
                row["row"],
                row.get("table", ""),
                "top-1" if probe == "top1" else probe,
                row.get("scale", "the paper's"),
                "-" if isnan(paper) else f"{paper:.2f}",
                NOT_RUN if found is None else f"{found:.2f}",
                "" if found is None or isnan(paper) else f"{found - paper:+.2f}",
                f"[{name}](../benchmarks/paper/{name}.toml)",
            ]
            sections.setdefault(row["pretraining"], []).append(f"| {' | '.join(cells)} |")
    head = "| row | table | probe | scale | paper | ours | difference | recipe |\n|---|---|---|---|---|---|---|---|\n"
    blocks = (f"### Pretraining {kind}\n\n{head}" + "\n".join(lines) for kind, lines in sections.items())
    return "\n\n".join(blocks) + "\n"


def fill(results: Path, page: Path = PAGE) -> None:
    """Write the tables between the page's two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of <row>.json files")
    fill(parser.parse_args().results)
