"""What making images smaller costs: training crops against the same crops of the originals.

    python benchmarks/fidelity.py --images imagenet-samples-300.tar --json fidelity.json

Random crops (8% to 100% of the area) are cut at the same place of the original and of the stored
image, by Pillow with boxes between pixels, and resized to 224 px, antialiased bilinear. The first
row is the loader's own error: our crop of the original against torchvision's on Pillow, for the
same whole-pixel box. For scale, a row compares bicubic with bilinear resizing of the originals.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

import machine
import pictures
from machine import Row
from rn50.config import Images
from rn50.data.decode import Decoder
from rn50.data.encoding import Encoding, Subsampling
from rn50.data.plan import Request, TrainPlan
from rn50.data.shards import PackedSplit

SETTINGS: tuple[tuple[int, int, Subsampling], ...] = (
    *((short, 90, "420") for short in (512, 448, 400, 352, 320, 288, 256)),
    (352, 85, "420"),
    (352, 95, "420"),
    (352, 90, "444"),
    (256, 90, "444"),
)


def crops(split: PackedSplit, px: int, rounds: int) -> list[Request]:
    """Return ``rounds`` training requests for every image."""
    images = Images(
        batch_size=split.num_images,
        train_px=px,
        test_px=px,
        test_resize_px=px,
        crop_area=(0.08, 1.0),
    )
    plan = TrainPlan(images=images, seed=0, widths=split.widths, heights=split.heights)
    return [plan.request(step) for step in range(rounds)]


def loader_errors(split: PackedSplit, requests: list[Request]) -> list[float]:
    """Return the PSNR of our crops against torchvision's on Pillow."""
    decoder = Decoder()
    found = []
    for request in requests:
        assert request.boxes is not None
        ours = torch.empty(request.px, request.px, 3, dtype=torch.uint8)
        for i, box in zip(request.ids.tolist(), request.boxes, strict=True):
            decoder.crop_resized(split.jpeg(i), box, ours)
            theirs = reference.resized_crop(_image(split, i), *box.tolist(), [request.px] * 2)
            found.append(psnr(ours.numpy(), np.asarray(theirs)))
    return found


def storage_errors(
    split: PackedSplit, stored: PackedSplit, requests: list[Request], resample: Image.Resampling
) -> list[float]:
    """Return the PSNR of crops of ``stored`` against the bilinear ones of ``split``."""
    assert np.array_equal(split.labels, stored.labels)  # in the same order, therefore
    found = []
    for request in requests:
        assert request.boxes is not None
        for i, (top, left, height, width) in zip(
            request.ids.tolist(), request.boxes.tolist(), strict=True
        ):
            cut = []
            for source, kernel in ((split, Image.Resampling.BILINEAR), (stored, resample)):
                image = _image(source, i)
                x = image.width / split.widths[i]
                y = image.height / split.heights[i]
                box = (left * x, top * y, (left + width) * x, (top + height) * y)
                cut.append(np.asarray(image.resize((request.px, request.px), kernel, box)))
            found.append(psnr(*cut))
    return found


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 images in dB, at most 100."""
    error = float(((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean())
    return min(100.0, 10 * np.log10(255**2 / max(error, 1e-9)))


def _image(split: PackedSplit, i: int) -> Image.Image:
    return Image.open(io.BytesIO(split.jpeg(i))).convert("RGB")


def _row(what: str, values: list[float], kilobytes: float) -> Row:
    return {
        "what": what,
        "median dB": round(float(np.median(values)), 1),
        "5th percentile dB": round(float(np.percentile(values, 5)), 1),
        "least dB": round(min(values), 1),
        "kB an image": round(kilobytes, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all settings, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=0, help="images used; 0: all")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=2, help="crops of each image")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rn50-fidelity-") as scratch:
        original = pictures.packed(args.images, args.count or 300, Path(scratch) / "original")
        split = original.split("train")
        requests = crops(split, args.px, args.rounds)
        kilobytes = float(split.index["length"].mean()) / 1e3
        bicubic = storage_errors(split, split, requests, Image.Resampling.BICUBIC)
        rows = [
            _row("rn50's crop against torchvision's", loader_errors(split, requests), kilobytes),
            _row("bicubic against bilinear", bicubic, kilobytes),
        ]
        for short, quality, subsampling in SETTINGS:
            encoding = Encoding(resize_short=short, quality=quality, subsampling=subsampling)
            folder = Path(scratch) / f"{short}-{quality}-{subsampling}"
            stored = pictures.packed(original.folder, 0, folder, encoding).split("train")
            errors = storage_errors(split, stored, requests, Image.Resampling.BILINEAR)
            size = float(stored.index["length"].mean()) / 1e3
            rows.append(_row(f"--resize-short {short}, {quality}, {subsampling}", errors, size))
    report = {"machine": machine.describe(torch.device("cpu")), "fidelity": rows}
    markdown = "\n\n".join(
        [f"# Fidelity at {args.px} px", machine.table(rows), machine.facts_list(report["machine"])]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
