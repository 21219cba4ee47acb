"""Entry point of the process that feeds the trackers."""

import sys
from pathlib import Path

from rn50.observe.trackers.process import main

main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
