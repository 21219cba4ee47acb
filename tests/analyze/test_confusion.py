import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from analyze.seen import counts
from rn50.analyze.confusion import close_up, matrix, ordered_shares, pooled
from rn50.analyze.ordering import average_linkage, confusion_order


def hidden_blocks(size, blocks, seed=0):
    """A confusion matrix of groups of classes, in a drawn order; and the group of each class."""
    draws = np.random.default_rng(seed)
    group = draws.permutation(np.repeat(np.arange(blocks), size))
    within = group[:, None] == group[None, :]
    confusion = np.where(within, draws.integers(1, 9, (len(group),) * 2), 0)
    confusion += np.diag(np.full(len(group), 40))
    return confusion, group


def test_classes_that_are_confused_become_neighbours():
    confusion, group = hidden_blocks(6, 5)
    order = confusion_order(confusion)
    assert sorted(order) == list(range(30))
    assert np.count_nonzero(np.diff(group[order])) == 4
    assert np.count_nonzero(np.diff(group)) > 4


def test_touching_ends_of_groups_are_the_most_similar():
    chain = np.diag(np.full(6, 50))
    shuffled = [3, 0, 5, 1, 4, 2]  # place of each class on a line of neighbours
    for a in range(6):
        for b in range(6):
            if abs(shuffled[a] - shuffled[b]) == 1:
                chain[a, b] = 5
    places = [shuffled[i] for i in confusion_order(chain)]
    assert places in (sorted(places), sorted(places, reverse=True))


@pytest.mark.parametrize("count", [2, 3, 40])
def test_merges_are_those_of_scipy(count):
    draws = np.random.default_rng(count)
    similarity = draws.random((count, count))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 0)
    distance = 1 - similarity
    np.fill_diagonal(distance, 0)
    expected = linkage(squareform(distance, checks=False), method="average")
    got = sorted(1 - height for _, _, height in average_linkage(similarity))
    assert np.allclose(got, expected[:, 2])


@pytest.mark.parametrize("count", [1, 5])
def test_classes_that_are_never_confused_keep_their_order(count):
    assert list(confusion_order(np.diag(np.full(count, 3)))) == list(range(count))


def test_the_order_is_the_same_each_time():
    confusion, _ = hidden_blocks(4, 5)
    assert np.array_equal(confusion_order(confusion), confusion_order(confusion.copy()))


def test_what_is_taken_for_a_class_without_images_has_a_column():
    confusion = counts([0, 0, 2, 2], [0, 3, 2, 0], 5)
    shares, order, outside = ordered_shares(confusion)
    assert sorted(order) == [0, 2]
    assert outside
    assert shares.shape == (2, 3)
    assert np.allclose(shares.sum(axis=1), 1)
    assert shares[list(order).index(0), 2] == 0.5
    whole, _, none_outside = ordered_shares(counts([0, 1, 1], [0, 1, 0], 2))
    assert not none_outside
    assert whole.shape == (2, 2)


@pytest.mark.parametrize(("rows", "most", "side"), [(1000, 500, 2), (10, 500, 1), (7, 3, 3)])
def test_pooled_cells_are_the_largest_of_their_squares(rows, most, side):
    shares = np.random.default_rng(0).random((rows, rows + 1 if rows == 7 else rows))
    cells, got = pooled(shares, most)
    assert got == side
    assert max(cells.shape) <= most
    for row, column in [(0, 0), (cells.shape[0] - 1, cells.shape[1] - 1)]:
        square = shares[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert cells[row, column] == square.max()


def test_the_close_up_shows_the_pairs_that_the_whole_is_too_small_for():
    confusion, _ = hidden_blocks(5, 6)
    names = [f"class {i}" for i in range(30)]
    shown = close_up(confusion, names, [(i, i + 1) for i in range(0, 30, 2)])
    assert shown is not None
    assert "16 classes" in shown.alt
    assert close_up(confusion, names, []) is None
    small, _ = hidden_blocks(4, 4)
    assert close_up(small, names, [(0, 1)]) is None


@pytest.mark.parametrize("count", [1, 2, 20, 21, 40, 41, 300])
def test_a_matrix_of_any_size_is_drawn_without_a_warning(count):
    draws = np.random.default_rng(0)
    confusion = np.diag(np.full(count, 10)) + draws.integers(0, 2, (count, count))
    assert matrix(confusion, [f"a class with a long name, {i}" for i in range(count)]).png
