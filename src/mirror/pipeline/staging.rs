//! Staging: files and symlinks made ready out of sight, as far ahead as the window reaches.

use super::*;

impl<R: Remote> Pipeline<'_, R> {
    pub(super) fn start_uploads(&mut self) -> Result<(), MirrorError> {
        let handles = self.remote.features().max_handles.unwrap_or(u64::MAX) / 2;
        let limit = STAGING.min(handles.max(1) as usize);
        let last = self.staging_refused.unwrap_or(self.last_loaded());
        // Counted once a turn, not once a file: there are hundreds.
        let (mut there, mut here) = (0, 0);
        for seq in &self.uploading {
            let (holds_handle, holds_file) = self.held_by(*seq);
            there += usize::from(holds_handle);
            here += usize::from(holds_file);
        }
        while self.stage_next <= last && there < limit && here < OPEN_FILES {
            let seq = self.stage_next;
            self.stage_next += 1;
            self.stage(seq)?;
            let (holds_handle, holds_file) = self.held_by(seq);
            there += usize::from(holds_handle);
            here += usize::from(holds_file);
        }
        Ok(())
    }

    /// Whether a row's upload needs one of the server's handles, and whether it keeps a file open here.
    fn held_by(&self, seq: Seq) -> (bool, bool) {
        let job = self.window.get((seq - self.cursor - 1) as usize);
        let Some(Stage::Uploading(upload)) = job.map(|j| &j.stage) else {
            return (false, false);
        };
        // A server that takes one request after another closes the old file before it opens the next.
        let closing = upload.is_closing() && self.remote.features().openssh;
        (!closing, upload.holds_file())
    }

    pub(super) fn stage(&mut self, seq: Seq) -> Result<(), MirrorError> {
        let place = self.setup.place.stage(seq);
        let rules = self.setup.rules;
        let index = (seq - self.cursor - 1) as usize;
        let Some(job) = self.window.get_mut(index) else {
            return Ok(());
        };
        if !matches!(job.stage, Stage::Waiting) {
            return Ok(());
        }
        // A second try must not find the first one's file: it may be one that must not be written.
        if job.restaged > 0 {
            self.remote.send(Request::Remove {
                path: place.clone(),
            });
        }
        match &job.row.change {
            Change::Content { .. } => self.upload(seq, place, false),
            Change::Symlink {
                target,
                owner,
                times,
                ..
            } => {
                let requests = plan::stage_symlink(target, *owner, *times, place.clone(), rules);
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
            | Change::Attr { .. } => Ok(()),
        }
    }

    pub(super) fn upload(
        &mut self,
        seq: Seq,
        dest: Vec<u8>,
        in_place: bool,
    ) -> Result<(), MirrorError> {
        let index = (seq - self.cursor - 1) as usize;
        let Some(job) = self.window.get_mut(index) else {
            return Ok(());
        };
        let Change::Content { node, .. } = &job.row.change else {
            return Ok(());
        };
        let (source, rules) = (self.setup.source, self.setup.rules);
        match Upload::start(source, node, dest, in_place, rules, &mut self.remote) {
            Ok(Some((upload, ticket))) => {
                job.stage = Stage::Uploading(Box::new(upload));
                self.tickets.insert(ticket, Purpose::Stage(seq));
                self.uploading.insert(seq);
                Ok(())
            }
            Ok(None) => {
                job.stage = Stage::Gone;
                Ok(())
            }
            Err(why) => Err(MirrorError::Source {
                change: job.row.change.to_string(),
                why,
            }),
        }
    }

    /// Sends file data, the front of the log first, while not too much is unacknowledged.
    pub(super) fn feed_uploads(&mut self) -> Result<(), MirrorError> {
        for seq in &self.uploading {
            let Some(job) = self.window.get_mut((seq - self.cursor - 1) as usize) else {
                continue;
            };
            let Stage::Uploading(upload) = &mut job.stage else {
                continue;
            };
            while upload.wants_to_send() && self.remote.unacknowledged_bytes() < UNACKNOWLEDGED {
                let tickets = &mut self.tickets;
                upload
                    .send_next(&mut self.remote, |ticket| {
                        tickets.insert(ticket, Purpose::Stage(*seq));
                    })
                    .map_err(|why| MirrorError::Source {
                        change: job.row.change.to_string(),
                        why,
                    })?;
            }
        }
        Ok(())
    }

    pub(super) fn take_staged(&mut self, seq: Seq, reply: Reply) -> Result<(), MirrorError> {
        let in_place = self
            .job(seq)
            .is_some_and(|j| matches!(j.step, Step::InPlace));
        let source = self.setup.source;
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        let outcome = match &mut job.stage {
            Stage::Uploading(upload) => match upload.take(reply, source) {
                Ok(outcome) => outcome,
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
            Stage::Ready | Stage::Waiting | Stage::Gone | Stage::Refused(_) => None,
        };
        let Some(outcome) = outcome else {
            return Ok(());
        };
        self.uploading.remove(&seq);
        if in_place {
            self.in_place_ended(seq, outcome);
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
            Outcome::Complete | Outcome::Changed => job.stage = Stage::Ready,
            Outcome::Rewritten => self.leave_out(seq),
            Outcome::Refused(status) => {
                job.stage = Stage::Refused(status);
                let first = self.staging_refused.map_or(seq, |first| first.min(seq));
                self.staging_refused = Some(first);
            }
        }
        Ok(())
    }

    /// What was staged is no version of the file; its next content comes later.
    fn leave_out(&mut self, seq: Seq) {
        if let Some(job) = self.job(seq) {
            job.stage = Stage::Gone;
        }
        let path = self.setup.place.stage(seq);
        self.remote.send(Request::Remove { path });
    }

    /// Whether a later row has the whole of this row's file.
    fn comes_whole_later(&self, seq: Seq) -> bool {
        let index = (seq - self.cursor - 1) as usize;
        let Some(Change::Content { node, .. }) = self.window.get(index).map(|j| &j.row.change)
        else {
            return false;
        };
        self.window.range(index + 1..).any(|job| {
            matches!(&job.row.change, Change::Content { node: later, extent: Extent::Whole, .. } if later == node)
        })
    }
}
