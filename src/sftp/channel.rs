//! One SFTP channel with many requests in flight, on ssh2's raw channel; and how channels are opened.
//!
//! The dangers, and what answers each:
//!
//! - *A round trip for each request.* `queue` only appends to a buffer; [`Lane::write_piece`] hands the
//!   buffer to libssh2 in packet-sized pieces, however many requests share one.
//! - *A piece half sent.* libssh2 has taken the bytes of a write that says "would block" already, and
//!   must be called with the same ones again: the buffer's head moves only by what was written, and
//!   new requests only go behind its end. Until then libssh2 takes nothing else, of no channel: those
//!   "would block" too. So whoever waits for the socket tries again when it has room ([`Lane::blocked`]).
//! - *Answers that nobody asked for.* An id must be under way, and is so once; see [`wire`].
//! - *Memory.* Incoming: one packet and one read at a time, and answers only to what was asked; the
//!   rest is bounded by the receive window. Outgoing: what the owner queues, and it has
//!   `outstanding` and `unacknowledged_on` to stop at.
//! - *A server that gives a session one channel only* (MaxSessions), or has no room for another process.
//!   That is no error where one is open already: [`Opening`] then asks no more.
//! - *One channel is opened at a time*: libssh2 keeps the state of that in the session. But while one
//!   starts its subsystem the next one can be asked for.

use super::in_flight::InFlight;
use super::tcp::{first_line, timespec};
use super::wire::{self, Limits, Version, extension};
use super::{Features, Reply, Request, SessionError, Status, Ticket, code};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use ssh2::{BlockDirections, Channel, ErrorCode, ExtendedData, Session};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Channels of one session at most.
pub const MOST_LANES: usize = 4;

/// A round trip that takes so long is worth more than one channel: what fills a channel's window (2 MiB with
/// OpenSSH) in less is faster than most disks.
pub const FAR: Duration = Duration::from_millis(5);

/// While a channel is opened beside something else, each may read what is for the other; so neither sleeps
/// longer than this.
const TICK: Duration = Duration::from_millis(2);

/// The receive window in bytes: more READ data than this must not be asked for at a time.
pub const RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;

/// Largest packet that we take, in bytes: every implementation must handle this (RFC 4253, 6.1).
const CHANNEL_PACKET: u32 = 32 * 1024;

/// How much is read at a time.
const READ_PIECE: usize = 64 * 1024;

/// How much is given to libssh2 at a time: what it puts into one packet.
pub(super) const WRITE_PIECE: usize = 32 * 1024;

/// READ and WRITE size in bytes where a server does not tell its own (draft 02, section 6.4).
const PLAIN_SIZE: u32 = 32 * 1024;

/// A buffer with more room than this gives it back when it is empty, in bytes.
const KEPT_ROOM: usize = 1024 * 1024;

/// libssh2's error codes (libssh2.h) as far as we tell them apart.
mod error {
    /// SOCKET_SEND, SOCKET_DISCONNECT, SOCKET_RECV.
    pub const CLOSED: [i32; 3] = [-7, -13, -43];
    /// EAGAIN.
    pub const WOULD_BLOCK: i32 = -37;
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

impl Link {
    /// Whether what just "would block" waits for room in the socket.
    fn wants_room(&self) -> bool {
        matches!(
            self.session.block_directions(),
            BlockDirections::Outbound | BlockDirections::Both
        )
    }

    /// Waits until the socket or `wake` is ready, or for `wait`; whether it was `wake`. `room`: whether room
    /// in the socket is waited for as well.
    pub(super) fn wait(
        &self,
        room: bool,
        wait: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<bool, SessionError> {
        let mut what = PollFlags::IN;
        if room {
            what |= PollFlags::OUT;
        }
        let socket = PollFd::from_borrowed_fd(self.socket.as_fd(), what);
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

    /// In words: libssh2's own say where in its code it was, "transport read".
    fn lost(&self, e: &std::io::Error) -> SessionError {
        let last = ssh2::Error::last_session_error(&self.session).map(|e| e.code());
        let why = match last {
            Some(ErrorCode::Session(code)) if error::CLOSED.contains(&code) => {
                "the server closed the connection".to_string()
            }
            _ => e.to_string(),
        };
        SessionError::Lost(why)
    }
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

const START: &str = "starting SFTP";

/// Replies, in the order of their arrival.
pub(super) type Replies = VecDeque<(Ticket, Reply)>;

/// An SFTP channel of a session, and what is on its way there.
pub(super) struct Lane {
    number: u8,
    channel: Channel,
    link: Arc<Link>,
    /// Packets to write; the part before `written` is sent already.
    output: Vec<u8>,
    written: usize,
    /// What was read and is no whole packet yet.
    input: Vec<u8>,
    piece: Box<[u8]>,
    pub(super) in_flight: InFlight,
    /// Whether VERSION has come.
    greeted: bool,
    /// Whether it waits for room in the socket.
    pub(super) blocked: bool,
    /// Whether it waits for room in the channel's window.
    full: bool,
    /// When a byte came last.
    pub(super) heard: Instant,
    /// Bytes sent and received.
    pub(super) traffic: (u64, u64),
}

impl Lane {
    /// SFTP on a channel whose subsystem runs. INIT is the first thing to be written.
    pub(super) fn new(number: u8, channel: Channel, link: Arc<Link>) -> Lane {
        let mut output = Vec::new();
        wire::encode_init(&mut output);
        Lane {
            number,
            channel,
            link,
            output,
            written: 0,
            input: Vec::new(),
            piece: vec![0; READ_PIECE].into(),
            in_flight: InFlight::default(),
            greeted: false,
            blocked: false,
            full: false,
            heard: Instant::now(),
            traffic: (0, 0),
        }
    }

    /// Waits for VERSION, asks for the limits where they are offered, and sends the owner's first requests.
    /// With OpenSSH all of that is one round trip: it takes one thing after another, has offered the limits
    /// since 8.5 and says so if it has not heard of them. (Its window is shut until the subsystem runs, so
    /// nothing can go along with the request for that.)
    pub(super) fn negotiate(
        &mut self,
        deadline: Deadline,
        first: &[Request],
        replies: &mut Replies,
        opening: &mut Opening,
    ) -> Result<(Features, Vec<Ticket>), OpenError> {
        const LIMITS: &str = "asking for SFTP's limits";
        let openssh = self.link.openssh;
        let limits_id = self.in_flight.next();
        let mut tickets = Vec::new();
        if openssh {
            wire::encode_limits(limits_id, &mut self.output);
            self.in_flight.skip();
            tickets.extend(first.iter().map(|r| self.queue(r, true, replies)));
        }
        let packet = match self.packet_within(deadline, opening) {
            Ok(packet) => packet,
            // No packet: something else than an SFTP server has answered.
            Err(SessionError::Protocol(_)) if !self.input.is_empty() => {
                let said = first_line(&self.input);
                return Err(OpenError::NoSftp(format!("it says \"{said}\"")));
            }
            Err(SessionError::Lost(why)) if self.channel.eof() => {
                return Err(OpenError::NoSftp(why));
            }
            Err(e) => return Err(OpenError::Session(START, e)),
        };
        let version = Version::decode(&packet).map_err(|e| OpenError::NoSftp(e.to_string()))?;
        if version.version != wire::VERSION {
            return Err(OpenError::Version(version.version));
        }
        self.greeted = true;
        let mut features = Features {
            posix_rename: version.offers(extension::POSIX_RENAME),
            hardlink: version.offers(extension::HARDLINK),
            fsync: version.offers(extension::FSYNC),
            lsetstat: version.offers(extension::LSETSTAT),
            copy_data: version.offers(extension::COPY_DATA),
            statvfs: version.offers(extension::STATVFS),
            openssh,
            max_write: PLAIN_SIZE,
            max_read: PLAIN_SIZE,
            max_handles: None,
        };
        let mut asked = openssh;
        if !openssh {
            if version.offers(extension::LIMITS) {
                asked = true;
                wire::encode_limits(limits_id, &mut self.output);
                self.in_flight.skip();
            }
            tickets.extend(first.iter().map(|r| self.queue(r, true, replies)));
        }
        let limits = match asked {
            true => self.limits_within(limits_id, deadline, replies, opening),
            false => Ok(None),
        };
        if let Some(limits) = limits.map_err(|e| OpenError::Session(LIMITS, e))? {
            apply(limits, &mut features);
        }
        // What came along with the last packet would else be seen only when more comes.
        self.take_replies(replies)
            .map_err(|e| OpenError::Session(LIMITS, e))?;
        Ok((features, tickets))
    }

    /// Waits for the answer about the limits; other answers are kept.
    fn limits_within(
        &mut self,
        id: u32,
        deadline: Deadline,
        replies: &mut Replies,
        opening: &mut Opening,
    ) -> Result<Option<Limits>, SessionError> {
        loop {
            let packet = self.packet_within(deadline, opening)?;
            if wire::reply_id(&packet)? == id {
                return Ok(wire::decode_limits(&packet)?);
            }
            self.take_reply(&packet, replies)?;
        }
    }

    /// Writes what is queued and waits for one packet; for the start.
    fn packet_within(
        &mut self,
        deadline: Deadline,
        opening: &mut Opening,
    ) -> Result<Vec<u8>, SessionError> {
        loop {
            while self.write_piece(WRITE_PIECE)? > 0 {}
            // First this one, which may read what is ours as well: we read it then.
            opening.go_on();
            let open = self.read_piece();
            if let Some(len) = wire::frame(&self.input)? {
                let packet = self.input[4..len].to_vec();
                self.input.drain(..len);
                return Ok(packet);
            }
            if open?.is_none() {
                let left = deadline.left()?;
                let wait = if opening.is_busy() {
                    left.min(TICK)
                } else {
                    left
                };
                self.link
                    .wait(self.blocked || opening.blocked, wait, None)?;
            }
        }
    }

    /// Whether requests may be sent on it.
    pub(super) fn is_usable(&self) -> bool {
        self.greeted || self.link.openssh
    }

    /// Whether something waits to be written.
    pub(super) fn has_output(&self) -> bool {
        self.written < self.output.len()
    }

    /// Whether it waited for window when it was last written to.
    pub(super) fn is_full(&self) -> bool {
        self.full && self.has_output()
    }

    /// Whether it waited for window when it was last written to, and has some now.
    pub(super) fn may_go_on(&self) -> bool {
        self.is_full() && self.channel.write_window().remaining > 0
    }

    /// Whether bytes of this channel have come that were not read from it: other channels read the
    /// socket as well.
    pub(super) fn has_input(&self) -> bool {
        self.channel.read_window().available > 0
    }

    /// Writes one piece, of `most` bytes at most; how much it was. 0: there is nothing, or no room.
    pub(super) fn write_piece(&mut self, most: usize) -> Result<usize, SessionError> {
        (self.blocked, self.full) = (false, false);
        if !self.has_output() {
            return Ok(0);
        }
        let rest = &self.output[self.written..];
        let piece = &rest[..rest.len().min(most.clamp(1, WRITE_PIECE))];
        let n = match self.channel.write(piece) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => return Err(self.link.lost(&e)),
        };
        if n == 0 {
            self.blocked = self.link.wants_room();
            self.full = self.channel.write_window().remaining == 0;
            return Ok(0);
        }
        self.written += n;
        self.traffic.0 += n as u64;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            self.output.shrink_to(KEPT_ROOM);
        } else if self.written > self.output.len() / 2 {
            // At least half is sent, so each byte is moved once on average.
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(n)
    }

    /// Reads what is there and turns it into replies; whether there was anything.
    pub(super) fn read(&mut self, replies: &mut Replies) -> Result<bool, SessionError> {
        let mut any = false;
        while self.read_piece()?.is_some() {
            any = true;
            self.take_replies(replies)?;
        }
        Ok(any)
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
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                // It gives window back when it reads, and that may not fit the socket.
                self.blocked |= self.link.wants_room();
                Ok(None)
            }
            Err(e) => Err(self.link.lost(&e)),
        }
    }

    /// Turns the whole packets in `input` into replies.
    fn take_replies(&mut self, replies: &mut Replies) -> Result<(), SessionError> {
        let input = std::mem::take(&mut self.input);
        let mut from = 0;
        while let Some(len) = wire::frame(&input[from..])? {
            self.take_reply(&input[from + 4..from + len], replies)?;
            from += len;
        }
        self.input = input;
        self.input.drain(..from);
        Ok(())
    }

    fn take_reply(&mut self, packet: &[u8], replies: &mut Replies) -> Result<(), SessionError> {
        if !self.greeted {
            let version = Version::decode(packet)?.version;
            if version != wire::VERSION {
                let why = format!("it speaks SFTP version {version} on a further channel");
                return Err(SessionError::Protocol(why));
            }
            self.greeted = true;
            return Ok(());
        }
        if let Some((id, reply)) = self.in_flight.answer(packet, self.heard)? {
            replies.push_back((self.ticket(id), reply));
        }
        Ok(())
    }

    fn ticket(&self, id: u32) -> Ticket {
        Ticket {
            lane: self.number,
            id,
        }
    }

    /// Queues a request; `owners`: whether the reply is for the owner of the session.
    pub(super) fn queue(
        &mut self,
        request: &Request,
        owners: bool,
        replies: &mut Replies,
    ) -> Ticket {
        let ticket = self.ticket(self.in_flight.next());
        let turned = match request {
            Request::Symlink { target, link } if self.link.symlinks_as_drafted => {
                let (target, link) = (link.clone(), target.clone());
                Some(Request::Symlink { target, link })
            }
            _ => None,
        };
        let encoded = wire::encode(
            ticket.id,
            turned.as_ref().unwrap_or(request),
            &mut self.output,
        );
        if encoded.is_ok() {
            self.in_flight.add(request, owners);
        } else {
            self.in_flight.skip();
            let status = Status {
                code: code::BAD_MESSAGE,
                message: "the request is longer than an SFTP packet may be".to_string(),
            };
            replies.push_back((ticket, Reply::Status(status)));
        }
        ticket
    }
}

fn apply(limits: Limits, features: &mut Features) {
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
    features.max_write = size(limits.write).max(1);
    features.max_read = size(limits.read).max(1);
    features.max_handles = (limits.handles > 0).then_some(limits.handles);
}

/// When the start must be over.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Deadline {
        Deadline {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    fn left(self) -> Result<Duration, SessionError> {
        match self.at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(SessionError::TimedOut(self.timeout)),
            left => Ok(left),
        }
    }
}

/// Channels that are being opened, without blocking what else the session does.
pub(super) struct Opening {
    link: Arc<Link>,
    /// How many channels are wanted in all.
    wanted: usize,
    /// How many there are, those included that wait in `starting` and `ready`.
    have: usize,
    /// A request for one is on its way.
    asking: bool,
    starting: Vec<Channel>,
    ready: Vec<Channel>,
    /// The server gives no more.
    refused: bool,
    /// Whether it waits for room in the socket.
    pub(super) blocked: bool,
}

impl Opening {
    /// Of a session that has one channel.
    fn new(link: Arc<Link>) -> Opening {
        Opening {
            link,
            wanted: 1,
            have: 1,
            asking: false,
            starting: Vec::new(),
            ready: Vec::new(),
            refused: false,
            blocked: false,
        }
    }

    /// So many channels are of use.
    pub(super) fn want(&mut self, channels: usize) {
        self.wanted = self.wanted.max(channels.min(MOST_LANES));
    }

    /// Whether one is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.asking || !self.starting.is_empty()
    }

    /// A channel whose subsystem runs.
    pub(super) fn next(&mut self) -> Option<Channel> {
        (!self.ready.is_empty()).then(|| self.ready.remove(0))
    }

    /// Takes a step, if one can be taken; whether it did. It may have read what is for open channels.
    pub(super) fn go_on(&mut self) -> bool {
        self.blocked = false;
        let mut moved = false;
        if !self.refused && (self.asking || self.have < self.wanted) {
            match open_channel(&self.link.session) {
                Ok(channel) => {
                    self.asking = false;
                    self.have += 1;
                    self.starting.push(channel);
                    moved = true;
                }
                Err(e) => self.asking = self.is_waiting(&e),
            }
        }
        let mut i = 0;
        while i < self.starting.len() {
            match self.starting[i].subsystem(SFTP) {
                Ok(()) => {
                    self.ready.push(self.starting.remove(i));
                    moved = true;
                }
                Err(e) if self.is_waiting(&e) => i += 1,
                Err(_) => drop(self.starting.remove(i)),
            }
        }
        moved
    }

    /// Whether it would block; else the server has said no. (Or the connection broke, and whoever uses it
    /// next will say that.)
    fn is_waiting(&mut self, e: &ssh2::Error) -> bool {
        let waiting = would_block(e);
        self.blocked |= waiting && self.link.wants_room();
        if !waiting && !self.refused {
            self.refused = true;
            log::debug!("the server gives this session {} channels", self.have);
        }
        waiting
    }
}

const SFTP: &str = "sftp";

fn would_block(e: &ssh2::Error) -> bool {
    matches!(e.code(), ErrorCode::Session(error::WOULD_BLOCK))
}

fn open_channel(session: &Session) -> Result<Channel, ssh2::Error> {
    let mut channel = session.channel_open("session", RECEIVE_WINDOW, CHANNEL_PACKET, None)?;
    // What the other side says on its error output must not fill the window.
    channel.handle_extended_data(ExtendedData::Ignore)?;
    Ok(channel)
}

/// The first channel of a session, which is blocking until it is there, and not any more then; and what
/// opens further ones, `far` of them where the line is so long that they are of use. The time is that of
/// a round trip.
pub(super) fn first_channel(
    link: &Arc<Link>,
    deadline: Deadline,
    far: usize,
) -> Result<(Channel, Opening, Duration), OpenError> {
    let asked = Instant::now();
    let opened = open_channel(&link.session);
    let round_trip = asked.elapsed();
    // A channel says goodbye when it is dropped, and must not wait for an answer.
    link.session.set_blocking(false);
    let mut channel = opened.map_err(|e| OpenError::Ssh("opening a channel", e))?;
    let mut opening = Opening::new(Arc::clone(link));
    if round_trip >= FAR {
        opening.want(far);
    }
    loop {
        match channel.subsystem(SFTP) {
            Ok(()) => return Ok((channel, opening, round_trip)),
            Err(e) if would_block(&e) => {
                let room = link.wants_room();
                opening.go_on();
                let left = deadline.left().map_err(|e| OpenError::Session(START, e))?;
                let wait = if opening.is_busy() {
                    left.min(TICK)
                } else {
                    left
                };
                link.wait(room || opening.blocked, wait, None)
                    .map_err(|e| OpenError::Session(START, e))?;
            }
            Err(e) => return Err(OpenError::Ssh(START, e)),
        }
    }
}
