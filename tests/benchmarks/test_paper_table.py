"""benchmarks/paper: the rows can be run as they are written, and results land in the page."""

import json
import runpy
import shlex
from pathlib import Path

import pytest

from scott_models.finetune.recipe import FinetuneRecipe
from scott_models.pretrain import Recipe

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
table = runpy.run_path(str(PAPER / "table.py"))


@pytest.mark.parametrize(("name", "row"), table["rows"]().items())
def test_commands_name_recipes_that_load(name, row):
    for command in row["commands"]:
        words = shlex.split(command)
        if words[1] in ("pretrain", "finetune"):
            changes = [word for word in words if "=" in word]
            kind = Recipe if words[1] == "pretrain" else FinetuneRecipe
            kind.load(words[words.index("--recipe") + 1], changes)
            assert words[words.index("--out") + 1] == f"runs/{name}"
    assert command.endswith(f"RESULTS/{name}.json")
    assert row["paper"]
    assert row["cost"]


def test_results_stand_beside_the_paper(tmp_path):
    scores = [{"model": "m", "probe": "attentive", "top1": 96.15}]
    scores.append({"model": "m (random weights)", "probe": "attentive", "top1": 30.0})
    (tmp_path / "scott_12_16.json").write_text(json.dumps({"scores": scores}))
    (tmp_path / "supervised_scott_12_16.json").write_text(json.dumps({"top1": 80.1}))
    (tmp_path / "supervised_scott_3_16_cpu.json").write_text(json.dumps({"top1": 50.2}))
    page = tmp_path / "RESULTS.md"
    page.write_text(f"before\n{table['BEGIN']}old\n{table['END']}after\n")
    table["fill"](tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| attentive | the paper's | 97.15 | 96.15 | -1.00 |" in text
    assert "| linear | the paper's | 94.81 | not run yet |" in text
    assert "| top-1 | the paper's | 79.10 | 80.10 | +1.00 |" in text
    assert "| - | 50.20 |  | [supervised_scott_3_16_cpu]" in text
    of = {row: part.split(":")[0] for part in text.split("### ") for row in (" 97.15 ", " 79.10 ") if row in part}
    assert of == {" 97.15 ": "Pretraining transductive", " 79.10 ": "Pretraining none"}


def test_the_page_is_what_the_results_make_it():
    page = PAPER.parents[1] / "docs" / "RESULTS.md"
    made = page.read_text().split(table["BEGIN"])[1].split(table["END"])[0]
    assert made.strip() == table["table"](PAPER / "results").strip()
