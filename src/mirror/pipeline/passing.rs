//! `order = relaxed`: changes that are ready pass a file that is still being sent, if they have nothing to do
//! with it.
//!
//! What has to do with what is told by the paths: a row passes only if no row that it leaves behind is related to
//! it, neither the file that is being sent nor any other that waits behind that. So among changes of one place the
//! order is what it was, and each of the rules about order that the pipeline keeps is about related paths:
//!
//! * *J4.* A pivot passes only if nothing related is left behind, and it waits like any other until what is
//!   related and was sent is noted. The cursor stays before the file that is being sent, so nothing behind it is
//!   noted until that is done. What depends on a row that has passed waits until then: a rename onto a file that
//!   has just been published ahead, for one. It may be slower so, but whether it happened can be told.
//! * *After a cut* all rows behind the cursor are uncertain, and are replayed in order, those that had passed
//!   too. That is no other case than strict order's: between two rows without a common path it does not
//!   matter which was carried out first, and of those with one, none was sent out of order.
//! * *A row that has passed is refused.* What depends on it may have been sent behind it, far beyond the file that is
//!   being sent: [`Pipeline::behind_what_was_sent`].
//! * *What leans on the rows before it in other ways does not pass*: what an earlier row brings ([`Covers`]), an
//!   exchange, a repair, what is written in place, rows of files that are gone, and anything while changes are set
//!   aside or paths are to be repaired.
//!
//! What passed is remembered only as long as the session lives, in the window.

use super::*;

/// How far behind the file that is being sent is looked for what may pass.
const REACH: usize = 1024;

impl<R: Remote> Pipeline<'_, R> {
    /// The row at `index` is still being made ready. Publishes what may pass it.
    pub(super) fn pass(&mut self, index: usize) -> Result<(), MirrorError> {
        let file = matches!(self.window[index].row.change, Change::Content { .. });
        let quiet = self.scars.is_empty() && self.held.first().is_none();
        if !self.setup.rules.relaxed || !file || !quiet || !std::mem::take(&mut self.may_pass) {
            return Ok(());
        }
        let mut left = PathIndex::default();
        for at in index..self.window.len().min(index + REACH) {
            if self.publishing >= PUBLISHING || self.trouble.is_some() {
                break;
            }
            let job = &self.window[at];
            if matches!(job.step, Step::Sent(..) | Step::Done) {
                continue; // passed already: what is related to it waits for it as for any other
            }
            let related = job.row.change.paths().any(|path| left.touches(path));
            if at == index || related || !self.passes(at) || !self.publish_ahead(at)? {
                for path in self.window[at].row.change.paths() {
                    left.insert(path);
                }
            }
        }
        Ok(())
    }

    fn passes(&self, at: usize) -> bool {
        let job = &self.window[at];
        matches!((&job.stage, &job.step), (Stage::Ready, Step::Waiting))
            && job.fate == Fate::Lives
            && !matches!(job.row.change, Change::Repair { .. })
            && !job.is_in_place()
            && self.covered_by(at).is_none()
            && !self.must_wait(&job.row.change)
    }

    /// Publishes a row ahead of its turn, if it is one that is published by requests.
    fn publish_ahead(&mut self, at: usize) -> Result<bool, MirrorError> {
        let Publish::Requests(requests) = self.how(at)? else {
            return Ok(false);
        };
        let seq = self.window[at].row.seq;
        if seq > self.announced {
            self.announce()?;
        }
        self.send(seq, requests);
        Ok(true)
    }

    /// Where in the window nothing more was sent.
    pub(super) fn behind_what_was_sent(&self) -> usize {
        let was_sent = |job: &Job| !matches!(job.step, Step::Waiting);
        self.window
            .iter()
            .rposition(was_sent)
            .map_or(0, |at| at + 1)
    }
}
