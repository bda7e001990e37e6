"""The table of transitions, and the rule that settles runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from batchkit.errors import IllegalTransition
from batchkit.states import TRANSITIONS, Request, RunState, check_transition, settled
from docs.state_machine import PAGE, page

_ALLOWED = {
    ("queued", "running"),
    ("queued", "paused"),
    ("queued", "cancelled"),
    ("running", "queued"),
    ("running", "paused"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("paused", "queued"),
    ("paused", "cancelled"),
    ("failed", "queued"),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(RunState, RunState)))
def test_each_pair_of_states_is_allowed_exactly_if_the_documents_say_so(before: RunState, after: RunState):
    if (before.value, after.value) in _ALLOWED:
        check_transition("r", before, after)
        return
    with pytest.raises(IllegalTransition) as refused:
        check_transition("r", before, after)
    possible = {wanted for current, wanted in _ALLOWED if current == before.value}
    assert possible == set(refused.value.possible)
    for state in possible:
        assert state in str(refused.value)


@pytest.mark.parametrize("requested", [None, *Request])
@pytest.mark.parametrize("unfinished", [0, 1])
@pytest.mark.parametrize("state", list(RunState))
def test_a_run_is_settled_only_by_legal_changes_and_only_when_nobody_holds_it(
    state: RunState, unfinished: int, requested: Request | None
):
    assert state is settled(state, requested, unfinished=unfinished, held=1)
    after = settled(state, requested, unfinished=unfinished, held=0)
    assert after is state or (state, after) in TRANSITIONS


def test_cancel_beats_the_end_of_the_work_which_beats_pause():
    running = RunState.RUNNING
    assert RunState.CANCELLED is settled(running, Request.CANCEL, unfinished=0, held=0)
    assert RunState.SUCCEEDED is settled(running, Request.PAUSE, unfinished=0, held=0)
    assert RunState.PAUSED is settled(running, Request.PAUSE, unfinished=1, held=0)
    assert RunState.QUEUED is settled(running, None, unfinished=1, held=0)


def test_the_page_of_states_is_what_the_table_generates():
    assert page() == Path(PAGE).read_text(), "run `python3 -m docs.state_machine`"
