"""Find test images that training has seen: exact copies, and near copies by a perceptual hash."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import needs_extra
from ..progress import track
from .images import Row, load_image
from .parallel import load_batches

NEAR = 10  # bits, of the 256 of a hash, in which near copies may differ
HASH_SIDE = 16
AT_ONCE = 1024
Pair = tuple[str, str]


@dataclass(frozen=True)
class Duplicates:
    """Hold pairs of a test image and a training image like it.

    Attributes:
        exact: pairs with the same pixels, each with the first such training image.
        near: other pairs, each with the nearest training image, whose perceptual hashes differ in at most 10 of 256
            bits. Near copies have another size or quality; mirrored or cropped copies are not found.
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
        DataError: an image cannot be read; the message names the first one.
    """
    seen_pixels, seen_hashes = _hashes(train, "duplicates, train")
    pixels, hashes = _hashes(test, "duplicates, test")
    first = {digest: i for i, digest in reversed(list(enumerate(seen_pixels)))}
    exact, near = [], []
    for start in range(0, len(test), AT_ONCE):
        # With bits as 1 and -1, the product of two hashes is 256 minus twice the number of differing bits.
        differing = (HASH_SIDE**2 - hashes[start : start + AT_ONCE] @ seen_hashes.T) / 2
        nearest = differing.argmin(axis=1)
        for i, j in enumerate(nearest.tolist(), start):
            if pixels[i] in first:
                exact.append((str(test[i]), str(train[first[pixels[i]]])))
            elif differing[i - start, j] <= NEAR:
                near.append((str(test[i]), str(train[j])))
    return Duplicates(exact, near)


def _hashes(images: Sequence[Path | Row], what: str) -> tuple[list[int], np.ndarray]:
    """Return a digest of each image's pixels, and its perceptual hash as bits 1 and -1: float32 (n, 256)."""
    with needs_extra("eval"):
        from imagehash import phash

    def digest_and_hash(image: Path | Row) -> tuple[int, np.ndarray]:
        picture = load_image(image)
        return hash((picture.size, picture.tobytes())), phash(picture, HASH_SIDE).hash.ravel()

    chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
    found: list[tuple[int, np.ndarray]] = []
    for chunk in load_batches(track(chunks, what, total=len(images), size=AT_ONCE), digest_and_hash, list):
        found += chunk
    digests, bits = zip(*found)
    return list(digests), np.where(np.stack(bits), 1, -1).astype(np.float32)
