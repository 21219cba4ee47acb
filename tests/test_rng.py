import math
from itertools import product

import numpy as np
import pytest

from rn50 import rng

MASK = (1 << 64) - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, one number after the other."""
    values = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(z ^ (z >> 31))
    return values


def test_the_reference_gives_the_published_numbers():
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("stream", [0, 1, 1234567, 2**63, MASK])
def test_each_sample_has_a_splitmix64_of_its_own(stream):
    ids = np.array([0, 1, 2, 999, 5])
    expected = [splitmix64(splitmix64(stream, i + 1)[-1], 4) for i in ids.tolist()]
    assert rng.bits(stream, ids, 4).tolist() == expected


def test_draws_are_those_of_every_machine_and_version():
    assert rng.key(0, "crop", 3) == 6464960759623852516
    assert rng.key(7, "order") == 17168418518441662788
    draws = rng.uniform(rng.key(0, "crop", 3), np.array([0, 41]), 2)
    assert draws.tolist() == [
        [0.6544339509715731, 0.04324987821991033],
        [0.8110624065114398, 0.1437777634067956],
    ]
    assert rng.permutation(rng.key(0, "order", 0), 10).tolist() == [5, 4, 9, 1, 8, 0, 6, 2, 3, 7]


def test_draws_do_not_depend_on_what_else_is_drawn():
    stream = rng.key(3, "crop", 1)
    ids = np.arange(100)
    all_draws = rng.uniform(stream, ids, 6)
    some = np.array([42, 7, 99, 7, 0])
    assert np.array_equal(rng.uniform(stream, some, 6), all_draws[some])
    assert np.array_equal(rng.uniform(stream, ids, 2), all_draws[:, :2])


def test_seeds_purposes_and_positions_have_streams_of_their_own():
    keys = {
        rng.key(seed, purpose, *position)
        for seed, purpose, position in product(
            (0, 1, 10, 11), ("crop", "flip", "order"), ((), (0,), (1,), (10,), (0, 1), (1, 0))
        )
    }
    assert len(keys) == 4 * 3 * 6
    rows = rng.uniform(rng.key(0, "crop", 0), np.arange(50), 20)
    assert len(np.unique(rows)) == rows.size


def test_draws_are_uniform():
    draws = rng.uniform(rng.key(0, "test"), np.arange(20_000), 10)
    assert draws.min() >= 0
    assert draws.max() < 1
    n = draws.size
    assert draws.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert draws.var() == pytest.approx(1 / 12, abs=4 / math.sqrt(180 * n))
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert 99 - 5 * math.sqrt(198) < chi_square < 99 + 5 * math.sqrt(198)


def test_the_draws_of_one_sample_of_neighbours_and_of_epochs_are_not_correlated():
    first, second = (rng.uniform(rng.key(0, "test", e), np.arange(20_000), 4) for e in (0, 1))
    pairs = [(first[:, 0], first[:, 1]), (first[:-1, 0], first[1:, 0]), (first, second)]
    for one, other in pairs:
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(one.size)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_permutation_holds_every_number_once(n):
    order = rng.permutation(rng.key(0, "order", 0), n)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_all_permutations_are_equally_likely():
    runs = 6000
    orders = [tuple(rng.permutation(rng.key(s, "order"), 3).tolist()) for s in range(runs)]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert len(counts) == 6
    assert ((counts - runs / 6) ** 2 / (runs / 6)).sum() < 5 + 5 * math.sqrt(10)
