//! What is to be done when changes are through: directories' times; and what `status` is told.

use super::*;

impl<R: Remote> Pipeline<'_, R> {
    pub(super) fn start_settling(&mut self) -> Result<(), MirrorError> {
        let (now, drained) = (Instant::now(), self.is_drained());
        if self.is_halted() {
            return Ok(());
        }
        let unseen = |why| MirrorError::Source {
            change: "the time of a directory".to_string(),
            why,
        };
        let fits = self.settle.fits_a_pass();
        if self.settle.due_in(drained, now) == Some(Duration::ZERO)
            && self.settle.look(self.setup.source, now).map_err(unseen)?
        {
            self.settling = fits.then_some(self.cursor);
        }
        let head = self.setup.journal.head();
        let place = &self.setup.place;
        let busy = |dir: &RelPath| self.in_flight.reaches_over(dir) || self.held.reaches_over(dir);
        let Some(requests) = self.settle.requests(place, busy, self.cursor, head, now) else {
            return Ok(());
        };
        if requests.is_empty() {
            self.settled = self.settling.take().unwrap_or(self.settled);
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

    pub(super) fn show(&mut self) {
        if self.settle.is_clear() {
            self.settled = self.cursor;
        }
        let first = self.window.front().map(|job| job.row.seq);
        let at_rest = self.held.is_at_rest(first) & self.scars.due().is_empty();
        // What the mirror lacks is not settled, however far the cursor is.
        let lacks = self
            .held
            .first()
            .into_iter()
            .chain(self.scars.since())
            .min();
        let settled = lacks.map_or(self.settled, |first| self.settled.min(first - 1));
        let drained = self.is_drained() && self.settle.is_clear() && lacks.is_none();
        match (drained, self.behind_since) {
            (false, None) => self.behind_since = Some((Instant::now(), self.cursor)),
            (true, Some((since, cursor))) => {
                let changes = self.cursor - cursor;
                if !self.caught_up || since.elapsed() >= WORTH_A_LINE {
                    log::info!("mirror {}: caught up, {changes} changes", self.setup.name);
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
