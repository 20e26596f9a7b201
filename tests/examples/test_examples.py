"""The examples run as they are written, on the pictures beside them and on folders of other images."""

import base64
import copy
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.docs

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_embed(photos):
    assert "12 images, 384 features each" in run("01_embed.py")
    assert "12 images, 384 features each" in run("01_embed.py", photos)


def test_finetune(photos):
    found = re.findall(r": ([\d.]+) % of (\d+) test images", run("02_finetune.py"))
    assert [count for _, count in found] == ["4", "4"]
    assert [float(top1) for top1, _ in found] == [100, 100]  # of four flowers; by chance 25
    assert "everything: 100.0 % of 12 test images" in run("02_finetune.py", photos, photos)


@pytest.mark.needs("nbclient", "nbformat", "ipykernel")
@pytest.mark.parametrize("folder", [EXAMPLES, EXAMPLES.parent], ids=["beside it", "checkout"])
def test_quickstart(folder, tmp_path, monkeypatch):
    """Afresh it prints what is stored; where it should not: jupyter execute --inplace examples/quickstart.ipynb."""
    import nbclient
    import nbformat

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # no history in the home folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = EXAMPLES / "quickstart.ipynb"
    assert path.stat().st_size < 300_000
    stored = nbformat.read(path, as_version=4)
    fresh = nbclient.execute(copy.deepcopy(stored), cwd=str(folder), timeout=300)
    assert printed(fresh) == printed(stored)
    pictures = [out.data["image/webp"] for cell in fresh.cells for out in cell.get("outputs", []) if "data" in out]
    assert [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures] == [(926, 998)]


def printed(notebook):
    """Of each cell that computes; stderr is left out, on which packages remark upon their surroundings."""
    code = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(out.text for out in outputs if out.get("name") == "stdout") for outputs in code]
