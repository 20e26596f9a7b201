import math

import numpy as np
import pytest
import torch

from scott_models.data.random_streams import Draws
from scott_models.pretrain import masks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (4, 4), (2, 2), (5, 20), (28, 28)])
@pytest.mark.parametrize("ratio", [0.4, 0.6])
def test_counts_are_exact(grid, ratio):
    patches = grid[0] * grid[1]
    visible = masks.blockwise(grid, ratio, 50, generator())
    assert visible.shape == (50, patches)
    assert visible.dtype == torch.bool
    assert (visible.sum(dim=1) == math.ceil(round((1 - ratio) * patches, 6))).all()
    hidden = ~masks.blockwise(grid, ratio, 50, generator(), blocks="masked")
    assert (hidden.sum(dim=1) == math.ceil(round(ratio * patches, 6))).all()
    assert (masks.random(grid, ratio, 50, generator()).sum(dim=1) == visible[0].sum()).all()


def test_the_papers_counts():
    assert masks.blockwise((14, 14), 0.6, 1, generator()).sum() == 79
    assert (~masks.blockwise((14, 14), 0.6, 1, generator(), blocks="masked")).sum() == 118


def one_after_the_other(rows, columns, count, draws):
    """Apply the rule literally to one image: draw a rectangle, accept it if it fits, repeat."""
    visible, smallest = torch.zeros(rows, columns, dtype=torch.bool), 16 * min(1, rows * columns / 196)
    while (needed := count - int(visible.sum())) > 0:
        for_area, for_aspect, for_top, for_left = draws.uniform(4)[:, 0].tolist()
        area = smallest + (needed - smallest) * for_area
        aspect = math.exp(math.log(0.3) + math.log(3.3 / 0.3) * for_aspect)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top, left = int(for_top * (rows - height + 1)), int(for_left * (columns - width + 1))
        if height < rows and width < columns:
            more = visible.clone()
            more[top : top + height, left : left + width] = True
            if 0 < more.sum() - visible.sum() <= needed:
                visible = more
    return visible.flatten()


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (5, 20)])
def test_looking_ahead_changes_nothing(grid):
    seeds = np.arange(40, dtype=np.uint64)
    together = masks.blockwise(grid, 0.6, 40, Draws(seeds))
    for i, visible in enumerate(together):
        assert torch.equal(visible, one_after_the_other(*grid, int(visible.sum()), Draws(seeds[i : i + 1])))


def test_statistics_of_the_original():
    """Compare with 8,000 of its masks: P(visible) corner .045, mid-edge .203, centre .752; equal neighbours .886."""
    visible = masks.blockwise((14, 14), 0.6, 8000, generator()).view(-1, 14, 14).float()
    share = visible.mean(dim=0)
    corners = share[[0, 0, -1, -1], [0, -1, 0, -1]]
    edges = torch.cat([share[[0, -1]][:, 6:8].flatten(), share[6:8][:, [0, -1]].flatten()])
    equal = (
        (visible[:, 1:] == visible[:, :-1]).float().mean() + (visible[:, :, 1:] == visible[:, :, :-1]).float().mean()
    ) / 2

    def error(p):  # three standard errors of two estimates from 8,000 masks, plus rounding
        return 3 * math.sqrt(2 * p * (1 - p) / 8000) + 0.0005

    assert corners.mean().item() == pytest.approx(0.045, abs=error(0.045))
    assert edges.mean().item() == pytest.approx(0.203, abs=error(0.203))
    assert share[6:8, 6:8].mean().item() == pytest.approx(0.752, abs=error(0.752))
    assert equal.item() == pytest.approx(0.886, abs=0.003)


def test_random_masks_of_a_grid_that_is_not_square():
    assert masks.random((2, 6), 0.5, 3, torch.Generator()).shape == (3, 12)


def test_random_masks_have_no_structure():
    visible = masks.random((14, 14), 0.6, 4000, generator()).view(-1, 14, 14).float()
    assert visible.mean(dim=0).sub(79 / 196).abs().max() < 0.05
    expected = (79 * 78 + 117 * 116) / (196 * 195)
    assert (visible[:, 1:] == visible[:, :-1]).float().mean().item() == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("draw", [masks.blockwise, masks.random])
def test_the_generator_owns_the_randomness(draw):
    first = draw((14, 14), 0.6, 8, generator(1))
    torch.rand(10)
    assert torch.equal(first, draw((14, 14), 0.6, 8, generator(1)))
    assert not torch.equal(first, draw((14, 14), 0.6, 8, generator(2)))


def test_impossible_masks_raise():
    for grid, needed in (((1, 14), 1), ((14, 1), 1), ((2, 100), 2)):
        with pytest.raises(ValueError, match=f"more than {needed} rows.*got {grid[0]} x"):
            masks.blockwise(grid, 0.6, 1, generator())
    for ratio in (0, 1, 1.5):
        with pytest.raises(ValueError, match=f"ratio.*between 0 and 1.*got {ratio:g}"):
            masks.blockwise((14, 14), ratio, 1, generator())
    with pytest.raises(ValueError, match="'visible' or 'masked', got 'hidden'"):
        masks.blockwise((14, 14), 0.6, 1, generator(), blocks="hidden")
