"""Images in: where they are and what they show, the decoded cache, crops, colours, random streams, the loader.

Every random number of an image follows from the seed, the epoch and the image alone.
"""

from .labelled import Labelled, find_labelled
from .sources import Sample, find_images, find_samples, load_image

__all__ = ["Labelled", "Sample", "find_images", "find_labelled", "find_samples", "load_image"]
