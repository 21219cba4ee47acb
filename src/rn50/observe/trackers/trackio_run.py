"""trackio: a store on this machine, or the Space or server that its variables name."""

from typing import Any

from rn50.observe.trackers.rows import Row
from rn50.observe.trackers.sink import Ended, Tracked, require


class Trackio:
    """Shows rows in one run of trackio, which tells which step it has and takes none again.

    Raises:
        UsageError: The trackio package is not installed.
    """

    name = "trackio"
    closing_s = 30.0

    def __init__(self) -> None:
        require("trackio", self.name, "trackio")

    def open(self, run: Tracked) -> int:
        """Begin or resume the run of this name, which holds the id: trackio knows it by that."""
        import trackio

        self._place = run.place
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            config=run.hparams,
            resume="allow",
            embed=False,
        )
        last: int = self._run._next_step - 1
        return last

    def log(self, row: Row) -> None:
        """Hand a row to trackio, which stores it within a second."""
        import trackio

        shown: dict[str, Any] = dict(row.scalars)
        for name, one in row.histograms.items():
            shown[name] = trackio.Histogram(np_histogram=(one.counts, one.edges()))
        for name, file in row.pictures.items():
            shown[name] = trackio.Image(self._place / file)
        self._run.log(shown, step=row.step)

    def close(self, end: Ended | None) -> None:
        """Wait until all is stored."""
        self._run.finish()  # type: ignore[no-untyped-call]
