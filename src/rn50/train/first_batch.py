"""A picture of the first training batch as the network sees it: the cheapest check of a recipe."""

import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from rn50 import durable
from rn50.augment.mixing import mix
from rn50.config import Run
from rn50.data.loader import Batch
from rn50.data.plan import Request
from rn50.observe.record import Record
from rn50.train.step import Engine, inputs_of

FILE = "augmented.png"
"""The picture, in the run's folder."""
_MOST_ROWS, _MOST_PX, _GAP_PX = 8, 1000, 2


def show(
    place: Path,
    run: Run,
    engine: Engine,
    request: Request,
    read: Callable[[Iterable[Request]], Iterator[Batch]],
    write: Callable[[Record], None],
) -> None:
    """Draw the first images of a batch, cropped, augmented and mixed, and tell of the picture.

    Nothing of the training is touched. What goes wrong becomes a warning: if it is the data, the
    training itself will say so.

    Args:
        place: The run's folder.
        run: All settings.
        engine: As the training's.
        request: The batch; the first process's share of it.
        read: Returns the batches of requests, as ``Loader.read`` does.
        write: Writes a record.
    """
    try:
        for batch in read([first_of(request, num_shown(request.px))]):
            pixels = as_seen(batch, run, engine)
            durable.write_bytes(place / FILE, _png(grid(pixels)))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"the first batch could not be drawn ({reason}); training goes on"
        write({"kind": "warning", "step": 0, "message": message})
    else:
        write({"kind": "images", "step": 0, "file": FILE})


def num_shown(px: int) -> int:
    """Return how many images of a side are shown: at most 64, and what fits on a page.

    The number is even, because images are mixed in pairs.
    """
    rows = max(2, min(_MOST_ROWS, _MOST_PX // px))
    return rows**2 // 2 * 2


def first_of(request: Request, most: int) -> Request:
    """Return the request for the first images of a batch, each with the same draws as in it."""
    part = slice(most)
    return replace(
        request,
        ids=request.ids[part],
        boxes=None if request.boxes is None else request.boxes[part],
        flips=request.flips[part],
        draws=None if request.draws is None else request.draws.part(part),
    )


@torch.no_grad()
def as_seen(batch: Batch, run: Run, engine: Engine) -> UInt8[np.ndarray, "batch px px 3"]:
    """Return the network's inputs as pixels: mean and deviation undone, clipped to what is shown.

    Erased pixels of noise may be brighter than white or darker than black.
    """
    inputs = inputs_of(batch, slice(None), run, engine.normalise)
    inputs, _ = mix(inputs, batch.labels, batch.request.mix)
    return _pixels(inputs, run)


def grid(images: UInt8[np.ndarray, "batch px px 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Return the images in rows, about as many rows as columns, on white."""
    count, px = images.shape[:2]
    columns = math.ceil(math.sqrt(count))
    step = px + _GAP_PX
    rows = math.ceil(count / columns)
    sheet = np.full((rows * step - _GAP_PX, columns * step - _GAP_PX, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step, i % columns * step
        sheet[top : top + px, left : left + px] = image
    return sheet


def _pixels(inputs: Float[Tensor, "batch 3 px px"], run: Run) -> UInt8[np.ndarray, "batch px px 3"]:
    mean, std = (
        torch.tensor(values, device=inputs.device) for values in (run.images.mean, run.images.std)
    )
    shown = inputs.permute(0, 2, 3, 1) * std + mean
    return (255 * shown).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    file = io.BytesIO()
    # The least effort: photographs hardly become smaller by more, and the first step waits for it.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
