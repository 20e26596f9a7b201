import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, timm
import beside
print(json.dumps([sys.argv, __name__, beside.VALUE, timm.create_model("scott_3_16", num_classes=2).num_classes]))
"""


def run(*arguments):
    command = [sys.executable, "-m", "scott_models.run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_script_knows_our_models(tmp_path):
    """And finds what lies beside it, as if Python had run it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("VALUE = 7")
    done = run(script, "photos", "--model", "x")
    assert json.loads(done.stdout) == [[str(script), "photos", "--model", "x"], "__main__", 7, 2]


@pytest.mark.slow
def test_without_a_script(tmp_path):
    assert "python -m scott_models.run train.py" in run().stdout
    done = run(tmp_path / "train.py")
    assert done.returncode == 2
    assert done.stderr.endswith("train.py: expected a Python script, e.g. timm's train.py, found nothing there\n")
