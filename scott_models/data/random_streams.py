"""Random numbers of each image's own, so that no image's depend on its batch, its process or a resume.

Number k of an image is a hash of the image's seed and k, by splitmix64 (Steele, Lea and Flood, *Fast splittable
pseudorandom number generators*, 2014): any number of streams in a few array operations, and none has a state to save.
"""

import numpy as np
import torch
from torch import Tensor

GAMMA, MIX1, MIX2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Draws:
    """A stream of uniform numbers for each image of a batch, and one that all images of an update share.

    Args:
        seeds: uint64 (B,), the seed of each image.
        images: int64 (B,), which images of a data set they are, if that is known.
        update: uint64, the seed of what the images share, also with those of other processes; by default a batch of
            its own, seeded by its first image.
    """

    def __init__(self, seeds: np.ndarray, images: Tensor | None = None, update: np.uint64 | None = None) -> None:
        self.seeds, self.images = seeds, images
        self.update = update
        self.used = 0

    @property
    def shared(self) -> "Draws":
        """Return the stream that the images share, from its beginning."""
        seed = _mix(self.seeds[:1] + GAMMA) if self.update is None else np.array([self.update])
        return Draws(seed)

    @classmethod
    def of(cls, generator: "torch.Generator | Draws", batch: int) -> "Draws":
        """Draws themselves, or streams seeded by a torch generator, which moves on."""
        if isinstance(generator, Draws):
            return generator
        return cls(torch.randint(2**63 - 1, (batch,), generator=generator).numpy().astype(np.uint64))

    @classmethod
    def keyed(cls, key: np.uint64, epochs: Tensor, indices: Tensor, update: int = 0, view: int = 0) -> "Draws":
        """Return the streams of images `indices` (B,) in `epochs` (B,), and of an update, under a key of 64 bits.

        Args:
            view: which of several views of the images, from 0.
        """
        seeds = np.full(len(indices), key, dtype=np.uint64)
        for part in (epochs, indices):
            seeds = _mix(seeds + GAMMA * (part.numpy().astype(np.uint64) + np.uint64(1)))
        if view:
            seeds = _mix(seeds + GAMMA * np.array([view], dtype=np.uint64))
        return cls(seeds, indices, _mix((key ^ MIX1) + GAMMA * np.array([update], dtype=np.uint64))[0])

    def uniform(self, count: int) -> Tensor:
        """The next numbers in [0, 1) of every stream: float64 (count, B)."""
        number = np.arange(self.used + 1, self.used + count + 1, dtype=np.uint64)[:, None]
        self.used += count
        return torch.from_numpy(_unit(_mix(self.seeds + GAMMA * number)))

    def ahead(self, images: np.ndarray, skipped: np.ndarray, count: int) -> np.ndarray:
        """What will come after the next `skipped` (I,) numbers of some images' (I,) streams: float64 (count, I)."""
        number = np.arange(1, count + 1, dtype=np.uint64)[:, None] + (self.used + skipped).astype(np.uint64)
        return _unit(_mix(self.seeds[images] + GAMMA * number))


def _unit(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * MIX1
    bits = (bits ^ (bits >> np.uint64(27))) * MIX2
    return bits ^ (bits >> np.uint64(31))


def make_key(seed: int, purpose: str, number: int = 0) -> np.uint64:
    """64 bits for each purpose and number of a run, unlike its neighbours'."""
    entropy = (seed, int.from_bytes(purpose.encode()), number)
    return np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
