//! Makes a session: TCP, SSH handshake, host key, login, SFTP.
//!
//! The dangers, and what answers each:
//!
//! - *Telling secrets to the wrong host.* The host key is judged directly behind the handshake, before
//!   anything of ours is sent; an unknown host is an error that shows the fingerprint, never a guess.
//!   The key types that are known already are asked for first, so that a server with several keys
//!   shows the one that we can judge.
//! - *A second login on one session.* libssh2 mixes up the states of the two. So every key gets a
//!   connection of its own.
//! - *Waiting for ever.* The socket connects within `connect_timeout`, and all the rest up to the first
//!   SFTP answer within another; [`Abort`] shuts the socket down below whatever waits.
//!   (One wait is left: a hanging ssh-agent.) A time-out within libssh2 leaves it in the middle
//!   of something, so any error here ends the session.
//! - *Blocking goodbyes.* On each way out the socket is shut down before libssh2's objects go.

mod hasher;

pub use super::connect_error::ConnectError;
pub use super::known_hosts::HostKey;
pub use super::login::{KeyProblem, Login, Secret};
pub use super::pace::Rate;
pub use super::tcp::Abort;
pub use hasher::{Hasher, Same};

use super::channel::{Link, OpenError};
use super::known_hosts::{KnownHosts, Verdict};
use super::lanes::Lanes;
use super::login::KeyFile;
use super::offers::Offers;
use super::tcp::{dial, expect_ssh, hang_up, show_host};
use super::{Features, Remote, Reply, Request, SessionError, Ticket};
use ssh2::{ErrorCode, HashType, KnownHostFileKind, MethodType, Session};
use std::fmt;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a server may take to tell its algorithms, once it could not agree on one.
const OFFERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Which server, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Account there.
    pub user: String,
    /// How to log in.
    pub login: Login,
    /// Files with the host keys that are trusted; those that do not exist are passed over.
    pub known_hosts: Vec<PathBuf>,
    /// Whether to compress what travels (zlib@openssh.com), where the server does.
    pub compression: bool,
    /// For the TCP connection to each address, and again for all up to the first SFTP answer.
    pub connect_timeout: Duration,
    /// Within this the oldest request must be answered.
    pub io_timeout: Duration,
}

/// A connected mirror: see [`Remote`]. Belongs on one thread at a time. Dropping it does not block.
pub struct SftpSession {
    lanes: Lanes,
    abort: Abort,
    server: String,
    host_key: HostKey,
    target: Target,
    hasher: Option<Hasher>,
}

impl SftpSession {
    /// How the server introduced itself: `SSH-2.0-OpenSSH_9.2p1`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The server's host key, which is one of the trusted ones.
    pub fn host_key(&self) -> &HostKey {
        &self.host_key
    }
}

impl fmt::Debug for SftpSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SftpSession({}, {:?})", self.server, self.host_key)
    }
}

impl Remote for SftpSession {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        self.lanes.send_on(lane, request)
    }

    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        self.lanes.pump(timeout, wake).map_err(|e| {
            if self.abort.is_aborted() {
                SessionError::Lost("the session was aborted".to_string())
            } else {
                e
            }
        })
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.lanes.reply()
    }

    fn outstanding(&self) -> usize {
        self.lanes.outstanding()
    }

    fn unacknowledged_on(&self, lane: usize) -> usize {
        self.lanes.unacknowledged_on(lane)
    }

    fn lanes(&self) -> usize {
        self.lanes.lanes()
    }

    fn want_lanes(&mut self, lanes: usize) {
        self.lanes.want_lanes(lanes);
    }

    fn line_has_room(&self) -> bool {
        self.lanes.line_has_room()
    }

    fn round_trip(&self) -> Duration {
        self.lanes.round_trip()
    }

    fn hasher(&mut self) -> Option<&mut Hasher> {
        let target = &self.target;
        Some(
            self.hasher
                .get_or_insert_with(|| Hasher::new(target.clone())),
        )
    }

    fn features(&self) -> &Features {
        self.lanes.features()
    }

    fn traffic(&self) -> (u64, u64) {
        self.lanes.traffic()
    }
}

/// Connects and logs in. Blocks for twice `connect_timeout` and key at most (and once more for the name
/// service), or until `abort` is called.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect(target: &Target, abort: &Abort) -> Result<SftpSession, ConnectError> {
    connect_asking(target, abort, &Start::default()).map(|(session, _)| session)
}

/// What a session begins with, as early as the server lets us: that spares round trips.
#[derive(Clone, Default)]
pub struct Start<'a> {
    /// Requests.
    pub first: &'a [Request],
    /// How many lanes are wanted at once, if the line is long.
    pub far_lanes: usize,
    /// How fast all lanes together may send, once SFTP has started; none: as fast as it goes.
    pub rate: Option<Rate>,
}

/// The same, with what it begins with; and the tickets of these requests.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect_asking(
    target: &Target,
    abort: &Abort,
    start: &Start<'_>,
) -> Result<(SftpSession, Vec<Ticket>), ConnectError> {
    connect_any(target, abort, &mut |greeted| {
        start_sftp(greeted, target, abort, start)
    })
    .map_err(|e| explain_abort(e, target, abort))
}

/// Fetches the host key of a server without logging in, to show its fingerprint to a person. Nothing
/// is judged: `known_hosts` and `login` of the target are not used.
///
/// # Errors
/// Those of [`connect`] up to the handshake.
pub fn host_key(target: &Target, abort: &Abort) -> Result<HostKey, ConnectError> {
    let greeted = greet(target, abort, None);
    let greeted = greeted.map_err(|e| explain_abort(e, target, abort))?;
    hang_up(&greeted.socket);
    Ok(greeted.host_key)
}

/// The fingerprint of a host key as ssh-keygen shows it: `SHA256:` and base64.
pub fn fingerprint(key: &HostKey) -> String {
    key.fingerprint()
}

fn explain_abort(error: ConnectError, target: &Target, abort: &Abort) -> ConnectError {
    if abort.is_aborted() {
        return ConnectError::Aborted {
            host: show_host(&target.host, target.port),
        };
    }
    error
}

/// Connects and logs in; what then comes is `start`'s.
fn connect_any<T>(
    target: &Target,
    abort: &Abort,
    start: &mut dyn FnMut(Greeted) -> Result<T, ConnectError>,
) -> Result<T, ConnectError> {
    let known = KnownHosts::read(
        &target.known_hosts,
        &target.host,
        target.port,
        &|line, name| is_hash_of(line, name),
    )
    .map_err(|e| ConnectError::KnownHostsUnreadable {
        why: e.cause.to_string(),
        file: e.file,
    })?;
    let mut tried = Vec::new();
    match &target.login {
        Login::Keys { files, passphrase } => {
            let (mut problem, mut broken_off) = (None, None);
            for path in files {
                let outcome = KeyFile::read(path, passphrase.as_ref())
                    .map_err(|problem| key_error(path, problem))
                    .and_then(|key| {
                        let greeted = greet(target, abort, Some(&known))?;
                        Ok((
                            login_with_file(&greeted, target, &key, passphrase)?,
                            greeted,
                        ))
                    });
                match outcome {
                    Ok((true, greeted)) => return start(greeted),
                    Ok((false, greeted)) => {
                        hang_up(&greeted.socket);
                        tried.push(path.display().to_string());
                    }
                    // One of several keys may be broken as long as another one works.
                    Err(e @ ConnectError::Key { .. }) => problem = problem.or(Some(e)),
                    // So a server says no that gives one try only (MaxAuthTries), or it went away: the
                    // next key tells.
                    Err(e @ ConnectError::Lost { step: LOGIN, .. }) => broken_off = Some(e),
                    Err(e) => return Err(e),
                }
            }
            if let Some(problem) = broken_off.or(problem) {
                return Err(problem);
            }
        }
        Login::Agent { socket } => loop {
            let greeted = greet(target, abort, Some(&known))?;
            let outcome = login_with_agent(&greeted, target, socket.as_deref(), tried.len());
            match outcome {
                Ok(AgentOutcome::In) => return start(greeted),
                Ok(AgentOutcome::Refused(key)) => tried.push(key),
                Ok(AgentOutcome::NoMoreKeys) => break,
                Err(e) => {
                    hang_up(&greeted.socket);
                    return Err(e);
                }
            }
            hang_up(&greeted.socket);
        },
    }
    Err(ConnectError::LoginRefused {
        host: show_host(&target.host, target.port),
        user: target.user.clone(),
        tried: match tried.is_empty() {
            true => "no key at all".to_string(),
            false => tried.join(", "),
        },
    })
}

fn key_error(path: &Path, problem: KeyProblem) -> ConnectError {
    ConnectError::Key {
        path: path.to_path_buf(),
        problem,
    }
}

/// A server whose host key is trusted, before the login.
struct Greeted {
    session: Session,
    socket: Arc<TcpStream>,
    host_key: HostKey,
    deadline: Instant,
}

impl Greeted {
    /// Lets the next call of libssh2 block for what is left of the time.
    fn limit(&self) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // 0 would be "no limit".
        let left = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        self.session.set_timeout(left.max(1));
    }
}

/// Connects and shakes hands. The host key is judged by `known`; with none it is only fetched.
fn greet(
    target: &Target,
    abort: &Abort,
    known: Option<&KnownHosts>,
) -> Result<Greeted, ConnectError> {
    let socket = dial(&target.host, target.port, target.connect_timeout, abort)?;
    let kinds = known.map(KnownHosts::kinds).unwrap_or_default();
    handshake(target, &kinds, Arc::clone(&socket))
        .and_then(|greeted| match known {
            Some(known) => judge(target, known, &greeted.host_key).map(|()| greeted),
            None => Ok(greeted),
        })
        .inspect_err(|_| hang_up(&socket))
}

fn handshake(
    target: &Target,
    known_kinds: &[&str],
    socket: Arc<TcpStream>,
) -> Result<Greeted, ConnectError> {
    const STEP: &str = "greeting";
    let host = show_host(&target.host, target.port);
    let fail = |e: ssh2::Error| connection_error(&host, STEP, target.connect_timeout, &e);
    let deadline = Instant::now() + target.connect_timeout;
    expect_ssh(&socket, &host, target.connect_timeout)?;
    let mut session = Session::new().map_err(fail)?;
    session.set_compress(target.compression);
    session
        .method_pref(MethodType::HostKey, &preference(known_kinds))
        .map_err(fail)?;
    session.set_tcp_stream(Arc::clone(&socket));
    session.set_blocking(true);
    let left = deadline.saturating_duration_since(Instant::now());
    session.set_timeout(u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1));
    session.handshake().map_err(|e| match e.code() {
        _ if Instant::now() >= deadline => ConnectError::TimedOut {
            host: host.clone(),
            step: STEP,
            after: target.connect_timeout,
        },
        ErrorCode::Session(code) if error::KEY_EXCHANGE.contains(&code) => {
            match nothing_in_common(&session, &socket) {
                Some(why) => ConnectError::NoAgreement {
                    host: host.clone(),
                    why,
                },
                None => fail(e),
            }
        }
        _ => fail(e),
    })?;
    let host_key = match (session.host_key(), session.host_key_hash(HashType::Sha256)) {
        (Some((blob, _)), Some(hash)) if hash.len() == 32 => {
            let mut sha256 = [0; 32];
            sha256.copy_from_slice(hash);
            HostKey::new(blob.to_vec(), sha256)
        }
        _ => {
            let why = "it has no host key".to_string();
            return Err(ConnectError::NoAgreement { host, why });
        }
    };
    Ok(Greeted {
        session,
        socket,
        host_key,
        deadline,
    })
}

/// For what the server has no algorithm in common with libssh2, if that is why they cannot agree.
/// libssh2 has the same code for that and for a connection that breaks meanwhile, so the server is asked
/// once more, on a connection of its own, for what it offers.
fn nothing_in_common(session: &Session, socket: &TcpStream) -> Option<String> {
    let offers = Offers::fetch(socket.peer_addr().ok()?, OFFERS_TIMEOUT)?;
    let ours = |method| session.supported_algs(method).unwrap_or_default();
    for (what, theirs, method) in [
        ("way of key exchange", &offers.kex, MethodType::Kex),
        ("type of host key", &offers.host_keys, MethodType::HostKey),
        ("cipher", &offers.ciphers, MethodType::CryptCs),
    ] {
        if !ours(method).iter().any(|a| theirs.iter().any(|t| t == a)) {
            return Some(format!("no common {what}, it offers {}", theirs.join(",")));
        }
    }
    None
}

fn judge(target: &Target, known: &KnownHosts, key: &HostKey) -> Result<(), ConnectError> {
    let host = show_host(&target.host, target.port);
    let key = key.clone();
    match known.judge(key.blob()) {
        Verdict::Known => Ok(()),
        Verdict::Unknown => Err(ConnectError::UnknownHostKey {
            host,
            line: key.line(&target.host, target.port),
            key,
            files: target.known_hosts.clone(),
        }),
        Verdict::Changed(place) => Err(ConnectError::ChangedHostKey { host, key, place }),
        Verdict::Revoked(place) => Err(ConnectError::RevokedHostKey { host, key, place }),
    }
}

/// Host key algorithms in our order: of the key types that are known for the host first. (An RSA key
/// signs in three ways.)
fn preference(known: &[&str]) -> String {
    const ALGORITHMS: [(&str, &str); 7] = [
        ("ssh-ed25519", "ssh-ed25519"),
        ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
        ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
        ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
        ("ssh-rsa", "rsa-sha2-512"),
        ("ssh-rsa", "rsa-sha2-256"),
        ("ssh-rsa", "ssh-rsa"),
    ];
    let (first, then): (Vec<_>, Vec<_>) = ALGORITHMS
        .iter()
        .partition(|(kind, _)| known.contains(kind));
    let names: Vec<&str> = first.iter().chain(&then).map(|(_, name)| *name).collect();
    names.join(",")
}

/// Whether `line`, the name field of a known_hosts line, is the hash of `name`. libssh2 computes it, on
/// a line that is made up for it, with a key that is made up too: only the name is of interest.
fn is_hash_of(line: &str, name: &str) -> bool {
    const KEY: [u8; 48] = [0; 48];
    let Ok(session) = Session::new() else {
        return false;
    };
    let Ok(mut hosts) = session.known_hosts() else {
        return false;
    };
    let line = format!("{line} ssh-ed25519 {}", "A".repeat(64));
    !name.contains('\0')
        && hosts.read_str(&line, KnownHostFileKind::OpenSSH).is_ok()
        && matches!(hosts.check(name, &KEY), ssh2::CheckResult::Match)
}

/// Whether the server takes the key.
fn login_with_file(
    greeted: &Greeted,
    target: &Target,
    key: &KeyFile,
    passphrase: &Option<Secret>,
) -> Result<bool, ConnectError> {
    greeted.limit();
    let passphrase = passphrase
        .as_ref()
        .filter(|_| key.encrypted)
        .map(Secret::reveal);
    let result =
        greeted
            .session
            .userauth_pubkey_memory(&target.user, None, key.text.reveal(), passphrase);
    let Err(e) = result else {
        return Ok(greeted.session.authenticated());
    };
    let problem = match class_of(&e) {
        Class::Refused => return Ok(false),
        Class::Connection => return Err(login_error(target, &e)),
        Class::Other if key.encrypted => KeyProblem::PassphraseWrong,
        Class::Other => KeyProblem::Unusable(e.message().to_string()),
    };
    Err(key_error(&key.path, problem))
}

enum AgentOutcome {
    In,
    Refused(String),
    NoMoreKeys,
}

/// Tries the agent's key number `which`.
fn login_with_agent(
    greeted: &Greeted,
    target: &Target,
    socket: Option<&Path>,
    which: usize,
) -> Result<AgentOutcome, ConnectError> {
    greeted.limit();
    let fail = |e: ssh2::Error| match class_of(&e) {
        Class::Connection => login_error(target, &e),
        Class::Refused | Class::Other => ConnectError::Agent {
            why: e.message().to_string(),
        },
    };
    let mut agent = greeted.session.agent().map_err(fail)?;
    if let Some(path) = socket {
        agent.set_identity_path(path).map_err(fail)?;
    }
    agent.connect().map_err(fail)?;
    agent.list_identities().map_err(fail)?;
    let keys = agent.identities().map_err(fail)?;
    if keys.is_empty() {
        return Err(ConnectError::Agent {
            why: "it holds no keys".to_string(),
        });
    }
    let Some(key) = keys.get(which) else {
        return Ok(AgentOutcome::NoMoreKeys);
    };
    match agent.userauth(&target.user, key) {
        Ok(()) if greeted.session.authenticated() => Ok(AgentOutcome::In),
        Ok(()) => Ok(AgentOutcome::Refused(key.comment().to_string())),
        Err(e) => match class_of(&e) {
            Class::Connection => Err(login_error(target, &e)),
            // The agent may refuse to sign with one key, or hold one of a strange type.
            Class::Refused | Class::Other => Ok(AgentOutcome::Refused(format!(
                "the agent's {}",
                key.comment()
            ))),
        },
    }
}

fn start_sftp(
    greeted: Greeted,
    target: &Target,
    abort: &Abort,
    start: &Start<'_>,
) -> Result<(SftpSession, Vec<Ticket>), ConnectError> {
    let host = show_host(&target.host, target.port);
    greeted.limit();
    let server = greeted.session.banner_bytes().unwrap_or_default();
    let server = String::from_utf8_lossy(server).escape_debug().to_string();
    let left = greeted.deadline.saturating_duration_since(Instant::now());
    let link = Link {
        openssh: server.contains("OpenSSH"),
        // It swaps them for clients that it knows to be wrong: not for us.
        symlinks_as_drafted: server.contains("AsyncSSH"),
        session: greeted.session,
        socket: greeted.socket,
        io_timeout: target.io_timeout,
    };
    let timeout = target.connect_timeout;
    match Lanes::open(Arc::new(link), left, start) {
        Ok((lanes, tickets)) => {
            let session = SftpSession {
                lanes,
                abort: abort.clone(),
                server,
                host_key: greeted.host_key,
                target: target.clone(),
                hasher: None,
            };
            Ok((session, tickets))
        }
        Err(OpenError::Ssh(step, e)) => Err(match class_of(&e) {
            Class::Connection => connection_error(&host, step, timeout, &e),
            Class::Refused | Class::Other => ConnectError::NoSftp {
                host,
                user: target.user.clone(),
                why: e.message().to_string(),
            },
        }),
        Err(OpenError::Session(step, SessionError::TimedOut(_))) => Err(ConnectError::TimedOut {
            host,
            step,
            after: timeout,
        }),
        Err(OpenError::Session(step, SessionError::Lost(why))) => {
            Err(ConnectError::Lost { host, step, why })
        }
        Err(OpenError::Session(_, SessionError::Protocol(why)) | OpenError::NoSftp(why)) => {
            Err(ConnectError::NoSftp {
                host,
                user: target.user.clone(),
                why,
            })
        }
        Err(OpenError::Version(version)) => Err(ConnectError::WrongVersion { host, version }),
    }
}

/// libssh2's error codes (libssh2.h) as far as we tell them apart.
mod error {
    pub const TIMED_OUT: [i32; 2] = [-9, -30];
    /// SOCKET_SEND, SOCKET_DISCONNECT, SOCKET_RECV, BAD_SOCKET, BANNER_RECV, BANNER_SEND, and what
    /// garbled packets make: INVALID_MAC, DECRYPT, PROTO.
    pub const LOST: [i32; 9] = [-7, -13, -43, -45, -2, -3, -4, -12, -14];
    /// PUBLICKEY_UNVERIFIED.
    pub const UNVERIFIED: i32 = -19;
    /// AUTHENTICATION_FAILED, PUBLICKEY_UNVERIFIED.
    pub const REFUSED: [i32; 2] = [-18, UNVERIFIED];
    /// KEX_FAILURE, KEY_EXCHANGE_FAILURE: no common algorithm, or whatever else went wrong meanwhile.
    pub const KEY_EXCHANGE: [i32; 2] = [-5, -8];
}

/// The step of logging in, in a message.
const LOGIN: &str = "logging in";

enum Class {
    Connection,
    Refused,
    Other,
}

fn class_of(e: &ssh2::Error) -> Class {
    match e.code() {
        // libssh2 has one code for "the server said no" and for "it broke off before it answered".
        ErrorCode::Session(error::UNVERIFIED) if e.message().starts_with("Waiting for") => {
            Class::Connection
        }
        ErrorCode::Session(code) if error::REFUSED.contains(&code) => Class::Refused,
        ErrorCode::Session(code)
            if error::TIMED_OUT.contains(&code) || error::LOST.contains(&code) =>
        {
            Class::Connection
        }
        _ => Class::Other,
    }
}

fn login_error(target: &Target, e: &ssh2::Error) -> ConnectError {
    let host = show_host(&target.host, target.port);
    connection_error(&host, LOGIN, target.connect_timeout, e)
}

fn connection_error(
    host: &str,
    step: &'static str,
    after: Duration,
    e: &ssh2::Error,
) -> ConnectError {
    let host = host.to_string();
    match e.code() {
        ErrorCode::Session(code) if error::TIMED_OUT.contains(&code) => {
            ConnectError::TimedOut { host, step, after }
        }
        _ => ConnectError::Lost {
            host,
            step,
            why: e.message().to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_key_types_are_asked_for_first() {
        assert_eq!(
            preference(&["ssh-rsa"]),
            "rsa-sha2-512,rsa-sha2-256,ssh-rsa,ssh-ed25519,ecdsa-sha2-nistp256,\
             ecdsa-sha2-nistp384,ecdsa-sha2-nistp521"
        );
        assert!(preference(&[]).starts_with("ssh-ed25519,"));
    }

    /// The pair was made with `ssh-keygen -H`.
    #[test]
    fn hashed_names_are_recognized() {
        let line = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg=";
        assert!(is_hash_of(line, "192.168.1.61"));
        assert!(!is_hash_of(line, "192.168.1.62"));
        for broken in ["|1|", "|1|x|y", "|2|a|b", "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y="] {
            assert!(!is_hash_of(broken, "192.168.1.61"), "{broken}");
        }
    }

    #[test]
    fn a_session_may_move_to_another_thread() {
        fn movable<T: Send>() {}
        movable::<SftpSession>();
    }
}
