//! One file on its way to a mirror: opened there, its bytes written, its attributes set, closed, every
//! step acknowledged.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *The file changes while it is read.* What arrives would be half old, half new. Its size and mtime
//!   are compared before and after; if they differ the upload says [`Outcome::Changed`] and is not to
//!   be published. (Not ctime: a rename or a new link changes that, and no byte.)
//! * *The file is being written anew*, so that what is there is half of the next version, and stands still
//!   while we look. The file system side knows that: such a file is [`Outcome::Rewritten`], and its next
//!   content will be in the log when it is closed.
//! * *A WRITE fails behind ones that succeeded.* Nothing is published before every reply is there.
//! * *The server works on a later request before an earlier one is finished* (some do, though OpenSSH
//!   does not): attributes are sent only when all WRITEs are acknowledged, else a late WRITE would
//!   change the mtime again.
//! * *Many files at once* want many descriptors and much memory. A file up to one WRITE long is read at
//!   once and not kept open; of longer ones a chunk is read when it is sent.
//!
//! Holes are not sent: data is looked for (SEEK_DATA), and the size is set at the end. But in a file that is
//! updated in place old bytes lie where the hole is: there it is sent as the zeros that it reads as.

use super::plan::{Rules, attributes};
use super::source::{Source, Writing, mtime_of};
use crate::change::{NodeId, Owner, Times, Timestamp};
use crate::sftp::{Attrs, Handle, OpenMode, Remote, Reply, Request, Status, Ticket};
use rustix::fs::{SeekFrom, Stat, fstat, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Length of a WRITE's data in bytes. 32 KiB is what every server takes (draft 02, section 3), and no
/// slower than more (measured).
pub const CHUNK: usize = 32 * 1024;

/// What a file was like when it was opened here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    mtime: Timestamp,
}

enum Body {
    /// The whole of a small file.
    Read(Vec<u8>),
    /// A file to read from.
    Open(File),
}

/// Where an upload is.
enum Phase {
    Opening,
    Writing(Handle),
    /// The attributes and the CLOSE are under way.
    Closing,
    Finished,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every byte is there, and the attributes.
    Complete,
    /// The file changed meanwhile: what is there is no state that the file ever had.
    Changed,
    /// It is being written anew: what is there is no version of it.
    Rewritten,
    /// The same of a file with several names, which has to be there all the same: what links to it comes
    /// behind it, and its next content is written into it in place.
    Half,
    /// The server refused something.
    Refused(Status),
}

/// A file on its way.
pub struct Upload {
    body: Body,
    stamp: Stamp,
    inode: u64,
    attrs: Vec<Attrs>,
    phase: Phase,
    /// Offset of the next byte to look at.
    next: u64,
    /// Bytes sent so far.
    sent: u64,
    /// Requests without a reply.
    waiting: usize,
    /// Whether WRITEs have to be acknowledged before the attributes are sent.
    settle_first: bool,
    in_place: bool,
    failure: Option<Status>,
}

/// Whether an upload has begun.
pub enum Start {
    /// It has; the OPEN's ticket.
    Begun(Box<Upload>, Ticket),
    /// The file is gone for good: no name of it is left.
    Gone,
    /// It is being written anew: what is there is no version of it.
    Rewritten,
}

impl Upload {
    /// Opens the file here and asks the mirror to open `dest`. `in_place` keeps what `dest` holds until it is
    /// overwritten.
    ///
    /// # Errors
    /// The file can't be read here.
    pub fn start<R: Remote>(
        source: &Source,
        node: &NodeId,
        dest: Vec<u8>,
        in_place: bool,
        rules: Rules,
        remote: &mut R,
    ) -> io::Result<Start> {
        let Some((file, stat)) = open(source, node)? else {
            return Ok(Start::Gone);
        };
        let stamp = Stamp {
            size: stat.st_size as u64,
            mtime: mtime_of(&stat),
        };
        let mut attrs = attributes_in(&stat, rules);
        let bytes = small_file(&file, stamp)?;
        // First whether it is written, then whether it has changed: what was whole in between, and is the same
        // now, is a version.
        let writing = source.writing(stat.st_ino);
        if writing == Writing::Anew && !has_links(&stat) {
            return Ok(Start::Rewritten);
        }
        let still = writing == Writing::No && stamp_of(&file)? == stamp;
        let body = match bytes {
            Some(bytes) if still => Body::Read(bytes),
            Some(_) | None => Body::Open(file),
        };
        // A hole at the end, or what an in-place update cuts off: no WRITE shows it.
        if (in_place || matches!(body, Body::Open(_)))
            && let Some(last) = attrs.last_mut()
        {
            last.size = Some(stamp.size);
        }
        let mode = if in_place {
            OpenMode::Update
        } else {
            OpenMode::Create
        };
        let private = Attrs {
            mode: Some(0o600),
            ..Attrs::default()
        };
        let attrs_at_open = if in_place { Attrs::default() } else { private };
        let ticket = remote.send(Request::Open {
            path: dest,
            mode,
            attrs: attrs_at_open,
        });
        let upload = Upload {
            body,
            stamp,
            inode: stat.st_ino,
            attrs,
            phase: Phase::Opening,
            next: 0,
            sent: 0,
            waiting: 1,
            settle_first: !remote.features().openssh,
            in_place,
            failure: None,
        };
        Ok(Start::Begun(Box::new(upload), ticket))
    }

    /// Whether the upload keeps a local file open.
    pub fn holds_file(&self) -> bool {
        matches!(self.body, Body::Open(_))
    }

    /// How many bytes it has read and not yet sent.
    pub fn holds_bytes(&self) -> usize {
        match &self.body {
            Body::Read(bytes) => bytes.len(),
            Body::Open(_) => 0,
        }
    }

    /// Whether its last request, the CLOSE, is on the way.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Finished)
    }

    /// Length of the file, and how much of it has been sent, in bytes.
    pub fn progress(&self) -> (u64, u64) {
        (self.stamp.size, self.sent)
    }

    /// Whether it could send something now.
    pub fn wants_to_send(&self) -> bool {
        match self.phase {
            Phase::Writing(_) => {
                !self.settle_first || self.next < self.stamp.size || self.waiting == 0
            }
            Phase::Opening | Phase::Closing | Phase::Finished => false,
        }
    }

    /// Sends the next WRITE, or, when all is written, the attributes and the CLOSE. Gives the tickets
    /// to `note`.
    ///
    /// # Errors
    /// The file can't be read here.
    pub fn send_next<R: Remote>(
        &mut self,
        remote: &mut R,
        mut note: impl FnMut(Ticket),
    ) -> io::Result<()> {
        let Phase::Writing(handle) = &self.phase else {
            return Ok(());
        };
        let handle = handle.clone();
        let chunk = if self.failure.is_some() {
            None
        } else {
            self.next_chunk()?
        };
        if let Some((offset, data)) = chunk {
            self.sent += data.len() as u64;
            self.waiting += 1;
            note(remote.send(Request::Write {
                handle,
                offset,
                data,
            }));
            return Ok(());
        }
        if self.settle_first && self.waiting > 0 {
            return Ok(());
        }
        if self.failure.is_none() {
            for attrs in std::mem::take(&mut self.attrs) {
                self.waiting += 1;
                note(remote.send(Request::Fsetstat {
                    handle: handle.clone(),
                    attrs,
                }));
            }
        }
        self.waiting += 1;
        note(remote.send(Request::Close { handle }));
        self.phase = Phase::Closing;
        Ok(())
    }

    /// Takes a reply to one of the upload's requests. Says how the upload ended, once it has.
    ///
    /// # Errors
    /// The file can't be looked at here.
    pub fn take(&mut self, reply: Reply, source: &Source) -> io::Result<Option<Outcome>> {
        self.waiting -= 1;
        match (reply, &self.phase) {
            (Reply::Handle(handle), Phase::Opening) => self.phase = Phase::Writing(handle),
            (Reply::Status(status), phase) => {
                if matches!(phase, Phase::Opening) {
                    self.phase = Phase::Closing; // nothing is open: nothing to close
                }
                self.failure.get_or_insert(status);
                self.next = self.stamp.size;
            }
            (
                Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_),
                _,
            ) => {}
        }
        if !matches!(self.phase, Phase::Closing) || self.waiting > 0 {
            return Ok(None);
        }
        self.phase = Phase::Finished;
        if let Some(status) = self.failure.take() {
            return Ok(Some(Outcome::Refused(status)));
        }
        let Body::Open(file) = &self.body else {
            return Ok(Some(Outcome::Complete)); // looked at when it was read
        };
        let writing = source.writing(self.inode);
        let unchanged = stamp_of(file)? == self.stamp;
        let linked = has_links(&fstat(file)?);
        Ok(Some(match writing {
            Writing::Anew if !linked => Outcome::Rewritten,
            Writing::Anew => Outcome::Half,
            Writing::No if unchanged => Outcome::Complete,
            Writing::No | Writing::UnderWay if linked => Outcome::Half,
            Writing::No | Writing::UnderWay => Outcome::Changed,
        }))
    }

    /// The next bytes that are no hole; none at the end.
    fn next_chunk(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        if self.next >= self.stamp.size {
            return Ok(None);
        }
        match &mut self.body {
            Body::Read(bytes) => {
                self.next = self.stamp.size;
                Ok(Some((0, std::mem::take(bytes))))
            }
            Body::Open(file) => {
                let data = match self.in_place {
                    true => Ok(self.next),
                    false => seek(&*file, SeekFrom::Data(self.next)),
                };
                let offset = match data {
                    Ok(offset) => offset,
                    Err(Errno::NXIO) => self.stamp.size, // only a hole is left, or it was cut
                    Err(Errno::INVAL | Errno::OPNOTSUPP) => self.next, // holes are not told here
                    Err(why) => return Err(why.into()),
                };
                // Chunks stay aligned, so that a hole's end does not make every WRITE a crooked one.
                let offset = (offset - offset % CHUNK as u64).max(self.next);
                if offset >= self.stamp.size {
                    self.next = self.stamp.size;
                    return Ok(None);
                }
                let wanted = (self.stamp.size - offset).min(CHUNK as u64) as usize;
                let mut data = vec![0; wanted];
                let got = read_full(file, &mut data, offset)?;
                data.truncate(got);
                self.next = offset + wanted as u64;
                if got == 0 {
                    self.next = self.stamp.size; // it was cut meanwhile: Changed, in the end
                    return Ok(None);
                }
                Ok(Some((offset, data)))
            }
        }
    }
}

/// Opens a file that has a name. One that has none, and is only kept open by somebody, never has one again: on
/// a mirror it is gone.
fn open(source: &Source, node: &NodeId) -> io::Result<Option<(File, Stat)>> {
    let Some(file) = source.open(node)? else {
        return Ok(None);
    };
    let stat = fstat(&file)?;
    Ok((stat.st_nlink > 0).then_some((file, stat)))
}

/// The attributes that a file has now, as they are to be set; none for one that is gone.
///
/// # Errors
/// The file can't be looked at here.
pub fn attributes_now(source: &Source, node: &NodeId, rules: Rules) -> io::Result<Vec<Attrs>> {
    let found = open(source, node)?;
    Ok(found.map_or(Vec::new(), |(_, stat)| attributes_in(&stat, rules)))
}

fn attributes_in(stat: &Stat, rules: Rules) -> Vec<Attrs> {
    let owner = Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    };
    let atime = Timestamp {
        seconds: stat.st_atime,
        nanoseconds: stat.st_atime_nsec as u32,
    };
    let mtime = mtime_of(stat);
    let times = Some(Times { atime, mtime });
    attributes(Some(stat.st_mode & 0o7777), Some(owner), times, rules)
}

/// Whether a file has several names.
fn has_links(stat: &Stat) -> bool {
    stat.st_nlink > 1
}

fn stamp_of(file: &File) -> io::Result<Stamp> {
    let stat = fstat(file)?;
    Ok(Stamp {
        size: stat.st_size as u64,
        mtime: mtime_of(&stat),
    })
}

/// All of a file that fits one WRITE, if it has not become shorter. Whether it changed otherwise, the caller
/// looks when it knows that nobody writes.
fn small_file(file: &File, stamp: Stamp) -> io::Result<Option<Vec<u8>>> {
    if stamp.size > CHUNK as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; stamp.size as usize];
    let got = read_full(file, &mut bytes, 0)?;
    Ok(Some(bytes).filter(|_| got as u64 == stamp.size))
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(got)
}
