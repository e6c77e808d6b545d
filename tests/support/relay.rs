//! A WAN between a client and a server on loopback: delay, rate, cuts, silence.
//!
//! Each direction is a delay line: what came in at `t` goes out at `t` + RTT/2 (behind what the rate
//! allows), however much is on the line meanwhile. So the delay costs no throughput of its own.
//!
//! It stands alone, so that benchmarks can include it by path.

#![allow(clippy::unwrap_used)]

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A loopback TCP port that is ours until this is dropped, whether somebody listens on it or not.
///
/// It is bound without SO_REUSEADDR, which fails where anybody else has bound it, so two never get
/// the same; only then the option is set, so that our own server (with the option) can bind it too.
pub struct Port {
    number: u16,
    _held: OwnedFd,
}

impl Port {
    pub fn reserve() -> Port {
        let flags = SocketFlags::CLOEXEC;
        let held =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&held, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        sockopt::set_socket_reuseaddr(&held, true).unwrap();
        let name = rustix::net::getsockname(&held).unwrap();
        let number = SocketAddr::try_from(name).unwrap().port();
        Port {
            number,
            _held: held,
        }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    /// A listener on it.
    pub fn listen(&self) -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, self.number)).unwrap()
    }
}

pub struct Relay {
    port: Port,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: u16,
    one_way: Duration,
    /// Bytes a second in each direction; 0: no limit.
    rate: AtomicU64,
    held: AtomicBool,
    refuse: AtomicBool,
    refusing: AtomicBool,
    stop: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
    open: Mutex<Vec<Connection>>,
}

struct Connection {
    lines: [Arc<Line>; 2],
    sockets: [Arc<TcpStream>; 2],
    threads: Vec<JoinHandle<()>>,
}

/// One direction of one connection.
#[derive(Default)]
struct Line {
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Default)]
struct LineState {
    /// What is on the way, and when it arrives. Empty bytes are the end.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the sender's end has passed on all that it took.
    free: Option<Instant>,
    cut: bool,
}

/// How much one direction holds: 1 Gbit/s at 250 ms.
const LINE_BYTES: usize = 32 * 1024 * 1024;
const PIECE: usize = 64 * 1024;
const GLANCE: Duration = Duration::from_millis(10);

impl Relay {
    /// Forwards to `target` on loopback, `rtt` away.
    pub fn start(target: u16, rtt: Duration) -> Relay {
        let port = Port::reserve();
        let shared = Arc::new(Shared {
            target,
            one_way: rtt / 2,
            rate: AtomicU64::new(0),
            held: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: Mutex::new(Vec::new()),
        });
        let listener = port.listen();
        let number = port.number();
        let ours = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || ours.accept(number, listener));
        Relay {
            port,
            shared,
            acceptor: Some(acceptor),
        }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Limits each direction of all connections to so many bytes a second each; 0: no limit.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Closes all connections; what is on the way is lost.
    pub fn cut(&self) {
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap());
        for connection in &open {
            connection.cut();
        }
        for connection in open {
            for thread in connection.threads {
                let _ = thread.join();
            }
        }
    }

    /// Passes nothing on any more and says nothing: a dead peer.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::SeqCst);
    }

    pub fn resume(&self) {
        self.shared.held.store(false, Ordering::SeqCst);
    }

    /// Whether new connections are refused (as with nobody listening). Returns when it is so.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
        while self.shared.refusing.load(Ordering::SeqCst) != refuse {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Bytes that were passed on from clients to the server.
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst)
    }

    /// Bytes that were passed on from the server to clients.
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.load(Ordering::SeqCst)
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut();
    }
}

impl Connection {
    fn cut(&self) {
        for line in &self.lines {
            line.state.lock().unwrap().cut = true;
            line.changed.notify_all();
        }
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(self: Arc<Self>, port: u16, listener: TcpListener) {
        let mut listener = Some(listener);
        while !self.stop.load(Ordering::SeqCst) {
            if self.refuse.load(Ordering::SeqCst) {
                listener = None;
            } else if listener.is_none() {
                listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
            }
            self.refusing.store(listener.is_none(), Ordering::SeqCst);
            let Some(listening) = &listener else {
                std::thread::sleep(GLANCE);
                continue;
            };
            let mut fds = [PollFd::from_borrowed_fd(listening.as_fd(), PollFlags::IN)];
            let glance = Timespec {
                tv_sec: 0,
                tv_nsec: GLANCE.subsec_nanos().into(),
            };
            if !rustix::event::poll(&mut fds, Some(&glance)).is_ok_and(|n| n > 0) {
                continue;
            }
            if let Ok((client, _)) = listening.accept()
                && let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target))
            {
                self.connections.fetch_add(1, Ordering::SeqCst);
                self.carry(client, server);
            }
        }
    }

    fn carry(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let (client, server) = (Arc::new(client), Arc::new(server));
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let mut threads = Vec::new();
        for (line, from, to, upwards) in [
            (&lines[0], &client, &server, true),
            (&lines[1], &server, &client, false),
        ] {
            let _ = from.set_nodelay(true);
            let (shared, ours, from) = (Arc::clone(self), Arc::clone(line), Arc::clone(from));
            threads.push(std::thread::spawn(move || shared.take_in(&ours, &from)));
            let (shared, ours, to) = (Arc::clone(self), Arc::clone(line), Arc::clone(to));
            threads.push(std::thread::spawn(move || {
                shared.give_out(&ours, &to, upwards)
            }));
        }
        let mut open = self.open.lock().unwrap();
        open.retain(|c| c.threads.iter().any(|t| !t.is_finished()));
        open.push(Connection {
            lines,
            sockets: [client, server],
            threads,
        });
    }

    fn wait_while_held(&self, line: &Line) {
        while self.held.load(Ordering::SeqCst) && !line.state.lock().unwrap().cut {
            std::thread::sleep(GLANCE);
        }
    }

    fn take_in(&self, line: &Line, mut from: &TcpStream) {
        let mut piece = vec![0; PIECE];
        loop {
            self.wait_while_held(line);
            // At a low rate in small pieces, so that it flows rather than drips.
            let most = match self.rate.load(Ordering::SeqCst) {
                0 => PIECE,
                rate => ((rate / 50) as usize).clamp(512, PIECE),
            };
            let len = from.read(&mut piece[..most]).unwrap_or(0);
            self.wait_while_held(line);
            let mut state = line.state.lock().unwrap();
            while state.bytes > LINE_BYTES && !state.cut {
                state = line.changed.wait(state).unwrap();
            }
            if state.cut {
                return;
            }
            let now = Instant::now();
            let mut sent = state.free.map_or(now, |free| free.max(now));
            let rate = self.rate.load(Ordering::SeqCst);
            if rate > 0 {
                sent += Duration::from_secs_f64(len as f64 / rate as f64);
            }
            state.free = Some(sent);
            state.bytes += len;
            let due = sent + self.one_way;
            state.pieces.push_back((due, piece[..len].to_vec()));
            line.changed.notify_all();
            drop(state);
            if len == 0 {
                return;
            }
            if rate > 0 {
                // The sender's end is busy so long; it takes no more than it can pass on.
                std::thread::sleep(sent.saturating_duration_since(Instant::now()));
            }
        }
    }

    fn give_out(&self, line: &Line, mut to: &TcpStream, upwards: bool) {
        loop {
            let mut state = line.state.lock().unwrap();
            let piece = loop {
                if state.cut {
                    return;
                }
                let now = Instant::now();
                match state.pieces.front().map(|(due, _)| *due) {
                    Some(due) if due <= now => break state.pieces.pop_front(),
                    Some(due) => {
                        state = line.changed.wait_timeout(state, due - now).unwrap().0;
                    }
                    None => state = line.changed.wait(state).unwrap(),
                }
            };
            let Some((_, piece)) = piece else {
                return;
            };
            state.bytes -= piece.len();
            line.changed.notify_all();
            drop(state);
            self.wait_while_held(line);
            if piece.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if to.write_all(&piece).is_err() {
                // The other end is gone: so is the line.
                line.state.lock().unwrap().cut = true;
                line.changed.notify_all();
                return;
            }
            let counter = if upwards { &self.up } else { &self.down };
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    }
}
