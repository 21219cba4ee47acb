import threading
import time

import pytest

from rn50.train.notices import Notice, UnavailableError, Watch

STOP = Notice("here", "it ends", "stop")
SAVE = Notice("here", "it may end", "save")


class Scripted:
    """A service that answers each question as the script says, and then as it last says."""

    name = "here"
    interval_s = 0.0

    def __init__(self, *script):
        self._script = script
        self._asked = 0
        self._through = threading.Event()

    def poll(self):
        answer = self._script[min(self._asked, len(self._script) - 1)]
        self._asked += 1
        if self._asked > len(self._script):
            self._through.set()
        for item in answer:
            if isinstance(item, Exception):
                raise item
            yield item

    def heard(self):
        with Watch(self) as watch:
            assert self._through.wait(10)
        return watch.take()


def test_a_notice_that_stands_is_heard_once():
    assert Scripted([], [SAVE], [SAVE], [SAVE, STOP], [SAVE, STOP]).heard() == [SAVE, STOP]


def test_a_notice_that_was_withdrawn_is_heard_anew():
    assert Scripted([SAVE], [], [SAVE], []).heard() == [SAVE, SAVE]


def test_a_failure_between_does_not_make_a_notice_new():
    assert Scripted([SAVE], [UnavailableError("500")], [SAVE]).heard() == [SAVE]


def test_a_notice_before_a_failure_is_heard():
    assert Scripted([STOP, UnavailableError("garbage")], [STOP]).heard() == [STOP]


def test_a_service_that_keeps_failing_is_told_of_once_and_asked_on():
    failing = [[UnavailableError("no answer")]] * 5
    told, stop = Scripted(*failing, [], *failing, [STOP]).heard()
    assert stop == STOP
    assert told.action == "tell"
    assert "cannot be read: no answer. Signals are heeded all the same" in told.text


def test_a_failure_now_and_then_is_not_worth_a_word():
    error = [UnavailableError("no answer")]
    assert Scripted(error, error, [], error, error, []).heard() == []


def test_an_unforeseen_error_ends_nothing_and_its_text_is_not_shown():
    secret = [ValueError("Invalid header value b'secret'")]
    told, stop = Scripted(secret, secret, secret, [STOP]).heard()
    assert "cannot be read: ValueError." in told.text
    assert stop == STOP


def test_without_a_service_there_is_no_thread_and_nothing_to_hear():
    before = threading.active_count()
    with Watch(None) as watch:
        assert threading.active_count() == before
        assert watch.take() == []


def test_neither_starting_nor_ending_waits_for_an_answer():
    answer = threading.Event()

    class Silent:
        name = "here"
        interval_s = 0.0

        def poll(self):
            answer.wait(30)
            yield STOP

    start = time.monotonic()
    with Watch(Silent()) as watch:
        assert watch.take() == []
    assert time.monotonic() - start < 5
    answer.set()


@pytest.mark.parametrize("count", [0, 3])
def test_each_notice_is_taken_once(count):
    notices = [Notice("here", str(i), "save") for i in range(count)]
    service = Scripted(notices)
    with Watch(service) as watch:
        assert service._through.wait(10)
        assert watch.take() == notices
        assert watch.take() == []
