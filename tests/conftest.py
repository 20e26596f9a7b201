"""Fixtures: tiny models and generated images; real images only if SCOTT_DATA names a folder of them."""

import json
import os
import shutil
import tarfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per processor; child processes inherit it
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scott_models import SCOTT
from scott_models.models import scott
from scott_models.pretrain import Recipe, pretrain

from .groups import (  # noqa: F401 -- pytest looks for hooks here
    pytest_addoption,
    pytest_cmdline_main,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from .lost_streams import lost  # noqa: F401 -- a fixture

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Give each test its own cache folder for decoded images."""
    monkeypatch.setenv("SCOTT_MODELS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tiny():
    """Build a SCOTT of two narrow blocks for 64 px (4 x 4 patches), with a mask token."""
    return SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2, use_mask_token=True).eval()


@pytest.fixture
def toy():
    """Build every SCOTT model with one block of width 32, whatever its name says, until `toy.undo()`."""
    create = scott._create_scott

    def create_narrow(variant, pretrained, **kwargs):
        return create(variant, pretrained, **{**kwargs, "depth": 1, "embed_dim": 32, "num_heads": 2})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scott, "_create_scott", create_narrow)
        yield patched


@pytest.fixture
def visible():
    """Draw two different masks of 4 x 4 patches, with 7 visible patches each: bool (2, 16)."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 16, generator=generator).argsort(dim=1) < 7


@pytest.fixture(scope="session")
def recording():
    """Load the recording of the original implementation: its tensors by name, and its settings."""
    return load_file(REFERENCE / "parity.safetensors"), json.loads((REFERENCE / "parity.json").read_text())


@pytest.fixture
def photos(tmp_path):
    """Draw two classes of six small pictures, dark red and bright blue, one folder per class."""
    return draw_photos(tmp_path / "photos")


def draw_photos(photos):
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (40, 60, 220)), ("red", (120, 20, 20))):
        (photos / name).mkdir(parents=True)
        for i in range(6):
            noise = rng.integers(-20, 20, (72, 80 + i, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(photos / name / f"{i}.png")
    return photos


@pytest.fixture(scope="session")
def ended(tmp_path_factory):
    """Pretrain a run on such photos to its end. All tests share the run: read it, never change it."""
    folder = tmp_path_factory.mktemp("ended")
    changes = ["model.img_size=32", "optim.batch_size=4", "run.seed=3", "run.precision=no"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SCOTT_MODELS_CACHE", str(folder / "cache"))
        pretrain(Recipe.load("smoke", changes), [draw_photos(folder / "photos")], folder / "run")
    return folder / "run"


@pytest.fixture
def run(ended, tmp_path):
    """Copy the ended run, for tests that change it."""
    return shutil.copytree(ended, tmp_path / "run")


@pytest.fixture
def bad_files(tmp_path):
    """Write four unusable files and a usable whole.png to tmp_path; return the error message of each unusable one."""
    folder, gradient = tmp_path, np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    Image.fromarray(gradient[:10]).save(folder / "tiny.png")
    return {
        "cut.png": "expected a whole image, found a damaged one",
        "empty.jpg": "expected an image, found another kind of file",
        "text.jpg": "expected an image, found another kind of file",
        "tiny.png": "expected at least 16 pixels on each side, found 30 x 10",
    }


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """Unpack the real Oxford Flowers-102 into a folder with train, val and test."""
    if not (data := os.environ.get("SCOTT_DATA")):
        pytest.skip("needs real images: set SCOTT_DATA to a folder with flowers102/flowers102-320-*.tar")
    folder = tmp_path_factory.mktemp("flowers")
    for shard in sorted(Path(data).glob("flowers102/flowers102-320-*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder, filter="data")
    return folder / "flowers102"
