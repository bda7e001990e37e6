"""Redis as the place of a queue's messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from batchkit.doctor.findings import Finding, Level, not_checked

if TYPE_CHECKING:
    from redis import Redis


def check_redis(connection: Redis, *, subject: str) -> Iterator[Finding]:
    """Check the Redis behind *connection*, which must answer."""
    try:
        facts: dict[str, Any] = {**_info(connection, "memory"), **_info(connection, "persistence")}
        yield from eviction_findings(facts, subject=subject)
        yield from persistence_findings(facts, _snapshots(connection), subject=subject)
    except RedisError as error:
        yield not_checked(subject, error)


def eviction_findings(facts: Mapping[str, Any], *, subject: str) -> Iterator[Finding]:
    """Look whether Redis throws messages away when its memory is full; *facts* is what INFO says."""
    policy = str(facts.get("maxmemory_policy", ""))
    if not policy.startswith("allkeys"):
        return
    bound = int(facts.get("maxmemory") or 0)
    now = f"from {bound / 2**20:,.0f} MiB on" if bound else "as soon as a maxmemory is set, which it is not now"
    yield Finding(
        check="redis-eviction",
        level=Level.FAIL if bound else Level.WARN,
        subject=subject,
        problem=f"maxmemory-policy is {policy}, so keys without an expiry are thrown away, {now}.",
        danger="Whole queues and jobs disappear. Runs are found by sweeps; other people's tasks are gone.",
        mend="Set maxmemory-policy to noeviction, and keep caches in another Redis.",
    )


def persistence_findings(facts: Mapping[str, Any], snapshots: str | None, *, subject: str) -> Iterator[Finding]:
    """Look whether messages outlive a restart; *snapshots* is the setting `save`, None where it may not be asked."""
    if facts.get("aof_enabled") or snapshots is None or snapshots:
        return
    yield Finding(
        check="redis-persistence",
        level=Level.INFO,
        subject=subject,
        problem="It keeps nothing on disk.",
        danger="A restart empties all queues. Runs are found by sweeps; other people's tasks are gone.",
        mend="Set appendonly yes, if that matters for other tasks.",
    )


def _info(connection: Redis, section: str) -> dict[str, Any]:
    found: Any = connection.info(section)  # redis types it as what an async client gives, too
    return dict(found)


def _snapshots(connection: Redis) -> str | None:
    try:
        found: Any = connection.config_get("save")
    except RedisError:
        # Hosted ones refuse CONFIG.
        return None
    return str(found.get("save", ""))
