"""The database: what it is, how it was opened, and whether its tables fit."""

from __future__ import annotations

from collections.abc import Iterator

from batchkit.app import BatchKit
from batchkit.doctor.findings import Finding, Level, listed
from batchkit.errors import BatchkitError, DatabaseUnavailable, SchemaMismatch
from batchkit.store import ClockOffset, Server

_CLOCKS_MAY_DIFFER_SECONDS = 1.0
_OUR_PREFIX = "batchkit_"


def check_database(kit: BatchKit, *, queue: str, slices_at_once: int) -> Iterator[Finding]:
    """Check the database of *kit*, in which a worker process works so many slices at once."""
    url = kit.database_url
    yield from pool_findings(kit.health.pool_capacity(), slices_at_once=slices_at_once, subject=url)
    try:
        server = kit.health.server()
    except BatchkitError as error:
        yield unusable(error, subject=url)
        return
    yield from server_findings(server, subject=url)
    yield from mysql_findings(server, subject=url)
    yield from across_machines(server, queue=queue, subject=url)
    yield from clock_findings(kit.health.clock_offset(), subject=url)
    try:
        kit.check_tables()
    except SchemaMismatch as error:
        yield wrong_tables(error, subject=url)


def unusable(error: BatchkitError, *, subject: str) -> Finding:
    """Tell that the database cannot be reached, or that batchkit refuses how it was opened."""
    is_away = isinstance(error, DatabaseUnavailable)
    return Finding(
        check="database-unreachable" if is_away else "database-refused",
        level=Level.FAIL,
        subject=subject,
        problem=_sentence(error),
        danger="No run can be started, worked or seen, and nothing that is kept there could be checked.",
        mend="Do what the problem says, and ask again.",
    )


def wrong_tables(error: SchemaMismatch, *, subject: str) -> Finding:
    """Tell that the tables are missing, older or newer."""
    return Finding(
        check="database-tables",
        level=Level.FAIL,
        subject=subject,
        problem=_sentence(error),
        danger="No run can be started or worked, and what waits there could not be checked.",
        mend="Run `batchkit db upgrade` with the newest batchkit that uses this database, as part of each deploy.",
    )


def server_findings(server: Server, *, subject: str) -> Iterator[Finding]:
    """Look at the version and the settings of the server."""
    if server.version < server.at_least:
        yield Finding(
            check="database-version",
            level=Level.FAIL,
            subject=subject,
            problem=f"This is {server.name} {_version(server.version)}.",
            danger=f"batchkit is neither made for nor tested with anything older than {_version(server.at_least)}.",
            mend=f"Upgrade to {server.name} {_version(server.at_least)} or newer.",
        )
    if server.refuses_writes is not None:
        yield Finding(
            check="database-read-only",
            level=Level.FAIL,
            subject=subject,
            problem=f"Nothing can be written: {server.refuses_writes}.",
            danger="Each claim and each chunk fails.",
            mend="Give batchkit the address of the primary, and a role whose transactions may write.",
        )
    if server.journal not in {None, "wal"}:
        yield Finding(
            check="sqlite-journal",
            level=Level.WARN,
            subject=subject,
            problem=f"The file is in the journal mode {server.journal} and could not be switched to WAL.",
            danger="Readers keep workers from writing, and on a network drive SQLite's locks may not work at all.",
            mend="Keep the file on a disk of this machine, or use PostgreSQL.",
        )


def mysql_findings(server: Server, *, subject: str) -> Iterator[Finding]:
    """Look at what MySQL and MariaDB leave open where others do not."""
    ours = [name for name in server.without_transactions if name.startswith(_OUR_PREFIX)]
    theirs = [name for name in server.without_transactions if not name.startswith(_OUR_PREFIX)]
    if ours:
        yield Finding(
            check="mysql-own-engine",
            level=Level.FAIL,
            subject=subject,
            problem=f"The engine of batchkit's own tables has no transactions: {listed(ours)}.",
            danger="A chunk that is rolled back counts as done, so its items are lost.",
            mend="Run `ALTER TABLE ... ENGINE=InnoDB` on each of them.",
        )
    if theirs:
        yield Finding(
            check="mysql-engine",
            level=Level.WARN,
            subject=subject,
            problem=f"There are tables whose engine has no transactions: {listed(theirs)}.",
            danger="What a chunk writes to them stays when the chunk is rolled back, and is written again with it.",
            mend="Run `ALTER TABLE ... ENGINE=InnoDB` on those that jobs write to.",
        )
    if server.logs_statements:
        yield Finding(
            check="mysql-binlog",
            level=Level.FAIL,
            subject=subject,
            problem="The binary log is on, and binlog_format is STATEMENT.",
            danger="InnoDB then refuses each write under READ COMMITTED, so nothing can be claimed or worked.",
            mend="Set binlog_format to ROW or MIXED.",
        )
    if server.cuts_texts:
        yield Finding(
            check="mysql-sql-mode",
            level=Level.WARN,
            subject=subject,
            problem="The sql_mode of the connection is not strict.",
            danger="A value that does not fit its column is changed until it does, and the chunk commits that.",
            mend="Add STRICT_TRANS_TABLES to sql_mode.",
        )
    if server.narrow_charset is not None:
        yield Finding(
            check="mysql-charset",
            level=Level.WARN,
            subject=subject,
            problem=f"The character set of the connection is {server.narrow_charset}.",
            danger="An error or a param with other characters, such as an emoji, cannot be written down as it is.",
            mend="Add ?charset=utf8mb4 to the address, or leave the charset out of it.",
        )


def across_machines(server: Server, *, queue: str, subject: str) -> Iterator[Finding]:
    """Look whether a database of one machine is used with a queue of several."""
    if server.journal is None or queue not in {"CeleryQueue", "RQQueue"}:
        return
    yield Finding(
        check="sqlite-across-machines",
        level=Level.WARN,
        subject=subject,
        problem=f"The runs are kept in SQLite, and {queue} takes them to workers wherever they are.",
        danger="A worker on another machine has another file, finds no run there, and drops the message.",
        mend="Use PostgreSQL as soon as workers or web servers stand on more than one machine or container.",
    )


def clock_findings(offset: ClockOffset, *, subject: str) -> Iterator[Finding]:
    """Look whether this machine's clock and the database's agree."""
    if offset.at_least <= _CLOCKS_MAY_DIFFER_SECONDS:
        return
    side = "ahead of" if offset.seconds > 0 else "behind"
    yield Finding(
        check="clock",
        level=Level.WARN,
        subject=subject,
        problem=f"Its clock is {abs(offset.seconds):.1f} s {side} this machine's.",
        danger=(
            "Leases are safe, since they go by the database's clock alone; but moments that your jobs take from this "
            "machine do not fit those that the database sets, and the time left that is shown is wrong."
        ),
        mend="Let both machines keep their time by NTP.",
    )


def pool_findings(capacity: int | None, *, slices_at_once: int, subject: str) -> Iterator[Finding]:
    """Look whether a worker process may have as many connections as its slices need."""
    # Each slice holds one; the timers that renew their leases need another for a moment, and can share it.
    needed = slices_at_once + 1
    if capacity is None or capacity >= needed:
        return
    yield Finding(
        check="pool-size",
        level=Level.FAIL,
        subject=subject,
        problem=(
            f"The engine's pool has {capacity} connections at most, and a process with {slices_at_once} slices at once "
            f"needs {needed}: a slice holds one, and leases are renewed on another."
        ),
        danger="A lease that cannot be renewed during a long chunk is lost, and the chunk is rolled back.",
        mend=f"Make the engine with pool_size={needed} or more.",
    )


def _sentence(error: BatchkitError) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
