"""Stochastic depth: in training, whole residuals are left out, image by image.

Huang et al.: Deep Networks with Stochastic Depth (ECCV 2016, arXiv:1603.09382), by the linear rule:
the first block is never dropped, the last one at the full rate. Block i of N is dropped at rate * i
/ (N - 1), as timm counts (``drop_path_rate``); the paper and Composer count (i + 1) / N, which
drops the first block too.

What is kept is divided by the probability of being kept, in training, so that evaluation takes the
network as it is (timm, torchvision's ``stochastic_depth``, and here). The paper and Composer leave
training unscaled and multiply each residual by that probability in evaluation instead. Both agree
in expectation, but weights trained in one way must not be evaluated in the other.

The draws travel as an argument of the network's forward pass. They are pure functions of the seed,
the step, the image's place in the global batch and the block, so they do not depend on
micro-batches or on the number of processes. Checked in ``tests/model/test_stochastic_depth.py``.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rn50 import rng


def rates(rate: float, blocks: int) -> list[float]:
    """Return each block's probability of being left out, from 0 to ``rate``."""
    return [rate * i / max(1, blocks - 1) for i in range(blocks)]


def scales(
    rate: float, blocks: int, *, seed: int, step: int, places: range
) -> Float[Tensor, "images {blocks}"]:
    """Return what each image's residuals are multiplied by: 0, or 1 / (probability to be kept).

    Args:
        rate: Of the last block, 0 or more and below 1.
        blocks: Residual blocks of the network.
        seed: The run's.
        step: Of the update.
        places: Of the images in the global batch; a process asks for its own.
    """
    ids = np.arange(places.start, places.stop, dtype=np.int64)
    draws = rng.uniform(rng.key(seed, "stochastic depth", step), ids, blocks)
    dropped = np.array(rates(rate, blocks))
    return torch.from_numpy(((draws >= dropped) / (1 - dropped)).astype(np.float32))
