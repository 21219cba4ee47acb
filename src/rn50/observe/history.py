"""A run's record sorted for reading: what plots, logs and reports are made from.

Resuming needs an exact record and reads it strictly (``record.read``). Who only looks at a run is
better served by what there is: here what is damaged is left out, and said.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rn50.errors import UsageError
from rn50.observe.cost import Cost
from rn50.observe.record import FILE_NAME, NETWORKS, TIMING, Record
from rn50.observe.stalls import is_slow_epoch

CONFIG = "config.json"
"""The run's settings, beside its record."""

# NaN is no JSON; a number that is none counts as not measured.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)

_NUMBERS = {
    *("step", "epoch", "epochs", "steps_per_epoch", "total_steps", "num_train", "num_val"),
    *("num_classes", "world_size", "price_per_hour", "lr", "px", "loss", "top1", "top5", "skipped"),
    *("train_loss", "train_top1", "seconds", "eval_seconds", "images_per_second", "data_wait"),
    *(
        "elapsed_s",
        "saving_s",
        "spent_s",
        "spent_dollars",
        "slowest_s",
        "slowest_wait_s",
        "usual_s",
    ),
    *("gpu_utilisation", "gpu_memory", "gpu_power_w"),
}
_REQUIRED: dict[str, dict[str, type]] = {
    "train": {"step": float, "epoch": float},
    "epoch": {"step": float, "epoch": float},
    "resume": {"step": float},
    "stall": {"step": float, "message": str},
    "warning": {"message": str},
    "rollback": {"message": str},
    "bad_image": {"split": str, "class": str},
    "images": {"file": str},
}
"""What a record of a kind must have to be of use; of other kinds nothing is asked."""


@dataclass(frozen=True)
class History:
    """A run's record by kinds, each in the order of the run."""

    facts: Record
    """What the run's first process recorded when it started; empty where that is lost."""
    settings: dict[str, Any]
    """``config.json``; empty where there is none."""
    windows: list[Record]
    """Records of kind ``train``."""
    epochs: list[Record]
    resumes: list[Record]
    warnings: list[Record]
    stalls: list[Record]
    rollbacks: list[Record]
    bad_images: list[Record]
    images: list[Record]
    """Pictures in the run's folder, by their ``file``."""
    num_skipped: int
    """Updates left out because the loss or the gradient was not finite."""
    finished: bool
    problems: tuple[str, ...]
    """What is missing or damaged, each in words; empty for a sound record."""
    _spent: "dict[tuple[str, float], _Spent]" = field(repr=False)

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        settings: dict[str, Any] | None = None,
        problems: Sequence[str] = (),
    ) -> "History":
        """Sort records; those that lack what their kind must have are left out, and said.

        Args:
            records: In the order of the run.
            settings: The run's settings as plain JSON.
            problems: What went wrong in reading them, to be told first.
        """
        by_kind: dict[str, list[Record]] = {}
        sound: list[Record] = []
        unusable: dict[str, int] = {}
        for record in records:
            kind = str(record.get("kind", ""))
            if _is_usable(kind, record):
                sound.append(record)
                by_kind.setdefault(kind, []).append(record)
            else:
                unusable[kind] = unusable.get(kind, 0) + 1
        starts = by_kind.get("start", []) + by_kind.get("resume", [])
        # By epoch, the last one counting: a record joined from pieces may hold an epoch twice.
        epochs = list({record["epoch"]: record for record in by_kind.get("epoch", [])}.values())
        return cls(
            facts=starts[0] if starts else {},
            settings=settings or {},
            windows=by_kind.get("train", []),
            epochs=epochs,
            resumes=by_kind.get("resume", []),
            warnings=by_kind.get("warning", []),
            stalls=by_kind.get("stall", []),
            rollbacks=by_kind.get("rollback", []),
            bad_images=by_kind.get("bad_image", []),
            images=by_kind.get("images", []),
            num_skipped=sum(record.get("skipped") or 0 for record in by_kind.get("train", [])),
            finished="end" in by_kind,
            problems=(
                *problems,
                *(
                    f"records of kind '{kind}' that lack what belongs in them, left out: {count}"
                    for kind, count in unusable.items()
                ),
                *_gaps(sound, starts, epochs),
            ),
            _spent=_spending(sound),
        )

    @classmethod
    def read(cls, run_dir: Path) -> "History":
        """Read a run's folder as far as it can be read.

        Raises:
            UsageError: It is not the folder of a run, or may not be read.
        """
        path = run_dir / FILE_NAME
        if not run_dir.is_dir():
            what = "is a file" if run_dir.exists() else "does not exist"
            raise UsageError(f"{run_dir} {what}; name the folder of a run")
        if not path.exists() and not (run_dir / CONFIG).exists():
            raise UsageError(
                f"{run_dir} is not the folder of a run: neither {FILE_NAME} nor {CONFIG} is there; "
                "name a folder that `rn50 train` has written"
            )
        problems: list[str] = []
        try:
            records = _records(path, problems)
            settings = _settings(run_dir / CONFIG, problems)
        except OSError as error:
            raise UsageError(
                f"cannot read {error.filename}: {error.strerror}; name a run that you may read"
            ) from error
        return cls.of(records, settings, problems)

    @property
    def title(self) -> str:
        """The name of the recipe."""
        return str(self.facts.get("recipe") or self.settings.get("recipe") or "unnamed run")

    @property
    def latest_facts(self) -> Record:
        """What the run's latest process recorded when it went on; its plan may be a longer one."""
        return self.resumes[-1] if self.resumes else self.facts

    @property
    def num_planned_epochs(self) -> int | None:
        """Epochs that the run is to last, where that is known."""
        planned = self.latest_facts.get("epochs") or self.settings.get("epochs")
        return int(planned) if planned is not None and _is_number(planned) else None

    @property
    def state(self) -> str:
        """How far the run has come, in words."""
        if self.finished:
            return "finished"
        of = f" of {self.num_planned_epochs}" if self.num_planned_epochs else ""
        return f"not finished, {len(self.epochs)}{of} epochs done"

    @cached_property
    def best(self) -> tuple[Record, str] | None:
        """The epoch of the highest top-1 and whose it was; the earliest among equals."""
        candidates = [
            (record, name)
            for record in self.epochs
            for name in NETWORKS
            if scores(record, name).get("top1") is not None
        ]
        return max(candidates, key=lambda item: scores(*item)["top1"], default=None)

    @cached_property
    def slow_epochs(self) -> dict[int, float]:
        """How many times the usual an epoch took, for slow ones that no stall on record tells of.

        The usual is the median of the epochs of the same image size: larger images take longer
        and are none the worse for it. What is slow is decided as for stalls.
        """
        told = {record["step"] for record in self.stalls if record.get("of") == "epoch"}
        lengths: dict[int | None, list[float]] = {}
        for record in self.epochs:
            lengths.setdefault(record.get("px"), []).append(timing(record, "seconds") or 0.0)
        usual = {px: statistics.median(values) for px, values in lengths.items()}
        times = {
            record["epoch"]: (timing(record, "seconds") or 0.0, usual[record.get("px")])
            for record in self.epochs
            if record["step"] not in told
        }
        return {
            number: seconds / usual_s
            for number, (seconds, usual_s) in times.items()
            if usual_s and is_slow_epoch(seconds, usual_s)
        }

    @property
    def hours(self) -> float:
        """Hours of machine time spent so far (see ``hours_at``)."""
        return max((spent.seconds for spent in self._spent.values()), default=0.0) / 3600

    @property
    def dollars(self) -> float | None:
        """What they cost, None if unknown (see ``dollars_at``)."""
        known = [spent.dollars for spent in self._spent.values() if spent.dollars is not None]
        return max(known, default=None)

    def epoch_at(self, record: Record) -> float | None:
        """Return how many epochs, with their fraction, were done at a record, if it can be told."""
        if "epoch" in record:
            return float(record["epoch"])
        per_epoch = self.latest_facts.get("steps_per_epoch")
        if not per_epoch:
            known = [r["step"] / r["epoch"] for r in self.windows + self.epochs if r["epoch"]]
            per_epoch = known[-1] if known else None
        return record["step"] / per_epoch if per_epoch and "step" in record else None

    def hours_at(self, record: Record) -> float:
        """Return the hours of machine time spent up to a record of kind train or epoch.

        All that was paid for counts: evaluation, saving, and steps lost to a crash. Where the
        record does not tell it, as old ones do not, what training and evaluation took is added up.
        """
        return self._at(record).seconds / 3600

    def dollars_at(self, record: Record) -> float | None:
        """Return what the hours up to a record of kind train or epoch cost, None if unknown.

        Each hour counts at the price of the process that it was spent by, and hours before the
        first price that is known at that.
        """
        return self._at(record).dollars

    def _at(self, record: Record) -> "_Spent":
        return self._spent.get((record["kind"], record["step"]), _Spent(0.0, None))


def scores(record: Record, network: str) -> dict[str, Any]:
    """Return what an epoch's record tells of one of ``record.NETWORKS``; empty: not evaluated."""
    return (record.get("val") or {}).get(network) or {}


def timing(record: Record, name: str) -> float | None:
    """Return a value under a record's ``timing``, None where it was not recorded."""
    return (record.get(TIMING) or {}).get(name)


@dataclass(frozen=True, slots=True)
class _Spent:
    seconds: float
    dollars: float | None


def _spending(records: Sequence[Record]) -> dict[tuple[str, float], _Spent]:
    """Return time and money spent up to each record, by kind and step."""
    first_price = next((r["price_per_hour"] for r in records if r.get("price_per_hour")), None)
    spent: dict[tuple[str, float], _Spent] = {}
    cost = Cost()
    for record in records:
        cost.take(record)
        if record.get("kind") in ("train", "epoch"):
            # Hours before the first price that is known count at it.
            dollars = (
                None if first_price is None else cost.dollars or cost.seconds * first_price / 3600
            )
            spent[record["kind"], record["step"]] = _Spent(cost.seconds, dollars)
    return spent


def _records(path: Path, problems: list[str]) -> list[Record]:
    if not path.exists():
        problems.append(f"{FILE_NAME} is missing: the run did not begin, or lost it")
        return []
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        problems.append(f"{FILE_NAME} is empty: the run did not begin")
    found = [_parsed(line) for line in lines]
    bad = [number for number, record in enumerate(found, start=1) if record is None]
    if bad and bad[-1] == len(lines):
        problems.append(f"the last line of {FILE_NAME} is torn, as a crash leaves it: left out")
        bad.pop()
    if bad:
        which = ", ".join(map(str, bad[:5])) + ", …" * (len(bad) > 5)
        some = f"line {which} is no record" if len(bad) == 1 else f"lines {which} are no records"
        problems.append(f"{FILE_NAME} is damaged: {some} and left out ({len(bad)} of {len(lines)})")
    return [record for record in found if record is not None]


def _settings(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        problems.append(f"{CONFIG} is missing: the run's settings are unknown")
        return {}
    settings = _parsed(path.read_bytes())
    if settings is None:
        problems.append(f"{CONFIG} is damaged: the run's settings are unknown")
    return settings or {}


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = _DECODER.decode(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _gaps(records: list[Record], starts: list[Record], epochs: list[Record]) -> Iterator[str]:
    if records and not starts:
        yield "the record of the run's start is missing: what was run, and where, is unknown"
    there = {int(record["epoch"]) for record in epochs}
    if lost := sorted(set(range(1, max(there, default=0))) - there):
        which = ", ".join(map(str, lost[:5])) + ", …" * (len(lost) > 5)
        yield f"the record lacks {len(lost)} epochs before the last ({which})"


def _is_usable(kind: str, record: Record) -> bool:
    required = _REQUIRED.get(kind, {})
    return _has_sound_values(record) and all(
        _is_number(record.get(name)) if what is float else isinstance(record.get(name), what)
        for name, what in required.items()
    )


def _has_sound_values(values: dict[str, Any]) -> bool:
    for name, value in values.items():
        if value is None:
            continue
        if name in _NUMBERS and not _is_number(value):
            return False
        if name in (TIMING, "val", "versions") and not isinstance(value, dict):
            return False
        if name == "val" and not all(isinstance(one, dict | None) for one in value.values()):
            return False
        if isinstance(value, dict) and not _has_sound_values(value):
            return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
