-- From schema 2 to schema 3. What is new is told in schema.sql.

ALTER TABLE repair RENAME TO old_repair;
CREATE TABLE repair (
    mirror   TEXT NOT NULL,
    path     BLOB NOT NULL,
    depth    INTEGER NOT NULL,
    scope    INTEGER NOT NULL,
    resend   INTEGER NOT NULL,
    trust    INTEGER NOT NULL,
    walked   BLOB,
    seen     INTEGER,
    error    TEXT,
    attempts INTEGER NOT NULL,
    next_try INTEGER,
    PRIMARY KEY (mirror, path, depth)
) STRICT, WITHOUT ROWID;
INSERT INTO repair (mirror, path, depth, scope, resend, trust, error, attempts, next_try)
    SELECT mirror, path, CASE deep WHEN 0 THEN 0 ELSE 2 END, CASE deep WHEN 0 THEN 4 ELSE 6 END, 1, 0, error,
           attempts, next_try
    FROM old_repair;
DROP TABLE old_repair;

ALTER TABLE mirror ADD COLUMN away INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mirror ADD COLUMN sync INTEGER;
