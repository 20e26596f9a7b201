"""The examples run as they are written, on the pictures beside them and on folders of other images."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


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
