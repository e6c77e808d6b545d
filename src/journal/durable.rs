//! What is in the log comes onto the disk, or the log is closed.
//!
//! * *A fsync fails, and the next one succeeds.* The kernel tells of a page that could not be written once. Then it takes
//!   it for written, so the second fsync says yes, and the page is not on the disk: a worker that asked again would
//!   send what a power cut takes from the log (J3). So a fsync that failed ruins the journal (J6): nothing is
//!   recorded and nothing announced any more, and `rebuild` is the way out.
//! * *Two workers ask at once, and one is told of the failure.* The other would be told that all is well. So one at a
//!   time asks the disk; who waited meanwhile for one that began after him has what he wanted.
//! * *The daemon is started again on such a journal.* It reads what the memory still has, and the disk has not. So what is
//!   left in a WAL goes into the database at the start, which writes it once more and waits for the disk.
//! * *SQLite's own fsync fails.* It does not go on with its checkpoint then, and writes all of it again at the next;
//!   and the descriptor here is told of the same failure by itself.

use super::{Journal, JournalError};
use crate::fault;
use rusqlite::Connection;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Who asked for the disk, and who was answered.
#[derive(Default)]
pub(super) struct Durable {
    asked: AtomicU64,
    /// What was asked up to here is answered.
    done: Mutex<u64>,
}

impl Journal {
    /// Makes everything that is in the log durable: on the disk when it returns.
    ///
    /// # Errors
    /// The disk's, now or ever before: the log is closed then.
    pub fn sync(&self) -> Result<(), JournalError> {
        let durable = &self.durable;
        let mine = durable.asked.fetch_add(1, Ordering::AcqRel) + 1;
        {
            // A number: whole whoever panics.
            let mut done = durable.done.lock().unwrap_or_else(PoisonError::into_inner);
            if *done < mine {
                self.is_sound()?;
                let upto = durable.asked.load(Ordering::Acquire);
                if let Err(why) = self.wal.sync_data() {
                    self.ruin(format!(
                        "{}: what was recorded could not be put on the disk ({why})",
                        self.file.with_extension("db-wal").display()
                    ));
                    return self.is_sound();
                }
                *done = upto;
            }
        }
        fault::point("journal.durable");
        Ok(())
    }
}

/// Puts what an earlier run has left in the WAL into the database, on the disk.
pub(super) fn write_afresh(db: &Connection) -> rusqlite::Result<()> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
