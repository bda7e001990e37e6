"""How Alembic runs batchkit's migrations: in the transaction that `batchkit.store.schema` has opened and locked."""

from __future__ import annotations

from alembic import context

from batchkit.store.tables import VERSION_TABLE, tables

attributes = context.config.attributes
schema = attributes["schema"]
options = {
    "target_metadata": tables(schema).metadata,
    "version_table": VERSION_TABLE,
    "version_table_schema": schema,
    # The transaction is the caller's; Alembic must neither begin nor commit one.
    "transactional_ddl": True,
}

if context.is_offline_mode():
    context.configure(dialect_name=attributes["dialect"], literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    context.configure(connection=attributes["connection"], **options)
    context.run_migrations()
