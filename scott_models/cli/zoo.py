"""Commands for weights: `scott list`, `scott download`, `scott publish` and `scott convert`."""

import shlex
from pathlib import Path
from typing import Any

from tyro.conf import FlagCreatePairsOff, Positional

from ..console import show
from .output import print_json, print_result, show_table


def list_models(*, json: FlagCreatePairsOff[bool] = False) -> None:
    """List models and weights, with their scores and locations.

    For example:
        scott list
        scott list --json

    Args:
        json: print JSON instead of a table.
    """
    from ..weights.timm_configs import list_zoo

    show_table(list_zoo(), json)


def download(
    names: Positional[tuple[str, ...]] = (),
    /,
    *,
    dir: Path | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Download and verify weights, for use without a network.

    For example:
        scott download
        scott download scott_3_16 --dir weights
        SCOTT_MODELS_DIR=weights HF_HUB_OFFLINE=1 python train.py

    Args:
        names: models or tags, as `scott list` shows them; by default all.
        dir: folder to write the weights to, for SCOTT_MODELS_DIR on this machine or another one.
            By default, weights that are not on this machine yet go to the Hub's cache.
        json: print JSON instead of a sentence.
    """
    from ..release import offline
    from ..weights.entries import get_entry, manifest

    found = []
    for tag in dict.fromkeys(offline.find_tag(name) for name in names or manifest()):
        file = offline.download(tag, dir)
        found.append({"tag": tag, "file": file, "sha256": get_entry(tag)["sha256"]})
        if not json:
            show(f"{tag}: verified, {file}")
    if json:
        print_json(found)
    elif dir:
        show(f"use it with SCOTT_MODELS_DIR={shlex.quote(str(dir.resolve()))}")


def publish(
    source: Positional[Path],
    /,
    *,
    repo_id: str,
    tag: str | None = None,
    license: str | None = None,
    data: str | None = None,
    data_terms: str | None = None,
    scores: Path | None = None,
    picture: Path | None = None,
    manifest: Path | None = None,
    private: FlagCreatePairsOff[bool] = False,
    dry_run: FlagCreatePairsOff[bool] = False,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Upload a run to the Hugging Face Hub, with a model card.

    The folder of a model works too. The uploaded files are downloaded again and compared.

    For example:
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --dry-run
        scott probe --model runs/photos --train mine/train --test mine/test --json > s.json
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --picture pca.png --scores s.json
        scott publish weights/scott_3_16.mimjepa_flowers102_cpu --repo-id org/scott_3_16.mimjepa_flowers102_cpu

    Uploading needs a token with write permission, from `hf auth login` or HF_TOKEN.

    Args:
        source: a finished run of `scott pretrain`, the folder of released weights, or a timm folder with a README.md.
        repo_id: the repository, as organisation/name; it is created if it does not exist.
        tag: name of the weights in the manifest; by default the name of the repository after the name of the model.
        license: license of the weights, e.g. apache-2.0. A run needs one.
        data: description of the images a run was trained on; by default their number and the names of their folders.
        data_terms: terms of use of those images.
        scores: file that `scott probe --json` printed; by default the scores of the run's monitor are published.
        picture: picture for the model card, e.g. from `scott pca`; it may show some of your images.
        manifest: manifest file to write the entry to; by default weights_manifest.json of the checkout, if any.
        private: make a new repository private.
        dry_run: show everything, but upload nothing.
        json: print JSON instead of sentences.
    """
    from ..release import upload

    facts: dict[str, Any] = {"license": license, "data": data, "data_terms": data_terms, "scores": scores}
    facts["picture"] = picture
    options: dict[str, Any] = {"tag": tag, "manifest_file": manifest, "private": private, "dry_run": dry_run}
    done = upload.publish(source, repo_id, **options, **facts)
    print_result(str(done), done.facts(), json)


def convert(
    checkpoint: Positional[Path],
    /,
    *,
    out: Path,
    num_heads: int | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Convert a checkpoint of the authors' code to a timm folder.

    For example:
        scott convert logs/target-encoder_checkpoint.pth --out scott_12_16
        scott convert target-encoder_checkpoint.pth --num-heads 4 --out scott_12_16
        scott embed photos --out features.npz --model local-dir:scott_12_16
        scott pretrain --init local-dir:scott_12_16 model.num_heads=4 --data photos --out runs/photos

    Args:
        checkpoint: .pth file of a context encoder, target encoder or predictor; only tensors are loaded from it.
        out: folder to write: a new one, or the folder of an earlier conversion, which is replaced.
        num_heads: number of attention heads; by default the number in config.yaml next to the checkpoint.
        json: print JSON instead of a sentence.
    """
    from ..release import authors_checkpoints

    folder = authors_checkpoints.convert(checkpoint, out, num_heads=num_heads)
    print_result(f"{folder}: converted", {"checkpoint": checkpoint, "out": folder}, json)
