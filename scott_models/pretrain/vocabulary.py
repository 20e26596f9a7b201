"""Discrete targets without a trained tokenizer: the token of a patch is the nearest word of a fixed vocabulary.

Source: "Are Large-scale Datasets Necessary for Self-Supervised Pre-training?" (arXiv 2112.10740). The paper finds that
words from the images themselves, or random words, serve as well as a tokenizer trained on millions of images.
"""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..console import say
from ..data.colours import normalize
from ..data.loader import Crops
from ..data.random_streams import make_key
from ..errors import DataError, needs_extra
from ..progress import track
from ..training.plan import Drawing
from ..writing import written_whole
from .one_encoder import OneEncoder

Kind = Literal["patches", "kmeans", "projection"]
FILE = "vocabulary.safetensors"
PER_CROP = 8  # largest number of patches from one crop
PER_WORD = 16  # patches for each word of k-means
AT_ONCE = 64  # crops in a batch
PIECE = 2**24  # similarities computed at a time on a CPU
ANEW = "delete it, and the run makes its words again"


class Vocabulary(nn.Module):
    """Find the nearest word of each patch: images (B, 3, H, W), ImageNet-normalised -> tokens, int64 (B, N).

    The nearest word has the largest cosine similarity with the patch's normalised pixels.

    Args:
        patch_size: side of a patch, pixels.
        size: largest number of words; images with fewer patches give fewer words.
        kind: how words are made; see `make_words`.
        seed: the same seed and the same images give the same words.

    Raises:
        UserError: `kind` is "kmeans", but scikit-learn is not installed.
    """

    words: Tensor

    def __init__(self, patch_size: int, size: int = 8192, *, kind: Kind = "patches", seed: int = 0) -> None:
        super().__init__()
        self.patch_size, self.size, self.kind, self.seed = patch_size, size, kind, seed
        # Not in a checkpoint: a run keeps its words in a file, or makes them again from its seed.
        self.register_buffer("words", torch.empty(0, 3 * patch_size**2), persistent=False)
        if kind == "kmeans":
            kmeans()  # fail early if scikit-learn is missing

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the tokens; raise RuntimeError if the vocabulary has no words yet."""
        if not len(self.words):
            raise RuntimeError("vocabulary: expected words, found none; fill it first")
        patches = cut_patches(images, self.patch_size)
        size = max(1, PIECE // len(self.words)) if images.device.type == "cpu" else patches.shape[0] * patches.shape[1]
        # fp32 on a GPU too: the best two words are often close, so TF32 changed 2.6 % of real tokens and bf16 10 %.
        nearest = [(some @ self.words.T).argmax(dim=1) for some in patches.flatten(0, 1).split(size)]
        tokens = nearest[0] if len(nearest) == 1 else torch.cat(nearest)
        return tokens.view(patches.shape[:2])

    def fill(self, crops: Crops, folder: Path) -> None:
        """Read the words from a run's folder, or make them from its images and write them there.

        Words of other images or settings, which an earlier start left there, are replaced. If the run has checkpoints
        already, they are refused.

        Args:
            crops: crops of the run's images.
            folder: run folder.

        Raises:
            DataError: the file is damaged, or the run has checkpoints and the words are not its own.
        """
        path, began = folder / FILE, any(folder.glob("checkpoints/step_*.pt"))
        made = f"{self.kind} {self.size} {self.seed} {self.patch_size} {crops.size} {crops.images.digest}"
        words, theirs = read_words(path) if path.is_file() else (None, "")
        if words is not None and theirs != made and began:
            raise DataError(f"{path}: expected this run's words ({made}), found others ({theirs}); {ANEW}")
        if words is None or theirs != made:
            if began:
                say(f"{path}: expected the run's words, found no file; making them again")
            words = make_words(crops, self.patch_size, self.kind, self.size, self.seed)
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as beside:
                beside.write_bytes(save({"words": words}, metadata={"made": made}))
        self.words = words.to(self.words.device)


def read_words(path: Path) -> tuple[Tensor, str]:
    """Read the words, and a description of what they were made from.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("words"), (file.metadata() or {}).get("made", "")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: expected this run's words, found a damaged file ({error}); {ANEW}") from error


def cut_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, 3, H, W) into patches, row by row: pixels as vectors of length 1, (B, N, 3 p p)."""
    columns = F.unfold(images.float(), patch_size, stride=patch_size)
    return F.normalize(columns, dim=1).transpose(1, 2)


def make_words(crops: Crops, patch_size: int, kind: Kind, size: int, seed: int) -> Tensor:
    """Make at most `size` words: vectors of length 1, fp32 (V, 3 p p), the same for the same seed.

    Args:
        kind: "patches", patches of random crops of the images; "kmeans", cluster centres of such patches, by
            scikit-learn; "projection", random directions, so that a token is the largest of V random projections.
    """
    generator = torch.Generator().manual_seed(int(make_key(seed, "words", 0)) >> 1)
    size = min(size, len(crops.images) * (crops.size // patch_size) ** 2)
    if kind == "projection":
        return F.normalize(torch.randn(size, 3 * patch_size**2, generator=generator), dim=1)
    wanted = size if kind == "patches" else PER_WORD * size
    found = sample_patches(crops, patch_size, wanted, seed, generator)
    return found if kind == "patches" else find_centres(found, size, seed)


def sample_patches(crops: Crops, patch_size: int, wanted: int, seed: int, generator: torch.Generator) -> Tensor:
    """Sample `wanted` patches of random crops, at most `PER_CROP` of each crop: (wanted, 3 p p)."""
    grid = (crops.size // patch_size) ** 2
    per_crop = min(PER_CROP, grid)
    count = ceil(wanted / per_crop)
    chosen = torch.randint(len(crops.images), (count,), generator=generator)
    found = []
    places = list(enumerate(chosen.tolist()))  # an epoch of its own for each crop, so that an image's crops differ
    batches = [places[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
    for batch in track(batches, "vocabulary", total=count, size=AT_ONCE):
        _, pixels = crops.__getitems__(batch)
        assert isinstance(pixels, Tensor)  # the objectives with words take one crop
        patches = cut_patches(normalize(pixels.float() / 255), patch_size).cpu()
        which = torch.rand(len(batch), grid, generator=generator).argsort(dim=1)[:, :per_crop]
        found.append(patches.gather(1, which[..., None].expand(-1, -1, patches.shape[-1])).flatten(0, 1))
    return torch.cat(found)[:wanted]


def find_centres(patches: Tensor, size: int, seed: int) -> Tensor:
    """Compute the centres of `size` clusters of patches (n, P), as vectors of length 1: fp32 (size, P)."""
    say(f"k-means: making {size} words from {len(patches):,} patches")
    means = kmeans()(size, random_state=seed, batch_size=4096, n_init=1, compute_labels=False)
    return F.normalize(torch.from_numpy(means.fit(patches.numpy()).cluster_centers_.astype(np.float32)), dim=1)


def kmeans() -> Any:
    """Import scikit-learn's k-means; raise UserError if scikit-learn is not installed."""
    with needs_extra("kmeans"):
        from sklearn.cluster import MiniBatchKMeans
    return MiniBatchKMeans


class Denoising(OneEncoder):
    """Hold what BEiT and SplitMask share: a student with one encoder, a vocabulary, views and masks.

    Args:
        student: module with the encoder.
        vocabulary: makes the tokens.
        views, mask: as in `Drawing`; masks show the same number of patches in each image.
    """

    def __init__(self, student: nn.Module, vocabulary: Vocabulary, views: Any, mask: Callable[..., Tensor]) -> None:
        super().__init__(student)
        self.vocabulary = vocabulary
        self.views, self.mask = views, mask

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.views, self.mask, self.encoders["target"].patch_embed.grid_size, places=True)

    @property
    def drawing(self) -> Drawing | None:
        """Return a function that draws random numbers for `inputs` ahead of time; None if the views cannot."""
        return self._drawing.ahead

    def prepare(self, crops: Crops, folder: Path) -> None:
        """Fill the vocabulary with the words of the run's folder, or with new words from its images."""
        self.vocabulary.fill(crops, folder)
