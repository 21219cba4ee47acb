"""What computed a run, stored with its checkpoints and its record."""

import platform

import numpy
import PIL
import torch

import rn50

MATHEMATICS = 1
"""Raised by every release that computes other numbers from the same settings: other draws, another
order of the data, another update. A run is not resumed across such a change unless allowed."""


def versions() -> dict[str, str]:
    """Return the version of each package that decides the numbers, by name, and of the numbers."""
    return {
        "mathematics": str(MATHEMATICS),
        "rn50": rn50.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
