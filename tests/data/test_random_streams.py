import numpy as np
import pytest
import torch

from scott_models.data.random_streams import Draws


def keyed(key, epochs, indices):
    return Draws.keyed(np.uint64(key), torch.tensor(epochs), torch.tensor(indices))


def test_splitmix64():
    """Compare with the first outputs of the published generator for seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    drawn = Draws(np.array([1234567], dtype=np.uint64)).uniform(4)[:, 0]
    assert drawn.tolist() == [(number >> 11) * 2.0**-53 for number in expected]


def mix(number):
    """Compute the hash of splitmix64 with Python's integers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ number >> shift) * factor % 2**64
    return number ^ number >> 31


def test_streams_are_those_of_earlier_releases():
    """Keep the streams: with others, a seed would give other weights than before."""
    gamma = 0x9E3779B97F4A7C15
    seed = mix((mix((5 + gamma * (3 + 1)) % 2**64) + gamma * (7 + 1)) % 2**64)
    draws = keyed(5, [3], [7])
    assert draws.seeds.tolist() == [seed]
    assert draws.uniform(1).item() == (mix((seed + gamma) % 2**64) >> 11) * 2.0**-53
    assert Draws(draws.seeds).shared.seeds.tolist() == [mix((seed + gamma) % 2**64)]
    updates = [Draws.keyed(np.uint64(5), torch.tensor([3]), torch.tensor([7]), update=i).shared for i in (0, 2)]
    key = 5 ^ 0xBF58476D1CE4E5B9
    assert [shared.seeds.tolist() for shared in updates] == [[mix(key)], [mix((key + 2 * gamma) % 2**64)]]


def test_an_image_draws_the_same_in_any_company():
    together = keyed(5, [0, 0, 3], [7, 8, 7])
    first, second = together.uniform(4), together.uniform(2)
    alone = keyed(5, [3], [7])
    assert torch.equal(alone.uniform(4), first[:, 2:])
    assert torch.equal(alone.uniform(2), second[:, 2:])
    assert len(set(torch.cat([first, second]).flatten().tolist())) == 18  # other images, epochs and numbers differ
    assert not torch.equal(keyed(6, [3], [7]).uniform(4), first[:, 2:])


def test_numbers_are_uniform_and_unrelated():
    """Test neighbouring images, epochs and numbers, where a weak hash would show."""
    images = 20_000
    drawn = torch.cat([keyed(0, [epoch] * images, range(images)).uniform(3) for epoch in (0, 1)])
    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    counts = torch.stack([torch.histc(row, bins=20, min=0, max=1) for row in drawn])
    chi_square = ((counts - images / 20) ** 2 / (images / 20)).sum(dim=1)
    assert (chi_square < 43.8).all()  # 99.9 % quantile for 19 degrees of freedom
    correlation = torch.corrcoef(torch.cat([drawn, drawn.roll(1, dims=1)]))
    assert (correlation - torch.eye(12)).abs().max() < 5 / images**0.5


def test_a_generator_seeds_a_stream_for_each_image():
    generator = torch.Generator().manual_seed(3)
    first, second = (Draws.of(generator, 4).uniform(2) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(Draws.of(torch.Generator().manual_seed(3), 4).uniform(2), first)
    draws = Draws.of(generator, 4)
    assert Draws.of(draws, 4) is draws


@pytest.mark.parametrize("count", [0, 1, 5])
def test_shapes(count):
    assert keyed(0, [0, 0], [1, 2]).uniform(count).shape == (count, 2)


def test_ahead_are_the_numbers_that_come():
    draws, same = (Draws(np.arange(3, dtype=np.uint64)) for _ in range(2))
    for each in (draws, same):
        each.uniform(2)
    ahead = draws.ahead(np.array([2, 0]), np.array([1, 4]), 3)
    coming = same.uniform(7).numpy()
    assert np.array_equal(ahead, np.stack([coming[1:4, 2], coming[4:7, 0]], axis=1))
    assert draws.used == 2


def test_views_of_an_image_have_streams_of_their_own():
    where = torch.tensor([0, 3]), torch.tensor([7, 8])
    first, again, second, third = (Draws.keyed(np.uint64(5), *where, view=view).uniform(3) for view in (0, 0, 1, 2))
    assert torch.equal(first, keyed(5, [0, 3], [7, 8]).uniform(3))
    assert torch.equal(first, again)
    assert len(set(torch.cat([first, second, third]).flatten().tolist())) == 18
