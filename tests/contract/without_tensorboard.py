"""``rn50`` on a machine on which the package tensorboard is not installed."""

import importlib.util

from rn50.cli import main

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: (
    None if name == "tensorboard" else find_spec(name, *more)
)
main()
