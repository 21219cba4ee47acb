"""The analysis that a folder holds already: what it is of, and whether it fits the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rn50 import durable
from rn50.model import weights

FACTS = "analysis.json"
"""The facts of an analysis, in its folder."""
SUMMARY = "Summary"

Facts = Mapping[str, Any]
"""The facts of an analysis by the titles of its sections."""


def sections(folder: Path) -> Facts:
    """Return the facts that ``rn50 analyze`` wrote; empty where there are none to be read."""
    try:
        told = json.loads((folder / FACTS).read_text(encoding="utf-8"))["sections"]
        return {title: one for title, one in told.items() if isinstance(one, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def summary(found: Facts) -> Facts:
    """Return the facts of the summary; empty where there is none."""
    return dict(found.get(SUMMARY, {}))


def has_scores(found: Facts) -> bool:
    """Return whether the network was tested; if not, only its architecture was described."""
    return bool(summary(found).get("scores"))


def step(found: Facts, network: str) -> int | None:
    """Return the step after which the weights of a network were written, where it was told."""
    told = summary(found)
    if network in (those := _weights(found)):
        return those[network].get("step")
    return told.get("step") if network == told.get("network") else None


def misfit(found: Facts, run_dir: Path) -> str:
    """Return why an analysis is not of the weights in a run's folder; empty: it is of them.

    Compared is the content of the files, or, of an analysis that does not tell it, the step.
    """
    analysed = str(summary(found).get("network", ""))
    known = _weights(found) or {analysed: {}}
    for name, told in known.items():
        file = run_dir / f"{name}.safetensors"
        about = (weights.told(file) or {}).get("about")
        if not isinstance(about, dict):
            if name == analysed:
                return f"the analysis is of {file.name}, which is not there or cannot be read"
            continue
        if (then := step(found, name)) not in (None, now := about.get("step")):
            return f"the analysis is of {file.name} after step {then}; that is of step {now} now"
        if told.get("blake2b") not in (None, durable.file_digest(file)):
            return f"the analysis is of another {file.name} than that which is there now"
    return ""


def _weights(found: Facts) -> Mapping[str, Facts]:
    told = summary(found).get("weights")
    if not isinstance(told, dict):
        return {}
    return {name: one for name, one in told.items() if isinstance(one, dict)}
