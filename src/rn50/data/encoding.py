"""How images are stored: byte for byte, or made smaller; and what smaller costs."""

from dataclasses import dataclass
from typing import Any, Literal

from rn50.errors import UsageError

Subsampling = Literal["420", "444"]

NONE = "none"
_LEAST_PX = 16

_PSNR_DB: dict[tuple[int, int, Subsampling], tuple[float, float]] = {
    (512, 90, "420"): (40.7, 34.0),
    (448, 90, "420"): (40.6, 33.8),
    (400, 90, "420"): (40.4, 33.3),
    (352, 90, "420"): (39.2, 32.1),
    (320, 90, "420"): (38.0, 30.5),
    (288, 90, "420"): (36.9, 29.3),
    (256, 90, "420"): (35.5, 28.1),
    (352, 85, "420"): (38.0, 31.3),
    (352, 95, "420"): (41.2, 32.7),
    (352, 90, "444"): (42.4, 34.1),
    (256, 90, "444"): (36.9, 29.2),
}
"""Short side, quality, subsampling -> median and 5th percentile of the PSNR of training crops.

Of 600 random training crops at 224 px from 300 ImageNet images, against the same crops of the
originals (``benchmarks/fidelity.py``, docs/results.md). For scale: bicubic instead of bilinear
resizing has 41.1 and 34.0 dB.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Training images are encoded as JPEG anew, above a size with fewer pixels.

    An image that would not have fewer bytes stays as it is, as do all validation images: scores
    can be compared with those of the originals.
    """

    resize_short: int
    """The shorter side of what is made smaller, in pixels; at least 16."""
    quality: int = 90
    """Of the JPEG, 1 to 100, as libjpeg counts."""
    subsampling: Subsampling = "420"
    """Resolution of the colours: half in both directions, or full."""

    def __post_init__(self) -> None:
        if self.resize_short < _LEAST_PX:
            raise UsageError(
                f"--resize-short is {self.resize_short}; it must be at least {_LEAST_PX} pixels, "
                "or none to keep the original bytes; 352 suits training at 224 px"
            )
        if not 1 <= self.quality <= 100:
            raise UsageError(
                f"--quality is {self.quality}; it must be from 1 to 100; 90 is the usual choice"
            )


def encoding(
    resize_short: str, quality: int | None = None, subsampling: Subsampling | None = None
) -> Encoding | None:
    """Return what the three options ask for; None: original bytes.

    Args:
        resize_short: Pixels, or ``"none"``.
        quality: None: the usual one.
        subsampling: None: the usual one.

    Raises:
        UsageError: A value is out of range, or would have no effect.
    """
    given = {
        name: value
        for name, value in (("quality", quality), ("subsampling", subsampling))
        if value is not None
    }
    if resize_short.lower() != NONE:
        try:
            short = int(resize_short)
        except ValueError:
            raise UsageError(
                f"--resize-short is {resize_short!r}; it must be a number of pixels or none; "
                "352 suits training at 224 px"
            ) from None
        return Encoding(resize_short=short, **given)  # type: ignore[arg-type]
    for name in given:
        raise UsageError(
            f"--{name} has no effect with --resize-short none, which keeps the original bytes; "
            "it applies to images that are made smaller; give --resize-short as well"
        )
    return None


def described(encoding: Encoding | None) -> dict[str, Any]:
    """Return the encoding for the manifest; all None where the original bytes are kept."""
    if encoding is None:
        return {"resize_short": None, "quality": None, "subsampling": None}
    return {
        "resize_short": encoding.resize_short,
        "quality": encoding.quality,
        "subsampling": encoding.subsampling,
    }


def fidelity(encoding: Encoding) -> str:
    """Return a clause that says how near training crops come to those of the originals."""
    wanted = (encoding.resize_short, encoding.quality, encoding.subsampling)
    nearest = min(_PSNR_DB, key=lambda key: _distance(key, wanted))
    median, low = _PSNR_DB[nearest]
    figures = f"{median} dB median, {low} dB 5th percentile"
    if nearest == wanted:
        return f"PSNR of 224-px training crops against the originals, on ImageNet: {figures}"
    return (
        "its PSNR was not measured; the nearest setting that was, short side {} quality {} {}, "
        "has {} on ImageNet"
    ).format(*nearest, figures)


def _distance(a: tuple[int, int, str], b: tuple[int, int, str]) -> tuple[float, int, bool]:
    return abs(a[0] - b[0]), abs(a[1] - b[1]), a[2] != b[2]
