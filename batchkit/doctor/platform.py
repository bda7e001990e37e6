"""The platform: whether its grace is known, and whether it gives what was said."""

from __future__ import annotations

from collections.abc import Iterator

from batchkit.doctor.findings import Finding, Level
from batchkit.grace import VARIABLE
from batchkit.platforms import Platform


def platform_findings(platform: Platform | None, *, grace: float | None) -> Iterator[Finding]:
    """Compare the *grace* that was said with what the *platform* of this process gives, where that is known."""
    if grace is None:
        yield Finding(
            check="grace-unknown",
            level=Level.INFO,
            subject=VARIABLE,
            problem="Nobody said how long the platform waits between SIGTERM and SIGKILL.",
            danger=(
                "A chunk that takes longer is killed, and its run waits for the lease to end, instead of being rolled "
                "back in time and handed on."
            ),
            mend=_how_to_say(platform),
        )
    elif platform is not None and platform.longest is not None and grace > platform.longest:
        yield Finding(
            check="grace-longer-than-platform",
            level=Level.FAIL,
            subject=VARIABLE,
            problem=f"The grace is said to be {grace:g} s; {platform.name} gives {platform.longest:g} s at most.",
            danger="Chunks are worked until they are killed, and each deploy waits for leases to end.",
            mend=f"Say what holds there ({platform.can_give}): {VARIABLE}={platform.longest:g} or less.",
        )


def _how_to_say(platform: Platform | None) -> str:
    if platform is None:
        return f'Set {VARIABLE} on the workers, or say BatchKit(..., grace="heroku") or seconds.'
    if platform.grace is None:
        return f"This is {platform.name}: set {platform.setting}, and {VARIABLE} to the same number, on the workers."
    return (
        f"This is {platform.name}, which waits {platform.grace:g} s ({platform.can_give}): set {VARIABLE} "
        f'to what you have there, or say BatchKit(..., grace="{platform.name}").'
    )
