//! A pipelined SFTP v3 client (draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL extensions).
//!
//! [`Remote`] is what the mirror side sees of it: requests go in, replies come out, many in flight.
//! [`session`] makes the SSH connection (host key, login), [`lanes`] and [`channel`] move the bytes, [`wire`]
//! turns requests into packets and packets into replies, trusting nothing that the server says.
//!
//! This module knows nothing of the journal or of changes.

mod base64;
pub mod channel;
pub mod connect_error;
mod in_flight;
pub mod known_hosts;
pub mod lanes;
pub mod login;
mod malformed;
mod offers;
mod pace;
pub mod session;
mod tcp;
pub mod wire;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Names a request that is under way: given by [`Remote::send`], comes back with the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The lane that it was sent on.
    pub lane: u8,
    /// Its number there.
    pub id: u32,
}

/// A server's handle of an open file or directory: opaque, at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub Box<[u8]>);

/// File attributes as SFTP v3 carries them; what is none is not sent, or was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Attrs {
    /// Length in bytes.
    pub size: Option<u64>,
    /// Numeric user and group.
    pub owner: Option<(u32, u32)>,
    /// Type and permission bits, as `st_mode`.
    pub mode: Option<u32>,
    /// Access and modification time: seconds since 1970, unsigned 32 bits (until 2106).
    pub times: Option<(u32, u32)>,
}

/// How a file is opened (SSH_FXF_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To read.
    Read,
    /// To write; the file must exist and keeps its content.
    Update,
    /// To write; made if missing, emptied if not.
    Create,
    /// To write; made if missing, and keeps its content if not.
    Continue,
    /// To write; it must not exist.
    CreateNew,
}

/// A request. Paths are bytes as the server has them (absolute, or relative to the login directory).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request {
    Open {
        path: Vec<u8>,
        mode: OpenMode,
        attrs: Attrs,
    },
    Close {
        handle: Handle,
    },
    Read {
        handle: Handle,
        offset: u64,
        len: u32,
    },
    /// At most 255 KiB of data; 32 KiB is what every server takes.
    Write {
        handle: Handle,
        offset: u64,
        data: Vec<u8>,
    },
    Lstat {
        path: Vec<u8>,
    },
    Stat {
        path: Vec<u8>,
    },
    Fstat {
        handle: Handle,
    },
    Setstat {
        path: Vec<u8>,
        attrs: Attrs,
    },
    Fsetstat {
        handle: Handle,
        attrs: Attrs,
    },
    Opendir {
        path: Vec<u8>,
    },
    Readdir {
        handle: Handle,
    },
    Remove {
        path: Vec<u8>,
    },
    Mkdir {
        path: Vec<u8>,
        attrs: Attrs,
    },
    Rmdir {
        path: Vec<u8>,
    },
    Realpath {
        path: Vec<u8>,
    },
    Readlink {
        path: Vec<u8>,
    },
    /// `link` is made and points to `target`. (The client puts them on the wire in the order that
    /// OpenSSH and most servers expect, which is not the draft's.)
    Symlink {
        target: Vec<u8>,
        link: Vec<u8>,
    },
    /// v3's own RENAME: does not replace.
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// posix-rename@openssh.com: replaces.
    PosixRename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// hardlink@openssh.com.
    Hardlink {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// copy-data: `len` bytes of `from`, or up to its end where that is 0, to the same place in `to`. (It fails if there
    /// are less.)
    CopyData {
        from: Handle,
        to: Handle,
        offset: u64,
        len: u64,
    },
    /// fsync@openssh.com.
    Fsync {
        handle: Handle,
    },
    /// lsetstat@openssh.com: as Setstat, on a symlink itself.
    Lsetstat {
        path: Vec<u8>,
        attrs: Attrs,
    },
    /// statvfs@openssh.com: the answer is Data, which [`wire::Space::read`] understands.
    Statvfs {
        path: Vec<u8>,
    },
}

/// An SSH_FXP_STATUS that is not OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// SSH_FX_*: see [`code`].
    pub code: u32,
    /// The server's words, cut to 200 characters, control characters replaced.
    pub message: String,
}

/// Status codes of SFTP v3 (draft 02, section 7).
#[allow(missing_docs)]
pub mod code {
    pub const EOF: u32 = 1;
    pub const NO_SUCH_FILE: u32 = 2;
    pub const PERMISSION_DENIED: u32 = 3;
    pub const FAILURE: u32 = 4;
    pub const BAD_MESSAGE: u32 = 5;
    pub const NO_CONNECTION: u32 = 6;
    pub const CONNECTION_LOST: u32 = 7;
    pub const OP_UNSUPPORTED: u32 = 8;
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.code {
            code::EOF => "end of file",
            code::NO_SUCH_FILE => "no such file",
            code::PERMISSION_DENIED => "permission denied",
            code::FAILURE => "failure",
            code::BAD_MESSAGE => "bad message",
            code::NO_CONNECTION => "no connection",
            code::CONNECTION_LOST => "connection lost",
            code::OP_UNSUPPORTED => "operation unsupported",
            other => return write!(f, "status {other}: {}", self.message),
        };
        if self.message.is_empty() || self.message.eq_ignore_ascii_case(name) {
            f.write_str(name)
        } else {
            write!(f, "{name}: {}", self.message)
        }
    }
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name (or, for Realpath and Readlink, the path): any bytes; not checked for `/` or `..`.
    pub name: Vec<u8>,
    /// Its attributes, where the server tells them.
    pub attrs: Attrs,
    /// How many names the file has, where the long form (`ls -l`) tells.
    pub links: Option<u32>,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Ok,
    /// It is not done. `EOF` ends READ and READDIR.
    Status(Status),
    /// The answer to Open and Opendir.
    Handle(Handle),
    /// The answer to Read.
    Data(Vec<u8>),
    /// The answer to Readdir, Realpath and Readlink.
    Names(Vec<Name>),
    /// The answer to Stat, Lstat and Fstat.
    Attrs(Attrs),
}

/// What a server can do beyond plain v3, from its VERSION packet and limits@openssh.com.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// posix-rename@openssh.com
    pub posix_rename: bool,
    /// hardlink@openssh.com
    pub hardlink: bool,
    /// fsync@openssh.com
    pub fsync: bool,
    /// lsetstat@openssh.com
    pub lsetstat: bool,
    /// copy-data
    pub copy_data: bool,
    /// statvfs@openssh.com
    pub statvfs: bool,
    /// Whether the SSH banner says OpenSSH: such a server works on one request after another.
    pub openssh: bool,
    /// Largest WRITE in bytes: 32 KiB unless limits@openssh.com tells more, and never above 255 KiB.
    pub max_write: u32,
    /// Largest READ in bytes, likewise.
    pub max_read: u32,
    /// How many files may be open at once; none: not told.
    pub max_handles: Option<u64>,
}

/// A mirror's SFTP server, with many requests in flight: the real one, or a test's.
///
/// Requests go on lanes, numbered from 0. Those of one lane are carried out one after another by servers that
/// do so (OpenSSH); those of different lanes in any order, and a handle is good on its own lane only.
///
/// Any error ends the session: what was under way may or may not have been carried out.
pub trait Remote {
    /// Queues a request and returns its ticket. Does not block and does no I/O.
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket;

    /// The same on the first lane.
    fn send(&mut self, request: Request) -> Ticket {
        self.send_on(0, request)
    }

    /// Moves bytes both ways. Returns when at least one reply is there, when another lane is, when `wake`
    /// becomes readable, or after `timeout`, whichever is first; at once when something is there already.
    /// Requests that were queued are written out before it waits.
    ///
    /// # Errors
    /// The connection broke, the server sent what is no SFTP, or the oldest request is older than
    /// the session's I/O time-out. The session is dead then.
    fn pump(&mut self, timeout: Duration, wake: Option<BorrowedFd<'_>>)
    -> Result<(), SessionError>;

    /// The next reply, in the order of arrival.
    fn reply(&mut self) -> Option<(Ticket, Reply)>;

    /// How many requests have no reply yet.
    fn outstanding(&self) -> usize;

    /// Bytes of WRITE data on a lane that have no reply yet, queued ones included.
    fn unacknowledged_on(&self, lane: usize) -> usize;

    /// The same of all lanes.
    fn unacknowledged_bytes(&self) -> usize {
        (0..self.lanes()).map(|n| self.unacknowledged_on(n)).sum()
    }

    /// Who compares files by checksums that are made there; none: nobody.
    fn hasher(&mut self) -> Option<&mut session::Hasher> {
        None
    }

    /// How many lanes there are. Never becomes less.
    fn lanes(&self) -> usize {
        1
    }

    /// So many lanes would be of use. They come while it is pumped, or not at all: a server may refuse them.
    fn want_lanes(&mut self, _lanes: usize) {}

    /// Whether all lanes but the first wait for the server's window, and the line could carry more.
    fn line_has_room(&self) -> bool {
        false
    }

    /// A file of so many bytes is worth several lanes.
    fn wide_from(&self) -> u64 {
        8 << 20
    }

    /// How long an answer takes, about.
    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }

    /// What the server can do.
    fn features(&self) -> &Features;

    /// Bytes sent and received on the SFTP channels so far.
    fn traffic(&self) -> (u64, u64);
}

impl<R: Remote> Remote for &mut R {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        (**self).send_on(lane, request)
    }
    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        (**self).pump(timeout, wake)
    }
    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        (**self).reply()
    }
    fn outstanding(&self) -> usize {
        (**self).outstanding()
    }
    fn unacknowledged_on(&self, lane: usize) -> usize {
        (**self).unacknowledged_on(lane)
    }
    fn hasher(&mut self) -> Option<&mut session::Hasher> {
        (**self).hasher()
    }
    fn lanes(&self) -> usize {
        (**self).lanes()
    }
    fn want_lanes(&mut self, lanes: usize) {
        (**self).want_lanes(lanes);
    }
    fn line_has_room(&self) -> bool {
        (**self).line_has_room()
    }
    fn wide_from(&self) -> u64 {
        (**self).wide_from()
    }
    fn round_trip(&self) -> Duration {
        (**self).round_trip()
    }
    fn features(&self) -> &Features {
        (**self).features()
    }
    fn traffic(&self) -> (u64, u64) {
        (**self).traffic()
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// The connection broke; the text is one line for people.
    Lost(String),
    /// No answer within the I/O time-out.
    TimedOut(Duration),
    /// The server sent something that is no SFTP v3.
    Protocol(String),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::Lost(why) => write!(f, "connection lost: {why}"),
            SessionError::TimedOut(after) => write!(
                f,
                "the server did not answer for {} s: check the network and the load there, or raise io_timeout",
                after.as_secs_f32().ceil()
            ),
            SessionError::Protocol(what) => {
                write!(f, "the server does not speak SFTP properly: {what}")
            }
        }
    }
}

impl std::error::Error for SessionError {}
