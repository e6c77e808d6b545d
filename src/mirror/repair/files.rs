//! Files and links on their way: staged on any lane, shown by a rename when every reply is there.

use super::super::plan::stage_symlink;
use super::super::source::times_of;
use super::super::upload::{Outcome, Start, Upload, Wanted};
use super::*;

/// A file on its way.
pub(super) struct File {
    path: RelPath,
    entry: Entry,
    in_place: bool,
    tries: u32,
    /// Its name in the stage.
    staged: Staged,
    /// None: not begun.
    upload: Option<Box<Upload>>,
}

/// A symbolic link on its way.
pub(super) struct Link {
    path: RelPath,
    missing: usize,
    refused: Option<Status>,
}

/// Something that is ready to be shown.
pub(super) struct Ready {
    staged: Staged,
    path: RelPath,
    /// It is a further name of a file. A rename of one name of a file over another does nothing (rename(2)).
    is_name: bool,
}

/// Names are given to files so many at a time.
const NAMES: usize = 512;

/// So many files are begun before it is looked what has come.
const UNSENT: usize = 64;

/// At the end of a slice so many bytes are still sent, that files get done.
const TO_THE_END: u64 = 1 << 20;

/// So many files that are half sent are kept for the next slice: each takes handles there. Of more nothing is, mostly.
const PAUSED: usize = 16;

/// A name that says nothing of a version.
fn plain(number: Seq) -> Staged {
    Staged {
        seq: number,
        version: None,
    }
}

/// Forgets a file that is half sent, and what there is of it there.
pub(super) fn discard<R: Remote>(file: File, place: &Place, remote: &mut R) {
    let Some(upload) = file.upload else { return };
    let lane = upload.lane();
    upload.give_up(remote); // nobody waits for that
    let path = place.staged(file.staged);
    remote.send_on(lane, Request::Remove { path });
}

impl<R: Remote> Repair<'_, R> {
    /// A number to make something ready under: no other was ever made ready under it in this session.
    pub(super) fn next_number(&mut self) -> Seq {
        self.carry.number += 1;
        self.carry.number
    }

    /// Sends a file.
    pub(super) fn send(
        &mut self,
        path: RelPath,
        entry: Entry,
        in_place: bool,
    ) -> Result<(), MirrorError> {
        // What is read meanwhile from the disk here is on its way already.
        if self.files.len() % UNSENT == UNSENT - 1 {
            self.turn_within(Duration::ZERO)?;
        }
        while self.is_full() && !(self.tools.pauses)() {
            self.turn()?;
        }
        let file = File {
            path,
            entry,
            in_place,
            tries: 0,
            staged: plain(0),
            upload: None,
        };
        match self.go_on_with(file) {
            Some(file) => self.begin(file),
            None => self.feed(),
        }
    }

    /// Whether files have to be sent before one more is begun.
    fn is_full(&self) -> bool {
        let room = self.carry.room * self.remote.lanes();
        self.remote.unacknowledged_bytes() >= room || self.roomiest().is_none()
    }

    /// The lane for the next file, if it may be begun.
    fn roomiest(&self) -> Option<usize> {
        self.burden.roomiest(self.remote, self.most_read())
    }

    /// Goes on with a file that an earlier slice has sent a part of, if it is the same by now; else gives it back.
    fn go_on_with(&mut self, file: File) -> Option<File> {
        let same = |paused: &(Seq, File)| match (&paused.1.entry.kind, &file.entry.kind) {
            (Kind::File(one), Kind::File(other)) => one == other,
            _ => false,
        };
        let Some(at) = self.carry.paused.iter().position(same) else {
            return Some(file);
        };
        let (number, mut paused) = self.carry.paused.swap_remove(at);
        let goes_on = |upload: &mut Box<Upload>| {
            !file.in_place && upload.is_still(&file.entry.stat, self.tools.rules)
        };
        if !paused.upload.as_mut().is_some_and(goes_on) {
            discard(paused, self.tools.place, self.remote);
            return Some(file);
        }
        self.report.touched.extend(file.path.parent());
        let (staged, upload) = (paused.staged, paused.upload.take());
        let file = File {
            staged,
            upload,
            ..file
        };
        self.files.insert(number, file);
        None
    }

    /// The slice is over: what has still much to send is sent no further.
    pub(super) fn freeze(&mut self) {
        self.ends = true;
        let mut left = TO_THE_END;
        for (number, file) in &self.files {
            let Some(upload) = file.upload.as_ref().filter(|_| !file.in_place) else {
                continue;
            };
            let (all, sent) = upload.progress();
            match left.checked_sub(all - sent) {
                Some(less) => left = less,
                None => drop(self.frozen.insert(*number)),
            }
        }
    }

    /// Keeps what is half sent for the next slice.
    pub(super) fn pause_files(&mut self) {
        // What has been looked for, and is not to be sent any more.
        for (number, file) in std::mem::take(&mut self.carry.paused) {
            let looked = |(job, begun): (&Job, &bool)| *begun && job.path == file.path;
            if self.jobs.iter().zip(&self.begun).any(looked) {
                discard(file, self.tools.place, self.remote);
            } else {
                self.carry.paused.push((number, file));
            }
        }
        for (number, file) in std::mem::take(&mut self.files) {
            self.report.unfinished.push(file.path.clone());
            if self.carry.paused.len() < PAUSED {
                self.carry.paused.push((number, file));
            } else {
                discard(file, self.tools.place, self.remote);
            }
        }
    }

    pub(super) fn begin(&mut self, mut file: File) -> Result<(), MirrorError> {
        let Kind::File(node) = &file.entry.kind else {
            return Ok(());
        };
        self.report.touched.extend(file.path.parent());
        let number = self.next_number();
        file.staged = plain(number);
        if file.in_place {
            (self.tools.durable)()?;
        }
        self.want_lanes(file.entry.stat.st_size as u64);
        let Tools { source, rules, .. } = self.tools;
        // In place on the first lane: its order is that of what is shown.
        let lane = match file.in_place {
            true => 0,
            false => self.roomiest().unwrap_or(0),
        };
        let resumes = !file.in_place && resumed::may_go_on(source, &file.entry.stat, rules);
        let via = (&mut *self.remote, lane);
        let started = if resumes {
            let Carry { versions, .. } = &mut self.carry;
            let place_of = |version| {
                file.staged = resumed::name_of(version, &file.entry.stat, number, versions);
                let left = (self.tools.left)(file.staged);
                (self.tools.place.staged(file.staged), left)
            };
            Upload::make_ready(source, node, place_of, rules, via)
        } else {
            let wanted = Wanted {
                dest: match file.in_place {
                    true => self.tools.place.path(&file.path),
                    false => self.tools.place.staged(file.staged),
                },
                in_place: file.in_place,
                parts: None,
            };
            Upload::start(source, node, wanted, rules, via)
        };
        match started.map_err(source_error(&file.path))? {
            Start::Begun(upload, tickets) => {
                for ticket in tickets {
                    self.tickets.insert(ticket, Purpose::Send(number));
                }
                self.burden.add(&upload, self.remote);
                file.upload = Some(upload);
                self.files.insert(number, file);
            }
            // What becomes of it is in the log, or will be.
            Start::Gone | Start::Rewritten => {}
        }
        Ok(())
    }

    /// A file is sent as soon as there is room.
    pub(super) fn again_later(&mut self, path: RelPath, entry: Entry) {
        self.again.push(File {
            path,
            entry,
            in_place: false,
            tries: 0,
            staged: plain(0),
            upload: None,
        });
    }

    /// Further lanes, where they are of use.
    fn want_lanes(&mut self, size: u64) {
        use crate::sftp::lanes::{FAR, MOST_LANES};
        if self.remote.round_trip() >= FAR {
            self.remote.want_lanes(MOST_LANES);
        } else if size >= self.remote.wide_from() {
            self.remote.want_lanes(2);
        }
    }

    /// Sends file data, as far as there is room.
    pub(super) fn feed(&mut self) -> Result<(), MirrorError> {
        self.burden = Burden::default();
        for (number, file) in &mut self.files {
            let Some(upload) = &mut file.upload else {
                continue;
            };
            if self.frozen.contains(number) && !upload.has_failed() {
                self.burden.add(upload, self.remote);
                continue;
            }
            let tickets = &mut self.tickets;
            let mut note = |ticket| {
                tickets.insert(ticket, Purpose::Send(*number));
            };
            upload.widen(self.remote, &mut note);
            while upload.wants_to_send() && upload.has_room(self.remote, self.carry.room) {
                upload
                    .send_next(self.remote, &mut note)
                    .map_err(source_error(&file.path))?;
            }
            self.burden.add(upload, self.remote);
        }
        Ok(())
    }

    /// Shows what is ready.
    pub(super) fn publish(&mut self) -> Result<(), MirrorError> {
        if self.ready.is_empty() {
            return Ok(());
        }
        (self.tools.durable)()?;
        for Ready {
            staged,
            path,
            is_name,
        } in std::mem::take(&mut self.ready)
        {
            self.report.touched.extend(path.parent());
            let from = self.tools.place.staged(staged);
            let to = self.tools.place.path(&path);
            for request in plan::replace(from.clone(), to, self.tools.rules) {
                match request {
                    // Of that nothing is to be learned.
                    Request::Remove { .. } => {
                        self.remote.send(request);
                    }
                    rename => self.send_as(Purpose::Must(path.clone()), rename),
                }
            }
            if is_name {
                self.remote.send(Request::Remove { path: from }); // mostly there is none
            }
        }
        Ok(())
    }

    pub(super) fn take_file(
        &mut self,
        number: Seq,
        ticket: Ticket,
        reply: Reply,
    ) -> Result<(), MirrorError> {
        let source = self.tools.source;
        let Some(file) = self.files.get_mut(&number) else {
            return Ok(());
        };
        let Some(upload) = &mut file.upload else {
            return Ok(());
        };
        let lane = upload.lane();
        let outcome = upload.take(ticket, reply, source);
        let Some(outcome) = outcome.map_err(source_error(&file.path))? else {
            return Ok(());
        };
        let sent = upload.progress().1;
        let Some(mut file) = self.files.remove(&number) else {
            return Ok(());
        };
        self.report.counts.bytes += sent;
        let path = self.tools.place.staged(file.staged);
        match outcome {
            Outcome::Changed if file.tries < AGAIN => {
                self.remote.send_on(lane, Request::Remove { path });
                file.tries += 1;
                file.upload = None;
                if self.ends {
                    self.report.unfinished.push(file.path);
                } else {
                    self.again.push(file);
                }
            }
            Outcome::Refused(status) => {
                if !file.in_place {
                    self.remote.send_on(lane, Request::Remove { path });
                }
                self.refuse(file.path, false, status);
            }
            Outcome::Rewritten => {
                self.remote.send_on(lane, Request::Remove { path });
            }
            Outcome::Complete | Outcome::Changed | Outcome::Half => {
                self.report.counts.sent += 1;
                if !file.in_place {
                    self.ready.push(Ready {
                        staged: file.staged,
                        path: file.path,
                        is_name: false,
                    });
                }
            }
        }
        Ok(())
    }

    pub(super) fn make_symlink(&mut self, path: RelPath, entry: &Entry) {
        let Kind::Symlink(target) = &entry.kind else {
            return;
        };
        self.report.touched.extend(path.parent());
        let number = self.next_number();
        let stage = self.tools.place.stage(number);
        let (owner, times) = (owner_of(&entry.stat), times_of(&entry.stat));
        let requests = stage_symlink(target, owner, times, stage, self.tools.rules);
        let missing = requests.len();
        for request in requests {
            self.send_as(Purpose::Symlink(number), request);
        }
        let refused = None;
        self.links.insert(
            number,
            Link {
                path,
                missing,
                refused,
            },
        );
    }

    pub(super) fn take_symlink(&mut self, number: Seq, status: Option<Status>) {
        let Some(link) = self.links.get_mut(&number) else {
            return;
        };
        link.missing -= 1;
        link.refused = link.refused.take().or(status);
        if link.missing > 0 {
            return;
        }
        let Some(link) = self.links.remove(&number) else {
            return;
        };
        match link.refused {
            None => {
                self.report.counts.sent += 1;
                self.ready.push(Ready {
                    staged: plain(number),
                    path: link.path,
                    is_name: false,
                });
            }
            Some(status) => {
                let path = self.tools.place.stage(number);
                self.remote.send(Request::Remove { path });
                self.refuse(link.path, false, status);
            }
        }
    }

    /// Gives files their further names, once they are there and these are many, or nothing else is to be done.
    pub(super) fn name_later(&mut self) -> Result<(), MirrorError> {
        if self.later.is_empty() {
            return Ok(());
        }
        let later = std::mem::take(&mut self.later);
        self.drain()?;
        for (first, path) in later {
            let number = self.next_number();
            let (from, to) = (
                self.tools.place.path(&first),
                self.tools.place.stage(number),
            );
            self.send_as(Purpose::Name(number, path), Request::Hardlink { from, to });
        }
        Ok(())
    }

    /// The same when they are many.
    pub(super) fn name_many(&mut self) -> Result<(), MirrorError> {
        match self.later.len() < NAMES {
            true => Ok(()),
            false => self.name_later(),
        }
    }

    pub(super) fn take_name(
        &mut self,
        number: Seq,
        path: RelPath,
        status: Option<Status>,
    ) -> Result<(), MirrorError> {
        if status.is_none() {
            self.report.counts.sent += 1;
            self.ready.push(Ready {
                staged: plain(number),
                path,
                is_name: true,
            });
            return Ok(());
        }
        // The first name could not be made: this one is a file of its own.
        if let Some(entry) = self.entry(&path)? {
            self.again_later(path, entry);
        }
        Ok(())
    }
}
