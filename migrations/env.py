"""How Alembic runs the migrations: on the connection it is handed, in one transaction, under one lock, in time."""

from alembic import context
from sqlalchemy import Connection, text

from projections.tables import metadata

LOCK = 0x68756C6F67  # "hulog": any constant of our own
# A migration that another process runs is waited for; a table that a query holds is not, or all queries behind it wait.
TURN_TIMEOUT_S = 120
LOCK_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 600


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_TIMEOUT_S}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
        context.run_migrations()


run(context.config.attributes["connection"])
