"""Tiny models and images made on the spot; real images only where SCOTT_DATA says they are."""

import json
import os
import shutil
import tarfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as processors; their children inherit it
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scott_models import SCOTT
from scott_models.models import scott
from scott_models.pretrain import Recipe, pretrain

from .groups import (  # noqa: F401 -- hooks, which pytest looks for here
    pytest_addoption,
    pytest_cmdline_main,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Decoded images go to a folder of the test's own."""
    monkeypatch.setenv("SCOTT_MODELS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tiny():
    """A SCOTT of two narrow blocks for 64 px (4 x 4 patches), with a mask token."""
    return SCOTT(img_size=64, embed_dim=32, depth=2, num_heads=2, use_mask_token=True).eval()


@pytest.fixture
def toy():
    """Our models as one block of width 32, whatever their names say; `toy.undo()` ends that."""
    create = scott._create_scott

    def create_narrow(variant, pretrained, **kwargs):
        return create(variant, pretrained, **{**kwargs, "depth": 1, "embed_dim": 32, "num_heads": 2})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scott, "_create_scott", create_narrow)
        yield patched


@pytest.fixture
def visible():
    """Two masks of 4 x 4 patches that differ, 7 visible each."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 16, generator=generator).argsort(dim=1) < 7


@pytest.fixture(scope="session")
def recording():
    """The original implementation's recording: tensors by name, and its settings."""
    return load_file(REFERENCE / "parity.safetensors"), json.loads((REFERENCE / "parity.json").read_text())


@pytest.fixture
def photos(tmp_path):
    """Two classes of six small pictures, one dark red and one bright blue, in a folder each."""
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
    """A run of pretraining on such photos that has ended, which all tests share: to be read, never changed."""
    folder = tmp_path_factory.mktemp("ended")
    changes = ["model.img_size=32", "optim.batch_size=4", "run.seed=3", "run.precision=no"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SCOTT_MODELS_CACHE", str(folder / "cache"))
        pretrain(Recipe.load("smoke", changes), [draw_photos(folder / "photos")], folder / "run")
    return folder / "run"


@pytest.fixture
def run(ended, tmp_path):
    """A copy of that run."""
    return shutil.copytree(ended, tmp_path / "run")


@pytest.fixture
def bad_files(tmp_path):
    """Four files in tmp_path that cannot be used, by name, with what is said of each; whole.png beside them can."""
    folder, gradient = tmp_path, np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    Image.fromarray(gradient[:10]).save(folder / "tiny.png")
    return {
        "cut.png": "expected a whole image, found a damaged one",
        "empty.jpg": "expected an image, found a file that is none",
        "text.jpg": "expected an image, found a file that is none",
        "tiny.png": "expected at least 16 pixels on each side, found 30 x 10",
    }


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """The real Oxford Flowers-102, unpacked: a folder with train, val and test."""
    if not (data := os.environ.get("SCOTT_DATA")):
        pytest.skip("needs real images: set SCOTT_DATA to a folder with flowers102/flowers102-320-*.tar")
    folder = tmp_path_factory.mktemp("flowers")
    for shard in sorted(Path(data).glob("flowers102/flowers102-320-*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder, filter="data")
    return folder / "flowers102"
