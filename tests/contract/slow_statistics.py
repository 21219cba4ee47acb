"""``rn50`` that pauses before each part of the pass over the SWA's statistics, and says so once."""

import os
import time
from pathlib import Path

from rn50.cli import main
from rn50.train import swa

_inputs_of = swa.inputs_of


def _slowly(*arguments):  # type: ignore[no-untyped-def]
    with Path(os.environ["RN50_TEST_EVALUATIONS"]).open("a", encoding="utf-8") as file:
        file.write("one more\n")
    time.sleep(float(os.environ["RN50_TEST_PAUSE_S"]))
    return _inputs_of(*arguments)


swa.inputs_of = _slowly
main()
