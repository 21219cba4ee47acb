"""Small uint8 images, channels-last as the loader gives them, that try an operation's edges."""

import numpy as np
import torch

SIZES = ((24, 24), (31, 17), (9, 40), (33, 33))


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, smooth ramps, few values, and one value only, by turns."""
    draws = np.random.default_rng((seed, count, height, width))
    images = draws.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, width, dtype=np.float64)[None, :, None]
    for i in range(1, count, 4):
        images[i] = (ramp * draws.random(3) + draws.integers(0, 60, (height, 1, 1))).clip(0, 255)
    for i in range(2, count, 4):
        images[i] = images[i] // 80 * 60 + 11
    for i in range(3, count, 8):
        images[i] = draws.integers(0, 256, 3)
    return torch.from_numpy(images).permute(0, 3, 1, 2)
