"""Frozen features of images, from any timm model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from .data import find_images, load_image, without_warnings
from .errors import DataError, UserError, WeightsError
from .progress import track


def load_model(name: str, *, pretrained: bool = True, img_size: int | None = None) -> nn.Module:
    """A timm model without its head, in eval mode: ours, timm's, or "local-dir:FOLDER".

    Args:
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        WeightsError: a name timm does not know, or weights or an image size that cannot be had.
    """
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        if img_size and hasattr(model, "set_input_size"):  # a convolutional network takes any size
            model.set_input_size((img_size, img_size))
        return model.eval()
    except UserError:
        raise
    except Exception as error:  # timm, safetensors and torch have no common error for "unknown", "damaged", "foreign"
        raise WeightsError(f"{name}: cannot be created by timm: {error}") from error


def embed(
    images: Sequence[str | Path], out: str | Path, name: str, *, tokens: bool = False, batch_size: int = 32
) -> tuple[int, int]:
    """Write `names`, `features` and, if asked, `tokens` of image files or folders to an .npz file, whole or not at all.

    Returns:
        number of images, and of features each.

    Raises:
        DataError: files or folders that cannot be used, an `out` that is no .npz in an existing folder, an empty batch.
        WeightsError: a model that cannot be had.
    """
    out = Path(out)
    if batch_size < 1:
        raise DataError(f"batch_size: expected at least 1, got {batch_size}")
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise DataError(f"{out}: expected the name of an .npz file in a folder that exists")
    paths = find_images(images)
    features, patches = extract(load_model(name), paths, batch_size=batch_size, tokens=tokens)
    arrays = {"names": np.array([str(path) for path in paths]), "features": features}
    partial = out.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays, **({"tokens": patches} if tokens else {}))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return features.shape


@torch.inference_mode()
def extract(
    model: nn.Module,
    paths: Sequence[Path],
    *,
    img_size: int | None = None,
    batch_size: int = 32,
    tokens: bool = False,
    what: str = "embedding",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features of image files, each through the model's own evaluation transform.

    Args:
        img_size: pixels; by default the size the weights were trained at.
        tokens: also return the features of the patches.
        what: name of the progress bar.

    Returns:
        features (images, D) fp32; and patch features (images, N, D) fp32 in row-major order, or None.

    Raises:
        DataError: the first file that is no image or is damaged, or `tokens` of a model that has none.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, memory_format=torch.channels_last)
    pooled, patches = [], []
    for images in track(load_batches(model, paths, batch_size, img_size), what, total=len(paths), size=batch_size):
        maps = model.forward_features(images.to(device, memory_format=torch.channels_last))
        pooled.append(model.forward_head(maps, pre_logits=True).float().cpu())
        if tokens:
            if maps.ndim != 3:
                raise DataError(
                    f"tokens: expected a model of patch tokens (B, N, D), found features {tuple(maps.shape)}"
                )
            patches.append(maps[:, getattr(model, "num_prefix_tokens", 0) :].float().cpu())
    return torch.cat(pooled).numpy(), torch.cat(patches).numpy() if tokens else None


def load_batches(
    model: nn.Module, paths: Sequence[Path], batch_size: int, img_size: int | None = None
) -> Iterator[Tensor]:
    """Batches (B, 3, H, W) of preprocessed images; while one is used, threads decode the next."""
    transform = create_transform(**resolve_model_data_config(model, {"img_size": img_size} if img_size else {}))
    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]

    def load(path: Path) -> Tensor:
        return transform(load_image(path))

    with without_warnings(), ThreadPoolExecutor() as pool:
        ahead = [pool.submit(load, path) for path in chunks[0]]
        for following in [*chunks[1:], []]:
            ready, ahead = ahead, [pool.submit(load, path) for path in following]
            yield torch.stack([future.result() for future in ready])
