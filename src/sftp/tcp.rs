//! The TCP connection below a session, and the way to end it from another thread.
//!
//! The danger: a thread that waits where nobody can reach it. libssh2 waits in calls that cannot be
//! interrupted, so whoever wants to end one shuts the socket down below it: [`Abort`]. A socket is
//! given to the abort *before* it starts to connect, and the abort's mark is looked at *after* that,
//! so an abort comes either in time to be seen or finds the socket. The one wait that has no socket,
//! for the name service, is on a thread of its own, which is left behind.
//!
//! The other danger: a connection that was given up and still delivers. The kernel would go on sending what was
//! written, minutes later if that is when the network comes back, and the old server would remove or rename
//! something while the next session has gone on with the same paths. So a socket that is closed, by us
//! or by a kill, throws away what has not left this host (SO_LINGER with no time). (What has, is met in
//! `mirror/fence.rs`.)

use super::connect_error::ConnectError;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Ends a connect or sessions from another thread, at once and for good: a session that is connected
/// with an aborted one fails as well. Clones are the same abort.
#[derive(Clone, Debug, Default)]
pub struct Abort(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    aborted: AtomicBool,
    sockets: Mutex<Vec<Weak<TcpStream>>>,
}

impl Abort {
    /// One that has not been called.
    pub fn new() -> Abort {
        Abort::default()
    }

    /// Ends what is under way with it.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::SeqCst);
        for socket in self.sockets().drain(..) {
            if let Some(socket) = socket.upgrade() {
                hang_up(&socket);
            }
        }
    }

    /// Whether it was called.
    pub fn is_aborted(&self) -> bool {
        self.0.aborted.load(Ordering::SeqCst)
    }

    fn watch(&self, socket: &Arc<TcpStream>) {
        let mut sockets = self.sockets();
        sockets.retain(|s| s.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<Weak<TcpStream>>> {
        self.0
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a connection: whoever waits for it, here or there, goes on at once. An error means that it is
/// not connected any more.
pub(super) fn hang_up(socket: &TcpStream) {
    let _ = socket.shutdown(Shutdown::Both);
}

/// As it is shown to people.
pub(super) fn show_host(host: &str, port: u16) -> String {
    match port {
        22 => host.to_string(),
        _ if host.contains(':') => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Connects to the first address of `host` that answers. `timeout` is for each address, and for the
/// name service.
pub(super) fn dial(
    host: &str,
    port: u16,
    timeout: Duration,
    abort: &Abort,
) -> Result<Arc<TcpStream>, ConnectError> {
    let shown = show_host(host, port);
    let mut failure = ConnectError::NameNotResolved {
        host: shown.clone(),
        why: "it has no address".to_string(),
    };
    for addr in resolve(host, port, timeout, abort)? {
        let why = match connect(addr, timeout, abort) {
            Ok(socket) => return Ok(socket),
            Err(why) => why,
        };
        if abort.is_aborted() {
            return Err(ConnectError::Aborted { host: shown });
        }
        let host = shown.clone();
        failure = match why {
            Errno::CONNREFUSED => ConnectError::Refused { host },
            Errno::TIMEDOUT => ConnectError::TimedOut {
                host,
                step: "connecting",
                after: timeout,
            },
            why => ConnectError::Unreachable {
                host,
                why: format!("{addr}: {}", std::io::Error::from(why)),
            },
        };
    }
    Err(failure)
}

fn resolve(
    host: &str,
    port: u16,
    timeout: Duration,
    abort: &Abort,
) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let fail = |why: String| ConnectError::NameNotResolved {
        host: show_host(host, port),
        why,
    };
    let (answer, wait) = mpsc::channel();
    let name = host.to_string();
    std::thread::Builder::new()
        .name("resolve".to_string())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs();
            // The one who asked may have gone.
            let _ = answer.send(found.map(Vec::from_iter));
        })
        .map_err(|e| fail(e.to_string()))?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match wait.recv_timeout(left.min(Duration::from_millis(100))) {
            Ok(found) => return found.map_err(|e| fail(e.to_string())),
            Err(_) if abort.is_aborted() => {
                let host = show_host(host, port);
                return Err(ConnectError::Aborted { host });
            }
            Err(_) if left.is_zero() => return Err(fail("the name service is silent".into())),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(fail("no answer".into())),
        }
    }
}

fn connect(addr: SocketAddr, timeout: Duration, abort: &Abort) -> Result<Arc<TcpStream>, Errno> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    sockopt::set_socket_keepalive(&fd, true)?;
    sockopt::set_tcp_keepidle(&fd, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(&fd, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(&fd, 4)?;
    sockopt::set_socket_linger(&fd, Some(Duration::ZERO))?;
    let socket = Arc::new(TcpStream::from(fd));
    abort.watch(&socket);
    if abort.is_aborted() {
        return Err(Errno::CONNABORTED);
    }
    match rustix::net::connect(&*socket, &addr) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            if !wait_for(&socket, PollFlags::OUT, Instant::now() + timeout)? {
                return Err(Errno::TIMEDOUT);
            }
            sockopt::socket_error(&*socket)??;
        }
        Err(e) => return Err(e),
    }
    if abort.is_aborted() {
        return Err(Errno::CONNABORTED);
    }
    Ok(socket)
}

/// Waits until the socket is ready (or broken); false: it was not by `deadline`.
fn wait_for(socket: &TcpStream, what: PollFlags, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), what)];
        match rustix::event::poll(&mut fds, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e),
        }
    }
}

/// For poll: rounded up, so that a wait never ends just before its time; at most a day.
pub(super) fn timespec(wait: Duration) -> Timespec {
    let wait = wait.min(Duration::from_secs(86_400));
    let wait = match wait.is_zero() {
        true => wait,
        false => wait + Duration::from_micros(100),
    };
    Timespec {
        tv_sec: wait.as_secs() as i64,
        tv_nsec: wait.subsec_nanos().into(),
    }
}

/// What OpenSSH says in place of its greeting to who comes too often: over MaxStartups, or (since 9.8) under
/// one of PerSourcePenalties.
const TURNED_AWAY: [&str; 2] = ["Exceeded MaxStartups", "Not allowed at this time"];

/// Looks, without taking a byte away, whether an SSH server answers: RFC 4253, section 4.2, lets it
/// say other lines before its version. libssh2 alone would wait for the version through any flood
/// of other lines, and could not tell a web server from a broken connection.
pub(super) fn expect_ssh(
    socket: &TcpStream,
    host: &str,
    timeout: Duration,
) -> Result<(), ConnectError> {
    const STEP: &str = "waiting for its greeting";
    const PAUSE: Duration = Duration::from_millis(5);
    let lost = |why: String| ConnectError::Lost {
        host: host.to_string(),
        step: STEP,
        why,
    };
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 4096];
    let mut seen = 0;
    loop {
        let ready = wait_for(socket, PollFlags::IN, deadline)
            .map_err(|e| lost(std::io::Error::from(e).to_string()))?;
        let len = match socket.peek(&mut buffer) {
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && ready => continue,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => seen,
            Err(e) => return Err(lost(e.to_string())),
        };
        let said = &buffer[..len];
        if said.split(|b| *b == b'\n').any(|l| l.starts_with(b"SSH-")) {
            return Ok(());
        }
        let late = !ready || Instant::now() >= deadline;
        let could_be = b"SSH-".starts_with(&said[..len.min(4)]);
        match len {
            0 if late => {
                return Err(ConnectError::TimedOut {
                    host: host.to_string(),
                    step: STEP,
                    after: timeout,
                });
            }
            0 if ready => return Err(lost("it closed the connection".to_string())),
            _ if late || len == buffer.len() || (len == seen && ended(socket)) => {
                if could_be {
                    return Err(lost("it stopped within its greeting".to_string()));
                }
                let (host, said) = (host.to_string(), first_line(said));
                return Err(
                    match TURNED_AWAY.iter().any(|words| said.starts_with(words)) {
                        true => ConnectError::TurnedAway { host, said },
                        false => ConnectError::NotSsh { host, said },
                    },
                );
            }
            _ => {}
        }
        seen = len;
        // What was looked at stays readable, so poll cannot wait for more than that.
        std::thread::sleep(PAUSE);
    }
}

/// Whether the other side has ended the connection.
fn ended(socket: &TcpStream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP)];
    rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|n| n > 0)
}

/// The first line of foreign bytes, short and harmless to a terminal.
pub(super) fn first_line(bytes: &[u8]) -> String {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or(bytes);
    String::from_utf8_lossy(&line[..line.len().min(80)])
        .trim_end()
        .escape_debug()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// How much is written to who does not read, as behind a link that is down, and how much of it arrives
    /// when the connection is closed, without a word or after `before`, and the other side reads again.
    fn arrives(before: fn(&TcpStream)) -> (usize, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = dial("127.0.0.1", port, Duration::from_secs(60), &Abort::new()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = (&*socket).write(&[7; 65536]) {
            written += n;
        }
        before(&socket);
        drop(socket);
        let (mut arrived, mut buffer) = (0, vec![0; 65536]);
        while let Ok(n) = peer.read(&mut buffer)
            && n > 0
        {
            arrived += n;
        }
        (written, arrived)
    }

    #[test]
    fn what_has_not_left_when_a_connection_is_given_up_never_arrives() {
        for end in [hang_up, |_: &TcpStream| ()] {
            let (written, arrived) = arrives(end);
            assert!(arrived < written, "{arrived} of {written}");
        }
        let linger = |socket: &TcpStream| sockopt::set_socket_linger(socket, None).unwrap();
        let (written, arrived) = arrives(linger);
        assert_eq!(arrived, written, "this test shows nothing on this kernel");
    }
}
