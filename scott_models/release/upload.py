"""Publish a run or a model's folder on the Hugging Face Hub, and verify the upload by reading it back."""

import hashlib
import io
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.images import load_image
from ..errors import UserError, WeightsError, WritingError
from ..pretrain.recipe import Recipe
from ..weights import hub
from ..weights.entries import (
    PACKAGE,
    PATH,
    TAG,
    Entry,
    get_entry,
    manifest,
    read_entries,
    read_rules,
    validate_entry,
    write_entry,
)
from ..weights.files import verify
from ..writing import to_json
from .card import PICTURE, make_card
from .entry import check_entry, is_pretraining, load_tensors, make_entry, name_start

LAYOUT = ("config.json", "model.safetensors")  # what timm and transformers read
CHECKOUTS = PATH if PATH.parent != PACKAGE else None  # an installed package's manifest is never changed


@dataclass(frozen=True)
class Release:
    """Hold the files of a repository before their upload.

    Attributes:
        files: name in the repository -> the path of a file, or its content.
        tag, entry: for the manifest; None for a model that has no manifest entry.
    """

    files: dict[str, Path | bytes]
    tag: str | None
    entry: Entry | None

    def content(self, name: str) -> bytes:
        file = self.files[name]
        return file.read_bytes() if isinstance(file, Path) else file


def prepare(source: str | Path, repository: str, *, tag: str | None = None, **facts: Any) -> Release:
    """Make and check everything that `publish` uploads, without a network.

    Args:
        source: a finished pretraining run, the folder of a release (named as its tag), or a model in timm's layout.
        repository: organisation/name.
        tag: by default the name of a release's folder; for a run, the model's name and the repository's name.
        facts: for a run, the arguments of `make_entry`, and `picture`, an image file for the card, e.g. by `scott pca`.

    Raises:
        WeightsError: the source is another kind of folder or is damaged; facts are missing or cannot be set.
        DataError: `picture` is not an image.
    """
    if not re.fullmatch(read_rules()["repository"]["pattern"], repository):
        raise WeightsError(f"--repo-id: expected organisation/name, got {repository!r}")
    folder = Path(source)
    run = folder.resolve().parent if folder.resolve().name == "export" else folder
    if (folder / "export").is_dir():
        folder = folder / "export"
    if missing := [name for name in LAYOUT if not (folder / name).is_file()]:
        raise WeightsError(f"{source}: expected a run that has ended or a folder with {LAYOUT}, found no {missing}")
    _check_loads(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in LAYOUT}
    entry: Entry | None = None
    if is_pretraining(run):
        recipe = Recipe.load(run / "recipe.toml")
        tag = tag or choose_tag(recipe.model.name, repository)
        if tag.split(".")[0] != recipe.model.name:
            raise WeightsError(f"tag: expected a tag of {recipe.model.name}, the model of these weights, got {tag}")
        if not facts.get("license"):
            raise WeightsError(f"{source}: expected the license of the weights, e.g. --license apache-2.0, got none")
        if picture := facts.pop("picture", None):
            files[PICTURE] = encode_webp(Path(picture))
        entry = validate_entry(tag, make_entry(run, **{name: value for name, value in facts.items() if value}))
        files["recipe.toml"] = recipe.changed("model", init=name_start(recipe)).to_toml().encode(errors="replace")
        card = make_card(tag, entry, f"hf-hub:{repository}", picture=PICTURE in files)
        files["README.md"] = card.encode(errors="backslashreplace")
    elif folder.resolve().name in manifest():
        tag = _find_only(tag, folder.resolve().name)
        _refuse(facts, "a released tag, whose entry is used; leave the option out")
        entry = get_entry(tag)
        verify(folder / entry["file"], tag, entry, "a release is published as it was measured")
        check_entry(folder, tag.split(".")[0], entry)
        if (folder / PICTURE).is_file():
            files[PICTURE] = folder / PICTURE
        files["README.md"] = make_card(tag, entry, picture=PICTURE in files).encode()
    if entry:
        return Release(files, tag, entry)
    _refuse({**facts, "tag": tag}, "a folder that is not a pretraining run; use its README.md instead")
    readme = folder / "README.md"
    if not readme.is_file():
        raise WeightsError(f"{readme}: expected a model card, for the Hub and its readers, found none")
    return Release({**files, "README.md": readme}, None, None)


@dataclass(frozen=True)
class Published:
    """Describe the outcome of `publish`.

    Attributes:
        revision: the commit, 40 hexadecimal digits; None after a dry run.
        existed: whether the repository existed before; False after a dry run, which does not ask the Hub.
        manifest: the file that the entry was written to, or would be; None without such a file.
    """

    release: Release
    repository: str
    revision: str | None
    manifest: Path | None
    existed: bool = False

    def facts(self) -> dict[str, Any]:
        """Return the outcome as a dictionary, for other programs."""
        sizes = {name: len(self.release.content(name)) for name in self.release.files}
        facts = {"repository": self.repository, "revision": self.revision, "existed": self.existed, "bytes": sizes}
        return {**facts, "tag": self.release.tag, "entry": self.release.entry, "manifest": self.manifest}

    def __str__(self) -> str:
        release = self.release
        if self.revision:
            lines = [f"{self.repository}: published and read back, commit {self.revision}"]
            if self.existed:
                lines += ["the repository existed already: files with these names were replaced, other files were kept"]
        else:
            sizes = [f"  {name}: {len(release.content(name)):,} bytes" for name in release.files]
            lines = [f"{self.repository} would hold, in one commit:", *sizes, ""]
            texts = [name for name in release.files if name.endswith((".json", ".md", ".toml"))]
            lines += [f"{name} would be:\n\n{release.content(name).decode()}" for name in texts]
        if release.entry:
            where = self.manifest or "a manifest (name the file with --manifest)"
            holds = "holds" if self.revision and self.manifest else "would hold"
            lines += [f"{where} {holds} the entry of {release.tag}:", to_json(release.entry, indent=2)]
        return "\n".join(lines)


def publish(
    source: str | Path,
    repository: str,
    *,
    tag: str | None = None,
    manifest_file: str | Path | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    **facts: Any,
) -> Published:
    """Make a release, upload it, read it back, and write its entry with the commit into a manifest.

    Args:
        source, repository, tag, facts: as `prepare`.
        manifest_file: by default the checkout's weights_manifest.json; without a checkout, no manifest is written.
        private: whether the repository must be private.
        dry_run: make and check the release only, without an upload.
        token: a token with write access; by default what `hf auth login` stored, or $HF_TOKEN.

    Raises:
        WeightsError: as `prepare` and `upload`; the manifest has other weights under the tag, or cannot be written.
        DataError: as `prepare`.
    """
    release = prepare(source, repository, tag=tag, **facts)
    file = Path(manifest_file) if manifest_file else CHECKOUTS
    if release.entry and release.tag and file:
        known = read_entries(file).get(release.tag)
        if known is not None and validate_entry(release.tag, known)["sha256"] != release.entry["sha256"]:
            raise WeightsError(
                f"{file}: already has other weights named {release.tag}; choose another --tag, or remove the old entry"
            )
    if dry_run:
        return Published(release, repository, None, file)
    revision, existed = upload(release, repository, private=private, token=token)
    if (entry := release.entry) and (tag := release.tag):
        entry = {**entry, "repository": repository, "revision": revision}
        release = replace(release, entry=entry)
        try:
            if file:
                write_entry(file, tag, entry)
        except WritingError as error:
            raise WeightsError(f"{repository}: published as commit {revision}, but {error}") from error
    return Published(release, repository, revision, file, existed)


def upload(release: Release, repository: str, *, private: bool = False, token: str | None = None) -> tuple[str, bool]:
    """Upload a release in one commit, download the commit again and compare the files.

    Returns:
        The commit's 40 hexadecimal digits, and whether the repository existed before.

    Raises:
        WeightsError: the Hub refuses the upload, cannot be reached or returns other bytes; or the repository is public
            although `private` is set.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=hub.check_token(token), library_name="scott_models")
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file) if isinstance(file, Path) else file)
        for name, file in release.files.items()
    ]
    try:
        existed = api.repo_exists(repository)
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: the organisation's default
        if private and not api.model_info(repository).private:
            raise WeightsError(
                f"{repository}: expected a private repository, found a public one; make it private first"
            )
        revision = api.create_commit(repository, operations, commit_message=release.tag or "Add model").oid
        with tempfile.TemporaryDirectory() as cache:
            for name in release.files:
                content = Path(api.hf_hub_download(repository, name, revision=revision, cache_dir=cache)).read_bytes()
                expected = release.entry["sha256"] if release.entry and name == release.entry["file"] else None
                found = hashlib.sha256(content).hexdigest()
                if content != release.content(name) or expected not in (None, found):
                    raise WeightsError(f"{repository}: {name} of commit {revision} is not what was uploaded; try again")
    except UserError:
        raise
    except Exception as error:  # errors of the client, of its HTTP library and of the system
        raise WeightsError(f"{repository}: cannot be published: {_explain(error)}") from error
    return revision, existed


def encode_webp(picture: Path) -> bytes:
    """Encode an image file as WebP, the format of a card's picture.

    Raises:
        DataError: the file is not an image.
    """
    buffer = io.BytesIO()
    load_image(picture).save(buffer, "webp", quality=85)
    return buffer.getvalue()


def choose_tag(architecture: str, repository: str) -> str:
    """Make a tag from a repository's name: ("scott_3_16", "me/My-Birds") -> "scott_3_16.my_birds".

    A repository's name that is already a tag of the model is returned unchanged.
    """
    name = repository.rsplit("/", maxsplit=1)[-1]
    if name.startswith(architecture + ".") and re.fullmatch(TAG, name):
        return name
    return f"{architecture}.{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}"


def _check_loads(folder: Path) -> None:
    """Check that the folder holds all the weights that timm needs for the model, and no others."""
    import timm

    load_tensors(folder / "model.safetensors")
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm, safetensors and torch have no common class of errors
        raise WeightsError(f"{folder}: cannot be loaded by timm: {error}") from error


def _find_only(given: str | None, tag: str) -> str:
    if given not in (None, tag):
        raise WeightsError(f"tag: expected {tag}, the tag of this folder, got {given}")
    return tag


def _refuse(facts: dict[str, Any], source: str) -> None:
    if given := [name for name, value in facts.items() if value]:
        raise WeightsError(f"{', '.join(given)}: cannot be set for {source}")


def _explain(error: BaseException) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in hub.iterate_causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids uploads; unset it"
        if code := hub.get_status(cause):
            return f"the Hub answered {code}; {hub.LOG_IN}, with a token that may write there"
    return hub.shorten(error)
