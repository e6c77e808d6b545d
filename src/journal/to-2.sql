-- From schema 1 to schema 2. What is new is told in schema.sql.

ALTER TABLE mirror ADD COLUMN marked INTEGER;
ALTER TABLE mirror ADD COLUMN marking INTEGER;

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

-- Paths on a mirror that are not as the log expects them: they are made like the source. `deep`: with all
-- that is below, and what the source has not is removed.
CREATE TABLE repair (
    mirror   TEXT NOT NULL,
    path     BLOB NOT NULL,
    deep     INTEGER NOT NULL,
    error    TEXT,             -- why it could not be done so far
    attempts INTEGER NOT NULL,
    next_try INTEGER,          -- milliseconds since 1970
    PRIMARY KEY (mirror, path)
) STRICT, WITHOUT ROWID;
