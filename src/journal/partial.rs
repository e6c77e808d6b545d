//! How much of files that are written where they stand on a mirror is there already: see `mirror/resume.rs`.
//!
//! Noted now and then while such a file is on its way, and not forced onto the disk: what is told is always true, and
//! what was noted last may be lost with the power. A number of a change and of a version never comes again for
//! other bytes, so what is old does no harm.

use super::{Journal, JournalError};
use crate::change::Seq;

/// The key of `meta` under which this is.
pub(super) fn key(name: &str) -> String {
    format!("partial {name}")
}

/// One such file: the change that it is sent for, its version, and how many bytes are there.
pub type Partial = ((Seq, u64), u64);

impl Journal {
    /// Notes what is there of which files, in place of what was noted before.
    ///
    /// # Errors
    /// SQLite's.
    pub fn note_partial(&self, name: &str, files: &[Partial]) -> Result<(), JournalError> {
        let line = |((seq, version), bytes): &Partial| format!("{seq} {version} {bytes}\n");
        let text: String = files.iter().map(line).collect();
        self.note(&[(&key(name), &text)])
    }

    /// What was noted last.
    ///
    /// # Errors
    /// SQLite's.
    pub fn partial(&self, name: &str) -> Result<Vec<Partial>, JournalError> {
        let read = |line: &str| {
            let mut numbers = line.split(' ').map(|number| number.parse().ok());
            let mut next = || numbers.next().flatten();
            Some(((next()?, next()?), next()?))
        };
        let text = self.meta(&key(name))?.unwrap_or_default();
        Ok(text.lines().filter_map(read).collect())
    }
}
