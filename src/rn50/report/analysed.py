"""What a report takes from the analysis of a run: scores at other test sizes, and what is amiss."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rn50.analyze import earlier
from rn50.analyze.earlier import Facts
from rn50.observe.history import History, scores
from rn50.observe.record import NETWORKS, Record
from rn50.report import facts

Row = dict[str, str]


def problems(found: Facts, run_dir: Path) -> list[str]:
    """Return what a reader of the analysis in a run's folder must know."""
    if not found:
        return []
    if not earlier.has_scores(found):
        notes = earlier.summary(found).get("notes") or []
        return [" ".join(["only the architecture was analysed.", *map(str, notes)])]
    why = earlier.misfit(found, run_dir)
    return [f"{why}: `rn50 analyze` makes it anew"] if why else []


def results(found: Facts, history: History, fingerprint: str | None) -> tuple[list[Row], list[str]]:
    """Return rows as ``facts.results`` does, of the other test sizes, and why some are left out.

    Left out are networks that are not those of the run's last evaluation, or were tested on other
    images: they cannot stand beside its results.

    Args:
        found: The facts of the analysis; what is not there gives no row.
        history: The run's record.
        fingerprint: Of the run's data, where it is known.
    """
    try:
        tested = [name for name in NETWORKS if name in earlier.summary(found)["scores"]]
        last = facts.last_scored(history)
        found_rows = list(_rows(found, tested, str(last["epoch"]) if last else "-"))
        reasons = [_misfit(found, name, history, fingerprint) for name in tested]
    except (KeyError, TypeError, ValueError, AttributeError):
        return [], []
    why = next(filter(None, reasons), "")
    if why and found_rows:
        return [], [f"results at other test sizes are left out: {why}"]
    return found_rows, []


def _misfit(found: Facts, network: str, history: History, fingerprint: str | None) -> str:
    """Return why a network's scores cannot stand beside those of the run's last evaluation."""
    last = facts.last_scored(history)
    if last is None:
        return "the record tells of no evaluation that they could stand beside"
    then = earlier.step(found, network)
    if then not in (None, last["step"]):
        return f"they are of step {then}, and the run's last evaluation of step {last['step']}"
    told = earlier.summary(found)
    images = told["scores"][network]["images"]
    if images != (own := facts.num_images(history, scores(last, network)) or images):
        return f"they are of {images:,} images of {told.get('data')}, and the run's of {own:,}"
    if fingerprint and told.get("fingerprint", fingerprint) != fingerprint:
        return f"they are of {told.get('data')}, which is not what the run was trained on"
    return ""


def _rows(found: Facts, tested: list[str], epoch: str) -> Iterator[Row]:
    told, sizes = earlier.summary(found), found["Test sizes"]
    for size in sizes["sizes"]:
        if size["px"] == sizes["test_px"]:
            continue
        by_name: dict[str, Record] = {told["network"]: size, **size.get("others", {})}
        for name in tested:
            if name in by_name:
                yield _row(name, by_name[name], size["px"], told["scores"][name]["images"], epoch)


def _row(network: str, score: dict[str, Any], px: int, images: int, epoch: str) -> Row:
    return {
        "network": facts.NAMES[network],
        "top-1": f"{score['top1']:.2%} ± {score['top1_standard_error']:.2%}",
        "top-5": f"{score['top5']:.2%}",
        "test px": str(px),
        "loss": f"{score['loss']:.4f}",
        "images": f"{images:,}",
        "after epoch": epoch,
    }
