"""The read models: the log's copy, sessions, memberships, groups, hubs, invocations, nodes, checkpoints, parked."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE event_log (
    partition  smallint         NOT NULL,
    seq        bigint           NOT NULL,
    hub        text COLLATE "C",
    type       text COLLATE "C",
    subject    text COLLATE "C" NOT NULL,
    stored_at  timestamptz      NOT NULL,
    headers    bytea            NOT NULL,
    payload    bytea            NOT NULL,
    CONSTRAINT pk_event_log PRIMARY KEY (partition, seq)
);
CREATE INDEX ix_event_log_hub_seq ON event_log (hub, seq);
CREATE INDEX ix_event_log_hub_type_seq ON event_log (hub, type, seq);
CREATE INDEX ix_event_log_subject_seq ON event_log (hashtextextended(subject, 0), seq);

CREATE TABLE sessions (
    hub          text COLLATE "C"   NOT NULL,
    session_id   text COLLATE "C"   NOT NULL,
    partition    smallint           NOT NULL,
    seq          bigint             NOT NULL,
    state        text COLLATE "C"   NOT NULL,
    reason       text COLLATE "C",
    resumable    boolean            NOT NULL,
    user_id      text COLLATE "C",
    node         text COLLATE "C"   NOT NULL,
    incarnation  text COLLATE "C"   NOT NULL,
    connection   text COLLATE "C"   NOT NULL,
    generation   integer            NOT NULL,
    groups       text[] COLLATE "C" NOT NULL,
    metadata     bytea              NOT NULL,
    opened_seq   bigint             NOT NULL,
    opened_at    timestamptz,
    detached_at  timestamptz,
    last_seen_at timestamptz,
    closed_at    timestamptz,
    CONSTRAINT pk_sessions PRIMARY KEY (hub, session_id),
    CONSTRAINT ck_sessions_state CHECK (state IN ('active', 'detached', 'closed'))
) WITH (fillfactor = 75);
CREATE INDEX ix_sessions_state ON sessions (hub, state, session_id);
CREATE INDEX ix_sessions_user ON sessions (hub, user_id, state, session_id);
CREATE INDEX ix_sessions_node ON sessions (hub, node, state, session_id);

CREATE TABLE memberships (
    hub        text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    group_name text COLLATE "C" NOT NULL,
    joined_seq bigint           NOT NULL,
    joined_at  timestamptz,
    left_seq   bigint,
    left_at    timestamptz,
    CONSTRAINT pk_memberships PRIMARY KEY (hub, session_id, group_name, joined_seq)
);
CREATE INDEX ix_memberships_present ON memberships (hub, group_name, session_id) WHERE left_seq IS NULL;

CREATE TABLE groups (
    hub        text COLLATE "C" NOT NULL,
    group_name text COLLATE "C" NOT NULL,
    size       integer          NOT NULL,
    attached   integer          NOT NULL,
    CONSTRAINT pk_groups PRIMARY KEY (hub, group_name)
) WITH (fillfactor = 75);

CREATE TABLE hubs (
    hub       text COLLATE "C" NOT NULL,
    partition smallint         NOT NULL,
    seq       bigint           NOT NULL,
    active    bigint           NOT NULL,
    detached  bigint           NOT NULL,
    closed    bigint           NOT NULL,
    CONSTRAINT pk_hubs PRIMARY KEY (hub)
) WITH (fillfactor = 75);

CREATE TABLE invocations (
    hub           text COLLATE "C" NOT NULL,
    invocation_id text COLLATE "C" NOT NULL,
    partition     smallint         NOT NULL,
    seq           bigint           NOT NULL,
    target        text COLLATE "C" NOT NULL,
    arguments     bytea            NOT NULL,
    selector      bytea            NOT NULL,
    caller        text COLLATE "C" NOT NULL,
    ttl_ms        bigint,
    requested_at  timestamptz      NOT NULL,
    status        text COLLATE "C" NOT NULL,
    status_seq    bigint           NOT NULL,
    CONSTRAINT pk_invocations PRIMARY KEY (hub, invocation_id)
);
CREATE INDEX ix_invocations_seq ON invocations (hub, seq);

CREATE TABLE nodes (
    node        text COLLATE "C" NOT NULL,
    incarnation text COLLATE "C" NOT NULL,
    state       text COLLATE "C" NOT NULL,
    version     text COLLATE "C",
    url         text COLLATE "C",
    started_seq bigint,
    started_at  timestamptz,
    seq         bigint           NOT NULL,
    changed_at  timestamptz      NOT NULL,
    CONSTRAINT pk_nodes PRIMARY KEY (node, incarnation),
    CONSTRAINT ck_nodes_state CHECK (state IN ('started', 'draining', 'lost'))
);

CREATE TABLE checkpoints (
    partition smallint         NOT NULL,
    epoch     text COLLATE "C" NOT NULL,
    sequence  bigint           NOT NULL,
    hash      bytea            NOT NULL,
    as_of     timestamptz      NOT NULL,
    CONSTRAINT pk_checkpoints PRIMARY KEY (partition)
) WITH (fillfactor = 75);

CREATE TABLE parked (
    partition smallint         NOT NULL,
    seq       bigint           NOT NULL,
    subject   text COLLATE "C" NOT NULL,
    code      text COLLATE "C" NOT NULL,
    reason    text COLLATE "C" NOT NULL,
    parked_at timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT pk_parked PRIMARY KEY (partition, seq)
);
"""


def upgrade() -> None:
    op.execute(TABLES)
