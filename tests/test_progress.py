"""Test the progress of work on a terminal and elsewhere, also where nobody watches any more."""

import fcntl
import os
import pty
import struct
import sys
import termios
from functools import partial

import pytest

from scott_models import progress


def test_lines_tell_speed_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    assert list(progress.track("abc", "reading", total=8, size=3)) == ["a", "b", "c"]
    out, errors = capsys.readouterr()
    lines = errors.splitlines()
    states = dict.fromkeys(line.split(" images, ")[0] for line in lines)
    assert list(states) == ["reading: 0/8", "reading: 3/8", "reading: 6/8", "reading: 8/8"]
    assert all(line.endswith(" left") and "images/s" in line for line in lines)
    assert out == ""
    assert all(map(str.isprintable, lines))  # no control characters


def test_what_is_short_needs_no_lines(capsys):
    assert list(progress.track(range(3), "reading", total=3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch):
    """Open a terminal of 60 columns; yield the number of its other end, and the stream."""
    other, number = pty.openpty()
    fcntl.ioctl(number, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0))  # each item is shown
    with open(number, "w", encoding="utf-8") as stream:
        yield other, stream


def test_a_terminal_gets_a_bar(terminal, monkeypatch):
    terminal, stream = terminal
    monkeypatch.setattr(sys, "stderr", stream)  # here, since pytest sets it anew after the fixtures
    assert list(progress.track(range(3), "reading", total=3)) == [0, 1, 2]
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "reading:   0%|" in shown
    assert "█| 3/3 [" in shown
    assert max(map(len, shown.split("\r"))) <= 61  # the width of the terminal, and a line end


def test_the_work_goes_on_after_the_terminal_is_closed(terminal, monkeypatch):
    terminal, stream = terminal
    monkeypatch.setattr(sys, "stderr", stream)

    def read():
        for i in range(5):
            if i == 2:
                os.close(terminal)
            yield i

    assert list(progress.track(read(), "reading", total=5)) == [0, 1, 2, 3, 4]


def test_the_work_goes_on_without_a_standard_error(lost, monkeypatch):
    monkeypatch.setattr(sys, "stderr", lost)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    assert list(progress.track(range(3), "reading", total=3)) == [0, 1, 2]
