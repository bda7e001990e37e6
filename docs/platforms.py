"""Write docs/platforms.md from the data on platforms: `python3 -m docs.platforms`."""

from __future__ import annotations

from pathlib import Path

from batchkit.platforms import PLATFORMS, Platform

PAGE = Path(__file__).with_name("platforms.md")

_HEAD = """# Platforms

Generated from `batchkit/platforms.py` by `python3 -m docs.platforms`; a test compares them.

How each platform stops a worker where nothing else was set. The name is what `BatchKit(grace=...)` and
`BATCHKIT_GRACE_SECONDS` take; a number of seconds says the same where you have changed the platform's.
`batchkit doctor` tells a platform by its environment, names what to set, and finds a grace that it cannot give.
"""


def page() -> str:
    """Give the text of the page."""
    rows = "\n".join(_row(platform) for platform in PLATFORMS.values())
    return (
        f"{_HEAD}\n"
        f"| platform | signal | who gets it | seconds to the kill | more of them | keeps a busy worker | source |\n"
        f"|---|---|---|---|---|---|---|\n{rows}\n"
    )


def _row(platform: Platform) -> str:
    grace = "set it" if platform.grace is None else f"{platform.grace:g}"
    cells = [
        f"[{platform.name}](platforms/{platform.name}.md)",
        platform.signal,
        str(platform.hears),
        grace,
        platform.can_give,
        platform.protection or "",
        f"[its documents]({platform.source})",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
