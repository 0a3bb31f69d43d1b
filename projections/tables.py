"""The schema of the read models, as SQLAlchemy Core. ``migrations`` makes it; ``write`` and ``read`` use static SQL.

Names are text without NUL under the "C" collation, so that they sort as their bytes do, everywhere. What a client
wrote verbatim is bytea: jsonb refuses ``\\u0000`` and rewrites the rest. Times are the broker's unless a comment says
otherwise.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Name = Text(collation="C")
Time = DateTime(timezone=True)
OFTEN_UPDATED = {"fillfactor": 75}  # leaves room for updates that touch no index

# The log, verbatim: the second copy, restorable. ``hub`` and ``type`` are derived, null where they cannot be read.
event_log = Table(
    "event_log",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hub", Name),
    Column("type", Name),
    Column("subject", Name, nullable=False),
    Column("stored_at", Time, nullable=False),
    Column("headers", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
Index("ix_event_log_hub_seq", event_log.c.hub, event_log.c.seq)
Index("ix_event_log_hub_type_seq", event_log.c.hub, event_log.c.type, event_log.c.seq)
# Hashed, because subjects are long (a btree refuses over 2,700 bytes) and most of them are random.
Index("ix_event_log_subject_seq", func.hashtextextended(event_log.c.subject, 0), event_log.c.seq)

# One row per session: what its last event carries. ``seq`` is that event's, ``opened_at`` null if the log forgot it.
sessions = Table(
    "sessions",
    metadata,
    Column("hub", Name, primary_key=True),
    Column("session_id", Name, primary_key=True),
    Column("partition", SmallInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("state", Name, nullable=False),
    Column("reason", Name),
    Column("resumable", Boolean, nullable=False),
    Column("user_id", Name),
    Column("node", Name, nullable=False),
    Column("incarnation", Name, nullable=False),
    Column("connection", Name, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("groups", ARRAY(Name), nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("opened_seq", BigInteger, nullable=False),
    Column("opened_at", Time),
    Column("detached_at", Time),
    Column("last_seen_at", Time),  # the node's clock, while detached or since; else it is the lease's time
    Column("closed_at", Time),
    CheckConstraint("state IN ('active', 'detached', 'closed')", name="state"),
    postgresql_with=OFTEN_UPDATED,
)
Index("ix_sessions_state", sessions.c.hub, sessions.c.state, sessions.c.session_id)
Index("ix_sessions_user", sessions.c.hub, sessions.c.user_id, sessions.c.state, sessions.c.session_id)
Index("ix_sessions_node", sessions.c.hub, sessions.c.node, sessions.c.state, sessions.c.session_id)
Index(
    "ix_sessions_living",
    sessions.c.partition,
    sessions.c.incarnation,
    postgresql_where=text("state <> 'closed'"),
)
Index(
    "ix_sessions_detached",
    sessions.c.partition,
    sessions.c.detached_at,
    postgresql_where=text("state = 'detached'"),
)

# One row per stay of a session in a group: history by interval. ``joined_at`` is null if the log forgot the joining.
memberships = Table(
    "memberships",
    metadata,
    Column("hub", Name, primary_key=True),
    Column("session_id", Name, primary_key=True),
    Column("group_name", Name, primary_key=True),
    Column("joined_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("joined_at", Time),
    Column("left_seq", BigInteger),
    Column("left_at", Time),
)
Index(
    "ix_memberships_present",
    memberships.c.hub,
    memberships.c.group_name,
    memberships.c.session_id,
    postgresql_where=text("left_seq IS NULL"),
)

# Groups that have a member, and how many: moved by what a batch changes of its sessions, so that a page is one scan.
groups = Table(
    "groups",
    metadata,
    Column("hub", Name, primary_key=True),
    Column("group_name", Name, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("attached", Integer, nullable=False),
    postgresql_with=OFTEN_UPDATED,
)

# Hubs that have an event, with their last one, and their sessions counted by state.
hubs = Table(
    "hubs",
    metadata,
    Column("hub", Name, primary_key=True),
    Column("partition", SmallInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("active", BigInteger, nullable=False),
    Column("detached", BigInteger, nullable=False),
    Column("closed", BigInteger, nullable=False),
    postgresql_with=OFTEN_UPDATED,
)

# Calls, by the id of their ``invocation.requested``. ``seq`` is that event's, ``status_seq`` of what came of it.
invocations = Table(
    "invocations",
    metadata,
    Column("hub", Name, primary_key=True),
    Column("invocation_id", Name, primary_key=True),
    Column("partition", SmallInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("target", Name, nullable=False),
    Column("arguments", LargeBinary, nullable=False),
    Column("selector", LargeBinary, nullable=False),
    Column("caller", Name, nullable=False),
    Column("ttl_ms", BigInteger),
    Column("requested_at", Time, nullable=False),
    Column("status", Name, nullable=False),
    Column("status_seq", BigInteger, nullable=False),
)
Index("ix_invocations_seq", invocations.c.hub, invocations.c.seq)

# One row per incarnation: one life of a node's lease. Always of partition 0.
nodes = Table(
    "nodes",
    metadata,
    Column("node", Name, primary_key=True),
    Column("incarnation", Name, primary_key=True),
    Column("state", Name, nullable=False),
    Column("version", Name),
    Column("url", Name),
    Column("started_seq", BigInteger),
    Column("started_at", Time),
    Column("seq", BigInteger, nullable=False),
    Column("changed_at", Time, nullable=False),
    CheckConstraint("state IN ('started', 'draining', 'lost')", name="state"),
)

# How far each partition is projected: the only truth about it. ``hash`` is of the event at ``sequence``.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Name, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # Everything stored until then is in the rows; beside the event's own time, Postgres' clock when nothing was new.
    Column("as_of", Time, nullable=False),
    postgresql_with=OFTEN_UPDATED,
)

# What could not be projected, with everything later on the same subjects. The bytes are in ``event_log``.
parked = Table(
    "parked",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", Name, nullable=False),
    Column("code", Name, nullable=False),
    Column("reason", Name, nullable=False),
    Column("parked_at", Time, nullable=False, server_default=func.now()),  # Postgres' clock
)
