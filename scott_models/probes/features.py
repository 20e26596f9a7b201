"""Frozen features of images, from any timm model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.v2.functional import pil_to_tensor

from ..data.bad_images import all_bad_listed, find_good_images
from ..data.images import Row, load_image
from ..data.parallel import load_batches
from ..errors import DataError, UserError, WeightsError
from ..models.scott import SCOTT
from ..progress import track
from ..training.settings import read_toml
from ..writing import written_whole

Features = tuple[Tensor, Tensor | None]  # of a batch: pooled features (B, D); patch features (B, N, D), or None


def load_model(name: str, *, pretrained: bool = True, img_size: int | None = None) -> nn.Module:
    """Load a timm model without its head, in eval mode: ours, timm's, "local-dir:FOLDER", or the folder of a run.

    A finished run gives its exported model. An unfinished run gives the target encoder of its last checkpoint, or the
    encoder if its objective has no target encoder.

    Args:
        img_size: pixels; by default the size the weights were trained at.

    Raises:
        WeightsError: timm does not know the name, the weights cannot be loaded, or the model cannot take the image
            size.
    """
    if img_size is not None and img_size < 1:
        raise WeightsError(f"img_size: expected at least 1 pixel, got {img_size}")
    try:
        if (Path(name) / "recipe.toml").is_file():
            model = _load_run(Path(name), pretrained)
        else:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
        if isinstance(model, SCOTT) and not img_size:
            model.set_input_size(model.pretrained_cfg["input_size"][1:])
        elif img_size and hasattr(model, "set_input_size"):  # a convolutional network takes any size
            model.set_input_size((img_size, img_size))
        return model.eval()
    except UserError:
        raise
    except Exception as error:  # timm, safetensors and torch have no common error for "unknown", "damaged", "foreign"
        raise WeightsError(f"{name}: cannot be created by timm: {error}") from error


def _load_run(folder: Path, pretrained: bool) -> nn.Module:
    if (folder / "export").is_dir():
        return timm.create_model(f"local-dir:{folder / 'export'}", pretrained=pretrained, num_classes=0)
    settings = read_toml(folder / "recipe.toml")["model"]
    heads = {"num_heads": settings["num_heads"]} if settings.get("num_heads") else {}
    model = timm.create_model(settings["name"], img_size=settings["img_size"], **heads)
    if pretrained:
        checkpoints = sorted((folder / "checkpoints").glob("step_*.pt"))
        if not checkpoints:
            raise WeightsError(f"{folder}: expected a run with a checkpoint or an export, found neither yet")
        parts = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)["objective"]
        student = parts.get("student", {})  # of objectives without a target encoder
        own = {name.removeprefix("encoder."): w for name, w in student.items() if name.startswith("encoder.")}
        if not (state := parts.get("target_encoder") or own):
            raise WeightsError(f"{folder}: expected a run of pretraining, or one with an export, found neither")
        model.load_state_dict({name: w for name, w in state.items() if name != "mask_token"})
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, *model.patch_embed.img_size)}
    return model


def embed(
    images: Sequence[str | Path],
    out: str | Path,
    name: str,
    *,
    tokens: bool = False,
    batch_size: int = 32,
    skip_bad: bool = False,
) -> tuple[int, int]:
    """Write `names`, `features` and, if requested, `tokens` of images to an .npz file, whole or not at all.

    Args:
        images: image files or folders.
        skip_bad: leave out images that cannot be used, with a note, instead of raising; this decodes images twice.

    Returns:
        number of images, and number of features of each image.

    Raises:
        DataError: a file or folder cannot be used, `out` is not the name of an .npz file in an existing folder, or
            batch_size is below 1.
        WeightsError: the model cannot be loaded.
    """
    if batch_size < 1:
        raise DataError(f"batch_size: expected at least 1, got {batch_size}")
    out = check_npz_path(out)
    paths = find_good_images(images, skip_bad=skip_bad)
    with all_bad_listed(paths):
        features, patches = extract(to_device(load_model(name)), paths, batch_size=batch_size, tokens=tokens)
    arrays: dict[str, Any] = {"names": np.array([str(path) for path in paths]), "features": features}
    if tokens:
        arrays["tokens"] = patches
    save_npz(out, **arrays)
    return features.shape


def check_npz_path(path: str | Path) -> Path:
    """Validate early that an .npz file can be written at this path, and return the path.

    Raises:
        DataError: the name does not end in .npz, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise DataError(f"{path}: expected the name of an .npz file in a folder that exists")
    return path


def save_npz(path: Path, **arrays: Any) -> None:
    """Write an .npz file, whole or not at all."""
    with written_whole(path) as beside:
        np.savez(beside, **arrays)


def extract(
    model: nn.Module,
    images: Sequence[Path | Row],
    *,
    img_size: int | None = None,
    batch_size: int = 32,
    tokens: bool = False,
    what: str = "embedding",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute the features of images, each through the model's own evaluation transform.

    Args:
        img_size: pixels; by default the size the weights were trained at.
        tokens: also return the features of the patches.
        what: name of the progress bar.

    Returns:
        pooled features (images, D), fp32; and patch features (images, N, D), fp32, in row-major order, or None.

    Raises:
        DataError: a file is damaged or not an image, or `tokens` is set for a model without patch tokens.
    """
    pooled, patches = [], []
    for features, of_patches in compute_features(model, images, img_size, batch_size, what):
        pooled.append(features.cpu())
        if tokens:
            if of_patches is None:
                raise DataError(f"tokens: expected a model with patch tokens, found {type(model).__name__}")
            patches.append(of_patches.cpu())
    return torch.cat(pooled).numpy(), torch.cat(patches).numpy() if tokens else None


def compute_features(
    model: nn.Module, images: Sequence[Path | Row], img_size: int | None, batch_size: int, what: str
) -> Iterator[Features]:
    """Yield the features of images in their order, through the evaluation transform, batch by batch."""
    for batch in load_evaluation_batches(model, images, img_size, batch_size, what):
        yield forward_features(model, batch)


def load_evaluation_batches(
    model: nn.Module, images: Sequence[Path | Row], img_size: int | None, batch_size: int, what: str
) -> Iterator[Tensor]:
    """Load images in their order, through the model's evaluation transform, as batches (B, 3, H, W)."""
    transform = create_transform(**resolve_transform_config(model, img_size))
    chunks = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    batches = load_batches(chunks, lambda image: transform(load_image(image)), torch.stack)
    return track(batches, what, total=len(images), size=batch_size)


def make_evaluation_crop(config: dict[str, Any]) -> Callable[[Image.Image], Tensor] | None:
    """Make a model's evaluation transform without its last two steps.

    timm resizes and cuts an image as bytes, and then divides by 255 and normalises. So the bytes have all information.

    Returns:
        a function from an image to uint8 (3, H, W); or None if the last two steps are not ToTensor and Normalize.
    """
    *cuts, scale, normalize = create_transform(**config).transforms
    if not isinstance(scale, transforms.ToTensor) or not isinstance(normalize, transforms.Normalize):
        return None
    cut = transforms.Compose(cuts)
    return lambda image: pil_to_tensor(cut(image))


def scale(crops: Tensor) -> Tensor:
    """Scale bytes (B, 3, H, W) to [0, 1] in fp32.

    The divisor is a tensor, because a GPU replaces division by a number with multiplication by a rounded 1 / 255.
    """
    return crops.float() / torch.full((), 255.0, device=crops.device)


@torch.no_grad()
def forward_features(model: nn.Module, images: Tensor) -> Features:
    """Compute the features of images (B, 3, H, W): pooled (B, D), and patch tokens (B, N, D) or None; fp32."""
    images = images.to(next(model.parameters()).device, memory_format=torch.channels_last)
    maps = model.forward_features(images)
    pooled = model.forward_head(maps, pre_logits=True).float()
    return pooled, maps[:, getattr(model, "num_prefix_tokens", 0) :].float() if maps.ndim == 3 else None


def resolve_transform_config(model: nn.Module, img_size: int | None) -> dict[str, Any]:
    """Resolve timm's description of how images become a model's input: size, mean, std, interpolation, crop.

    Raises:
        DataError: the model does not take three channels.
    """
    config = resolve_model_data_config(model, {"img_size": img_size} if img_size else {})
    if (channels := config["input_size"][0]) != 3:
        raise DataError(f"images: expected a model with 3 input channels (red, green, blue), found {channels}")
    # a configuration that was read from a file has lists in place of tuples
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def to_device(model: nn.Module) -> nn.Module:
    """Move a model to the GPU, if there is one, with feature maps in channels-last order."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
