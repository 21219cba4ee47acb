"""The metadata services of three clouds, where a machine reads that it will be taken away.

All three answer at one link-local address, to this machine alone. They are asked with the standard
library, past any proxy and following no redirect, so that a token goes nowhere else.
"""

import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from rn50.config import SpotNotices
from rn50.errors import UsageError
from rn50.train.notices import Action, Notice, Service, UnavailableError

URL_VARIABLE = "RN50_METADATA_URL"
"""Where the metadata service is asked instead, such as ``http://127.0.0.1:8111`` in a test."""

DMI = Path("/sys/class/dmi/id")
"""What the firmware tells of the machine; readable by everybody, in containers too."""

_URL = "http://169.254.169.254"
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
_MOST_BYTES = 1 << 16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


class _StatusError(UnavailableError):
    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path} was answered with status {status}")
        self.status = status


class _NoAnswerError(UnavailableError):
    """The question or its answer was lost on the way."""


class _Server:
    """Asks one metadata service."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def ask(
        self,
        path: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        timeout_s: float | None = None,
    ) -> str | None:
        """Return the answer's text; None where there is nothing (404)."""
        request = urllib.request.Request(self.url + path, headers=dict(headers), method=method)
        place = path.partition("?")[0]
        try:
            with _OPENER.open(request, timeout=timeout_s or self.timeout_s) as answer:
                return str(answer.read(_MOST_BYTES).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise _StatusError(place, error.code) from None
        except TimeoutError:
            raise _NoAnswerError(f"{place} was not answered in time") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _NoAnswerError(f"{place} was not answered in time") from None
            what = reason if isinstance(reason, OSError) else type(reason).__name__
            raise UnavailableError(f"{place} cannot be asked: {what}") from None


class Ec2:
    """Spot notices of Amazon EC2, by version 2 of its instance metadata service.

    An interruption is announced two minutes ahead, a rebalance recommendation earlier where it can
    be ("Spot Instance interruption notices", Amazon EC2 User Guide).
    """

    name = "EC2"
    interval_s = 5.0
    token_s = 21_600
    """Seconds for which a token is asked; it is renewed at half of them."""

    def __init__(self, url: str = _URL, *, timeout_s: float = 2.0) -> None:
        self._server = _Server(url, timeout_s)
        self._token = ""
        self._renew_at = 0.0

    def poll(self) -> Iterator[Notice]:
        """Yield what is announced, as ``Service`` says."""
        if (body := self._get("/latest/meta-data/spot/instance-action")) is not None:
            told = _json(body)
            action = told.get("action")
            if action not in ("terminate", "stop", "hibernate"):
                raise UnavailableError("spot/instance-action was answered with no known action")
            due = _iso(told.get("time"))
            yield Notice(self.name, f"EC2 will {action} {_host()}", "stop", due)
        body = self._get("/latest/meta-data/events/recommendations/rebalance")
        if body is not None:
            since = _iso(_json(body).get("noticeTime"))
            text = f"EC2 sees {_host()} at a raised risk of interruption"
            yield Notice(self.name, f"{text} since {since}" if since else text, "save")

    def _get(self, path: str) -> str | None:
        if time.monotonic() >= self._renew_at:
            self._renew()
        try:
            return self._server.ask(path, {"X-aws-ec2-metadata-token": self._token})
        except _StatusError as error:
            if error.status != 401:
                raise
        # The token is no longer known there: after hibernation, for one.
        self._renew()
        return self._server.ask(path, {"X-aws-ec2-metadata-token": self._token})

    def _renew(self) -> None:
        self._renew_at = 0.0
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.token_s)}
        try:
            token = self._server.ask("/latest/api/token", wanted, method="PUT")
        except _NoAnswerError:
            raise UnavailableError(
                "it gives no token: its answer is lost on the way, as in a container where the "
                f"machine's hop limit is 1; allow another hop: {_modify('hop-limit 2')}"
            ) from None
        except _StatusError as error:
            if error.status != 403:
                raise
            raise UnavailableError(
                f"it is switched off for this machine; switch it on: {_modify('endpoint enabled')}"
            ) from None
        if token is None or not re.fullmatch(r"[!-~]{1,1024}", token):
            raise UnavailableError("what it gives as a token is none")
        self._token = token
        self._renew_at = time.monotonic() + self.token_s / 2


class Gcp:
    """Preemption and maintenance of Google Compute Engine.

    A spot VM that is preempted has 30 seconds; VMs with GPUs are told of host maintenance an hour
    ahead, others a minute ("Spot VMs", "Query the metadata server for maintenance event notices").
    """

    name = "Google Cloud"
    interval_s = 2.0
    _EVENTS = ("MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE")

    def __init__(self, url: str = _URL, *, timeout_s: float = 2.0) -> None:
        self._server = _Server(url, timeout_s)

    def poll(self) -> Iterator[Notice]:
        """Yield what is announced, as ``Service`` says."""
        preempted = self._get("preempted", ("TRUE", "FALSE"))
        if preempted == "TRUE":
            yield Notice(self.name, f"Google Cloud preempts {_host()} within 30 s", "stop")
        event = self._get("maintenance-event", ("NONE", *self._EVENTS))
        if event in self._EVENTS:
            verb = event.partition("_")[0].lower()
            text = f"Google Cloud will {verb} {_host()} for maintenance of its host"
            yield Notice(self.name, text, "save")

    def _get(self, name: str, known: tuple[str, ...]) -> str | None:
        path = f"/computeMetadata/v1/instance/{name}"
        body = self._server.ask(path, {"Metadata-Flavor": "Google"})
        value = body if body is None else body.strip()
        if value is not None and value not in known:
            raise UnavailableError(f"instance/{name} was answered with no known value")
        return value


class Azure:
    """Scheduled Events of Azure: Preempt at least 30 seconds ahead, others 5 to 15 minutes.

    Events of the other machines of a scale set are announced too, and passed over ("Scheduled
    Events for Linux VMs").
    """

    name = "Azure"
    interval_s = 2.0
    _TAKEN_AWAY = ("Preempt", "Terminate")

    def __init__(self, url: str = _URL, *, timeout_s: float = 2.0) -> None:
        self._server = _Server(url, timeout_s)
        self._first_timeout_s = 60 * timeout_s
        self._is_on = False
        self._machine: str | None = None

    def poll(self) -> Iterator[Notice]:
        """Yield what is announced, as ``Service`` says."""
        # The first question switches the events on, which takes up to two minutes.
        timeout_s = None if self._is_on else self._first_timeout_s
        body = self._get("/metadata/scheduledevents?api-version=2020-07-01", timeout_s)
        self._is_on = True
        events = _json(body or "{}").get("Events", [])
        if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
            raise UnavailableError("scheduledevents was answered with no list of events")
        for event in events:
            if self._is_mine(event.get("Resources")):
                yield self._notice(event)

    def _notice(self, event: dict[str, Any]) -> Notice:
        kind = re.sub(r"\W", "", str(event.get("EventType")))
        action: Action = "stop" if kind in self._TAKEN_AWAY else "save"
        text = f"Azure announces {kind!r} of {_host()}"
        return Notice(self.name, text, action, _iso(event.get("NotBefore")))

    def _is_mine(self, resources: object) -> bool:
        if self._machine is None:
            path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
            try:
                self._machine = (self._get(path) or "").strip().casefold()
            except UnavailableError:
                return True  # Rather one save too many; the name is asked again.
        if not self._machine or not isinstance(resources, list):
            return True
        return self._machine in [str(name).casefold() for name in resources]

    def _get(self, path: str, timeout_s: float | None = None) -> str | None:
        return self._server.ask(path, {"Metadata": "true"}, timeout_s=timeout_s)


def notice_service(
    wanted: SpotNotices, *, environment: Mapping[str, str] = os.environ, dmi: Path = DMI
) -> Service | None:
    """Return the metadata service to watch, or None; nothing is asked over the network.

    Args:
        wanted: A cloud; ``"auto"`` for the one that the firmware names, ``"off"`` for none.
        environment: Where ``RN50_METADATA_URL``, and AWS's ``AWS_EC2_METADATA_DISABLED`` and
            ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` (for IPv6, say), are looked up.
        dmi: The folder of the firmware's names.

    Raises:
        UsageError: An address does not begin with ``http://`` or ``https://``.
    """
    cloud = detect(dmi) if wanted == "auto" else wanted
    if cloud == "off":
        return None
    variables = [URL_VARIABLE]
    if cloud == "ec2":
        if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return None
        variables.append("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    name = next((name for name in variables if environment.get(name)), "")
    url = environment[name] if name else _URL
    if not re.match(r"https?://[^/\s]", url):
        raise UsageError(
            f"{name} is {url!r}; it must be the address of a metadata service, such as "
            "http://127.0.0.1:8111; set it so, or unset it"
        )
    made: dict[str, type[Ec2] | type[Gcp] | type[Azure]] = {"ec2": Ec2, "gcp": Gcp, "azure": Azure}
    return made[cloud](url)


def detect(dmi: Path = DMI) -> SpotNotices:
    """Return the cloud whose name the firmware bears, or ``"off"``; reads a few small files.

    By the same marks as cloud-init: Amazon's name in any of four fields (Nitro and Xen differ),
    Google's product name, and the asset tag that all of Azure's machines have.
    """
    fields = ("sys_vendor", "bios_vendor", "bios_version", "product_version")
    if any("amazon" in _dmi(dmi, field).lower() for field in fields):
        return "ec2"
    if "Google" in _dmi(dmi, "product_name"):
        return "gcp"
    if _dmi(dmi, "chassis_asset_tag") == _AZURE_TAG:
        return "azure"
    return "off"


def _dmi(dmi: Path, field: str) -> str:
    try:
        return (dmi / field).read_text(errors="replace").strip()
    except OSError:
        return ""


def _modify(option: str) -> str:
    tag = _dmi(DMI, "board_asset_tag")  # On Nitro the firmware bears the instance's id.
    instance = tag if re.fullmatch(r"i-[0-9a-f]+", tag) else "INSTANCE_ID"
    option = f"put-response-{option}" if option.startswith("hop") else option
    return f"aws ec2 modify-instance-metadata-options --instance-id {instance} --http-{option}"


def _json(body: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnavailableError("it was answered with what is no JSON object")
    return value


def _iso(value: object) -> str:
    """Return a time in ISO 8601 or in HTTP's form as ISO 8601 in UTC; empty for anything else."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = parse(str(value))
        except (ValueError, TypeError, IndexError):
            continue
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return ""


def _host() -> str:
    return socket.gethostname()
