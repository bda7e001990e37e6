"""What a job asks for, and what a run promises, for the effects of its chunks."""

from __future__ import annotations

from typing import Literal, TypeAlias

Delivery: TypeAlias = Literal["exactly-once", "at-least-once", "at-most-once"]

#: A chunk's writes commit together with its checkpoint.
EXACTLY_ONCE: Delivery = "exactly-once"
#: The checkpoint comes after the effects: a crash between the two repeats them.
AT_LEAST_ONCE: Delivery = "at-least-once"
#: The checkpoint comes before the effects: a crash between the two leaves them in doubt.
AT_MOST_ONCE: Delivery = "at-most-once"

DELIVERIES: tuple[Delivery, ...] = (EXACTLY_ONCE, AT_LEAST_ONCE, AT_MOST_ONCE)


def promised(asked: Delivery | None, *, commits_together: bool) -> Delivery:
    """
    Say what holds for a run: what its job asks for, or less where a chunk and its checkpoint cannot commit together.

    At most once needs no common commit: what is in doubt is written down before, and cleared after, all effects.
    """
    if asked in (None, EXACTLY_ONCE):
        return EXACTLY_ONCE if commits_together else AT_LEAST_ONCE
    return asked


def cannot_commit_together(job: str) -> str:
    """Say why a job that asks for exactly once cannot have it of a kit, and what to do."""
    return (
        f"job {job} asks for delivery='exactly-once', but the kit's session_factory is bound to another database than "
        f"the kit, so a chunk and its checkpoint cannot commit together; bind it to the kit's database, or ask for "
        f"'at-least-once' or 'at-most-once'"
    )
