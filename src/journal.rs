//! The journal: one shared log of changes, and a position in it for each mirror. SQLite in WAL mode,
//! in `state_dir/journal.db`.
//!
//! What can go wrong between two lines here, and what answers it:
//!
//! * *Killed after the local effect, before the record.* Not decided here: the local side records
//!   before it replies (J1), and a start-up scan finds what it could not record.
//! * *Power lost after a mirror got a change whose record was only in the page cache.* The mirror
//!   would be ahead of a log that never heard of the change. So a worker calls [`Journal::announce`]
//!   before it makes anything visible: it notes how far it is about to go and returns when the log up
//!   to there, and that note, are on the disk (J3). Appends themselves do not wait for the disk.
//! * *Killed after a mirror did something, before that was noted.* The rows between the mirror's
//!   `cursor` and its `sent_upto` are the uncertain ones; a worker replays them knowing that they may
//!   have happened. `sent_upto` is on disk before the first of them is sent, `cursor` moves after the
//!   mirror said yes, so no other row can be uncertain.
//! * *A fsync that keeps the file system side waiting.* It is done on the WAL file itself, by the
//!   worker's thread, without SQLite's write lock. That is enough: a frame that is not in the WAL any
//!   more was checkpointed, and a checkpoint syncs the database file before the WAL is used again.
//!   (No lock of SQLite's is on that file, so opening it a second time releases none.)
//! * *A fsync that fails*: see `journal/durable.rs`. It closes the log for good.
//! * *Another process that opens the journal of a running daemon* would need locks on the file for each
//!   record. So the daemon has it alone ([`OURS_ALONE`]): others are refused until it ends, and ask its socket.
//! * *A record put in while a worker reads.* The head is published after the commit, and workers are
//!   woken after that: who sees the head sees the row.
//!
//! Appends go through one connection behind a mutex (4 us each): a writer thread with group commit
//! was slower. Each worker reads through a connection of its own, so that no worker's query keeps the
//! file system side waiting.

mod codec;
mod durable;
mod error;
mod health;
mod holds;
mod mends;
mod partial;
mod reader;
mod rebuild;
mod syncs;
mod upkeep;

use crate::change::{Change, Depth, RelPath, Seq};
use crate::fault;
pub use codec::DecodeError;
use durable::Durable;
pub use error::JournalError;
pub use health::CHECKED_AT_ONCE;
use health::Health;
pub use mends::{Mend, Reached, Trust, Walked};
pub use reader::{Backlog, Parked, Position, Reader, Row};
use reader::{head_of, meta_of, position_of};
pub use rebuild::{Pause, set_aside};
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};
use syncs::{WORK, forget_work, put_mend};

/// The schema this program writes. A journal with a higher number is refused.
pub const SCHEMA_VERSION: i64 = 3;

/// The key of [`Journal::meta`] under which the source's id is.
pub const SOURCE_ID: &str = "source_id";

/// Name of the database in `state_dir`.
pub const FILE_NAME: &str = "journal.db";

/// Bytes of a page of a new journal. Each record writes one to the WAL: with SQLite's usual 4096 it takes twice
/// the time, and four times the room.
const PAGE_SIZE: i64 = 1024;

/// SQLite's way to the file for the daemon: the locks are the process's own, and what connections tell one
/// another is in its memory. Else each record would take six locks of the file, which is half its time.
const OURS_ALONE: &str = "unix-excl";

/// How a connection is opened that only reads.
const READING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// What the file system side needs of the log.
pub trait Recorder: Send + Sync {
    /// Puts one change into the log and wakes the mirrors' workers. Returns when the record is in the
    /// log (J1); calls follow one another in the order of the log (J2).
    ///
    /// # Errors
    /// The record could not be written (disk full, I/O error): the change is not in the log.
    fn record(&self, change: &Change) -> Result<Seq, RecordError>;

    /// Looks whether the log is still what it was, so that not a change has to find out. Cheap: it is asked twice a
    /// second.
    ///
    /// # Errors
    /// Nothing can be recorded: what happened, and the way out.
    fn check(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

/// Why changes cannot be recorded: one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError(pub String);

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes cannot be recorded: {}", self.0)
    }
}

impl std::error::Error for RecordError {}

/// What a worker notes about its mirror in one transaction.
#[derive(Debug, Default)]
pub struct Progress {
    /// The row that everything is done up to, and that row's `cum_bytes`.
    pub cursor: Option<(Seq, u64)>,
    /// Directories whose time has to be set again.
    pub touched: Vec<RelPath>,
    /// Directories whose time has been set.
    pub settled: Vec<RelPath>,
    /// Names that the mirror lacks from here on.
    pub ghosts: Vec<RelPath>,
    /// Names that it does not lack any more, or that are gone from the source too.
    pub laid: Vec<RelPath>,
    /// Changes that are set aside, or were tried again in vain.
    pub parked: Vec<Parked>,
    /// Changes that were set aside and are done.
    pub unparked: Vec<Seq>,
    /// Paths that have to be made like the source.
    pub mends: Vec<Mend>,
    /// Those that are like it again.
    pub healed: Vec<(RelPath, Depth)>,
}

/// Called after each append, on the thread that appended: must not block.
type Listener = Box<dyn Fn() + Send + Sync>;

/// The open journal of a running daemon.
pub struct Journal {
    file: PathBuf,
    /// Above the writer, so that this ends first: who only reads cannot put the WAL away.
    at_hand: Mutex<Reader>,
    writer: Mutex<Writer>,
    head: AtomicU64,
    wal: File,
    durable: Durable,
    health: Health,
    listeners: RwLock<Vec<(String, Listener)>>,
    /// Mirrors whose changes are kept: those that are configured.
    pins: Mutex<BTreeSet<String>>,
    /// The last checkpoint covers the log up to here (J5).
    covered: AtomicU64,
    /// Mirrors that the log does not wait for any more (J7).
    given_up: Mutex<BTreeSet<String>>,
}

struct Writer {
    db: Connection,
    head: Seq,
    cum_bytes: u64,
}

impl Journal {
    /// Opens the journal in `state_dir`, or makes one. The directory must exist, and the caller must
    /// be the only daemon that uses it.
    ///
    /// # Errors
    /// SQLite's or the file system's; [`JournalError::TooNew`] for a schema of the future.
    pub fn open(state_dir: &Path) -> Result<Journal, JournalError> {
        let file = state_dir.join(FILE_NAME);
        let sql = |why| JournalError::Sqlite {
            file: file.clone(),
            why,
        };
        let mut db = open_here(&file, OpenFlags::default()).map_err(sql)?;
        db.pragma_update(None, "page_size", PAGE_SIZE)
            .map_err(sql)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
        db.pragma_update(None, "synchronous", "NORMAL")
            .map_err(sql)?;
        db.pragma_update(None, "wal_autocheckpoint", 0)
            .map_err(sql)?;
        // What a burst has made longer is cut when the WAL begins anew.
        let kept = health::WAL_KEPT as i64;
        db.pragma_update_and_check(None, "journal_size_limit", kept, |_| Ok(()))
            .map_err(sql)?;
        migrate(&mut db, &file)?;
        let (head, cum_bytes) = head_of(&db).map_err(sql)?;
        durable::write_afresh(&db).map_err(sql)?;
        let wal_file = state_dir.join(format!("{FILE_NAME}-wal"));
        // The WAL exists once something was written; a first write makes sure.
        db.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES ('opened', ?1)",
            [now_ms().to_string()],
        )
        .map_err(sql)?;
        let health = File::open(&wal_file)
            .and_then(|wal| Ok((Health::of(&file, wal_file.clone(), &wal.metadata()?)?, wal)));
        let (health, wal) = health.map_err(|why| JournalError::File {
            file: wal_file,
            why,
        })?;
        let reader = open_here(&file, READING).map_err(sql)?;
        Ok(Journal {
            at_hand: Mutex::new(Reader::of(&file, reader)?),
            file,
            writer: Mutex::new(Writer {
                db,
                head,
                cum_bytes,
            }),
            head: AtomicU64::new(head),
            wal,
            durable: Durable::default(),
            health,
            listeners: RwLock::new(Vec::new()),
            pins: Mutex::new(BTreeSet::new()),
            covered: AtomicU64::new(0),
            given_up: Mutex::default(),
        })
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic between two statements leaves no transaction open (rusqlite rolls back), and
        // head is set after the commit: the state behind a poisoned lock is good.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sql(&self, why: rusqlite::Error) -> JournalError {
        JournalError::Sqlite {
            file: self.file.clone(),
            why,
        }
    }

    /// The newest change in the log; 0 when there never was one.
    pub fn head(&self) -> Seq {
        self.head.load(Ordering::Acquire)
    }

    /// Bytes that the log takes on the disk: database and WAL.
    pub fn disk_bytes(&self) -> u64 {
        let length = |f: &Path| f.metadata().map_or(0, |m| m.len());
        length(&self.file) + self.wal.metadata().map_or(0, |m| m.len())
    }

    /// Has `listener` called after each append, under a name to take it back by.
    pub fn listen(&self, name: &str, listener: Listener) {
        let mut all = self
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        all.push((name.to_string(), listener));
    }

    /// Takes listeners back.
    pub fn unlisten(&self, name: &str) {
        let mut all = self
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|(n, _)| n != name);
    }

    /// A connection of one's own to read with.
    ///
    /// # Errors
    /// SQLite's; [`JournalError::Lost`].
    pub fn reader(&self) -> Result<Reader, JournalError> {
        self.is_at_its_place()?;
        let db = open_here(&self.file, READING).map_err(|why| self.sql(why))?;
        Reader::of(&self.file, db)
    }

    /// A reader that is always there, also when the journal is not at its place any more: to look at things in passing.
    pub fn at_hand(&self) -> MutexGuard<'_, Reader> {
        // It only reads: nothing is left half done.
        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted under a key that belongs to the whole journal, as the source's id.
    ///
    /// # Errors
    /// SQLite's.
    pub fn meta(&self, key: &str) -> Result<Option<String>, JournalError> {
        meta_of(&self.writer().db, key).map_err(|why| self.sql(why))
    }

    /// Notes a value under a key, on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<(), JournalError> {
        self.note(&[(key, value)])?;
        self.sync()
    }

    /// Notes values under keys, all or none; not yet on the disk.
    ///
    /// # Errors
    /// SQLite's.
    pub fn note(&self, values: &[(&str, &str)]) -> Result<(), JournalError> {
        let mut writer = self.writer();
        let mut note = || -> rusqlite::Result<()> {
            let all = writer.db.transaction()?;
            for (key, value) in values {
                all.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
                    .execute([key, value])?;
            }
            all.commit()
        };
        note().map_err(|why| self.sql(why))
    }

    fn pins(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a mirror is. From here on its changes are kept for it. A mirror that the journal does not
    /// know is put at the head: what the source held before is taken for copied, which `adopted` says to
    /// be true already (the source was empty).
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_mirror(&self, name: &str, adopted: bool) -> Result<Position, JournalError> {
        self.pins().insert(name.to_string());
        let writer = self.writer();
        writer
            .db
            .execute(
                "INSERT OR IGNORE INTO mirror
                 (name, cursor, cursor_bytes, sent_upto, paused, adopted)
                 VALUES (?1, ?2, ?3, ?2, 0, ?4)",
                params![name, writer.head as i64, writer.cum_bytes as i64, adopted],
            )
            .and_then(|_| position_of(&writer.db, name))
            .map_err(|why| self.sql(why))
    }

    /// Changes are not kept any more for a mirror: it is gone from the configuration. Its position stays,
    /// so that a mirror that comes back late is known to lack something ([`Position::lacks`]).
    pub fn release_mirror(&self, name: &str) {
        self.pins().remove(name);
    }

    /// Forgets all that is known of a mirror that is gone from the configuration for good: one that is added under
    /// its name later is a new one.
    ///
    /// # Errors
    /// SQLite's.
    pub fn forget_mirror(&self, name: &str) -> Result<(), JournalError> {
        self.release_mirror(name);
        let writer = self.writer();
        let forget = || {
            let all = writer.db.unchecked_transaction()?;
            forget_work(&all, name, &WORK)?;
            all.execute("DELETE FROM mirror WHERE name = ?1", [name])?;
            for key in holds::keys(name).into_iter().chain([partial::key(name)]) {
                all.execute("DELETE FROM meta WHERE key = ?1", [key])?;
            }
            all.commit()
        };
        forget().map_err(|why| self.sql(why))
    }

    /// Where a mirror is that the journal knows.
    ///
    /// # Errors
    /// SQLite's.
    pub fn mirror(&self, name: &str) -> Result<Position, JournalError> {
        position_of(&self.writer().db, name).map_err(|why| self.sql(why))
    }

    /// Says that changes up to `sent_upto` are about to become visible on a mirror. When it returns
    /// they are on the disk, and so is this note (J3).
    ///
    /// # Errors
    /// SQLite's or the disk's: nothing may be sent then.
    pub fn announce(&self, name: &str, sent_upto: Seq) -> Result<(), JournalError> {
        self.writer()
            .db
            .prepare_cached("UPDATE mirror SET sent_upto = max(sent_upto, ?2) WHERE name = ?1")
            .and_then(|mut s| s.execute(params![name, sent_upto as i64]))
            .map_err(|why| self.sql(why))?;
        fault::point("journal.announce");
        if fault::keeps("J3") {
            self.sync()?;
        }
        Ok(())
    }

    /// Notes what is done on a mirror. In the log when it returns, not yet on the disk: after a power
    /// cut some changes are replayed again.
    ///
    /// # Errors
    /// SQLite's.
    pub fn advance(&self, name: &str, progress: &Progress) -> Result<(), JournalError> {
        fault::point("journal.advance");
        let mut writer = self.writer();
        let mut note = || -> rusqlite::Result<()> {
            let all = writer.db.transaction()?;
            if let Some((cursor, bytes)) = progress.cursor {
                all.prepare_cached(
                    "UPDATE mirror SET cursor = ?2, cursor_bytes = ?3 WHERE name = ?1",
                )?
                .execute(params![name, cursor as i64, bytes as i64])?;
            }
            for (statement, paths) in [
                (
                    "DELETE FROM touched WHERE mirror = ?1 AND path = ?2",
                    &progress.settled,
                ),
                (
                    "INSERT OR IGNORE INTO touched (mirror, path) VALUES (?1, ?2)",
                    &progress.touched,
                ),
                (
                    "DELETE FROM ghost WHERE mirror = ?1 AND path = ?2",
                    &progress.laid,
                ),
                (
                    "INSERT OR IGNORE INTO ghost (mirror, path) VALUES (?1, ?2)",
                    &progress.ghosts,
                ),
            ] {
                for path in paths {
                    all.prepare_cached(statement)?
                        .execute(params![name, path.as_bytes()])?;
                }
            }
            for parked in &progress.parked {
                put_parked(&all, name, parked)?;
            }
            for (path, depth) in &progress.healed {
                all.prepare_cached(
                    "DELETE FROM repair WHERE mirror = ?1 AND path = ?2 AND depth = ?3",
                )?
                .execute(params![
                    name,
                    path.as_bytes(),
                    codec::depth_number(*depth)
                ])?;
            }
            for mend in &progress.mends {
                put_mend(&all, name, mend)?;
            }
            for seq in &progress.unparked {
                all.prepare_cached("DELETE FROM parked WHERE mirror = ?1 AND seq = ?2")?
                    .execute(params![name, *seq as i64])?;
            }
            all.commit()
        };
        note().map_err(|why| self.sql(why))
    }

    /// Of which change a mirror's marker is, at least and at most, as far as one was written.
    ///
    /// # Errors
    /// SQLite's.
    pub fn marker(&self, name: &str) -> Result<(Option<Seq>, Option<Seq>), JournalError> {
        let seq = |n: Option<i64>| n.map(|n| n as Seq);
        self.writer()
            .db
            .query_row(
                "SELECT marked, marking FROM mirror WHERE name = ?1",
                [name],
                |r| Ok((seq(r.get(0)?), seq(r.get(1)?))),
            )
            .map_err(|why| self.sql(why))
    }

    /// A marker of this change is about to be written; on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's: it may not be written then.
    pub fn is_marking(&self, name: &str, seq: Seq) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute(
                "UPDATE mirror SET marking = max(ifnull(marking, 0), ?2) WHERE name = ?1",
                params![name, seq as i64],
            )
            .map_err(|why| self.sql(why))?;
        self.sync()
    }

    /// A marker of this change is there.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_marked(&self, name: &str, seq: Seq) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute(
                "UPDATE mirror SET marked = ?2 WHERE name = ?1",
                params![name, seq as i64],
            )
            .map(drop)
            .map_err(|why| self.sql(why))
    }

    /// Pauses a mirror, or lets it go on; on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn set_paused(&self, name: &str, paused: bool) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute(
                "UPDATE mirror SET paused = ?2 WHERE name = ?1",
                params![name, paused],
            )
            .map_err(|why| self.sql(why))?;
        self.sync()
    }

    /// Notes what is wrong with a mirror, or that nothing is.
    ///
    /// # Errors
    /// SQLite's.
    pub fn set_last_error(&self, name: &str, error: Option<&str>) -> Result<(), JournalError> {
        self.writer()
            .db
            .prepare_cached("UPDATE mirror SET last_error = ?2, error_at = ?3 WHERE name = ?1")
            .and_then(|mut s| s.execute(params![name, error, error.map(|_| now_ms())]))
            .map(drop)
            .map_err(|why| self.sql(why))
    }
}

/// One more connection of the process that has the journal.
fn open_here(file: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    Connection::open_with_flags_and_vfs(file, flags, OURS_ALONE)
}

impl Recorder for Journal {
    fn check(&self) -> Result<(), RecordError> {
        self.look()
    }

    fn record(&self, change: &Change) -> Result<Seq, RecordError> {
        if !self.health.is_good() {
            self.look()?;
        }
        let columns = codec::encode(change);
        let mut writer = self.writer();
        let (seq, cum_bytes) = (
            writer.head + 1,
            writer.cum_bytes.saturating_add(change.bytes()),
        );
        // SQLite's integers end at 2^63: far beyond what any log holds, but a hole of 2^63 bytes is
        // one system call.
        let cum_bytes = cum_bytes.min(i64::MAX as u64);
        writer
            .db
            .prepare_cached(
                "INSERT INTO change (seq, at, kind, path, path2, node, body, cum_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .and_then(|mut s| {
                s.execute(params![
                    seq as i64,
                    now_ms(),
                    columns.kind,
                    columns.path,
                    columns.path2,
                    columns.node,
                    columns.body,
                    cum_bytes as i64
                ])
            })
            .map_err(|why| RecordError(format!("{}: {}", self.file.display(), reason(&why))))?;
        writer.head = seq;
        writer.cum_bytes = cum_bytes;
        self.head.store(seq, Ordering::Release);
        drop(writer);
        for (_, listener) in self
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            listener();
        }
        Ok(seq)
    }
}

/// Brings a journal of any older schema to [`SCHEMA_VERSION`] (J8), in one transaction.
fn migrate(db: &mut Connection, file: &Path) -> Result<(), JournalError> {
    let sql = |why| JournalError::Sqlite {
        file: file.to_path_buf(),
        why,
    };
    let found: i64 = db
        .pragma_query_value(None, "user_version", |r| r.get(0))
        .map_err(sql)?;
    if found > SCHEMA_VERSION {
        return Err(JournalError::TooNew {
            file: file.to_path_buf(),
            found,
        });
    }
    let (to_2, to_3) = (
        include_str!("journal/to-2.sql"),
        include_str!("journal/to-3.sql"),
    );
    let steps: &[&str] = match found {
        0 => &[include_str!("journal/schema.sql")],
        1 => &[to_2, to_3],
        2 => &[to_3],
        _ => return Ok(()),
    };
    let mut migrate = || -> rusqlite::Result<()> {
        let all = db.transaction()?;
        for step in steps {
            all.execute_batch(step)?;
        }
        all.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        all.commit()
    };
    migrate().map_err(sql)
}

fn put_parked(db: &Connection, name: &str, parked: &Parked) -> rusqlite::Result<()> {
    let (row, columns) = (&parked.row, codec::encode(&parked.row.change));
    db.prepare_cached(
        "INSERT OR REPLACE INTO parked
             (mirror, seq, at, kind, path, path2, node, body, bytes, error, attempts, next_try)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        name,
        row.seq as i64,
        row.at,
        columns.kind,
        columns.path,
        columns.path2,
        columns.node,
        columns.body,
        row.change.bytes().min(i64::MAX as u64) as i64,
        parked.error,
        parked.attempts,
        parked.next_try
    ])
    .map(drop)
}

/// SQLite's reason in the words of an admin, where it has one.
fn reason(why: &rusqlite::Error) -> String {
    match why.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full: free some space there".to_string(),
        Some(ErrorCode::ReadOnly) => "it is read-only: remount its file system".to_string(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("the journal is damaged ({why}); {}", error::WAY_OUT)
        }
        _ => why.to_string(),
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
