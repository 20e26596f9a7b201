import json
import subprocess
import sys
from pathlib import Path

import pytest

from scott_models import timm_script

SCRIPT = """
import json, sys, timm
import beside
print(json.dumps([sys.argv, __name__, beside.VALUE, timm.create_model("scott_3_16", num_classes=2).num_classes]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 7")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_a_script_has_the_words_behind_its_name(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", str(script), "photos", "--model", "x"])
    monkeypatch.setattr(sys, "path", ["elsewhere", *sys.path])
    timm_script.main()
    assert json.loads(capsys.readouterr().out) == [[str(script), "photos", "--model", "x"], "__main__", 7, 2]
    assert sys.path[0] == str(script.parent)


@pytest.mark.slow
def test_a_script_knows_our_models(script):
    """Check also that the script can import the files next to it, as if Python had run it."""
    command = [sys.executable, "-m", "scott_models.run", str(script), "photos", "--model", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == [[str(script), "photos", "--model", "x"], "__main__", 7, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_help_that_cannot_be_kept(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="2"):
            timm_script.main()
        monkeypatch.undo()
    assert "standard output: No space left" in capsys.readouterr().err


def test_without_a_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run"])
    timm_script.main()
    assert "python -m scott_models.timm_script train.py" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path / "train.py")])
    with pytest.raises(SystemExit) as left:
        timm_script.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.endswith(
        "train.py: expected a Python script, e.g. timm's train.py, found nothing there\n"
    )
