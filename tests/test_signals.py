"""Test who handles the signals that ask a process to stop."""

import os
import signal
import threading

import pytest

from scott_models.signals import HANG_UP, STOPS, handle_signals, ignore_hang_up, leave_to_parent

pytestmark = pytest.mark.skipif(HANG_UP is None, reason="needs SIGHUP")


@pytest.fixture(autouse=True)
def restored():
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_handled_until_the_handlers_are_restored():
    before, seen = signal.getsignal(HANG_UP), []
    restore = handle_signals(STOPS, lambda number, _: seen.append(number))
    for number in STOPS:
        os.kill(os.getpid(), number)
    restore()
    assert seen == STOPS
    assert signal.getsignal(HANG_UP) is before


def test_nohup_counts():
    signal.signal(HANG_UP, signal.SIG_IGN)
    restore = handle_signals(STOPS, lambda *_: pytest.fail("SIGHUP was ignored"))
    os.kill(os.getpid(), HANG_UP)
    restore()
    assert signal.getsignal(HANG_UP) is signal.SIG_IGN


def test_another_thread_sets_no_handlers():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        restore = handle_signals(STOPS, lambda *_: None)
        found.append(signal.getsignal(signal.SIGTERM))
        restore()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_worker_leaves_them_to_its_parent():
    leave_to_parent()
    for number in (signal.SIGINT, HANG_UP):
        os.kill(os.getpid(), number)


def test_the_second_hang_up_does_nothing():
    signal.signal(HANG_UP, lambda *_: ignore_hang_up())
    os.kill(os.getpid(), HANG_UP)
    os.kill(os.getpid(), HANG_UP)
    assert signal.getsignal(HANG_UP) is signal.SIG_IGN
