"""Make the model card of a release from its manifest entry alone."""

from ..pretrain.recipe import TITLES
from ..weights.entries import Entry

PICTURE = "pca.webp"
SHOWN = f"""![Images; the first principal component of their patch features, the foreground it separates, and three
components of the foreground as colours]({PICTURE})

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
# Suffix of a score's name -> what was scored; scores of the model itself have no suffix.
SCORED = {
    "": "these weights, {size} px",
    "_random": "random weights, {size} px",
    "_start": "the weights training started from, {size} px",
    "_224": "these weights, 224 px",
    "_224_random": "random weights, 224 px",
    "_context": "the context encoder of the same run, {size} px",
}
PROBES = {"knn": "kNN", "ridge": "ridge", "linear": "linear", "attentive": "attentive"}


def make_card(tag: str, entry: Entry, name: str | None = None, *, picture: bool = False) -> str:
    """Make the model card, README.md of the release, with the metadata that the Hub reads.

    Args:
        name: the model's name for `timm.create_model`; by default the tag, which works only if the manifest has it.
        picture: whether the card shows PICTURE, which must be in the same folder.
    """
    channels, _, size = entry["input_size"]
    is_shorter = entry["epochs"] < PAPER_EPOCHS or size < PAPER_PIXELS
    shorter = "; the run was shorter or its images smaller than in the paper" if is_shorter else ""
    seen = " The test images were seen in pretraining, without labels." if "transductive" in entry["data"] else ""
    versions = ", ".join(f"{name} {entry['versions'][name]}" for name in ("torch", "timm"))
    method = METHODS[entry.get("objective", "mimjepa")]
    epochs = f"{entry['epochs']:g} epoch{'' if entry['epochs'] == 1 else 's'}"
    classes = entry.get("label_names")
    made = f" The {entry['head']} probe on top predicts {len(classes)} classes." if classes else ""
    gives = f"logits (B, {len(classes)}), named in model.pretrained_cfg['label_names']" if classes else "(B, 384)"
    return f"""---
{make_metadata(tag, entry)}
---

# {tag}

A SCOTT vision transformer pretrained without labels by {method}. These are weights of an independent
implementation, not the paper's{shorter}.{made}

```python
import scott_models, timm

model = timm.create_model("{name or tag}", pretrained=True)
model.eval()(images)  # (B, {channels}, {size}, {size}) -> {gives}
```

{SHOWN if picture else ""}{make_table(entry)}

- **Data:** {entry["data"]}; {entry["data_terms"]}.{seen}
- **Training:** recipe `{entry["recipe"]}`, {epochs}, {entry["images_seen"]:,} images, seed
  {entry["seed"]}, {entry["minutes"]} minutes on {entry["hardware"]}; {versions}.
- **File:** `{entry["file"]}`, the {entry["encoder"]} encoder in {entry["dtype"]}, {entry["bytes"]:,} bytes, sha256
  `{entry["sha256"]}`.
- **Use:** features for small sets of similar images, a starting point for your own pretraining, an example of the
  method. Not for decisions about people. Models pretrained on large data sets are better.
"""


def make_table(entry: Entry) -> str:
    """Make the table of scores, one row for each set of weights and image size, followed by the protocol."""
    scores = entry["scores"]
    probes = [probe for probe in PROBES if any(name.split("_")[0] == probe for name in scores)]
    if not probes:
        return "The features have not been scored."
    rows = [
        [words.format(size=entry["input_size"][-1]), *(str(scores.get(probe + ending, "-")) for probe in probes)]
        for ending, words in SCORED.items()
        if any(probe + ending in scores for probe in probes)
    ]
    rows[0] = [f"**{cell}**" for cell in rows[0]]
    head = ["frozen features, top-1 %", *(PROBES[probe] for probe in probes)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines).replace(" --- ", "---") + f"\n\nProtocol: {entry['protocol']}."


def make_metadata(tag: str, entry: Entry) -> str:
    """Make the card's YAML, with the scores as the Hub's `model-index`."""
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
