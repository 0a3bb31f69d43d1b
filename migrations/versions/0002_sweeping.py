"""Indexes for the sweeper: sessions that live, by incarnation, and detached ones by since when."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = """
CREATE INDEX ix_sessions_living ON sessions (partition, incarnation) WHERE state <> 'closed';
CREATE INDEX ix_sessions_detached ON sessions (partition, detached_at) WHERE state = 'detached';
"""


def upgrade() -> None:
    op.execute(INDEXES)
