"""Find the weight file of a tag and verify that its bytes are the released ones.

The manifest names the file of each tag. A file comes from a folder, from the wheel, or from the Hub at a pinned commit.
"""

from .authors_keys import convert_reference, convert_reference_predictor
from .entries import manifest
from .files import load, resolve
from .local_dir import export

__all__ = ["convert_reference", "convert_reference_predictor", "export", "load", "manifest", "resolve"]
