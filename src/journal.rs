//! The journal.

use crate::change::{Change, Seq};
use std::fmt;

/// What the file system side needs of the log.
pub trait Recorder: Send + Sync {
    /// Puts one change into the log and wakes the mirrors' workers. Returns when the record is in the
    /// log (J1); calls follow one another in the order of the log (J2).
    ///
    /// # Errors
    /// The record could not be written (disk full, I/O error): the change is not in the log.
    fn record(&self, change: &Change) -> Result<Seq, RecordError>;
}

/// Why a change could not be recorded: one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError(pub String);

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the change could not be recorded: {}", self.0)
    }
}

impl std::error::Error for RecordError {}
