"""``rn50 report``."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rn50.cli.say import progress, say, say_aside
from rn50.errors import UsageError


def report(
    runs: Positional[tuple[Path, ...]] = (),
    /,
    *,
    out: Annotated[Path | None, arg(aliases=["-o"])] = None,
    data: Annotated[str, arg(aliases=["-d"])] = "",
    price_per_hour: float = 0.0,
    no_analysis: bool = False,
) -> None:
    """Write one HTML file about a run, whole by itself; of several runs, a comparison.

    Args:
        runs: Folders of runs, finished, running or crashed.
        out: The file; by default `report.html` in the run's folder, `comparison.html` for several.
        data: Folder made by prepare to analyse with, even where there is an analysis; by default
            what the run was trained on.
        price_per_hour: Dollars an hour for the runs whose record tells no price.
        no_analysis: Leave out what would have to be computed from weights and images first.
    """
    if not runs:
        raise UsageError("name the folder of a run, or several: rn50 report runs/demo")
    from rn50.report.writing import write

    with progress("analysing") as tell:
        page = write(
            runs,
            out,
            data=data,
            price_per_hour=price_per_hour,
            analyses=not no_analysis,
            say=say_aside,
            progress=tell,
        )
    say(f"wrote {page}, {page.stat().st_size / 1e6:.1f} MB")
