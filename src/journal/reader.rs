//! Reading the journal: rows in order, positions, backlogs. Every query costs the same whatever the
//! length of the log (R8).

use super::codec::{self, Columns};
use super::mends::{self, Mend, Trust};
use super::{FILE_NAME, JournalError, SCHEMA_VERSION};
use crate::change::{Change, RelPath, Scope, Seq};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row as SqlRow, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The columns of a [`Position`].
const POSITION: &str = "name, cursor, sent_upto, paused, adopted, last_error,
    ifnull((SELECT min(seq) FROM change), 1) - cursor - 1,
    (SELECT min(seq) FROM parked WHERE parked.mirror = name), away, sync";

/// Stands in for what mirrors had not before schema 3.
const OLD_MIRROR: &str =
    "CREATE TEMP VIEW mirror AS SELECT *, 0 AS away, NULL AS sync FROM main.mirror";

/// Stands in for what a journal of schema 1 has not.
const OLD_PARKED: &str =
    "CREATE TEMP TABLE parked (mirror TEXT, seq INTEGER, at INTEGER, kind INTEGER,
    path BLOB, path2 BLOB, node BLOB, body BLOB, bytes INTEGER, error TEXT, attempts INTEGER,
    next_try INTEGER);
    CREATE TEMP TABLE repair (mirror TEXT, path BLOB, depth INTEGER, scope INTEGER, resend INTEGER, trust INTEGER,
    walked BLOB, seen INTEGER, error TEXT, attempts INTEGER, next_try INTEGER)";

/// Shows the repairs of a journal of schema 2 as they are shown today.
const OLD_REPAIR: &str =
    "CREATE TEMP VIEW repair AS SELECT mirror, path, CASE deep WHEN 0 THEN 0 ELSE 2 END AS depth,
    CASE deep WHEN 0 THEN 4 ELSE 6 END AS scope, 1 AS resend, 0 AS trust, NULL AS walked, NULL AS seen,
    error, attempts, next_try FROM main.repair";

/// How long who reads the journal without a daemon waits for one that is just about to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// One change with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place.
    pub seq: Seq,
    /// When it was recorded: milliseconds since 1970 by this machine's clock.
    pub at: i64,
    /// Bytes that this change and all earlier ones stand for.
    pub cum_bytes: u64,
    /// The change.
    pub change: Change,
}

/// A change behind a mirror's cursor that is not done there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The change. (Its `cum_bytes` is not kept.)
    pub row: Row,
    /// Why it is parked; none: it waits behind one that is.
    pub error: Option<String>,
    /// How often it was refused.
    pub attempts: u32,
    /// When it is tried again: milliseconds since 1970.
    pub next_try: Option<i64>,
}

/// How far a mirror is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The mirror.
    pub name: String,
    /// Every change up to here is done there, or parked.
    pub cursor: Seq,
    /// The first change that is parked.
    pub first_parked: Option<Seq>,
    /// Nothing behind this was ever made visible there.
    pub sent_upto: Seq,
    /// Whether an admin paused it.
    pub paused: bool,
    /// Whether it has been seen to hold what the source held when the mirror was added.
    pub adopted: bool,
    /// How many changes behind its cursor the log does not have any more.
    pub lacks: u64,
    /// What went wrong last, if it still stands.
    pub last_error: Option<String>,
    /// Whether it was not configured for a while.
    pub away: bool,
    /// It was asked to be made like the source, and that has not begun.
    pub sync: Option<Scope>,
}

/// What a mirror has still to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Changes.
    pub ops: u64,
    /// Bytes of file data they stand for, at most.
    pub bytes: u64,
    /// When the oldest of them was recorded: milliseconds since 1970.
    pub oldest_at: Option<i64>,
    /// When the oldest of those was that are not set aside.
    pub oldest_in_log: Option<i64>,
    /// How many of the changes were refused and are parked.
    pub parked: u64,
    /// When the first of these is tried again: milliseconds since 1970.
    pub next_try: Option<i64>,
}

/// Reads the journal: in the daemon, or without one.
pub struct Reader {
    file: PathBuf,
    pub(super) db: Connection,
}

impl Reader {
    /// Opens the journal in `state_dir` to read only, while no daemon has it.
    ///
    /// # Errors
    /// [`JournalError::Missing`] where there is none; SQLite's.
    pub fn open(state_dir: &Path) -> Result<Reader, JournalError> {
        let file = state_dir.join(FILE_NAME);
        if !file.exists() {
            return Err(JournalError::Missing(file));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sql = |why| JournalError::Sqlite {
            file: file.clone(),
            why,
        };
        let db = Connection::open_with_flags(&file, flags).map_err(sql)?;
        db.busy_timeout(PATIENCE).map_err(sql)?;
        Reader::of(&file, db)
    }

    pub(super) fn of(file: &Path, db: Connection) -> Result<Reader, JournalError> {
        let reader = Reader {
            file: file.to_path_buf(),
            db,
        };
        match reader.version()? {
            found if found > SCHEMA_VERSION => Err(JournalError::TooNew {
                file: file.to_path_buf(),
                found,
            }),
            // The daemon migrates it at its next start; until then nothing is parked.
            old @ (1 | 2) => reader
                .db
                .execute_batch(if old == 1 { OLD_PARKED } else { OLD_REPAIR })
                .and_then(|()| reader.db.execute_batch(OLD_MIRROR))
                .map(|()| reader)
                .map_err(|why| JournalError::Sqlite {
                    file: file.to_path_buf(),
                    why,
                }),
            _ => Ok(reader),
        }
    }

    fn version(&self) -> Result<i64, JournalError> {
        self.db
            .pragma_query_value(None, "user_version", |r| r.get(0))
            .map_err(|why| self.sql(why))
    }

    pub(super) fn sql(&self, why: rusqlite::Error) -> JournalError {
        JournalError::Sqlite {
            file: self.file.clone(),
            why,
        }
    }

    /// The newest change in the log.
    ///
    /// # Errors
    /// SQLite's.
    pub fn head(&self) -> Result<Seq, JournalError> {
        head_of(&self.db).map(|h| h.0).map_err(|why| self.sql(why))
    }

    /// Up to `limit` changes behind `after`, in order.
    ///
    /// # Errors
    /// SQLite's; [`JournalError::Row`] for a row that is no change.
    pub fn rows(&self, after: Seq, limit: usize) -> Result<Vec<Row>, JournalError> {
        let raw: Vec<(i64, i64, i64, Columns)> = self
            .db
            .prepare_cached(
                "SELECT seq, at, cum_bytes, kind, path, path2, node, body FROM change
                 WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )
            .and_then(|mut s| {
                s.query_map(params![after as i64, limit as i64], raw_row)?
                    .collect()
            })
            .map_err(|why| self.sql(why))?;
        raw.into_iter()
            .map(|(seq, at, cum_bytes, columns)| row_of(seq, at, cum_bytes, &columns))
            .collect()
    }

    /// Where a mirror is.
    ///
    /// # Errors
    /// SQLite's, also when the journal does not know the mirror.
    pub fn mirror(&self, name: &str) -> Result<Position, JournalError> {
        position_of(&self.db, name).map_err(|why| self.sql(why))
    }

    /// The mirrors that the journal knows, by name.
    ///
    /// # Errors
    /// SQLite's.
    pub fn mirrors(&self) -> Result<Vec<Position>, JournalError> {
        self.db
            .prepare_cached(&format!("SELECT {POSITION} FROM mirror ORDER BY name"))
            .and_then(|mut s| s.query_map([], position_row)?.collect())
            .map_err(|why| self.sql(why))
    }

    /// What a mirror has still to get: costs the same for one change and for a million.
    ///
    /// # Errors
    /// SQLite's, also when the journal does not know the mirror.
    pub fn backlog(&self, name: &str) -> Result<Backlog, JournalError> {
        let query = || -> rusqlite::Result<Backlog> {
            let (head, cum_bytes) = head_of(&self.db)?;
            let (cursor, cursor_bytes): (i64, i64) = self
                .db
                .prepare_cached("SELECT cursor, cursor_bytes FROM mirror WHERE name = ?1")?
                .query_row([name], |r| Ok((r.get(0)?, r.get(1)?)))?;
            let oldest_at = self
                .db
                .prepare_cached("SELECT at FROM change WHERE seq > ?1 ORDER BY seq LIMIT 1")?
                .query_row([cursor], |r| r.get(0))
                .optional()?;
            let (aside, bytes_aside, aside_at, parked, next_try): (i64, i64, Option<i64>, i64, _) =
                self.db
                    .prepare_cached(
                        "SELECT count(*), ifnull(sum(bytes), 0), min(at), count(error), min(next_try)
                         FROM parked WHERE mirror = ?1",
                    )?
                    .query_row([name], |r| {
                        Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))
                    })?;
            let (mends, refused, mended_next): (i64, i64, Option<i64>) = self
                .db
                .prepare_cached(
                    "SELECT count(*), count(error), min(CASE WHEN error NOTNULL THEN next_try END)
                     FROM repair WHERE mirror = ?1",
                )?
                .query_row([name], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            let next_try: Option<i64> = next_try;
            Ok(Backlog {
                ops: head.saturating_sub(cursor as u64) + (aside + mends) as u64,
                bytes: cum_bytes.saturating_sub(cursor_bytes as u64) + bytes_aside as u64,
                oldest_at: aside_at.into_iter().chain(oldest_at).min(),
                oldest_in_log: oldest_at,
                parked: (parked + refused) as u64,
                next_try: next_try.into_iter().chain(mended_next).min(),
            })
        };
        query().map_err(|why| self.sql(why))
    }

    /// Up to `limit` changes that are set aside for a mirror, in order.
    ///
    /// # Errors
    /// SQLite's; [`JournalError::Row`] for a row that is no change.
    pub fn parked(&self, name: &str, limit: usize) -> Result<Vec<Parked>, JournalError> {
        type Raw = (i64, i64, i64, Columns, Option<String>, u32, Option<i64>);
        let raw: Vec<Raw> = self
            .db
            .prepare_cached(
                "SELECT seq, at, 0, kind, path, path2, node, body, error, attempts, next_try
                 FROM parked WHERE mirror = ?1 ORDER BY seq LIMIT ?2",
            )
            .and_then(|mut s| {
                s.query_map(params![name, limit.min(i64::MAX as usize) as i64], |r| {
                    let (seq, at, cum_bytes, columns) = raw_row(r)?;
                    let (error, attempts, next_try) = (r.get(8)?, r.get(9)?, r.get(10)?);
                    Ok((seq, at, cum_bytes, columns, error, attempts, next_try))
                })?
                .collect()
            })
            .map_err(|why| self.sql(why))?;
        raw.into_iter()
            .map(|(seq, at, cum_bytes, columns, error, attempts, next_try)| {
                Ok(Parked {
                    row: row_of(seq, at, cum_bytes, &columns)?,
                    error,
                    attempts,
                    next_try,
                })
            })
            .collect()
    }

    /// Up to `limit` changes behind `after` that a mirror refused, in order; and the newest of all that it
    /// refused (0: it refused none).
    ///
    /// # Errors
    /// SQLite's; [`JournalError::Row`] for a row that is no change.
    pub fn refused(
        &self,
        name: &str,
        after: Seq,
        limit: usize,
    ) -> Result<(Vec<(Change, String)>, Seq), JournalError> {
        let newest = self
            .db
            .prepare_cached(
                "SELECT ifnull(max(seq), 0) FROM parked WHERE mirror = ?1 AND error NOTNULL",
            )
            .and_then(|mut s| s.query_row([name], |r| r.get::<_, i64>(0)))
            .map_err(|why| self.sql(why))?;
        let raw: Vec<(i64, Columns, String)> = self
            .db
            .prepare_cached(
                "SELECT seq, at, 0, kind, path, path2, node, body, error FROM parked
                 WHERE mirror = ?1 AND seq > ?2 AND error NOTNULL ORDER BY seq LIMIT ?3",
            )
            .and_then(|mut s| {
                s.query_map(params![name, after as i64, limit as i64], |r| {
                    let (seq, _, _, columns) = raw_row(r)?;
                    Ok((seq, columns, r.get(8)?))
                })?
                .collect()
            })
            .map_err(|why| self.sql(why))?;
        let all = raw.into_iter().map(|(seq, columns, error)| {
            row_of(seq, 0, 0, &columns).map(|row| (row.change, error))
        });
        Ok((all.collect::<Result<_, _>>()?, newest as Seq))
    }

    /// What is noted under a key: see [`Journal::meta`](super::Journal::meta).
    ///
    /// # Errors
    /// SQLite's.
    pub fn meta(&self, key: &str) -> Result<Option<String>, JournalError> {
        meta_of(&self.db, key).map_err(|why| self.sql(why))
    }

    /// The paths on a mirror that have to be made like the source.
    ///
    /// # Errors
    /// SQLite's.
    pub fn repairs(&self, name: &str) -> Result<Vec<Mend>, JournalError> {
        let query = "SELECT path, scope, resend, trust, walked, seen, error, attempts, next_try
                     FROM repair WHERE mirror = ?1";
        let read = |r: &SqlRow<'_>| -> rusqlite::Result<Option<Mend>> {
            let (path, walked): (Vec<u8>, Option<Vec<u8>>) = (r.get(0)?, r.get(4)?);
            // What is no path and no scope was never put in.
            let (Ok(path), Some(scope)) = (RelPath::new(&path), codec::scope_of(r.get(1)?)) else {
                return Ok(None);
            };
            let (moved, walked) = mends::progress_of(walked.as_deref());
            Ok(Some(Mend {
                path,
                scope,
                resend: r.get(2)?,
                trust: Trust::of_number(r.get(3)?),
                walked,
                moved,
                seen: r.get::<_, Option<i64>>(5)?.map(|seq| seq as Seq),
                error: r.get(6)?,
                attempts: r.get(7)?,
                next_try: r.get(8)?,
            }))
        };
        let found: Vec<Option<Mend>> = self
            .db
            .prepare_cached(query)
            .and_then(|mut s| s.query_map([name], read)?.collect())
            .map_err(|why| self.sql(why))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Directories on a mirror whose time has to be set again.
    ///
    /// # Errors
    /// SQLite's.
    pub fn touched(&self, name: &str) -> Result<Vec<RelPath>, JournalError> {
        self.paths("SELECT path FROM touched WHERE mirror = ?1", name)
    }

    /// Names that a mirror lacks, since their files were gone before they could be sent.
    ///
    /// # Errors
    /// SQLite's.
    pub fn ghosts(&self, name: &str) -> Result<Vec<RelPath>, JournalError> {
        self.paths("SELECT path FROM ghost WHERE mirror = ?1", name)
    }

    fn paths(&self, query: &str, name: &str) -> Result<Vec<RelPath>, JournalError> {
        let raw: Vec<Vec<u8>> = self
            .db
            .prepare_cached(query)
            .and_then(|mut s| s.query_map([name], |r| r.get(0))?.collect())
            .map_err(|why| self.sql(why))?;
        // What is no path was never put in: such a row is worth less than a start.
        Ok(raw
            .iter()
            .filter_map(|bytes| RelPath::new(bytes).ok())
            .collect())
    }
}

fn row_of(seq: i64, at: i64, cum_bytes: i64, columns: &Columns) -> Result<Row, JournalError> {
    let seq = seq as Seq;
    let change = codec::decode(columns).map_err(|why| JournalError::Row { seq, why })?;
    Ok(Row {
        seq,
        at,
        cum_bytes: cum_bytes as u64,
        change,
    })
}

fn raw_row(r: &SqlRow<'_>) -> rusqlite::Result<(i64, i64, i64, Columns)> {
    let columns = Columns {
        kind: r.get(3)?,
        path: r.get(4)?,
        path2: r.get(5)?,
        node: r.get(6)?,
        body: r.get(7)?,
    };
    Ok((r.get(0)?, r.get(1)?, r.get(2)?, columns))
}

fn position_row(r: &SqlRow<'_>) -> rusqlite::Result<Position> {
    Ok(Position {
        name: r.get(0)?,
        cursor: r.get::<_, i64>(1)? as Seq,
        sent_upto: r.get::<_, i64>(2)? as Seq,
        paused: r.get(3)?,
        adopted: r.get(4)?,
        last_error: r.get(5)?,
        lacks: r.get::<_, i64>(6)?.max(0) as u64,
        first_parked: r.get::<_, Option<i64>>(7)?.map(|seq| seq as Seq),
        away: r.get(8)?,
        sync: r.get::<_, Option<u8>>(9)?.and_then(codec::scope_of),
    })
}

pub(super) fn position_of(db: &Connection, name: &str) -> rusqlite::Result<Position> {
    db.prepare_cached(&format!("SELECT {POSITION} FROM mirror WHERE name = ?1"))?
        .query_row([name], position_row)
}

pub(super) fn meta_of(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0))
        .optional()
}

pub(super) fn head_of(db: &Connection) -> rusqlite::Result<(Seq, u64)> {
    let head = db
        .prepare_cached("SELECT seq, cum_bytes FROM change ORDER BY seq DESC LIMIT 1")?
        .query_row([], |r| {
            Ok((r.get::<_, i64>(0)? as Seq, r.get::<_, i64>(1)? as u64))
        })
        .optional()?;
    Ok(head.unwrap_or((0, 0)))
}
