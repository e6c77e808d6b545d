-- The journal, schema 3 (PRAGMA user_version). See journal.rs for what each rule means.

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
    error_at     INTEGER,          -- milliseconds since 1970
    marked       INTEGER,          -- the marker there is of this change at least; none: there never was one
    marking      INTEGER,          -- and of none behind this one
    away         INTEGER NOT NULL DEFAULT 0, -- 1: it was not configured for a while
    sync         INTEGER           -- it was asked to be made like the source: the scope, as in codec.rs
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

-- Changes behind a mirror's cursor that are not done there: refused ones, with the reason, and those that
-- wait behind them, without. Each is here whole: the log may have dropped it.
CREATE TABLE parked (
    mirror   TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    path     BLOB NOT NULL,
    path2    BLOB,
    node     BLOB,
    body     BLOB NOT NULL,
    bytes    INTEGER NOT NULL, -- of file data in it, at most
    error    TEXT,
    attempts INTEGER NOT NULL,
    next_try INTEGER,          -- milliseconds since 1970
    PRIMARY KEY (mirror, seq)
) STRICT, WITHOUT ROWID;

-- Paths on a mirror that are to be made like the source. How far that is of those that take long is in `walked`:
-- none: not begun; a directory: up to there, in the order of the walk; "/": all of it. Up to change `seen` the log is
-- not replayed on what is walked.
CREATE TABLE repair (
    mirror   TEXT NOT NULL,
    path     BLOB NOT NULL,
    depth    INTEGER NOT NULL, -- 0 the entry, 1 and which names are in it, 2 all below
    scope    INTEGER NOT NULL, -- codec.rs
    resend   INTEGER NOT NULL, -- 1: its own bytes are sent whatever it looks like
    trust    INTEGER NOT NULL, -- what is there before: 0 anything, 1 what the log says, 2 nothing of use
    walked   BLOB,
    seen     INTEGER,
    error    TEXT,             -- why it could not be done so far
    attempts INTEGER NOT NULL,
    next_try INTEGER,          -- milliseconds since 1970
    PRIMARY KEY (mirror, path, depth)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
