"""What is held against a place, in every order of what may happen there."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from batchkit.suspicion import MOST_ENDS, Death, Suspicion, after_end

_CHUNK = 3
_STEPS = st.one_of(
    st.sampled_from(["enter", "commit", "stop", "take back", *Death]),
    # So often that the end of it all is reached
    *[st.just("enter and die")] * 4,
)


@dataclass
class _Partition:
    """A partition as a slice and a sweep treat it, beside a plain account of what counts against its place."""

    known: Suspicion | None = None
    fence: int = 1
    seq: int = 0
    passed: int = 0
    is_marked: bool = False
    is_stopping: bool = False
    #: the counted ends at this place by their fence, and whether items were taken one at a time then
    account: dict[int, tuple[Death, bool]] = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        return self.known is not None and self.known.takes_one(passed=self.passed)

    def enter(self) -> None:
        if self.known is not None:
            self.known = self.known.enter(place=self.seq, fence=self.fence, items=1 if self.is_alone else _CHUNK)
            self.is_marked, self.is_stopping = True, False

    def commit(self) -> None:
        self.passed += 1 if self.is_alone else _CHUNK
        self.seq += 1
        self.is_marked = self.is_stopping = False
        self.account = {}
        if self.known is not None and self.known.is_over(place=self.seq, passed=self.passed):
            self.known = None

    def stop(self) -> None:
        if self.is_marked and self.known is not None:
            self.known = self.known.stop(place=self.seq, fence=self.fence)
            self.is_stopping = True

    def take_back(self) -> None:
        if self.known is not None and self.fence > 1:
            self.known = self.known.take_back(self.fence - 1)
            self.account.pop(self.fence - 1, None)

    def die(self, death: Death) -> None:
        if self.is_marked and not self.is_stopping and death is not Death.SHUTDOWN:
            self.account[self.fence] = (death, self.is_alone)
        for _ in range(2):  # a sweep and a takeover may both see it
            self.known = after_end(self.known, fence=self.fence, place=self.seq, passed=self.passed, death=death)
        self.fence += 1
        self.is_marked = self.is_stopping = False

    def enter_and_die(self) -> None:
        self.enter()
        self.die(Death.CHILD)

    def alone(self) -> list[Death]:
        return [death for death, is_alone in self.account.values() if is_alone]


@settings(max_examples=300)
@given(st.lists(_STEPS, max_size=30))
def test_an_item_is_given_up_only_where_enough_ends_count_against_it_alone(steps: list[Death | str]):
    it = _Partition()
    for step in steps:
        if isinstance(step, Death):
            it.die(step)
        else:
            getattr(it, step.replace(" ", "_"))()
        if it.known is None:
            continue
        assert it.known == Suspicion.read(it.known.write())
        is_killer = it.known.takes_one(passed=it.passed) and len(it.alone()) >= MOST_ENDS
        assert is_killer == it.known.is_killer(place=it.seq)
        is_proven = is_killer and it.alone() == [Death.CHILD] * MOST_ENDS
        assert is_proven == it.known.is_to_pass(place=it.seq)
        assert (is_killer and not is_proven) == it.known.needs_person(place=it.seq, passed=it.passed)


@given(st.lists(st.sampled_from(["told by the worker", "told by its parent", "commit"]), max_size=20))
def test_deploys_that_are_known_of_have_nothing_taken_one_at_a_time(steps: list[str]):
    it = _Partition()
    it.die(Death.UNSEEN)
    for step in steps:
        it.enter()
        if step == "commit":
            it.commit()
        elif step == "told by the worker":
            it.stop()
            it.die(Death.UNSEEN)
        else:
            it.die(Death.SHUTDOWN)
        assert it.known is None or (it.known.until, it.known.ends) == (None, ())
