//! A new journal in place of one that is damaged or lost: every mirror is compared with the whole source.
//!
//! The danger is a start in between that takes the mirrors for what the log lacks. So the damaged one is moved aside first,
//! the database before its WAL: cut anywhere from there on, the next start finds no journal, makes a new one, and knows by the id
//! that the source has that there was one before (`daemon/identity.rs`), which comes to the same. (A WAL without its
//! database SQLite throws away. The other way round, a database without its WAL is an older log, which must never be used.)
//! In the new one the mirrors come first, and then the id.

use super::{FILE_NAME, Journal, JournalError, Reader, holds};
use crate::change::Scope;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What a journal consists of, behind its name, in the order in which it goes.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];

/// Moves the journal in `state_dir` aside, under a name that is free; none if there is nothing of one. No daemon may be
/// running.
///
/// # Errors
/// The file system's.
pub fn set_aside(state_dir: &Path) -> Result<Option<PathBuf>, JournalError> {
    let file = state_dir.join(FILE_NAME);
    let named = |number: u32, part: &str| {
        let name = format!("{FILE_NAME}.aside-{number}{part}");
        state_dir.join(name)
    };
    let taken = |path: &Path| path.symlink_metadata().is_ok();
    let is_free = |number: &u32| PARTS.iter().all(|part| !taken(&named(*number, part)));
    let number = (1..).find(is_free).unwrap_or(u32::MAX);
    let mut moved = None;
    for part in PARTS {
        let from = state_dir.join(format!("{FILE_NAME}{part}"));
        let to = named(number, part);
        match std::fs::rename(&from, &to) {
            Ok(()) => moved = moved.or(Some(named(number, ""))),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(JournalError::File { file: from, why }),
        }
    }
    let synced = File::open(state_dir).and_then(|dir| dir.sync_all());
    synced.map_err(|why| JournalError::File { file, why })?;
    Ok(moved)
}

/// A mirror that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Which.
    pub name: String,
    /// Why it is held, if a person did not do it.
    pub held: Option<String>,
}

impl Reader {
    /// The mirrors that are paused.
    ///
    /// # Errors
    /// SQLite's.
    pub fn pauses(&self) -> Result<Vec<Pause>, JournalError> {
        // Of this table only, and not as part of a position: others may be the damaged ones.
        let paused: Vec<String> = self
            .db
            .prepare("SELECT name FROM main.mirror WHERE paused ORDER BY name")
            .and_then(|mut s| s.query_map([], |row| row.get(0))?.collect())
            .map_err(|why| self.sql(why))?;
        let all = paused.into_iter().map(|name| {
            let [held, _] = holds::keys(&name);
            // Why it was can be lost: that it was may not be.
            let held = self.meta(&held).unwrap_or_default();
            Pause {
                held: held.filter(|why| !why.is_empty()),
                name,
            }
        });
        Ok(all.collect())
    }
}

impl Journal {
    /// Pauses a mirror as it was in another journal.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn pause_as(&self, pause: &Pause) -> Result<(), JournalError> {
        match &pause.held {
            Some(why) => self.hold(&pause.name, why),
            None => self.set_paused(&pause.name, true),
        }
    }

    /// Begins with mirrors of which nothing is known: each is compared with the whole source when it is reached, and made
    /// like it. What only a mirror has stays there. On the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn compare_all(&self, names: &[&str]) -> Result<(), JournalError> {
        for name in names {
            self.add_mirror(name, false)?;
            self.request_sync(name, Scope::TREE)?;
        }
        self.sync()
    }
}
