"""What a slice tells its worker's main process through, and what breaks it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from batchkit.tracking import tie as ties
from batchkit.tracking.tie import Tie


@pytest.fixture
def ends() -> Iterator[tuple[Tie, socket.socket]]:
    """Give a tie, and the end of it that the main process has."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with theirs:
        tie = Tie(ours)
        yield tie, theirs
        tie.close()


def answer(main: socket.socket, question: int, *, granted: bool | None) -> None:
    main.sendall(json.dumps({"asked": question, "granted": granted}).encode() + b"\n")


@pytest.mark.parametrize("granted", [True, False, None])
def test_a_question_is_answered(ends: tuple[Tie, socket.socket], granted: bool | None):
    tie, main = ends
    answer(main, 1, granted=granted)
    assert granted is tie.ask()
    assert {"asks": 1} == json.loads(main.recv(100))


def test_an_answer_that_comes_too_late_breaks_nothing_and_is_thrown_away(
    ends: tuple[Tie, socket.socket], monkeypatch: pytest.MonkeyPatch
):
    tie, main = ends
    with monkeypatch.context() as hasty:
        hasty.setattr(ties, "ANSWER_SECONDS", 0.01)
        assert None is tie.ask()
    assert tie.is_open, "the main process would take the slice for ended"
    answer(main, 1, granted=True)
    answer(main, 2, granted=False)
    assert False is tie.ask()


def test_an_answer_may_come_in_pieces(ends: tuple[Tie, socket.socket]):
    tie, main = ends
    main.sendall(b'{"asked": 1, "gran')
    main.sendall(b'ted": true}\n')
    assert True is tie.ask()


def test_what_is_no_answer_raises_nothing(ends: tuple[Tie, socket.socket]):
    tie, main = ends
    main.sendall(b'no JSON\n{"granted": true}\n[]\n')
    answer(main, 1, granted=False)
    assert False is tie.ask()


def test_the_end_of_a_slice_is_seen_though_a_process_that_it_has_forked_lives_on(ends: tuple[Tie, socket.socket]):
    tie, main = ends
    asked, answered = os.pipe()
    child = os.fork()
    if not child:
        os.read(asked, 1)
        os._exit(0)
    try:
        tie.close()
        assert b"" == main.recv(100)
    finally:
        os.write(answered, b"!")
        os.waitpid(child, 0)
        os.close(asked)
        os.close(answered)


def test_a_main_process_that_is_gone_is_told_nothing_more(ends: tuple[Tie, socket.socket]):
    tie, main = ends
    main.close()
    assert None is tie.ask()
    assert not tie.is_open
    tie.begins(is_protected=True, expected=None, working=None)
    tie.moved_on(1.0)
    tie.close()
