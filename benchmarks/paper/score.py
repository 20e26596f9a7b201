"""Scores of a trained row's encoders, and the effect of rounding the weights to bfloat16."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rows import Row, Step
from torch import nn

from scott_models import weights
from scott_models.data.labelled import find_labelled
from scott_models.pretrain import Recipe
from scott_models.pretrain.build import build_objective
from scott_models.probes.classifiers import Accuracy, knn, ridge
from scott_models.probes.evaluate import HEADS, Kind, Protocol, probe
from scott_models.probes.features import load_model
from scott_models.probes.frozen import Frozen

CONTROL, CONTEXT = " (random weights)", " (context encoder)"


def score(row: Row, flowers: Path, step: Step, seed: int, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Score one encoder with one seed.

    Returns:
        `scores`; for the target also `train` and `test`, the numbers of images, and with seed 0 `rounding`, the effect
        of bfloat16 weights.
    """
    protocol: Protocol = "paper" if step == "paper" else "fast"
    if step == "paper":  # the paper's protocol is for trained heads only
        kinds = [kind for kind in kinds if kind in HEADS]
    with tempfile.TemporaryDirectory() as folder:
        name = str(row.run)
        if step == "context":
            name = f"local-dir:{weights.export(encoders(row.run)['context'], Path(folder) / 'context')}"
        report = probe(
            name,
            [flowers],
            [flowers],
            kinds=kinds,
            protocol=protocol,
            seeds=[seed],
            control=step == "target",
            duplicates=False,  # docs/RESULTS.md lists the duplicates of this data set, and imagehash may be missing
        )
    called = {name: row.name + (CONTEXT if step == "context" else ""), name + CONTROL: row.name + CONTROL}
    scores = [{**asdict(each), "model": called[each.model], "protocol": protocol} for each in report.scores]
    result: dict[str, Any] = {"scores": scores}
    if step == "target":
        result |= {"train": report.train, "test": report.test}
        result |= {"rounding": rounding(row.run, flowers)} if seed == 0 else {}
    return result


def encoders(run: Path) -> dict[str, nn.Module]:
    """Load both encoders of a run's last checkpoint, in fp32."""
    last = max((run / "checkpoints").glob("step_*.pt"))
    state = torch.load(last, map_location="cpu", weights_only=True)["objective"]
    objective = build_objective(Recipe.load(run / "recipe.toml").changed("model", init="", grow=False))
    for name, part in objective.named_children():
        part.load_state_dict(state[name])
    return {name: encoder.eval() for name, encoder in objective.encoders.items()}


def rounding(run: Path, flowers: Path) -> dict[str, float]:
    """Measure the effect of bfloat16 weights on pooled features of val, and on probes that train on the train split.

    Convolutions are computed without TF32, because a GPU would otherwise round the inputs of both models.

    Returns:
        `features`: the norm of the difference of the pooled features of all images, relative to the norm of the fp32
        features; `largest`: this relative difference for the image where it is largest; `knn_fp32`, `knn_exported`,
        `ridge_fp32`, `ridge_exported`: top-1 % by fp32 and by the exported weights.
    """
    trained, tested = find_labelled([flowers / "train"], [flowers / "val"])
    exported = load_model(str(run))
    original = encoders(run)["target"]
    original.pretrained_cfg = exported.pretrained_cfg
    found, features = {}, []
    for name, model in (("fp32", original), ("exported", exported)):
        frozen = Frozen(model, f"{run.name}, {name}")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            of_train, of_val = frozen.pooled(trained.images, "train"), frozen.pooled(tested.images, "val")
        features.append(of_val)
        for kind, classify in (("knn", knn), ("ridge", ridge)):
            votes = classify(of_train, trained.labels, of_val, len(trained.names))
            found[f"{kind}_{name}"] = Accuracy.of(votes, tested.labels).top1
    exact, rounded = features
    found["features"] = ((rounded - exact).norm() / exact.norm()).item()
    found["largest"] = ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
    return found
