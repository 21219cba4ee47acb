"""What augmentation costs: ours on batches against torchvision's on one image after another.

    python benchmarks/augment.py                    # one core
    python benchmarks/augment.py --device cuda      # ours there, and its share of a training step

On the CPU all sides are given the same number of threads, by default one, since a loader gives each
worker process of torchvision one core. Ours begins with the draws on the host and ends with the
batch; torchvision's are applied to images that are decoded already, as PIL images, which is usual,
and as tensors. The sides take turns, and a ratio is that of two measurements of the same round:
above 1, ours is so many times as fast.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import machine
from machine import Row
from rn50.augment.device import Normalise
from rn50.augment.draws import augment_draws, mix_draws
from rn50.augment.mixing import mix
from rn50.augment.pipeline import prepare, sampling_of
from rn50.augmentation import Augment, Mix
from rn50.config import Model
from rn50.model import resnet

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
CASES = {
    "flip and normalise": Case(Augment()),
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
    flips = torch.arange(count, device=device) % 2 == 0
    labels = torch.arange(count, device=device) % 1000
    ids, epochs = np.arange(count), itertools.count()
    sampling = sampling_of(case.augment.policy, MEAN)

    def step() -> Any:
        epoch = next(epochs)
        draws = augment_draws(case.augment, 0, epoch, ids, px)
        inputs = prepare(images, flips, draws, normalise, sampling)
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


def milliseconds(step: Step, seconds: float, device: torch.device) -> float:
    """Return the mean time of a step, over at least ``seconds``."""
    _wait(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or not done:
        step()
        done += 1
        if device.type == "cuda" and done % 10 == 0:
            _wait(device)
    _wait(device)
    return 1000 * (time.perf_counter() - start) / done


def measure(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Measure all cases and sides in turn."""
    images = smooth_images(args.batch_size, args.px)
    tensors = [image.contiguous() for image in images]
    pictures = [F.to_pil_image(image) for image in images]
    sides: dict[tuple[str, str], Step] = {}
    for name, case in CASES.items():
        sides[name, "rn50"] = ours(case, images.to(device))
        if case.has_peer:
            sides[name, "torchvision PIL"] = theirs(case, pictures, of_pil=True)
            sides[name, "torchvision tensor"] = theirs(case, tensors, of_pil=False)
    measured: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    for number in range(args.rounds):
        for key, step in sides.items():
            if number == 0 and key[1] == "rn50":
                step()
            measured[key].append(milliseconds(step, args.seconds, device))
            told = f"round {number + 1}: {', '.join(key)}: {measured[key][-1]:.1f} ms"
            print(told, file=sys.stderr, flush=True)
    rows = []
    for name in CASES:
        row: Row = {"augmentation": name}
        for side in ("rn50", "torchvision PIL", "torchvision tensor"):
            times = measured.get((name, side))
            if times is not None:
                row[f"{side}, ms"] = round(statistics.median(times), 2)
                if side != "rn50":
                    row[f"{side} / rn50"] = machine.ratio(times, measured[name, "rn50"])
        rows.append(row)
    return rows


def training_step_ms(args: argparse.Namespace, device: torch.device) -> float:
    """Return the time of forward and backward of ResNet-50 in bf16 on such a batch."""
    net = resnet.build(Model(), seed=0).to(device, memory_format=torch.channels_last)
    inputs = torch.randn(args.batch_size, 3, args.px, args.px, device=device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = net(inputs).float().square().mean()
        loss.backward()
        net.zero_grad()

    for _ in range(3):
        step()
    return milliseconds(step, max(args.seconds, 1.0), device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a measurement")
    parser.add_argument("--json", type=Path, help="also write the report here, and as .md beside")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = measure(args, device)
    if device.type == "cuda":
        step_ms = training_step_ms(args, device)
        for row in rows:
            row["share of forward and backward"] = round(row["rn50, ms"] / step_ms, 3)
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    report = {"machine": machine.describe(device), "settings": settings, "augment": rows}
    markdown = "\n\n".join(
        [
            f"# Augmentation: ms per {args.batch_size} images at {args.px} px",
            machine.table(rows),
            "Settings: " + json.dumps(settings) + ".",
            machine.facts_list(report["machine"]),
        ]
    )
    print(markdown)
    if args.json is not None:
        machine.write(args.json, report, markdown)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
