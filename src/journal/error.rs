//! What can be wrong with a journal, in words that say what to do.

use super::{DecodeError, SCHEMA_VERSION};
use crate::change::Seq;
use rusqlite::ErrorCode;
use std::fmt;
use std::path::PathBuf;

/// What can be wrong with a journal.
#[derive(Debug)]
pub enum JournalError {
    /// There is none at this path.
    Missing(PathBuf),
    /// A newer version of the program wrote it.
    TooNew {
        /// The database.
        file: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// It holds a row that is no change.
    Row {
        /// Which row.
        seq: Seq,
        /// Why.
        why: DecodeError,
    },
    /// Its pages do not fit together.
    Damaged {
        /// The database.
        file: PathBuf,
        /// What SQLite found.
        what: String,
    },
    /// It is not at its place any more: what happened, and the way out.
    Lost(String),
    /// A file beside SQLite's could not be opened or synced.
    File {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        why: std::io::Error,
    },
    /// SQLite says no.
    Sqlite {
        /// The database.
        file: PathBuf,
        /// Its reason.
        why: rusqlite::Error,
    },
}

/// What to do with a damaged journal.
pub(super) const WAY_OUT: &str = "check the disk, run `proxyfs rebuild` while the daemon is stopped, and start it again: a \
     new journal begins, and each mirror is compared with the source";

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Missing(file) => {
                write!(f, "{}: there is no journal here yet", file.display())
            }
            JournalError::TooNew { file, found } => write!(
                f,
                "{}: written by a newer ProxyFS (journal schema {found}, this program knows \
                 {SCHEMA_VERSION}): install that version again",
                file.display()
            ),
            JournalError::Row { seq, why } => write!(
                f,
                "journal row {seq} cannot be read ({why}): the journal is damaged; {WAY_OUT}"
            ),
            JournalError::Sqlite { file, why }
                if matches!(
                    why.sqlite_error_code(),
                    Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
                ) =>
            {
                write!(
                    f,
                    "{}: the journal is damaged ({why}); {WAY_OUT}",
                    file.display()
                )
            }
            JournalError::Damaged { file, what } => write!(
                f,
                "{}: the journal is damaged ({what}); {WAY_OUT}",
                file.display()
            ),
            JournalError::Lost(why) => f.write_str(why),
            JournalError::File { file, why } => write!(f, "{}: {why}", file.display()),
            JournalError::Sqlite { file, why }
                if why.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                write!(
                    f,
                    "{}: a daemon has it, one that is starting or ending, or whose socket is gone: try again \
                     in a moment, and if that does not help restart it",
                    file.display()
                )
            }
            JournalError::Sqlite { file, why } => write!(f, "{}: {why}", file.display()),
        }
    }
}

impl std::error::Error for JournalError {}
