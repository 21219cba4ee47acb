"""What every benchmark reports beside its numbers: the machine, the versions, medians, tables."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

import rn50

ROOT = Path(__file__).resolve().parent.parent

Row = dict[str, Any]
"""One line of a table: column -> value."""


def describe(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions and the commit that a measurement belongs to."""
    from rn50 import hardware
    from rn50.data.decode import decoder_name

    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": hardware.describe(torch.device("cpu")),
        "memory GiB": _memory_gib(),
        "system": platform.platform(),
        "load average": [round(load, 2) for load in os.getloadavg()],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu memory GiB": round(properties.total_memory / 2**30, 1),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "rn50": rn50.__version__,
        "decoder": decoder_name(),
        "commit": _commit(),
    }


def spread(values: Sequence[float], digits: int = 1) -> Row:
    """Return the median, the least and the greatest of repeated measurements."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over the rounds of each value over the base's of the same round."""
    return round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3)


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; the columns are those of all rows, as they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts_list(facts: Mapping[str, Any]) -> str:
    """Return facts as a Markdown list."""
    return "\n".join(f"- {name}: {_cell(value)}" for name, value in facts.items())


def write(path: Path, report: Mapping[str, Any], markdown: str) -> None:
    """Write a report as JSON to ``path`` and as Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(markdown + "\n")


def publish(report: Mapping[str, Any], markdown: str, path: Path | None) -> None:
    """Print a report's Markdown, and write both to ``path`` if there is one."""
    print(markdown)
    if path is not None:
        write(path, report, markdown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return str(value).replace("|", "/").replace("\n", " ")


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--", "src", "benchmarks")
    return f"{commit} with changes" if commit != "unknown" and changed else commit


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
