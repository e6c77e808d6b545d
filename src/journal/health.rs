//! Whether the journal is still the one that was opened, and whole (J6).
//!
//! A journal that somebody deletes, moves or replaces under the running daemon takes records as before, and all of
//! them are gone at the next start. One that is cut short, or in which a disk has lost bits, may take them or not.
//! So who keeps the daemon going asks twice a second ([`Recorder::check`](super::Recorder::check)): a stat of the
//! two files, compared with what is open. If it is another one, nothing is recorded any more, which closes the log: the
//! mount is read-only until a person has put it right. What was recorded before that was noticed is in a log that is lost:
//! that harms nothing, since every mirror is compared with the whole source after a journal was lost.
//!
//! A file that was moved away and comes back is the same one, and the log opens again. One that was cut short, was
//! found damaged, or did not come onto the disk never is: SQLite may have read what is not there.
//!
//! No connection may be opened by the name while another file has it: SQLite would read that one, or make a new one.
//! (Between the look and the opening there is a moment. What is read then is a new journal's, without any mirror, or an
//! old one's, which is noticed within the second.)
//!
//! After an unclean stop all pages are looked at once (`PRAGMA quick_check`): before anything is mounted as long as that
//! takes a blink ([`CHECKED_AT_ONCE`]), else beside the running daemon.

use super::{Journal, JournalError, READING, RecordError, error::WAY_OUT, open_here};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A journal of at most so many bytes is looked through before the mount is there. (246 MiB took 0.6 s from memory,
/// and 3.9 s from a slow disk.)
pub const CHECKED_AT_ONCE: u64 = 32 << 20;

/// To how many bytes SQLite cuts a longer WAL, when it begins anew.
pub(super) const WAL_KEPT: u64 = 64 << 20;

/// What is known of the files that are open.
pub(super) struct Health {
    wal_file: PathBuf,
    /// Device and inode of database and WAL.
    db: (u64, u64),
    wal: (u64, u64),
    /// How long they were at least. The database never gets shorter.
    lengths: [AtomicU64; 2],
    /// They are not at their place at the moment.
    lost: AtomicBool,
    /// Why it can never be written to again.
    ruined: OnceLock<String>,
}

fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl Health {
    /// Of files that have just been opened.
    pub fn of(db: &Path, wal_file: PathBuf, wal: &Metadata) -> std::io::Result<Health> {
        let found = db.metadata()?;
        Ok(Health {
            wal_file,
            db: id(&found),
            wal: id(wal),
            lengths: [found.len(), wal.len()].map(AtomicU64::new),
            lost: AtomicBool::new(false),
            ruined: OnceLock::new(),
        })
    }

    /// Whether something may be recorded, as far as was seen.
    pub fn is_good(&self) -> bool {
        !self.lost.load(Ordering::Acquire) && self.ruined.get().is_none()
    }
}

impl Journal {
    /// Looks whether the files at their places are those that are open, and no shorter than they were.
    ///
    /// # Errors
    /// What happened to which file, and the way out.
    pub(super) fn look(&self) -> Result<(), RecordError> {
        let health = &self.health;
        let looked = self.look_at_files();
        health.lost.store(looked.is_err(), Ordering::Release);
        looked?;
        match health.ruined.get() {
            Some(why) => Err(RecordError(why.clone())),
            None => Ok(()),
        }
    }

    fn look_at_files(&self) -> Result<(), RecordError> {
        let health = &self.health;
        let files = [
            (self.file.as_path(), health.db, u64::MAX),
            (health.wal_file.as_path(), health.wal, WAL_KEPT),
        ];
        for ((file, opened, shrinks_to), longest) in files.into_iter().zip(&health.lengths) {
            let name = file.display();
            let gone = |what: &str| {
                RecordError(format!(
                    "{name} {what} while the daemon runs: put it back where it was (mv), or stop the daemon, run \
                     `proxyfs rebuild` and start it again"
                ))
            };
            // Taken before the look: others may look meanwhile, and see it longer.
            let before = longest.load(Ordering::Acquire);
            let found = match file.metadata() {
                Ok(found) => found,
                Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                    return Err(gone("was deleted or moved"));
                }
                Err(why) => return Err(RecordError(format!("{name}: {why}"))),
            };
            if id(&found) != opened {
                return Err(gone("was replaced by another file"));
            }
            if found.len() < before.min(shrinks_to) {
                self.ruin(format!("{name} was cut short while the daemon runs"));
            }
            longest.fetch_max(found.len(), Ordering::AcqRel);
        }
        Ok(())
    }

    /// From here on nothing is recorded any more: what is wrong with the journal.
    pub(super) fn ruin(&self, what: String) {
        let _ = self.health.ruined.set(format!("{what}; {WAY_OUT}")); // the first reason stays
    }

    /// An error if it can never be written to again.
    ///
    /// # Errors
    /// [`JournalError::Lost`].
    pub(super) fn is_sound(&self) -> Result<(), JournalError> {
        match self.health.ruined.get() {
            Some(why) => Err(JournalError::Lost(why.clone())),
            None => Ok(()),
        }
    }

    /// An error unless the file at the journal's place is the one that is open: to be asked before another connection is
    /// opened by its name.
    ///
    /// # Errors
    /// [`JournalError::Lost`].
    pub(super) fn is_at_its_place(&self) -> Result<(), JournalError> {
        self.look_at_files()
            .map_err(|why| JournalError::Lost(why.0))
    }

    /// Looks at every page of the journal. Reads on a connection of its own: neither appends nor other reads wait.
    ///
    /// # Errors
    /// It is damaged, or cannot be read: that closes the log too.
    pub fn check_pages(&self) -> Result<(), JournalError> {
        self.is_at_its_place()?;
        let look = || -> rusqlite::Result<String> {
            let db = open_here(&self.file, READING)?;
            db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        };
        let damaged = match look() {
            Ok(said) if said == "ok" => return Ok(()),
            Ok(said) => JournalError::Damaged {
                file: self.file.clone(),
                what: said.lines().collect::<Vec<_>>().join(" "),
            },
            Err(why) => self.sql(why),
        };
        let _ = self.health.ruined.set(damaged.to_string());
        Err(damaged)
    }
}
