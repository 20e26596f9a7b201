"""What an encoder makes of a few images while it trains: principal components of their patches, look by look."""

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

PICTURES = 6
FINER = 2  # times the run's image size, for maps of more patches
LARGEST = 448  # pixels, unless the run's own images are larger
CELL = 160  # pixels of a picture


class Album:
    """A folder of strips, images.webp and one for each look, step_000000123.webp: as `scott pca` draws them.

    The components are those of one look; colours of different looks have nothing in common.

    Args:
        images: uint8 (3, H, W) each.
        size: pixels of the run's images.
        encoder: whose architecture is looked at; it is copied.
        autocast: makes the context of the forward passes.
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
        self.encoder = deepcopy(encoder).eval()  # at another size
        side = max(size, min(FINER * size, LARGEST) // 16 * 16)
        self.encoder.set_input_size((side, side))
        self.crops = make_centre_crops(images[:PICTURES], side)

    @torch.no_grad()
    def add(self, step: int, encoder: Any) -> None:
        """Draw what the encoder's weights make of the images; those of broken weights (NaN) are left out."""
        self.encoder.load_state_dict(encoder.state_dict())
        inputs = normalize(self.crops.to(next(self.encoder.parameters()).device).float() / 255)
        with self.autocast():
            tokens = self.encoder.forward_features(inputs).float().cpu()
        if not tokens.isfinite().all():
            return
        colours = find_components(tokens.view(len(tokens), *self.encoder.patch_embed.grid_size, -1)).colours
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [Image.fromarray(crop.permute(1, 2, 0).numpy()) for crop in self.crops]
        join_pictures(pictures, CELL).save(self.folder / "images.webp")
        drawn = [draw_map(map_, (CELL, CELL), "smooth") for map_ in colours]
        join_pictures(drawn, CELL).save(self.folder / f"step_{step:09d}.webp")
