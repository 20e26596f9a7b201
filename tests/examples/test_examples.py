"""The examples run as they are written, on the pictures beside them and on folders of other images."""

import base64
import copy
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.docs

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments, status=0):
    """Run an example; return what it prints, or what it says where it ends with another status than 0."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if status else done.stdout


def test_embed(photos):
    assert "12 images, 384 features each" in run("01_embed.py")
    assert "12 images, 384 features each" in run("01_embed.py", photos)


def test_finetune(photos):
    found = re.findall(r": ([\d.]+) % of (\d+) test images", run("02_finetune.py"))
    assert [count for _, count in found] == ["4", "4"]
    assert [float(top1) for top1, _ in found] == [100, 100]  # of four flowers; by chance 25
    assert "everything: 100.0 % of 12 test images" in run("02_finetune.py", photos, photos)


def test_folders_that_cannot_be_used(photos, tmp_path):
    """Expect a sentence that names the fault."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(photos / "red", tmp_path / "one" / "red")
    shutil.copytree(photos / "red", tmp_path / "other" / "green")
    (tmp_path / "damaged").mkdir()
    for name in ("a", "b"):
        (tmp_path / "damaged" / f"{name}.jpg").write_bytes(b"no image")
    faults = {"empty": "found none", "none": "nothing there", "damaged": "a.jpg: expected an image"}
    for folder, said in faults.items():
        assert said in run("01_embed.py", tmp_path / folder, status=2)
    assert "at least two images" in run("01_embed.py", photos / "red" / "0.png", status=2)
    pairs = {("one", "other"): "'green'", ("one", "one"): "at least two, found", ("photos", "empty"): "empty"}
    for (train, test), said in pairs.items():
        assert said in run("02_finetune.py", tmp_path / train, tmp_path / test, status=2)


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
    """Return the standard output of each code cell, without standard error, to which packages write remarks."""
    code = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(out.text for out in outputs if out.get("name") == "stdout") for outputs in code]
