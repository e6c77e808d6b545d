//! One SFTP channel with many requests in flight, on ssh2's raw channel.
//!
//! The dangers, and what answers each:
//!
//! - *A round trip for each request.* `send` only appends to a buffer; `pump` hands the buffer to
//!   libssh2 in packet-sized pieces, however many requests share one, and then reads what is there.
//! - *A piece half sent.* libssh2 has taken the bytes of a write that says "would block" already, and
//!   must be called with the same ones again: the buffer's head moves only by what was written, and
//!   new requests only go behind its end.
//! - *Sleeping on what has come already.* libssh2 reads the socket also while it writes, and keeps
//!   what it finds; so reading is always the last thing before poll(2), until it would block. And
//!   window that was opened while reading is used before sleeping ([`SftpChannel::pass`]).
//! - *A peer that says nothing more.* Whatever request is the oldest must be answered within the I/O
//!   time-out of its becoming the oldest. (Not of its being queued: behind 8 MiB on a slow line it
//!   rightly waits longer.) The owner
//!   is to pump every second or so: its own pauses count as the server's. With nothing in flight for [`IDLE`], a REALPATH goes out by itself; its
//!   answer is kept from the owner. Nothing here is libssh2's keepalive, which breaks reads.
//! - *Answers that nobody asked for.* An id must be under way, and is so once; see [`wire`].
//! - *Blocking in drop.* libssh2 says goodbye and waits for an answer. So the socket is shut down first
//!   ([`SftpChannel::drop`]): then there is nobody to wait for.
//! - *Memory.* Incoming: one packet and one read at a time, and answers only to what was asked; the
//!   rest is bounded by the receive window. Outgoing: what the owner queues, and it has
//!   `outstanding` and `unacknowledged_bytes` to stop at.
//!
//! After any error the session is dead: which bytes have arrived is unknown then.

use super::in_flight::InFlight;
use super::tcp::{first_line, hang_up, timespec};
use super::wire::{self, Limits, Version, extension};
use super::{Features, Remote, Reply, Request, SessionError, Status, Ticket, code};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use ssh2::{BlockDirections, Channel, ErrorCode, ExtendedData, Session};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// With nothing in flight for so long, the peer is asked for a sign of life.
pub const IDLE: Duration = Duration::from_secs(15);

/// The receive window in bytes: more READ data than this must not be asked for at a time.
pub const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Largest packet that we take, in bytes: every implementation must handle this (RFC 4253, 6.1).
const CHANNEL_PACKET: u32 = 32 * 1024;

/// How much is read at a time.
const READ_PIECE: usize = 64 * 1024;

/// How much is given to libssh2 at a time: what it puts into one packet.
const WRITE_PIECE: usize = 32 * 1024;

/// READ and WRITE size in bytes where a server does not tell its own (draft 02, section 6.4).
const PLAIN_SIZE: u32 = 32 * 1024;

/// A buffer with more room than this gives it back when it is empty, in bytes.
const KEPT_ROOM: usize = 1024 * 1024;

/// libssh2's error codes (libssh2.h) as far as we tell them apart.
mod error {
    /// SOCKET_SEND, SOCKET_DISCONNECT, SOCKET_RECV.
    pub const CLOSED: [i32; 3] = [-7, -13, -43];
}

/// What the channels of one session share: its socket and libssh2's state of it. libssh2 lets one
/// thread in at a time; all channels of a session belong on one thread.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) socket: Arc<TcpStream>,
    /// The oldest request is answered within this.
    pub(super) io_timeout: Duration,
    /// Whether the server's banner says OpenSSH.
    pub(super) openssh: bool,
    /// Whether it takes SYMLINK's two paths in the order of the draft.
    pub(super) symlinks_as_drafted: bool,
}

/// Why a channel did not become an SFTP one.
pub(super) enum OpenError {
    /// libssh2 or the connection failed in the named step.
    Ssh(&'static str, ssh2::Error),
    /// The session ended in the named step.
    Session(&'static str, SessionError),
    /// The other side is there, but is no SFTP server.
    NoSftp(String),
    /// It speaks this version.
    Version(u32),
}

/// An SFTP channel of a session: see [`Remote`].
pub struct SftpChannel {
    channel: Channel,
    link: Arc<Link>,
    features: Features,
    /// Packets to write; the part before `written` is sent already.
    output: Vec<u8>,
    written: usize,
    /// What was read and is no whole packet yet.
    input: Vec<u8>,
    piece: Box<[u8]>,
    in_flight: InFlight,
    replies: VecDeque<(Ticket, Reply)>,
    /// When a byte came last.
    heard: Instant,
    traffic: (u64, u64),
    dead: Option<SessionError>,
}

impl SftpChannel {
    /// Opens a channel and starts SFTP on it, within `timeout` for each step, and sends `first` as early
    /// as can be. Leaves the session non-blocking. After an error the link is broken.
    pub(super) fn open(
        link: Arc<Link>,
        timeout: Duration,
        first: &[Request],
    ) -> Result<(SftpChannel, Vec<Ticket>), OpenError> {
        let channel = match start_subsystem(&link.session) {
            Ok(channel) => channel,
            Err(e) => {
                hang_up(&link.socket);
                return Err(e);
            }
        };
        let openssh = link.openssh;
        let mut sftp = SftpChannel {
            channel,
            link,
            features: Features {
                posix_rename: false,
                hardlink: false,
                fsync: false,
                lsetstat: false,
                copy_data: false,
                statvfs: false,
                openssh,
                max_write: PLAIN_SIZE,
                max_read: PLAIN_SIZE,
                max_handles: None,
            },
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            piece: vec![0; READ_PIECE].into(),
            in_flight: InFlight::default(),
            replies: VecDeque::new(),
            heard: Instant::now(),
            traffic: (0, 0),
            dead: None,
        };
        sftp.link.session.set_blocking(false);
        let tickets = sftp.negotiate(timeout, first)?;
        Ok((sftp, tickets))
    }

    /// INIT and VERSION, the limits where they are offered, and the owner's first requests. With OpenSSH
    /// all of that is one round trip: it takes one thing after another, has offered the limits since 8.5
    /// and says so if it has not heard of them. (Its window is shut until the subsystem runs, so nothing can
    /// go along with the request for that.)
    fn negotiate(
        &mut self,
        timeout: Duration,
        first: &[Request],
    ) -> Result<Vec<Ticket>, OpenError> {
        const VERSION: &str = "starting SFTP";
        const LIMITS: &str = "asking for SFTP's limits";
        let limits_id = self.in_flight.next();
        let mut tickets = Vec::new();
        wire::encode_init(&mut self.output);
        if self.link.openssh {
            wire::encode_limits(limits_id, &mut self.output);
            self.in_flight.skip();
            tickets.extend(first.iter().map(|r| self.queue(r, true)));
        }
        let packet = match self.packet_within(timeout) {
            Ok(packet) => packet,
            // No packet: something else than an SFTP server has answered.
            Err(SessionError::Protocol(_)) if !self.input.is_empty() => {
                let said = first_line(&self.input);
                return Err(OpenError::NoSftp(format!("it says \"{said}\"")));
            }
            Err(SessionError::Lost(why)) if self.channel.eof() => {
                return Err(OpenError::NoSftp(why));
            }
            Err(e) => return Err(OpenError::Session(VERSION, e)),
        };
        let version = Version::decode(&packet).map_err(|e| OpenError::NoSftp(e.to_string()))?;
        if version.version != wire::VERSION {
            return Err(OpenError::Version(version.version));
        }
        self.features.posix_rename = version.offers(extension::POSIX_RENAME);
        self.features.hardlink = version.offers(extension::HARDLINK);
        self.features.fsync = version.offers(extension::FSYNC);
        self.features.lsetstat = version.offers(extension::LSETSTAT);
        self.features.copy_data = version.offers(extension::COPY_DATA);
        self.features.statvfs = version.offers(extension::STATVFS);
        let mut asked = self.link.openssh;
        if !self.link.openssh {
            if version.offers(extension::LIMITS) {
                asked = true;
                wire::encode_limits(limits_id, &mut self.output);
                self.in_flight.skip();
            }
            tickets.extend(first.iter().map(|r| self.queue(r, true)));
        }
        if asked {
            let limits = self
                .limits_within(limits_id, timeout)
                .map_err(|e| OpenError::Session(LIMITS, e))?;
            if let Some(limits) = limits {
                self.apply(limits);
            }
        }
        // What came along with the last packet would else be seen only when more comes.
        self.take_replies()
            .map_err(|e| OpenError::Session(LIMITS, e))?;
        Ok(tickets)
    }

    /// Waits for the answer about the limits; other answers are kept.
    fn limits_within(
        &mut self,
        id: u32,
        timeout: Duration,
    ) -> Result<Option<Limits>, SessionError> {
        loop {
            let packet = self.packet_within(timeout)?;
            if wire::reply_id(&packet)? == id {
                return Ok(wire::decode_limits(&packet)?);
            }
            let reply = self.in_flight.answer(&packet, self.heard)?;
            self.replies.extend(reply);
        }
    }

    fn apply(&mut self, limits: Limits) {
        // Beside its data a WRITE holds its type, id, handle and offset.
        const HEADER: u64 = 1024;
        let packet = match limits.packet {
            0 => u64::MAX,
            packet => packet.saturating_sub(HEADER),
        };
        let size = |told: u64| match told {
            0 => PLAIN_SIZE.min(packet as u32),
            told => told.min(packet).min(wire::MAX_DATA.into()) as u32,
        };
        self.features.max_write = size(limits.write).max(1);
        self.features.max_read = size(limits.read).max(1);
        self.features.max_handles = (limits.handles > 0).then_some(limits.handles);
    }

    /// Writes what is queued and waits for one packet; for the start.
    fn packet_within(&mut self, timeout: Duration) -> Result<Vec<u8>, SessionError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.write_out()?;
            let open = self.read_piece();
            if let Some(len) = wire::frame(&self.input)? {
                let packet = self.input[4..len].to_vec();
                self.input.drain(..len);
                return Ok(packet);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match open? {
                Some(_) => {}
                None if left.is_zero() => return Err(SessionError::TimedOut(timeout)),
                None => {
                    self.wait(left, None)?;
                }
            }
        }
    }

    /// One round of input and output without waiting.
    fn pass(&mut self) -> Result<(), SessionError> {
        loop {
            self.write_out()?;
            let starved = self.starved();
            while self.read_piece()?.is_some() {
                self.take_replies()?;
            }
            if !starved || self.starved() {
                return Ok(());
            }
        }
    }

    /// Whether there is something to write and no window for it.
    fn starved(&self) -> bool {
        self.written < self.output.len() && self.channel.write_window().remaining == 0
    }

    fn write_out(&mut self) -> Result<(), SessionError> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match self.channel.write(&rest[..rest.len().min(WRITE_PIECE)]) {
                // No room in the window.
                Ok(0) => break,
                Ok(n) => {
                    self.written += n;
                    self.traffic.0 += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(self.lost(&e)),
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            self.output.shrink_to(KEPT_ROOM);
        } else if self.written > self.output.len() / 2 {
            // At least half is sent, so each byte is moved once on average.
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads once; none: nothing is there.
    fn read_piece(&mut self) -> Result<Option<usize>, SessionError> {
        match self.channel.read(&mut self.piece) {
            Ok(0) if self.channel.eof() => Err(SessionError::Lost(
                "the server has ended the SFTP service".to_string(),
            )),
            Ok(0) => Ok(None),
            Ok(n) => {
                self.input.extend_from_slice(&self.piece[..n]);
                self.traffic.1 += n as u64;
                self.heard = Instant::now();
                Ok(Some(n))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// In words: libssh2's own say where in its code it was, "transport read".
    fn lost(&self, e: &std::io::Error) -> SessionError {
        let last = ssh2::Error::last_session_error(&self.link.session).map(|e| e.code());
        let why = match last {
            Some(ErrorCode::Session(code)) if error::CLOSED.contains(&code) => {
                "the server closed the connection".to_string()
            }
            _ => e.to_string(),
        };
        SessionError::Lost(why)
    }

    /// Turns the whole packets in `input` into replies.
    fn take_replies(&mut self) -> Result<(), SessionError> {
        let mut from = 0;
        let taken = loop {
            match wire::frame(&self.input[from..]) {
                Ok(Some(len)) => {
                    let packet = &self.input[from + 4..from + len];
                    match self.in_flight.answer(packet, self.heard) {
                        Ok(Some(reply)) => self.replies.push_back(reply),
                        Ok(None) => {}
                        Err(e) => break Err(e),
                    }
                    from += len;
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        self.input.drain(..from);
        Ok(taken?)
    }

    /// Waits until the socket or `wake` is ready, or for `wait`; whether it was `wake`.
    fn wait(&self, wait: Duration, wake: Option<BorrowedFd<'_>>) -> Result<bool, SessionError> {
        let mut what = PollFlags::IN;
        if matches!(
            self.link.session.block_directions(),
            BlockDirections::Outbound | BlockDirections::Both
        ) {
            what |= PollFlags::OUT;
        }
        let socket = PollFd::from_borrowed_fd(self.link.socket.as_fd(), what);
        let timeout = timespec(wait);
        let polled = match wake {
            None => rustix::event::poll(&mut [socket], Some(&timeout)).map(|_| false),
            Some(wake) => {
                let mut fds = [socket, PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&timeout)).map(|_| !fds[1].revents().is_empty())
            }
        };
        match polled {
            Ok(woken) => Ok(woken),
            Err(Errno::INTR) => Ok(false),
            Err(e) => Err(SessionError::Lost(std::io::Error::from(e).to_string())),
        }
    }

    fn ask_for_a_sign_of_life(&mut self, now: Instant) {
        if self.in_flight.is_empty() && now.saturating_duration_since(self.heard) >= IDLE {
            let path = b".".to_vec();
            self.queue(&Request::Realpath { path }, false);
        }
    }

    fn queue(&mut self, request: &Request, owners: bool) -> Ticket {
        let ticket = Ticket(self.in_flight.next());
        if wire::encode(ticket.0, request, &mut self.output).is_ok() {
            self.in_flight.add(request, owners);
        } else {
            self.in_flight.skip();
            let status = Status {
                code: code::BAD_MESSAGE,
                message: "the request is longer than an SFTP packet may be".to_string(),
            };
            self.replies.push_back((ticket, Reply::Status(status)));
        }
        ticket
    }

    fn pump_alive(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        let start = Instant::now();
        loop {
            self.ask_for_a_sign_of_life(Instant::now());
            self.in_flight.start_clock();
            self.pass()?;
            if !self.replies.is_empty() {
                return Ok(());
            }
            let now = Instant::now();
            let io_timeout = self.link.io_timeout;
            let until_check = match self.in_flight.oldest_since {
                Some(since) => {
                    let age = now.saturating_duration_since(since);
                    if age >= io_timeout {
                        return Err(SessionError::TimedOut(io_timeout));
                    }
                    io_timeout - age
                }
                None => IDLE.saturating_sub(now.saturating_duration_since(self.heard)),
            };
            let left = timeout.saturating_sub(now.saturating_duration_since(start));
            let woken = self.wait(left.min(until_check), wake)?;
            if woken || left.is_zero() {
                // What made poll return may be a reply as well.
                return self.pass();
            }
        }
    }
}

impl Remote for SftpChannel {
    fn send(&mut self, request: Request) -> Ticket {
        let request = match request {
            Request::Symlink { target, link } if self.link.symlinks_as_drafted => {
                let (target, link) = (link, target);
                Request::Symlink { target, link }
            }
            other => other,
        };
        self.queue(&request, true)
    }

    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        if let Some(why) = &self.dead {
            return Err(why.clone());
        }
        let result = self.pump_alive(timeout, wake);
        if let Err(why) = &result {
            hang_up(&self.link.socket);
            self.dead = Some(why.clone());
        }
        result
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.replies.pop_front()
    }

    fn outstanding(&self) -> usize {
        self.in_flight.owners
    }

    fn unacknowledged_bytes(&self) -> usize {
        self.in_flight.bytes
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn traffic(&self) -> (u64, u64) {
        self.traffic
    }
}

impl Drop for SftpChannel {
    /// Ends the session, unless further channels use it.
    fn drop(&mut self) {
        if Arc::strong_count(&self.link) == 1 {
            hang_up(&self.link.socket);
        }
    }
}

fn start_subsystem(session: &Session) -> Result<Channel, OpenError> {
    let mut channel = session
        .channel_open("session", RECEIVE_WINDOW, CHANNEL_PACKET, None)
        .map_err(|e| OpenError::Ssh("opening a channel", e))?;
    // What the other side says on its error output must not fill the window.
    let started = channel
        .handle_extended_data(ExtendedData::Ignore)
        .and_then(|()| channel.subsystem("sftp"));
    match started {
        Ok(()) => Ok(channel),
        Err(e) => {
            // The channel says goodbye when it is dropped, and must not wait for an answer.
            session.set_blocking(false);
            Err(OpenError::Ssh("starting SFTP", e))
        }
    }
}
