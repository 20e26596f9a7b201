"""Make the manifest entry of a pretraining run, and check that an entry describes its weights.

The model card is made from the entry alone, so the card and the entry cannot contradict each other.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import WeightsError
from ..pretrain.recipe import Recipe
from ..training.run_folder import count_minutes, find_exported_encoder
from ..training.settings import read_toml
from ..weights import files, local_dir, timm_configs
from ..weights.entries import Entry, read_rules
from .card import PAPER_PIXELS

MOST_CHANGES = 3  # a recipe with more changes is called "recipe.toml"
OWN_ARGS = ("img_size", "in_chans", "use_mask_token")  # arguments known from a tag's entry and file
MONITORED = (
    "measured during training: frozen average-pooled features of at most {images} of the run's own images, {scored}; "
    "kNN: majority of 10 by cosine; ridge: standardised features, strength by leave-one-out; top-1 %, last epoch"
)
HELD_OUT, ON_TEST = "scored on a held-out fifth of each class", "scored on those of the test split"


def is_pretraining(folder: Path) -> bool:
    """Return True if a folder is a run of `scott pretrain`, and False e.g. for a run of `scott finetune`."""
    recipe = folder / "recipe.toml"
    try:
        return recipe.is_file() and "mask" in read_toml(recipe)
    except tomllib.TOMLDecodeError:
        return False


def make_entry(
    run: Path,
    *,
    license: str,
    data: str = "",
    data_terms: str = "their terms are not stated",
    scores: Path | None = None,
) -> Entry:
    """Make the manifest entry of a finished pretraining run, not yet published.

    Args:
        license: the license of the weights, an SPDX identifier in lower case.
        data: the training data in words; by default the number of images and the names of their sources.
        data_terms: the terms of use of the data in words.
        scores: a file with the output of `scott probe --json` for this run; by default the scores of the run's monitor.

    Raises:
        WeightsError: the run has no export, the export does not fit the recipe, the run's records are damaged, or
            `scores` is not a report of `scott probe` on this run.
    """
    recipe = Recipe.load(run / "recipe.toml")
    file = run / "export" / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{run}: expected a run that has ended, found no {file}; continue the run with --resume")
    with local_dir.read_record(run / "environment.json", "what pretraining wrote") as path:
        start = json.loads(path.read_text(encoding="utf-8"))[-1]
        names = list(dict.fromkeys(name_source(str(source)) for source in start["data"]))
        data = data or f"{start['images']:,} images of {', '.join(names)}"
        export = find_exported_encoder(start)
        hardware = start["gpu"] or f"{start['cpus']} CPU cores"
        versions = {name: start["packages"][name] for name in ("torch", "timm", "torchvision", "scott_models")}
    with local_dir.read_record(run / "metrics.jsonl", "what pretraining wrote") as path:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps = [line["step"] for line in lines if "loss" in line][-1]
        minutes = count_minutes(lines, recipe.optim.batch_size)
        measured, protocol = read_monitor_scores(lines, recipe)
    if scores:
        measured, protocol = read_probe_scores(scores, run, recipe.model.img_size)
    entry: Entry = {
        "repository": None,
        "revision": None,
        "file": file.name,
        "sha256": files.sha256(file),
        "bytes": file.stat().st_size,
        "dtype": find_dtype(file),
        "encoder": export,
        "input_size": [3, recipe.model.img_size, recipe.model.img_size],
        "data": data,
        "datasets": sorted({name.lower() for name in names}),
        "data_terms": data_terms,
        "license": license,
        "recipe": name_recipe(recipe) + (f", from {name_start(recipe)}" if recipe.model.init else ""),
        "epochs": round(lines[-1]["epoch"], 2) if recipe.optim.finish_updates else recipe.optim.epochs,
        "images_seen": steps * recipe.optim.batch_size,
        "seed": recipe.run.seed,
        "hardware": hardware,
        "minutes": minutes,
        "versions": versions,
        "scores": measured,
        "protocol": protocol,
    }
    if recipe.objective.full_name != "mimjepa":
        entry["objective"] = recipe.objective.full_name
    check_entry(file.parent, recipe.model.name, entry)
    return entry


def check_entry(folder: Path, model: str, entry: Entry) -> None:
    """Check an entry against the exported model in a folder.

    The entry must agree with the model's configuration. The model's name and its kind of head must be enough to build
    the model.

    Raises:
        WeightsError: the architecture, type, size, head or classes differ, or the model has settings that an entry
            cannot hold, such as another number of attention heads.
    """
    with local_dir.read_record(folder / "config.json", "the configuration of an export") as path:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = {"architecture": config["architecture"], "input_size": config["pretrained_cfg"]["input_size"]}
        found |= {"dtype": find_dtype(folder / entry["file"]), "label_names": config.get("label_names", [])}
        stated = {
            "architecture": model,
            **{name: entry.get(name, []) for name in ("input_size", "dtype", "label_names")},
        }
        if wrong := {name: value for name, value in stated.items() if value != found[name]}:
            raise WeightsError(
                f"{folder}: expected what its entry says, {wrong}, found { ({n: found[n] for n in wrong}) }"
            )
        own = timm_configs.get_registered_args(model, entry.get("head"))
        args = {name: value for name, value in config.get("model_args", {}).items() if name not in OWN_ARGS}
        if other := {name: value for name, value in args.items() if value != own.get(name)}:
            raise WeightsError(
                f"{folder}: expected the settings of {model}, { ({n: own.get(n) for n in other}) }, found {other}; "
                "an entry cannot hold these: copy the folder to another name, add a README.md, publish it for hf-hub:"
            )


def name_source(source: str) -> str:
    """Return the name of a source of images without its location on the disk.

    "/data/photos" and "/data/photos/train" -> "photos"; "flowers102:downloads" -> "flowers102"; "hf:org/name" ->
    "org/name"; "hf:/data/saved", a folder with a saved data set -> "saved".
    """
    kind, colon, rest = source.partition(":")
    if colon and kind != "hf":
        return kind
    if colon and len(rest.split("/")) <= 2 and not Path(rest).exists():
        return rest
    parts = [part for part in (rest or source).split("/") if part not in ("", ".", "..")]
    return next((part for part in reversed(parts) if part not in ("train", "val", "test")), "images")


def name_start(recipe: Recipe) -> str:
    """Return the name of the weights that a run started from, without their location; empty for random weights."""
    return Path(recipe.model.init.removeprefix("local-dir:")).name


def name_recipe(recipe: Recipe) -> str:
    """Return the name of the package's closest recipe with up to three changes; "recipe.toml" if there are more."""
    same_precision = [f"run.precision={recipe.run.precision}"]  # what "auto" became is not a change
    settings = recipe.flat()
    changes: dict[str, list[str]] = {}
    for path in sorted(Recipe.folder.glob("*.toml")):
        differences = recipe.differences(Recipe.load(path, same_precision))
        names = (line.split(":")[0] for line in differences)
        changes[path.stem] = [f"{name}={settings[name]}" for name in names if name != "model.init"]
    name = min(changes, key=lambda name: len(changes[name]))
    return " ".join([name, *changes[name]]) if len(changes[name]) <= MOST_CHANGES else "recipe.toml"


def read_monitor_scores(lines: Sequence[dict[str, Any]], recipe: Recipe) -> tuple[dict[str, float], str]:
    """Return the scores and protocol of a run's monitor: its last look, and its first look as the control.

    The scores are empty without labels.
    """
    looks = [line["monitor"] for line in lines if "monitor" in line]
    scores: dict[str, float] = {}
    for look, ending in zip(looks[-1:] + looks[:1], ("", "_start" if recipe.model.init else "_random")):
        scores |= {probe + ending: round(look[probe], 1) for probe in ("knn", "ridge") if look[probe] is not None}
    scored = ON_TEST if recipe.monitor.test else HELD_OUT
    return scores, MONITORED.format(images=recipe.monitor.images, scored=scored) if scores else "not measured"


def read_probe_scores(path: Path, run: Path, img_size: int) -> tuple[dict[str, float], str]:
    """Read the scores and protocol from a report of `scott probe --json` on a run.

    Raises:
        WeightsError: the file is not such a report, or its model or image size is another.
    """
    with local_dir.read_record(path, "what `scott probe --json` prints"):
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = report["scores"]
        model, size, seeds = (rows[0][name] for name in ("model", "img_size", "seeds"))
        if Path(model.removeprefix("local-dir:")).resolve() not in (run.resolve(), run.resolve() / "export"):
            raise WeightsError(f"{path}: expected scores of {run}, found those of {model}")
        if size not in (img_size, PAPER_PIXELS):
            raise WeightsError(f"{path}: expected scores at {img_size} or {PAPER_PIXELS} px, found {size}")
        at = "" if size == img_size else f"_{PAPER_PIXELS}"
        scores = {
            row["probe"] + at + ("" if row["model"] == model else "_random"): round(row["top1"], 1) for row in rows
        }
        counts = f"{report['train']:,} images to train, {report['test']:,} to test"
        return scores, f"scott probe, protocol {report['protocol']}, {size} px, {counts}, seeds: {seeds}; top-1 %"


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file by name.

    Raises:
        WeightsError: the file is not a whole safetensors file, or contains NaN or infinity.
    """
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors' stubs do not name its class of errors
        raise WeightsError(f"{file}: expected a whole safetensors file ({error})") from error
    if names := local_dir.find_non_finite(tensors):
        raise WeightsError(f"{file}: expected finite numbers, found NaN or infinity in {names[:3]}; training failed")
    return tensors


def find_dtype(file: Path) -> str:
    """Return the type that all tensors of a safetensors file have, e.g. "bfloat16".

    Raises:
        WeightsError: as `load_tensors`; or the tensors have several types, or one that the manifest does not allow.
    """
    found = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in load_tensors(file).values()})
    known = read_rules()["dtype"]["enum"]
    if len(found) != 1 or found[0] not in known:
        raise WeightsError(f"{file}: expected tensors of one type out of {known}, found {found}")
    return found[0]
