"""``rn50`` whose numbers go bad at chosen steps, as by a batch that meets a bad place of the loss.

``FAULTS`` in the environment is JSON: ``steps`` (updates, counted from 1), ``rank`` (the process
that it happens on; left out: on all), ``kind`` (``nan``, ``explode`` or ``left-out``: the update is
simply not done) and ``detours`` (how many attempts at these steps go bad, 1 unless said).
"""

import json
import math
import os
from typing import Any

import torch

from rn50.cli import main
from rn50.train import loop, step
from rn50.train import state as states

FAULTS: dict[str, Any] = json.loads(os.environ["FAULTS"])
_is_bad = False
_train_step, _inputs_of = loop.train_step, step.inputs_of


def _faulty_step(state: states.TrainState, *others: Any) -> None:
    global _is_bad
    is_here = FAULTS.get("rank") in (None, int(os.environ.get("RANK", "0")))
    is_now = state.step + 1 in FAULTS["steps"] and state.trouble.detour < FAULTS.get("detours", 1)
    if is_now and FAULTS["kind"] == "left-out":
        state.step += 1
        return
    if is_now and FAULTS["kind"] == "explode":
        with torch.no_grad():
            state.model.fc.weight.mul_(1e4)
    _is_bad = is_now and is_here and FAULTS["kind"] == "nan"
    _train_step(state, *others)


def _faulty_inputs(*arguments: Any) -> torch.Tensor:
    return _inputs_of(*arguments) * (math.nan if _is_bad else 1.0)


loop.train_step, step.inputs_of = _faulty_step, _faulty_inputs
main()
