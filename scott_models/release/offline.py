"""Download weights in advance, for a machine without a network."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import timm
from safetensors import safe_open

from .. import weights
from ..errors import WeightsError
from ..models.scott import MODELS
from ..weights import files, hub, local_dir, timm_configs
from ..weights.entries import Entry, get_entry
from ..writing import explain_failure, write_text_whole, written_whole
from .card import PICTURE, make_card


def find_tag(name: str) -> str:
    """Return the default tag of a model; return any other name unchanged."""
    return next(iter(timm_configs.list_tags(name)), name)


def download(tag: str, folder: str | Path | None = None) -> Path:
    """Return the verified weight file of a tag; with `folder`, write its release there: weights, config.json and card.

    Args:
        tag: e.g. "scott_3_16.mimjepa_flowers102_cpu".
        folder: a value for $SCOTT_MODELS_DIR, here or on another machine. Weights in it are verified and not downloaded
            again; damaged weights are replaced.

    Raises:
        WeightsError: the tag is unknown, or its weights were not found, cannot be downloaded or are damaged.
        WritingError: `folder` cannot be written to.
    """
    entry = get_entry(tag)
    if folder is None:
        return weights.resolve(tag)
    if (model := tag.split(".", maxsplit=1)[0]) not in MODELS:
        raise WeightsError(f"{tag}: expected a tag of one of {MODELS}, found a tag of {model}; update scott_models")
    try:
        target = Path(folder).expanduser() / tag / entry["file"]
    except RuntimeError:
        raise WeightsError(f"{folder}: expected a folder, found ~ of a user without a home; write its path") from None
    with kept_if_whole(target.parent):
        if not files.is_released(target, entry):
            with explain_failure(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
                _obtain(tag, entry, Path(partial)).replace(target)
        _write_config(model, entry, target)
        pictures = [folder / tag / PICTURE for folder in files.list_folders()]
        if picture := next((path for path in pictures if os.path.isfile(path)), None):
            content = picture.read_bytes()
            with written_whole(target.with_name(PICTURE)) as beside:
                beside.write_bytes(content)
        write_text_whole(target.with_name("README.md"), make_card(tag, entry, picture=picture is not None))
    return target


@contextmanager
def kept_if_whole(folder: Path) -> Iterator[None]:
    """Make a folder to fill in this context. After an error, remove the folder and an empty parent if they are new."""
    new, new_parent = not folder.exists(), not folder.parent.exists()
    with explain_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if new_parent:
            with suppress(OSError):  # another process has put something there
                folder.parent.rmdir()
        raise


def _obtain(tag: str, entry: Entry, partial: Path) -> Path:
    """Return a verified file in the folder `partial`: a copy of a local file, or else a download from the Hub."""
    here = [folder / tag / entry["file"] for folder in files.list_folders()]
    here += [path] if (path := hub.find_cached(entry)) else []
    for path in here:
        if files.is_released(path, entry):
            copy = Path(shutil.copyfile(path, partial / entry["file"]))
            return files.verify(copy, tag, entry, "try again")
    if entry["repository"] is None:
        return weights.resolve(tag)  # raises: no folder has the file
    return files.fetch_checked(tag, entry, files.verify, cache_dir=partial).resolve()


def _write_config(model: str, entry: Entry, file: Path) -> None:
    with safe_open(file, framework="pt") as tensors:
        has_mask_token = "mask_token" in tensors.keys()  # noqa: SIM118 -- not a dictionary
    channels, *size = entry["input_size"]
    args = {
        "in_chans": channels,
        "img_size": size,
        "use_mask_token": has_mask_token,
        **timm_configs.get_head_args(entry),
    }
    made = timm.create_model(model, device="meta", **args)
    with written_whole(file.with_name("config.json")) as beside:
        local_dir.write_config(made, beside, local_dir.get_model_args(made), entry.get("label_names", ()))
