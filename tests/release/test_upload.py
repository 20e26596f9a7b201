"""Test uploads to the small Hub on loopback with huggingface_hub's own client, and downloads by other processes."""

import io
import json
import shutil
from itertools import repeat
from pathlib import Path

import jsonschema
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from scott_models import weights
from scott_models.errors import WeightsError
from scott_models.pretrain import Recipe, pretrain
from scott_models.release.upload import choose_tag, prepare, publish
from scott_models.weights import local_dir, manifest

from ..hub_server import Hub, flipped, status
from ..hub_world import CREATE, RELEASED, World

CHECKOUT = Path(__file__).parents[2]
SCHEMA = json.loads((CHECKOUT / "weights_manifest.schema.json").read_text())
FOLDER = CHECKOUT / "weights" / RELEASED
REPOSITORY = f"org/{RELEASED}"
SMALL = ["model.img_size=32", "optim.batch_size=4", "run.precision=no"]
SCOTT = "from scott_models.cli import main; main()"


@pytest.fixture
def world(tmp_path):
    """Make a checkout with the released folder, and a manifest that says the release is unpublished."""
    with Hub() as hub:
        world = World(hub, tmp_path)
        (world.site / "pyproject.toml").touch()
        shutil.copytree(FOLDER, world.site / "weights" / RELEASED)
        entry = {**manifest()[RELEASED], "repository": None, "revision": None}
        (world.site / "weights_manifest.json").write_text(json.dumps({"weights": {RELEASED: entry}}))
        yield world


def scott(world, *arguments, status=0, token="hf_writer"):
    process = world.start(SCOTT, *map(str, arguments), HF_TOKEN=token)
    out, errors = process.communicate()
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert token not in out + errors
    return out if status == 0 else errors


def entry_in(path):
    return json.loads(path.read_text())["weights"][RELEASED]


@pytest.mark.slow
def test_a_release_goes_up_and_another_process_gets_it(world):
    shown = scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY)
    file = world.site / "weights_manifest.json"
    entry = entry_in(file)
    (revision,) = world.hub.repositories[REPOSITORY].commits
    assert (entry["repository"], entry["revision"]) == (REPOSITORY, revision)
    assert f"published and read back, commit {revision}" in shown
    assert "existed already" not in shown
    jsonschema.validate(json.loads(file.read_text()), SCHEMA)
    files = world.hub.repositories[REPOSITORY].commits[revision]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "pca.webp"]
    assert b"](pca.webp)" in files["README.md"]
    assert files["model.safetensors"] == (FOLDER / "model.safetensors").read_bytes()
    assert {**entry, "repository": None, "revision": None} == {
        **manifest()[RELEASED],
        "repository": None,
        "revision": None,
    }
    again = scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY)  # changes nothing
    assert f"commit {revision}" in again
    assert "the repository existed already: files with these names were replaced" in again
    assert list(world.hub.repositories[REPOSITORY].commits) == [revision]
    shutil.rmtree(world.site / "weights")
    out, errors = world.run(CREATE, "scott_3_16", "{}")
    assert str(world.home) in out, errors
    scott(world, "download", "scott_3_16", "--dir", "elsewhere", token="hf_reader")
    assert (world.site / "elsewhere" / RELEASED / "model.safetensors").read_bytes() == files["model.safetensors"]
    by_name = timm.create_model("scott_3_16", pretrained=True).patch_embed.conv1.weight.double().sum().item()
    assert float(out.split()[1]) == by_name


@pytest.mark.slow
def test_what_is_downloaded_to_a_folder_is_held_once(world):
    scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY)
    shutil.rmtree(world.site / "weights")
    out = scott(world, "download", "--dir", "models")
    assert f"use it with SCOTT_MODELS_DIR={world.site / 'models'}" in out
    copies = [path for path in (*world.home.rglob("*"), *world.site.rglob("*.safetensors")) if path.is_file()]
    assert [path.stat().st_size for path in copies if path.stat().st_size > 1e6] == [manifest()[RELEASED]["bytes"]]
    out, errors = world.run(CREATE, "scott_3_16", "{}", HF_HUB_OFFLINE="1", SCOTT_MODELS_DIR="models")
    assert f"models/{RELEASED}/model.safetensors" in out, errors


@pytest.mark.slow
def test_a_run_goes_up_with_its_own_card(world, run, ended):
    given = [run, "--repo-id", "me/My-Photos", "--license", "cc-by-4.0", "--data-terms", "mine"]
    given += ["--picture", next(ended.parent.glob("photos/*/*.png"))]
    dry = scott(world, "publish", *given, "--dry-run")
    assert world.hub.requests == []
    assert "me/My-Photos would hold, in one commit:" in dry
    assert "model.safetensors: " in dry
    assert f"{world.site / 'weights_manifest.json'} would hold the entry of scott_3_16.my_photos:" in dry
    assert '"data": "12 images of photos"' in dry
    scott(world, "publish", *given)
    (files,) = world.hub.repositories["me/My-Photos"].commits.values()
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "pca.webp", "recipe.toml"]
    assert Image.open(io.BytesIO(files["pca.webp"])).format == "WEBP"
    assert files["README.md"].decode() in dry
    assert str(ended.parent).encode() not in b"".join(files.values())  # the location of the images is not published
    entries = json.loads((world.site / "weights_manifest.json").read_text())["weights"]
    assert list(entries) == [RELEASED, "scott_3_16.my_photos"]
    jsonschema.validate({"weights": entries}, SCHEMA)
    out, errors = world.run(CREATE, "scott_3_16.my_photos", "{}")
    assert str(world.home) in out, errors
    assert '"hf-hub:me/My-Photos"' in files["README.md"].decode()
    code = "import scott_models, timm; print(timm.create_model('hf-hub:me/My-Photos', pretrained=True).num_features)"
    assert world.run(code)[0] == "384\n"


@pytest.mark.slow
def test_a_hub_that_keeps_something_else(world):
    world.hub.fail(REPOSITORY, "GET", repeat(flipped))
    errors = scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY, status=2)
    assert "model.safetensors of commit" in errors
    assert "is not what was uploaded; try again" in errors
    assert entry_in(world.site / "weights_manifest.json")["revision"] is None


@pytest.mark.slow
def test_a_private_repository_is_one(world):
    scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY, "--private")
    assert world.hub.repositories[REPOSITORY].private
    world.hub.add("org/open", {"README.md": b"hello"})
    errors = scott(world, "publish", f"weights/{RELEASED}", "--repo-id", "org/open", "--private", status=2)
    assert "expected a private repository, found a public one" in errors
    assert len(world.hub.repositories["org/open"].commits) == 1


@pytest.mark.slow
def test_a_run_without_labels(world, photos, tmp_path):
    """Publish and list a run that has no scores."""
    for i, image in enumerate(sorted(photos.rglob("*.png"))):
        image.rename(photos / f"{i}.png")
    init = f"model.init=local-dir:{world.site / 'weights' / RELEASED}"
    pretrain(Recipe.load("smoke", [*SMALL, init]), [photos], tmp_path / "flat")
    dry = scott(world, "publish", tmp_path / "flat", "--repo-id", "me/flat", "--license", "mit", "--dry-run")
    assert "have not been scored" in dry
    assert f'init = "{RELEASED}"' in dry
    assert str(world.site / "weights") not in dry.replace(str(world.site / "weights_manifest.json"), "")
    scott(world, "publish", tmp_path / "flat", "--repo-id", "me/flat", "--license", "mit")
    jsonschema.validate(json.loads((world.site / "weights_manifest.json").read_text()), SCHEMA)
    rows = json.loads(scott(world, "list", "--json"))
    assert ("flat", None) in [(row["tag"], row["kNN %"]) for row in rows]


@pytest.mark.slow
def test_what_is_asked_before_an_upload(world, run):
    """Validate before the upload, so that nothing is on the Hub without a manifest entry."""
    given = ["publish", run, "--license", "mit"]
    (world.site / "bad.json").write_text("no manifest")
    for more, words in (
        (["--repo-id", "me/x", "--manifest", "bad.json"], "bad.json: expected a manifest like weights_manifest.json"),
        (["--repo-id", "me/x", "--manifest", "nowhere/m.json"], "expected a manifest in a folder that exists"),
        (["--repo-id", "photos"], "--repo-id: expected organisation/name, got 'photos'"),
        (["--repo-id", "me/x", "--tag", "scott_7_16.x"], "tag: expected a tag of scott_3_16, the model of these"),
        (["--repo-id", f"me/{RELEASED}"], f"already has other weights named {RELEASED}; choose another --tag"),
    ):
        assert words in scott(world, *given, *more, status=2)
    assert world.hub.requests == []


def test_a_manifest_that_cannot_be_written_after_all(run, tmp_path, monkeypatch):
    """Report the commit, which exists by then."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scott_models.release.upload.upload", lambda *release, **options: ("a" * 40, False))
    monkeypatch.setattr("scott_models.weights.entries.write_text_whole", full)
    with pytest.raises(WeightsError, match=f"me/x.*commit {'a' * 40}.*m.json.*No space.*make room"):
        publish(run, "me/x", license="mit", manifest_file=tmp_path / "m.json")


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"bytes": 1}, r"\(13046296 bytes, expected 1\)"),
        ({"dtype": "float32"}, "entry.*{'dtype': 'float32'}, found {'dtype': 'bfloat16'}"),
        ({"input_size": [3, 224, 224]}, r"found {'input_size': \[3, 112, 112\]}"),
        ({"license": "MIT"}, "license.*SPDX.*found 'MIT'"),
    ],
)
def test_lies_are_not_published(monkeypatch, lie, words):
    monkeypatch.setitem(manifest(), RELEASED, {**manifest()[RELEASED], **lie})
    with pytest.raises(WeightsError, match=words):
        prepare(FOLDER, REPOSITORY)


@pytest.mark.slow
def test_uploads_that_are_refused(world):
    given = ["publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY]
    errors = scott(world, *given, status=2, token="hf_nobody")
    assert "cannot be published: the Hub answered 401" in errors
    assert "log in with `hf auth login` or set HF_TOKEN, with a token that may write there" in errors
    world.hub.fail(REPOSITORY, "PUT", repeat(status(403, message="no write access")))
    assert "cannot be published: the Hub answered 403" in scott(world, *given, status=2)
    world.hub.faults.clear()
    world.hub.fail(REPOSITORY, "POST", repeat(status(500)))
    assert "cannot be published: the Hub answered 500" in scott(world, *given, status=2)
    assert entry_in(world.site / "weights_manifest.json")["revision"] is None
    world.hub.faults.clear()
    scott(world, *given)
    assert entry_in(world.site / "weights_manifest.json")["revision"]


@pytest.mark.slow
def test_without_a_network(world):
    world.hub.server.shutdown()
    world.hub.server.server_close()
    errors = scott(world, "publish", f"weights/{RELEASED}", "--repo-id", REPOSITORY, status=2)
    assert "cannot be published: [Errno 111] Connection refused" in errors
    assert entry_in(world.site / "weights_manifest.json")["revision"] is None


@pytest.mark.parametrize(
    ("architecture", "repository", "tag"),
    [
        ("scott_3_16", "me/scott_3_16.birds", "scott_3_16.birds"),
        ("scott_3_16", "me/My-Birds", "scott_3_16.my_birds"),
        ("scott_12_16", "me/scott_3_16.birds", "scott_12_16.scott_3_16_birds"),
        ("scott_3_16", "me/scott_3_16.B", "scott_3_16.scott_3_16_b"),
    ],
)
def test_tags_of_repositories(architecture, repository, tag):
    assert choose_tag(architecture, repository) == tag


def test_what_cannot_be_published(run, tmp_path):
    with pytest.raises(WeightsError, match="license.*--license apache-2.0.*got none"):
        prepare(run, "me/x")
    with pytest.raises(WeightsError, match="license.*cannot be set.*released tag"):
        prepare(FOLDER, REPOSITORY, license="mit")
    with pytest.raises(
        WeightsError, match=r"tag: expected scott_3_16.mimjepa_flowers102_cpu, the tag of this folder, got scott_3_16.y"
    ):
        prepare(FOLDER, REPOSITORY, tag="scott_3_16.y")
    with pytest.raises(WeightsError, match="ended or a folder"):
        prepare(tmp_path, "me/x")
    with pytest.raises(WeightsError, match="expected tags like"):
        prepare(run, "me/x", license="mit", tag="scott_3_16.../x")
    copy = tmp_path / RELEASED
    shutil.copytree(FOLDER, copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1] + b"X")
    with pytest.raises(WeightsError, match="not the released weights.*published as"):
        prepare(copy, REPOSITORY)
    (copy / "model.safetensors").write_bytes(content[:5000])
    with pytest.raises(WeightsError, match="expected a whole safetensors file"):
        prepare(copy, REPOSITORY)


def test_other_settings_than_a_tag_means(tmp_path):
    """Refuse other settings under a tag, which would give other features; publish the folder without a tag."""
    folder = tmp_path / RELEASED
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["num_heads"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="settings of scott_3_16, {'num_heads': 4}.*{'num_heads': 6}"):
        prepare(folder, REPOSITORY)
    elsewhere = folder.rename(tmp_path / "six")
    assert prepare(elsewhere, "me/six").entry is None
    assert timm.create_model(f"local-dir:{elsewhere}", pretrained=True).blocks[0].attn.num_heads == 6


def test_any_timm_model(tmp_path):
    """Publish any timm model, also with integers among its weights, but not with NaN."""
    model = timm.create_model("resnet10t", num_classes=0)
    folder = local_dir.save_whole(model, tmp_path / "net", {}, [])
    (folder / "README.md").write_text("# mine\n")
    assert sorted(prepare(folder, "me/net").files) == ["README.md", "config.json", "model.safetensors"]
    model.bn1.running_var[3] = torch.nan
    save_file(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"found NaN or infinity in \['bn1.running_var'\]"):
        prepare(folder, "me/net")


def test_a_models_folder_needs_a_card_of_its_own(tmp_path):
    model = timm.create_model("scott_3_16", img_size=32, num_classes=3)
    folder = weights.export(model, tmp_path / "classifier", label_names=["a", "b", "c"])
    with pytest.raises(WeightsError, match="README.md.*model card"):
        prepare(folder, "me/classifier")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    outcome = publish(folder, "me/classifier", dry_run=True)
    assert (outcome.release.entry, outcome.revision) == (None, None)
    assert "# mine" in str(outcome)
    with pytest.raises(WeightsError, match="license.*cannot be set.*not a pretraining run"):
        prepare(folder, "me/classifier", license="mit")
