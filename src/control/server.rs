//! The daemon's half of the control socket: see the dangers in `control.rs`.

use super::ControlRequest;
use super::client::connect;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many clients are served at once; one more is told so and hung up on.
pub const MAX_CLIENTS: usize = 32;

/// The longest request in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// A client that sends no whole request for so long is hung up on.
const IDLE: Duration = Duration::from_secs(60);

/// A client that does not take its answer for so long is hung up on.
const UNREAD: Duration = Duration::from_secs(5);

/// How long an older socket may take to answer before it counts as a living daemon's all the same.
const ANSWER: Duration = Duration::from_secs(2);

/// How long commands under way may take to give up at the end. One may wait for a mail server, which knows no haste.
const GIVE_UP: Duration = Duration::from_secs(3);

/// What the daemon does with requests. Called on a thread for each client, so several at a time.
pub trait Handler: Send + Sync {
    /// Carries out one request. It may take its time; then it asks `cancelled` now and again, which
    /// becomes true when the client hung up or the server stops, and gives up.
    ///
    /// # Errors
    /// One line for the person who asked.
    fn handle(
        &self,
        request: ControlRequest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Value, String>;
}

/// Why the control socket cannot be offered.
#[derive(Debug)]
pub enum StartError {
    /// Another daemon answers there.
    InUse(PathBuf),
    /// The path does not fit into a socket's address (107 bytes).
    PathTooLong(PathBuf),
    /// Something that is no socket is there.
    NoSocket(PathBuf),
    /// The system refused.
    Io {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why.
        cause: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::InUse(path) => write!(
                f,
                "another daemon answers at {}: stop it with `proxyfs stop`, or give this one its \
                 own run_dir",
                path.display()
            ),
            StartError::PathTooLong(path) => write!(
                f,
                "the path of the control socket is too long ({}): set a run_dir of at most 90 bytes",
                path.display()
            ),
            StartError::NoSocket(path) => write!(
                f,
                "{} is in the way and no socket: remove it, or set another run_dir",
                path.display()
            ),
            StartError::Io { path, doing, cause } => write!(
                f,
                "cannot {doing} for the control socket {}: {cause}: check run_dir",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StartError {}

/// The control socket of a running daemon; dropping it stops it.
pub struct ControlServer {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    /// Device and inode of the socket file.
    identity: (u64, u64),
    listener: UnixListener,
    handler: Arc<dyn Handler>,
    stopping: AtomicBool,
    clients: Mutex<HashMap<u64, Client>>,
}

struct Client {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Makes the socket at `path`, whose directory must exist, and answers there from now on.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> Result<ControlServer, StartError> {
        let failed = |doing| {
            move |cause: io::Error| StartError::Io {
                path: path.to_path_buf(),
                doing,
                cause,
            }
        };
        let (listener, identity) = listen(path)?;
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            identity,
            listener,
            handler,
            stopping: AtomicBool::new(false),
            clients: Mutex::new(HashMap::new()),
        });
        let mut server = ControlServer {
            shared: Arc::clone(&shared),
            accepting: None,
        };
        let thread = thread::Builder::new().name("control".to_string());
        let accepting = thread.spawn(move || accept(&shared));
        server.accepting = Some(accepting.map_err(failed("start a thread"))?);
        Ok(server)
    }

    /// Takes no further requests, lets commands under way know, and waits for their threads, for some seconds at most.
    /// Called from a handler it would wait for itself.
    pub fn stop(mut self) {
        self.end();
    }

    /// How many clients are connected.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.shared.clients().len()
    }

    fn end(&mut self) {
        let shared = &self.shared;
        if shared.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        shared.remove_socket();
        // Wakes accept(2): it says EINVAL from now on, and connect(2) is refused.
        let _ = net::shutdown(&shared.listener, net::Shutdown::Both);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        let clients: Vec<Client> = shared.clients().drain().map(|(_, c)| c).collect();
        for client in &clients {
            let _ = client.stream.shutdown(Shutdown::Read);
        }
        let deadline = Instant::now() + GIVE_UP;
        for thread in clients.into_iter().filter_map(|c| c.thread) {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                log::warn!("a command is still under way: it is left, and ends with the daemon");
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Removes the socket file if it is still the one that was made here.
    fn remove_socket(&self) {
        let Ok(_lock) = lock_directory(&self.path) else {
            return;
        };
        let found = std::fs::symlink_metadata(&self.path).map(|m| (m.dev(), m.ino()));
        if found.is_ok_and(|found| found == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket and starts to listen; returns it with its file's device and inode.
fn listen(path: &Path) -> Result<(UnixListener, (u64, u64)), StartError> {
    let failed = |doing| {
        move |cause: rustix::io::Errno| StartError::Io {
            path: path.to_path_buf(),
            doing,
            cause: cause.into(),
        }
    };
    let address =
        SocketAddrUnix::new(path).map_err(|_| StartError::PathTooLong(path.to_path_buf()))?;
    let _lock = lock_directory(path).map_err(failed("lock the directory"))?;
    remove_stale(path)?;
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("make a socket"))?;
    // bind(2) gives the file the mode that the descriptor has.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("set the mode"))?;
    net::bind(&socket, &address).map_err(failed("bind the name"))?;
    let file = rustix::fs::lstat(path).map_err(failed("look at the file"))?;
    net::listen(&socket, 64).map_err(failed("listen"))?;
    Ok((UnixListener::from(socket), (file.st_dev, file.st_ino)))
}

/// Keeps other daemons from looking, removing and binding there at the same time.
fn lock_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive))?;
    Ok(fd)
}

/// Removes the socket file of a daemon that is gone.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |doing| {
        move |cause| StartError::Io {
            path: path.to_path_buf(),
            doing,
            cause,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at the file")(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(StartError::NoSocket(path.to_path_buf()));
        }
        Ok(_) => {}
    }
    match connect(path, Some(ANSWER)) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the old socket"))
        }
        // Also a daemon that is stuck is one.
        Ok(_) | Err(_) => Err(StartError::InUse(path.to_path_buf())),
    }
}

/// The accepting thread.
fn accept(shared: &Arc<Shared>) {
    for id in 0.. {
        let accepted = shared.listener.accept();
        if shared.stopping() {
            return;
        }
        match accepted {
            Ok((stream, _)) => serve(shared, id, stream),
            // No descriptors or memory left: not for ever, and nothing is lost but time.
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                thread::sleep(Duration::from_millis(100));
            }
            Err(_) => {}
        }
    }
}

/// Gives a client its thread, or its refusal.
fn serve(shared: &Arc<Shared>, id: u64, mut stream: UnixStream) {
    // Neither a refusal nor an answer may hold a thread for a client that does not read.
    if stream.set_write_timeout(Some(UNREAD)).is_err() {
        return;
    }
    if !may_command(&stream) {
        return refuse(&mut stream, "not allowed: be root, or the daemon's user");
    }
    let mut clients = shared.clients();
    if clients.len() >= MAX_CLIENTS {
        drop(clients);
        let why = format!("{MAX_CLIENTS} commands are under way already: try again later");
        return refuse(&mut stream, &why);
    }
    let Ok(own) = stream.try_clone() else { return };
    let entry = Client {
        stream,
        thread: None,
    };
    clients.insert(id, entry);
    let for_thread = Arc::clone(shared);
    let spawned = thread::Builder::new()
        .name(format!("control-{id}"))
        .spawn(move || {
            // Leaves also when a handler panics.
            let _leave = Leave(&for_thread, id);
            converse(&for_thread, own);
        });
    // The table is still locked, so the thread cannot have left it yet.
    match spawned {
        Ok(thread) => {
            if let Some(client) = clients.get_mut(&id) {
                client.thread = Some(thread);
            }
        }
        Err(_) => {
            clients.remove(&id);
        }
    }
}

struct Leave<'a>(&'a Shared, u64);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.clients().remove(&self.1);
    }
}

fn may_command(stream: &UnixStream) -> bool {
    match sockopt::socket_peercred(stream) {
        Ok(peer) => peer.uid.is_root() || peer.uid == rustix::process::geteuid(),
        Err(_) => false,
    }
}

fn refuse(stream: &mut UnixStream, why: &str) {
    let _ = answer(stream, &Err(why.to_string()));
}

/// Requests and answers until the client has no more, misbehaves, or the server stops.
fn converse(shared: &Shared, mut stream: UnixStream) {
    let mut waiting = Vec::new();
    while !shared.stopping() {
        let line = match read_line(&mut stream, &mut waiting) {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(why) => return refuse(&mut stream, &why),
        };
        let request = serde_json::from_slice(&line)
            .map_err(|e| format!("the request is no JSON: {e}"))
            .and_then(|value| ControlRequest::from_json(&value));
        let cancelled = || shared.stopping() || hung_up(&stream);
        let result = request.and_then(|request| shared.handler.handle(request, &cancelled));
        if answer(&mut stream, &result).is_err() {
            return;
        }
    }
}

/// The next line, without its end; none at the end of the requests. What came behind the line stays in
/// `waiting`. Blank lines are passed over, and the last line may lack its end.
fn read_line(stream: &mut UnixStream, waiting: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let deadline = Instant::now() + IDLE;
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = waiting.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).take(end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            if line.len() <= MAX_REQUEST {
                return Ok(Some(line));
            }
        }
        if waiting.len() > MAX_REQUEST {
            return Err(format!("a request is at most {MAX_REQUEST} bytes long"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // A time-out of zero is not allowed: it would mean none.
        let left = left.max(Duration::from_millis(1));
        stream
            .set_read_timeout(Some(left))
            .map_err(|e| e.to_string())?;
        match stream.read(&mut buffer) {
            Ok(0) if waiting.trim_ascii().is_empty() => return Ok(None),
            Ok(0) => return Ok(Some(std::mem::take(waiting))),
            Ok(n) => waiting.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

fn answer(stream: &mut UnixStream, result: &Result<Value, String>) -> io::Result<()> {
    let value = match result {
        Ok(value) => json!({ "ok": value }),
        // One line, whatever the error holds.
        Err(why) => json!({ "error": why.split_whitespace().collect::<Vec<_>>().join(" ") }),
    };
    let mut line = value.to_string();
    line.push('\n');
    stream.write_all(line.as_bytes())
}

/// Whether the client closed its end. One that only has no more requests (a half-closed connection)
/// still waits for its answer.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let asked = poll(&mut fds, Some(&at_once));
    asked.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
