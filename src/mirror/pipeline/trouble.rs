//! What is dealt with alone, one request after another, while nothing else is in flight: changes that
//! were refused, and exchanges.
//!
//! Rare, so a round trip a request is no harm; and alone, so that what is seen is what is there.

use super::super::plan::{is_dir, judge, looks, rename, seen};
use super::*;

/// Bits that the mirror's user needs on a directory to work in it.
const OWNER_ALL: u32 = 0o700;

/// Bit that it needs on a file to write into it.
const OWNER_WRITE: u32 = 0o200;

/// What may be in the mark of an exchange: see [`Pipeline::exchange`].
pub(in crate::mirror) const MARKS: [&str; 2] = ["a", "half"];

impl<R: Remote> Pipeline<'_, R> {
    /// Deals with the first row in trouble. The pipeline goes on behind it.
    pub(super) fn deal_with_trouble(&mut self) -> Result<(), MirrorError> {
        let shut_out = std::mem::take(&mut self.shut_out);
        if !shut_out.is_empty() && !self.open_above(shut_out.iter(), false)? {
            shut_out.iter().for_each(|dir| self.settle.give_up(dir));
        }
        let Some(seq) = self.trouble.take() else {
            return Ok(());
        };
        self.see_way()?;
        match self.deal_with(seq) {
            Err(MirrorError::Refused { status, .. }) => self.refused(seq, status)?,
            done => done?,
        }
        // Rows behind this one may be in trouble too.
        let first = self
            .window
            .iter()
            .find(|j| matches!(j.step, Step::Trouble(_)));
        self.trouble = first.map(|j| j.row.seq);
        Ok(())
    }

    fn deal_with(&mut self, seq: Seq) -> Result<(), MirrorError> {
        let uncertain = seq <= self.uncertain;
        let posix_rename = self.setup.rules.posix_rename;
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        let change = job.change().clone();
        let in_place = job.is_in_place();
        let refused = |status| MirrorError::refused(seq, &change, status);
        if let Stage::Refused(status) = &job.stage {
            return Err(refused(status.clone()));
        }
        match std::mem::replace(&mut job.step, Step::Waiting) {
            Step::Waiting => match self.step_by_step(seq, &change) {
                Err(MirrorError::Refused { status, .. })
                    if status.code == code::PERMISSION_DENIED
                        && self.open_directories(&change)? =>
                {
                    self.step_by_step(seq, &change)?;
                }
                done => done?,
            },
            Step::Trouble(Verdict::Failed(status))
                if !posix_rename
                    && status.code != code::PERMISSION_DENIED
                    && matches!(change, Change::Rename { .. }) =>
            {
                let moved = match self.move_onto(seq, &change) {
                    Err(MirrorError::Refused { status, .. })
                        if status.code == code::PERMISSION_DENIED
                            && self.open_directories(&change)? =>
                    {
                        self.move_onto(seq, &change)?
                    }
                    done => done?,
                };
                if !moved {
                    return Err(refused(status));
                }
                self.set_step(seq, Step::Done);
            }
            Step::Trouble(Verdict::Look) => {
                let seen = self.look(&change)?.map_err(refused)?;
                // What the server said is gone, but that it was no plain answer is known.
                let failed = [Reply::Status(failure())];
                match judge(&change, uncertain, &failed, Some(&seen)) {
                    Verdict::Done => {
                        self.set_step(seq, Step::Done);
                        self.discard_staged(seq);
                    }
                    Verdict::Failed(status) => return Err(refused(status)),
                    Verdict::Look | Verdict::SameFile => return Err(refused(failure())),
                }
            }
            Step::Trouble(Verdict::SameFile) => {
                let path = self.setup.place.path(change.path());
                match self.ask(Request::Remove { path })? {
                    Reply::Status(status) if status.code != code::NO_SUCH_FILE => {
                        return Err(refused(status));
                    }
                    Reply::Ok
                    | Reply::Status(_)
                    | Reply::Handle(_)
                    | Reply::Data(_)
                    | Reply::Names(_)
                    | Reply::Attrs(_) => self.set_step(seq, Step::Done),
                }
            }
            // What an earlier row has brought is not there, or not ours: this one brings it itself.
            Step::Trouble(Verdict::Failed(_)) if matches!(job.stage, Stage::Covered(_)) => {
                job.alone = true;
                job.uncover();
                self.stage_next = self.stage_next.min(seq);
                self.rewind(seq);
            }
            Step::Trouble(Verdict::Failed(status)) if in_place => {
                self.in_place_refused(seq, &change, status)?;
            }
            Step::Trouble(Verdict::Failed(status)) => {
                if status.code != code::PERMISSION_DENIED || !self.may_help_to_open(seq, &change)? {
                    return Err(refused(status));
                }
                self.rewind(seq);
            }
            done @ (Step::Trouble(Verdict::Done)
            | Step::Sent(..)
            | Step::InPlace
            | Step::Held(_)
            | Step::Done) => {
                self.set_step(seq, done);
            }
        }
        Ok(())
    }

    fn set_step(&mut self, seq: Seq, step: Step) {
        if let Some(job) = self.job(seq) {
            job.step = step;
        }
    }

    /// Sends one request and waits for its reply.
    pub(super) fn ask(&mut self, request: Request) -> Result<Reply, MirrorError> {
        let asked = self.remote.send(request);
        loop {
            self.remote.pump(Duration::from_secs(1), None)?;
            while let Some((ticket, reply)) = self.remote.reply() {
                if ticket == asked {
                    let absent = |why: &Status| why.code == code::NO_SUCH_FILE;
                    self.doubted |= matches!(&reply, Reply::Status(why) if absent(why));
                    return Ok(reply);
                }
                self.take(ticket, reply)?;
            }
        }
    }

    /// What stands at a change's paths.
    fn look(&mut self, change: &Change) -> Result<Result<Vec<Option<Attrs>>, Status>, MirrorError> {
        let mut replies = Vec::new();
        for request in looks(change, &self.setup.place) {
            replies.push(self.ask(request)?);
        }
        Ok(seen(&replies))
    }

    /// Takes back all that was sent from `seq` on: it is sent again, as uncertain rows.
    pub(super) fn rewind(&mut self, seq: Seq) {
        self.uncertain = self.uncertain.max(self.announced);
        let from = self.first_from(seq);
        let sent = self.behind_what_was_sent();
        for index in from..sent.max(from + 1) {
            if matches!(self.window[index].step, Step::Held(_)) {
                continue; // its turn comes with that of what it waits for
            }
            let Some(mut job) = self.window.remove(index) else {
                break;
            };
            let step = std::mem::replace(&mut job.step, Step::Waiting);
            if job.is_staged() && matches!((&step, &job.stage), (Step::Done, Stage::Ready)) {
                job.stage = Stage::Waiting; // what was staged has gone to its place
                job.restaged += 1;
                self.stage_next = self.stage_next.min(job.row.seq);
            }
            self.forget_in_flight(&mut job);
            self.window.insert(index, job);
        }
        self.publish_next = self.publish_next.min(seq);
        self.publishing = 0;
    }

    /// A change was denied: opens what is shut, and says whether to try again.
    fn may_help_to_open(&mut self, seq: Seq, change: &Change) -> Result<bool, MirrorError> {
        if self.open_directories(change)? {
            return Ok(true);
        }
        // It may have been sent before one was opened: by us, or by a later row that changes a directory or makes it
        // anew, and has met the old one while this row's work in it was not done. Or a later row has removed it:
        // then nothing can be left to be done in it.
        let opened = self.lull.opened;
        let changed_behind = self.is_changed_behind(seq, change);
        let Some(job) = self.job(seq) else {
            return Ok(false);
        };
        let opened_by_us = std::mem::replace(&mut job.opened, opened) < opened;
        Ok(opened_by_us || changed_behind && !std::mem::replace(&mut job.sent_again, true))
    }

    /// Whether a row behind this one was sent that is about a directory above one of its paths.
    fn is_changed_behind(&self, seq: Seq, change: &Change) -> bool {
        let from = self.first_from(seq);
        let sent = self.behind_what_was_sent().max(from);
        let above = |dir: &RelPath| change.paths().any(|p| p != dir && p.is_at_or_below(dir));
        self.window
            .range(from..sent)
            .any(|job| job.row.seq > seq && job.row.change.paths().any(above))
    }

    /// Gives the mirror's user the right to work in the directories of a change, where a mode that came
    /// from the source keeps it out; [`Settle`] gives the modes back. Says whether anything changed.
    fn open_directories(&mut self, change: &Change) -> Result<bool, MirrorError> {
        // A directory that moves has its `..` written.
        let moves = matches!(change, Change::Rename { .. } | Change::Exchange { .. });
        self.open_above(change.paths(), moves)
    }

    /// The same for the directories above some paths, and for those themselves.
    pub(super) fn open_above<'p>(
        &mut self,
        paths: impl Iterator<Item = &'p RelPath>,
        themselves: bool,
    ) -> Result<bool, MirrorError> {
        let mut dirs: BTreeSet<RelPath> = BTreeSet::new();
        for path in paths {
            let above = path.ancestors().filter_map(|a| RelPath::new(a).ok());
            dirs.extend(above.filter(|a| !a.is_root()));
            dirs.extend(Some(path.clone()).filter(|_| themselves));
        }
        let mut opened = false;
        for dir in dirs {
            if self.lull.open.contains(&dir) {
                continue;
            }
            let path = self.setup.place.path(&dir);
            let Reply::Attrs(attrs) = self.ask(Request::Lstat { path: path.clone() })? else {
                continue;
            };
            let shut = |mode: &u32| is_dir(&attrs) && mode & OWNER_ALL != OWNER_ALL;
            let Some(mode) = attrs.mode.filter(shut) else {
                self.lull.open.insert(dir);
                continue;
            };
            let mode = mode & 0o7777;
            // Noted before it is done: a crash in between leaves no directory open.
            self.settle.touch(dir.clone());
            self.record()?;
            let attrs = Attrs {
                mode: Some(mode | OWNER_ALL),
                ..Attrs::default()
            };
            opened |= matches!(self.ask(Request::Setstat { path, attrs })?, Reply::Ok);
        }
        self.lull.opened += u64::from(opened);
        Ok(opened)
    }

    /// A file could not be written where it stands.
    fn in_place_refused(
        &mut self,
        seq: Seq,
        change: &Change,
        status: Status,
    ) -> Result<(), MirrorError> {
        if !matches!(change, Change::Content { linked: true, .. }) {
            log::debug!(
                "mirror {}: {seq} {change} is not written in place ({status})",
                self.setup.name
            );
            self.rewind(seq);
            self.goes_whole(seq);
            return Ok(());
        }
        if status.code == code::NO_SUCH_FILE {
            // It never came; or a later row removed the name, and will again.
            self.rewind(seq);
            if let Some(job) = self.job(seq) {
                job.anew = true;
                job.stage = Stage::Waiting;
            }
            self.stage_next = self.stage_next.min(seq);
            return Ok(());
        }
        if status.code == code::PERMISSION_DENIED {
            let path = self.setup.place.path(change.path());
            let mut opened = self.may_help_to_open(seq, change)?;
            if let Some(Attrs {
                mode: Some(mode), ..
            }) = self.attributes_of(seq, change, &path)?
                && mode & OWNER_WRITE == 0
            {
                // The upload's end sets the right mode.
                let mode = Some(mode & 0o7777 | OWNER_WRITE);
                let attrs = Attrs {
                    mode,
                    ..Attrs::default()
                };
                opened |= matches!(self.ask(Request::Setstat { path, attrs })?, Reply::Ok);
            }
            if opened {
                self.rewind(seq);
                return Ok(());
            }
        }
        Err(MirrorError::refused(seq, change, status))
    }

    fn step_by_step(&mut self, seq: Seq, change: &Change) -> Result<(), MirrorError> {
        match change {
            Change::Exchange { a, b } => self.exchange(seq, change, (a, b)),
            Change::Link { from, path } => self.copy(seq, change, (from, path)),
            Change::Content { .. } => self.copy_to_change(seq, change),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Rename { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => Ok(()),
        }
    }

    /// Swaps two entries, for which SFTP has no request: a -> mark/a, b -> a, mark/a -> b. The mark, a
    /// directory of its own, tells after a cut how far it was. No mark, or an empty one: nothing has been
    /// moved. With `a` in it and without `half` the first step is done, and the second if b is gone. `half` is
    /// made between the second and the third; with it and without `a` all is done. The mark goes after
    /// the exchange is noted as done.
    fn exchange(
        &mut self,
        seq: Seq,
        change: &Change,
        (a, b): (&RelPath, &RelPath),
    ) -> Result<(), MirrorError> {
        self.record()?;
        let place = &self.setup.place;
        let (a, b, mark) = (place.path(a), place.path(b), place.exchange(seq));
        let [aside, half] = MARKS.map(|name| [&mark[..], b"/", name.as_bytes()].concat());
        if self.attributes_of(seq, change, &mark)?.is_none() {
            self.make_mark(seq, change, &mark)?;
        }
        if self.attributes_of(seq, change, &half)?.is_none() {
            if self.attributes_of(seq, change, &aside)?.is_none() {
                self.move_entry(seq, change, &a, &aside)?;
            }
            if self.attributes_of(seq, change, &b)?.is_some() {
                let moved = self.move_entry(seq, change, &b, &a);
                if matches!(moved, Err(MirrorError::Refused { .. })) {
                    // It may be refused for long: what was set aside is seen in its place meanwhile.
                    self.move_entry(seq, change, &aside, &a)?;
                }
                moved?;
            }
            self.make_mark(seq, change, &half)?;
        }
        if self.attributes_of(seq, change, &aside)?.is_some() {
            self.move_entry(seq, change, &aside, &b)?;
        }
        self.finish(seq);
        self.publish_next = seq + 1;
        self.record()?;
        self.ask(Request::Rmdir { path: half })?;
        self.ask(Request::Rmdir { path: mark })?;
        Ok(())
    }

    fn make_mark(&mut self, seq: Seq, change: &Change, path: &[u8]) -> Result<(), MirrorError> {
        let attrs = Attrs {
            mode: Some(0o700),
            ..Attrs::default()
        };
        self.must(
            seq,
            change,
            Request::Mkdir {
                path: path.to_vec(),
                attrs,
            },
        )
    }

    fn move_entry(
        &mut self,
        seq: Seq,
        change: &Change,
        from: &[u8],
        to: &[u8],
    ) -> Result<(), MirrorError> {
        let (from, to) = (from.to_vec(), to.to_vec());
        self.must(seq, change, rename(from, to, self.setup.rules))
    }

    /// What stands at a path that a change is about; none if nothing does.
    pub(super) fn attributes_of(
        &mut self,
        seq: Seq,
        change: &Change,
        path: &[u8],
    ) -> Result<Option<Attrs>, MirrorError> {
        let looked = [self.ask(Request::Lstat {
            path: path.to_vec(),
        })?];
        let seen = seen(&looked).map_err(|status| MirrorError::refused(seq, change, status))?;
        Ok(seen.first().copied().flatten())
    }

    pub(super) fn must(
        &mut self,
        seq: Seq,
        change: &Change,
        request: Request,
    ) -> Result<(), MirrorError> {
        match self.ask(request)? {
            Reply::Status(status) => Err(MirrorError::refused(seq, change, status)),
            Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
                Ok(())
            }
        }
    }
}

/// A failure that the server did not explain.
fn failure() -> Status {
    Status {
        code: code::FAILURE,
        message: String::new(),
    }
}
