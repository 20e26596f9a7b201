"""Commands around weights: list, download, publish, convert."""

import shlex
from pathlib import Path
from typing import Any

from tyro.conf import FlagCreatePairsOff, Positional

from .output import print_json, print_result, print_text, show_table


def list_models(*, json: FlagCreatePairsOff[bool] = False) -> None:
    """List models and weights, what they score and where they are.

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
    """Fetch and verify weights, for a machine without a network.

    For example:
        scott download
        scott download scott_3_16 --dir weights
        SCOTT_MODELS_DIR=weights HF_HUB_OFFLINE=1 python train.py

    Args:
        names: models or tags, as `scott list` shows them; all if none is given.
        dir: a folder for SCOTT_MODELS_DIR, here or on another machine; by default the Hub's cache, where it is needed.
        json: print JSON instead of a sentence.
    """
    from ..release import offline as downloading
    from ..weights.entries import get_entry, manifest

    found = []
    for tag in dict.fromkeys(downloading.find_tag(name) for name in names or manifest()):
        file = downloading.download(tag, dir)
        found.append({"tag": tag, "file": file, "sha256": get_entry(tag)["sha256"]})
        if not json:
            print_text(f"{tag}: verified, {file}")
    if json:
        print_json(found)
    elif dir:
        print_text(f"use it with SCOTT_MODELS_DIR={shlex.quote(str(dir.resolve()))}")


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

    A model's folder will do too; what was uploaded is read back and compared.

    For example:
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --dry-run
        scott probe --model runs/photos --train mine/train --test mine/test --json > s.json
        scott publish runs/photos --repo-id me/scott_3_16.photos --license apache-2.0 --picture pca.png --scores s.json
        scott publish weights/scott_3_16.mimjepa_flowers102_cpu --repo-id org/scott_3_16.mimjepa_flowers102_cpu

    It needs a token that may write: `hf auth login`, or HF_TOKEN.

    Args:
        source: a run of `scott pretrain` that has ended, the folder of a release, or a timm folder with a README.md.
        repo_id: organisation/name; it is made if it is not there.
        tag: the manifest's name for the weights; by default the repository's, with the model's in front.
        license: of the weights, e.g. apache-2.0.
        data: what a run was trained on, in words; by default how many images of which folders.
        data_terms: what the data allow.
        scores: a file with what `scott probe --json` printed; by default what the run's monitor measured.
        picture: of the card, as `scott pca` draws one; it may show images of yours.
        manifest: a file the entry is written into; by default the checkout's weights_manifest.json, if this is one.
        private: whether a new repository is.
        dry_run: show everything, upload nothing.
        json: print JSON instead of sentences.
    """
    from ..release.upload import publish as publish_release

    facts: dict[str, Any] = {"license": license, "data": data, "data_terms": data_terms, "scores": scores}
    facts["picture"] = picture
    options: dict[str, Any] = {"tag": tag, "manifest_file": manifest, "private": private, "dry_run": dry_run}
    done = publish_release(source, repo_id, **options, **facts)
    print_result(str(done), done.facts(), json)


def convert(
    checkpoint: Positional[Path],
    /,
    *,
    out: Path,
    num_heads: int | None = None,
    json: FlagCreatePairsOff[bool] = False,
) -> None:
    """Turn a checkpoint of the authors' code into a timm folder.

    For example:
        scott convert logs/target-encoder_checkpoint.pth --out scott_12_16
        scott convert target-encoder_checkpoint.pth --num-heads 4 --out scott_12_16
        scott embed photos --out features.npz --model local-dir:scott_12_16
        scott pretrain --init local-dir:scott_12_16 model.num_heads=4 --data photos --out runs/photos

    Args:
        checkpoint: context-encoder, target-encoder or predictor, .pth; only tensors are read of it.
        out: a new folder, or that of an earlier conversion.
        num_heads: of attention; by default what config.yaml beside the checkpoint says.
        json: print JSON instead of a sentence.
    """
    from ..release.authors_checkpoints import convert as convert_checkpoint

    folder = convert_checkpoint(checkpoint, out, num_heads=num_heads)
    print_result(f"{folder}: converted", {"checkpoint": checkpoint, "out": folder}, json)
