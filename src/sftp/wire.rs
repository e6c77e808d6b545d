//! SFTP v3 packets: requests into bytes, bytes into replies (draft-ietf-secsh-filexfer-02 and
//! OpenSSH's PROTOCOL).
//!
//! The danger: everything read here was written by somebody else's server, or by its login shell.
//! So every length is checked against what is really there before a byte is copied, every count
//! against the bytes that such many entries need at least, and nothing is allocated by what a packet
//! only claims. A reply must be of a type that its request can have ([`Expect`]): a server out of
//! step must not make "the file is there" out of the answer to another question. What is wrong is
//! [`Malformed`], and the session is over; nothing here panics.
//!
//! Tolerated, as OpenSSH's client does: bytes behind the end of a reply, and a STATUS without its
//! message and language (old servers).

pub use super::malformed::Malformed;

use super::{Attrs, Handle, Name, OpenMode, Reply, Request, Status, code};

/// Longest packet in bytes, without its length word: what OpenSSH takes and sends.
pub const MAX_PACKET: usize = 256 * 1024;

/// Most data of one READ or WRITE in bytes: what fits in a packet beside its header.
pub const MAX_DATA: u32 = 255 * 1024;

/// The version that we speak.
pub const VERSION: u32 = 3;

const MAX_HANDLE: usize = 256;
const MAX_MESSAGE: usize = 200;

/// Packet types (draft 02, section 3).
mod kind {
    pub const INIT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 200;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// SSH_FXF_* (draft 02, section 6.3).
mod open_flag {
    pub const READ: u32 = 0x01;
    pub const WRITE: u32 = 0x02;
    pub const CREAT: u32 = 0x08;
    pub const TRUNC: u32 = 0x10;
    pub const EXCL: u32 = 0x20;
}

/// SSH_FILEXFER_ATTR_* (draft 02, section 5).
mod attr_flag {
    pub const SIZE: u32 = 0x01;
    pub const UIDGID: u32 = 0x02;
    pub const PERMISSIONS: u32 = 0x04;
    pub const ACMODTIME: u32 = 0x08;
    pub const EXTENDED: u32 = 0x8000_0000;
    pub const ALL: u32 = SIZE | UIDGID | PERMISSIONS | ACMODTIME | EXTENDED;
}

/// Which answers a request can have. A STATUS that is not OK fits every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// STATUS.
    Status,
    /// HANDLE.
    Handle,
    /// DATA, at most so many bytes.
    Data(u32),
    /// ATTRS.
    Attrs,
    /// NAME with any number of entries.
    Names,
    /// NAME with exactly one entry.
    OneName,
    /// EXTENDED_REPLY to statvfs@openssh.com.
    Space,
}

impl Expect {
    /// What `request` can be answered with.
    pub fn of(request: &Request) -> Expect {
        match request {
            Request::Open { .. } | Request::Opendir { .. } => Expect::Handle,
            Request::Read { len, .. } => Expect::Data(*len),
            Request::Lstat { .. } | Request::Stat { .. } | Request::Fstat { .. } => Expect::Attrs,
            Request::Readdir { .. } => Expect::Names,
            Request::Realpath { .. } | Request::Readlink { .. } => Expect::OneName,
            Request::Statvfs { .. } => Expect::Space,
            Request::Close { .. }
            | Request::Write { .. }
            | Request::Setstat { .. }
            | Request::Fsetstat { .. }
            | Request::Remove { .. }
            | Request::Mkdir { .. }
            | Request::Rmdir { .. }
            | Request::Symlink { .. }
            | Request::Rename { .. }
            | Request::PosixRename { .. }
            | Request::Hardlink { .. }
            | Request::CopyData { .. }
            | Request::Fsync { .. }
            | Request::Lsetstat { .. } => Expect::Status,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Expect::Status => "a status",
            Expect::Handle => "a handle",
            Expect::Data(_) => "data",
            Expect::Attrs => "attributes",
            Expect::Names | Expect::OneName => "names",
            Expect::Space => "free space",
        }
    }
}

/// The request needs a packet longer than [`MAX_PACKET`]; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Appends the packet of `request` to `out`.
///
/// # Errors
/// [`TooLong`]: no server would take it. `out` is as it was.
pub fn encode(id: u32, request: &Request, out: &mut Vec<u8>) -> Result<(), TooLong> {
    let start = out.len();
    let mut w = Writer(out);
    w.u32(0);
    match request {
        Request::Open { path, mode, attrs } => {
            w.head(kind::OPEN, id).bytes(path);
            w.u32(open_flags(*mode)).attrs(attrs);
        }
        Request::Close { handle } => {
            w.head(kind::CLOSE, id).bytes(&handle.0);
        }
        Request::Read {
            handle,
            offset,
            len,
        } => {
            w.head(kind::READ, id).bytes(&handle.0);
            w.u64(*offset).u32(*len);
        }
        Request::Write {
            handle,
            offset,
            data,
        } => {
            w.head(kind::WRITE, id).bytes(&handle.0);
            w.u64(*offset).bytes(data);
        }
        Request::Lstat { path } => {
            w.head(kind::LSTAT, id).bytes(path);
        }
        Request::Stat { path } => {
            w.head(kind::STAT, id).bytes(path);
        }
        Request::Fstat { handle } => {
            w.head(kind::FSTAT, id).bytes(&handle.0);
        }
        Request::Setstat { path, attrs } => {
            w.head(kind::SETSTAT, id).bytes(path).attrs(attrs);
        }
        Request::Fsetstat { handle, attrs } => {
            w.head(kind::FSETSTAT, id).bytes(&handle.0).attrs(attrs);
        }
        Request::Opendir { path } => {
            w.head(kind::OPENDIR, id).bytes(path);
        }
        Request::Readdir { handle } => {
            w.head(kind::READDIR, id).bytes(&handle.0);
        }
        Request::Remove { path } => {
            w.head(kind::REMOVE, id).bytes(path);
        }
        Request::Mkdir { path, attrs } => {
            w.head(kind::MKDIR, id).bytes(path).attrs(attrs);
        }
        Request::Rmdir { path } => {
            w.head(kind::RMDIR, id).bytes(path);
        }
        Request::Realpath { path } => {
            w.head(kind::REALPATH, id).bytes(path);
        }
        Request::Readlink { path } => {
            w.head(kind::READLINK, id).bytes(path);
        }
        Request::Symlink { target, link } => {
            // The draft says link, target; OpenSSH, and after it nearly all, take target, link.
            w.head(kind::SYMLINK, id).bytes(target).bytes(link);
        }
        Request::Rename { from, to } => {
            w.head(kind::RENAME, id).bytes(from).bytes(to);
        }
        Request::PosixRename { from, to } => {
            w.head(kind::EXTENDED, id).bytes(extension::POSIX_RENAME.0);
            w.bytes(from).bytes(to);
        }
        Request::Hardlink { from, to } => {
            w.head(kind::EXTENDED, id).bytes(extension::HARDLINK.0);
            w.bytes(from).bytes(to);
        }
        Request::CopyData {
            from,
            to,
            offset,
            len,
        } => {
            w.head(kind::EXTENDED, id).bytes(extension::COPY_DATA.0);
            w.bytes(&from.0).u64(*offset).u64(*len);
            w.bytes(&to.0).u64(*offset);
        }
        Request::Fsync { handle } => {
            w.head(kind::EXTENDED, id).bytes(extension::FSYNC.0);
            w.bytes(&handle.0);
        }
        Request::Lsetstat { path, attrs } => {
            w.head(kind::EXTENDED, id).bytes(extension::LSETSTAT.0);
            w.bytes(path).attrs(attrs);
        }
        Request::Statvfs { path } => {
            w.head(kind::EXTENDED, id).bytes(extension::STATVFS.0);
            w.bytes(path);
        }
    }
    finish(out, start)
}

/// Appends INIT, the first packet of a session.
pub fn encode_init(out: &mut Vec<u8>) {
    out.extend_from_slice(&5u32.to_be_bytes());
    out.push(kind::INIT);
    out.extend_from_slice(&VERSION.to_be_bytes());
}

/// Appends the question for the server's limits (limits@openssh.com).
pub fn encode_limits(id: u32, out: &mut Vec<u8>) {
    let name = extension::LIMITS.0;
    out.extend_from_slice(&((1 + 4 + 4 + name.len()) as u32).to_be_bytes());
    Writer(out).head(kind::EXTENDED, id).bytes(name);
}

/// Names of extensions and the version of each that we know (OpenSSH's PROTOCOL, section 4).
pub mod extension {
    #![allow(missing_docs)]
    pub type Extension = (&'static [u8], &'static [u8]);
    pub const POSIX_RENAME: Extension = (b"posix-rename@openssh.com", b"1");
    pub const HARDLINK: Extension = (b"hardlink@openssh.com", b"1");
    pub const FSYNC: Extension = (b"fsync@openssh.com", b"1");
    pub const LSETSTAT: Extension = (b"lsetstat@openssh.com", b"1");
    pub const COPY_DATA: Extension = (b"copy-data", b"1");
    pub const STATVFS: Extension = (b"statvfs@openssh.com", b"2");
    pub const LIMITS: Extension = (b"limits@openssh.com", b"1");
}

/// How long the first packet in `input` is, length word included; none: it is not all there yet.
///
/// # Errors
/// It is empty or longer than [`MAX_PACKET`]: this is told from its first four bytes, so that no
/// more than that is ever waited for or kept.
pub fn frame(input: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(word) = input.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*word) as usize;
    if len == 0 || len > MAX_PACKET {
        return Err(Malformed::Length(*word));
    }
    Ok((input.len() >= 4 + len).then_some(4 + len))
}

/// A server's VERSION packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Which version it speaks.
    pub version: u32,
    /// Pairs of name and data.
    pub extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Version {
    /// Reads it from `packet`, which is without its length word.
    ///
    /// # Errors
    /// The packet is another one, or broken.
    pub fn decode(packet: &[u8]) -> Result<Version, Malformed> {
        let mut r = Reader(packet);
        match r.u8("type")? {
            kind::VERSION => {}
            got => {
                let want = "the version";
                return Err(Malformed::Type { got, want });
            }
        }
        let version = r.u32("version")?;
        let mut extensions = Vec::new();
        while !r.0.is_empty() {
            let name = r.bytes("extension")?.to_vec();
            extensions.push((name, r.bytes("extension")?.to_vec()));
        }
        Ok(Version {
            version,
            extensions,
        })
    }

    /// Whether the server offers this extension, in the version that we know.
    pub fn offers(&self, extension: extension::Extension) -> bool {
        self.extensions
            .iter()
            .any(|(name, data)| name == extension.0 && data == extension.1)
    }
}

/// The answer to limits@openssh.com. 0 is "not told".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Limits {
    pub packet: u64,
    pub read: u64,
    pub write: u64,
    pub handles: u64,
}

/// The answer to statvfs@openssh.com, as far as it is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that the login user may still write.
    pub free: u64,
    /// Bytes that the file system has.
    pub all: u64,
    /// How many files may still be made; file systems without such a limit say 0 of 0, and that is none here.
    pub files_free: Option<u64>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

impl Space {
    /// Reads the eleven numbers of the answer (OpenSSH's PROTOCOL, section 4.3); none: they are not there.
    pub fn read(data: &[u8]) -> Option<Space> {
        let mut r = Reader(data);
        let mut number = || r.u64("statvfs").ok();
        let (_, unit, blocks, _, free) = (number()?, number()?, number()?, number()?, number()?);
        let (files, _, files_free, _, flags) =
            (number()?, number()?, number()?, number()?, number()?);
        Some(Space {
            free: free.saturating_mul(unit),
            all: blocks.saturating_mul(unit),
            files_free: (files > 0).then_some(files_free),
            read_only: flags & 1 != 0,
        })
    }
}

/// The id of the request that `packet` (without its length word) answers.
///
/// # Errors
/// The packet is too short to have one.
pub fn reply_id(packet: &[u8]) -> Result<u32, Malformed> {
    let mut r = Reader(packet);
    r.u8("type")?;
    r.u32("id")
}

/// Reads the answer to a request out of `packet` (without its length word).
///
/// Zero bytes of data and zero directory entries come out as the status EOF, which they mean.
///
/// # Errors
/// The packet is broken, or of a type that does not fit.
pub fn decode(packet: &[u8], expect: Expect) -> Result<Reply, Malformed> {
    let mut r = Reader(packet);
    let got = r.u8("type")?;
    r.u32("id")?;
    match (got, expect) {
        (kind::STATUS, _) => match (r.status()?, expect) {
            (None, Expect::Status) => Ok(Reply::Ok),
            (None, _) => Err(Malformed::OkWithoutValue(expect.words())),
            (Some(status), _) => Ok(Reply::Status(status)),
        },
        (kind::HANDLE, Expect::Handle) => {
            let handle = r.bytes("handle")?;
            if handle.len() > MAX_HANDLE {
                return Err(Malformed::HandleLength(handle.len()));
            }
            Ok(Reply::Handle(Handle(handle.into())))
        }
        (kind::DATA, Expect::Data(asked)) => {
            let data = r.bytes("data")?;
            if data.len() > asked as usize {
                let came = data.len();
                return Err(Malformed::TooMuchData { asked, came });
            }
            if data.is_empty() && asked > 0 {
                return Ok(Reply::Status(end_of_file()));
            }
            Ok(Reply::Data(data.to_vec()))
        }
        (kind::ATTRS, Expect::Attrs) => Ok(Reply::Attrs(r.attrs()?)),
        (kind::EXTENDED_REPLY, Expect::Space) => Ok(Reply::Data(r.0.to_vec())),
        (kind::NAME, Expect::Names | Expect::OneName) => {
            let names = r.names()?;
            match (names.len(), expect) {
                (1, _) => Ok(Reply::Names(names)),
                (0, Expect::Names) => Ok(Reply::Status(end_of_file())),
                (_, Expect::Names) => Ok(Reply::Names(names)),
                (n, _) => Err(Malformed::Count(n as u32)),
            }
        }
        _ => Err(Malformed::Type {
            got,
            want: expect.words(),
        }),
    }
}

/// Reads the answer to [`encode_limits`] out of `packet` (without its length word); none where the
/// server says that it does not tell.
///
/// # Errors
/// The packet is broken, or of another type.
pub fn decode_limits(packet: &[u8]) -> Result<Option<Limits>, Malformed> {
    let mut r = Reader(packet);
    let got = r.u8("type")?;
    r.u32("id")?;
    match got {
        kind::STATUS => Ok(None),
        kind::EXTENDED_REPLY => Ok(Some(Limits {
            packet: r.u64("limits")?,
            read: r.u64("limits")?,
            write: r.u64("limits")?,
            handles: r.u64("limits")?,
        })),
        got => {
            let want = "limits";
            Err(Malformed::Type { got, want })
        }
    }
}

fn end_of_file() -> Status {
    Status {
        code: code::EOF,
        message: String::new(),
    }
}

fn open_flags(mode: OpenMode) -> u32 {
    use open_flag::{CREAT, EXCL, READ, TRUNC, WRITE};
    match mode {
        OpenMode::Read => READ,
        OpenMode::Update => WRITE,
        OpenMode::Create => WRITE | CREAT | TRUNC,
        OpenMode::Continue => WRITE | CREAT,
        OpenMode::CreateNew => WRITE | CREAT | EXCL,
    }
}

/// Writes the length word of the packet that starts at `start`, or takes the packet back.
fn finish(out: &mut Vec<u8>, start: usize) -> Result<(), TooLong> {
    let len = out.len() - start - 4;
    if len > MAX_PACKET {
        out.truncate(start);
        return Err(TooLong);
    }
    out[start..start + 4].copy_from_slice(&(len as u32).to_be_bytes());
    Ok(())
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn head(&mut self, kind: u8, id: u32) -> &mut Self {
        self.0.push(kind);
        self.u32(id)
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A string. One longer than 4 GiB gets a wrong length word, and is refused by `finish`.
    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
        self
    }

    fn attrs(&mut self, attrs: &Attrs) -> &mut Self {
        let mut flags = 0;
        for (there, flag) in [
            (attrs.size.is_some(), attr_flag::SIZE),
            (attrs.owner.is_some(), attr_flag::UIDGID),
            (attrs.mode.is_some(), attr_flag::PERMISSIONS),
            (attrs.times.is_some(), attr_flag::ACMODTIME),
        ] {
            if there {
                flags |= flag;
            }
        }
        self.u32(flags);
        if let Some(size) = attrs.size {
            self.u64(size);
        }
        if let Some((uid, gid)) = attrs.owner {
            self.u32(uid).u32(gid);
        }
        if let Some(mode) = attrs.mode {
            self.u32(mode);
        }
        if let Some((atime, mtime)) = attrs.times {
            self.u32(atime).u32(mtime);
        }
        self
    }
}

/// The number of links in a long form as the draft recommends it (section 7): `-rw-r--r--   2 user ...`.
fn links_in(long: &[u8]) -> Option<u32> {
    let mut words = long.split(|b| *b == b' ').filter(|w| !w.is_empty());
    let mode = words.next()?;
    let count = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    (mode.len() >= 10).then_some(count)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed::Short(part))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self, part: &'static str) -> Result<u8, Malformed> {
        Ok(self.take::<1>(part)?[0])
    }

    fn u32(&mut self, part: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.take(part)?))
    }

    fn u64(&mut self, part: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.take(part)?))
    }

    fn bytes(&mut self, part: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u32(part)? as usize;
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed::Short(part))?;
        self.0 = rest;
        Ok(head)
    }

    /// None is "OK".
    fn status(&mut self) -> Result<Option<Status>, Malformed> {
        let code = self.u32("status")?;
        let message = if self.0.is_empty() {
            &[]
        } else {
            self.bytes("message")?
        };
        if code == 0 {
            return Ok(None);
        }
        // At most 4 bytes make a character: no more than needed is looked at.
        let head = &message[..message.len().min(MAX_MESSAGE * 4)];
        let message = String::from_utf8_lossy(head)
            .chars()
            .take(MAX_MESSAGE)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        Ok(Some(Status { code, message }))
    }

    fn attrs(&mut self) -> Result<Attrs, Malformed> {
        let part = "attributes";
        let flags = self.u32(part)?;
        if flags & !attr_flag::ALL != 0 {
            return Err(Malformed::AttrFlags(flags));
        }
        let mut attrs = Attrs::default();
        if flags & attr_flag::SIZE != 0 {
            attrs.size = Some(self.u64(part)?);
        }
        if flags & attr_flag::UIDGID != 0 {
            attrs.owner = Some((self.u32(part)?, self.u32(part)?));
        }
        if flags & attr_flag::PERMISSIONS != 0 {
            attrs.mode = Some(self.u32(part)?);
        }
        if flags & attr_flag::ACMODTIME != 0 {
            attrs.times = Some((self.u32(part)?, self.u32(part)?));
        }
        if flags & attr_flag::EXTENDED != 0 {
            // Every pair takes 8 bytes at least, so a lie about the count ends at the packet's end.
            for _ in 0..self.u32(part)? {
                self.bytes(part)?;
                self.bytes(part)?;
            }
        }
        Ok(attrs)
    }

    fn names(&mut self) -> Result<Vec<Name>, Malformed> {
        // A name, its long form and its flags: 12 bytes at least.
        const LEAST: usize = 12;
        let count = self.u32("names")?;
        if count as usize > self.0.len() / LEAST {
            return Err(Malformed::Count(count));
        }
        let mut names = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let name = self.bytes("names")?.to_vec();
            let links = links_in(self.bytes("names")?);
            let attrs = self.attrs()?;
            names.push(Name { name, attrs, links });
        }
        Ok(names)
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
