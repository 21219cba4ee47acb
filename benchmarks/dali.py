"""NVIDIA DALI on the CPU, given rn50's shards, order and crop boxes: a peer for ``loader.py``.

    uv run --with nvidia-dali-cuda130 benchmarks/loader.py …

It decodes the same regions from the same bytes and resizes them antialiased, in as many
threads. Where it is not installed, ``loader.py`` leaves it out.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

INSTALLED = importlib.util.find_spec("nvidia") is not None and (
    importlib.util.find_spec("nvidia.dali") is not None
)


def batches(split: Any, requests: Iterator[Any], px: int, workers: int, prefetch: int) -> Iterator:
    """Yield uint8 batches as DALI makes them, without end."""
    from nvidia.dali import fn, pipeline_def, types

    def samples() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        request = next(requests)
        boxes = request.boxes.astype(np.float32)
        jpegs = [np.frombuffer(split.jpeg(i), np.uint8) for i in request.ids.tolist()]
        return jpegs, list(boxes[:, :2]), list(boxes[:, 2:])

    first = next(requests)

    @pipeline_def(
        batch_size=len(first.ids),
        num_threads=workers,
        device_id=None,
        prefetch_queue_depth=prefetch,
    )
    def pipeline() -> Any:
        jpegs, starts, sizes = fn.external_source(source=samples, num_outputs=3, batch=True)
        images = fn.decoders.image_slice(
            jpegs,
            starts,
            sizes,
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            output_type=types.RGB,
        )
        return fn.resize(images, size=[px, px], antialias=True, interp_type=types.INTERP_LINEAR)

    made = pipeline()
    made.build()
    while True:
        (images,) = made.run()
        yield images.as_tensor()
