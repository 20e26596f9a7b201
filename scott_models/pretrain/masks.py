"""Which patches a model may see: boolean (B, N), True = visible, every image with exactly the same count.

Source: paper, Section 3 (blockwise sampling after BEiT) and the released code, which makes the blocks *visible*.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..data.random_streams import Draws

# The smallest block, in patches of the paper's 14 x 14 grid; on a smaller grid it shrinks with the number of patches.
MIN_PATCHES, PAPER_GRID = 16, 14 * 14
LOG_ASPECT = (math.log(0.3), math.log(3.3))
LOOK_AHEAD = 16  # rectangles of each image that are looked at together, at least


def blockwise(
    grid: tuple[int, int], ratio: float, batch: int, generator: torch.Generator | Draws, blocks: str = "visible"
) -> Tensor:
    """Union of random rectangles, drawn until the count is exact: bool (batch, rows * columns).

    A block's area is uniform between 16 patches and what is still needed, its aspect log-uniform in (0.3, 3.3); it is
    taken if it is smaller than the grid on both sides and adds at least one patch and no more than needed. Grids of
    fewer than 196 patches use 16 N / 196 patches as the smallest area.

    Args:
        ratio: share of patches to hide, 0 to 1, exclusive.
        blocks: "visible", the released code: the blocks are seen, ceil((1 - ratio) N) patches of them;
            "masked", the paper's text: the blocks are hidden, ceil(ratio N) patches of them.

    Raises:
        ValueError: a ratio outside (0, 1), an unknown `blocks`, or a grid so narrow that no rectangle is smaller than
            the grid on both sides.
    """
    rows, columns = grid
    if blocks not in ("visible", "masked"):
        raise ValueError(f"blocks: expected 'visible' or 'masked', got {blocks!r}")
    narrowest = max(1, round((_smallest(grid) * math.exp(LOG_ASPECT[0])) ** 0.5))
    if min(grid) <= narrowest:
        raise ValueError(f"grid: blocks need more than {narrowest} rows and columns of patches, got {rows} x {columns}")
    count = _count(ratio, grid, hidden=blocks == "masked")
    covered = _cover(rows, columns, count, batch, Draws.of(generator, batch))
    return covered if blocks == "visible" else ~covered


def random(grid: tuple[int, int], ratio: float, batch: int, generator: torch.Generator | Draws) -> Tensor:
    """Independent patches, ceil((1 - ratio) N) of them visible: bool (batch, rows * columns).

    Raises:
        ValueError: a ratio outside (0, 1).
    """
    visible_count = _count(ratio, grid, hidden=False)
    noise = Draws.of(generator, batch).uniform(grid[0] * grid[1])
    return noise.T.argsort(dim=1).argsort(dim=1) < visible_count


def _count(ratio: float, grid: tuple[int, int], *, hidden: bool) -> int:
    """How many patches a share is, rounded up; of the hidden ones, or of the visible."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio: expected a number between 0 and 1, exclusive, got {ratio:g}")
    share = ratio if hidden else 1 - ratio
    return math.ceil(round(share * grid[0] * grid[1], 6))  # 1 - 0.6 is a little more than 0.4


def _smallest(grid: tuple[int, int]) -> float:
    """Area of the smallest block, in patches."""
    return MIN_PATCHES * min(1.0, grid[0] * grid[1] / PAPER_GRID)


def _cover(rows: int, columns: int, count: int, batch: int, draws: Draws) -> Tensor:
    """Rectangles, each image's one after the other: the first of its draws that fits, until it has `count` patches.

    Many draws are looked at together, since most do not fit: what a rectangle would add follows from the sums over all
    rectangles that begin in the first corner.
    """
    smallest = _smallest((rows, columns))
    covered = np.zeros((batch, rows, columns), dtype=bool)
    needed, tried = np.full(batch, count), np.zeros(batch, dtype=np.int64)
    while len(pending := np.flatnonzero(needed)):
        tries = max(LOOK_AHEAD, LOOK_AHEAD * batch // (4 * len(pending)))
        numbers = draws.ahead(pending, 4 * tried[pending], 4 * tries).reshape(tries, 4, -1)
        for_area, for_aspect, for_top, for_left = numbers.transpose(1, 0, 2)
        area = smallest + (needed[pending] - smallest) * for_area
        aspect = np.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * for_aspect)
        height, width = np.round(np.sqrt(area * aspect)).astype(int), np.round(np.sqrt(area / aspect)).astype(int)
        fits = (height < rows) & (width < columns)
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
