"""The images on which a network is most wrong, shown as it sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from rn50.analyze.drawing import canvas, picture, shortened, whole_percent
from rn50.analyze.predictions import Predictions
from rn50.analyze.section import Picture, Section

Decode = Callable[[Int64[np.ndarray, " ids"]], UInt8[np.ndarray, "ids px px 3"]]
"""Returns images of the split by their numbers."""

_COLUMNS = 4
_SMOOTHED_BELOW = 128
"""Smaller images are enlarged smoothly: their pixels tell no more."""


@dataclass(frozen=True, slots=True)
class Labels:
    """How images and classes are called."""

    class_ids: tuple[str, ...]
    names: tuple[str, ...]
    key: Callable[[int], str]
    """The name of an image of the split."""


def hardest(seen: Predictions, most: int) -> Int64[np.ndarray, " ids"]:
    """Return the images of which the true class was thought least likely, the worst first."""
    order = np.lexsort((seen.true_probability, -seen.loss_units))
    return order[~seen.correct[order]][:most]


def most_confident(seen: Predictions, most: int) -> Int64[np.ndarray, " ids"]:
    """Return the wrong answers that the network was surest of, the surest first."""
    order = np.argsort(-seen.confidence, kind="stable")
    return order[~seen.correct[order]][:most]


def section(seen: Predictions, labels: Labels, decode: Decode, most: int) -> Section:
    """Return galleries of the hardest images and of the most confident mistakes.

    Args:
        seen: The network's answers.
        labels: How images and classes are called.
        decode: Decodes what is shown.
        most: Images of each gallery, at least 1.
    """
    wrong = int((~seen.correct).sum())
    share = wrong / len(seen.labels)
    parts = [
        f"{wrong:,} of {len(seen.labels):,} images ({share:.2%}) are taken for another class. "
        "Mistakes of which a network is very sure are often wrong labels, or images of several "
        "things. In brackets: the probability that it gave to the class."
    ]
    facts: dict[str, Any] = {"wrong": wrong}
    pictures = []
    for gallery in _galleries(wrong, most):
        ids = gallery.choose(seen, most)
        alt = f"{gallery.title}: {len(ids)} images with their true and predicted classes."
        shown = _grid(seen, labels, decode(ids), ids, f"{gallery.name}.png", alt)
        pictures.append(shown)
        parts += [f"### {gallery.title}", gallery.why, shown.markdown]
        facts[gallery.name] = [_facts(seen, labels, i) for i in ids.tolist()]
    return Section("Mistakes", "\n\n".join(parts), facts, tuple(pictures))


@dataclass(frozen=True, slots=True)
class _Gallery:
    name: str
    title: str
    why: str
    choose: Callable[[Predictions, int], Int64[np.ndarray, " ids"]]


def _galleries(wrong: int, most: int) -> list[_Gallery]:
    order = "In the order of the true class's probability, the least likely first."
    if wrong <= most:
        return [_Gallery("hardest", "All mistakes", order, hardest)] if wrong else []
    sure = "In the order of the wrong answer's probability, the surest first."
    return [
        _Gallery("hardest", "The hardest images", order, hardest),
        _Gallery("confident", "The most confident mistakes", sure, most_confident),
    ]


def _facts(seen: Predictions, labels: Labels, i: int) -> dict[str, Any]:
    true, predicted = int(seen.labels[i]), int(seen.predicted[i])
    return {
        "image": labels.key(i),
        "true": labels.class_ids[true],
        "true_name": labels.names[true],
        "true_probability": float(seen.true_probability[i]),
        "true_rank": int(seen.true_rank[i]) + 1,
        "predicted": labels.class_ids[predicted],
        "predicted_name": labels.names[predicted],
        "confidence": float(seen.confidence[i]),
    }


def _grid(
    seen: Predictions,
    labels: Labels,
    images: UInt8[np.ndarray, "ids px px 3"],
    ids: Int64[np.ndarray, " ids"],
    name: str,
    alt: str,
) -> Picture:
    rows = -(-len(ids) // _COLUMNS)
    figure = canvas(8, 2.45 * rows)
    smooth = "bicubic" if images.shape[1] < _SMOOTHED_BELOW else "antialiased"
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel().tolist()
    for axes in cells:
        axes.set_axis_off()
    for axes, image, i in zip(cells, images, ids.tolist(), strict=False):
        axes.imshow(image, interpolation=smooth)
        true, predicted = labels.names[seen.labels[i]], labels.names[seen.predicted[i]]
        axes.set_title(
            f"is: {shortened(true, 24)} ({whole_percent(float(seen.true_probability[i]))})\n"
            f"said: {shortened(predicted, 22)} ({whole_percent(float(seen.confidence[i]))})",
            fontsize=7.5,
            loc="left",
        )
    return picture(figure, name, alt)
