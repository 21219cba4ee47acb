"""Which classes a network knows, and which it takes for each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.ticker import PercentFormatter

from rn50.analyze.confusion import close_up, matrix
from rn50.analyze.drawing import BLUE, RED, canvas, picture, shortened
from rn50.analyze.predictions import Predictions
from rn50.analyze.section import Picture, Section, escaped, table
from rn50.observe.drawing import plain

_ALL_LISTED = 20
"""Up to so many classes a table has them all; of more, the worst and the best."""
_EXTREMES = 10
_PAIRS_SHOWN = 15
_PAIRS_KEPT = 200


@dataclass(frozen=True, slots=True)
class ClassScores:
    """The scores of each class; a ratio without a denominator is NaN."""

    support: Int64[np.ndarray, " classes"]
    """Images of the class."""
    predicted: Int64[np.ndarray, " classes"]
    """Images taken for the class."""
    precision: Float64[np.ndarray, " classes"]
    """Of the images taken for the class, the share that is of it."""
    recall: Float64[np.ndarray, " classes"]
    """Of the images of the class, the share that is found: the class's top-1 accuracy."""
    f1: Float64[np.ndarray, " classes"]
    """Harmonic mean of the two."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Images of one class that are taken for another."""

    true: int
    predicted: int
    count: int
    share: float
    """Of all images of the true class."""
    reverse: int
    """Images of the predicted class that are taken for the true one."""


def class_scores(confusion: Int64[np.ndarray, "classes classes"]) -> ClassScores:
    """Return the scores of each class from the counts of a confusion matrix (rows are true).

    Checked against scikit-learn's ``precision_recall_fscore_support(zero_division=nan)``.
    """
    right = confusion.diagonal().astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        support=support,
        predicted=predicted,
        precision=_ratio(right, predicted),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, support + predicted),
    )


def confused_pairs(confusion: Int64[np.ndarray, "classes classes"], most: int) -> list[Pair]:
    """Return the most frequent mistakes, each direction for itself; by count, then by share."""
    support = confusion.sum(axis=1)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = np.nonzero(wrong)
    counts = wrong[true, predicted]
    shares = counts / support[true]
    order = np.lexsort((predicted, true, -shares, -counts))[:most]
    return [
        Pair(
            true=int(true[i]),
            predicted=int(predicted[i]),
            count=int(counts[i]),
            share=float(shares[i]),
            reverse=int(wrong[predicted[i], true[i]]),
        )
        for i in order
    ]


def section(seen: Predictions, class_ids: tuple[str, ...], names: tuple[str, ...]) -> Section:
    """Return the scores of each class, the most confused pairs and the confusion matrix.

    Args:
        seen: The network's answers.
        class_ids: Of the network's outputs.
        names: What the classes are called, no two the same.
    """
    scores = class_scores(seen.confusion)
    pairs = confused_pairs(seen.confusion, _PAIRS_KEPT)
    pictures = [_recall_picture(scores, names), matrix(seen.confusion, names)]
    if closer := close_up(seen.confusion, names, [(p.true, p.predicted) for p in pairs]):
        pictures.append(closer)
    first, *rest = pictures
    parts = [
        _in_words(seen, scores),
        first.markdown,
        _class_tables(scores, names),
        "### What is taken for what",
        _pair_table(pairs, scores, names) if pairs else "No image is taken for another class.",
        *(one.markdown for one in rest),
    ]
    facts = {
        "macro": {
            name: _number(_mean(values[scores.support > 0]))
            for name, values in (
                ("precision", scores.precision),
                ("recall", scores.recall),
                ("f1", scores.f1),
            )
        },
        "classes": _class_facts(seen, scores, class_ids, names),
        "confused_pairs": [_pair_facts(pair, class_ids, names) for pair in pairs],
    }
    return Section("Classes", "\n\n".join(parts), facts, tuple(pictures))


def _ratio(
    above: Float64[np.ndarray, " classes"], below: Int64[np.ndarray, " classes"]
) -> Float64[np.ndarray, " classes"]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _mean(values: Float64[np.ndarray, " classes"]) -> float:
    """Return the mean of the numbers there are."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "-"


def _ranked(scores: ClassScores) -> Int64[np.ndarray, " present"]:
    """Return the classes that have images, the worst first: by recall, then by F1."""
    present = np.flatnonzero(scores.support)
    return present[np.lexsort((present, scores.f1[present], scores.recall[present]))]


def _in_words(seen: Predictions, scores: ClassScores) -> str:
    present = scores.support > 0
    fewest, most = int(scores.support[present].min()), int(scores.support.max())
    each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    lines = [
        f"{present.sum():,} classes of {each} images. Averaged over the classes: precision "
        f"{_percent(_mean(scores.precision[present]))}, "
        f"recall {_percent(_mean(scores.recall))}, "
        f"F1 {_percent(_mean(scores.f1[present]))}."
    ]
    if absent := int((~present).sum()):
        outside = int(scores.predicted[~present].sum())
        lines.append(
            f"The network tells {absent:,} more classes apart, of which the data has no image; "
            f"{outside:,} images ({outside / len(seen.labels):.1%}) are taken for one of them."
        )
    if never := int((present & (scores.predicted == 0)).sum()):
        lines.append(f"{never:,} classes of the data are never predicted.")
    return " ".join(lines)


def _class_tables(scores: ClassScores, names: tuple[str, ...]) -> str:
    ranked = _ranked(scores)
    if len(ranked) <= _ALL_LISTED:
        return "### All classes, the worst first\n\n" + _class_table(ranked, scores, names)
    return "\n\n".join(
        (
            "### The worst classes",
            _class_table(ranked[:_EXTREMES], scores, names),
            "### The best classes",
            _class_table(ranked[::-1][:_EXTREMES], scores, names),
        )
    )


def _class_table(
    chosen: Int64[np.ndarray, " chosen"], scores: ClassScores, names: tuple[str, ...]
) -> str:
    rows = [
        (
            escaped(names[i]),
            f"{scores.support[i]:,}",
            _percent(scores.recall[i]),
            _percent(scores.precision[i]),
            _percent(scores.f1[i]),
        )
        for i in chosen.tolist()
    ]
    return table(("class", "images", "recall", "precision", "F1"), rows)


def _pair_table(pairs: list[Pair], scores: ClassScores, names: tuple[str, ...]) -> str:
    rows = [
        (
            escaped(names[pair.true]),
            escaped(names[pair.predicted]),
            f"{pair.count:,} of {scores.support[pair.true]:,}",
            _percent(pair.share),
            f"{pair.reverse:,}",
        )
        for pair in pairs[:_PAIRS_SHOWN]
    ]
    header = ("true class", "taken for", "images", "share", "the other way round")
    return table(header, rows, words=2)


def _class_facts(
    seen: Predictions, scores: ClassScores, class_ids: tuple[str, ...], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    hits = (seen.guesses == seen.labels[:, None]).any(axis=1)
    among_five = _ratio(
        np.bincount(seen.labels, weights=hits, minlength=seen.num_classes), scores.support
    )
    return [
        {
            "id": class_ids[i],
            "name": names[i],
            "images": int(scores.support[i]),
            "predicted": int(scores.predicted[i]),
            "precision": _number(scores.precision[i]),
            "recall": _number(scores.recall[i]),
            "f1": _number(scores.f1[i]),
            "top5": _number(among_five[i]),
        }
        for i in np.flatnonzero(scores.support + scores.predicted).tolist()
    ]


def _pair_facts(pair: Pair, class_ids: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "true": class_ids[pair.true],
        "true_name": names[pair.true],
        "predicted": class_ids[pair.predicted],
        "predicted_name": names[pair.predicted],
        "images": pair.count,
        "share": pair.share,
        "other_way_round": pair.reverse,
    }


def _recall_picture(scores: ClassScores, names: tuple[str, ...]) -> Picture:
    ranked = _ranked(scores)
    name = "classes.png"
    if len(ranked) <= 40:
        figure = canvas(8, 1.4 + 0.24 * len(ranked))
        axes = plain(figure.add_subplot())
        rows = np.arange(len(ranked))[::-1]
        for values, marker, fill, colour, label in (
            (scores.recall, "o", "full", BLUE, "recall"),
            (scores.precision, "D", "none", RED, "precision"),
        ):
            axes.plot(100 * values[ranked], rows, marker, color=colour, label=label, fillstyle=fill)
        axes.set_yticks(rows, [shortened(names[i], 28) for i in ranked.tolist()])
        axes.set_xlabel("share of images")
        axes.set_xlim(-2, 102)
        axes.xaxis.set_major_formatter(PercentFormatter())
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        alt = f"Recall and precision of each of {len(ranked)} classes, the worst at the top."
        return picture(figure, name, alt)
    figure = canvas(8, 4)
    axes = plain(figure.add_subplot())
    recall = scores.recall[ranked]
    median = float(np.median(recall))
    axes.hist(100 * recall, bins=list(range(0, 105, 5)), color=BLUE, edgecolor="white")
    axes.axvline(100 * median, color=RED, linestyle="--", label=f"median {median:.1%}")
    axes.set_xlabel("recall of the class (top-1 on its images)")
    axes.set_ylabel("classes")
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(PercentFormatter())
    axes.legend(frameon=False)
    alt = f"How many of {len(ranked):,} classes have which recall; the median is {median:.1%}."
    return picture(figure, name, alt)
