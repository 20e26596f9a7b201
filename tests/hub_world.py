"""A user's machine beside the small Hub: processes of its own, a cache of its own, and a package that knows the Hub.

huggingface_hub reads its settings at import, so nothing of this can run in the process of the tests.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scott_models.weights import manifest
from scott_models.weights.entries import PACKAGE

RELEASED = "scott_3_16.mimjepa_flowers102_cpu"
# Fetches each tag as a user's process would, though without waiting between attempts.
RESOLVE = """
import json, sys, time
pause = time.sleep
time.sleep = lambda seconds: pause(min(seconds, 0.01))
from scott_models import weights
from scott_models.errors import WeightsError
for tag in sys.argv[1:]:
    try:
        path, error = str(weights.resolve(tag)), None
    except WeightsError as raised:
        path, error = None, str(raised)
    print(json.dumps([tag, path, error]))
"""

CREATE = """
import json, sys
import scott_models, timm
model = timm.create_model(*sys.argv[1:2], pretrained=True, **json.loads(sys.argv[2]))
print(model.pretrained_cfg["file"], model.patch_embed.conv1.weight.double().sum().item())
"""


class World:
    """A Hub, a copy of the package that knows of its repositories, and an empty cache."""

    def __init__(self, hub, folder):
        self.hub, self.site, self.home = hub, folder / "site", folder / "home"
        shutil.copytree(PACKAGE, self.site / "scott_models", ignore=shutil.ignore_patterns("bundled"))
        (self.site / "scott_models" / "weights_manifest.json").unlink()
        shutil.copy(PACKAGE / "weights_manifest.schema.json", self.site)  # beside a manifest that a test may put there
        self.entries = {}

    def release(self, case, content, model="scott_3_16"):
        """Weights as a repository and a tag of the manifest."""
        repository = f"org/{case}"
        revision = self.hub.add(repository, {"model.safetensors": content})
        self.entries[f"{model}.{case}"] = {
            **manifest()[RELEASED],
            "repository": repository,
            "revision": revision,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        self.write_manifest()

    def write_manifest(self):
        (self.site / "scott_models" / "weights_manifest.json").write_text(json.dumps({"weights": self.entries}))

    def start(self, code, *arguments, **environment):
        """A process of a user."""
        # The package of this checkout may be installed: the copy must come before it.
        settings = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")]),
            "HOME": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=settings | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.site,
        )

    def run(self, code, *arguments, **environment):
        return self.start(code, *arguments, **environment).communicate()

    def resolve(self, *cases, **environment):
        """By case where its file is, or why it is not."""
        out, errors = self.run(RESOLVE, *(f"scott_3_16.{case}" for case in cases), **environment)
        found = {tag.split(".")[1]: (path, error) for tag, path, error in map(json.loads, out.splitlines())}
        assert found.keys() == set(cases), errors
        return found

    def is_whole(self, case, path):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() == self.entries[f"scott_3_16.{case}"]["sha256"]
