//! What the journal notes of mirrors that are to be made like the source as a whole.
//!
//! The danger is a mirror that counts as one that has everything while it has not: so the note that all of it is to be
//! repaired, and where in the log it goes on afterwards, are written in one transaction, and are on the disk
//! before anything is done.

use super::{Journal, JournalError, Mend, Trust, codec, position_of};
use crate::change::{Depth, RelPath, Scope};
use rusqlite::{Connection, params};

impl Journal {
    /// Notes that a mirror has been seen to hold what the source held when it was added.
    ///
    /// # Errors
    /// SQLite's.
    pub fn adopt_mirror(&self, name: &str) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute("UPDATE mirror SET adopted = 1 WHERE name = ?1", [name])
            .map(drop)
            .map_err(|why| self.sql(why))
    }

    /// Notes an administrator's word that a mirror has just been given a copy of the source. It is seen
    /// at the next contact whether there is one ([`Journal::adopt_mirror`]).
    ///
    /// What is in the log up to now may or may not be in the copy: those rows become uncertain ones. Where
    /// the log lacks some of them, the mirror goes on at the head.
    ///
    /// # Errors
    /// SQLite's.
    pub fn copy_was_made(&self, name: &str) -> Result<(), JournalError> {
        let mut writer = self.writer();
        let (head, cum_bytes) = (writer.head as i64, writer.cum_bytes as i64);
        let mut note = || -> rusqlite::Result<()> {
            let all = writer.db.transaction()?;
            if position_of(&all, name)?.lacks > 0 {
                all.execute(
                    "UPDATE mirror SET cursor = ?2, cursor_bytes = ?3 WHERE name = ?1",
                    params![name, head, cum_bytes],
                )?;
            }
            all.execute(
                "UPDATE mirror SET sent_upto = ?2, adopted = 0, marked = NULL, marking = NULL
                 WHERE name = ?1",
                params![name, head],
            )?;
            // What was set aside is older than the copy.
            forget_work(&all, name, &["parked", "repair"])?;
            all.commit()
        };
        note().map_err(|why| self.sql(why))
    }

    /// Notes that a mirror was asked to be made like the source; on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn request_sync(&self, name: &str, scope: Scope) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute(
                "UPDATE mirror SET sync = ?2 WHERE name = ?1",
                params![name, codec::scope_number(scope)],
            )
            .map_err(|why| self.sql(why))?;
        self.sync()
    }

    /// What was asked for is noted elsewhere by now.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sync_is_noted(&self, name: &str) -> Result<(), JournalError> {
        self.writer()
            .db
            .execute("UPDATE mirror SET sync = NULL WHERE name = ?1", [name])
            .map(drop)
            .map_err(|why| self.sql(why))
    }

    /// All of a mirror of which nothing is known is to be made like the source. What was set aside for it, and what was
    /// to be repaired, is part of that. What the log has for it says which names have to go, and comes first; where the
    /// log lacks some of that, the mirror goes on at the head. On the disk when this returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn begin_sync(&self, name: &str, scope: Scope) -> Result<(), JournalError> {
        let mut writer = self.writer();
        let (head, cum_bytes) = (writer.head as i64, writer.cum_bytes as i64);
        let mut note = || -> rusqlite::Result<()> {
            let all = writer.db.transaction()?;
            let lacks = position_of(&all, name)?.lacks > 0;
            forget_work(&all, name, &WORK)?;
            all.execute(
                "UPDATE mirror SET adopted = 1, away = 0, sync = NULL, marked = NULL, marking = NULL
                 WHERE name = ?1",
                [name],
            )?;
            if lacks {
                all.execute(
                    "UPDATE mirror SET cursor = ?2, cursor_bytes = ?3, sent_upto = ?2 WHERE name = ?1",
                    params![name, head, cum_bytes],
                )?;
            }
            let scope = Scope {
                depth: Depth::Tree,
                ..scope
            };
            let mend = Mend {
                trust: Trust::Blank,
                ..Mend::new(RelPath::root(), scope)
            };
            put_mend(&all, name, &mend)?;
            all.commit()
        };
        note().map_err(|why| self.sql(why))?;
        drop(writer);
        self.sync()
    }

    /// Mirrors that are not configured miss what happens: the log need not keep it for them. One that is, and
    /// lacks nothing, is back.
    ///
    /// # Errors
    /// SQLite's.
    pub fn note_configured(&self, names: &[&str]) -> Result<(), JournalError> {
        let writer = self.writer();
        let note = || -> rusqlite::Result<()> {
            let all: Vec<String> = writer
                .db
                .prepare_cached("SELECT name FROM mirror")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for name in all {
                let is_there = names.contains(&name.as_str());
                let back = is_there && position_of(&writer.db, &name)?.lacks == 0;
                if back || !is_there {
                    writer.db.execute(
                        "UPDATE mirror SET away = ?2 WHERE name = ?1 AND away <> ?2",
                        params![name, !is_there],
                    )?;
                }
            }
            Ok(())
        };
        note().map_err(|why| self.sql(why))
    }
}

/// The tables of what is still to be done on a mirror beside the log.
pub(super) const WORK: [&str; 4] = ["parked", "repair", "touched", "ghost"];

/// Forgets what these tables have for a mirror.
pub(super) fn forget_work(db: &Connection, name: &str, tables: &[&str]) -> rusqlite::Result<()> {
    tables.iter().try_for_each(|table| {
        db.execute(&format!("DELETE FROM {table} WHERE mirror = ?1"), [name])
            .map(drop)
    })
}

pub(super) fn put_mend(db: &Connection, name: &str, mend: &Mend) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO repair
             (mirror, path, depth, scope, resend, trust, walked, seen, error, attempts, next_try)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        name,
        mend.path.as_bytes(),
        codec::depth_number(mend.scope.depth),
        codec::scope_number(mend.scope),
        mend.resend,
        mend.trust.number(),
        mend.progress(),
        mend.seen.map(|seq| seq as i64),
        mend.error,
        mend.attempts,
        mend.next_try
    ])
    .map(drop)
}
