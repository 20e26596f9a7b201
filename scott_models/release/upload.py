"""From a run, or a model's folder, to a repository on the Hugging Face Hub that is read back before it counts."""

import hashlib
import io
import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.sources import load_image
from ..errors import UserError, WeightsError
from ..pretrain.recipe import Recipe
from ..weights import hub
from ..weights.entries import (
    PACKAGE,
    PATH,
    RULES,
    TAG,
    Entry,
    get_entry,
    manifest,
    read_entries,
    validate_entry,
    write_entry,
)
from ..weights.files import verify
from .card import PICTURE, make_card
from .entry import check_entry, is_pretraining, load_tensors, make_entry, name_start

LAYOUT = ("config.json", "model.safetensors")  # what timm and transformers read
CHECKOUTS = PATH if PATH.parent != PACKAGE else None  # the manifest of an installed package is nobody's to change


@dataclass(frozen=True)
class Release:
    """What a repository is to hold.

    Attributes:
        files: name in the repository -> the file, or its content.
        tag, entry: what the manifest will say; None of a model that is no encoder from pretraining.
    """

    files: dict[str, Path | bytes]
    tag: str | None
    entry: Entry | None

    def content(self, name: str) -> bytes:
        file = self.files[name]
        return file.read_bytes() if isinstance(file, Path) else file


def prepare(source: str | Path, repository: str, *, tag: str | None = None, **facts: Any) -> Release:
    """Everything that `publish` uploads, made and checked without a network.

    Args:
        source: a run of pretraining that has ended, a release's folder (named as its tag), or a model in timm's layout.
        repository: organisation/name.
        tag: by default the folder's of a release; of a run the repository's name, with the model's in front.
        facts: as `entry_of_run` takes them; and `picture`, a file for the card of a run, as `scott pca` draws one.

    Raises:
        WeightsError: a source that is none of these, or damaged; facts that are missing or have no use.
    """
    if not re.fullmatch(RULES["repository"]["pattern"], repository):
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
            raise WeightsError(f"tag: expected one of {recipe.model.name}, whose weights these are, got {tag}")
        if not facts.get("license"):
            raise WeightsError(f"{source}: expected the license of the weights, e.g. --license apache-2.0, got none")
        if picture := facts.pop("picture", None):
            files[PICTURE] = encode_webp(Path(picture))
        entry = validate_entry(tag, make_entry(run, **{name: value for name, value in facts.items() if value}))
        files["recipe.toml"] = recipe.changed("model", init=name_start(recipe)).to_toml().encode()
        files["README.md"] = make_card(tag, entry, f"hf-hub:{repository}", picture=PICTURE in files).encode()
    elif folder.resolve().name in manifest():
        tag = _find_only(tag, folder.resolve().name)
        _refuse(facts, "a released tag, whose entry has them")
        entry = get_entry(tag)
        verify(folder / entry["file"], tag, entry, "a release is published as it was measured")
        check_entry(folder, tag.split(".")[0], entry)
        if (folder / PICTURE).is_file():
            files[PICTURE] = folder / PICTURE
        files["README.md"] = make_card(tag, entry, picture=PICTURE in files).encode()
    if entry:
        return Release(files, tag, entry)
    _refuse({**facts, "tag": tag}, "a folder that is no run of pretraining; say it in its README.md")
    readme = folder / "README.md"
    if not readme.is_file():
        raise WeightsError(f"{readme}: expected a model card, for the Hub and its readers, found none")
    return Release({**files, "README.md": readme}, None, None)


@dataclass(frozen=True)
class Published:
    """What became of a release.

    Attributes:
        revision: the commit, 40 hexadecimal digits; None of a dry run.
        existed: whether the repository was there before; a dry run does not ask.
        manifest: the file that has the entry now, or would have it.
    """

    release: Release
    repository: str
    revision: str | None
    manifest: Path | None
    existed: bool = False

    def facts(self) -> dict[str, Any]:
        """For other programs."""
        sizes = {name: len(self.release.content(name)) for name in self.release.files}
        facts = {"repository": self.repository, "revision": self.revision, "existed": self.existed, "bytes": sizes}
        return {**facts, "tag": self.release.tag, "entry": self.release.entry, "manifest": self.manifest}

    def __str__(self) -> str:
        release = self.release
        if self.revision:
            lines = [f"{self.repository}: published and read back, commit {self.revision}"]
            if self.existed:
                lines += ["the repository existed already: its files of these names are replaced, others stay"]
        else:
            sizes = [f"  {name}: {len(release.content(name)):,} bytes" for name in release.files]
            lines = [f"{self.repository} would hold, in one commit:", *sizes, ""]
            texts = [name for name in release.files if name.endswith((".json", ".md", ".toml"))]
            lines += [f"{name} would be:\n\n{release.content(name).decode()}" for name in texts]
        if release.entry:
            where = self.manifest or "a manifest (none was named: --manifest)"
            says = "says" if self.revision and self.manifest else "would say"
            lines += [f"{where} {says} of {release.tag}:", json.dumps(release.entry, indent=2)]
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
    """Make a release, upload it, read it back, and write the commit with the file's sha256 into a manifest.

    Args:
        source, repository, tag, facts: as `prepare` takes them.
        manifest_file: by default the checkout's weights_manifest.json; none if there is no checkout.
        private: whether a new repository is.
        dry_run: only make it.
        token: one that may write; by default what `hf auth login` stored, or $HF_TOKEN.

    Raises:
        WeightsError: as `prepare` and `upload`.
    """
    release = prepare(source, repository, tag=tag, **facts)
    file = Path(manifest_file) if manifest_file else CHECKOUTS
    if release.entry and release.tag and file:
        known = read_entries(file).get(release.tag)
        if known is not None and validate_entry(release.tag, known)["sha256"] != release.entry["sha256"]:
            raise WeightsError(
                f"{file}: has other weights of the name {release.tag} already; choose another --tag, or take them out"
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
        except OSError as error:
            raise WeightsError(
                f"{repository}: published as commit {revision}, but {file} cannot be written ({error})"
            ) from error
    return Published(release, repository, revision, file, existed)


def upload(release: Release, repository: str, *, private: bool = False, token: str | None = None) -> tuple[str, bool]:
    """Upload in one commit, download that commit again and compare.

    Returns:
        The commit's 40 hexadecimal digits, and whether the repository was there before.

    Raises:
        WeightsError: the Hub refuses, cannot be reached, or gives back other bytes.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=hub.check_token(token), library_name="scott_models")
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(file) if isinstance(file, Path) else file)
        for name, file in release.files.items()
    ]
    try:
        existed = api.repo_exists(repository)
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: as the organisation has it
        if private and not api.model_info(repository).private:
            raise WeightsError(
                f"{repository}: expected a private repository, found a public one; make it private first"
            )
        revision = api.create_commit(repository, operations, commit_message=release.tag or "Add model").oid
        with tempfile.TemporaryDirectory() as cache:
            for name in release.files:
                content = Path(api.hf_hub_download(repository, name, revision=revision, cache_dir=cache)).read_bytes()
                promised = release.entry["sha256"] if release.entry and name == release.entry["file"] else None
                found = hashlib.sha256(content).hexdigest()
                if content != release.content(name) or promised not in (None, found):
                    raise WeightsError(f"{repository}: {name} of commit {revision} is not what was uploaded; try again")
    except UserError:
        raise
    except Exception as error:  # the client has errors of its own, its HTTP library's, and the system's
        raise WeightsError(f"{repository}: cannot be published: {_explain(error)}") from error
    return revision, existed


def encode_webp(picture: Path) -> bytes:
    """The same picture in the format that a card shows.

    Raises:
        DataError: a file that is no picture.
    """
    buffer = io.BytesIO()
    load_image(picture).save(buffer, "webp", quality=85)
    return buffer.getvalue()


def choose_tag(architecture: str, repository: str) -> str:
    """("scott_3_16", "me/My-Birds") -> "scott_3_16.my_birds"; a name that is a tag of the model already stays."""
    name = repository.rsplit("/", maxsplit=1)[-1]
    if name.startswith(architecture + ".") and re.fullmatch(TAG, name):
        return name
    return f"{architecture}.{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}"


def _check_loads(folder: Path) -> None:
    """timm finds every weight it needs in the folder, and nothing else."""
    import timm

    load_tensors(folder / "model.safetensors")
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm, safetensors and torch have no common error for "unknown", "damaged", "foreign"
        raise WeightsError(f"{folder}: cannot be loaded by timm: {error}") from error


def _find_only(given: str | None, tag: str) -> str:
    if given not in (None, tag):
        raise WeightsError(f"tag: expected {tag}, the folder's, got {given}")
    return tag


def _refuse(facts: dict[str, Any], of: str) -> None:
    if given := [name for name, value in facts.items() if value]:
        raise WeightsError(f"{', '.join(given)}: of no use for {of}; leave that out")


def _explain(error: BaseException) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in hub.iterate_causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids it; unset that"
        if code := hub.get_status(cause):
            return f"the Hub answered {code}; {hub.LOG_IN}, with a token that may write there"
    return hub.shorten(error)
