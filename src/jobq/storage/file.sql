-- The schema of FileStorage. Version 1: kept in `PRAGMA user_version`.
--
-- Instants called *_at and `due` are epoch seconds by the wall clock. `lease_until`, `locks.until` and `claims.at` are
-- seconds since the machine started, and mean something only within the boot named in `boot`.
-- Every statement ends with a semicolon at the end of a line; the loader splits there.

-- Which run of the machine the deadlines belong to: one row.
CREATE TABLE boot (id TEXT NOT NULL);

-- `counter` is the last place or token counter given in the queue: max(previous + 1, now in µs).
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, counter INTEGER NOT NULL);

-- A rowid table, so that jobs that are claimed together lie together. What is large comes last: a row is read from its
-- start, and only as far as a statement needs.
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    generation TEXT NOT NULL,
    -- 0 queued, 1 failing, 2 processing, 3 completed, 4 failed, 5 cancelled: waiting is state <= 1. A record that was
    -- found damaged by a claim or a rescue has 6, and is in nobody's way.
    state INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    -- Order among equals: the µs at which it became ready, made unique in its queue.
    place INTEGER NOT NULL,
    -- Set while delayed, and only then.
    due REAL,
    created_at REAL NOT NULL,
    result_ttl REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    expires_at REAL,
    -- Set while processing, and only then: token, lease_until.
    token TEXT,
    lease REAL NOT NULL DEFAULT 0,
    lease_until REAL,
    cancel_asked INTEGER NOT NULL DEFAULT 0,
    -- The last token that settled it, and the answer: 0 applied, 1 cancelled.
    settled_token TEXT,
    settled_as INTEGER,
    worker TEXT,
    -- Requests answered lately: MessagePack, {nonce or token: [kind, answer, at]}. Mostly NULL.
    recent BLOB,
    -- Watch addresses that want to be told how it ends, one a line.
    replies TEXT,
    result BLOB,
    error BLOB,
    payload BLOB NOT NULL
);

CREATE UNIQUE INDEX by_id ON jobs (queue, id);

-- The state comes along so that jobs are counted without reading them.
CREATE INDEX ready ON jobs (queue, priority DESC, place, state) WHERE state <= 1 AND due IS NULL;
CREATE INDEX later ON jobs (queue, due, state) WHERE due IS NOT NULL;
CREATE INDEX leased ON jobs (queue, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX expiring ON jobs (queue, expires_at, state) WHERE expires_at IS NOT NULL;

-- The last claim of each session, so that it can be answered again: row numbers (MessagePack), tokens first, first + 1, ...
CREATE TABLE claims (
    queue INTEGER NOT NULL,
    session TEXT NOT NULL,
    nonce TEXT NOT NULL,
    at REAL NOT NULL,
    first INTEGER NOT NULL,
    random TEXT NOT NULL,
    numbers BLOB NOT NULL,
    PRIMARY KEY (queue, session)
) WITHOUT ROWID;

CREATE TABLE locks (
    queue INTEGER NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;
