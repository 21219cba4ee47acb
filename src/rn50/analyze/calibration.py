"""Whether a network is as sure as it is right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from matplotlib.ticker import PercentFormatter

from rn50.analyze.drawing import BLUE, GREY, RED, canvas, picture
from rn50.analyze.predictions import Predictions
from rn50.analyze.section import Picture, Section, table
from rn50.observe.drawing import plain

NUM_BINS = 15
_THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How confidence and accuracy agree, in bins of equal width."""

    edges: Float64[np.ndarray, " edges"]
    """Of the bins, 0 to 1: one more than there are bins."""
    counts: Int64[np.ndarray, " bins"]
    """Images whose confidence is above a bin's lower edge and at most its upper one."""
    accuracy: Float64[np.ndarray, " bins"]
    """Share of a bin's images that are right; NaN where it has none."""
    confidence: Float64[np.ndarray, " bins"]
    """Mean confidence of a bin's images; NaN where it has none."""

    @property
    def _gaps(self) -> Float64[np.ndarray, " bins"]:
        return np.abs(np.nan_to_num(self.accuracy - self.confidence))

    @property
    def expected_error(self) -> float:
        """Return the expected calibration error: the mean gap of the two, weighted by images."""
        return float((self.counts * self._gaps).sum() / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """Return the largest gap of any bin."""
        return float(self._gaps.max())

    @property
    def images_of_maximum(self) -> int:
        """Return how many images the bin of the largest gap has: of a few it tells little."""
        return int(self.counts[self._gaps.argmax()])


def calibrate(
    confidence: Sequence[float] | np.ndarray,
    correct: Bool[np.ndarray, " images"],
    num_bins: int = NUM_BINS,
) -> Calibration:
    """Sort images into bins by confidence, as Guo et al., 2017 (arXiv:1706.04599).

    ``expected_error`` was checked against torchmetrics' ``MulticlassCalibrationError``. That puts a
    confidence of exactly 1, which float32 has for a network that is very sure, into a bin of its
    own; here, as in the paper, it is in the last one.

    Args:
        confidence: Probability of the predicted class, 0 to 1; at least one image.
        correct: Whether that class is the true one.
        num_bins: At least 1.
    """
    sure = np.asarray(confidence, np.float64)
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(places, minlength=num_bins)
    empty = np.full(num_bins, np.nan)

    def mean(values: Float64[np.ndarray, " images"]) -> Float64[np.ndarray, " bins"]:
        sums = np.bincount(places, weights=values, minlength=num_bins)
        return np.divide(sums, counts, out=empty.copy(), where=counts > 0)

    return Calibration(edges, counts, mean(correct.astype(np.float64)), mean(sure))


def accuracy_above(
    confidence: np.ndarray, correct: Bool[np.ndarray, " images"], thresholds: Sequence[float]
) -> list[tuple[float, int, float | None]]:
    """Return, for each threshold, how many images are at least so sure, and how many are right.

    Returns:
        (threshold, images, accuracy among them), the last None where there are none.
    """
    rows = []
    for threshold in thresholds:
        sure = confidence >= threshold
        count = int(sure.sum())
        rows.append((threshold, count, float(correct[sure].mean()) if count else None))
    return rows


def section(seen: Predictions) -> Section:
    """Return the calibration errors, the reliability diagram and the accuracy by confidence."""
    found = calibrate(seen.confidence, seen.correct)
    scores = seen.scores
    sure = float(seen.confidence.mean(dtype=np.float64))
    above = accuracy_above(seen.confidence, seen.correct, _THRESHOLDS)
    gap = sure - scores.top1
    kind = "overconfident" if gap > 0 else "underconfident"
    verdict = "as sure as it is right" if abs(gap) < 2 * scores.top1_error else kind
    pictures = (_reliability(found), _by_confidence(seen))
    rows = [
        (
            f"at least {threshold:.0%}",
            f"{count:,}",
            f"{count / scores.images:.1%}",
            _percent(accuracy),
        )
        for threshold, count, accuracy in above
    ]
    markdown = "\n\n".join(
        (
            f"On average the network gives its answer a probability of {sure:.2%} and is right in "
            f"{scores.top1:.2%}: {verdict}. Expected calibration error "
            f"{found.expected_error:.2%} ({NUM_BINS} bins of equal width), largest gap of a bin "
            f"{found.maximum_error:.2%} (of {found.images_of_maximum:,} images), negative "
            f"log-likelihood {scores.loss:.4f}. Label smoothing and mixing train a network to be "
            "less sure than it is right.",
            pictures[0].markdown,
            "### If it answers only when it is sure",
            table(
                ("at least so sure", "images", "share of all", "top-1 among them"), rows, words=0
            ),
            pictures[1].markdown,
        )
    )
    facts = {
        "mean_confidence": sure,
        "top1": scores.top1,
        "expected_calibration_error": found.expected_error,
        "maximum_calibration_error": found.maximum_error,
        "negative_log_likelihood": scores.loss,
        "bins": [
            {"from": low, "to": high, "images": count, "accuracy": right, "confidence": mean}
            for low, high, count, right, mean in zip(
                found.edges[:-1].tolist(),
                found.edges[1:].tolist(),
                found.counts.tolist(),
                _or_none(found.accuracy),
                _or_none(found.confidence),
                strict=True,
            )
        ],
        "accuracy_above": [
            {"confidence": threshold, "images": count, "top1": accuracy}
            for threshold, count, accuracy in above
        ],
    }
    return Section("Confidence", markdown, facts, pictures)


def _or_none(values: Float64[np.ndarray, " bins"]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _reliability(found: Calibration) -> Picture:
    figure = canvas(8, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes in (plain(upper), plain(lower)):
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        axes.set_xlim(0, 1)
    middles, width = (found.edges[:-1] + found.edges[1:]) / 2, 1 / len(found.counts)
    upper.bar(
        middles,
        np.nan_to_num(found.accuracy),
        0.92 * width,
        color=BLUE,
        alpha=0.6,
        label="accuracy in the bin",
    )
    place = "at its mean confidence"
    upper.plot(found.confidence, found.accuracy, "o", color=RED, label=place, clip_on=False)
    upper.plot([0, 1], [0, 1], "--", color="0.3", label="as sure as right")
    upper.set_ylim(0, 1)
    upper.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    upper.set_ylabel("top-1 accuracy")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    lower.bar(middles, found.counts / found.counts.sum(), 0.92 * width, color=GREY)
    lower.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    lower.set_ylabel("share of images")
    lower.set_xlabel("confidence: probability of the predicted class")
    alt = (
        f"Reliability diagram: accuracy in {len(found.counts)} bins of confidence; the expected "
        f"calibration error is {found.expected_error:.2%}."
    )
    return picture(figure, "reliability.png", alt)


def _by_confidence(seen: Predictions) -> Picture:
    order = np.argsort(-seen.confidence, kind="stable")
    count = len(order)
    answered = np.arange(1, count + 1)
    accuracy = seen.correct[order].cumsum() / answered
    # The first few images alone are noise, and 50,000 points no clearer than 1,000.
    drawn = np.unique(np.linspace(min(count, max(20, count // 50)), count, 1000).astype(np.int64))
    figure = canvas(8, 4.2)
    axes = plain(figure.add_subplot())
    axes.plot(drawn / count, accuracy[drawn - 1], color=BLUE, linewidth=2)
    lowest = float(accuracy[drawn - 1].min())
    for threshold in _THRESHOLDS[1:]:
        sure = int((seen.confidence >= threshold).sum())
        if drawn[0] <= sure < count:
            place = (sure / count, accuracy[sure - 1])
            axes.plot(*place, "o", color=RED)
            axes.annotate(
                f"≥ {threshold:.0%}", place, xytext=(4, 5), textcoords="offset points", fontsize=9
            )
    axes.set_xlim(0, 1.02)
    highest = float(accuracy[drawn - 1].max())
    margin = max(0.01, 0.1 * (highest - lowest))
    bottom, top = max(0.0, lowest - margin), highest + margin
    axes.set_ylim(bottom, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(1.0, top)])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_xlabel("share of images answered, the surest first (points: confidence at least)")
    axes.set_ylabel("top-1 accuracy among them")
    alt = "Top-1 accuracy among the images of which the network is surest, by how many these are."
    return picture(figure, "confidence.png", alt)
