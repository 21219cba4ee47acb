"""``rn50 plot``."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rn50.cli.say import say, say_aside
from rn50.errors import UsageError, UserError


def plot(
    runs: Positional[tuple[Path, ...]] = (),
    /,
    *,
    by: tuple[Literal["epoch", "fraction", "hour", "dollar"], ...] = (),
    out: Annotated[Path | None, arg(aliases=["-o"])] = None,
    network: Literal["auto", "model", "average", "swa"] = "auto",
    reference: str = "",
    price_per_hour: float = 0.0,
) -> None:
    """Draw the figures of a run anew from its record; compare several runs in one picture.

    Args:
        runs: Folders of runs, finished, running or crashed.
        by: What to compare runs along: epochs, the share of the run done, hours, dollars; by
            default each of them that is known. Given for one run, it is drawn along that.
        out: Folder to write to; by default the run's folder, and `comparison` for what several
            have in common.
        network: Which network of each run to compare; auto: its average, else its model.
        reference: Recipe whose published curve to draw as a band; by default the runs' own, where
            one is known.
        price_per_hour: Dollars an hour for the runs whose record tells no price.
    """
    if not runs:
        raise UsageError("name the folder of a run, or several: rn50 plot runs/demo")
    from rn50.observe import compare, published
    from rn50.observe.files import write_history

    curve = published.curve(reference) if reference else None
    entries, refused = compare.gather(runs, price_per_hour)
    for message in refused:
        say_aside(f"left out: {message}")
    alone = len(entries) == 1 and not refused
    for folder, entry in entries.items():
        for problem in entry.history.problems:
            say_aside(f"{folder}: {problem}")
        try:
            files = write_history(entry.history, (alone and out) or folder, curve)
        except UserError as error:
            if alone:
                raise
            say_aside(f"not drawn anew: {error}")  # but it can be compared
            continue
        names = ", ".join(file.name for file in files)
        say(f"{entry.label}, {entry.history.state}: wrote {files[0].parent}: {names}")
    if alone and not by:
        return
    into = out or (next(iter(entries)) if alone else Path("comparison"))
    files, notes = compare.write(list(entries.values()), into, by, which=network, reference=curve)
    for note in notes:
        say_aside(note)
    say(f"wrote {into}: {', '.join(file.name for file in files)}")
