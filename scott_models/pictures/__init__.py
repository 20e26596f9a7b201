"""Pictures of what a model sees: principal components of patches, attention maps, nearest neighbours.

`sheet.py` arranges them in rows.
"""

from .attention_maps import draw_attention
from .neighbours import draw_neighbours
from .pca import draw_pca

__all__ = ["draw_attention", "draw_neighbours", "draw_pca"]
