"""Test huggingface_hub's own client against a small Hub on loopback: a fault is recovered, or reported in one sentence.

The client reads its settings at import, so each test runs in separate processes. The processes use a copy of the
package whose manifest says that the weights are published.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import traceback
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from scott_models import weights
from scott_models.errors import WeightsError
from scott_models.release.upload import Release, upload
from scott_models.weights.hub import fetch

from ..hub_server import Hub, cut, flipped, short, stalled, status
from ..hub_world import CREATE, RELEASED, RESOLVE, World

pytestmark = pytest.mark.slow

MEGABYTE = 2**20


@pytest.fixture
def world(tmp_path):
    with Hub() as hub:
        yield World(hub, tmp_path)


# The Hub's faults, the words of the error (None: the download succeeds), and how often the file was sent.
CASES = {
    "good": ("GET", [], None, 1),
    "flipped_once": ("GET", [flipped], None, 2),
    "flipped": ("GET", repeat(flipped), "org/flipped does not hold what was released; do not use it", 2),
    "cut_once": ("GET", [cut(11 * MEGABYTE)], None, 2),
    "truncated": ("GET", repeat(cut(1000)), "cannot be downloaded", 6),
    "short": ("GET", repeat(short), "cannot be downloaded (Consistency check failed", 1),
    "slow_once": ("GET", [stalled(2, at=1000)], None, 2),
    "slow_answer": ("HEAD", [stalled(2)], None, 1),
    "private": ("HEAD", repeat(status(401, "RepoNotFound")), "does not exist or is private; log in with", 0),
    "wrong_token": (
        "HEAD",
        repeat(status(401, "", "Invalid credentials in Authorization header")),
        "answered 401, not logged in: log in with `hf auth login` or set HF_TOKEN",
        0,
    ),
    "gated": ("HEAD", repeat(status(403, "GatedRepo")), "is gated: accept its terms on the Hub's page", 0),
    "forbidden": ("HEAD", repeat(status(403)), "answered 403, forbidden: the token may not read this", 0),
    "no_revision": ("HEAD", repeat(status(404, "RevisionNotFound")), "has no such commit; update scott_models", 0),
    "no_file": ("HEAD", repeat(status(404, "EntryNotFound")), "404, that commit has no such file", 0),
    "busy": ("HEAD", [status(429, **{"Retry-After": "1"})] * 2, None, 1),
    "too_busy": ("HEAD", repeat(status(429)), "answered 429, too many requests: wait a few minutes", 0),
    "broken_twice": ("HEAD", [status(503)] * 2, None, 1),
    "broken": ("HEAD", repeat(status(500)), "answered 500, an unexpected error: try again later", 0),
    "storage_busy": ("GET", [status(429)] * 2, None, 3),
    "storage_broken": ("GET", repeat(status(502)), "answered 502, an unexpected error: try again later", 1),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Resolve every case in one process; return the world and the result of each case."""
    with Hub() as hub:
        world = World(hub, tmp_path_factory.mktemp("faulty"))
        for case, (method, faults, _, _) in CASES.items():
            world.release(case, os.urandom(12 * MEGABYTE if case == "cut_once" else 5000))
            hub.fail(f"org/{case}", method, faults)
        yield world, world.resolve(*CASES)


@pytest.mark.parametrize("case", CASES)
def test_what_the_hub_does_wrong(faulty, case):
    world, found = faulty
    (path, error), (_, _, words, sent) = found[case], CASES[case]
    assert len(world.hub.asked(f"org/{case}", "GET")) == sent
    if words is None:
        assert world.is_whole(case, path), error
        return
    assert path is None
    assert words in error
    assert f"scott_3_16.{case}" in error
    assert "\n" not in error


def test_a_wrong_file_names_both_hashes(faulty):
    world, found = faulty
    entry = world.entries["scott_3_16.flipped"]
    content = world.hub.stored[entry["sha256"]]
    wrong = hashlib.sha256(content[:-1] + bytes([content[-1] ^ 1])).hexdigest()
    assert f"expected sha256 {entry['sha256']}, found {wrong}" in found["flipped"][1]


def test_a_cut_download_goes_on_where_it_was(faulty):
    first, second = faulty[0].hub.asked("org/cut_once", "GET")
    assert "range" not in first
    assert second["range"] == f"bytes={10 * MEGABYTE}-"  # up to here the client had written


def test_what_failed_left_nothing_that_a_later_load_takes_for_good(faulty):
    world, found = faulty
    failed = [case for case, (_, error) in found.items() if error]
    world.hub.faults.clear()
    again = world.resolve(*failed)
    assert all(world.is_whole(case, path) for case, (path, _) in again.items()), again


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the bytes of a weight file of a scott_3_16 that was not released."""
    torch.manual_seed(1)
    model = timm.create_model("scott_3_16", img_size=112, use_mask_token=True)
    return (weights.export(model, tmp_path_factory.mktemp("trained") / "export") / "model.safetensors").read_bytes()


def test_create_model_downloads_once(world, trained, tmp_path):
    world.release("one", trained)
    out, errors = world.run(CREATE, "scott_3_16", "{}", HF_TOKEN="hf_reader")
    path, total = out.split()
    assert path.startswith(str(world.home / "hf" / "hub")), errors
    assert float(total) == load_file(path)["patch_embed.conv1.weight"].double().sum().item()
    (head,), (get,) = world.hub.asked("org/one", "HEAD"), world.hub.asked("org/one", "GET")
    assert head["authorization"] == "Bearer hf_reader"
    assert "authorization" not in get  # the storage is another host
    world.hub.requests.clear()
    assert world.run(CREATE, "scott_3_16.one", "{}")[0] == out
    assert world.run(CREATE, "scott_3_16", '{"num_classes": 3}', HF_HUB_OFFLINE="1")[0] == out
    assert world.hub.requests == []
    elsewhere, errors = world.run(CREATE, "scott_3_16", json.dumps({"cache_dir": str(tmp_path / "mine")}))
    assert elsewhere.startswith(str(tmp_path / "mine")), errors


def test_published_weights_count_as_pretrained_before_they_are_here(world):
    world.release("one", b"x")
    code = "import scott_models, timm; print(timm.list_pretrained('scott*'), timm.get_pretrained_cfg('scott_3_16'))"
    out, errors = world.run(code)
    assert "['scott_3_16.one']" in out, errors
    assert f"org/one@{world.entries['scott_3_16.one']['revision']}" in out
    assert world.hub.requests == []


def test_importing_asks_nobody_anything(world):
    world.release("one", b"x")
    code = "import socket; socket.socket.connect = lambda *to: print(to); import scott_models.cli; print('fine')"
    assert world.run(code)[0] == "fine\n"
    assert world.hub.requests == []


def test_offline_says_what_to_do(world):
    world.release("one", b"12345")
    (_, error) = world.resolve("one", HF_HUB_OFFLINE="1")["one"]
    assert "HF_HUB_OFFLINE forbids downloads: run `scott download scott_3_16.one --dir FOLDER` where there is" in error
    assert str(world.home / "hf" / "hub") in error
    assert world.hub.requests == []


def test_no_network_says_what_to_do(world):
    world.release("one", b"12345")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (_, error) = world.resolve("one", HF_ENDPOINT=nowhere)["one"]
        assert "Connection refused" in error
        assert "run `scott download scott_3_16.one --dir FOLDER` where there is a network" in error
        path, _ = world.resolve("one")["one"]
        assert world.resolve("one", HF_ENDPOINT=nowhere)["one"] == (path, None)  # it is in the cache now


def test_a_cache_that_rotted_is_mended_or_told_of(world):
    """Test also a cache of copies, as on a system without links or after the cache itself was copied."""
    cases = {"link": b"X2345", "copy": b"X2345", "empty_copy": b"", "folder": None}
    for case in cases:
        world.release(case, b"12345" * 1000)
    paths = {case: Path(path) for case, (path, _) in world.resolve(*cases).items()}
    for case, damaged in cases.items():
        if case != "link":
            paths[case].unlink()
        if damaged is None:
            paths[case].mkdir()
        else:
            paths[case].write_bytes(damaged)
    offline = world.resolve(*cases, HF_HUB_OFFLINE="1")
    for case in ("link", "copy", "empty_copy"):
        assert f"{paths[case]}: damaged or not the released weights" in offline[case][1]
        assert "HF_HUB_OFFLINE forbids downloads" in offline[case][1]
        assert paths[case].read_bytes() == cases[case]  # not replaced without a better file
    found = world.resolve(*cases)
    assert all(world.is_whole(case, found[case][0]) for case in ("link", "copy", "empty_copy")), found
    for error in (offline["folder"][1], found["folder"][1]):
        assert error == f"{paths['folder']}: expected the weight file of scott_3_16.folder, found a folder; remove it"


def test_two_processes_at_once(world):
    world.release("one", os.urandom(5 * MEGABYTE))
    world.hub.fail("org/one", "GET", [stalled(0.5, at=MEGABYTE)] * 2)
    both = [world.start(RESOLVE, "scott_3_16.one") for _ in range(2)]
    for process in both:
        (out, errors) = process.communicate()
        assert world.is_whole("one", json.loads(out)[1]), errors


def test_killed_in_the_middle(world):
    world.release("one", os.urandom(12 * MEGABYTE))
    world.hub.fail("org/one", "GET", [stalled(30, at=11 * MEGABYTE)])
    process = world.start(RESOLVE, "scott_3_16.one", HF_HUB_DOWNLOAD_TIMEOUT="60")
    while not any(path.stat().st_size > MEGABYTE for path in world.home.rglob("*.incomplete")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    path, _ = world.resolve("one")["one"]
    assert world.is_whole("one", path)


def test_a_file_too_large_for_the_disk(world):
    world.release("one", os.urandom(3 * MEGABYTE))
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({MEGABYTE}, {MEGABYTE}))\n" + RESOLVE
    out, errors = world.run(limited, "scott_3_16.one", PYTHONDONTWRITEBYTECODE="1")
    _, path, error = json.loads(out)
    assert path is None, errors
    assert "cannot be stored in" in error
    assert "(File too large); check the folder and its disk or choose another folder with HF_HOME" in error
    assert world.is_whole("one", world.resolve("one")["one"][0])


@pytest.fixture
def mounted(tmp_path):
    """Return a function that mounts a small file system on a folder, with options."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_a_full_disk(world, mounted):
    world.release("one", os.urandom(3 * MEGABYTE))
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    _, error = world.resolve("one", HF_HOME=str(disk))["one"]
    assert f"cannot be stored in {disk / 'hub'} (No space left on device); make room or choose" in error
    mounted("-o", "remount,size=9m")
    assert world.is_whole("one", world.resolve("one", HF_HOME=str(disk))["one"][0])


def test_a_cache_that_cannot_be_written(world, mounted):
    world.release("one", os.urandom(5000))
    world.release("other", os.urandom(5000))
    disk = mounted("-t", "tmpfs", "-o", "size=9m", "tmpfs")
    world.resolve("one", HF_HOME=str(disk))
    mounted("-o", "remount,ro")
    found = world.resolve("one", "other", HF_HOME=str(disk))
    assert world.is_whole("one", found["one"][0])
    assert (
        f"cannot be stored in {disk / 'hub'} (Read-only file system); check the folder and its disk"
        in found["other"][1]
    )


def test_tokens_are_never_told(faulty):
    world, _ = faulty
    secret = "hf_" + "s3cret" * 5
    for case, (method, faults, words, _) in CASES.items():
        if words:
            world.hub.fail(f"org/{case}", method, faults)
            world.entries[f"scott_3_16.{case}"]["revision"] = "0" * 40  # this commit is in no cache
    world.write_manifest()
    cases = [f"scott_3_16.{case}" for case, (*_, words, _) in CASES.items() if words]
    out, errors = world.run(RESOLVE, *cases, HF_TOKEN=secret, HF_HUB_VERBOSITY="debug", HF_DEBUG="1")
    assert len(out.splitlines()) == len(cases), errors
    assert any(headers.get("authorization") == f"Bearer {secret}" for _, _, headers in world.hub.requests)
    assert secret not in out + errors


def test_tokens_with_a_line_end_work_and_are_not_told(world):
    """Accept a token as read from a file; the client's own error would show it."""
    world.release("one", b"12345")
    code = "from scott_models import weights; print(weights.resolve('scott_3_16.one', token='hf_s3cret\\n'))"
    out, errors = world.run(code)
    assert "snapshots" in out, errors
    assert world.hub.asked("org/one", "HEAD")[0]["authorization"] == "Bearer hf_s3cret"
    world.hub.fail("org/one", "HEAD", repeat(status(500)))
    _, errors = world.run(
        code, HF_HUB_CACHE=str(world.home / "other"), HF_ENDPOINT=world.hub.url.replace("//", "//me:pw9@")
    )
    assert "answered 500" in errors
    assert "s3cret" not in errors
    assert "pw9" not in errors.splitlines()[-1]


@pytest.mark.parametrize("token", ["hf_s3c\nret", "hf_s3c ret", "hf_s3c\x1bret", "hf_s3cr\xe9t"])
def test_tokens_that_no_request_could_carry(token):
    """Refuse the token without showing it, as the client's own error would."""
    entry = {**weights.manifest()[RELEASED], "repository": "org/name", "revision": "0" * 40}
    for ask in (partial(fetch, RELEASED, entry), partial(upload, Release({}, None, None), "org/name")):
        with pytest.raises(WeightsError, match="token: expected only letters, digits and signs") as raised:
            ask(token=token)
        assert "s3c" not in "".join(traceback.format_exception(raised.value))


def test_an_entry_that_leads_astray_leaves_the_others_alone(world, trained):
    world.release("good", trained)
    world.entries["scott_3_16.bad"] = {**world.entries["scott_3_16.good"], "file": "../x.safetensors"}
    world.entries["scott_7_16.bad"] = {**world.entries["scott_3_16.good"], "input_size": None}
    world.entries["scott_9_16.bad"] = None
    world.write_manifest()
    out, errors = world.run("from scott_models.cli import main; import sys; sys.argv = ['scott', 'list']; main()")
    assert "good" in out, errors
    assert world.run(CREATE, "scott_3_16", "{}")[0]
    code = """
import scott_models, sys, timm
for model in sys.argv[1:]:
    try:
        timm.create_model(model, pretrained=True)
    except ValueError as error:
        print(error)
"""
    out, errors = world.run(code, "scott_7_16", "scott_9_16")
    assert "input_size: expected channels, height and width of the training images" in out, errors
    assert "scott_9_16.bad: expected an entry, found None" in out
    manifest = world.site / "scott_models" / "weights_manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    out, errors = world.run(code, "scott_3_16")
    assert f"{manifest}: expected a manifest like weights_manifest.json, found something else" in out, errors


def test_configurations_of_ours_are_verified_too(world, trained):
    """Pass whole configurations to `create_model`, as timm returns them or stores them in a model."""
    files = {"model.safetensors": trained, "two.safetensors": trained[:-1] + bytes([trained[-1] ^ 1])}
    world.hub.add("org/both", files)  # in one commit of one repository
    (revision,) = world.hub.repositories["org/both"].commits
    for (file, content), case in zip(files.items(), ("one", "two")):
        world.release(case, content)
        world.entries[f"scott_3_16.{case}"] |= {"repository": "org/both", "revision": revision, "file": file}
    world.write_manifest()
    world.hub.fail("org/both", "GET", chain([lambda handler, content: handler.send_file(content)] * 2, repeat(flipped)))
    code = """
import json, pathlib, scott_models, timm
def load(given):
    try:
        model = timm.create_model("scott_3_16", pretrained=True, pretrained_cfg=given)
        return pathlib.Path(model.pretrained_cfg["file"]).name
    except ValueError as error:
        return str(error)
found = []
tags = ("scott_3_16.one", "scott_3_16.two")
for tag, left in {tag: timm.create_model(tag, pretrained=True).pretrained_cfg for tag in tags}.items():
    config = timm.get_pretrained_cfg(tag)
    configs = [config, config.to_dict(), left, {**left, "file": None}]
    good = [load(given) for given in configs]
    path = pathlib.Path(left["file"])
    mine = path.with_name("mine.safetensors")
    mine.write_bytes(path.read_bytes())
    path.write_bytes(b"damaged")
    found.append([good, load({**left, "file": str(mine)}), [load(given) for given in configs]])
print(json.dumps(found))
"""
    out, errors = world.run(code)
    assert out, errors
    for (good, mine, damaged), (file, content) in zip(json.loads(out), files.items(), strict=True):
        assert good == [file] * 4, errors
        assert mine == "mine.safetensors"  # the caller's own
        assert all(f"expected sha256 {hashlib.sha256(content).hexdigest()}" in error for error in damaged), damaged
