//! Keeping the log short: rows go when nobody needs them any more, and the WAL goes into the database.
//!
//! The danger: a row goes that is needed after a crash. Two may need it: a mirror that has not got it, and,
//! after a power cut, the start that must know which paths the disk may have lost although mirrors have them.
//! So a row leaves when every mirror has it *and* a checkpoint covers it ([`Journal::cover`], J5).
//!
//! The other danger: one dead mirror fills the disk (J7). So the log is bounded ([`Journal::bound`]): a mirror that would
//! need a longer one is not waited for any more, the furthest behind first. Its position stays, and tells from then
//! on that it lacks something: its worker finds the gap, never replays what is behind it, and has all of it compared
//! with the source. What is dropped brings the log down to three quarters of the limit, so that not every change
//! drops something.

use super::reader::position_of;
use super::{Journal, JournalError, open_here};
use crate::change::Seq;
use rusqlite::{OpenFlags, params};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

/// When more than this (bytes) is in the WAL only, [`Journal::maintain`] moves it into the database.
pub(super) const WAL_LIMIT: u64 = 4 << 20;

/// How many rows [`Journal::maintain`] removes while it holds the lock that appends need.
const PRUNE_BATCH: i64 = 2000;

/// How many batches [`Journal::maintain`] removes in one call.
const PRUNE_BATCHES: u32 = 20;

/// So much of the state directory's file system is to stay free, or this part of it if that is less.
const FREE: (u64, u64) = (64 << 20, 20);

/// To how many bytes the log is to be brought down, if it has to be. `short`: how much of its disk is to stay free,
/// where less is. A log of less than that is not what fills the disk, and nothing is won by giving it up.
fn target(used: u64, limit: u64, short: Option<u64>) -> Option<u64> {
    match short {
        Some(floor) if used > floor => Some(used.min(limit) / 2),
        _ => (used > limit).then_some(limit / 4 * 3),
    }
}

impl Journal {
    /// Bytes that the log needs: of pages in use, and of the WAL.
    fn used(&self) -> rusqlite::Result<u64> {
        let writer = self.writer();
        let ask = |what| {
            writer
                .db
                .pragma_query_value(None, what, |row| row.get::<_, i64>(0))
        };
        let pages = ask("page_count")? - ask("freelist_count")?;
        Ok(pages.max(0) as u64 * ask("page_size")?.max(0) as u64)
    }

    /// How much of the state directory's file system is to stay free, in bytes, if less is.
    fn short_of(&self) -> Option<u64> {
        let dir = self.file.parent().unwrap_or(&self.file);
        let all = rustix::fs::statvfs(dir).ok()?;
        let floor = FREE.0.min(all.f_blocks * all.f_frsize / FREE.1);
        (all.f_bavail * all.f_frsize < floor).then_some(floor)
    }

    /// Drops the mirrors that the log cannot wait for any more, if it has more than `limit` bytes or the disk is
    /// nearly full. Gives their names.
    ///
    /// # Errors
    /// SQLite's.
    pub fn bound(&self, limit: u64) -> Result<Vec<String>, JournalError> {
        self.drop_late(limit).map_err(|why| self.sql(why))
    }

    fn drop_late(&self, limit: u64) -> rusqlite::Result<Vec<String>> {
        let used = self.used()?;
        let Some(target) = target(used, limit, self.short_of()) else {
            self.given_up().clear();
            return Ok(Vec::new());
        };
        let pins = self.pins().clone();
        let writer = self.writer();
        let first: i64 =
            writer
                .db
                .query_row("SELECT ifnull(min(seq), 0) FROM change", [], |r| r.get(0))?;
        let rows = (writer.head + 1).saturating_sub(first as u64).max(1);
        // As if all rows were of one size.
        let kept = (u128::from(rows) * u128::from(target) / u128::from(used.max(1))) as u64;
        let oldest = writer.head.saturating_sub(kept);
        let mut late = BTreeSet::new();
        for name in pins {
            let position = position_of(&writer.db, &name)?;
            if position.lacks == 0 && position.cursor < oldest {
                late.insert(name);
            }
        }
        drop(writer);
        let before = std::mem::replace(&mut *self.given_up(), late.clone());
        Ok(late.difference(&before).cloned().collect())
    }

    /// The mirrors that are not waited for.
    fn given_up(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A checkpoint is on the disk: all that is recorded up to `seq` is there in the source too, and durable.
    pub fn cover(&self, seq: Seq) {
        self.covered.fetch_max(seq, Ordering::AcqRel);
    }

    /// Removes rows that every mirror has and a checkpoint covers, a bounded number, and moves a long WAL into
    /// the database. For a thread of its own, every now and then: appends wait for a batch of removals at
    /// most.
    ///
    /// # Errors
    /// SQLite's; [`JournalError::Lost`].
    pub fn maintain(&self) -> Result<(), JournalError> {
        for _ in 0..PRUNE_BATCHES {
            if !self.prune().map_err(|why| self.sql(why))? {
                break;
            }
        }
        if self.wal.metadata().is_ok_and(|m| m.len() > WAL_LIMIT) {
            self.is_at_its_place()?;
            self.checkpoint_wal().map_err(|why| self.sql(why))?;
        }
        Ok(())
    }

    /// Removes one batch; says whether there may be more. The newest row stays: the next number
    /// comes from it.
    fn prune(&self) -> rusqlite::Result<bool> {
        let pins = self.pins().clone();
        let covered = self.covered.load(Ordering::Acquire);
        let given_up = self.given_up().clone();
        let writer = self.writer();
        let mut everywhere = writer.head.saturating_sub(1).min(covered);
        for name in pins {
            let position = position_of(&writer.db, &name)?;
            // What a mirror lacks that the log has dropped a sync will bring: nothing is kept for it.
            if position.lacks == 0 && !given_up.contains(&name) {
                everywhere = everywhere.min(position.cursor);
            }
        }
        let removed = writer.db.execute(
            "DELETE FROM change WHERE seq IN
                 (SELECT seq FROM change WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
            params![everywhere as i64, PRUNE_BATCH],
        )?;
        Ok(removed as i64 == PRUNE_BATCH)
    }

    /// On a connection of its own and passive: neither appends nor reads wait for it. True if there was so much
    /// to move that it was worth it: the first append behind a checkpoint begins the WAL anew, and waits for the
    /// disk. The file's length does not tell, as it stays when the WAL begins anew.
    pub(super) fn checkpoint_wal(&self) -> rusqlite::Result<bool> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = open_here(&self.file, flags)?;
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        let page: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = |row: &rusqlite::Row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?);
        let waiting = db.query_row("PRAGMA wal_checkpoint(NOOP)", [], pages)?;
        let worth_it = waiting.saturating_mul(page) > WAL_LIMIT as i64;
        if worth_it {
            db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        Ok(worth_it)
    }
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_short_log_is_given_up_for_no_disk_that_others_have_filled() {
        let (limit, floor) = (2000, 64);
        assert_eq!(target(1000, limit, None), None);
        assert_eq!(target(2001, limit, None), Some(1500));
        // However often it is asked, it comes to rest.
        assert_eq!(target(1000, limit, Some(floor)), Some(500));
        assert_eq!(target(64, limit, Some(floor)), None);
        assert_eq!(target(3000, limit, Some(floor)), Some(1000));
    }
}
