//! Why a mirror could not be connected: what happened, on which host, and what to do next.
//!
//! The danger: a matter that only a person can settle, retried into silence, or one that settles
//! itself, mailed about at night. So each variant says which of the two it is
//! ([`ConnectError::is_connection`], a match without `_`), and each shows as one line.

use super::known_hosts::{HostKey, Place};
use super::login::KeyProblem;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no session. `host` is the name as it was configured, with the port unless it is 22.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConnectError {
    /// The name has no address (now).
    NameNotResolved { host: String, why: String },
    /// No way leads there, or no socket could be made.
    Unreachable { host: String, why: String },
    /// Nothing listens on the port.
    Refused { host: String },
    /// No answer in time, while doing `step`.
    TimedOut {
        host: String,
        step: &'static str,
        after: Duration,
    },
    /// The connection broke while doing `step`.
    Lost {
        host: String,
        step: &'static str,
        why: String,
    },
    /// [`Abort::abort`](super::session::Abort::abort) was called.
    Aborted { host: String },

    /// No known_hosts file tells of the host. `line` is what to add to one, once the fingerprint is
    /// proved right; `files` are the ones that were read.
    UnknownHostKey {
        host: String,
        key: HostKey,
        line: String,
        files: Vec<PathBuf>,
    },
    /// The host showed another key than the one at `place`.
    ChangedHostKey {
        host: String,
        key: HostKey,
        place: Place,
    },
    /// The host showed a key that is marked as revoked at `place`.
    RevokedHostKey {
        host: String,
        key: HostKey,
        place: Place,
    },
    /// A known_hosts file is there and cannot be read.
    KnownHostsUnreadable { file: PathBuf, why: String },
    /// A key file cannot be used.
    Key { path: PathBuf, problem: KeyProblem },
    /// The ssh-agent cannot be asked, or has no keys.
    Agent { why: String },
    /// The server takes none of the keys; `tried` names them.
    LoginRefused {
        host: String,
        user: String,
        tried: String,
    },
    /// An SSH server that takes no connection from here for a while; `said` is how it put it.
    TurnedAway { host: String, said: String },
    /// What listens there is no SSH server; `said` is how it began.
    NotSsh { host: String, said: String },
    /// The server and we have no algorithm in common, or it breaks the protocol.
    NoAgreement { host: String, why: String },
    /// The login works, but there is no SFTP behind it.
    NoSftp {
        host: String,
        user: String,
        why: String,
    },
    /// The server does not speak version 3 of SFTP.
    WrongVersion { host: String, version: u32 },
}

impl ConnectError {
    /// Whether it is a matter of the connection, which is to be tried again with increasing pauses.
    /// Everything else is a matter of the setup, which a person must settle.
    pub fn is_connection(&self) -> bool {
        match self {
            ConnectError::NameNotResolved { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Refused { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Lost { .. }
            | ConnectError::TurnedAway { .. }
            | ConnectError::Aborted { .. } => true,
            ConnectError::UnknownHostKey { .. }
            | ConnectError::ChangedHostKey { .. }
            | ConnectError::RevokedHostKey { .. }
            | ConnectError::KnownHostsUnreadable { .. }
            | ConnectError::Key { .. }
            | ConnectError::Agent { .. }
            | ConnectError::LoginRefused { .. }
            | ConnectError::NotSsh { .. }
            | ConnectError::NoAgreement { .. }
            | ConnectError::NoSftp { .. }
            | ConnectError::WrongVersion { .. } => false,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::NameNotResolved { host, why } => write!(
                f,
                "{host}: the name cannot be resolved ({why}): check the setting host and the name service"
            ),
            ConnectError::Unreachable { host, why } => write!(
                f,
                "{host} cannot be reached ({why}): check the network and the host"
            ),
            ConnectError::Refused { host } => write!(
                f,
                "{host} refuses the connection: check that sshd runs there and that the port is right"
            ),
            ConnectError::TimedOut { host, step, after } => write!(
                f,
                "{host} did not answer within {} s while {step}: check the host, the network and firewalls",
                after.as_secs_f32().ceil()
            ),
            ConnectError::Lost { host, step, why } => write!(
                f,
                "{host} broke the connection while {step} ({why}): look into sshd's log there if it goes on"
            ),
            ConnectError::Aborted { host } => write!(f, "connecting to {host} was given up"),
            ConnectError::UnknownHostKey {
                host,
                key,
                line,
                files,
            } => {
                write!(
                    f,
                    "{host} is unknown and shows the {} key {}: prove that this is right, then add the line \"{line}\" to {}",
                    key.kind(),
                    key.fingerprint(),
                    match files.first() {
                        Some(file) => file.display().to_string(),
                        None => "a known_hosts file".to_string(),
                    }
                )
            }
            ConnectError::ChangedHostKey { host, key, place } => write!(
                f,
                "{host} shows the {} key {}, which is not the one at {place}: somebody may be in between, or the host was set up anew; prove which, and only then replace that line",
                key.kind(),
                key.fingerprint()
            ),
            ConnectError::RevokedHostKey { host, key, place } => write!(
                f,
                "{host} shows the {} key {}, which is revoked at {place}: give the host a new key",
                key.kind(),
                key.fingerprint()
            ),
            ConnectError::KnownHostsUnreadable { file, why } => write!(
                f,
                "the known_hosts file {} cannot be read ({why}): check its owner and permissions",
                file.display()
            ),
            ConnectError::Key { path, problem } => problem.tell(path, f),
            ConnectError::Agent { why } => write!(
                f,
                "ssh-agent cannot be used ({why}): check SSH_AUTH_SOCK and \"ssh-add -l\", or give a key file"
            ),
            ConnectError::LoginRefused { host, user, tried } => write!(
                f,
                "{host} refuses the login of {user} with {tried}: add the public key to ~{user}/.ssh/authorized_keys there; if it is there, sshd's log tells why"
            ),
            ConnectError::TurnedAway { host, said } => write!(
                f,
                "{host} takes no connection from here for now (it says \"{said}\"): it has seen too many at once, or too many broken ones; if that goes on, look into sshd's log and at MaxStartups and PerSourcePenalties in sshd_config there"
            ),
            ConnectError::NotSsh { host, said } => write!(
                f,
                "{host} is no SSH server (it says \"{said}\"): correct the setting port"
            ),
            ConnectError::NoAgreement { host, why } => write!(
                f,
                "{host} and proxyfs cannot agree on how to talk ({why}): update sshd there, or allow current algorithms"
            ),
            ConnectError::NoSftp { host, user, why } => write!(
                f,
                "{host} offers {user} no SFTP ({why}): check \"Subsystem sftp\" in sshd_config and the account's shell there"
            ),
            ConnectError::WrongVersion { host, version } => write!(
                f,
                "{host} speaks version {version} of SFTP and not 3: use OpenSSH's sftp-server or another one that speaks version 3"
            ),
        }
    }
}

impl std::error::Error for ConnectError {}
