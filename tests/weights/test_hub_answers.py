"""Test the messages for the Hub's answers, and repeated requests, without a Hub. test_hub.py has a Hub on loopback."""

import errno
import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from scott_models import weights
from scott_models.errors import WeightsError
from scott_models.release.upload import Release, upload
from scott_models.weights import hub, manifest
from scott_models.weights.files import fetch_checked, verify

TAG = "scott_3_16.mimjepa_flowers102_cpu"
ENTRY = {**manifest()[TAG], "repository": "org/one", "revision": "0" * 40}


def made(kind, code=None, words="some words"):
    """Make an error of the client without the request that its constructor needs."""
    error = kind.__new__(kind, words)
    error.response = SimpleNamespace(status_code=code)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (made(errors.GatedRepoError, 403), "is gated: accept its terms"),
        (made(errors.RepositoryNotFoundError, 404), "the repository does not exist or is private"),
        (made(errors.RevisionNotFoundError, 404), "no such commit"),
        (made(errors.OfflineModeIsEnabled), "is not in the/cache, and HF_HUB_OFFLINE forbids downloads"),
        (made(errors.HfHubHTTPError, 401), "answered 401, not logged in"),
        (made(errors.HfHubHTTPError, 403), "answered 403, forbidden"),
        (made(errors.HfHubHTTPError, 404), "answered 404, that commit has no such file"),
        (made(errors.HfHubHTTPError, 429), "answered 429, too many requests"),
        (made(errors.HfHubHTTPError, 500), "answered 500, an unexpected error"),
        (
            OSError(errno.ENOSPC, "No space left"),
            r"cannot be stored in the/cache \(No space left\); make room or .*--dir",
        ),
        (OSError(errno.EROFS, "Read-only"), r"cannot be stored in the/cache \(Read-only\); check the folder.*--dir"),
        (ConnectionError("reset"), r"cannot be downloaded \(reset\)"),
        (ValueError("Bearer hf_secret"), r"cannot be downloaded \(ValueError\)"),
        (ValueError("https://example.org/?token=x"), r"cannot be downloaded \(ValueError\)"),
    ],
    ids=str,
)
def test_what_is_said(error, said, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=f"{TAG}: model.safetensors of org/one at 0+ .*{said}") as told:
        hub.fetch(TAG, ENTRY, cache_dir="the/cache/.partial-1")
    assert "hf_secret" not in str(told.value)


def test_the_answer_behind_another_error(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("could not") from made(errors.HfHubHTTPError, 429)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match="answered 429"):
        hub.fetch(TAG, ENTRY)


def test_tokens_are_sent_without_the_end_of_their_line():
    assert hub.check_token("hf_reader\n") == "hf_reader"
    assert hub.check_token("") is hub.check_token(None) is None
    for token in ("hf reader", "hf_\u00e9", "hf_\x7f"):
        with pytest.raises(WeightsError, match="token: expected only letters") as told:
            hub.check_token(token)
        assert token not in str(told.value)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Return the list of requests, and the list of files that the Hub returns one after the other."""
    asked, files = [], []

    def download(repository, file, **options):
        asked.append((repository, file, options))
        return str(files.pop(0))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked, files


def test_a_pinned_commit_is_asked_for(downloads, tmp_path):
    asked, files = downloads
    files.append(tmp_path / "model.safetensors")
    assert hub.fetch(TAG, ENTRY, token="hf_reader\n", cache_dir=tmp_path) == tmp_path / "model.safetensors"
    ((repository, file, options),) = asked
    assert (repository, file, options["revision"]) == ("org/one", "model.safetensors", "0" * 40)
    assert (options["token"], options["cache_dir"], options["force_download"]) == ("hf_reader", tmp_path, False)


def test_a_copy_that_is_fetched_afresh_is_removed_first(downloads, tmp_path):
    """Remove an old copy first: without links, the client does not replace it."""
    asked, files = downloads
    copy = tmp_path / "copy"
    copy.write_bytes(b"old")
    files[:] = [copy, copy]
    hub.fetch(TAG, ENTRY, fresh=True)
    assert not copy.exists()
    assert [options.get("force_download", False) for *_, options in asked] == [True, False]


def test_a_folder_in_the_place_of_the_file(downloads, tmp_path):
    downloads[1].append(tmp_path)
    with pytest.raises(WeightsError, match="found a folder"):
        hub.fetch(TAG, ENTRY)


def test_damage_in_the_cache_is_downloaded_once_more(downloads, tmp_path, caplog):
    asked, files = downloads
    whole, damaged = weights.resolve(TAG), tmp_path / "damaged"
    damaged.write_bytes(whole.read_bytes()[:-1] + b"x")
    (tmp_path / "link").symlink_to(whole)
    files[:] = [damaged, tmp_path / "link"]
    assert fetch_checked(TAG, ENTRY, verify).resolve() == whole.resolve()
    assert [options["force_download"] for *_, options in asked] == [False, True]
    assert "damaged, downloading it again" in caplog.text
    (tmp_path / "other").symlink_to(damaged)
    files[:] = [damaged, tmp_path / "other"]
    with pytest.raises(WeightsError, match="org/one does not hold what was released"):
        fetch_checked(TAG, ENTRY, verify)
    files[:] = [damaged]  # the second download fails
    with pytest.raises(WeightsError, match="a fresh download failed too.*cannot be downloaded"):
        fetch_checked(TAG, ENTRY, verify)


def test_what_is_cached_is_looked_for_without_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked, **options: str(tmp_path))
    assert hub.find_cached(ENTRY) == Path(tmp_path)
    assert hub.find_cached({**ENTRY, "repository": None}) is None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked, **options: None)
    assert hub.find_cached(ENTRY) is None


class Api:
    """Simulate a Hub in memory with the interface of huggingface_hub's client."""

    private, keep = True, staticmethod(lambda content: content)

    def __init__(self, **options):
        self.options, self.kept = options, {}

    def repo_exists(self, repository):
        return False

    def create_repo(self, repository, private, exist_ok):
        assert exist_ok

    def model_info(self, repository):
        return SimpleNamespace(private=self.private)

    def create_commit(self, repository, operations, commit_message):
        for operation in operations:
            with operation.as_file() as file:
                self.kept[operation.path_in_repo] = self.keep(file.read())
        return SimpleNamespace(oid="a" * 40)

    def hf_hub_download(self, repository, name, revision, cache_dir):
        path = Path(cache_dir) / name
        path.write_bytes(self.kept[name])
        return str(path)


@pytest.fixture
def released(tmp_path):
    """Make a tag's release of a file and a text."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    entry = {**ENTRY, "sha256": hashlib.sha256(b"weights").hexdigest()}
    return Release({"model.safetensors": tmp_path / "model.safetensors", "README.md": b"# mine"}, TAG, entry)


def test_what_is_uploaded_is_read_back(released, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert upload(released, "me/x", private=True, token="hf_writer\n") == ("a" * 40, False)
    monkeypatch.setattr(Api, "keep", staticmethod(lambda content: content[:-1]))
    with pytest.raises(WeightsError, match="me/x: model.safetensors of commit a+ is not what was uploaded"):
        upload(released, "me/x")


def test_other_bytes_than_the_manifests_are_no_release(released, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    released.entry["sha256"] = "0" * 64
    with pytest.raises(WeightsError, match="model.safetensors .*not what was uploaded"):
        upload(released, "me/x")


def test_a_public_repository_is_not_taken_for_a_private_one(released, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "private", False)
    upload(released, "me/x")
    with pytest.raises(WeightsError, match="me/x: expected a private repository, found a public"):
        upload(released, "me/x", private=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (made(errors.HfHubHTTPError, 403), "answered 403.*may write there"),
        (made(errors.OfflineModeIsEnabled), "HF_HUB_OFFLINE forbids uploads"),
        (ConnectionError("reset"), "reset$"),
    ],
    ids=["403", "offline", "network"],
)
def test_uploads_that_fail(released, monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "create_commit", refuse)
    with pytest.raises(WeightsError, match=f"me/x: cannot be published: .*{said}"):
        upload(released, "me/x")
