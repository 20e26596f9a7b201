"""Test that sdist and wheel contain all data files, and that the installed wheel loads its weights offline."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
TAG = "scott_3_16.mimjepa_flowers102_cpu"
CARRIED = (
    "scott_models/weights_manifest.json",
    "scott_models/weights_manifest.schema.json",
    "scott_models/imagenet100_wnids.txt",
    "scott_models/py.typed",
    "scott_models/pretrain/recipes/flowers102.toml",
    "scott_models/finetune/recipes/finetune.toml",
    f"scott_models/bundled/{TAG}/model.safetensors",
    f"scott_models/bundled/{TAG}/config.json",
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build the sdist, and the wheel from the sdist, with `python -m build`."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.needs("build")
def test_sdist_and_wheel_are_complete(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[-1] for name in sdist.getnames()}
        assert names >= {*CARRIED, "README.md", "LICENSE", "NOTICE", "pyproject.toml"}
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        assert set(wheel.namelist()) >= set(CARRIED)
        assert not [name for name in wheel.namelist() if name.startswith(("tests/", "weights/"))]
        assert sum(entry.compress_size for entry in wheel.infolist()) < 100e6


@pytest.mark.slow
@pytest.mark.needs("build")
def test_installed_wheel_loads_offline(dist, tmp_path):
    site = tmp_path / "site"
    wheel = str(next(dist.glob("*.whl")))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), wheel], check=True
    )
    code = (
        "import scott_models, timm, torch;"
        "assert scott_models.__file__.startswith(SITE), scott_models.__file__;"
        "model = timm.create_model('scott_3_16', pretrained=True);"
        "assert model.pretrained_cfg['file'].startswith(SITE), model.pretrained_cfg['file'];"
        "print(model(torch.zeros(1, *model.pretrained_cfg['input_size'])).shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"SITE = {str(site)!r};" + code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch.Size([1, 384])" in result.stdout, result.stderr


@pytest.mark.slow
def test_installed_from_a_checkout_it_finds_the_checkouts_weights(tmp_path):
    """Check that pip's record of the source leads to the checkout, and that a wheel leads to nothing."""
    checkout, site = tmp_path / "checkout of mine", tmp_path / "site"
    for folder in (checkout, site / "scott_models"):
        shutil.copytree(CHECKOUT / "scott_models", folder / "scott_models" if folder == checkout else folder)
    shutil.rmtree(site / "scott_models" / "bundled")
    shutil.copytree(CHECKOUT / "weights" / TAG, checkout / "weights" / TAG)
    info = site / "scott_models-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scott_models\nVersion: 0.1.0\n")
    code = f"import scott_models; print(scott_models.weights.resolve({TAG!r}))"
    for noted, found in (({"dir_info": {}}, True), ({"archive_info": {}}, False)):
        (info / "direct_url.json").write_text(json.dumps({"url": checkout.as_uri(), **noted}))
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if found:
            assert Path(result.stdout.strip()) == checkout / "weights" / TAG / "model.safetensors", result.stderr
        else:
            assert "no weight file in any of" in result.stderr


def test_the_oldest_versions_that_are_allowed_are_the_ones_that_ci_tests():
    required = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed = {name for name in required if name.startswith(("torch", "timm"))}
    tested = re.findall(r"\b(?:torch|torchvision|timm)==[\d.]+", (CHECKOUT / ".ci" / "run").read_text())
    assert len(allowed) == 3
    assert sorted(tested) == sorted(name.replace(">=", "==") for name in allowed)


@pytest.mark.slow
def test_import_is_silent():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import scott_models"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
