"""That what is measured is what is said; how fast it is belongs into benchmarks/."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scott_models.bench import contenders
from scott_models.bench.contenders import Contender, count_gflop
from scott_models.bench.measure import Result, _work, compare, measure
from scott_models.errors import UserError

SMALL = {"batch": 2, "img_size": 64}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [("scott_12_16", "inference", 11.16), ("scott_12_16", "step", 51.4), ("vit_small_patch16_224", "inference", 9.2)],
)
def test_operations_are_counted(model, task, expected):
    assert count_gflop(Contender(model, task)) == pytest.approx(expected, rel=0.002)
    assert count_gflop(Contender(model, task, "bf16", batch=7)) == count_gflop(Contender(model, task))


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_precision_that_is_emulated_has_no_peak(monkeypatch, multiplies):
    monkeypatch.setattr(contenders, "MULTIPLIES_BFLOAT16", multiplies)
    bf16, fp32 = (Contender("scott_3_16", "inference", precision) for precision in ("bf16", "fp32"))
    assert (Result(bf16, [1.0], None, 2.0, [1e10]).share is None) == (not multiplies)
    assert Result(fp32, [1.0], None, 2.0, [1e10]).share == pytest.approx(0.2)
    assert (bf16.matrix_product.batch == fp32.matrix_product.batch) == multiplies  # or it takes minutes


def test_inputs_have_no_operations_worth_counting():
    assert count_gflop(Contender("scott_3_16", "inputs")) is None


def result(rounds, peaks, gflop=2.0):
    return Result(Contender("scott_3_16", "inference"), rounds, None, gflop, peaks)


def test_shares_and_ratios_are_medians_of_rounds():
    """A slow round slows all, and changes no ratio."""
    slow, fast = result([10, 5, 10], [1e11, 5e10, 1e11]), result([30, 15, 20], [1e11, 5e10, 1e11])
    assert fast.times(slow) == 3
    assert slow.share == pytest.approx(0.2)
    assert slow.speed == 10
    assert slow.row()["% of peak"] == 20
    assert slow.row()["peak MiB"] is None


@pytest.mark.slow
def test_tasks_run_and_remember_their_memory():
    contenders = [
        Contender("scott_3_16", "inference", "bf16", **SMALL),
        Contender("resnet10t", "inference", **SMALL),
        Contender("scott_3_16", "step", "bf16", **SMALL),
        Contender("scott_3_16", "inputs", **SMALL),
    ]
    results = measure(contenders, rounds=2, threads=1)
    assert [r.contender for r in results] == contenders
    for found in results:
        assert len(found.rounds) == len(found.peaks) == 2
        assert found.speed > 0
        assert found.peak_mib is None or 100 < found.peak_mib < 20_000
    inference, fp32, step, inputs = results
    assert 0 < fp32.share < 5
    assert (inference.share is None) == inference.contender.is_emulated
    assert inference.speed > step.speed
    assert inputs.share is None


class Line:
    """Play the connection of a measuring process: hold what it hears, and keep what it says."""

    def __init__(self, *heard):
        self.heard, self.said = list(heard), []
        self.recv, self.send = (lambda: self.heard.pop(0)), self.said.append


def test_a_measuring_process_says_speeds_when_told(monkeypatch):
    monkeypatch.setattr("scott_models.bench.measure.leave_to_parent", lambda: None)  # the tests' own Ctrl-C
    line = Line("go", "go", "stop")
    _work(Contender("scott_3_16", "inference", batch=1, img_size=32), None, line)
    ready, first, second, memory = line.said
    assert ready is None
    assert min(first, second) > 0
    assert memory is None or memory > 0
    line = Line()
    _work(Contender("original scott_3_16", "inference", reference="nowhere"), None, line)
    (refused,) = line.said
    assert "expected a checkout of the original" in refused


@pytest.mark.slow
def test_a_contender_that_cannot_be_built_is_said(tmp_path):
    with pytest.raises(UserError, match=r"original scott_3_16, inference: .*checkout.*found none"):
        measure([Contender("original scott_3_16", "inference", reference=str(tmp_path), **SMALL)], 1)


def test_only_our_models_take_a_step():
    with pytest.raises(UserError, match=r"step: .*our models, scott_3_16.* found resnet10t"):
        compare(["resnet10t"], ["step"], ["fp32"], [1], 64, False, "cpu", None, 1)


@pytest.mark.slow
def test_the_gpus_script_runs_whole_at_toy_scale(photos, tmp_path):
    out = tmp_path / "gpu.json"
    arguments = ["--data", photos, "--models", "scott_3_16", "--batch", 4, "--img-size", 64, "--updates", 2]
    command = [sys.executable, BENCHMARKS / "gpu.py", *arguments, "--rounds", 1, "--uncompiled", "--out", out]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == ["end to end", "profile", "inputs", "max blur", "step", "inference"]
    assert "| model | batch | pixels | images/s |" in ran.stdout
    assert parts["end to end"]["end to end"][0]["images/s"] > 0


@pytest.mark.slow
def test_the_hosts_script_runs_at_toy_scale(tmp_path):
    out = tmp_path / "host.json"
    arguments = ["--model", "scott_3_16", "--batch", 4, "--workers", 1, "--rounds", 2, "--pause", 1, "--out", out]
    command = [sys.executable, BENCHMARKS / "host.py", *arguments]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [row["ms a batch"] > 0 for row in json.loads(out.read_text())["parts"]["host"]["host"]] == [True] * 7
    assert "| drawing masks |" in ran.stdout


@pytest.mark.slow
def test_the_heads_script_runs_at_toy_scale():
    command = [sys.executable, str(BENCHMARKS / "heads.py"), "--patches", "4", "--images", "64"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\| 4 \| [\d,]+ \| [\d,]+ \|", ran.stdout)


def test_the_page_is_what_the_results_say(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import page

    monkeypatch.setattr(page, "PAGE", tmp_path / "BENCHMARKS.md")
    page.write()
    assert (tmp_path / "BENCHMARKS.md").read_text() == (BENCHMARKS.parent / "docs" / "BENCHMARKS.md").read_text()
