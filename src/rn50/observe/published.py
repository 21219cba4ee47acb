"""Curves that others have published of runs that recipes repeat: what to expect, by epoch."""

import difflib
from dataclasses import dataclass

from rn50.errors import UsageError
from rn50.observe.history import History


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation accuracy of a published run, at some of its epochs."""

    recipe: str
    """The recipe that repeats the run; also the curve's name."""
    source: str
    """What was trained, on what, and where that is written."""
    num_epochs: int
    """How long the run was."""
    points: tuple[tuple[int, float, float], ...]
    """Epoch, top-1 and top-5 in percent, by epoch."""
    half_width: float = 0.01
    """How far above and below the curve another run of the recipe is taken to agree with it, as a
    fraction. An allowance of ours: the curve is of one run, whose spread over seeds is unknown."""

    @property
    def label(self) -> str:
        """What a legend says of the band."""
        width = 100 * self.half_width
        return f"published ± {width:g} point{'s' * (width != 1)} ({self.source})"

    def of(self, score: str, last_epoch: float) -> list[tuple[float, float]]:
        """Return epochs, up to a last one, and accuracies (fractions) of ``top1`` or ``top5``."""
        column = {"top1": 1, "top5": 2}[score]
        return [(point[0], point[column] / 100) for point in self.points if point[0] <= last_epoch]


CURVES = {
    curve.recipe: curve
    for curve in (
        Curve(
            recipe="s3-onecycle-50",
            source="S3: ResNet-50, one T4, OneCycle, 50 epochs",
            num_epochs=51,
            points=(
                *((2, 11.83, 28.86), (5, 39.83, 66.59), (10, 49.91, 76.08), (15, 49.32, 75.62)),
                *((20, 52.58, 78.28), (25, 55.77, 81.15), (30, 57.09, 82.01), (35, 58.86, 82.99)),
                *((40, 62.23, 85.21), (43, 66.57, 87.81), (45, 69.27, 89.60), (47, 72.38, 91.16)),
                *((49, 74.65, 92.31), (51, 75.27, 92.56)),
            ),
        ),
    )
}
"""Published curves by the recipe that they belong to."""


def curve(name: str) -> Curve:
    """Return the published curve of a recipe.

    Raises:
        UsageError: None is known.
    """
    if name not in CURVES:
        close = difflib.get_close_matches(name, CURVES, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        known = ", ".join(CURVES)
        raise UsageError(
            f"no published curve is known of '{name}'{hint}; name a recipe of which one is: {known}"
        )
    return CURVES[name]


def belonging_to(history: History) -> Curve | None:
    """Return the published curve of the recipe that a run follows, if one is known."""
    return CURVES.get(history.title)
