"""The same network at several test sizes, and with flip test-time augmentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import PercentFormatter

from rn50.analyze.drawing import BLUE, RED, canvas, picture
from rn50.analyze.predictions import Scores
from rn50.analyze.section import Picture, Section, escaped, table
from rn50.config import Images
from rn50.observe.drawing import plain

_FACTORS = (1.14, 1.28)
_PUBLISHED = (224, 288)
"""Test sizes of the published figures of ImageNet-1k."""
_IMAGENET_CLASSES = 1000
_LARGE_PX = 160
"""Test sizes from here on are tried in multiples of 32, by which the network divides an image's
side, smaller ones in multiples of 8."""


@dataclass(frozen=True, slots=True)
class AtSize:
    """Scores at one test size."""

    px: int
    resize_px: int
    plain: Scores
    """From one central crop."""
    flipped: Scores
    """From the same crop and its mirror image."""
    others: Mapping[str, Scores] = field(default_factory=dict)
    """Of the run's other networks by name, from one central crop."""


def default_sizes(images: Images, num_classes: int) -> tuple[int, ...]:
    """Return the sides to try: of the last training crops, and 1, 1.14 and 1.28 times the test's.

    1.14 is 256 for 224, the ratio of the field's test resize to its crop, and 1.28 is 288 for 224,
    the size at which timm and torchvision report networks that were trained at 224 or less. A
    network of 1000 classes that is tested at such sides is tried at 224 and 288 in any case.
    """
    step = 32 if images.test_px >= _LARGE_PX else 8
    trained = images.sizes[-1][1] if images.sizes else images.train_px
    larger = {round(factor * images.test_px / step) * step for factor in _FACTORS}
    is_imagenet = num_classes == _IMAGENET_CLASSES and images.test_px >= _LARGE_PX
    published = _PUBLISHED if is_imagenet else ()
    return tuple(sorted({trained, images.test_px, *larger, *published}))


def section(rows: Sequence[AtSize], images: Images) -> Section:
    """Return a table and a curve of the scores by test size.

    Args:
        rows: By size, ascending; the network's own test size is among them.
        images: How the network was trained and is tested.
    """
    trained = images.sizes[-1][1] if images.sizes else images.train_px
    shown = _curve(rows, trained, images.test_px) if len(rows) > 1 else None
    cells = [
        (
            f"{row.px}{_remark(row.px, trained, images.test_px)}",
            f"{row.resize_px}",
            f"{row.plain.top1:.2%} ± {row.plain.top1_error:.2%}",
            f"{row.plain.top5:.2%}",
            f"{row.plain.loss:.4f}",
            f"{row.flipped.top1:.2%}",
        )
        for row in rows
    ]
    header = ("test px", "resized to", "top-1", "top-5", "loss", "with flip: top-1")
    parts = [
        "Every figure but the last column's is of one central crop. ± is the standard error of so "
        "many images; between two rows, which share their images, less is enough to tell.",
        table(header, cells),
        *_other_networks(rows),
        *([shown.markdown] if shown else []),
        *_in_words(rows, trained, images.test_px),
    ]
    facts = {
        "train_px": trained,
        "test_px": images.test_px,
        "sizes": [
            {
                "px": row.px,
                "resize_px": row.resize_px,
                **_facts(row.plain),
                "flip": _facts(row.flipped),
                "others": {name: _facts(scores) for name, scores in row.others.items()},
            }
            for row in rows
        ],
    }
    return Section("Test sizes", "\n\n".join(parts), facts, (shown,) if shown else ())


def _other_networks(rows: Sequence[AtSize]) -> list[str]:
    """Return a table of the top-1 of the run's other networks; nothing where there are none."""
    names = list(rows[0].others)
    if not names:
        return []
    cells = [
        (
            str(row.px),
            *(f"{row.others[n].top1:.2%} ± {row.others[n].top1_error:.2%}" for n in names),
        )
        for row in rows
    ]
    return [
        "Top-1 of the run's other networks on the same images:",
        table(("test px", *map(escaped, names)), cells),
    ]


def _facts(scores: Scores) -> dict[str, float]:
    return {
        "top1": scores.top1,
        "top1_standard_error": scores.top1_error,
        "top5": scores.top5,
        "loss": scores.loss,
    }


def _remark(px: int, trained: int, tested: int) -> str:
    remarks = [word for word, side in (("training", trained), ("test", tested)) if side == px]
    return f" ({', '.join(remarks)})" if remarks else ""


def _in_words(rows: Sequence[AtSize], trained: int, tested: int) -> list[str]:
    own = next(row for row in rows if row.px == tested)
    lines = []
    if len(rows) > 1:
        best = max(rows, key=lambda row: row.plain.top1)
        gain = best.plain.top1 - own.plain.top1
        found = (
            f"Best at {best.px} px, {100 * gain:+.2f} percentage points against {tested} px"
            if best is not own
            else f"Best at its own test size, {tested} px"
        )
        lines.append(
            f"{found}; its last training crops had {trained} px. Random crops show objects larger "
            "than central ones of the same side do, so that a larger test size often scores higher "
            "(the FixRes effect, Touvron et al., 2019, arXiv:1906.06423)."
        )
    gain = own.flipped.top1 - own.plain.top1
    lines.append(
        f"The mean over an image and its mirror image gives {100 * gain:+.2f} percentage points at "
        f"{tested} px, for twice the work: flip test-time augmentation, which no other figure here "
        "has."
    )
    return lines


def _curve(rows: Sequence[AtSize], trained: int, tested: int) -> Picture:
    figure = canvas(8, 4.2)
    axes = plain(figure.add_subplot())
    sides = [row.px for row in rows]
    axes.errorbar(
        sides,
        [row.plain.top1 for row in rows],
        [row.plain.top1_error for row in rows],
        fmt="o-",
        color=BLUE,
        capsize=4,
        label="one crop (± standard error)",
    )
    axes.plot(
        sides, [row.flipped.top1 for row in rows], "D--", color=RED, label="with flip", zorder=3
    )
    axes.axvline(trained, color="0.5", linestyle=":", label=f"training crops, {trained} px")
    if tested != trained:
        axes.axvline(tested, color="0.5", linestyle="-.", label=f"test size, {tested} px")
    axes.set_xticks(sides)
    axes.set_xlabel("side of the test crop (px)")
    axes.set_ylabel("top-1 accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.legend(frameon=False)
    alt = f"Top-1 accuracy at test sizes from {sides[0]} to {sides[-1]} px, with and without flip."
    return picture(figure, "sizes.png", alt)
