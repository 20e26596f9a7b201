"""Pictures of an encoder during training: principal components of the patch features of a few images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.colours import normalize
from ..data.crops import make_centre_crops
from ..pictures.pca import find_components
from ..pictures.sheet import draw_map, join_pictures
from ..writing import explain_failure, written_whole

PICTURES = 6
FINER = 2  # images are this many times larger than in training, so that the maps have more patches
LARGEST = 448  # pixels; limits FINER, but never below the run's own image size
CELL = 160  # pixels of a picture


class Album:
    """Draw strips of pictures into a folder: images.webp, and step_000000123.webp for the look after update 123.

    The maps are those of `scott pca`. Components are computed anew at each look, so colours of different looks cannot
    be compared.

    Args:
        folder: folder to write to; created with the first strip.
        images: uint8 (3, H, W) each; the first `PICTURES` are drawn.
        size: side of the run's images, pixels.
        encoder: model of the architecture to draw; it is copied.
        autocast: function that returns the context of the forward passes.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[Tensor],
        size: int,
        encoder: Any,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.folder, self.autocast = folder, autocast
        self.encoder = deepcopy(encoder).eval()  # a copy, since its input size differs
        side = max(size, min(FINER * size, LARGEST) // 16 * 16)
        self.encoder.set_input_size((side, side))
        self.crops = make_centre_crops(images[:PICTURES], side)

    @torch.no_grad()
    def add(self, step: int, encoder: Any) -> None:
        """Draw the strips of one look, with the weights of `encoder`; draw nothing if features are NaN or infinite."""
        self.encoder.load_state_dict(encoder.state_dict())
        inputs = normalize(self.crops.to(next(self.encoder.parameters()).device).float() / 255)
        with self.autocast():
            tokens = self.encoder.forward_features(inputs).float().cpu()
        if not tokens.isfinite().all():
            return
        colours = find_components(tokens.view(len(tokens), *self.encoder.patch_embed.grid_size, -1)).colours
        pictures = [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in self.crops]
        drawn = [draw_map(map_, (CELL, CELL), "smooth") for map_ in colours]
        with explain_failure(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for strip, name in ((pictures, "images"), (drawn, f"step_{step:09d}")):
            with written_whole(self.folder / f"{name}.webp") as beside:
                join_pictures(strip, CELL).save(beside)
