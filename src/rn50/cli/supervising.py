"""``rn50 supervise``."""

import sys
from collections.abc import Callable, Sequence

from rn50.cli.say import say_aside
from rn50.errors import UsageError


def supervise_command(given: Sequence[str]) -> tuple[list[str], Callable[..., None]]:
    """Return the words that are options of rn50's own, and the ``supervise`` command."""
    own, command = list(given), list[str]()
    if own[:1] == ["supervise"] and "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]

    def supervise(*, restarts: int = 10, wait_s: float = 30.0) -> None:
        """Start a run again whenever it ends too soon: `rn50 supervise -- COMMAND --resume`.

        Not where a person must look: after bad usage (2), bad data (3) or divergence (4). Exits
        with the run's own code, through torchrun too.

        Args:
            restarts: How often at most, in all.
            wait_s: Seconds to wait before each.
        """
        from rn50.supervise import supervise as run

        if restarts < 0 or wait_s < 0:
            raise UsageError(
                f"restarts is {restarts} and wait_s {wait_s:g}; neither may be below 0: leave out "
                "what should be as it is"
            )
        sys.exit(run(command, restarts=restarts, wait_s=wait_s, say=say_aside))

    return own, supervise
