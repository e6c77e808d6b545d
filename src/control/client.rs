//! The client's half of the control socket: one request, one answer, within a time.
//!
//! A daemon that is not running is no error of the same kind as one that does not answer, so
//! [`ControlError`] tells them apart: `status` reads the journal itself then.

use super::ControlRequest;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde_json::Value;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Why a command got no good answer.
#[derive(Debug)]
pub enum ControlError {
    /// Nobody listens: there is no socket, or the one that made it is gone.
    NotRunning {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// This user may not give commands.
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed otherwise.
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The daemon did not answer in time.
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The daemon hung up without an answer: it stopped meanwhile.
    HungUp,
    /// The daemon said no; its words.
    Refused(String),
    /// What came is no answer.
    NoAnswer(String),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::NotRunning { path } => write!(
                f,
                "the daemon is not running (nobody answers at {}): start it with `proxyfs run`, or \
                 name its configuration with --config FILE",
                path.display()
            ),
            ControlError::Denied { path } => write!(
                f,
                "not allowed to use {}: be root, or the user that runs the daemon",
                path.display()
            ),
            ControlError::Io { path, cause } => {
                write!(
                    f,
                    "cannot talk to the daemon at {}: {cause}",
                    path.display()
                )
            }
            ControlError::TimedOut { after } => write!(
                f,
                "the daemon did not answer within {} s: see its log",
                after.as_secs_f32()
            ),
            ControlError::HungUp => f.write_str("the daemon ended before it answered: see its log"),
            ControlError::Refused(why) => f.write_str(why),
            ControlError::NoAnswer(why) => write!(
                f,
                "what the daemon sent is no answer ({why}): is it of another version? Restart it"
            ),
        }
    }
}

impl std::error::Error for ControlError {}

/// Asks the daemon whose socket is at `path`, and waits for its answer: for ever without a `timeout`.
///
/// # Errors
/// See [`ControlError`].
pub fn call(
    path: &Path,
    request: &ControlRequest,
    timeout: Option<Duration>,
) -> Result<Value, ControlError> {
    let started = Instant::now();
    let left = || match timeout {
        None => Ok(None),
        Some(all) => match all.checked_sub(started.elapsed()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(ControlError::TimedOut { after: all }),
        },
    };
    let failed = |cause: io::Error| match (cause.kind(), timeout) {
        (io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused, _) => {
            ControlError::NotRunning { path: path.into() }
        }
        (io::ErrorKind::PermissionDenied, _) => ControlError::Denied { path: path.into() },
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(after)) => {
            ControlError::TimedOut { after }
        }
        (io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset, _) => ControlError::HungUp,
        _ => ControlError::Io {
            path: path.into(),
            cause,
        },
    };

    let mut stream = connect(path, left()?).map_err(failed)?;
    let mut line = request.to_json().to_string();
    line.push('\n');
    stream.set_write_timeout(left()?).map_err(failed)?;
    // A daemon that has no room for more clients answers and hangs up at once: read that too.
    let sent = stream.write_all(line.as_bytes());

    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while !answer.contains(&b'\n') {
        stream.set_read_timeout(left()?).map_err(failed)?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
        if answer.len() > MAX_ANSWER {
            return Err(ControlError::NoAnswer("it does not end".to_string()));
        }
    }
    if answer.is_empty() {
        sent.map_err(failed)?;
        return Err(ControlError::HungUp);
    }
    understand(&answer)
}

fn understand(answer: &[u8]) -> Result<Value, ControlError> {
    let value: Value =
        serde_json::from_slice(answer).map_err(|e| ControlError::NoAnswer(e.to_string()))?;
    match (value.get("ok"), value.get("error").and_then(Value::as_str)) {
        (Some(ok), _) => Ok(ok.clone()),
        (None, Some(error)) => Err(ControlError::Refused(error.to_string())),
        (None, None) => Err(ControlError::NoAnswer("neither ok nor error".to_string())),
    }
}

/// Connects within a time: a daemon that is stuck may have a full queue, and connect(2) waits then.
pub(super) fn connect(path: &Path, timeout: Option<Duration>) -> io::Result<UnixStream> {
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, timeout)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
