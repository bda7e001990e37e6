"""Write docs/state-machine.md from the table of transitions: `python3 -m docs.state_machine`."""

from __future__ import annotations

from pathlib import Path

from batchkit.states import TRANSITIONS

PAGE = Path(__file__).with_name("state-machine.md")

_HEAD = """# The states of a run

Generated from `batchkit/states.py` by `python3 -m docs.state_machine`; a test compares them.

A person's wish to pause or cancel is no state. While workers hold the run it stands beside the state as `requested`
(`pause` or `cancel`), and they see it when they commit their next chunk.

Going on under another worker, after the first one's lease has run out, is no change of state either: `running` stays,
and the history shows the takeover.
"""


def page() -> str:
    """Give the text of the page."""
    edges = "\n".join(f"    {before} --> {after}" for before, after in TRANSITIONS)
    rows = "\n".join(f"| {before} | {after} | {event} |" for (before, after), event in TRANSITIONS.items())
    return (
        f"{_HEAD}\n"
        f"```mermaid\nstateDiagram-v2\n    [*] --> queued\n{edges}\n"
        f"    succeeded --> [*]\n    cancelled --> [*]\n```\n\n"
        f"| from | to | when |\n|---|---|---|\n{rows}\n\n"
        f"When several things are true at the moment that the last worker gives the run back, cancel beats the end of\n"
        f"the work, which beats pause.\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
