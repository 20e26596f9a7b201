"""Pictures of what a model sees: components of patches, attention, neighbours.

`sheet.py` puts them together.
"""

from .attention_maps import draw_attention
from .neighbours import draw_neighbours
from .pca import draw_pca

__all__ = ["draw_attention", "draw_neighbours", "draw_pca"]
