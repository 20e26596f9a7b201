"""timm's own tests, each of our models; run.py beside this fetches them and says how many there are."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timm_suite
def test_timms_own_tests():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("run.py")], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
