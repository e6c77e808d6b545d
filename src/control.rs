//! The running daemon's commands: a Unix socket, one JSON object a line each way.
//!
//! A request is `{"command":"status"}`; an answer `{"ok":...}` or `{"error":"one line"}`. Further
//! requests may follow on the same connection.
//!
//! Dangers, and what answers them:
//! - *Somebody else gives commands.* The socket is born with mode 0600 (fchmod on the descriptor,
//!   before bind(2) makes the file: there is no moment with another mode, and the process's umask, which
//!   all threads share, stays alone), and every caller's user id is checked (SO_PEERCRED): root, or
//!   the daemon's own.
//! - *Two daemons.* The socket file of a dead daemon is in the way; that of a living one must not be
//!   taken away. So it is removed only if nobody answers, and the question, the removal and the bind
//!   happen under a lock on the directory: of two that start together, the second finds the first's.
//!   At the end the file is removed only if it is still the one that was made here.
//! - *A client that hangs, floods or goes away.* A thread each, at most [`MAX_CLIENTS`]; a line is at most
//!   [`MAX_REQUEST`] long and must come within a time; a command that waits learns that its client hung up.
//! - *Stopping.* The listener and every connection's reading side are shut down, which wakes their
//!   threads; an answer that is being written is still delivered.

mod client;
mod server;

pub use client::{ControlError, call};
pub use server::{ControlServer, Handler, MAX_CLIENTS, MAX_REQUEST, StartError};

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The name of the socket in `run_dir`.
pub const SOCKET_NAME: &str = "proxyfs.sock";

/// How many tasks are listed where a request does not say.
pub const DEFAULT_TASKS: u64 = 1000;

/// Where the socket of a daemon with that `run_dir` is.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET_NAME)
}

/// What a client asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlRequest {
    /// The answer is that of [`Status::to_json`](crate::status::Status::to_json).
    Status,
    /// The open tasks, as [`Task::list_to_json`](crate::status::Task::list_to_json) has them.
    Tasks {
        /// Of this mirror only.
        mirror: Option<String>,
        /// At most so many.
        limit: u64,
    },
    /// Answered when all that was logged before is on the mirror(s).
    Wait {
        /// On this mirror only.
        mirror: Option<String>,
        /// An error after so many seconds.
        timeout_seconds: Option<u64>,
    },
    /// The mirror gets nothing until it is resumed.
    Pause {
        /// Which.
        mirror: String,
    },
    /// The mirror goes on.
    Resume {
        /// Which.
        mirror: String,
    },
    /// What failed is tried again at once.
    TryAgain {
        /// On this mirror only.
        mirror: Option<String>,
    },
    /// All of the mirror is made like the source. Answered at once: `sync` in the status tells how far it is.
    Sync {
        /// Which.
        mirror: String,
        /// What only the mirror has is removed.
        delete: bool,
        /// Every file is sent or compared byte by byte.
        checksum: bool,
    },
    /// A mirror is compared with the source. Answered when that is done: `compared` entries, `bytes` that were read
    /// back, `differences` with `path` and `what`, and how many `further` ones there are.
    Verify {
        /// Which.
        mirror: String,
        /// Byte by byte.
        checksum: bool,
    },
    /// A test mail is sent; the answer says how that went.
    TestMail,
    /// What is known of a mirror that is not configured any more is forgotten.
    Forget {
        /// Which.
        mirror: String,
    },
    /// The daemon ends gracefully.
    Stop,
    /// The daemon reads its configuration again.
    Reload,
}

impl ControlRequest {
    /// The request as it is sent.
    pub fn to_json(&self) -> Value {
        match self {
            ControlRequest::Status => json!({"command": "status"}),
            ControlRequest::Tasks { mirror, limit } => {
                json!({"command": "tasks", "mirror": mirror, "limit": limit})
            }
            ControlRequest::Wait {
                mirror,
                timeout_seconds,
            } => json!({"command": "wait", "mirror": mirror, "timeout_seconds": timeout_seconds}),
            ControlRequest::Pause { mirror } => json!({"command": "pause", "mirror": mirror}),
            ControlRequest::Resume { mirror } => json!({"command": "resume", "mirror": mirror}),
            ControlRequest::TryAgain { mirror } => {
                json!({"command": "try-again", "mirror": mirror})
            }
            ControlRequest::Sync {
                mirror,
                delete,
                checksum,
            } => {
                json!({"command": "sync", "mirror": mirror, "delete": delete, "checksum": checksum})
            }
            ControlRequest::Verify { mirror, checksum } => {
                json!({"command": "verify", "mirror": mirror, "checksum": checksum})
            }
            ControlRequest::TestMail => json!({"command": "test-mail"}),
            ControlRequest::Forget { mirror } => json!({"command": "forget", "mirror": mirror}),
            ControlRequest::Stop => json!({"command": "stop"}),
            ControlRequest::Reload => json!({"command": "reload"}),
        }
    }

    /// Reads a request. Unknown fields are passed over.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn from_json(value: &Value) -> Result<ControlRequest, String> {
        let command = value
            .get("command")
            .and_then(Value::as_str)
            .ok_or("a request is an object with a command, such as {\"command\":\"status\"}")?;
        let mirror = optional(value, "mirror", |v| v.as_str().map(str::to_string))?;
        let named = || {
            mirror
                .clone()
                .ok_or(format!("`{command}` needs a `mirror`"))
        };
        Ok(match command {
            "status" => ControlRequest::Status,
            "tasks" => ControlRequest::Tasks {
                mirror,
                limit: optional(value, "limit", Value::as_u64)?.unwrap_or(DEFAULT_TASKS),
            },
            "wait" => ControlRequest::Wait {
                mirror,
                timeout_seconds: optional(value, "timeout_seconds", Value::as_u64)?,
            },
            "pause" => ControlRequest::Pause { mirror: named()? },
            "resume" => ControlRequest::Resume { mirror: named()? },
            "try-again" => ControlRequest::TryAgain { mirror },
            "sync" => ControlRequest::Sync {
                mirror: named()?,
                delete: optional(value, "delete", Value::as_bool)?.unwrap_or(false),
                checksum: optional(value, "checksum", Value::as_bool)?.unwrap_or(false),
            },
            "verify" => ControlRequest::Verify {
                mirror: named()?,
                checksum: optional(value, "checksum", Value::as_bool)?.unwrap_or(false),
            },
            "test-mail" => ControlRequest::TestMail,
            "forget" => ControlRequest::Forget { mirror: named()? },
            "stop" => ControlRequest::Stop,
            "reload" => ControlRequest::Reload,
            _ => {
                return Err(
                    "unknown command: known are status, tasks, wait, pause, resume, try-again, sync, verify, \
                     forget, stop, reload"
                        .to_string(),
                );
            }
        })
    }
}

/// A field that may be missing or null.
fn optional<T>(
    value: &Value,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, String> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(field) => read(field)
            .map(Some)
            .ok_or(format!("`{name}` is not of the right kind")),
    }
}

#[cfg(test)]
mod tests;
