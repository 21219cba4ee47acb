"""Records of small runs, for the tests of what is made from them."""

import json

PRICE = 2.0


def start(kind="start", step=0, **more):
    plan = {"recipe": "demo", "epochs": 5, "steps_per_epoch": 40, "total_steps": 200}
    data = {"num_train": 2500, "num_val": 600, "num_classes": 10}
    machine = {"world_size": 1, "device": "cpu", "precision": "bf16"}
    rest = {"versions": {"rn50": "0.1.0"}, "timing": {"time": "2026-11-21T10:00:00Z"}}
    return {"kind": kind, "step": step, **plan, **data, **machine, **rest, **more}


def window(step, *, seconds=12.0, elapsed_s=None, **more):
    timing = {"seconds": seconds, "images_per_second": 1280 / seconds, "data_wait": 0.02}
    if elapsed_s is not None:
        timing["elapsed_s"] = elapsed_s
    scores = {"loss": 200 / (step + 50), "top1": step / 400, "lr": 0.05, "px": 64}
    return {"kind": "train", "step": step, "epoch": step / 40, **scores, "timing": timing, **more}


def epoch(number, *, top1=None, average=None, swa=None, seconds=24.0, elapsed_s=None, **more):
    top1 = 0.1 * number if top1 is None else top1
    nets = {"model": top1, "average": average, "swa": swa}
    val = {
        name: {"loss": 2.5 - value, "top1": value, "top5": min(1.0, 1.5 * value), "images": 600}
        for name, value in nets.items()
        if value is not None
    }
    timing = {"seconds": seconds, "images_per_second": 104.0, "data_wait": 0.02}
    timing["eval_seconds"] = 6.0
    if elapsed_s is not None:
        timing["elapsed_s"] = elapsed_s
    training = {"train_loss": 2.0 / number, "train_top1": 0.1 * number, "lr": 0.05, "px": 64}
    return {
        "kind": "epoch",
        "step": 40 * number,
        "epoch": number,
        **training,
        "val": val,
        "timing": timing,
        **more,
    }


def whole(epochs=5, **facts):
    """A run of ``epochs`` epochs from beginning to end, without what newer records have."""
    records = [start(epochs=epochs, total_steps=40 * epochs, **facts)]
    for number in range(1, epochs + 1):
        records += [window(40 * number - 20), window(40 * number), epoch(number, average=0.5)]
    return [*records, {"kind": "end", "step": 40 * epochs, "timing": {}}]


def folder_of(place, records, settings=None):
    """Write a run's folder as training does."""
    place.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (place / "metrics.jsonl").write_text(lines)
    (place / "config.json").write_text(json.dumps(settings or {"recipe": "demo", "epochs": 5}))
    return place
