import os
import signal
import subprocess
import sys

import pytest

from rn50.distributed import Group
from rn50.train.notices import Notice, Watch
from rn50.train.preempt import Asked, Requests, StopRequest

NAMES = ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"]


class Heard(Watch):
    """A watch that has heard what a test says."""

    def __init__(self, *notices):
        super().__init__(None)
        self._heard.extend(notices)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_sets_the_flag_and_handlers_are_put_back(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested == name
    assert signal.getsignal(number) is before


def test_a_run_started_by_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def end_of(*between: str) -> subprocess.CompletedProcess[bytes]:
    program = (
        "import os, signal, time\n"
        "from rn50.train import preempt\n"
        "with preempt.StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        f"    {'; '.join(between)}\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)


def test_a_second_signal_ends_the_process_at_once():
    done = end_of("time.sleep(preempt.AGAIN_AFTER_S)")
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == b""


def test_a_signal_that_comes_twice_because_a_launcher_hands_it_on_is_one_request():
    done = end_of("pass")
    assert (done.returncode, done.stdout) == (0, b"still here\n")


def test_nothing_asked_is_nothing_recorded():
    records = []
    with StopRequest() as stop:
        requests = Requests(stop, Heard(), Group(), records.append)
        assert requests.agree(1, False) == Asked(stop=False, save=False)
        assert requests.agree(2, True) == Asked(stop=False, save=True)
    assert records == []


def test_a_signal_stops_and_is_recorded_once():
    records = []
    with StopRequest() as stop:
        requests = Requests(stop, Heard(), Group(), records.append)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.agree(1_234, False).stop
    (record,) = records
    assert record["message"] == "SIGUSR1; saving after step 1,234 and stopping with exit code 33"
    assert (record["kind"], record["step"], record["ranks"]) == ("notice", 1_234, [0])


def test_a_warning_of_the_cloud_saves_once_and_goes_on():
    records = []
    watch = Heard(Notice("EC2", "EC2 sees h at risk", "save"))
    requests = Requests(StopRequest(), watch, Group(), records.append)
    assert requests.agree(7, False) == Asked(stop=False, save=True)
    assert requests.agree(8, False) == Asked(stop=False, save=False)
    (record,) = records
    assert record["message"] == "EC2 sees h at risk; saving after step 7 and going on"
    assert (record["source"], record["action"]) == ("EC2", "save")


def test_an_interruption_stops_and_says_when_the_machine_goes_away():
    records = []
    due = "2031-11-21T16:20:00Z"
    watch = Heard(Notice("EC2", "EC2 will stop h", "stop", due))
    assert Requests(StopRequest(), watch, Group(), records.append).agree(7, False).stop
    (record,) = records
    assert record["message"].startswith("EC2 will stop h at 16:20:00 UTC, in ")
    assert record["message"].endswith(" s; saving after step 7 and stopping with exit code 33")
    assert record["timing"]["due"] == due


def test_a_service_that_cannot_be_asked_is_a_warning_and_changes_nothing():
    records = []
    watch = Heard(Notice("EC2", "EC2's notices cannot be read", "tell"))
    asked = Requests(StopRequest(), watch, Group(), records.append).agree(7, False)
    assert asked == Asked(stop=False, save=False)
    assert [(r["kind"], r["message"]) for r in records] == [
        ("warning", "EC2's notices cannot be read")
    ]
