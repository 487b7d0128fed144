"""The tables of the embedded profile.

Documents are JSON in ``doc``.  What is searched or changed apart from the version stands in columns beside it:
they are written from the document, and win over it where a column can move alone (``due_at``,
``lease_expires_at``, ``idempotency_key``).  ``artifact`` tells which blobs documents refer to beside their source.
docs/decisions/0003 has the measurement against generated columns.
"""

STORE_SCHEMA: tuple[str, ...] = (
    """create table if not exists execution (
        id text not null unique,
        version integer not null,
        user_id text not null,
        project_id text not null,
        status text not null,
        lang text not null,
        created_at real not null,
        due_at real,
        lease_expires_at real,
        idempotency_key text,
        blob_sha256 text,
        doc blob not null
    )""",
    "create index if not exists execution_by_user on execution (user_id, id)",
    "create index if not exists execution_due on execution (due_at) where due_at is not null",
    """create unique index if not exists execution_idempotency on execution (user_id, idempotency_key)
        where idempotency_key is not null""",
    "create index if not exists execution_blob on execution (blob_sha256) where blob_sha256 is not null",
    """create table if not exists saga (
        execution_id text not null unique,
        version integer not null,
        due_at real,
        unfinished integer not null,
        doc blob not null
    )""",
    "create index if not exists saga_due on saga (due_at) where due_at is not null",
    "create index if not exists saga_unfinished on saga (execution_id) where unfinished",
    """create table if not exists tape (
        execution_id text not null,
        attempt integer not null,
        seq integer not null,
        stream integer not null,
        truncated integer not null,
        t_ns integer not null,
        size integer not null,
        data blob not null,
        primary key (execution_id, attempt, seq)
    ) without rowid""",
    """create table if not exists blob (
        sha256 text primary key not null,
        created_at real not null,
        data blob not null
    )""",
    """create table if not exists artifact (
        execution_id text not null,
        sha256 text not null,
        primary key (execution_id, sha256)
    ) without rowid""",
    "create index if not exists artifact_blob on artifact (sha256)",
    """create table if not exists log (
        offset integer primary key,
        topic text not null,
        key text not null,
        type text not null,
        body blob not null
    )""",
    """create table if not exists retention (
        kind text primary key not null,
        position text not null
    ) without rowid""",
    # A read model of the log, filled now and then (event_index.py); what it says is in no column of the log.
    """create table if not exists event_index (
        offset integer primary key,
        id text not null,
        type text not null,
        execution_id text not null,
        project_id text,
        user_id text,
        at_us integer not null,
        attempt integer not null,
        correlation_id text,
        causation_id text
    )""",
    # Ids of events begin with the id of their execution, so this one finds those of an execution as well.
    "create index if not exists event_index_by_id on event_index (id)",
    "create index if not exists event_index_by_time on event_index (at_us)",
    "create index if not exists event_index_by_type on event_index (type, at_us)",
    "create index if not exists event_index_by_user on event_index (user_id, at_us)",
    "create index if not exists event_index_by_project on event_index (project_id, at_us)",
    "create index if not exists event_index_by_correlation on event_index (correlation_id, at_us)",
    """create table if not exists event_archive (
        offset integer primary key,
        id text not null,
        type text not null,
        execution_id text not null,
        project_id text,
        user_id text,
        at_us integer not null,
        attempt integer not null,
        correlation_id text,
        causation_id text,
        topic text not null,
        body blob not null,
        archived_at_us integer not null,
        archived_by text not null,
        reason text not null
    )""",
    "create index if not exists event_archive_by_time on event_archive (archived_at_us)",
    "create index if not exists event_archive_by_execution on event_archive (execution_id, archived_at_us)",
    """create table if not exists admission_gate (
        id integer primary key check (id = 1),
        gate text not null
    )""",
    # Which rows of the log are copies that a replay session has published; the trigger keeps a mark from outliving its
    # row and being found at another one with the same offset.
    """create table if not exists log_replay (
        offset integer primary key,
        session_id text not null,
        event_id text not null,
        execution_id text not null
    )""",
    "create index if not exists log_replay_by_event on log_replay (event_id)",
    "create index if not exists log_replay_by_execution on log_replay (execution_id)",
    """create trigger if not exists log_replay_unmarked after delete on log
        begin delete from log_replay where offset = old.offset; end""",
    """create table if not exists replay_session (
        id text primary key not null,
        version integer not null,
        status text not null,
        target text not null,
        ended_at real,
        doc blob not null
    ) without rowid""",
    "create index if not exists replay_session_running on replay_session (id) where status = 'running'",
    "create index if not exists replay_session_ended on replay_session (ended_at) where ended_at is not null",
    """create table if not exists consumer_offset (
        consumer_group text primary key not null,
        offset integer not null
    ) without rowid""",
    """create table if not exists dead_letter (
        id integer primary key autoincrement,
        consumer_group text not null,
        topic text not null,
        partition integer not null,
        offset integer not null,
        key text not null,
        type text not null,
        body blob not null,
        headers text not null,
        message_id text,
        failure text not null,
        cause text not null,
        stack_digest text,
        attempts integer not null,
        retries integer not null,
        first_at real not null,
        last_at real not null,
        status text not null,
        next_retry_at real,
        resolved_at real,
        resolved_by text,
        reason text,
        unique (consumer_group, topic, partition, offset)
    )""",
    """create index if not exists dead_letter_line on dead_letter (consumer_group, key, id)
        where status in ('pending', 'scheduled')""",
    "create index if not exists dead_letter_due on dead_letter (next_retry_at) where status = 'scheduled'",
    "create index if not exists dead_letter_resolved on dead_letter (resolved_at) where resolved_at is not null",
    """create table if not exists dead_letter_policy (
        topic text primary key not null,
        doc blob not null
    ) without rowid""",
    # What was read when wins over the document.
    """create table if not exists notification (
        id text primary key not null,
        user_id text not null,
        execution_id text,
        created_us integer not null,
        read_us integer,
        doc blob not null
    ) without rowid""",
    "create index if not exists notification_of_user on notification (user_id, created_us, id)",
    "create index if not exists notification_unread on notification (user_id, created_us, id) where read_us is null",
    "create index if not exists notification_by_age on notification (created_us)",
    """create index if not exists notification_of_execution on notification (execution_id)
        where execution_id is not null""",
)
