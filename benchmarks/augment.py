"""What augmentation costs: ours on batches against torchvision's on one image after another.

    python benchmarks/augment.py                    # one core
    python benchmarks/augment.py --operations       # each operation of the policies by itself
    python benchmarks/augment.py --device cuda      # ours there, and its share of a training step

On the CPU all sides have the same number of threads, by default one, since a loader gives each
worker process of torchvision one core; what is measured is the processor's time, so that others who
use the machine count little. Every side flips and normalises, too. Ours begins with the draws and
ends with the batch. Torchvision's, which draw for each image within, begin with images that are
decoded already, as PIL images, which is usual, and as tensors, and end with the batch. (Given a
batch, torchvision's would draw once for all of it.) The sides take turns, and a ratio is that of
two measurements of the same round: above 1, ours is so many times as fast.

On a GPU only ours is measured, and as a share of the training step there.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import ceilings
import machine
import step
from machine import Row
from rn50 import hardware, rng
from rn50.augment.device import Normalise
from rn50.augment.draws import AugmentDraws, augment_draws, mix_draws
from rn50.augment.mixing import mix
from rn50.augment.ops import Op
from rn50.augment.pipeline import prepare, sampling_of
from rn50.augment.rounds import Sampling, to_device
from rn50.augmentation import Augment, Mix

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_INPUT = (v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """The same augmentation of both, besides the flip and the normalisation that all include."""

    augment: Augment
    theirs: v2.Transform | None = None
    """On uint8 images; None: nothing, or no such policy."""
    after: v2.Transform | None = None
    """On normalised ones."""
    has_peer: bool = True
    mix: Mix | None = None
    theirs_mixed: v2.Transform | None = None
    """On a batch."""


JITTER = (0.4, 0.4, 0.4, 0.1)
PLAIN = "flip and normalise"
CASES = {
    PLAIN: Case(Augment()),
    "RandAugment": Case(Augment(policy="randaugment"), v2.RandAugment()),
    "AutoAugment": Case(Augment(policy="autoaugment"), v2.AutoAugment()),
    "TrivialAugmentWide": Case(Augment(policy="trivialaugment"), v2.TrivialAugmentWide()),
    "RandAugment of timm": Case(Augment(policy="randaugment-timm", magnitude=7), has_peer=False),
    "ColorJitter": Case(Augment(color_jitter=JITTER), v2.ColorJitter(*JITTER)),
    "GaussianBlur, half": Case(
        Augment(blur_prob=0.5), v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))])
    ),
    "RandomErasing, a quarter": Case(Augment(erase_prob=0.25), after=v2.RandomErasing(0.25)),
    "RandomErasing with noise": Case(
        Augment(erase_prob=0.25, erase_mode="pixel"), after=v2.RandomErasing(0.25, value="random")
    ),
    "Mixup": Case(
        Augment(), mix=Mix(mixup_alpha=0.2), theirs_mixed=v2.MixUp(alpha=0.2, num_classes=1000)
    ),
    "CutMix": Case(
        Augment(), mix=Mix(cutmix_alpha=1.0), theirs_mixed=v2.CutMix(alpha=1.0, num_classes=1000)
    ),
}


def _affine(image: Any, *, shift: tuple[int, int] = (0, 0), shear: tuple[float, float]) -> Any:
    return F.affine(image, 0.0, list(shift), 1.0, list(shear), center=[0, 0])


OPERATIONS: dict[Op, tuple[Callable[[Any, float], Any], float, float]] = {
    Op.SHEAR_X: (lambda i, m: _affine(i, shear=(math.degrees(math.atan(m)), 0)), -0.3, 0.3),
    Op.SHEAR_Y: (lambda i, m: _affine(i, shear=(0, math.degrees(math.atan(m)))), -0.3, 0.3),
    Op.TRANSLATE_X: (lambda i, m: _affine(i, shift=(int(m), 0), shear=(0, 0)), -32, 32),
    Op.TRANSLATE_Y: (lambda i, m: _affine(i, shift=(0, int(m)), shear=(0, 0)), -32, 32),
    Op.ROTATE: (F.rotate, -30, 30),
    Op.BRIGHTNESS: (F.adjust_brightness, 0.1, 1.9),
    Op.COLOR: (F.adjust_saturation, 0.1, 1.9),
    Op.CONTRAST: (F.adjust_contrast, 0.1, 1.9),
    Op.SHARPNESS: (F.adjust_sharpness, 0.1, 1.9),
    Op.POSTERIZE: (lambda i, m: F.posterize(i, int(m)), 4, 8),
    Op.SOLARIZE: (F.solarize, 0, 255),
    Op.AUTOCONTRAST: (lambda i, _: F.autocontrast(i), 0, 1),
    Op.EQUALIZE: (lambda i, _: F.equalize(i), 0, 1),
    Op.INVERT: (lambda i, _: F.invert(i), 0, 1),
    Op.HUE: (F.adjust_hue, -0.1, 0.1),
    Op.BLUR: (lambda i, m: F.gaussian_blur(i, [13, 13], [m]), 0.1, 2),
}
"""torchvision's function of an image and a magnitude, and the range of the latter."""


def smooth_images(count: int, px: int) -> torch.Tensor:
    """Return uint8 images with structure at several scales, channels-last."""
    made = torch.zeros(count, 3, px, px)
    for cells in (3, 12, 48):
        noise = torch.rand(count, 3, min(cells, px), min(cells, px))
        made += torch.nn.functional.interpolate(noise, (px, px), mode="bilinear") / 3
    return (made * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def ours(case: Case, images: torch.Tensor) -> Step:
    """Return one batch of ours, with draws of its own each time."""
    count, px, device = len(images), images.shape[3], images.device
    normalise = Normalise(MEAN, STD).to(device)
    labels = torch.arange(count, device=device) % 1000
    ids, epochs = np.arange(count), itertools.count()
    sampling = sampling_of(case.augment.policy, MEAN)

    def step() -> Any:
        epoch = next(epochs)
        flips = rng.uniform(rng.key(0, "flip", epoch), ids, 1)[:, 0] < 0.5
        draws = augment_draws(case.augment, 0, epoch, ids, px)
        inputs = prepare(images, to_device(flips, device), draws, normalise, sampling)
        return mix(inputs, labels, mix_draws(case.mix or Mix(), 0, epoch, px))

    return step


def theirs(case: Case, images: Sequence[Any], of_pil: bool) -> Step:
    """Return one batch of torchvision's."""
    flip = v2.RandomHorizontalFlip()
    to_tensor = (v2.PILToTensor(),) if of_pil else ()
    parts = (flip, case.theirs, *to_tensor, *TO_INPUT, case.after)
    transform = v2.Compose([part for part in parts if part is not None])
    labels = torch.arange(len(images)) % 1000

    def step() -> Any:
        inputs = torch.stack([transform(image) for image in images])
        return case.theirs_mixed(inputs, labels) if case.theirs_mixed else inputs

    return step


def ours_alone(op: Op, magnitudes: np.ndarray, images: torch.Tensor) -> Step:
    """Return one batch of ours in which every image undergoes ``op``."""
    nothing = AugmentDraws(
        ops=np.full((1, len(images)), op, dtype=np.int8),
        magnitudes=magnitudes[None],
        holes=np.zeros((len(images), 0, 4), dtype=np.int64),
        noise=None,
    )
    flips, normalise = torch.zeros(len(images), dtype=torch.bool), Normalise(MEAN, STD)
    return lambda: prepare(images, flips, nothing, normalise, Sampling())


def theirs_alone(op: Op, magnitudes: np.ndarray, images: Sequence[Any], of_pil: bool) -> Step:
    """Return the same of torchvision's."""
    function = OPERATIONS[op][0]
    to_input = v2.Compose([*((v2.PILToTensor(),) if of_pil else ()), *TO_INPUT])
    pairs = list(zip(images, magnitudes.tolist(), strict=True))
    return lambda: torch.stack([to_input(function(image, m)) for image, m in pairs])


def milliseconds(step: Step, seconds: float, device: torch.device) -> float:
    """Return the mean time of a step over at least ``seconds``: on a CPU, that of the processor."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    ceilings.wait(device)
    done, start = 0, clock()
    while clock() - start < seconds or not done:
        step()
        done += 1
        if device.type != "cpu" and done % 10 == 0:
            ceilings.wait(device)
    ceilings.wait(device)
    return 1000 * (clock() - start) / done


def compare(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each case or operation: ours and torchvision's in turn, on the CPU."""
    device = torch.device("cpu")
    images = smooth_images(args.batch_size, args.px)
    tensors = [image.contiguous() for image in images]
    pictures = [F.to_pil_image(image) for image in images]
    for name in OPERATIONS if args.operations else args.only:
        if isinstance(name, Op):
            drawn = np.random.default_rng(0).uniform(*OPERATIONS[name][1:], len(images))
            whole = name in (Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.POSTERIZE)
            magnitudes = (np.rint(drawn) if whole else drawn).astype(np.float32)
            sides = {
                "rn50": ours_alone(name, magnitudes, images),
                "torchvision PIL": theirs_alone(name, magnitudes, pictures, of_pil=True),
                "torchvision tensor": theirs_alone(name, magnitudes, tensors, of_pil=False),
            }
            name = name.name.lower().replace("_", " ")
        else:
            case = CASES[name]
            sides = {"rn50": ours(case, images)}
            if case.has_peer:
                sides["torchvision PIL"] = theirs(case, pictures, of_pil=True)
                sides["torchvision tensor"] = theirs(case, tensors, of_pil=False)
        for side in sides.values():
            side()
        measured: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, one in sides.items():
                measured[side].append(milliseconds(one, args.seconds, device))
        row: Row = {"augmentation": name}
        for side, times in measured.items():
            spread = machine.spread(times, 2)
            row[f"{side}, ms"] = spread["median"]
            row[f"{side}, min-max"] = f"{spread['min']}-{spread['max']}"
            if side != "rn50":
                row[f"{side} / rn50"] = machine.ratio(times, measured["rn50"])
        print(row, file=sys.stderr, flush=True)
        yield row


def share_of_step(case: step.Case, device: str, *, rounds: int, seconds: float) -> Iterator[Row]:
    """Yield a row for each kind of augmentation: its time on a device, and beside that of a step.

    The training step flips and normalises already, so that a share is what the augmentation adds
    to that. Steps and augmentation are measured apart: that the host, which draws, is ahead of the
    device is not counted in its favour.
    """
    run = step.run_of(case, device=device)
    compute = hardware.resolve(run.hardware)
    take, _ = step.our_step(run, compute, step.synthetic_batch(run, compute.device))
    images = smooth_images(case.batch_size, case.px).to(compute.device)
    steps = {"training step": take} | {name: ours(one, images) for name, one in CASES.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for one in steps.values():
        for _ in range(3):
            one()
    for _ in range(rounds):
        for name, one in steps.items():
            times[name].append(milliseconds(one, seconds, compute.device))
    plain = statistics.median(times[PLAIN])
    whole = statistics.median(times["training step"])
    for name, values in times.items():
        spread = machine.spread(values, 3)
        row: Row = {
            "augmentation": name,
            "px": case.px,
            "batch": case.batch_size,
            "precision": compute.precision,
            **{f"ms {part}": value for part, value in spread.items()},
        }
        if name not in ("training step", PLAIN):
            row["added, % of a step"] = round(100 * (spread["median"] - plain) / whole, 2)
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--operations", action="store_true", help="each by itself, on the CPU")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a measurement")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
        rows = list(compare(args))
    else:
        case = step.Case(args.px, args.batch_size, "auto")
        timing = {"rounds": args.rounds, "seconds": args.seconds}
        rows = list(share_of_step(case, args.device, **timing))
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    facts = machine.describe(torch.device(args.device))
    report = {"machine": facts, "settings": settings, "augment": rows}
    markdown = "\n\n".join(
        [
            f"# Augmentation: ms per {args.batch_size} images at {args.px} px",
            machine.table(rows),
            "Settings: " + json.dumps(settings) + ".",
            machine.facts_list(facts),
        ]
    )
    machine.publish(report, markdown, args.json)


if __name__ == "__main__":
    main()
