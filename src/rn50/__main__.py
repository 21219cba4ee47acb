"""``python -m rn50``, as ``torchrun -m rn50`` needs it."""

from rn50.cli import main

main()
