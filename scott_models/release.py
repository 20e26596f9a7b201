"""What a release says of itself: a manifest entry from a run, and from the entry the model card.

The card is made from the entry alone, so that neither can say what the other does not.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from . import weights
from .errors import WeightsError
from .manifest import RULES, Entry
from .pretrain.recipe import TITLES, Recipe
from .pretrain.records import exported

PICTURE = "pca.webp"
SHOWN = f"""![Images; the first principal component of their patch features, the foreground it separates, and three
components of that as colours]({PICTURE})

Drawn by `scott pca`: the first principal component of the features of all patches, the foreground it separates, and
three components of the foreground as colours.

"""
METHODS = {
    "mimjepa": "MIM-JEPA (arXiv 2502.18056)",
    "splitmask": "SplitMask (arXiv 2112.10740)",
    "beit": "BEiT's objective (arXiv 2106.08254) with tokens made from images (arXiv 2112.10740)",
    "visreg": "VISReg (arXiv 2606.02572)",
    "visreg-sigreg": "LeJEPA's objective (arXiv 2511.08544)",
    "visreg-vicreg": "VICReg (arXiv 2105.04906)",
    "visreg-infonce": "InfoNCE between crops",
    "diet": "DIET (arXiv 2302.10260)",
}
POOLED = {name: title for name, title in TITLES.items() if name.startswith("mimjepa-")}
METHODS |= {name: f"{title} on pooled features (arXiv 2502.18056)" for name, title in POOLED.items()}
PAPER_EPOCHS, PAPER_PIXELS = 300, 224
MOST_CHANGES = 3  # of a recipe that still goes by its name
DTYPES = RULES["dtype"]["enum"]
OWN_ARGS = ("img_size", "in_chans", "use_mask_token")  # of weights, which a tag's entry and file tell of
# How the name of a score ends -> what was scored; the model's own have no ending.
SCORED = {
    "": "these weights, {size} px",
    "_random": "random weights, {size} px",
    "_start": "the weights training started from, {size} px",
    "_224": "these weights, 224 px",
    "_224_random": "random weights, 224 px",
    "_context": "the context encoder of the same run, {size} px",
}
PROBES = {"knn": "kNN", "ridge": "ridge", "linear": "linear", "attentive": "attentive"}
MONITORED = (
    "watched while training: frozen average-pooled features of at most {images} of the run's own images, {scored}; "
    "kNN: majority of 10 by cosine; ridge: standardised features, strength by leave-one-out; top-1 %, last epoch"
)
HELD_OUT, ON_TEST = "of each class one of five held out to be scored", "those of the test split scored"


def is_pretraining(folder: Path) -> bool:
    """Whether a folder is a run of `scott pretrain`; one of `scott finetune` is not."""
    recipe = folder / "recipe.toml"
    try:
        return recipe.is_file() and "mask" in tomllib.loads(recipe.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def entry_of_run(
    run: Path,
    *,
    license: str,
    data: str = "",
    data_terms: str = "their terms are not stated",
    scores: Path | None = None,
) -> Entry:
    """The manifest's entry of a finished run of pretraining, not yet published.

    Args:
        license: of the weights, an SPDX identifier in lower case.
        data: what it was trained on, in words; by default how many images of which sources, by their last names.
        scores: what `scott probe --json` printed of this run; by default what the run's monitor measured.

    Raises:
        WeightsError: a run without an export, or with one that is not its recipe's; damaged records; `scores` that are
            not the probe's.
    """
    recipe = Recipe.load(run / "recipe.toml")
    file = run / "export" / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{run}: expected a run that has ended, found no {file}; go on with it by --resume")
    with weights.reading(run / "environment.json", "what pretraining wrote") as path:
        start = json.loads(path.read_text())[-1]
        names = list(dict.fromkeys(source_name(str(source)) for source in start["data"]))
        data = data or f"{start['images']:,} images of {', '.join(names)}"
        export = exported(start)
        hardware = start["gpu"] or f"{start['cpus']} CPU cores"
        versions = {name: start["packages"][name] for name in ("torch", "timm", "torchvision", "scott_models")}
    with weights.reading(run / "metrics.jsonl", "what pretraining wrote") as path:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [line["step"] for line in lines if "loss" in line][-1]
        minutes = minutes_of(lines, recipe.optim.batch_size)
        measured, protocol = watched(lines, recipe)
    if scores:
        measured, protocol = probed(scores, run, recipe.model.img_size)
    entry: Entry = {
        "repository": None,
        "revision": None,
        "file": file.name,
        "sha256": weights.sha256(file),
        "bytes": file.stat().st_size,
        "dtype": dtype_of(file),
        "encoder": export,
        "input_size": [3, recipe.model.img_size, recipe.model.img_size],
        "data": data,
        "datasets": sorted({name.lower() for name in names}),
        "data_terms": data_terms,
        "license": license,
        "recipe": name_of(recipe) + (f", from {start_of(recipe)}" if recipe.model.init else ""),
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
    check_told(file.parent, recipe.model.name, entry)
    return entry


def check_told(folder: Path, model: str, entry: Entry) -> None:
    """What an entry says of a model's weights is so by their configuration, and its name and head alone build it.

    Raises:
        WeightsError: another architecture, type or size, another head or other classes; settings that no entry holds,
            such as the number of heads.
    """
    with weights.reading(folder / "config.json", "the configuration of an export") as path:
        config = json.loads(path.read_text())
        found = {"architecture": config["architecture"], "input_size": config["pretrained_cfg"]["input_size"]}
        found |= {"dtype": dtype_of(folder / entry["file"]), "label_names": config.get("label_names", [])}
        says = {"architecture": model, **{name: entry.get(name, []) for name in ("input_size", "dtype", "label_names")}}
        if wrong := {name: value for name, value in says.items() if value != found[name]}:
            raise WeightsError(
                f"{folder}: expected what its entry says, {wrong}, found { ({n: found[n] for n in wrong}) }"
            )
        own = weights.registered_args(model, entry.get("head"))
        args = {name: value for name, value in config.get("model_args", {}).items() if name not in OWN_ARGS}
        if other := {name: value for name, value in args.items() if value != own.get(name)}:
            raise WeightsError(
                f"{folder}: expected the settings of {model}, { ({n: own.get(n) for n in other}) }, which a tag means, "
                f"found {other}; copy this folder elsewhere, add a README.md, and publish that, for hf-hub:"
            )


def source_name(source: str) -> str:
    """What a source of images is called: never where it is on somebody's disk.

    "/data/photos" and "/data/photos/train" -> "photos"; "flowers102:downloads" -> "flowers102"; "hf:org/name" ->
    "org/name", or of a saved data set's folder its last name.
    """
    kind, colon, rest = source.partition(":")
    if colon and kind != "hf":
        return kind
    if colon and len(rest.split("/")) <= 2 and not Path(rest).exists():
        return rest
    parts = [part for part in (rest or source).split("/") if part not in ("", ".", "..")]
    return next((part for part in reversed(parts) if part not in ("train", "val", "test")), "images")


def start_of(recipe: Recipe) -> str:
    """What a run started from, without where that is; empty for random weights."""
    return Path(recipe.model.init.removeprefix("local-dir:")).name


def name_of(recipe: Recipe) -> str:
    """The package's own recipe that a run was made with, and up to three changes; "recipe.toml" where it was others."""
    same_precision = [f"run.precision={recipe.run.precision}"]  # which "auto" chose
    settings = recipe.flat()
    changes: dict[str, list[str]] = {}
    for path in sorted(Recipe.folder.glob("*.toml")):
        differences = recipe.differences(Recipe.load(path, same_precision))
        names = (line.split(":")[0] for line in differences)
        changes[path.stem] = [f"{name}={settings[name]}" for name in names if name != "model.init"]
    name = min(changes, key=lambda name: len(changes[name]))
    return " ".join([name, *changes[name]]) if len(changes[name]) <= MOST_CHANGES else "recipe.toml"


def minutes_of(lines: Sequence[dict[str, Any]], batch: int) -> int:
    """Time spent on updates, rounded."""
    return round(seconds_of(lines, batch) / 60)


def seconds_of(lines: Sequence[dict[str, Any]], batch: int) -> float:
    """The same, from the lines of metrics.jsonl."""
    lines = [line for line in lines if "loss" in line]
    spans = zip([0, *(line["step"] for line in lines)], lines)
    return sum((line["step"] - before) * batch / line["images_per_second"] for before, line in spans)


def watched(lines: Sequence[dict[str, Any]], recipe: Recipe) -> tuple[dict[str, float], str]:
    """Scores and protocol of a run's monitor, its last look beside its first; none without labels."""
    looks = [line["monitor"] for line in lines if "monitor" in line]
    scores: dict[str, float] = {}
    for look, ending in zip(looks[-1:] + looks[:1], ("", "_start" if recipe.model.init else "_random")):
        scores |= {probe + ending: round(look[probe], 1) for probe in ("knn", "ridge") if look[probe] is not None}
    scored = ON_TEST if recipe.monitor.test else HELD_OUT
    return scores, MONITORED.format(images=recipe.monitor.images, scored=scored) if scores else "not measured"


def probed(path: Path, run: Path, img_size: int) -> tuple[dict[str, float], str]:
    """Scores and protocol of a report that `scott probe --json` printed of a run.

    Raises:
        WeightsError: another file, or a report of another model or size.
    """
    with weights.reading(path, "what `scott probe --json` prints"):
        report = json.loads(path.read_text())
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


def tensors_of(file: Path) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        WeightsError: a file that is none, or has numbers that are none.
    """
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors has one class of error, which its stubs do not name
        raise WeightsError(f"{file}: expected a whole safetensors file ({error})") from error
    if names := weights.infinite(tensors):
        raise WeightsError(f"{file}: expected finite numbers, found others in {names[:3]}; the training failed")
    return tensors


def dtype_of(file: Path) -> str:
    """The type of all tensors of a safetensors file, in torch's words.

    Raises:
        WeightsError: as `tensors_of`, or several types.
    """
    found = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors_of(file).values()})
    if len(found) != 1 or found[0] not in DTYPES:
        raise WeightsError(f"{file}: expected tensors of one type, of {DTYPES}, found {found}")
    return found[0]


def card(tag: str, entry: Entry, name: str | None = None, *, picture: bool = False) -> str:
    """The model card, README.md of the release, with the metadata the Hub reads.

    Args:
        name: what timm is to be asked for; by default the tag, which is for those who have the manifest.
        picture: whether PICTURE is beside the card.
    """
    channels, _, size = entry["input_size"]
    shorter = entry["epochs"] < PAPER_EPOCHS or size < PAPER_PIXELS
    seen = " The test images were seen in pretraining, without labels." if "transductive" in entry["data"] else ""
    versions = ", ".join(f"{name} {entry['versions'][name]}" for name in ("torch", "timm"))
    method = METHODS[entry.get("objective", "mimjepa")]
    epochs = f"{entry['epochs']:g} epoch{'' if entry['epochs'] == 1 else 's'}"
    classes = entry.get("label_names")
    made = f" An {entry['head']} probe on top names {len(classes)} classes." if classes else ""
    gives = f"logits (B, {len(classes)}), of model.pretrained_cfg['label_names']" if classes else "(B, 384)"
    return f"""---
{metadata(tag, entry)}
---

# {tag}

A SCOTT vision transformer pretrained without labels by {method}. These are weights of an independent
implementation, not the paper's{"; the run was shorter or its images smaller than there" if shorter else ""}.{made}

```python
import scott_models, timm

model = timm.create_model("{name or tag}", pretrained=True)
model.eval()(images)  # (B, {channels}, {size}, {size}) -> {gives}
```

{SHOWN if picture else ""}{table(entry)}

- **Data:** {entry["data"]}; {entry["data_terms"]}.{seen}
- **Training:** recipe `{entry["recipe"]}`, {epochs}, {entry["images_seen"]:,} images, seed
  {entry["seed"]}, {entry["minutes"]} minutes on {entry["hardware"]}; {versions}.
- **File:** `{entry["file"]}`, the {entry["encoder"]} encoder in {entry["dtype"]}, {entry["bytes"]:,} bytes, sha256
  `{entry["sha256"]}`.
- **Use:** features for small sets of such images, a start for your own pretraining, an example of the method. Not for
  decisions about people; no match for models pretrained on large data sets.
"""


def table(entry: Entry) -> str:
    """The scores, a row for each thing that was scored, and how."""
    scores = entry["scores"]
    probes = [probe for probe in PROBES if any(name.split("_")[0] == probe for name in scores)]
    if not probes:
        return "Its features have not been scored."
    rows = [
        [words.format(size=entry["input_size"][-1]), *(str(scores.get(probe + ending, "-")) for probe in probes)]
        for ending, words in SCORED.items()
        if any(probe + ending in scores for probe in probes)
    ]
    rows[0] = [f"**{cell}**" for cell in rows[0]]
    head = ["frozen features, top-1 %", *(PROBES[probe] for probe in probes)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines).replace(" --- ", "---") + f"\n\nProtocol: {entry['protocol']}."


def metadata(tag: str, entry: Entry) -> str:
    """The card's YAML, with the scores as the Hub's `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=entry["datasets"][0],
            dataset_name=entry["data"].split(", ")[0],
            metric_type="accuracy",
            metric_name=f"{PROBES[probe]} of frozen features, top-1 %",
            metric_value=entry["scores"][probe],
        )
        for probe in PROBES
        if probe in entry["scores"]
    ]
    return ModelCardData(
        license=entry["license"],
        library_name="timm",
        pipeline_tag="image-classification" if "head" in entry else "image-feature-extraction",
        tags=["timm", "self-supervised", "scott"],
        datasets=entry["datasets"],
        model_name=tag if results else None,
        eval_results=results or None,
    ).to_yaml()
