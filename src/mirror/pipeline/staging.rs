//! Staging: files and symlinks made ready out of sight, as far ahead as the window reaches.

use super::*;
use crate::mirror::resume::Staged;
use crate::mirror::upload::Wanted;

/// What uploads need as long as they are under way. Kept up to date with each of their steps: there are
/// hundreds, and the server's replies come one by one.
#[derive(Default)]
pub(super) struct Burden {
    /// Of each lane: handles of the server, and bytes that are still to be sent on it.
    lanes: [(usize, u64); MOST_LANES],
    /// Files that are open here.
    files: usize,
    /// Bytes that were read and not yet sent.
    bytes: usize,
}

/// What one upload needs of that.
#[derive(Clone, Copy, Default)]
pub(super) struct Weight {
    lane: usize,
    handles: usize,
    to_send: u64,
    files: usize,
    bytes: usize,
}

/// What a file costs beside its bytes, in bytes: names, handles, replies.
const FILE_COST: u64 = 256;

/// More than that of one file does not keep others from being started on its lane.
const LARGE: u64 = 256 << 10;

impl Weight {
    fn of(upload: &Upload, openssh: bool) -> Weight {
        // A server that takes one request after another closes the old file before it opens the next.
        let closing = upload.is_closing() && openssh;
        let (size, sent) = upload.progress();
        Weight {
            lane: upload.lane(),
            handles: usize::from(!closing),
            to_send: FILE_COST + size.saturating_sub(sent).min(LARGE),
            files: usize::from(upload.holds_file()),
            bytes: upload.holds_bytes(),
        }
    }
}

impl Burden {
    fn replace(&mut self, old: Weight, new: Weight) {
        let lane = &mut self.lanes[old.lane];
        lane.0 -= old.handles;
        lane.1 -= old.to_send;
        self.files -= old.files;
        self.bytes -= old.bytes;
        let lane = &mut self.lanes[new.lane];
        lane.0 += new.handles;
        lane.1 += new.to_send;
        self.files += new.files;
        self.bytes += new.bytes;
    }
}

impl<R: Remote> Pipeline<'_, R> {
    pub(super) fn start_uploads(&mut self) -> Result<(), MirrorError> {
        self.want_lanes();
        let limit = self.most_handles();
        let last = self.staging_refused.unwrap_or(self.loaded);
        while self.stage_next <= last
            && self.burden.files < OPEN_FILES
            && self.burden.bytes < READ_AHEAD
        {
            let index = self.first_from(self.stage_next);
            let Some(job) = self.window.get(index) else {
                break;
            };
            let (seq, before) = (job.row.seq, job.lane);
            // Where least is to be sent, of those that have a handle to give. What more than fills a lane may
            // as well wait for another lane.
            let load =
                |n: &usize| self.burden.lanes[*n].1 + self.remote.unacknowledged_on(*n) as u64;
            let lanes = (0..self.remote.lanes())
                .filter(|n| self.burden.lanes[*n].0 < limit && load(n) < UNACKNOWLEDGED as u64);
            let Some(lane) = before.or(lanes.min_by_key(load)) else {
                break;
            };
            self.stage_next = seq + 1;
            self.stage(seq, lane)?;
        }
        Ok(())
    }

    /// A channel's window is what it can carry in a round trip: on a long line a backlog needs several. And on any
    /// line big files need one beside that of all others, so that those do not wait behind them.
    fn want_lanes(&mut self) {
        let (Some(first), Some(last)) = (self.window.front(), self.window.back()) else {
            return;
        };
        let before = first.row.cum_bytes.saturating_sub(first.row.change.bytes());
        let bytes = last.row.cum_bytes.saturating_sub(before);
        if self.remote.round_trip() >= FAR {
            self.remote.want_lanes(lanes_for(bytes));
        } else if bytes >= self.remote.wide_from() {
            self.remote.want_lanes(2);
        }
    }

    /// Counts what a row's upload needs now, and whether it has something to send.
    fn weigh(&mut self, seq: Seq) {
        let openssh = self.remote.features().openssh;
        let Some(index) = self.index(seq) else { return };
        let job = &mut self.window[index];
        let upload = match &job.stage {
            Stage::Uploading(upload) => Some(upload),
            Stage::Ready
            | Stage::Waiting
            | Stage::Symlink(..)
            | Stage::Gone
            | Stage::Covered(_)
            | Stage::Refused(_) => None,
        };
        let weight = upload.map_or(Weight::default(), |u| Weight::of(u, openssh));
        let old = std::mem::replace(&mut job.weight, weight);
        self.burden.replace(old, weight);
        if upload.is_some_and(|u| u.wants_to_send()) {
            self.feeding.insert(seq);
        } else {
            self.feeding.remove(&seq);
        }
    }

    /// How many of the server's handles uploads may have.
    fn most_handles(&self) -> usize {
        let features = self.remote.features();
        let most = match features.max_handles {
            None => 512,
            // It takes one request after another, so what is counted here is what is open there.
            Some(all) if features.openssh => all.saturating_sub(SPARE_HANDLES).max(all / 2),
            Some(all) => all / 2,
        };
        STAGING.min(most.max(1) as usize)
    }

    fn stage(&mut self, seq: Seq, lane: usize) -> Result<(), MirrorError> {
        let rules = self.setup.rules;
        let Some(index) = self.index(seq) else {
            return Ok(());
        };
        let job = &mut self.window[index];
        if !matches!(job.stage, Stage::Waiting) {
            return Ok(());
        }
        // It will be set aside when its turn comes.
        if self.held.touches(&job.row.change) {
            return Ok(());
        }
        if job.fate == Fate::Dead {
            job.stage = Stage::Gone;
            return Ok(());
        }
        if let Some(by) = self.covered_by(index) {
            self.window[index].stage = Stage::Covered(by);
            return Ok(());
        }
        if self.parts(index)?.is_some() {
            let job = &mut self.window[index];
            (job.in_place, job.stage) = (true, Stage::Ready);
            return Ok(());
        }
        let job = &mut self.window[index];
        // Symlinks are little, and need no handle.
        let lane = match &job.row.change {
            Change::Symlink { .. } => 0,
            _ => lane,
        };
        job.lane = Some(lane);
        // A second try must not find the first one's file: it may be one that must not be written.
        let path = self.setup.place.staged(job.staged());
        if job.restaged > 0 {
            let path = path.clone();
            self.remote.send_on(lane, Request::Remove { path });
        }
        match &job.row.change {
            Change::Content { .. } => self.upload(seq, None, lane),
            Change::Symlink {
                target,
                owner,
                times,
                ..
            } => {
                let requests = plan::stage_symlink(target, *owner, *times, path, rules);
                job.stage = Stage::Symlink(requests.len(), None);
                for request in requests {
                    let ticket = self.remote.send(request);
                    self.tickets.insert(ticket, Purpose::Stage(seq));
                }
                Ok(())
            }
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => Ok(()),
        }
    }

    /// Starts an upload on a lane: into the stage, or as is wanted.
    pub(super) fn upload(
        &mut self,
        seq: Seq,
        wanted: Option<Wanted>,
        lane: usize,
    ) -> Result<(), MirrorError> {
        let Some(job) = self.index(seq).map(|index| &mut self.window[index]) else {
            return Ok(());
        };
        let Change::Content { node, .. } = &job.row.change else {
            return Ok(());
        };
        let (source, rules) = (self.setup.source, self.setup.rules);
        // First how far the log is, then the file: see [`Covers`].
        let upto = match &wanted {
            Some(Wanted { parts: Some(_), .. }) => self.loaded,
            Some(_) | None => self.setup.journal.head(),
        };
        let goes_on = job.is_linked() && !job.copied;
        let via = (&mut self.remote, lane);
        let Setup { place, kept, .. } = &self.setup;
        let memory = self.setup.memory;
        let started = match wanted {
            Some(wanted) if goes_on => {
                let known = |version| memory.borrow().get(&(seq, version)).copied();
                let known = |version| known(version).unwrap_or(0);
                Upload::go_on_in_place(source, node, wanted, known, rules, via)
            }
            Some(wanted) => Upload::start(source, node, wanted, rules, via),
            None => {
                let place_of = |version| {
                    let version = Some(version);
                    let staged = Staged { seq, version };
                    (place.staged(staged), kept.of(staged, memory))
                };
                Upload::make_ready(source, node, place_of, rules, via)
            }
        };
        match started {
            Ok(Start::Begun(upload, tickets)) => {
                job.version = upload.version();
                let staged = job.staged();
                if self.setup.kept.of(staged, memory) != Left::Nothing {
                    self.resumed.insert(node.clone());
                }
                job.stage = Stage::Uploading(upload);
                if let Some(content) = job.content() {
                    self.covers.claim(content, upto);
                }
                for ticket in tickets {
                    self.tickets.insert(ticket, Purpose::Stage(seq));
                }
                self.uploading.insert(seq);
                self.weigh(seq);
                self.remove_left(staged);
                Ok(())
            }
            Ok(Start::Gone) => {
                job.lost = true;
                self.comes_to_nothing(seq);
                Ok(())
            }
            Ok(Start::Rewritten) => {
                self.comes_to_nothing(seq);
                Ok(())
            }
            Err(why) => Err(MirrorError::Source {
                change: job.row.change.to_string(),
                why,
            }),
        }
    }

    /// Removes what earlier sessions have left of a row, but for what is used.
    pub(super) fn remove_left(&mut self, used: Staged) {
        for request in self.setup.kept.forget(used, &self.setup.place) {
            self.remote.send(request);
        }
    }

    /// Sends file data while not too much is unacknowledged: small files in the order of the log, big ones in
    /// turns.
    pub(super) fn feed_uploads(&mut self) -> Result<(), MirrorError> {
        let mut next = 0;
        while let Some(seq) = self.feeding.range(next..).next().copied() {
            next = seq + 1;
            let full = |n| self.remote.unacknowledged_on(n) >= UNACKNOWLEDGED;
            if (0..self.remote.lanes()).all(full) {
                return Ok(());
            }
            if !self.is_wide(seq) {
                self.feed(seq, usize::MAX)?;
            }
        }
        let mut big: Vec<Seq> = self.feeding.iter().copied().collect();
        big.retain(|seq| self.is_wide(*seq));
        let first = big.partition_point(|seq| *seq < self.feed_turn);
        big.rotate_left(first);
        let mut at = 0;
        while !big.is_empty() {
            if self.feed(big[at], TURN)? {
                at += 1;
            } else {
                big.remove(at);
            }
            at %= big.len().max(1);
            self.feed_turn = big.get(at).copied().unwrap_or(self.feed_turn);
        }
        Ok(())
    }

    fn is_wide(&self, seq: Seq) -> bool {
        let job = self.index(seq).map(|index| &self.window[index].stage);
        matches!(job, Some(Stage::Uploading(upload)) if upload.is_wide())
    }

    /// Sends `most` requests of an upload, if they have room; whether all of them had.
    fn feed(&mut self, seq: Seq, most: usize) -> Result<bool, MirrorError> {
        let Some(index) = self.index(seq) else {
            return Ok(false);
        };
        let job = &mut self.window[index];
        let Stage::Uploading(upload) = &mut job.stage else {
            return Ok(false);
        };
        let tickets = &mut self.tickets;
        let mut note = |ticket| {
            tickets.insert(ticket, Purpose::Stage(seq));
        };
        upload.widen(&mut self.remote, &mut note);
        let mut sent = 0;
        while sent < most && upload.wants_to_send() && upload.has_room(&self.remote, UNACKNOWLEDGED)
        {
            upload
                .send_next(&mut self.remote, &mut note)
                .map_err(|why| MirrorError::Source {
                    change: job.row.change.to_string(),
                    why,
                })?;
            sent += 1;
        }
        if sent > 0 {
            self.weigh(seq);
        }
        Ok(sent == most)
    }

    pub(super) fn take_staged(
        &mut self,
        seq: Seq,
        ticket: Ticket,
        reply: Reply,
    ) -> Result<(), MirrorError> {
        let in_place = self
            .job(seq)
            .is_some_and(|j| matches!(j.step, Step::InPlace));
        let source = self.setup.source;
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        let mut went_on = false;
        let outcome = match &mut job.stage {
            Stage::Uploading(upload) => match upload.take(ticket, reply, source) {
                Ok(outcome) => {
                    (job.arrived, went_on) = (upload.arrived(), upload.goes_on_now());
                    outcome
                }
                Err(why) => {
                    return Err(MirrorError::Source {
                        change: job.row.change.to_string(),
                        why,
                    });
                }
            },
            Stage::Symlink(missing, failure) => {
                *missing -= 1;
                if let Reply::Status(status) = reply {
                    failure.get_or_insert(status);
                }
                let over = *missing == 0;
                over.then(|| failure.take().map_or(Outcome::Complete, Outcome::Refused))
            }
            Stage::Ready | Stage::Waiting | Stage::Gone | Stage::Covered(_) | Stage::Refused(_) => {
                None
            }
        };
        if went_on {
            self.relied_on_no_more(seq);
        }
        if in_place {
            self.note_partial(seq)?;
        }
        let Some(outcome) = outcome else {
            self.weigh(seq);
            return Ok(());
        };
        self.uploading.remove(&seq);
        if in_place {
            self.in_place_ended(seq, outcome);
            self.weigh(seq);
            return Ok(());
        }
        let comes_whole = outcome == Outcome::Changed && self.comes_whole_later(seq);
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        match outcome {
            Outcome::Changed if job.restaged < RESTAGE => {
                job.restaged += 1;
                job.stage = Stage::Waiting;
                self.stage_next = self.stage_next.min(seq);
            }
            // It was written anew meanwhile, and that is in the log already.
            Outcome::Changed if comes_whole => self.leave_out(seq),
            Outcome::Complete | Outcome::Changed | Outcome::Half => job.stage = Stage::Ready,
            Outcome::Rewritten => self.leave_out(seq),
            Outcome::Refused(status) => {
                job.stage = Stage::Refused(status);
                let first = self.staging_refused.map_or(seq, |first| first.min(seq));
                self.staging_refused = Some(first);
            }
        }
        self.weigh(seq);
        Ok(())
    }

    /// What was staged is no version of the file; its next content comes later.
    fn leave_out(&mut self, seq: Seq) {
        self.comes_to_nothing(seq);
        self.remove_staged(seq);
    }

    /// A row's content is not sent. Rows that relied on it have to see for themselves.
    pub(super) fn comes_to_nothing(&mut self, seq: Seq) {
        if let Some(job) = self.job(seq) {
            job.stage = Stage::Gone;
        }
        self.relied_on_no_more(seq);
    }

    /// A row's send covers no other one.
    fn relied_on_no_more(&mut self, seq: Seq) {
        let Some(index) = self.index(seq) else { return };
        let Some(content) = self.window[index].content() else {
            return;
        };
        self.covers.withdraw(content.node, seq);
        for job in self.window.range_mut(index + 1..) {
            if matches!(job.stage, Stage::Covered(by) if by == seq) {
                job.uncover();
                self.stage_next = self.stage_next.min(job.row.seq);
            }
        }
    }

    /// The earlier row whose send brings what this one is about.
    pub(super) fn covered_by(&self, index: usize) -> Option<Seq> {
        let job = &self.window[index];
        if job.alone || job.anew {
            return None;
        }
        if let Change::Attr { path, symlink, .. } = &job.row.change {
            // The attributes of a file that is just being sent went with its content.
            let before = self.by_path.previous_alone(path, job.row.seq)?;
            let before = &self.window[self.index(before)?];
            let content = before.content().filter(|_| !symlink)?;
            let brought = !matches!(before.stage, Stage::Gone);
            return self
                .covers
                .of(covers::Place {
                    seq: job.row.seq,
                    path,
                    ..content
                })
                .filter(|by| brought && *by <= before.row.seq);
        }
        self.covers.of(job.content()?)
    }

    /// A row's turn has come. What was made ready for it is older than what an earlier row has brought, if
    /// that one had to be made ready again.
    pub(super) fn look_for_what_covers(&mut self, index: usize) {
        let job = &self.window[index];
        let (seq, ready) = (job.row.seq, matches!(job.stage, Stage::Ready));
        if (!ready && !matches!(job.stage, Stage::Waiting)) || !matches!(job.step, Step::Waiting) {
            return;
        }
        if let Some(by) = self.covered_by(index) {
            self.discard_staged(seq);
            self.window[index].stage = Stage::Covered(by);
        }
    }

    /// Whether a later row has the whole of this row's file.
    fn comes_whole_later(&self, seq: Seq) -> bool {
        let Some(index) = self.index(seq) else {
            return false;
        };
        let Change::Content { node, .. } = &self.window[index].row.change else {
            return false;
        };
        self.window.range(index + 1..).any(|job| {
            matches!(&job.row.change, Change::Content { node: later, extent: Extent::Whole, .. } if later == node)
        })
    }
}
