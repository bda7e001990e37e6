"""Stops and the signals that request them."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from batchkit.stopping import Stop, stopped_by_signals


def test_a_stop_keeps_its_first_reason_and_wakes_whoever_waits():
    with Stop() as stop:
        assert not stop.wait(0.001)
        threading.Timer(0.01, stop.request, ["first"]).start()
        assert stop.wait(10)
        stop.request("second")
        assert "first" == stop.reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop_and_the_handler_before_is_restored(number: signal.Signals):
    before = signal.getsignal(number)
    with Stop() as stop, stopped_by_signals(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert number.name == stop.reason
    assert before == signal.getsignal(number)


def test_the_same_signal_twice_at_once_is_one_and_a_later_one_ends_the_chunk(monkeypatch: pytest.MonkeyPatch):
    # A platform that signals all processes, and a parent that hands it on, reach a worker twice.
    with Stop() as stop, stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_ctrl_c_ends_the_chunk_at_once():
    with Stop() as stop, stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_no_handler_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def run() -> None:
        with Stop() as stop, stopped_by_signals(stop):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [before] == seen
