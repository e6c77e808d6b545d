//! Reading rows from the log, as far as the window and the guard allow.

use super::job::{Job, Stage};
use super::{LOAD, Pipeline, WINDOW};
use crate::change::Change;
use crate::journal::Row;
use crate::mirror::errors::MirrorError;
use crate::sftp::Remote;

impl<R: Remote> Pipeline<'_, R> {
    /// Whether rows are in the log that could be loaded now.
    pub(super) fn cursor_has_news(&self) -> bool {
        !self.is_halted()
            && self.too_much.is_none()
            && self.window.len() + LOAD <= WINDOW
            && self.loaded < self.setup.journal.head()
    }

    /// Reads what there is room for.
    ///
    /// # Errors
    /// The journal's; and what is next is too much, when everything before it is done.
    pub(super) fn load(&mut self) -> Result<(), MirrorError> {
        while self.cursor_has_news() {
            let rows = self.setup.reader.rows(self.loaded, LOAD)?;
            if rows.is_empty() {
                break; // not visible to this connection yet: the next turn has them
            }
            // The log has outgrown its limit, and has dropped what this mirror lacks: nothing behind the gap may
            // be replayed.
            let first = rows.first().map_or(0, |row| row.seq);
            if first > self.loaded + 1 {
                let changes = first - self.loaded - 1;
                return Err(MirrorError::Lacks { changes });
            }
            for row in rows {
                let source = self.setup.source;
                let stopped = self.setup.guard.borrow_mut().stops(&row, source);
                let look = |why| MirrorError::Source {
                    change: row.change.to_string(),
                    why,
                };
                if let Some(why) = stopped.map_err(look)? {
                    // On the disk before anything else is sent, so that it holds whatever is cut.
                    self.setup.journal.hold(self.setup.name, &why)?;
                    self.too_much = Some(why);
                    break;
                }
                self.loaded = row.seq;
                self.by_path.came(&row);
                let job = self.new_job(row);
                self.window.push_back(job);
            }
        }
        match &self.too_much {
            Some(why) if self.window.is_empty() && self.remote.outstanding() == 0 => {
                Err(MirrorError::TooMuch(why.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A row as it begins on this mirror.
    pub(super) fn new_job(&self, row: Row) -> Job {
        let linked = matches!(row.change, Change::Content { linked: true, .. });
        let mut job = Job::new(row);
        if linked && !self.setup.rules.hardlink {
            // Each name is a file of its own there.
            (job.anew, job.stage) = (true, Stage::Waiting);
        }
        job
    }
}
