//! What is to be done when changes are through: directories' times; and what `status` is told.

use super::*;
use crate::status::show::changes;

impl<R: Remote> Pipeline<'_, R> {
    pub(super) fn unrecorded(&self) -> bool {
        self.window
            .front()
            .is_some_and(|j| matches!(j.step, Step::Done | Step::Held(_)))
    }

    pub(super) fn record_if_due(&mut self) -> Result<(), MirrorError> {
        let due = self.barrier
            || self.publishing == 0
            || self.recorded_at.elapsed() >= RECORD_EVERY
            || self.window.len() >= WINDOW - LOAD;
        if (due && self.unrecorded()) || self.settle.has_news() || self.scars.has_news() {
            self.record()?;
            if self.barrier {
                self.publish()?; // what waited for it need not wait for the next reply
            }
        }
        Ok(())
    }

    /// Notes in the journal what is done.
    pub(super) fn record(&mut self) -> Result<(), MirrorError> {
        self.see_way()?;
        let mut done = None;
        let (mut parked, mut unparked) = (Vec::new(), Vec::new());
        while self.unrecorded() {
            let Some(mut job) = self.window.pop_front() else {
                break;
            };
            let seq = job.row.seq;
            self.by_path.left(&job.row);
            self.forget_in_flight(&mut job);
            self.remove_left(job.staged());
            // One that was set aside is behind the cursor already.
            if seq > self.cursor {
                self.cursor = seq;
                done = Some((seq, job.row.cum_bytes));
            }
            if let Step::Held(error) = job.step {
                parked.push(self.held.note(job.row, error));
                continue;
            }
            if self.held.done(seq) {
                unparked.push(seq);
            }
            let (name, change) = (self.setup.name, &job.row.change);
            log::debug!("mirror {name}: {seq} {change} is done");
            if !job.taken_up {
                self.scars.follow(&job.row.change, seq);
            }
            self.ghosts.follow(&job.row.change, job.absent);
            if self.setup.rules.setstat && !matches!(job.stage, Stage::Gone | Stage::Covered(_)) {
                self.settle.touch_for(&job.row.change);
            }
        }
        let (touched, settled) = self.settle.news();
        let (ghosts, laid) = self.ghosts.news();
        self.scars.heal(self.cursor);
        let (mends, healed) = self.scars.news();
        let none_aside =
            parked.is_empty() && unparked.is_empty() && mends.is_empty() && healed.is_empty();
        if done.is_none() && none_aside && touched.is_empty() && settled.is_empty() {
            return Ok(());
        }
        let progress = Progress {
            cursor: done,
            touched,
            settled,
            ghosts,
            laid,
            parked,
            unparked,
            mends,
            healed,
        };
        self.setup.journal.advance(self.setup.name, &progress)?;
        self.recorded_at = Instant::now();
        Ok(())
    }

    pub(super) fn start_settling(&mut self) -> Result<(), MirrorError> {
        let (now, at_once) = (Instant::now(), self.settles_at_once());
        if self.is_halted() {
            return Ok(());
        }
        let unseen = |why| MirrorError::Source {
            change: "the time of a directory".to_string(),
            why,
        };
        let fits = self.settle.fits_a_pass();
        if self.settle.due_in(at_once, now) == Some(Duration::ZERO)
            && self.settle.look(self.setup.source, now).map_err(unseen)?
        {
            // What a repair has still to bring touches its directories behind this look.
            self.settling = fits.then(|| self.reached());
        }
        let head = self.setup.journal.head();
        let place = &self.setup.place;
        let busy = |dir: &RelPath| {
            self.in_flight.reaches_over(dir)
                || self.held.reaches_over(dir)
                || self.scars.leaves_unknown(dir)
        };
        let Some(requests) = self.settle.requests(place, busy, self.cursor, head, now) else {
            return Ok(());
        };
        if requests.is_empty() {
            self.settled = self.settling.take().or(self.settled);
        }
        for (index, request) in requests.into_iter().enumerate() {
            let ticket = self.remote.send(request);
            self.tickets.insert(ticket, Purpose::Settle(index));
        }
        if self.settle.has_news() {
            self.record()?;
        }
        Ok(())
    }

    /// Whether directories need not wait for others to be set right with them. What a repair has still to bring keeps
    /// some waiting.
    pub(super) fn settles_at_once(&self) -> bool {
        self.is_drained() && !self.scars.has_open()
    }

    /// The first row of which the mirror lacks something, though the cursor is behind it.
    fn first_lacked(&self) -> Option<Seq> {
        let held = self.held.first().into_iter();
        held.chain(self.scars.since()).min()
    }

    /// What the mirror lacks is not settled, however far the cursor is; and when it is there, the times of its
    /// directories are yet to be set. None: of a mirror that is being filled nothing is.
    pub(super) fn not_lacked(&self, upto: Seq) -> Option<Seq> {
        match self.first_lacked() {
            None => Some(upto),
            Some(first) => Some(upto.min(first.checked_sub(1)?)),
        }
    }

    pub(super) fn show(&mut self) {
        self.warn_of_the_rest();
        if self.settle.is_clear() {
            self.settled = Some(self.cursor);
        }
        let first = self.window.front().map(|job| job.row.seq);
        let at_rest = self.held.is_at_rest(first) & !self.scars.has_due();
        // With directories' times; but those of a mirror that is busy with what comes are never all set.
        if !self.scars.has_open() && (self.settle.is_clear() || !self.is_drained()) {
            self.setup.live.repaired();
        }
        self.settled = self.settled.and_then(|upto| self.not_lacked(upto));
        let settled = self.settled;
        let lacks = self.first_lacked();
        let drained =
            self.is_drained() && self.settle.is_clear() && lacks.is_none() && self.scars.is_empty();
        match (drained, self.behind_since) {
            (false, None) => self.behind_since = Some((Instant::now(), self.cursor)),
            (true, Some((since, cursor))) => {
                let got = changes(self.cursor - cursor);
                if !self.caught_up || since.elapsed() >= WORTH_A_LINE {
                    log::info!("mirror {}: caught up, {got}", self.setup.name);
                }
                self.caught_up = true;
                self.behind_since = None;
            }
            (true, None) => self.caught_up = true,
            (false, Some(_)) => {}
        }
        let current = || {
            let seq = *self.uploading.first()?;
            let job = self.window.get(self.index(seq)?)?;
            let Stage::Uploading(upload) = &job.stage else {
                return None;
            };
            // What has no reply yet may still be in our own buffers.
            let (all, sent) = upload.progress();
            let open = self.remote.unacknowledged_bytes() as u64;
            let there = (all, sent.saturating_sub(open));
            Some((job.row.change.path().to_string(), there))
        };
        let far = (self.cursor, self.remote.traffic().0);
        self.setup
            .live
            .working(drained, at_rest, settled, far, current);
    }
}
