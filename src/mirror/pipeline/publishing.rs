//! Publishing: changes made visible in the order of the log, pipelined as far as J4 lets them. Why it is in
//! this order is told in the module above.

use super::*;
use crate::fault;

impl<R: Remote> Pipeline<'_, R> {
    pub(super) fn publish(&mut self) -> Result<(), MirrorError> {
        self.barrier = false;
        if self.held.is_due() {
            return Ok(()); // those come first
        }
        while self.publishing < PUBLISHING && self.trouble.is_none() {
            let index = self.first_from(self.publish_next);
            let Some(job) = self.window.get(index) else {
                break;
            };
            let seq = job.row.seq;
            // Set aside, or published ahead of its turn.
            if matches!(job.step, Step::Held(_) | Step::Sent(..) | Step::Done) {
                self.publish_next = seq + 1;
                continue;
            }
            let under_way = matches!(job.stage, Stage::Uploading(_) | Stage::Symlink(..));
            if self.scars.are_full() {
                break; // they are repaired first
            }
            if self.waits_behind(&job.row.change) && !under_way {
                self.set_aside(index, None)?;
                self.publish_next = seq + 1;
                continue;
            }
            self.look_for_what_covers(index);
            // A move that is noted later would take the scar along, or drop it with what it replaces.
            let change = &self.window[index].row.change;
            if !under_way
                && (!self.scars.is_empty() || matches!(change, Change::Repair { .. }))
                && self.is_at_a_pivot(change)
            {
                self.barrier = true;
                break;
            }
            if !under_way && self.scars.take_up(&self.window[index].row.change, seq) {
                self.leave_to_repair(index)?;
                self.publish_next = seq + 1;
                continue;
            }
            let job = &self.window[index];
            match &job.stage {
                Stage::Ready | Stage::Gone | Stage::Covered(_) => {}
                Stage::Refused(status) if self.publishing == 0 => {
                    let status = status.clone();
                    self.in_trouble(seq, Verdict::Failed(status));
                    break;
                }
                Stage::Refused(_) => break,
                Stage::Uploading(_) if matches!(job.step, Step::InPlace) => {
                    if !self.publish_in_place(index)? {
                        break;
                    }
                    self.publish_next = seq + 1;
                    continue;
                }
                Stage::Waiting | Stage::Uploading(_) | Stage::Symlink(..) => {
                    self.pass(index)?;
                    break;
                }
            }
            if job.lost
                && job.fate == Fate::Lives
                && !self.follow_to_its_end(index)
                && self.sees_more_later(index)
            {
                self.barrier = true;
                break;
            }
            let job = &self.window[index];
            let waits = match job.fate {
                Fate::Lives => self.must_wait(&job.row.change),
                Fate::Dead => false,
                Fate::Vacates => self.pivots.touches(job.row.change.path()),
            };
            if waits {
                self.barrier = true;
                break;
            }
            let how = self.how(index)?;
            if seq > self.announced && how != Publish::Requests(Vec::new()) {
                self.announce()?;
            }
            match how {
                Publish::Requests(requests) => {
                    self.send(seq, requests);
                    self.publish_next = seq + 1;
                }
                Publish::InPlace => {
                    if self.publish_in_place(index)? {
                        self.publish_next = seq + 1;
                    } else if !matches!(self.window[index].stage, Stage::Gone) {
                        break;
                    }
                }
                Publish::Exchange | Publish::Copy => {
                    self.trouble = Some(seq);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether a row depends on one that is set aside. What is to be made like the source does not, if what is set
    /// aside lies below: the repair leaves that alone.
    fn waits_behind(&self, change: &Change) -> bool {
        match change {
            Change::Repair { path, .. } => self.held.reaches_over(path),
            _ => self.held.touches(change),
        }
    }

    /// How a row is published. Everything earlier on a pivot's paths is noted as done here, so that the
    /// ghosts are those of its place in the log.
    pub(super) fn how(&mut self, index: usize) -> Result<Publish, MirrorError> {
        let job = &mut self.window[index];
        // But a file may be on its way to a rename's old name, and so no ghost any more.
        let arriving = matches!(
            &job.row.change,
            Change::Rename { from, .. } if self.arrivals.contains_key(from)
        );
        job.instead = None; // it may have been another one when this row was tried before
        match job.fate {
            Fate::Lives => {}
            Fate::Dead => {
                let seq = job.row.seq;
                self.discard_staged(seq);
                return Ok(Publish::Requests(Vec::new()));
            }
            Fate::Vacates => {
                let path = job.row.change.path().clone();
                let change = Change::Unlink { path };
                let how = plan::publish(&change, job.staged(), &self.setup.place, self.setup.rules);
                job.instead = Some(change);
                return Ok(how);
            }
        }
        if job.row.change.is_pivot() && !arriving {
            match self.ghosts.effect(&job.row.change) {
                None => return Ok(Publish::Requests(Vec::new())),
                Some(effect) => job.instead = Some(effect).filter(|e| *e != job.row.change),
            }
        }
        if matches!(job.stage, Stage::Covered(_)) {
            let Change::Content { path, node, .. } = &job.row.change else {
                return Ok(Publish::Requests(Vec::new()));
            };
            let (to, mut attrs) = (self.setup.place.path(path), Vec::new());
            if self.setup.rules.setstat && self.covers.sets_attributes(node, self.attrs_set) {
                let now = attributes_now(self.setup.source, node, self.setup.rules);
                attrs = now.map_err(|why| MirrorError::Source {
                    change: job.row.change.to_string(),
                    why,
                })?;
            }
            return Ok(Publish::Requests(plan::set(to, attrs, false)));
        }
        let (place, staged) = (&self.setup.place, job.staged());
        if matches!(job.stage, Stage::Gone) {
            // Nothing to be done, but what stands there has to be known.
            return Ok(Publish::Requests(plan::looks(job.change(), place)));
        }
        if job.is_in_place() {
            let atomic = self.setup.rules.atomic == plan::Wish::Yes && !job.is_linked();
            let copied = job.copied;
            return Ok(if !copied && (atomic || self.is_haunted(index)) {
                Publish::Copy
            } else {
                Publish::InPlace
            });
        }
        if job.anew {
            let (from, to) = (place.staged(staged), place.path(job.row.change.path()));
            return Ok(Publish::Requests(plan::replace(from, to, self.setup.rules)));
        }
        Ok(plan::publish(job.change(), staged, place, self.setup.rules))
    }

    /// J3: what is about to become visible is on the disk first. Requests that wait to be written are
    /// on their way meanwhile.
    pub(super) fn announce(&mut self) -> Result<(), MirrorError> {
        self.remote.pump(Duration::ZERO, None)?;
        // Never less than the cursor: what is set aside there was not announced before.
        let upto = self.loaded.max(self.cursor);
        self.setup.journal.announce(self.setup.name, upto)?;
        self.announced = upto;
        Ok(())
    }

    /// J4: whether something in flight keeps this change from being sent.
    pub(super) fn must_wait(&self, change: &Change) -> bool {
        if !fault::keeps("J4") {
            return false;
        }
        match change {
            Change::Rename { from, to } => {
                let arriving = self.arrivals.get(from).copied().unwrap_or(0);
                self.in_flight.touches_but(from, arriving)
                    || self.in_flight.touches(to)
                    || self.pivots.touches(from)
            }
            Change::Link { .. } | Change::Exchange { .. } => {
                change.paths().any(|p| self.in_flight.touches(p))
            }
            // A row that is replayed must not go through a symlink that came after it.
            Change::Symlink { path, .. } => {
                self.in_flight.reaches_into(path) || self.pivots.touches(path)
            }
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => self.is_at_a_pivot(change),
        }
    }

    /// Whether it is about a path of a pivot that is under way, or of one that is not noted yet.
    fn is_at_a_pivot(&self, change: &Change) -> bool {
        !self.pivots.is_empty() && change.paths().any(|p| self.pivots.touches(p))
    }

    pub(super) fn send(&mut self, seq: Seq, mut requests: Vec<Request>) {
        let uncertain = seq <= self.uncertain;
        let Some(index) = self.index(seq) else { return };
        let job = &self.window[index];
        if let Some(content) = job.content() {
            self.covers.published(content.node, seq, self.attrs_set);
        }
        let sets = matches!(job.row.change, Change::Attr { .. }) && !requests.is_empty();
        self.attrs_set += u64::from(sets);
        if requests.is_empty() {
            self.finish(seq);
            return;
        }
        if job.looks(uncertain) && !matches!(job.stage, Stage::Gone) {
            requests.extend(plan::looks(job.change(), &self.setup.place));
        }
        self.note_in_flight(index);
        self.lull.is_over();
        self.window[index].opened = self.lull.opened;
        self.publishing += 1;
        self.window[index].step = Step::Sent(vec![None; requests.len()], requests.len());
        for (i, request) in requests.into_iter().enumerate() {
            let ticket = self.remote.send(request);
            self.tickets.insert(ticket, Purpose::Publish(seq, i));
        }
    }

    pub(super) fn note_in_flight(&mut self, index: usize) {
        let job = &mut self.window[index];
        job.noted = true;
        for path in job.row.change.paths() {
            self.in_flight.insert(path);
            if job.row.change.is_pivot() {
                self.pivots.insert(path);
            }
        }
        if job.arrives() {
            *self
                .arrivals
                .entry(job.row.change.path().clone())
                .or_default() += 1;
        }
    }

    pub(super) fn forget_in_flight(&mut self, job: &mut Job) {
        if !std::mem::take(&mut job.noted) {
            return;
        }
        for path in job.row.change.paths() {
            self.in_flight.remove(path);
            if job.row.change.is_pivot() {
                self.pivots.remove(path);
            }
        }
        if job.arrives() {
            let path = job.row.change.path();
            if let Some(count) = self.arrivals.get_mut(path) {
                *count -= 1;
                if *count == 0 {
                    self.arrivals.remove(path);
                }
            }
        }
    }

    /// Marks a row as done that was not sent.
    pub(super) fn finish(&mut self, seq: Seq) {
        let Some(index) = self.index(seq) else { return };
        self.note_in_flight(index);
        self.window[index].step = Step::Done;
    }

    pub(super) fn take_published(&mut self, seq: Seq, i: usize, reply: Reply) {
        let uncertain = seq <= self.uncertain;
        let Some(job) = self.job(seq) else { return };
        let Step::Sent(replies, missing) = &mut job.step else {
            return;
        };
        replies[i] = Some(reply);
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let replies: Vec<Reply> = std::mem::take(replies).into_iter().flatten().collect();
        let looks = if job.looks(uncertain) {
            job.change().paths().count()
        } else {
            0
        };
        let (mut main, looks) = replies.split_at(replies.len() - looks);
        if job.is_staged() {
            main = plan::replaced(main);
        }
        let absent = |reply: &Reply| matches!(reply, Reply::Status(why) if is_doubtful(why));
        let unsure = matches!(job.stage, Stage::Gone) || main.iter().any(absent);
        let verdict = match plan::seen(looks) {
            Ok(_) if matches!(job.stage, Stage::Covered(_)) => {
                let failed = main.iter().find_map(|reply| match reply {
                    Reply::Status(status) => Some(status.clone()),
                    Reply::Ok
                    | Reply::Handle(_)
                    | Reply::Data(_)
                    | Reply::Names(_)
                    | Reply::Attrs(_) => None,
                });
                match failed {
                    Some(why) if !(uncertain && why.code == code::NO_SUCH_FILE) => {
                        Verdict::Failed(why)
                    }
                    Some(_) | None => Verdict::Done,
                }
            }
            Ok(seen) => {
                job.absent = matches!(job.stage, Stage::Gone) && seen == [None];
                let seen = Some(seen).filter(|s| !s.is_empty());
                plan::judge(job.change(), uncertain, main, seen.as_deref())
            }
            // Whether it is there has to be known: see [`Ghosts`].
            Err(status) if matches!(job.stage, Stage::Gone) => Verdict::Failed(status),
            Err(_) => plan::judge(job.change(), uncertain, main, None),
        };
        match verdict {
            Verdict::Done => {
                job.step = Step::Done;
                if main.iter().any(|reply| matches!(reply, Reply::Status(_))) {
                    self.discard_staged(seq);
                }
            }
            other => self.in_trouble(seq, other),
        }
        self.doubted |= unsure;
        self.publishing -= 1;
    }

    /// What was staged for a change that has turned out to be done does not stay behind. (If this does not
    /// reach the mirror any more, the next session clears it away.)
    pub(super) fn discard_staged(&mut self, seq: Seq) {
        if self.job(seq).is_some_and(|job| job.is_staged()) {
            self.remove_staged(seq);
        }
    }

    pub(super) fn remove_staged(&mut self, seq: Seq) {
        let Some(job) = self.job(seq) else { return };
        let (lane, staged) = (job.lane.unwrap_or(0), job.staged());
        let path = self.setup.place.staged(staged);
        self.remote.send_on(lane, Request::Remove { path });
    }

    pub(super) fn in_trouble(&mut self, seq: Seq, verdict: Verdict) {
        self.doubted |= matches!(&verdict, Verdict::Failed(why) if is_doubtful(why));
        if let Some(job) = self.job(seq) {
            job.step = Step::Trouble(verdict);
        }
        self.trouble = Some(self.trouble.map_or(seq, |first| first.min(seq)));
    }
}

/// Whether it may be the way in that is missing: see `fence.rs`.
fn is_doubtful(why: &Status) -> bool {
    why.code != code::PERMISSION_DENIED
}
