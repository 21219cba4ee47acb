"""What each method adds to a plain baseline: one method at a time, over several seeds.

    python benchmarks/ablation.py --data cifar10 --epochs 8 --limit-images 10000 --out on-cifar10
    python benchmarks/ablation.py --data tiny --recipe tiny-imagenet-resnet50 --epochs 30 --out tiny

On a CPU, ``--set model.stem=imagenet images.batch_size=128`` makes CIFAR-10 cheap: a ResNet-18 then
sees 600 images of 32 px a second and core.

The baseline is the recipe without augmentation but crop and flip, without mixing, smoothing,
averages and the like, at ``--epochs`` (warm-up keeps its share). Each method changes only what the
table says. Runs go through ``rn50.train``, seed by seed, so that a first table of all methods is
there after the first seed. The same command goes on after an interruption, in mid-epoch too; a run
that is done is not done again. ``--methods`` takes names of the table, or ``all``.

Not a leaderboard: at few epochs, regularisation costs accuracy that it gives back in long runs, and
a learning rate that suits SGD suits others less. It shows that a method trains, about what it costs
and whether averages end at or above their model.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import machine
from machine import Row
from rn50 import config, hardware
from rn50.config import Augment, Average, Loss, Mix, Run, Schedule
from rn50.data.pack import pack
from rn50.data.shards import PackedDataset
from rn50.data.sources.base import SPLITS, ClassName, Skipped, SourceImage
from rn50.errors import DivergedError, UsageError, UserError
from rn50.observe import record
from rn50.recipes import RECIPES, recipe
from rn50.recipes.scaling import at_length, decoupled_decay, scaled_lr
from rn50.train.run import start

BASELINE = "baseline"
BELOW = 0.01
"""An average this far under its model, in top-1, is flagged."""

Changes = dict[str, Any]
"""Setting -> value, such as ``{"mix.mixup_alpha": 0.2}``."""


def plain(run: Run) -> Run:
    """Return a run with crop, flip and a cosine, and without every other method."""
    return replace(
        run,
        recipe="ablation",
        model=replace(run.model, blurpool="none", stochastic_depth=0.0),
        images=replace(run.images, sizes=(), multi_scale=()),
        augment=Augment(),
        mix=Mix(),
        optim=replace(run.optim, name="sgd", clip_grad_norm=0.0, sam_rho=0.0, decayed="weights"),
        schedule=Schedule(
            warmup_epochs=run.schedule.warmup_epochs or 0.05 * run.epochs,
            warmup_start=run.schedule.warmup_start,
        ),
        loss=Loss(label_smoothing=0.0),
        average=Average(),
    )


def methods(run: Run) -> dict[str, Changes | str]:
    """Return each method's changes to the baseline ``run``, or why it cannot be had here."""
    return _images(run) | _weights(run) | _schedules(run) | _averages(run)


def _images(run: Run) -> dict[str, Changes | str]:
    both = {"mix.mixup_alpha": 0.2, "mix.cutmix_alpha": 1.0}
    return {
        BASELINE: {},
        "RandAugment": {"augment.policy": "randaugment"},
        "RandAugment of timm": {"augment.policy": "randaugment-timm", "augment.magnitude": 7.0},
        "AutoAugment": {"augment.policy": "autoaugment"},
        "TrivialAugmentWide": {"augment.policy": "trivialaugment"},
        "color jitter": {"augment.color_jitter": [0.4, 0.4, 0.4, 0.1]},
        "blur": {"augment.blur_prob": 0.3, "augment.blur_sigma": [0.1, 1.0]},
        "random erasing": {"augment.erase_prob": 0.25},
        "random erasing with noise": {"augment.erase_prob": 0.25, "augment.erase_mode": "pixel"},
        "coarse dropout": {"augment.dropout_prob": 0.5},
        "mixup": {"mix.mixup_alpha": 0.2},
        "CutMix": {"mix.cutmix_alpha": 1.0},
        "mixup or CutMix": both,
        "repeated augmentation": {"augment.policy": "trivialaugment", "augment.repeats": 3},
    } | _sides(run)


def _weights(run: Run) -> dict[str, Changes | str]:
    batch, optim = run.images.batch_size, run.optim
    decay = decoupled_decay(optim.weight_decay, peak_lr=optim.peak_lr, momentum=optim.momentum)
    adaptive = {"optim.betas": [0.9, 0.999], "optim.clip_grad_norm": 1.0}
    return {
        "BlurPool, convolutions": {"model.blurpool": "convs"},
        "BlurPool, max-pool too": (
            {"model.blurpool": "convs-and-max-pool"}
            if run.model.stem == "imagenet"
            else "the small stem has no max-pool"
        ),
        "stochastic depth": {"model.stochastic_depth": 0.1},
        "recomputation": {"hardware.recompute": True},
        "accumulation": {"hardware.micro_batch": max(2, batch // 4)},
        "SGDW": {"optim.name": "sgdw", "optim.weight_decay": decay},
        "LARS": {
            "optim.name": "lars",
            "optim.peak_lr": 25 * optim.peak_lr,
            "optim.weight_decay": 5e-5,
        },
        "LAMB": adaptive
        | {
            "optim.name": "lamb",
            "optim.peak_lr": scaled_lr(8e-3, batch, 2048, rule="sqrt"),
            "optim.weight_decay": 0.02,
        },
        "AdamW": adaptive
        | {
            "optim.name": "adamw",
            "optim.peak_lr": scaled_lr(1e-3, batch, rule="sqrt"),
            "optim.weight_decay": 0.05,
            "optim.eps": 1e-8,
        },
        "SAM, every second step": {"optim.sam_rho": 0.05, "optim.sam_every": 2},
        "gradient clipping": {"optim.clip_grad_norm": 1.0},
        "label smoothing": {"loss.label_smoothing": 0.1},
        "BCE": {"loss.name": "bce"},
        "BCE, smoothed and mixed": {
            "loss.name": "bce",
            "loss.label_smoothing": 0.1,
            "mix.mixup_alpha": 0.2,
            "mix.cutmix_alpha": 1.0,
        },
    }


def _schedules(run: Run) -> dict[str, Changes | str]:
    epochs = run.epochs
    return {
        "OneCycle": {"schedule.name": "onecycle", "schedule.warmup_epochs": 0.0},
        "OneCycle with momentum": {
            "schedule.name": "onecycle",
            "schedule.warmup_epochs": 0.0,
            "schedule.cycle_momentum": [0.85, 0.95],
        },
        "steps": {
            "schedule.name": "step",
            "schedule.milestones": [epochs / 3, epochs * 2 / 3, epochs * 8 / 9],
        },
        "triangular": {"schedule.name": "triangular", "schedule.warmup_start": 1e-4},
        "polynomial": {"schedule.name": "polynomial"},
        "constant": {"schedule.name": "constant"},
        "cosine with a constant tail": {
            "schedule.tail_epochs": epochs / 4,
            "schedule.tail_lr": 0.05,
            "schedule.tail_anneal_epochs": epochs / 20,
        },
    }


def _averages(run: Run) -> dict[str, Changes | str]:
    ema = {"average.ema_horizon": 0.04}
    tail = {"schedule.tail_epochs": run.epochs / 4, "schedule.tail_lr": 0.05}
    swa = tail | {"average.swa_epochs": run.epochs / 4}
    if run.epochs < 12:  # at one model an epoch there would be fewer than three
        swa |= {"average.swa_every_steps": 10}
    return {
        "EMA": ema,
        "EMA with steps": ema | {"average.every_steps": 8},
        "SWA": swa,
        "EMA and SWA": swa | ema,
    }


def _sides(run: Run) -> dict[str, Changes | str]:
    """Return the methods that train at smaller sides, which must be multiples of the stride."""
    stride = 32 if run.model.stem == "imagenet" else 8
    px, epochs = run.images.train_px, run.epochs
    low = max(stride, round(px / 2 / stride) * stride)
    if low >= px or epochs < 2:
        why = f"no smaller size than {px} px is a multiple of {stride}, or there is one epoch"
        return {"progressive sizes": why, "multi-scale": why}
    middle = round((low + px) / 2 / stride) * stride
    ramp = {0: low, round(0.4 * epochs): middle, max(1, round(0.7 * epochs)): px}
    if middle == px:  # there is no size between
        ramp = {0: low, max(1, round(0.5 * epochs)): px}
    return {
        "progressive sizes": {"images.sizes": [[epoch, side] for epoch, side in ramp.items()]},
        "multi-scale": {"images.multi_scale": sorted({low, middle, px})},
    }


def changed(run: Run, changes: Mapping[str, Any]) -> Run:
    """Return a run with some settings changed, all of it checked."""
    values = config.to_dict(run)
    for name, value in changes.items():
        *sections, last = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return config.from_dict(values)


class FewImages:
    """The first training images of each class of packed data, and all of its validation images."""

    kind = "a part of packed data"

    def __init__(self, data: Path, limit: int) -> None:
        self._data = PackedDataset.open(data)
        self._per_class = -(-limit // len(self._data.classes))
        self.classes: tuple[ClassName, ...] = tuple(self._data.classes)
        self.skipped = Skipped()

    def count(self) -> int:
        """Return an upper bound."""
        return self._per_class * len(self.classes) + self._data.split("val").num_images

    def images(self) -> Iterator[SourceImage]:
        """Yield the images in the order of the data."""
        for name in SPLITS:
            split = self._data.split(name)
            taken = [0] * len(self.classes)
            for i, label in enumerate(split.labels.tolist()):
                taken[label] += 1
                if name == "train" and taken[label] > self._per_class:
                    continue
                read = partial(_bytes, split, i)
                yield SourceImage(name, self.classes[label].id, f"{name}/{i:07d}.jpg", read)


def _bytes(split: Any, i: int) -> bytes:
    return bytes(split.jpeg(i))


def data_for(args: argparse.Namespace) -> Path:
    """Return the folder to train on, after packing a part of the data if one is asked for."""
    if not args.limit_images:
        return Path(args.data)
    part = args.out / f"data-{args.limit_images}"
    if not (part / "manifest.json").exists():
        pack(FewImages(args.data, args.limit_images), part)
    return part


def baseline(args: argparse.Namespace, data: Path) -> Run:
    """Return the plain run that every method changes."""
    run = at_length(plain(recipe(args.recipe)), args.epochs)
    classes = len(PackedDataset.open(data).classes)
    changes: Changes = {"model.num_classes": classes, "storage.data": str(data)}
    if args.px:
        changes |= {f"images.{name}_px": args.px for name in ("train", "test", "test_resize")}
    changes |= {"log.eval_epochs": args.epochs, "storage.keep_checkpoints": 1}
    for word in args.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word} has no value; give NAME=VALUE, as optim.peak_lr=0.1")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changed(run, changes)


def train(run: Run, place: Path) -> Row:
    """Train one run, or go on with it, or read what it came to; return its result."""
    told = place / "result.json"
    mathematics = config.mathematics(run)
    if told.exists():
        found = json.loads(told.read_text())
        if found["mathematics"] != mathematics:
            raise UsageError(
                f"{place} holds the result of other settings than those asked for; give another "
                "--out, or remove that folder"
            )
        return dict(found["result"])
    run = replace(run, storage=replace(run.storage, output_dir=str(place)))
    result: Row = {"diverged": False, "scores": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            start(run, resume=True, say=lambda line: None)
        except DivergedError:
            result["diverged"] = True
    epochs = [r for r in record.read(place / record.FILE_NAME) if r["kind"] == "epoch"]
    if epochs and not result["diverged"]:
        result["scores"] = {name: s["top1"] for name, s in epochs[-1]["val"].items()}
    result["epoch seconds"] = [r["timing"]["seconds"] for r in epochs]
    told.write_text(json.dumps({"mathematics": mathematics, "result": result}, indent=1))
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    for weights in place.glob("*.safetensors"):
        weights.unlink()
    return result


def row(name: str, done: Mapping[str, Sequence[Row]], chance: float) -> Row:
    """Return the line of a method: means and deviations over seeds, and what is suspicious."""
    results, base = done[name], done.get(BASELINE, [])
    all_nets = dict.fromkeys(net for rows in done.values() for r in rows for net in r["scores"])
    made: Row = {"method": name, "seeds": len(results)}
    made |= {f"{net}, top-1 %": "" for net in all_nets}
    means: dict[str, float] = {}
    flags = ["diverged"] if any(r["diverged"] for r in results) else []
    nets = dict.fromkeys(net for r in results for net in r["scores"])
    for net in nets:
        values = [r["scores"][net] for r in results if net in r["scores"]]
        means[net] = statistics.mean(values)
        made[f"{net}, top-1 %"] = _percent(values)
        if means[net] < 2 * chance:
            flags.append(f"{net} at chance")
        elif net != "model" and means[net] < means["model"] - BELOW:
            flags.append(f"{net} below its model")
    if "model" in means and base and all("model" in r["scores"] for r in base):
        best = max(means.values())
        shared = statistics.mean(r["scores"]["model"] for r in base[: len(results)])
        made["best over baseline, points"] = round(100 * (best - shared), 2)
    seconds = [value for r in results for value in r["epoch seconds"]]
    if seconds:
        made["seconds an epoch"] = round(statistics.median(seconds), 1)
    return made | {"flags": "; ".join(flags)}


def _percent(values: Sequence[float]) -> str:
    told = f"{100 * statistics.mean(values):.2f}"
    return f"{told} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else told


def report(
    args: argparse.Namespace, run: Run, chosen: Mapping[str, Any], done: Mapping[str, list[Row]]
) -> str:
    """Write what is known so far as JSON and Markdown, and return the latter."""
    chance = 1 / run.model.num_classes
    rows = [row(name, done, chance) for name, results in done.items() if results]
    for line in rows:
        told = chosen[line["method"]].items()
        line["changes"] = ", ".join(f"{name} {value}" for name, value in told)
    left_out = [f"- {name}: {why}" for name, why in methods(run).items() if isinstance(why, str)]
    facts = machine.describe(hardware.resolve(run.hardware).device)
    made = {
        "machine": facts,
        "baseline": config.mathematics(run),
        "train images": PackedDataset.open(Path(run.storage.data)).split("train").num_images,
        "val images": PackedDataset.open(Path(run.storage.data)).split("val").num_images,
        "chance": chance,
        "rows": rows,
        "runs": done,
    }
    words = (
        f"{run.model.arch} ({run.model.stem} stem) at {run.images.train_px} px, {run.epochs} "
        f"epochs of {made['train images']:,} images, batch {run.images.batch_size}, learning rate "
        f"{run.optim.peak_lr:g}, weight decay {run.optim.weight_decay:g}; scored on "
        f"{made['val images']:,} images; chance {chance:.1%}. The deviation is that of one seed."
    )
    markdown = "\n\n".join(
        [
            "# Ablation: each method on top of the plain baseline",
            words,
            machine.table(rows),
            *(["Left out:\n" + "\n".join(left_out)] if left_out else []),
            machine.facts_list(facts),
        ]
    )
    machine.write(args.out / "ablation.json", made, markdown)
    return markdown


def choose(asked: Sequence[str], run: Run) -> dict[str, Changes]:
    """Return the methods asked for, with the baseline first."""
    known = methods(run)
    names = list(known) if asked == ["all"] else list(dict.fromkeys([BASELINE, *asked]))
    for name in names:
        if name not in known:
            raise UsageError(f"--methods has {name!r}, which is none of: {', '.join(known)}")
        if isinstance(why := known[name], str) and asked != ["all"]:
            raise UsageError(f"--methods has {name!r}, which cannot be had here: {why}")
    return {name: changes for name in names if isinstance(changes := known[name], dict)}


def ablate(args: argparse.Namespace) -> None:
    """Train what is left to train, and report after every run."""
    args.out.mkdir(parents=True, exist_ok=True)
    data = data_for(args)
    run = baseline(args, data)
    chosen = choose(args.methods, run)
    runs = {name: changed(run, changes) for name, changes in chosen.items()}
    done: dict[str, list[Row]] = {name: [] for name in chosen}
    began, number = time.monotonic(), 0
    for seed in range(args.seeds):
        for name, one in runs.items():
            place = args.out / "runs" / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            done[name].append(train(replace(one, seed=seed), place))
            number += 1
            scores = ", ".join(f"{n} {s:.2%}" for n, s in done[name][-1]["scores"].items())
            minutes = (time.monotonic() - began) / 60
            told = f"{number}/{args.seeds * len(runs)} · {minutes:.0f} min · seed {seed} · {name}: "
            print(told + (scores or "diverged"), file=sys.stderr, flush=True)
            markdown = report(args, run, chosen, done)
    print(markdown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says, and print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder made by `rn50 prepare`")
    parser.add_argument("--recipe", default="cifar10-resnet18", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["all"], metavar="NAME")
    parser.add_argument("--px", type=int, default=0, help="side of training and test images")
    parser.add_argument("--limit-images", type=int, default=0, help="train on about so many")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any setting")
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    args = parser.parse_args(arguments)
    try:
        ablate(args)
    except UserError as error:
        print(f"ablation: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
