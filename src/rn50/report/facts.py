"""What a report says of a run in words and figures, from its history alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rn50 import config
from rn50.config import Run
from rn50.errors import UsageError
from rn50.observe.compare import Entry
from rn50.observe.history import History, scores, timing
from rn50.observe.record import NETWORKS, TIMING, Record, shown
from rn50.recipes import RECIPES, published, summary

NAMES = {"model": "model", "average": "EMA of the model", "swa": "SWA of the model"}
"""What the networks of a run are called on the page."""
_MOST_EVENTS = 200
"""Of one kind that the page lists; further ones are counted."""

Pairs = list[tuple[str, str]]
"""Names and values, in the order in which they are read."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something out of the ordinary."""

    epoch: str
    kind: str
    message: str


def settings(history: History) -> Run | None:
    """Return the settings of a run, or None where they are lost or of another version."""
    try:
        return config.from_dict(history.settings) if history.settings else None
    except UsageError:
        return None


def tiles(entry: Entry) -> Pairs:
    """Return what is read first: result, length, time and money, speed."""
    history, found = entry.history, Pairs()
    if last := last_scored(history):
        # Not the better one, which would be a choice by validation: the average, if it keeps one.
        name = next(n for n in reversed(NETWORKS) if scores(last, n).get("top1") is not None)
        whose = "" if name == "model" else f", {NAMES[name].partition(' ')[0]}"
        found.append((f"top-1, last epoch{whose}", f"{scores(last, name)['top1']:.2%}"))
        found.append((f"top-5, last epoch{whose}", shown(scores(last, name).get("top5"), ".2%")))
    planned = history.num_planned_epochs
    found.append(("epochs", f"{len(history.epochs)}" + (f" of {planned}" if planned else "")))
    if history.hours:
        found.append(("time", duration(3600 * history.hours)))
    if entry.dollars is not None:
        found.append(("cost", f"${entry.dollars:,.2f}"))
    if speeds := _timed(history.windows, "images_per_second"):
        found.append(("images/s, median", f"{statistics.median(speeds):,.0f}"))
    if waits := _timed(history.epochs, "data_wait"):
        found.append(("waiting for data", f"{statistics.fmean(waits):.1%}"))
    return found


def what_was_run(history: History, run: Run | None) -> Pairs:
    """Return recipe, network, data and plan."""
    facts = history.latest_facts
    found: Pairs = [("recipe", history.title)]
    if history.title in RECIPES:
        found[0] = ("recipe", f"{history.title}: {summary(history.title)}")
        if (figure := published(history.title)) != "–":
            found.append(("published top-1", figure))
    if facts:
        found += [
            ("network", f"{facts.get('arch', '-')}, {_count(facts, 'parameters')} parameters"),
            ("data", _data(history)),
            (
                "plan",
                f"{_count(facts, 'epochs')} epochs of {_count(facts, 'steps_per_epoch')} steps, "
                f"{_count(facts, 'total_steps')} in all",
            ),
        ]
        if begun := facts.get("init_from"):
            found.append(("begun from", str(begun)))
    if run is not None:
        test = f"tested at {run.images.test_px} px"
        sides = f"trained at {_sides(run)} px, {test}"
        found += [
            ("images", sides),
            ("batch", f"{run.images.batch_size:,} images"),
            ("optimizer", _optimizer(run)),
            ("seed", str(run.seed)),
        ]
    return found


def where(entry: Entry) -> Pairs:
    """Return machine, precision, versions, when, for how long and for what money."""
    history, facts = entry.history, entry.history.latest_facts
    found: Pairs = []
    if facts:
        versions = facts.get("versions") or {}
        found += [
            ("device", device(history)),
            ("precision", str(facts.get("precision", "-"))),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("started", str((history.facts.get(TIMING) or {}).get("time", "-"))),
        ]
    found.append(("state", history.state))
    if history.hours:
        found.append(("time", f"{duration(3600 * history.hours)} of machine time"))
        if entry.dollars is None:
            found.append(("cost", "unknown: no price was given (--price-per-hour)"))
        else:
            price = entry.dollars / history.hours
            found.append(("cost", f"${entry.dollars:,.2f} at ${price:,.2f} an hour"))
    if memory := _timed(history.windows, "gpu_memory"):
        found.append(("GPU memory", f"{max(memory) / 2**30:.1f} GiB at most"))
    if used := _timed(history.windows, "gpu_utilisation"):
        found.append(("GPU utilisation", f"{statistics.fmean(used):.0%} on average"))
    if power := _timed(history.windows, "gpu_power_w"):
        found.append(("GPU power", f"{statistics.fmean(power):,.0f} W on average"))
    return found


def results(history: History, run: Run | None) -> list[dict[str, str]]:
    """Return the scores of the last evaluation, a row for each network.

    Single centre crop and the last checkpoint of the schedule, never the best of them: the rules
    under which published figures can be compared.
    """
    last = last_scored(history)
    if last is None:
        return []
    px = str(run.images.test_px) if run else "-"
    rows = []
    for name in NETWORKS:
        score = scores(last, name)
        if score.get("top1") is None:
            continue
        images = num_images(history, score)
        rows.append(
            {
                "network": NAMES[name],
                "top-1": with_error(history, score),
                "top-5": shown(score.get("top5"), ".2%"),
                "test px": px,
                "loss": shown(score.get("loss"), ".4f"),
                "images": f"{images:,}" if images else "-",
                "after epoch": str(last["epoch"]),
            }
        )
    return rows


def with_error(history: History, score: Record) -> str:
    """Return the top-1 of a network's scores with its standard error by the number of images."""
    if (top1 := score.get("top1")) is None:
        return "-"
    images = num_images(history, score)
    error = f" ± {math.sqrt(top1 * (1 - top1) / images):.2%}" if images else ""
    return f"{top1:.2%}{error}"


def device(history: History) -> str:
    """Return what the run's latest process computed on, and how many of them."""
    latest = history.latest_facts
    world = latest.get("world_size", 1)
    return f"{latest.get('device', '-')}" + (f" × {world}" if world != 1 else "")


def claims(history: History, run: Run | None) -> list[str]:
    """Return what a reader must know before comparing the results with published ones."""
    said = [
        "Single centre crop; every validation image counts once; the last checkpoint of the "
        "schedule, not the best of many. ± is the standard error from the number of validation "
        "images; another seed moves ResNet-50 on ImageNet by another 0.1 points or so.",
    ]
    if not history.finished:
        said.append("The run has not come to its end: these are no final figures.")
    if run is not None:
        plain = "with BlurPool, which is to be compared with such networks only"
        kind = "plain" if run.model.blurpool == "none" else plain
        said.append(f"The network is {run.model.arch}, {kind}, with the {run.model.stem} stem.")
        published = "Published figures of ImageNet-1k are at test sizes 224 and 288"
        if run.model.num_classes != 1000:
            said.append(f"{published}; these are of {run.model.num_classes:,} classes.")
        elif run.images.test_px != 224:
            said.append(f"{published}: those at the same size can be compared.")
        if run.init_from:
            said.append("It did not begin from random weights.")
    if history.bad_images:
        said.append("Images that could not be decoded count as wrong.")
    return said


def events(history: History) -> list[Event]:
    """Return what went otherwise than planned, in the order of the run."""
    timed: list[tuple[float, Event]] = []

    def add(kind: str, records: Sequence[Record]) -> None:
        for record in records[:_MOST_EVENTS]:
            epoch = history.epoch_at(record)
            told = Event(shown(epoch, ".2f"), kind, _message(record, history))
            timed.append((record.get("step") or 0, told))
        if (more := len(records) - _MOST_EVENTS) > 0:
            timed.append((math.inf, Event("", kind, f"and {more:,} more")))

    add("restart", history.resumes)
    add("stall", history.stalls)
    slow = history.slow_epochs
    add("slow epoch", [one for one in history.epochs if one["epoch"] in slow])
    add("roll-back", history.rollbacks)
    add("bad image", history.bad_images)
    add("warning", history.warnings)
    add("skipped updates", [one for one in history.windows if one.get("skipped")])
    return [event for _, event in sorted(timed, key=lambda one: one[0])]


def duration(seconds: float) -> str:
    """Return a time as people say it: ``"2 h 05 min"``, ``"3 min 20 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def last_scored(history: History) -> Record | None:
    """Return the record of the last epoch in which a network was evaluated."""
    scored = [
        e for e in history.epochs if any(scores(e, n).get("top1") is not None for n in NETWORKS)
    ]
    return scored[-1] if scored else None


def num_images(history: History, score: Record) -> int | None:
    """Return of how many images scores are, where it is known."""
    return score.get("images") or history.latest_facts.get("num_val")


def _timed(records: Sequence[Record], name: str) -> list[float]:
    return [value for record in records if (value := timing(record, name)) is not None]


def _message(record: Record, history: History) -> str:
    match record["kind"]:
        case "resume":
            return f"went on at step {record['step']:,} on {record.get('device', 'this machine')}"
        case "bad_image":
            return f"{record['split']} image of {record['class']}: {record.get('key', '-')}"
        case "epoch":
            ratio = history.slow_epochs[record["epoch"]]
            return f"{ratio:.1f} times the usual: {duration(timing(record, 'seconds') or 0.0)}"
        case "train":
            count = record["skipped"]
            return f"{count} update{'s' * (count > 1)} left out: loss or gradient was not finite"
        case _:
            return str(record.get("message", ""))


def _count(facts: Record, name: str) -> str:
    value = facts.get(name)
    return f"{value:,}" if isinstance(value, int) else "-"


def _data(history: History) -> str:
    facts = history.latest_facts
    place = (history.settings.get("storage") or {}).get("data") or ""
    counts = (
        f"{_count(facts, 'num_train')} training and {_count(facts, 'num_val')} validation images "
        f"of {_count(facts, 'num_classes')} classes"
    )
    return f"{place}: {counts}" if place else counts


def _sides(run: Run) -> str:
    sides = [px for _, px in run.images.sizes] or [run.images.train_px]
    return " → ".join(str(px) for px in dict.fromkeys([*sides, run.images.train_px]))


def _optimizer(run: Run) -> str:
    optim = run.optim
    return (
        f"{optim.name}, learning rate {optim.peak_lr:g} ({run.schedule.name}), weight decay "
        f"{optim.weight_decay:g}"
    )
