import io

import pytest

from rn50.observe.terminal import moves_cursor

NOTEBOOKS = (
    {"JPY_PARENT_PID": "1"},
    {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"},
    {"COLAB_RELEASE_TAG": "release-colab"},
    {"TERM": "xterm-color", "PAGER": "cat"},  # an ipykernel that something else than Jupyter began
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _of_a_terminal(monkeypatch):
    for name in ("JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "PAGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_moves_its_cursor_and_a_file_has_none():
    assert moves_cursor(Terminal())
    assert not moves_cursor(io.StringIO())


def test_a_dumb_terminal_does_not(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not moves_cursor(Terminal())


@pytest.mark.parametrize("environment", NOTEBOOKS)
def test_the_pseudo_terminal_of_a_notebook_does_not(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not moves_cursor(Terminal())


def test_what_is_hardly_a_stream_or_closed_does_not():
    assert not moves_cursor(object())
    gone = io.StringIO()
    gone.close()
    assert not moves_cursor(gone)
