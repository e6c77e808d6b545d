//! Small changes of big files, written where the files stand (R1): only the bytes that changed travel.
//!
//! *Why that is right.* Take any byte of a file, and call a place behind a file's end zero. The mirror's byte
//! is the source's present one, unless some row behind the mirror's place in the log has it in its ranges (or
//! is about the whole file), or will have: it was written and is not logged yet. That holds when the mirror is
//! new, since it is a copy. A write here is marked before it is logged, so it keeps holding. And a row that is
//! carried out reads the present bytes of its ranges, so all its bytes are the source's at that moment. So
//! ranges need no base that is known to the byte, and doing a row twice, or half and then again, ends the same
//! (R2): after a cut the row is still behind the mirror's place, with all its ranges. An earlier row's replay
//! brings present bytes too, so nothing goes back in time.
//!
//! *Several rows at once.* The rows of the same file that are loaded are sent together. Their ranges are united;
//! and since a file that was cut and grew again has zeros where old bytes were, so is all from the shortest of
//! their sizes on. What is united is claimed up to the last row that is loaded and no further ([`Covers`]): the
//! ranges of rows beyond are not known.
//!
//! *What size a file must have there before.* No row says. But what the mirror lacks can be seen: if its file is
//! shorter than ours, all from its end on is added to the ranges (holes are skipped there: what grows is zero).
//! So an append is an append, and a file that somebody cut gets back what it lost. If then so much is to be
//! sent that it is no small change, or if there is no regular file, that is a surprise, and the whole file
//! goes through the stage (not that of a file with several names: its other names must show the bytes too). Looking costs no round trip: the LSTAT goes with the OPEN.
//! The file gets our present size; but what was appended and is not in the log yet stays for its row, else it
//! would travel twice. What the mirror has already is not cut for that, for then the file would go back.
//!
//! *When it is small:* less than half of what the file takes on the disk. With more than that the saving is less than a
//! factor of two, and a file that appears whole (P4) is worth more. A file that fits one WRITE is always sent whole:
//! it is one request either way.
//!
//! *In one step*, where `atomic_updates` is set: the server copies the file into the stage (copy-data), the ranges are
//! written into the copy, and that is put in its place. The copy is made when the row's turn has come and all before
//! it is done, so it is what would be written into; and nothing comes behind it before it is in its place. A
//! server without copy-data gets the whole file. A cut leaves a copy in the stage, which the next session removes.
//! (A file with several names is written where it stands all the same: its other names must show the bytes too.)
//!
//! *In order.* A file is opened when all before it is sent, and what comes behind it is sent when its last byte
//! is. A server that does not work in order gets nothing before that while another request is open.

use super::*;
use crate::mirror::upload::{self, CHUNK, Parts, Wanted};

/// So many bytes of a file that is written where it stands may have arrived without being noted in the journal.
const TELL_EVERY: u64 = 8 << 20;

impl Job {
    /// Whether it is written where it stands.
    pub(super) fn is_in_place(&self) -> bool {
        self.in_place || (self.is_linked() && !self.anew)
    }

    pub(super) fn is_linked(&self) -> bool {
        matches!(self.row.change, Change::Content { linked: true, .. })
    }
}

impl<R: Remote> Pipeline<'_, R> {
    /// What of a row's file is to be written where it stands. None: all of it travels.
    pub(super) fn parts(&self, index: usize) -> Result<Option<Parts>, MirrorError> {
        let job = &self.window[index];
        let Some(file) = job.content().filter(|_| !job.whole && !job.anew) else {
            return Ok(None);
        };
        let mut parts = Parts {
            ranges: ByteRanges::new(),
            shortest: u64::MAX,
            logged: 0,
            linked: file.linked,
        };
        for row in self.by_path.rows_of(file.node, file.seq) {
            let change = self.index(row).map(|at| &self.window[at].row.change);
            let Some(Change::Content { extent, size, .. }) = change else {
                return Ok(None);
            };
            match extent {
                Extent::Whole => return Ok(None),
                Extent::Ranges(ranges) => parts.ranges.merge(ranges),
            }
            parts.shortest = parts.shortest.min(*size);
            parts.logged = *size;
        }
        if file.linked {
            return Ok(Some(parts));
        }
        if self.setup.rules.atomic == plan::Wish::InVain {
            return Ok(None);
        }
        let extent = upload::extent_now(self.setup.source, file.node);
        let extent = extent.map_err(|why| MirrorError::Source {
            change: job.row.change.to_string(),
            why,
        })?;
        let Some((size, allocated)) = extent else {
            return Ok(None); // it is gone, which is found on the other way
        };
        let small = size > CHUNK as u64 && parts.ranges.bytes() < size.min(allocated) / 2;
        Ok(Some(parts).filter(|_| small))
    }

    /// A row's turn has come to be written in place. True: what comes behind it may be sent.
    pub(super) fn publish_in_place(&mut self, index: usize) -> Result<bool, MirrorError> {
        if matches!(self.window[index].step, Step::Waiting) {
            // Where requests may overtake each other nothing may be under way.
            if self.publishing > 0 && !self.remote.features().openssh {
                return Ok(false);
            }
            self.start_in_place(index)?;
        }
        Ok(match &self.window[index].stage {
            Stage::Uploading(upload) => upload.is_sent() && !self.window[index].copied,
            Stage::Ready => matches!(self.window[index].step, Step::Done),
            Stage::Gone
            | Stage::Waiting
            | Stage::Symlink(..)
            | Stage::Covered(_)
            | Stage::Refused(_) => false,
        })
    }

    /// Opens the file; finds that it is gone, perhaps, or that it has to travel as a whole.
    fn start_in_place(&mut self, index: usize) -> Result<(), MirrorError> {
        let parts = self.parts(index)?;
        let job = &mut self.window[index];
        let (seq, linked, copied) = (job.row.seq, job.is_linked(), job.copied);
        if parts.is_none() && !linked {
            self.goes_whole(seq);
            return Ok(());
        }
        let dest = match copied {
            true => self.setup.place.stage(seq),
            false => self.setup.place.path(job.row.change.path()),
        };
        let wanted = Wanted {
            dest,
            in_place: true,
            parts,
        };
        // On the lane of all that becomes visible.
        self.upload(seq, Some(wanted), 0)?;
        if matches!(self.window[index].stage, Stage::Uploading(_)) {
            if !copied {
                self.note_in_flight(index);
            }
            self.publishing += 1;
            self.lull.is_over();
            self.window[index].opened = self.lull.opened;
            self.window[index].step = Step::InPlace;
        }
        Ok(())
    }

    /// A row that was to be written in place is sent as a whole, through the stage.
    pub(super) fn goes_whole(&mut self, seq: Seq) {
        if let Some(job) = self.job(seq) {
            (job.in_place, job.whole) = (false, true);
            if std::mem::take(&mut job.copied) {
                let path = self.setup.place.stage(seq);
                self.remote.send(Request::Remove { path });
            }
        }
        if let Some(job) = self.job(seq) {
            job.stage = Stage::Waiting;
            self.stage_next = self.stage_next.min(seq);
        }
    }

    /// Notes from time to time how much of a big file has arrived, so that it goes on there whatever is killed.
    pub(super) fn note_partial(&mut self, seq: Seq) -> Result<(), MirrorError> {
        let (name, journal) = (self.setup.name, self.setup.journal);
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        if let Some(version) = job.version.filter(|_| job.arrived >= job.told + TELL_EVERY) {
            job.told = job.arrived;
            journal.note_partial(name, &[((seq, version), job.arrived)])?;
        }
        Ok(())
    }

    pub(super) fn in_place_ended(&mut self, seq: Seq, outcome: Outcome) {
        self.publishing -= 1;
        let Some(job) = self.job(seq) else { return };
        job.stage = Stage::Ready;
        match outcome {
            Outcome::Complete if job.copied => {
                // It is put in its place as what was made ready.
                (job.step, job.in_place, job.anew) = (Step::Waiting, false, true);
            }
            Outcome::Changed | Outcome::Rewritten | Outcome::Half if job.copied => {
                job.step = Step::Waiting;
                self.goes_whole(seq);
            }
            // Half old, half new can't be helped in place; the next content is coming.
            Outcome::Complete | Outcome::Changed | Outcome::Rewritten | Outcome::Half => {
                job.step = Step::Done;
                self.publish_next = self.publish_next.max(seq + 1);
            }
            Outcome::Refused(status) => self.in_trouble(seq, Verdict::Failed(status)),
        }
    }
}
