"""timm's own test suite on our models.

python tests/timm_suite/run.py              all of our models
python tests/timm_suite/run.py -k scott_3   what follows is pytest's

The suite is not part of the package: pip fetches timm's source distribution, of the version that is installed. The
suite makes its lists of models when it is imported, so `timm.list_models` answers with ours from before that. Its tests
run without the network.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import timm

import scott_models  # noqa: F401 -- importing registers the models with timm

list_models = timm.list_models


def main(arguments: list[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="timm_suite-") as folder:
        suite = fetch(Path(folder))
        timm.list_models = ours
        options = ["-p", "no:cacheprovider", "--rootdir", folder, "-W", "ignore", "-q", "--durations=3"]
        return pytest.main([*options, str(suite), *arguments], plugins=[OursAlone()])


def fetch(folder: Path) -> Path:
    """tests/test_models.py of the installed version of timm."""
    requirement = f"timm=={timm.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--dest", folder, requirement], check=True)
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as source:
        member = f"{archive.name.removesuffix('.tar.gz')}/tests/test_models.py"
        source.extract(member, folder, filter="data")
    return folder / member


def ours(filter="", module="", exclude_filters="", **options: bool) -> list[str]:
    """What timm.list_models(...) would say if ours were its only models, all of them vision transformers."""
    asked, refused = ([x] if isinstance(x, str) else [*x] for x in (filter, exclude_filters))
    if "vit_*" in refused or not {"", "vit_*"} & {*asked}:
        return []
    return list_models(module="scott", **options)


class OursAlone:
    """Leaves out the suite's tests of single models of timm's, and says how many."""

    def pytest_collection_modifyitems(self, config, items):
        kept, left_out = [], []
        for item in items:
            name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
            ours = isinstance(name, str) and name.startswith("scott_")
            (kept if ours else left_out).append(item)
        config.hook.pytest_deselected(items=left_out)
        self.counts = Counter(item.originalname for item in kept)
        items[:] = kept

    def pytest_terminal_summary(self, terminalreporter):
        for name, count in self.counts.items():
            terminalreporter.write_line(f"{count} x {name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
