//! What keeps a mirror from getting a change, and what is done about it.
//!
//! *Connection*: the mirror can't be reached or the connection broke; the worker backs off and tries
//! again for ever. *Mirror*: something is wrong there that a person has to put right; it is retried
//! too, but seldom. In both cases the log waits: nothing is ever skipped.

pub use super::marker::MarkerTrouble;
use crate::change::{Change, Seq};
use crate::journal::JournalError;
use crate::sftp::session::ConnectError;
use crate::sftp::{SessionError, Status, code};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a worker's session ended.
#[derive(Debug)]
pub enum MirrorError {
    /// No session could be made.
    Connect(ConnectError),
    /// The session broke.
    Session(SessionError),
    /// The passphrase of the keys can't be read.
    Passphrase {
        /// The file it should be in.
        file: PathBuf,
        /// The operating system's reason.
        why: String,
    },
    /// A private key may be read or changed by others.
    KeyMode {
        /// Its file.
        file: PathBuf,
        /// The file's mode.
        mode: u32,
    },
    /// No key is named, and none of the usual ones exists.
    NoKey,
    /// The mirror's directory is not as it must be.
    Base {
        /// The directory.
        path: String,
        /// What is wrong with it.
        what: BaseTrouble,
    },
    /// The source held files before the mirror was added, and the mirror's directory is empty.
    NeedsSync {
        /// The directory.
        path: String,
    },
    /// The log does not have any more what the mirror lacks.
    Lacks {
        /// How many changes.
        changes: u64,
    },
    /// The mirror refused a change.
    Refused {
        /// Which one.
        seq: Seq,
        /// In words.
        change: String,
        /// What the server said.
        status: Status,
    },
    /// The mirror's directory is not the one that it was, or not this source's.
    Marker {
        /// The directory.
        path: String,
        /// What its marker tells.
        what: MarkerTrouble,
    },
    /// What is not as it should be there could not be made like the source.
    Unrepaired {
        /// What the mirror did not take.
        path: String,
        /// What the server said.
        status: Status,
    },
    /// What is there could not be read to be compared.
    Unread {
        /// What.
        path: String,
        /// What the server said.
        status: Status,
    },
    /// More would be deleted at once than may be: in words.
    TooMuch(String),
    /// More changes than can be kept are set aside.
    TooManyParked {
        /// Why the first of them was refused.
        first: Option<String>,
    },
    /// A file of the source can't be read.
    Source {
        /// In words.
        change: String,
        /// The operating system's reason.
        why: io::Error,
    },
    /// The journal can't be read or written.
    Journal(JournalError),
}

/// What can be wrong with a mirror's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseTrouble {
    /// There is nothing at that path.
    Missing,
    /// Something else is.
    NotADirectory,
    /// ProxyFS's own directory can't be made in it.
    NotWritable(Status),
    /// The server does not let us look.
    Other(Status),
}

/// How an error is met (rule R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Back off exponentially, for ever.
    Connection,
    /// A person has to do something: retried at the slow end.
    Mirror,
}

impl MirrorError {
    /// A refused change.
    pub fn refused(seq: Seq, change: &Change, status: Status) -> MirrorError {
        MirrorError::Refused {
            seq,
            change: change.to_string(),
            status,
        }
    }

    /// How it is met.
    pub fn class(&self) -> Class {
        match self {
            MirrorError::Connect(why) if why.is_connection() => Class::Connection,
            MirrorError::Connect(_)
            | MirrorError::Passphrase { .. }
            | MirrorError::NoKey
            | MirrorError::KeyMode { .. }
            | MirrorError::Base { .. }
            | MirrorError::NeedsSync { .. }
            | MirrorError::Lacks { .. }
            | MirrorError::Marker { .. }
            | MirrorError::Unrepaired { .. }
            | MirrorError::Unread { .. }
            | MirrorError::TooManyParked { .. }
            | MirrorError::TooMuch(_)
            | MirrorError::Refused { .. } => Class::Mirror,
            MirrorError::Session(_) | MirrorError::Source { .. } | MirrorError::Journal(_) => {
                Class::Connection
            }
        }
    }
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorError::Connect(why) => write!(f, "{why}"),
            MirrorError::Session(why) => write!(f, "{why}"),
            MirrorError::Passphrase { file, why } => {
                write!(f, "passphrase_file {}: {why}", file.display())
            }
            MirrorError::KeyMode { file, mode } => write!(
                f,
                "the private key {0} is not used, since others may read or change it (mode {mode:04o}): chmod 600 {0}",
                file.display()
            ),
            MirrorError::NoKey => f.write_str(
                "there is no key to log in with: make one (ssh-keygen -t ed25519) or name one with `key`",
            ),
            MirrorError::Base { path, what } => match what {
                BaseTrouble::Missing => write!(
                    f,
                    "the mirror's directory {path} does not exist: create it there, owned by the \
                     login user (if its disk is not mounted, mount it first)"
                ),
                BaseTrouble::NotADirectory => {
                    write!(f, "the mirror's path {path} is not a directory: correct `path`")
                }
                BaseTrouble::NotWritable(status) if status.code == code::PERMISSION_DENIED => write!(
                    f,
                    "the mirror's directory {path} is not writable for the login user ({status}): \
                     chown it there"
                ),
                BaseTrouble::NotWritable(status) => write!(
                    f,
                    "nothing can be made in the mirror's directory {path} ({status}): see that its \
                     disk is not full and not read-only"
                ),
                BaseTrouble::Other(status) => {
                    write!(f, "the mirror's directory {path} cannot be looked at: {status}")
                }
            },
            MirrorError::NeedsSync { path } => write!(
                f,
                "the source held files when this mirror was added, and {path} there is empty: {SYNC}"
            ),
            MirrorError::Lacks { changes } => write!(
                f,
                "{changes} changes that this mirror lacks are not in the log any more (it was not \
                 configured meanwhile): {SYNC}"
            ),
            MirrorError::Refused { seq, change, status } => {
                write!(f, "change {seq} ({change}) was refused: {status}{}", advice(status))
            }
            MirrorError::Marker { path, what } => match what {
                MarkerTrouble::Missing => write!(
                    f,
                    "the marker that was written to {path} is gone: if the mirror's disk is not mounted, \
                     mount it and run `proxyfs try-again`; if it was wiped, {SYNC}"
                ),
                MarkerTrouble::Older { found, written } => write!(
                    f,
                    "{path} is older than it was: its marker is of change {found}, and one of {written} was \
                     written; it was restored from a backup, or its host lost power: {SYNC}"
                ),
                MarkerTrouble::Newer { found, written } => write!(
                    f,
                    "{path} is ahead of the log: its marker is of change {found}, and none behind {written} \
                     was written from here; two mirrors have the same path, or state_dir was restored from \
                     a backup: {SYNC}"
                ),
                MarkerTrouble::Foreign { source } => write!(
                    f,
                    "{path} is the mirror of another source ({source}): correct `path`; if it is to be this \
                     one's from now on, remove .proxyfs there, and {SYNC}"
                ),
            },
            MirrorError::Unrepaired { path, status } => write!(
                f,
                "{path} is not like the source there, and cannot be made so: {status}; see that nothing else \
                 is in its way (a directory with files that only the mirror has, or that were excluded later, is not removed), and that the \
                 login user may write there"
            ),
            MirrorError::Unread { path, status } => write!(
                f,
                "{path} cannot be read there, so the mirror was not compared: {status}; see that the login user may \
                 read it"
            ),
            MirrorError::TooManyParked { first } => {
                write!(
                    f,
                    "more than {} changes are parked or wait behind parked ones (see `proxyfs tasks`)",
                    super::held::MOST
                )?;
                match first {
                    Some(why) => write!(f, "; the first: {why}"),
                    None => Ok(()),
                }
            }
            MirrorError::Source { change, why } => {
                write!(f, "{change}: the source's file cannot be read: {why}")
            }
            MirrorError::TooMuch(why) => f.write_str(why),
            MirrorError::Journal(why) => write!(f, "{why}"),
        }
    }
}

/// What to do where a mirror is not what it was.
const SYNC: &str = "run `proxyfs sync` for this mirror, which makes it like the source";

/// What to do about a refusal.
fn advice(status: &Status) -> &'static str {
    match status.code {
        code::PERMISSION_DENIED => "; give the login user the right to write there",
        code::FAILURE => {
            "; see that the mirror's disk is not full or read-only, and that nothing else stands at that path"
        }
        _ => "",
    }
}

impl std::error::Error for MirrorError {}

impl From<SessionError> for MirrorError {
    fn from(why: SessionError) -> MirrorError {
        MirrorError::Session(why)
    }
}

impl From<JournalError> for MirrorError {
    fn from(why: JournalError) -> MirrorError {
        MirrorError::Journal(why)
    }
}

impl From<ConnectError> for MirrorError {
    fn from(why: ConnectError) -> MirrorError {
        MirrorError::Connect(why)
    }
}
