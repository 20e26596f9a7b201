"""Test images that training has seen: exact copies, and nearly the same pictures by a perceptual hash."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import needs_extra
from ..progress import track
from .parallel import load_batches
from .sources import Row, load_image

NEAR = 10  # of a hash's 256 bits that may differ
HASH_SIDE = 16
AT_ONCE = 1024
Pair = tuple[str, str]


@dataclass(frozen=True)
class Duplicates:
    """Pairs of a test image and the first training image like it.

    Attributes:
        exact: with the same pixels.
        near: others, of which at most 10 of the 256 bits of their perceptual hashes differ: a copy at another size or
            quality, not a mirrored or cut one.
    """

    exact: list[Pair]
    near: list[Pair]

    def __str__(self) -> str:
        if not self.exact and not self.near:
            return "no test image is a copy of a training image, exact or near"
        first = (self.exact or self.near)[0]
        return (
            f"{len(self.exact)} test images are exact copies of training images, {len(self.near)} more are nearly the "
            f"same; their scores are too good. The first: {first[0]} and {first[1]}"
        )


def find_duplicates(train: Sequence[Path | Row], test: Sequence[Path | Row]) -> Duplicates:
    """Compare every test image with every training image.

    Raises:
        DataError: the first image that cannot be read.
    """
    seen_pixels, seen_hashes = _hashes(train, "duplicates, train")
    pixels, hashes = _hashes(test, "duplicates, test")
    first = {digest: i for i, digest in reversed(list(enumerate(seen_pixels)))}
    exact, near = [], []
    for start in range(0, len(test), AT_ONCE):
        # Of bits as 1 and -1 the product is 256 less twice the number that differ.
        differing = (HASH_SIDE**2 - hashes[start : start + AT_ONCE] @ seen_hashes.T) / 2
        nearest = differing.argmin(axis=1)
        for i, j in enumerate(nearest.tolist(), start):
            if pixels[i] in first:
                exact.append((str(test[i]), str(train[first[pixels[i]]])))
            elif differing[i - start, j] <= NEAR:
                near.append((str(test[i]), str(train[j])))
    return Duplicates(exact, near)


def _hashes(images: Sequence[Path | Row], what: str) -> tuple[list[int], np.ndarray]:
    """A digest of each image's pixels, and its perceptual hash in bits of 1 and -1: float32 (n, 256)."""
    with needs_extra("eval"):
        from imagehash import phash

    def both(image: Path | Row) -> tuple[int, np.ndarray]:
        picture = load_image(image)
        return hash((picture.size, picture.tobytes())), phash(picture, HASH_SIDE).hash.ravel()

    chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
    found: list[tuple[int, np.ndarray]] = []
    for chunk in load_batches(track(chunks, what, total=len(images), size=AT_ONCE), both, list):
        found += chunk
    digests, bits = zip(*found)
    return list(digests), np.where(np.stack(bits), 1, -1).astype(np.float32)
