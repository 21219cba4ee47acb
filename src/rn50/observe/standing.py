"""How a run stands: what a person who watches it wants to know, from its records as they come."""

from dataclasses import dataclass, field
from typing import Any

from rn50.observe.cost import Cost
from rn50.observe.record import TIMING, Record

DATA_BOUND = 0.2
"""The share of the time spent waiting for data above which a run is called data-bound."""
SAVING = 0.2
"""The same of standing still for checkpoints."""
HOST_BOUND = 0.5
"""The utilisation of the GPU below which the host is what a run waits for."""

_SMOOTHING_STEPS, _SMOOTHING_EPOCHS = 100.0, 0.1
"""After so many steps, or so much of an epoch if that is less, a training accuracy counts half."""
_GPU = "gpu_"


@dataclass
class Standing:
    """Takes in a run's records and keeps the little that is shown of them."""

    epochs: int = 0
    total_steps: int = 0
    step: int = 0
    window: Record = field(default_factory=dict)
    """The latest record of kind train."""
    evaluated: Record = field(default_factory=dict)
    """The latest record of kind epoch that has scores."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """What was last told of the GPUs, by the names of ``system.Gpus.take``."""
    cost: Cost = field(default_factory=Cost)
    on_cpu: bool = True

    _steps_per_epoch: int = 0
    _step_s: float | None = None
    _epochs_seen: int = 0
    _eval_s: float = 0.0
    _top1: float = 0.0
    _top1_weight: float = 0.0
    _seconds: float = 0.0
    _wait_s: float = 0.0
    _saving_s: float = 0.0

    def take(self, record: Record) -> None:
        """Take in the next record, of any kind."""
        self.cost.take(record)
        match record["kind"]:
            case "start" | "resume":
                self.epochs, self.total_steps = record["epochs"], record["total_steps"]
                self._steps_per_epoch, self.step = record["steps_per_epoch"], record["step"]
                self.on_cpu = record.get("device_type", "cpu") == "cpu"
            case "train":
                self._train(record)
            case "epoch":
                self._epochs_seen += 1
                self._eval_s += record[TIMING].get("eval_seconds") or 0.0
                if record.get("val"):
                    self.evaluated = record

    @property
    def epoch(self) -> float:
        """Return the epochs done, with their fraction."""
        return float(self.window.get("epoch", 0.0))

    @property
    def top1(self) -> float | None:
        """Return the training accuracy, 0 to 1, smoothed over some hundred steps at most."""
        return self._top1 / self._top1_weight if self._top1_weight else None

    @property
    def waiting(self) -> float:
        """Return the share of the last few windows spent waiting for data, 0 to 1."""
        return self._wait_s / max(1e-9, self._seconds + self._saving_s)

    @property
    def verdict(self) -> str:
        """Return in words what the run spends its time on; empty while nothing is known."""
        if not self._seconds:
            return ""
        saving = self._saving_s / (self._seconds + self._saving_s)
        if max(self.waiting - DATA_BOUND, saving - SAVING) > 0:
            return "data-bound" if self.waiting >= saving else "saving"
        if self.on_cpu:
            return "compute-bound"
        busy = self.gpu.get("gpu_utilisation")
        return "host-bound" if busy is not None and busy < HOST_BOUND else "GPU-bound"

    def remaining_s(self) -> float | None:
        """Return the seconds to the end of the run; None before the first window is known."""
        if self._step_s is None:
            return None
        epochs_left = self.epochs - self.step // self._steps_per_epoch
        eval_s = self._eval_s / max(1, self._epochs_seen)
        return (self.total_steps - self.step) * self._step_s + epochs_left * eval_s

    def dollars_at_end(self) -> float | None:
        """Return what the run will have cost; None where that cannot be told."""
        remaining_s = self.remaining_s()
        if remaining_s is None or not self.cost.price_per_hour:
            return None
        return self.cost.dollars + self.cost.dollars_for(remaining_s)

    def _train(self, record: Record) -> None:
        timing = record[TIMING]
        steps, self.step = record["step"] - self.step, record["step"]
        before, self.window = self.window.get("px"), record
        self.gpu |= {name: value for name, value in timing.items() if name.startswith(_GPU)}
        saving_s = timing.get("saving_s") or 0.0
        self._seconds = 0.7 * self._seconds + timing["seconds"]
        self._saving_s = 0.7 * self._saving_s + saving_s
        self._wait_s = 0.7 * self._wait_s + (timing.get("data_wait") or 0.0) * timing["seconds"]
        if steps <= 0:
            return
        if record.get("top1") is not None:
            half = max(1.0, min(_SMOOTHING_STEPS, _SMOOTHING_EPOCHS * self._steps_per_epoch))
            kept = 0.5 ** (steps / half)
            self._top1 = kept * self._top1 + (1 - kept) * record["top1"]
            self._top1_weight = kept * self._top1_weight + 1 - kept
        step_s = timing["seconds"] / steps
        if self._step_s is None or record.get("px") != before:
            self._step_s = step_s
        else:
            self._step_s += 0.3 * (step_s - self._step_s)
