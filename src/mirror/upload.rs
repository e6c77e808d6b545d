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
//!
//! Of a file that is updated in place only parts may be sent: what they are, and why that is right, is told in
//! `pipeline/in_place.rs`.

mod begin;
mod ranges;
mod reading;

use super::plan::{Rules, S_IFMT, Wish};
use super::resume::Left;
use super::source::{Source, Writing, mtime_of};
use super::wide::Wide;
use crate::change::{ByteRanges, NodeId};
use crate::sftp::{Attrs, Handle, OpenMode, Remote, Reply, Request, Status, Ticket, code};
use reading::{Stamp, allocated, attributes_in, has_links, open, stamp_of};
pub(super) use reading::{attributes_now, extent_now};
use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// Length of a WRITE's data in bytes. 32 KiB is what every server takes (draft 02, section 3), and no
/// slower than more (measured).
pub const CHUNK: usize = 32 * 1024;

/// Type bits of a regular file's mode (stat(2)).
const S_IFREG: u32 = 0o100_000;

enum Body {
    /// The whole of a small file.
    Read(Vec<u8>),
    /// A file to read from.
    Open(File),
}

/// What of a file changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The bytes that changed.
    pub ranges: ByteRanges,
    /// The shortest that the file was since, in bytes: behind that old bytes may have become zeros.
    pub shortest: u64,
    /// How long it was when it was logged last.
    pub logged: u64,
    /// Whether it has to be written in place, however much that is: it has, or had, several names.
    pub linked: bool,
}

/// What is to be sent, and where to.
pub struct Wanted {
    /// The path there.
    pub dest: Vec<u8>,
    /// Whether `dest` keeps what it holds until it is overwritten.
    pub in_place: bool,
    /// Only these; none: all of the file.
    pub parts: Option<Parts>,
}

/// How a file is sent.
enum How {
    /// The whole of it, into a file that is emptied first.
    Anew,
    /// What of it is not there yet, into a file that nobody else sees.
    Behind(Left),
    /// Into the file that stands there: only these parts; none: all. Without what is known to be there up to so many
    /// bytes.
    InPlace(Option<Parts>, u64),
}

/// Where an upload is.
enum Phase {
    /// What was learned so far: the handle, and what stands there.
    Opening(Option<Handle>, Option<Attrs>),
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
    /// Whereon: its handle is good there only.
    lane: usize,
    /// The other lanes of a big file.
    wide: Option<Wide>,
    body: Body,
    stamp: Stamp,
    inode: u64,
    attrs: Vec<Attrs>,
    phase: Phase,
    /// Before it is seen how long the file is there.
    how: How,
    /// Whether it is to be on the disk there.
    fsync: bool,
    /// Where attributes are to be set by path: that.
    set_at: Option<Vec<u8>>,
    /// Of which version it is, where that is asked when it goes on.
    version: Option<u64>,
    /// Whether its name there tells that.
    is_staged: bool,
    /// What is to be sent: sorted, disjoint, in bytes.
    ranges: Vec<(u64, u64)>,
    /// From here on nothing is there, and holes need not be sent.
    new_from: u64,
    /// Bytes that the file takes here.
    allocated: u64,
    /// Offset of the next byte to look at.
    next: u64,
    /// Bytes sent so far.
    sent: u64,
    /// Behind the last byte that was sent.
    sent_to: u64,
    /// The WRITEs that are not acknowledged, and where they begin. They are sent in order.
    writes: BTreeMap<u64, Ticket>,
    /// How far a WRITE may end behind the first of those.
    span: u64,
    /// A piece that waits for that.
    held_back: Option<(u64, Vec<u8>)>,
    /// It has just been seen that it goes on behind what an earlier session has brought.
    goes_on: bool,
    /// What an earlier session has left can't be written.
    lost: bool,
    /// Requests without a reply.
    waiting: usize,
    /// Whether WRITEs have to be acknowledged before the attributes are sent.
    settle_first: bool,
    failure: Option<Status>,
}

/// Whether an upload has begun.
pub enum Start {
    /// It has; the tickets of its requests.
    Begun(Box<Upload>, Vec<Ticket>),
    /// The file is gone for good: no name of it is left.
    Gone,
    /// It is being written anew: what is there is no version of it.
    Rewritten,
}

impl Upload {
    /// Which version it is, if it can go on in another session.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// So much is there without a hole, in bytes.
    pub fn arrived(&self) -> u64 {
        let missing = self.writes.keys().next().copied();
        missing.unwrap_or(self.sent_to)
    }

    /// Whether the last reply has shown that it goes on behind what an earlier session has brought.
    pub fn goes_on_now(&mut self) -> bool {
        std::mem::take(&mut self.goes_on)
    }

    /// The lane that it goes on.
    pub fn lane(&self) -> usize {
        self.lane
    }

    /// Whether it may go on several lanes.
    pub fn is_wide(&self) -> bool {
        self.wide.is_some()
    }

    /// Whether there is room to send on, with less than `most` bytes under way on a lane.
    pub fn has_room<R: Remote>(&self, remote: &R, most: usize) -> bool {
        match &self.wide {
            Some(wide) => wide.roomiest(remote, most).is_some(),
            None => remote.unacknowledged_on(self.lane) < most,
        }
    }

    /// Takes a big file to the lanes that have come since.
    pub fn widen<R: Remote>(&mut self, remote: &mut R, mut note: impl FnMut(Ticket)) {
        if let (Phase::Writing(_), Some(wide)) = (&self.phase, &mut self.wide)
            && self.failure.is_none()
            && self.next < self.stamp.size
        // all of it: a wide one is no part of a file
        {
            wide.widen(remote, |ticket| {
                self.waiting += 1;
                note(ticket);
            });
            // Lanes overtake each other.
            self.settle_first |= wide.is_used();
        }
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

    /// Whether all of it is on the way, and nothing has failed.
    pub fn is_sent(&self) -> bool {
        self.is_closing() && self.failure.is_none()
    }

    /// Whether the mirror has refused something of it.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether the file is what it was when this was begun, as `stat` has it by now; what else has changed is set at the
    /// end. (Of a file that is sent as a whole and not yet closed.)
    pub fn is_still(&mut self, stat: &rustix::fs::Stat, rules: Rules) -> bool {
        let now = Stamp {
            size: stat.st_size as u64,
            mtime: mtime_of(stat),
        };
        if now != self.stamp || self.is_closing() || self.failure.is_some() {
            return false;
        }
        if !self.attrs.is_empty() {
            self.attrs = attributes_in(stat, rules);
            if let Some(last) = self.attrs.last_mut() {
                last.size = Some(self.stamp.size);
            }
        }
        true
    }

    /// Closes what is open there. The replies are nobody's.
    pub fn give_up<R: Remote>(mut self, remote: &mut R) {
        if let Some(wide) = &mut self.wide {
            wide.close(remote, |_| {});
        }
        if let Phase::Writing(handle) = self.phase {
            remote.send_on(self.lane, Request::Close { handle });
        }
    }

    /// How much is to be sent at most, and how much of it has been, in bytes.
    pub fn progress(&self) -> (u64, u64) {
        let all = self.ranges.iter().map(|(start, end)| end - start).sum();
        (all, self.sent)
    }

    /// Behind the last byte that is to be sent.
    fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.1)
    }

    /// Whether it could send something now.
    pub fn wants_to_send(&self) -> bool {
        match self.phase {
            Phase::Writing(_) if self.failure.is_some() => !self.settle_first || self.waiting == 0,
            Phase::Writing(_) if self.held_back.is_some() => !self.is_too_far_ahead(),
            Phase::Writing(_) => {
                !self.settles_first() || self.next < self.end() || self.waiting == 0
            }
            Phase::Opening(..) | Phase::Closing | Phase::Finished => false,
        }
    }

    /// Whether all WRITEs have to be acknowledged before the attributes are sent. Also where those make the file
    /// longer than what was written: see `resume.rs`.
    fn settles_first(&self) -> bool {
        self.settle_first || (self.is_staged && self.sent_to < self.end())
    }

    /// Whether the piece that was held back has to wait on.
    fn is_too_far_ahead(&self) -> bool {
        let first = self.writes.keys().next();
        let (Some((offset, data)), Some(first)) = (&self.held_back, first) else {
            return false;
        };
        offset + data.len() as u64 > first.saturating_add(self.span)
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
        if self.failure.is_some() {
            self.held_back = None;
        } else if self.held_back.is_none() {
            self.held_back = self.next_chunk()?;
        }
        if self.is_too_far_ahead() {
            return Ok(());
        }
        if let Some((offset, data)) = self.held_back.take() {
            let wide = self.wide.as_ref();
            let (lane, other) = wide
                .and_then(|wide| wide.roomiest(remote, usize::MAX))
                .unwrap_or((self.lane, None));
            let handle = other.unwrap_or(handle);
            self.sent += data.len() as u64;
            self.sent_to = offset + data.len() as u64;
            self.waiting += 1;
            let write = Request::Write {
                handle,
                offset,
                data,
            };
            let ticket = remote.send_on(lane, write);
            self.writes.insert(offset, ticket);
            note(ticket);
            return Ok(());
        }
        let settles = match self.failure {
            None => self.settles_first(),
            Some(_) => self.settle_first,
        };
        if settles && self.waiting > 0 {
            return Ok(());
        }
        if self.failure.is_none() {
            for attrs in std::mem::take(&mut self.attrs) {
                self.waiting += 1;
                let set = match &self.set_at {
                    Some(path) => Request::Setstat {
                        path: path.clone(),
                        attrs,
                    },
                    None => Request::Fsetstat {
                        handle: handle.clone(),
                        attrs,
                    },
                };
                note(remote.send_on(self.lane, set));
            }
        }
        if self.fsync && self.failure.is_none() {
            self.waiting += 1;
            let handle = handle.clone();
            note(remote.send_on(self.lane, Request::Fsync { handle }));
        }
        if let Some(wide) = &mut self.wide {
            self.waiting += wide.close(remote, &mut note);
        }
        self.waiting += 1;
        note(remote.send_on(self.lane, Request::Close { handle }));
        self.phase = Phase::Closing;
        Ok(())
    }

    /// Takes a reply to one of the upload's requests on a lane. Says how the upload ended, once it has.
    ///
    /// # Errors
    /// The file can't be looked at here.
    pub fn take(
        &mut self,
        ticket: Ticket,
        reply: Reply,
        source: &Source,
    ) -> io::Result<Option<Outcome>> {
        self.waiting -= 1;
        let lane = usize::from(ticket.lane);
        if matches!(reply, Reply::Ok) {
            // Mostly the first, or nearly so.
            let write = self.writes.iter().find(|(_, sent)| **sent == ticket);
            let write = write.map(|(offset, _)| *offset);
            write.map(|offset| self.writes.remove(&offset));
        }
        if let Some(wide) = &mut self.wide
            && lane != self.lane
        {
            let handle = match &reply {
                Reply::Handle(handle) => Some(handle.clone()),
                Reply::Ok
                | Reply::Status(_)
                | Reply::Data(_)
                | Reply::Names(_)
                | Reply::Attrs(_) => None,
            };
            if wide.takes(lane, handle) {
                return Ok(None); // more is to come in any case, the CLOSE at least
            }
        }
        let looks = matches!(self.how, How::Behind(left) if left != Left::Nothing);
        match (reply, &mut self.phase) {
            (Reply::Handle(handle), Phase::Opening(opened, _)) => *opened = Some(handle),
            (Reply::Attrs(attrs), Phase::Opening(_, seen)) => *seen = Some(attrs),
            // What has become of it is told by the other reply.
            (Reply::Status(_), Phase::Opening(..)) if looks => {}
            (Reply::Status(status), _) => {
                self.failure.get_or_insert(status);
                self.next = u64::MAX;
            }
            (
                Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_),
                _,
            ) => {}
        }
        if let Phase::Opening(handle, seen) = &mut self.phase
            && self.waiting == 0
        {
            let (handle, seen) = (handle.take(), seen.take());
            self.phase = match handle {
                Some(handle) => Phase::Writing(handle),
                None => Phase::Closing, // nothing is open: nothing to close
            };
            match std::mem::replace(&mut self.how, How::Anew) {
                How::Behind(left) if left != Left::Nothing => self.go_on_behind(left, seen),
                How::InPlace(parts, known) if self.failure.is_none() => {
                    let seen = seen.filter(is_file);
                    let fits = match parts {
                        Some(parts) => self.fit(parts, seen),
                        None => Ok(()),
                    };
                    self.failure = fits.err();
                    self.leave_out_what_is_there(known, seen);
                }
                How::Anew | How::Behind(_) | How::InPlace(..) => {}
            }
        }
        if !matches!(self.phase, Phase::Closing) || self.waiting > 0 {
            return Ok(None);
        }
        self.phase = Phase::Finished;
        if self.lost {
            return Ok(Some(Outcome::Changed)); // from the start, then
        }
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
            Writing::No | Writing::Open if unchanged => Outcome::Complete,
            Writing::No | Writing::Open | Writing::UnderWay if linked => Outcome::Half,
            Writing::No | Writing::Open | Writing::UnderWay => Outcome::Changed,
        }))
    }

    /// Sends nothing of the first `known` bytes again of a file that is written where it stands, if it is as long.
    fn leave_out_what_is_there(&mut self, known: u64, seen: Option<Attrs>) {
        let there = seen.and_then(|attrs| attrs.size).unwrap_or(0);
        if known == 0 || there < known || self.failure.is_some() {
            return;
        }
        let known = known - known % CHUNK as u64;
        let before = |range: &(u64, u64)| range.1.min(known).saturating_sub(range.0);
        self.sent = self.ranges.iter().map(before).sum();
        (self.next, self.sent_to) = (known, known);
        self.goes_on = known > 0;
    }

    /// Goes on behind what an earlier session has brought, if that is there and can be written.
    fn go_on_behind(&mut self, left: Left, seen: Option<Attrs>) {
        if matches!(self.phase, Phase::Closing) {
            self.lost = true;
            return;
        }
        let there = seen.and_then(|attrs| attrs.size).unwrap_or(0);
        self.next = left.trusted(there, self.stamp.size, self.span);
        (self.sent, self.sent_to) = (self.next, self.next);
        self.goes_on = self.next > 0;
    }
}

/// Whether it is a regular file.
fn is_file(attrs: &Attrs) -> bool {
    attrs.mode.is_some_and(|mode| mode & S_IFMT == S_IFREG)
}
