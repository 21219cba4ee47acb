"""``rn50`` that is killed after its last checkpoint, before it has told of its end."""

import os
import signal

from rn50.cli import main
from rn50.observe.record import Observers

write = Observers.write


def _killed(self, record):  # type: ignore[no-untyped-def]
    if record["kind"] == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, record)


Observers.write = _killed  # type: ignore[method-assign]
main()
