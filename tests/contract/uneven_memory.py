"""``rn50`` in processes of which the second has memory for fewer images than the first."""

import os

from rn50.cli import main
from rn50.train import probe

room = 8 if os.environ["RANK"] == "0" else 5
probe.predicting = lambda *_: lambda count: count <= room
main()
