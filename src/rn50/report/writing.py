"""Writes the page of one run or the comparison of several, and has analysed what is not yet."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rn50 import durable
from rn50.analyze import analysis, earlier
from rn50.analyze.examination import Settings
from rn50.data.remote import local_folder
from rn50.errors import UserError
from rn50.report import comparison, page
from rn50.train.folder import data_of

PAGE = "report.html"
COMPARISON = "comparison.html"


def write(
    run_dirs: Sequence[Path],
    out: Path | None,
    *,
    data: str = "",
    price_per_hour: float = 0.0,
    analyses: bool,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Path:
    """Write the page and return its path.

    Args:
        run_dirs: Folders of runs: of one, all about it; of several, a comparison.
        out: The file; by default ``report.html`` in the run's folder, and ``comparison.html`` here.
        data: What to analyse with, whatever analysis there is; empty: what the run was trained on.
        price_per_hour: Dollars an hour for the runs whose record tells no price; 0: unknown.
        analyses: Analyse a single run's network first, where no analysis has scores of its weights.
        say: Told what is missing.
        progress: Told how many images of all are analysed.

    Raises:
        UsageError: None is a run's folder, or the file cannot be written.
    """
    if len(run_dirs) > 1:
        path, text = (
            out or Path(COMPARISON),
            comparison.comparison_page(run_dirs, price_per_hour, say),
        )
    else:
        (run_dir,) = run_dirs
        problems = _analyse(run_dir, data, say, progress) if analyses else []
        path = out or run_dir / PAGE
        text = page.run_page(run_dir, problems, price_per_hour, say)
    with durable.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, text)
    return path


def _analyse(
    run_dir: Path, data: str, say: Callable[[str], None], progress: Callable[[int, int], None]
) -> list[str]:
    """Analyse a run where there is no analysis of its weights; return why it could not be done.

    An analysis with scores stays as it is where there is no data for another.
    """
    folder = analysis.default_folder(run_dir)
    found = earlier.sections(folder)
    tested = earlier.has_scores(found)
    if tested and not data and not earlier.misfit(found, run_dir):
        return []
    try:
        place = analysis.data_if_there(lambda: local_folder(data or data_of(run_dir)))
        if tested and isinstance(place, analysis.NoData):
            return [f"the analysis is an earlier one, which could not be made anew: {place.why}"]
        analysis.analyze(run_dir, place, folder, Settings(), say=say, report=progress)
    except UserError as error:
        return [f"the network was not analysed: {error}"]
    return []
