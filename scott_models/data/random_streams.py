"""A stream of random numbers for each image, independent of the image's batch, of the process and of a resume.

Number k of an image is a hash of the image's seed and k, by splitmix64 (Steele, Lea and Flood, *Fast splittable
pseudorandom number generators*, 2014). A few array operations serve any number of streams. No state must be saved.
"""

import numpy as np
import torch
from torch import Tensor

GAMMA, MIX1, MIX2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Draws:
    """Draw uniform numbers from a stream for each image of a batch, and from one that all images of an update share.

    Args:
        seeds: uint64 (B,), the seed of each image.
        images: int64 (B,), indices of the images in their data set, if known.
        update: uint64, the seed of the shared stream, the same in all processes; by default the stream is shared only
            within the batch, and seeded by its first image.
    """

    def __init__(self, seeds: np.ndarray, images: Tensor | None = None, update: np.uint64 | None = None) -> None:
        self.seeds, self.images = seeds, images
        self.update = update
        self.used = 0

    @property
    def shared(self) -> "Draws":
        """Return the shared stream, from its beginning."""
        seed = _mix(self.seeds[:1] + GAMMA) if self.update is None else np.array([self.update])
        return Draws(seed)

    @classmethod
    def of(cls, generator: "torch.Generator | Draws", batch: int) -> "Draws":
        """Return `generator` if it is a `Draws`, else streams seeded by the torch generator, which advances."""
        if isinstance(generator, Draws):
            return generator
        return cls(torch.randint(2**63 - 1, (batch,), generator=generator).numpy().astype(np.uint64))

    @classmethod
    def keyed(cls, key: np.uint64, epochs: Tensor, indices: Tensor, update: int = 0, view: int = 0) -> "Draws":
        """Return the streams of images `indices` (B,) in `epochs` (B,), and of an update, under a 64-bit key.

        Args:
            view: number of the view of the images, from 0.
        """
        seeds = np.full(len(indices), key, dtype=np.uint64)
        for part in (epochs, indices):
            seeds = _mix(seeds + GAMMA * (part.numpy().astype(np.uint64) + np.uint64(1)))
        if view:
            seeds = _mix(seeds + GAMMA * np.array([view], dtype=np.uint64))
        return cls(seeds, indices, _mix((key ^ MIX1) + GAMMA * np.array([update], dtype=np.uint64))[0])

    def uniform(self, count: int) -> Tensor:
        """Draw the next `count` numbers in [0, 1) of every stream: float64 (count, B)."""
        number = np.arange(self.used + 1, self.used + count + 1, dtype=np.uint64)[:, None]
        self.used += count
        return torch.from_numpy(_unit(_mix(self.seeds + GAMMA * number)))

    def ahead(self, images: np.ndarray, skipped: np.ndarray, count: int) -> np.ndarray:
        """Return the numbers after the next `skipped` (I,) of the streams of `images` (I,): float64 (count, I).

        The streams do not advance. `images` are positions in the batch.
        """
        number = np.arange(1, count + 1, dtype=np.uint64)[:, None] + (self.used + skipped).astype(np.uint64)
        return _unit(_mix(self.seeds[images] + GAMMA * number))


def _unit(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * MIX1
    bits = (bits ^ (bits >> np.uint64(27))) * MIX2
    return bits ^ (bits >> np.uint64(31))


def make_key(seed: int, purpose: str, number: int = 0) -> np.uint64:
    """Derive a 64-bit key from a run's seed, a purpose and a number; neighbouring numbers give unrelated keys."""
    entropy = (seed, int.from_bytes(purpose.encode()), number)
    return np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
