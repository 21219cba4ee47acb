"""``rn50`` whose evaluations take an image at a time, with a pause before each, and say so."""

import os
import time
from pathlib import Path

import rn50.evaluate
from rn50.cli import main
from rn50.train.stoppable import StoppableLoader

_read = StoppableLoader.read
rn50.evaluate.BATCH = 1


def _slowly(self, split, requests, **options):  # type: ignore[no-untyped-def]
    for number, batch in enumerate(_read(self, split, requests, **options)):
        if number == 2:
            with Path(os.environ["RN50_TEST_EVALUATIONS"]).open("a", encoding="utf-8") as file:
                file.write("one more\n")
        time.sleep(float(os.environ["RN50_TEST_PAUSE_S"]))
        yield batch


StoppableLoader.read = _slowly
main()
