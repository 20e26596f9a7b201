"""Measure images a second while an attentive head trains on a CPU, with one thread and with all threads.

python benchmarks/heads.py --patches 49 196

The head is that of `scott probe`, on random features of 384 dimensions, in batches of 64. docs/evaluation.md explains
why probes use one thread.
"""

import argparse
import time
from collections.abc import Iterable, Iterator

import page
import torch
from torch import Tensor

from scott_models.probes import heads

DIM, CLASSES, EPOCHS = 384, 102, 5


def images_a_second(images: int, patches: int, few: int) -> float:
    """Train a head on random features and return images a second; a batch of at most `few` numbers uses one thread."""
    heads.FEW = few
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (images,))
    pooled, of_patches = torch.randn(images, DIM), torch.randn(images, patches, DIM).half()

    def features(pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for places in pieces:
            yield pooled[places[:, 1]], of_patches.index_select(0, places[:, 1])

    started = time.perf_counter()
    heads.train_heads([heads.AttentiveHead(DIM, CLASSES)], features, labels, seed=0, epochs=EPOCHS)
    return EPOCHS * images / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[49, 196])
    parser.add_argument("--images", type=int, default=640)
    given = parser.parse_args()
    rows = []
    for patches in given.patches:
        speeds = [round(images_a_second(given.images, patches, few)) for few in (2**62, 0)]
        rows.append({"patches": patches, "one thread, images/s": speeds[0], "all threads, images/s": speeds[1]})
    print(page.table(rows))


if __name__ == "__main__":
    main()
