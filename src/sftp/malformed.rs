//! What can be wrong with a packet that a server sent. All of it ends the session: a server that is
//! out of step once cannot be trusted to say which request it answers.

use super::SessionError;
use std::fmt;

/// What is wrong with a packet that a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Its length word tells more than [`MAX_PACKET`](super::wire::MAX_PACKET), or nothing; these were the bytes of it.
    Length([u8; 4]),
    /// It ends before the named part of it does.
    Short(&'static str),
    /// It is of this type, which is no answer to what was asked.
    Type {
        /// SSH_FXP_*
        got: u8,
        /// What the request can be answered with.
        want: &'static str,
    },
    /// "OK" was answered where a value was asked for.
    OkWithoutValue(&'static str),
    /// It tells more entries than it can hold, or not as many as there must be.
    Count(u32),
    /// Its attributes have unknown parts: what follows cannot be read.
    AttrFlags(u32),
    /// A handle longer than 256 bytes.
    HandleLength(usize),
    /// More data than was asked for.
    TooMuchData {
        /// Bytes asked for.
        asked: u32,
        /// Bytes that came.
        came: usize,
    },
    /// It answers a request that was not made, or was answered already.
    UnknownId(u32),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Length(word) if word.iter().all(|b| b.is_ascii_graphic() || *b == b' ') => {
                write!(
                    f,
                    "text starting with \"{}\" came in place of a packet (does the account's shell print something at login?)",
                    String::from_utf8_lossy(word)
                )
            }
            Malformed::Length(word) => write!(
                f,
                "a packet of {} bytes was announced",
                u32::from_be_bytes(*word)
            ),
            Malformed::Short(part) => write!(f, "a packet ends within its {part}"),
            Malformed::Type { got, want } => {
                write!(f, "a packet of type {got} came in place of {want}")
            }
            Malformed::OkWithoutValue(want) => write!(f, "\"OK\" came in place of {want}"),
            Malformed::Count(count) => write!(f, "a packet tells of {count} names"),
            Malformed::AttrFlags(flags) => {
                write!(f, "attributes with unknown parts came (flags {flags:#x})")
            }
            Malformed::HandleLength(len) => write!(f, "a handle of {len} bytes came"),
            Malformed::TooMuchData { asked, came } => {
                write!(f, "{asked} bytes were asked for and {came} came")
            }
            Malformed::UnknownId(id) => {
                write!(f, "an answer came to request {id}, which is not under way")
            }
        }
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for SessionError {
    fn from(bad: Malformed) -> SessionError {
        SessionError::Protocol(bad.to_string())
    }
}
