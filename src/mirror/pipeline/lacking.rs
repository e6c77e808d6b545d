//! What takes several steps on servers that lack OpenSSH's extensions, done alone, while nothing else is in flight.
//!
//! *A rename onto something*, without posix-rename: what stands there is removed, then it is renamed. What can be
//! cut in between, and why that is right: a rename is a pivot (J4), so nothing that is related to its paths is under
//! way or unknown. If its old name is gone, it has been moved, and nothing is removed. If it is there, what stands at
//! the new name is what it is to replace; and if nothing does, that was removed already. So it is looked first
//! what is there, each time. (Blindly removing would remove what a rename had brought, whose reply was
//! lost.) Between the two steps the new name is missing on the mirror; if the connection breaks there, until
//! the next one. If the second is refused, what was there is gone until it is not: that is the price of such a server.
//!
//! *A further name of a file*, without hardlink: it becomes a file of its own, made of the other one's bytes as they
//! are there at this place in the log. So it is copied on the mirror, by the server itself where it can
//! (copy-data), else through here; made ready out of sight, and put at its place whole. Done twice it ends the same.

use super::super::plan::{S_IFMT, is_dir, replace};
use super::*;
use crate::sftp::Handle;

/// How much is read at once, and how many READs are under way.
const PIECE: u32 = CHUNK as u32;
const READS: u64 = 32;

/// How much the server copies at one request, in bytes, and how many of these are under way.
const COPIED: u64 = 16 << 20;
const COPIES: u64 = 16;

/// Type bits of modes (stat(2)): a symbolic link's, and a regular file's.
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;

impl<R: Remote> Pipeline<'_, R> {
    /// Moves an entry to where something stands. False: that is not why it was refused.
    pub(super) fn move_onto(&mut self, seq: Seq, change: &Change) -> Result<bool, MirrorError> {
        let Change::Rename { from, to } = change else {
            return Ok(false);
        };
        let (from, to) = (self.setup.place.path(from), self.setup.place.path(to));
        let moves = self.attributes_of(seq, change, &from)?;
        let replaced = self.attributes_of(seq, change, &to)?;
        let (Some(moves), Some(replaced)) = (moves, replaced) else {
            return Ok(false);
        };
        if is_dir(&moves) != is_dir(&replaced) {
            return Ok(false); // no rename does that
        }
        let path = to.clone();
        let remove = if is_dir(&replaced) {
            Request::Rmdir { path }
        } else {
            Request::Remove { path }
        };
        self.must(seq, change, remove)?;
        self.must(seq, change, Request::Rename { from, to })?;
        Ok(true)
    }

    /// Makes a file of its own at `path` of what is at `from`.
    pub(super) fn copy(
        &mut self,
        seq: Seq,
        change: &Change,
        (from, path): (&RelPath, &RelPath),
    ) -> Result<(), MirrorError> {
        self.record()?;
        let place = &self.setup.place;
        let (from, to, stage) = (place.path(from), place.path(path), place.stage(seq));
        let Some(attrs) = self.attributes_of(seq, change, &from)? else {
            return Err(MirrorError::refused(seq, change, missing()));
        };
        self.ask(Request::Remove {
            path: stage.clone(),
        })?;
        if attrs.mode.is_some_and(|mode| mode & S_IFMT == S_IFLNK) {
            self.copy_link(seq, change, (&from, &stage))?;
        } else {
            self.copy_file(seq, change, (&from, &stage), attrs)?;
        }
        let requests = replace(stage, to, self.setup.rules);
        let replies: Result<Vec<_>, _> = requests.into_iter().map(|r| self.ask(r)).collect();
        if let [Reply::Status(status)] = plan::replaced(&replies?) {
            return Err(MirrorError::refused(seq, change, status.clone()));
        }
        self.finish(seq);
        self.publish_next = seq + 1;
        self.record()
    }

    /// Copies the file of a row that is to be changed in part and seen whole: see `in_place.rs`. If that can't be
    /// done it is sent whole.
    pub(super) fn copy_to_change(&mut self, seq: Seq, change: &Change) -> Result<(), MirrorError> {
        let place = &self.setup.place;
        let (from, stage) = (place.path(change.path()), place.stage(seq));
        let path = stage.clone();
        self.ask(Request::Remove { path })?;
        let copied = match self.attributes_of(seq, change, &from) {
            Ok(Some(attrs)) if attrs.mode.is_some_and(|mode| mode & S_IFMT == S_IFREG) => {
                let attrs = Attrs {
                    mode: Some(0o600),
                    ..attrs
                };
                self.copy_file(seq, change, (&from, &stage), attrs)
            }
            Ok(_) => Err(MirrorError::refused(seq, change, missing())),
            Err(why) => Err(why),
        };
        if let Some(job) = self.job(seq) {
            job.copied = true;
        }
        match copied {
            Err(MirrorError::Refused { .. }) => {
                self.goes_whole(seq);
                Ok(())
            }
            done => done,
        }
    }

    fn copy_link(
        &mut self,
        seq: Seq,
        change: &Change,
        (from, stage): (&[u8], &[u8]),
    ) -> Result<(), MirrorError> {
        let path = from.to_vec();
        let target = match self.ask(Request::Readlink { path })? {
            Reply::Names(mut names) if !names.is_empty() => names.remove(0).name,
            Reply::Status(status) => return Err(MirrorError::refused(seq, change, status)),
            Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
                return Err(MirrorError::refused(seq, change, missing()));
            }
        };
        let link = stage.to_vec();
        self.must(seq, change, Request::Symlink { target, link })
    }

    fn copy_file(
        &mut self,
        seq: Seq,
        change: &Change,
        (from, stage): (&[u8], &[u8]),
        attrs: Attrs,
    ) -> Result<(), MirrorError> {
        let rules = self.setup.rules;
        let mode = attrs.mode.map(|mode| mode & 0o7777);
        let from = self.open(seq, change, from, OpenMode::Read, Attrs::default())?;
        let private = Attrs {
            mode: if rules.setstat { Some(0o600) } else { mode },
            ..Attrs::default()
        };
        let to = self.open(seq, change, stage, OpenMode::Create, private)?;
        if self.remote.features().copy_data {
            self.have_copied(seq, change, (&from, &to), attrs.size.unwrap_or(0))?;
        } else {
            self.copy_bytes(seq, change, (&from, &to), attrs.size.unwrap_or(0))?;
        }
        for handle in [from, to] {
            self.must(seq, change, Request::Close { handle })?;
        }
        if rules.setstat {
            let attrs = Attrs {
                mode,
                times: attrs.times,
                ..Attrs::default()
            };
            let path = stage.to_vec();
            self.must(seq, change, Request::Setstat { path, attrs })?;
        }
        Ok(())
    }

    /// Has the server copy, in pieces: each is answered within the I/O time-out though the disk there is slow.
    fn have_copied(
        &mut self,
        seq: Seq,
        change: &Change,
        (from, to): (&Handle, &Handle),
        size: u64,
    ) -> Result<(), MirrorError> {
        let mut at = 0;
        while at == 0 || at < size {
            let upto = size.min(at + COPIES * COPIED);
            let pieces = (at..upto.max(at + 1)).step_by(COPIED as usize);
            let copies = pieces.map(|offset| Request::CopyData {
                from: from.clone(),
                to: to.clone(),
                offset,
                // The last one copies whatever is left.
                len: if offset + COPIED < size { COPIED } else { 0 },
            });
            for reply in self.ask_all(copies.collect())? {
                if let Reply::Status(status) = reply {
                    return Err(MirrorError::refused(seq, change, status));
                }
            }
            at += COPIES * COPIED;
        }
        Ok(())
    }

    /// Reads what is there, and writes it there.
    fn copy_bytes(
        &mut self,
        seq: Seq,
        change: &Change,
        (from, to): (&Handle, &Handle),
        size: u64,
    ) -> Result<(), MirrorError> {
        let mut at = 0;
        while at < size {
            let pieces = (at..size).step_by(PIECE as usize).take(READS as usize);
            let offsets: Vec<u64> = pieces.collect();
            let reads = offsets.iter().map(|offset| Request::Read {
                handle: from.clone(),
                offset: *offset,
                len: (size - offset).min(PIECE.into()) as u32,
            });
            let replies = self.ask_all(reads.collect())?;
            let mut writes = Vec::new();
            let mut short = None;
            for (offset, reply) in offsets.iter().zip(replies) {
                let data = match reply {
                    Reply::Data(data) if !data.is_empty() => data,
                    Reply::Status(status) => {
                        return Err(MirrorError::refused(seq, change, status));
                    }
                    _ => return Err(MirrorError::refused(seq, change, missing())),
                };
                let end = offset + data.len() as u64;
                writes.push(Request::Write {
                    handle: to.clone(),
                    offset: *offset,
                    data,
                });
                at = end;
                if end < size.min(offset + u64::from(PIECE)) {
                    short = Some(end); // a server may give less than was asked for
                    break;
                }
            }
            for reply in self.ask_all(writes)? {
                if let Reply::Status(status) = reply {
                    return Err(MirrorError::refused(seq, change, status));
                }
            }
            at = short.unwrap_or(at);
        }
        Ok(())
    }

    fn open(
        &mut self,
        seq: Seq,
        change: &Change,
        path: &[u8],
        mode: OpenMode,
        attrs: Attrs,
    ) -> Result<Handle, MirrorError> {
        let path = path.to_vec();
        match self.ask(Request::Open { path, mode, attrs })? {
            Reply::Handle(handle) => Ok(handle),
            Reply::Status(status) => Err(MirrorError::refused(seq, change, status)),
            Reply::Ok | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
                Err(MirrorError::refused(seq, change, missing()))
            }
        }
    }

    /// Sends requests and waits for their replies.
    fn ask_all(&mut self, requests: Vec<Request>) -> Result<Vec<Reply>, MirrorError> {
        let asked: Vec<Ticket> = requests.into_iter().map(|r| self.remote.send(r)).collect();
        let mut found = HashMap::new();
        while found.len() < asked.len() {
            self.remote.pump(Duration::from_secs(1), None)?;
            while let Some((ticket, reply)) = self.remote.reply() {
                if asked.contains(&ticket) {
                    self.doubted |= matches!(reply, Reply::Status(_));
                    found.insert(ticket, reply);
                } else {
                    self.take(ticket, reply)?;
                }
            }
        }
        Ok(asked.iter().filter_map(|t| found.remove(t)).collect())
    }
}

/// What is said of something that is not there.
fn missing() -> Status {
    Status {
        code: code::NO_SUCH_FILE,
        message: String::new(),
    }
}
