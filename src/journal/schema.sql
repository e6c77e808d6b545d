-- The journal, schema 1 (PRAGMA user_version). See journal.rs for what each rule means.

-- The log. seq counts up by one without a gap; the newest row is never removed, so that the count
-- survives a restart.
CREATE TABLE change (
    seq       INTEGER PRIMARY KEY,
    at        INTEGER NOT NULL, -- milliseconds since 1970, for people: nothing is decided by it
    kind      INTEGER NOT NULL, -- codec.rs
    path      BLOB NOT NULL,
    path2     BLOB,
    node      BLOB,
    body      BLOB NOT NULL,
    cum_bytes INTEGER NOT NULL  -- running total of the bytes that this and all earlier changes stand for
) STRICT;

-- One row a mirror.
CREATE TABLE mirror (
    name         TEXT PRIMARY KEY,
    cursor       INTEGER NOT NULL, -- every change up to here is done there
    cursor_bytes INTEGER NOT NULL, -- cum_bytes at the cursor
    sent_upto    INTEGER NOT NULL, -- nothing behind this was ever made visible there
    paused       INTEGER NOT NULL,
    adopted      INTEGER NOT NULL, -- 0: whether it holds what the source held at the start has yet to be seen
    last_error   TEXT,
    error_at     INTEGER           -- milliseconds since 1970
) STRICT, WITHOUT ROWID;

-- Directories on a mirror whose modification time has yet to be set to the source's, since
-- something was put into them or taken out.
CREATE TABLE touched (
    mirror TEXT NOT NULL,
    path   BLOB NOT NULL,
    PRIMARY KEY (mirror, path)
) STRICT, WITHOUT ROWID;

-- Names that the source had at the mirror's cursor and the mirror has not: files that were gone before
-- their content could be sent.
CREATE TABLE ghost (
    mirror TEXT NOT NULL,
    path   BLOB NOT NULL,
    PRIMARY KEY (mirror, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
