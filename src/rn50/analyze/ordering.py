"""An order of the classes in which those that are mistaken for each other are neighbours."""

import numpy as np
from jaxtyping import Float64, Int64


def confusion_order(
    confusion: Int64[np.ndarray, "classes classes"],
) -> Int64[np.ndarray, " classes"]:
    """Return the classes in an order that gathers a confusion matrix around its diagonal.

    Classes are merged by average linkage (Sokal and Michener, 1958), the similarity of two being
    the mean share of the one's images that are taken for the other. Each merge turns the two groups
    so that their touching ends are the most similar (as Gruvaeus and Wainer, 1972). Deterministic.

    Args:
        confusion: Counts; rows are the true classes.
    """
    support = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(support, 1)
    similarity = (shares + shares.T) / 2
    np.fill_diagonal(similarity, 0.0)
    orders: dict[int, list[int]] = {i: [i] for i in range(len(confusion))}
    for left, right, _ in average_linkage(similarity):
        orders[left] = _joined(orders[left], orders.pop(right), similarity)
    return np.array([i for order in orders.values() for i in order], np.int64)


def average_linkage(
    similarity: Float64[np.ndarray, "items items"],
) -> list[tuple[int, int, float]]:
    """Return the merges of a hierarchical clustering, by nearest-neighbour chains in O(n²).

    Checked against ``scipy.cluster.hierarchy.linkage(method="average")``. The chains are those of
    Murtagh (1983), "A survey of recent advances in hierarchical clustering algorithms".

    Args:
        similarity: Symmetric; the diagonal is not used.

    Returns:
        Items minus one merges (a, b, similarity): group b goes into group a, which keeps a's
        number. A merge follows those of its parts, but need not follow all that are more similar.
    """
    count = len(similarity)
    near = similarity.astype(np.float64, copy=True)
    np.fill_diagonal(near, -np.inf)
    sizes = np.ones(count)
    merges: list[tuple[int, int, float]] = []
    chain: list[int] = []
    alive = np.ones(count, dtype=bool)
    while len(merges) < count - 1:
        if not chain:
            chain = [int(alive.argmax())]
        end = chain[-1]
        best = int(near[end].argmax())
        # Among equals the one before: the chain must not run in a circle.
        if len(chain) > 1 and near[end, chain[-2]] >= near[end, best]:
            best = chain[-2]
        if len(chain) < 2 or best != chain[-2]:
            chain.append(best)
            continue
        del chain[-2:]
        kept, gone = min(end, best), max(end, best)
        merges.append((kept, gone, float(near[kept, gone])))
        mean = (sizes[kept] * near[kept] + sizes[gone] * near[gone]) / (sizes[kept] + sizes[gone])
        near[kept], near[:, kept] = mean, mean
        near[gone], near[:, gone] = -np.inf, -np.inf
        near[kept, kept] = -np.inf
        sizes[kept] += sizes[gone]
        alive[gone] = False
    return merges


def _joined(
    left: list[int], right: list[int], similarity: Float64[np.ndarray, "items items"]
) -> list[int]:
    """Return both groups as one, turned so that their most similar ends touch."""
    turns = [
        (left, right),
        (left, right[::-1]),
        (left[::-1], right),
        (left[::-1], right[::-1]),
    ]
    first, second = max(turns, key=lambda turn: similarity[turn[0][-1], turn[1][0]])
    return first + second
