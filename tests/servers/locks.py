"""Who waits for a lock, as each server tells it."""

from __future__ import annotations

from sqlalchemy import Connection, text

_WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    # Not innodb_trx, which shows an old state to those who ask often.
    "mysql": """
        SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status
        WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'
    """,
}


def anybody_waits(connection: Connection) -> bool:
    """Tell whether any session of the server waits for a lock."""
    return bool(connection.execute(text(_WAITING[connection.dialect.name])).scalar())
