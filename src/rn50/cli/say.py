"""What the commands print."""

import contextlib
import sys
from typing import Any


def progress(verb: str, *, in_bytes: bool = False) -> Any:
    """Return a context manager that shows progress and gives the function to report it to."""
    from rn50.observe.progress import progress as shown

    return shown(verb, in_bytes=in_bytes)


def say(text: str) -> None:
    """Print what the command is for, or tells on its way."""
    print(text, flush=True)  # noqa: T201


def say_scores(scores: dict[str, dict[str, float]]) -> None:
    """Print a line for each network."""
    for name, s in scores.items():
        say(
            f"{name}: val top-1 {s['top1']:.2%}, top-5 {s['top5']:.2%}, loss {s['loss']:.4f} "
            f"on {s['images']:,} images"
        )


def say_aside(text: str) -> None:
    """Print beside the result, which a program may read."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def say_error(text: str) -> None:
    """Print the one line of a refusal."""
    # A terminal that was closed takes no line; the exit code still tells.
    with contextlib.suppress(OSError):
        print(f"rn50: error: {text}", file=sys.stderr, flush=True)  # noqa: T201
