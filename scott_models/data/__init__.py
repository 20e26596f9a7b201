"""Image input: finding and labelling images, the decoded cache, crops, colours, random streams and the loader.

Every random number of an image depends only on the seed, the epoch and the image.
"""

from .files import find_images
from .images import load_image
from .labelled import Labelled, find_labelled
from .sources import Sample, find_samples

__all__ = ["Labelled", "Sample", "find_images", "find_labelled", "find_samples", "load_image"]
