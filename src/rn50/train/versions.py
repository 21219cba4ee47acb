"""What computed a run, stored with its checkpoints and its record."""

import platform

import numpy
import PIL
import torch

import rn50


def versions() -> dict[str, str]:
    """Return the version of each package that decides the numbers, by name."""
    return {
        "rn50": rn50.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
