"""What a run is told from outside, and the thread that listens for it beside training."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["stop", "save", "tell"]
"""Save and end the run; save and go on; only tell the user."""

_PATIENCE = 3
"""Failures in a row before the user is told: one alone happens, above all while a machine boots."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that a run was told from outside."""

    source: str
    """Who told: a cloud, or a signal's name."""
    text: str
    """What was told, as the beginning of a sentence."""
    action: Action
    due: str = ""
    """When it happens, in ISO 8601; empty where the source does not tell."""


class UnavailableError(Exception):
    """A metadata service gave no answer that can be used; the message is for the user."""


class Service(Protocol):
    """Where a cloud announces what it is about to do with this machine."""

    name: str
    interval_s: float
    """Seconds between two questions, as the cloud recommends."""

    def poll(self) -> Iterator[Notice]:
        """Yield all that is announced at present.

        Raises:
            UnavailableError: There was no answer, or none that is understood.
        """


class Watch:
    """Asks a service again and again, in a daemon thread, while used as a context manager.

    Whatever goes wrong there never reaches training: a service that fails three times in a row is
    told of once, and asked on.
    """

    def __init__(self, service: Service | None) -> None:
        self._service = service
        self._heard: deque[Notice] = deque()
        self._ended = threading.Event()

    def __enter__(self) -> "Watch":
        if self._service is not None:
            thread = threading.Thread(
                target=self._listen, args=(self._service,), name="rn50-notices", daemon=True
            )
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: it may be in the middle of a question that nobody answers.
        self._ended.set()

    def take(self) -> list[Notice]:
        """Return what was heard since the last call. Each notice is returned once."""
        return [self._heard.popleft() for _ in range(len(self._heard))]

    def _listen(self, service: Service) -> None:
        standing: set[Notice] = set()
        failures, told = 0, False
        while not self._ended.is_set():
            asked: set[Notice] = set()
            try:
                for notice in service.poll():
                    asked.add(notice)
                    if notice not in standing:
                        standing.add(notice)
                        self._heard.append(notice)
                # What is withdrawn may be announced anew: another migration, days later.
                standing, failures = asked, 0
            except Exception as error:
                failures += 1
                if failures == _PATIENCE and not told:
                    told = True
                    self._heard.append(_unheard(service, error))
            self._ended.wait(service.interval_s)


def _unheard(service: Service, error: Exception) -> Notice:
    # The text of an unforeseen error is not shown: it could quote a request and its token.
    reason = str(error) if isinstance(error, UnavailableError) else type(error).__name__
    return Notice(
        service.name,
        f"{service.name}'s notices that it takes the machine away cannot be read: {reason}. "
        "Signals are heeded all the same, and --storage.spot-notices off asks no more",
        "tell",
    )
