//! Mirrors that are held before a mass deletion: why, and up to where a person let them through.
//!
//! Both are on the disk before anything follows from them: a held mirror stays held whatever is killed then.

use super::{Journal, JournalError};
use crate::change::Seq;

/// The keys of `meta` under which these two are: why, and up to where.
pub(super) fn keys(name: &str) -> [String; 2] {
    [format!("held {name}"), format!("through {name}")]
}

impl Journal {
    /// Pauses a mirror since more would be deleted there at once than may be: why, in words. On the disk when this
    /// returns.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn hold(&self, name: &str, why: &str) -> Result<(), JournalError> {
        let [held, _] = keys(name);
        self.set_meta(&held, why)?;
        self.set_paused(name, true)
    }

    /// Why a mirror is held, if it is.
    ///
    /// # Errors
    /// SQLite's.
    pub fn held(&self, name: &str) -> Result<Option<String>, JournalError> {
        let [held, _] = keys(name);
        let why = self.meta(&held)?;
        Ok(why.filter(|why| !why.is_empty()))
    }

    /// Lets a mirror that is held go on, with all that is in the log by now.
    ///
    /// # Errors
    /// SQLite's or the disk's.
    pub fn let_through(&self, name: &str) -> Result<(), JournalError> {
        if self.held(name)?.is_some() {
            let [held, through] = keys(name);
            self.note(&[(&through, &self.head().to_string()), (&held, "")])?;
            self.sync()?;
        }
        Ok(())
    }

    /// Up to where deletions on a mirror were let through.
    ///
    /// # Errors
    /// SQLite's.
    pub fn through(&self, name: &str) -> Result<Seq, JournalError> {
        let [_, through] = keys(name);
        let seq = self.meta(&through)?;
        Ok(seq.and_then(|seq| seq.parse().ok()).unwrap_or(0))
    }
}
