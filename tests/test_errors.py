"""Test how a command ends: by an error, by a signal, and where nobody reads what it says."""

import errno
import os
import signal
import sys
import threading

import pytest

from scott_models.errors import UserError, describe_system_error, report_user_errors
from scott_models.signals import HANG_UP, STOPS


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_stops_a_command(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit, match="130"), report_user_errors():
        os.kill(os.getpid(), number)
    assert capsys.readouterr().err == "scott: stopped\n"
    assert signal.getsignal(number) is before


@pytest.mark.skipif(HANG_UP is None, reason="needs SIGHUP")
def test_a_closing_terminal_may_send_several_signals():
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), HANG_UP)
        finally:
            os.kill(os.getpid(), HANG_UP)
            cleaned.append("half-written files")

    with pytest.raises(SystemExit, match="130"), report_user_errors():
        work()
    assert cleaned


def test_ctrl_c_that_is_ignored_stays_ignored():
    """Check that a command in the background of a script, whose shell ignores Ctrl-C for it, goes on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with report_user_errors():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_in_another_thread(capsys):
    """Check that a command, e.g. the page of examples/app.py, ends there as it does elsewhere."""
    ended = []

    def work():
        try:
            with report_user_errors():
                raise UserError("expected one, found two")
        except SystemExit as end:
            ended.append(end.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [2]


@pytest.mark.parametrize("debug", ["0", "1"])
def test_the_status_is_right_if_nobody_reads_why(lost, debug, capsys, monkeypatch):
    monkeypatch.setenv("SCOTT_DEBUG", debug)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", lost)
        with pytest.raises(SystemExit, match="2"), report_user_errors():
            raise UserError("expected one, found two")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "Full", "a.npz"), "a.npz: Full; make room"),
        (OSError(errno.EDQUOT, "Quota", "a", None, "b"), "a -> b: Quota; make room"),
        (
            OSError(errno.EMFILE, "Too many", "a.npz"),
            "a.npz: Too many; allow more open files, e.g. by `ulimit -n 4096`",
        ),
        (FileNotFoundError(errno.ENOENT, "Nothing there", "a.npz"), "a.npz: Nothing there"),
        (OSError("why"), "why"),
    ],
)
def test_only_a_full_disk_needs_room(error, sentence, capsys):
    assert describe_system_error(error) == sentence
    with pytest.raises(SystemExit, match="2"), report_user_errors():
        raise error
    assert capsys.readouterr().err == f"scott: {sentence}\n"
