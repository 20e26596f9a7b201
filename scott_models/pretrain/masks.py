"""Random masks: bool (B, N), True for visible patches, with exactly the same number visible in every image.

Source: paper, Section 3 (blockwise masking as in BEiT), and the released code, in which the blocks are *visible*.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..data.random_streams import Draws

# Area of the smallest block on the paper's 14 x 14 grid. A smaller grid has a proportionally smaller minimum.
MIN_PATCHES, PAPER_GRID = 16, 14 * 14
LOG_ASPECT = (math.log(0.3), math.log(3.3))  # range of log(height / width)
LOOK_AHEAD = 16  # candidate rectangles tested together for each image, at least


def blockwise(
    grid: tuple[int, int], ratio: float, batch: int, generator: torch.Generator | Draws, blocks: str = "visible"
) -> Tensor:
    """Sample blockwise masks, bool (batch, rows * columns): unions of random rectangles with an exact patch count.

    The area of a rectangle is uniform between 16 patches and the number of patches still needed. Its aspect ratio,
    height / width, is log-uniform in (0.3, 3.3). A rectangle is accepted if it is smaller than the grid on both sides
    and adds at least one patch, but no more than needed. On grids with N < 196 patches the smallest area is 16 N / 196.

    Args:
        grid: (rows, columns) of patches.
        ratio: share of patches to hide, 0 to 1, exclusive.
        batch: number of images.
        generator: source of the random numbers.
        blocks: "visible" (released code): the rectangles are visible and cover ceil((1 - ratio) N) patches;
            "masked" (text of the paper): the rectangles are hidden and cover ceil(ratio N) patches.

    Raises:
        ValueError: a ratio outside (0, 1), an unknown `blocks`, or a grid so narrow that no rectangle is smaller than
            the grid on both sides.
    """
    rows, columns = grid
    if blocks not in ("visible", "masked"):
        raise ValueError(f"blocks: expected 'visible' or 'masked', got {blocks!r}")
    narrowest = max(1, round((_smallest_area(grid) * math.exp(LOG_ASPECT[0])) ** 0.5))
    if min(grid) <= narrowest:
        raise ValueError(f"grid: blocks need more than {narrowest} rows and columns of patches, got {rows} x {columns}")
    count = _count_patches(ratio, grid, hidden=blocks == "masked")
    covered = _cover(rows, columns, count, batch, Draws.of(generator, batch))
    return covered if blocks == "visible" else ~covered


def random(grid: tuple[int, int], ratio: float, batch: int, generator: torch.Generator | Draws) -> Tensor:
    """Sample masks of independent patches, bool (batch, rows * columns), with ceil((1 - ratio) N) of them visible.

    Args:
        grid: (rows, columns) of patches.
        ratio: share of patches to hide, 0 to 1, exclusive.
        batch: number of images.
        generator: source of the random numbers.

    Raises:
        ValueError: a ratio outside (0, 1).
    """
    visible_count = _count_patches(ratio, grid, hidden=False)
    noise = Draws.of(generator, batch).uniform(grid[0] * grid[1])
    return noise.T.argsort(dim=1).argsort(dim=1) < visible_count


def _count_patches(ratio: float, grid: tuple[int, int], *, hidden: bool) -> int:
    """Compute the number of hidden or of visible patches, rounded up."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected a number between 0 and 1, exclusive, got {ratio:g}")
    share = ratio if hidden else 1 - ratio
    return math.ceil(round(share * grid[0] * grid[1], 6))  # in floats 1 - 0.6 is slightly more than 0.4


def _smallest_area(grid: tuple[int, int]) -> float:
    """Compute the area of the smallest block, in patches."""
    return MIN_PATCHES * min(1.0, grid[0] * grid[1] / PAPER_GRID)


def _cover(rows: int, columns: int, count: int, batch: int, draws: Draws) -> Tensor:
    """Cover exactly `count` patches of each image with rectangles, bool (batch, rows * columns).

    Each image takes the first candidate that is accepted, until it has `count` patches. Most candidates are rejected,
    so many are tested together. A summed-area table of each image gives the number of patches a candidate would add.
    """
    smallest = _smallest_area((rows, columns))
    covered = np.zeros((batch, rows, columns), dtype=bool)
    needed, tried = np.full(batch, count), np.zeros(batch, dtype=np.int64)
    while len(pending := np.flatnonzero(needed)):
        # Each round tests at least LOOK_AHEAD candidates for an image, and more once few images are pending.
        tries = max(LOOK_AHEAD, LOOK_AHEAD * batch // (4 * len(pending)))
        # Four random numbers for each candidate: area, aspect ratio, top and left.
        numbers = draws.ahead(pending, 4 * tried[pending], 4 * tries).reshape(tries, 4, -1)
        for_area, for_aspect, for_top, for_left = numbers.transpose(1, 0, 2)
        area = smallest + (needed[pending] - smallest) * for_area
        aspect = np.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * for_aspect)
        height, width = np.round(np.sqrt(area * aspect)).astype(int), np.round(np.sqrt(area / aspect)).astype(int)
        fits = (height < rows) & (width < columns)
        # A candidate that is too large becomes an empty rectangle, which is never accepted.
        height, width = np.where(fits, height, 0), np.where(fits, width, 0)
        top, left = (for_top * (rows - height + 1)).astype(int), (for_left * (columns - width + 1)).astype(int)
        bottom, right = top + height, left + width
        sums = np.zeros((len(pending), rows + 1, columns + 1), dtype=np.int64)
        sums[:, 1:, 1:] = covered[pending].cumsum(axis=1).cumsum(axis=2)
        i = np.arange(len(pending))
        overlap = sums[i, bottom, right] - sums[i, top, right] - sums[i, bottom, left] + sums[i, top, left]
        gain = height * width - overlap
        accepted = (gain > 0) & (gain <= needed[pending])
        first = accepted.argmax(axis=0)
        found = accepted[first, i]
        tried[pending] += np.where(found, first + 1, tries)
        i, first, image = i[found], first[found], pending[found]
        y, x = np.arange(rows)[None, :, None], np.arange(columns)[None, None, :]
        top, left, bottom, right = (edge[first, i][:, None, None] for edge in (top, left, bottom, right))
        covered[image] |= (y >= top) & (y < bottom) & (x >= left) & (x < right)
        needed[image] -= gain[first, i]
    draws.used += 4 * int(tried.max())
    return torch.from_numpy(covered).flatten(1)
