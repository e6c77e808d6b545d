//! Stage anything, publish in order: how log rows become requests, many in flight.
//!
//! *Staging* makes a file ready out of sight (`.proxyfs/stage/<seq>`), in any order, as far ahead as the
//! window reaches. *Publishing* makes a change visible: in the order of the log, pipelined.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *A change becomes visible that the log may forget* (J3): before the first publishing request of a
//!   row is sent, [`Journal::announce`] has put the row, and the note that it is about to be sent, on
//!   the disk.
//! * *A reply is lost.* On the next connection the rows from the cursor up to the announced one are
//!   uncertain and replayed. Most changes may be repeated, in order, and end the same. A rename, link or
//!   exchange (a *pivot*) may not, nor what went before it on its paths: `unlink b; rename a b` done
//!   twice deletes what the rename brought. So a pivot is sent only when everything earlier that is
//!   related to its paths is noted as done in the journal, and nothing later that is related to them
//!   is sent before the pivot is noted itself (J4, from both sides). Then whether it happened is told by
//!   looking at its old name.
//!   One exception saves a round trip for the commonest pair, write-a-temporary-file and rename it: a
//!   staged file on its way to exactly the rename's old name may be in flight. Both done twice, in
//!   order, end the same.
//! * *A request fails behind others that were sent with it.* Later rows on the same paths have seen a
//!   state that is not theirs. So the pipeline drains, the failure is dealt with alone, and all that was
//!   sent behind it is sent again, as uncertain rows.
//! * *The mirror's disk fills up in a WRITE, the rename behind it succeeds* (P4): nothing is published
//!   before every reply of its staging is there.

use super::errors::MirrorError;
use super::inbox::{Inbox, Notice};
use super::live::Live;
use super::plan::{self, Place, Publish, Rules, Staging, Verdict};
use super::related::PathIndex;
use super::settle::Settle;
use super::source::Source;
use super::upload::{Outcome, Upload};
use crate::change::{Change, RelPath, Seq};
use crate::journal::{Journal, Progress, Reader, Row};
use crate::sftp::{Remote, Reply, Request, Status, Ticket, code};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

mod trouble;

/// Rows in memory at most.
const WINDOW: usize = 2048;
/// Rows read from the journal at a time.
const LOAD: usize = 512;
/// Files being staged at once at most, and at most half of the handles that the server has.
const STAGING: usize = 512;
/// Of those, files that are kept open here.
const OPEN_FILES: usize = 16;
/// Bytes of file data without a reply at most.
const UNACKNOWLEDGED: usize = 8 << 20;
/// Changes being published at once at most.
const PUBLISHING: usize = 1024;
/// How often a file that changes while it is read is staged again. After that it is published as it
/// is: its next content is in the log already, or about to be.
const RESTAGE: u32 = 3;
/// How long a completed change may be unknown to the journal while others are under way.
const RECORD_EVERY: Duration = Duration::from_millis(50);

/// What a pipeline works with.
pub struct Setup<'a> {
    /// The mirror's name in the journal.
    pub name: &'a str,
    /// Where things are there.
    pub place: Place,
    /// What it gets.
    pub rules: Rules,
    /// The tree that is mirrored.
    pub source: &'a Source,
    /// The log.
    pub journal: &'a Journal,
    /// A connection of its own to read the log.
    pub reader: &'a Reader,
    /// Where it is told to stop.
    pub inbox: &'a Inbox,
    /// What `status` shows of it.
    pub live: &'a Live,
}

/// Why a pipeline ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to pause.
    Paused,
    /// It was told to stop.
    Stopped,
}

enum Stage {
    /// Nothing to stage, or it is staged.
    Ready,
    Waiting,
    Uploading(Box<Upload>),
    /// Requests without a reply, and what failed first.
    Symlink(usize, Option<Status>),
    /// The file is gone here, and so its content has nothing to do there.
    Gone,
}

enum Step {
    Waiting,
    /// Replies to the publishing requests and the looks behind them; how many are missing.
    Sent(Vec<Option<Reply>>, usize),
    /// A file with several names is being written in place.
    InPlace,
    /// It went wrong: to be dealt with when nothing is in flight.
    Trouble(Verdict),
    Done,
}

struct Job {
    row: Row,
    stage: Stage,
    step: Step,
    restaged: u32,
    /// Published from the stage though it has several names: its name is not there.
    anew: bool,
}

impl Job {
    fn is_staged(&self) -> bool {
        self.anew || plan::staging(&self.row.change) != Staging::None
    }
}

/// Whose a reply is.
#[derive(Clone, Copy)]
enum Purpose {
    Stage(Seq),
    Publish(Seq, usize),
    Settle,
}

/// One session's work: see the module's text.
pub struct Pipeline<'a, R: Remote> {
    setup: Setup<'a>,
    remote: R,
    /// Rows behind the cursor, without a gap.
    window: VecDeque<Job>,
    tickets: HashMap<Ticket, Purpose>,
    /// All that is done, and noted in the journal.
    cursor: Seq,
    /// The first row that may have to be staged.
    stage_next: Seq,
    /// The next row to publish.
    publish_next: Seq,
    /// Rows up to here are on the disk and may be published.
    announced: Seq,
    /// Rows up to here may have been carried out before.
    uncertain: Seq,
    /// Rows that are being uploaded.
    uploading: BTreeSet<Seq>,
    publishing: usize,
    /// Paths of rows that were sent and are not noted as done.
    in_flight: PathIndex,
    /// Those of pivots among them.
    pivots: PathIndex,
    /// Those of staged files and symlinks among them.
    arrivals: HashMap<RelPath, u32>,
    /// A row waits for others to be noted as done.
    barrier: bool,
    /// The first row that is to be dealt with alone.
    trouble: Option<Seq>,
    settle: Settle,
    recorded_at: Instant,
}

impl<'a, R: Remote> Pipeline<'a, R> {
    /// Starts behind the mirror's cursor.
    ///
    /// # Errors
    /// The journal's.
    pub fn new(setup: Setup<'a>, remote: R) -> Result<Pipeline<'a, R>, MirrorError> {
        let position = setup.journal.mirror(setup.name)?;
        let touched = setup.reader.touched(setup.name)?;
        let now = Instant::now();
        Ok(Pipeline {
            setup,
            remote,
            window: VecDeque::new(),
            tickets: HashMap::new(),
            cursor: position.cursor,
            stage_next: position.cursor + 1,
            publish_next: position.cursor + 1,
            announced: position.cursor,
            uncertain: position.sent_upto,
            uploading: BTreeSet::new(),
            publishing: 0,
            in_flight: PathIndex::default(),
            pivots: PathIndex::default(),
            arrivals: HashMap::new(),
            barrier: false,
            trouble: None,
            settle: Settle::new(touched, now),
            recorded_at: now,
        })
    }

    /// Replays what is in the log, and what comes, until it is told to stop or something fails.
    ///
    /// # Errors
    /// The connection broke, the mirror refused a change, or the journal or the source can't be read.
    /// What is done by then is noted.
    pub fn run(&mut self) -> Result<Ended, MirrorError> {
        let ended = self.work();
        // What has been done is done, however the session ended.
        let noted = self.record();
        let ended = ended?;
        noted?;
        Ok(ended)
    }

    fn work(&mut self) -> Result<Ended, MirrorError> {
        loop {
            while let Some(notice) = self.setup.inbox.next() {
                match notice {
                    Notice::Stop => return Ok(Ended::Stopped),
                    Notice::Pause => return Ok(Ended::Paused),
                    Notice::Changes | Notice::Resume => {}
                }
            }
            if self.trouble.is_none() {
                self.load()?;
                self.start_uploads()?;
                self.feed_uploads()?;
                self.publish()?;
            } else {
                self.feed_uploads()?;
                if self.remote.outstanding() == 0 {
                    self.deal_with_trouble()?;
                    continue;
                }
            }
            self.record_if_due()?;
            self.start_settling()?;
            self.show();
            self.pump()?;
            while let Some((ticket, reply)) = self.remote.reply() {
                self.take(ticket, reply)?;
            }
        }
    }

    fn pump(&mut self) -> Result<(), MirrorError> {
        let now = Instant::now();
        let mut wait = Duration::from_secs(1);
        if self.unrecorded() {
            wait = wait.min(RECORD_EVERY);
        }
        if let Some(due) = self.settle.due_in(self.is_drained(), now) {
            wait = wait.min(due);
        }
        if self.cursor_has_news() {
            wait = Duration::ZERO;
        }
        self.remote
            .pump(wait, Some(std::os::fd::AsFd::as_fd(self.setup.inbox)))?;
        self.setup.inbox.silence();
        Ok(())
    }

    /// Whether rows are in the log that could be loaded now.
    fn cursor_has_news(&self) -> bool {
        self.trouble.is_none()
            && self.window.len() + LOAD <= WINDOW
            && self.last_loaded() < self.setup.journal.head()
    }

    fn last_loaded(&self) -> Seq {
        self.cursor + self.window.len() as Seq
    }

    fn job(&mut self, seq: Seq) -> Option<&mut Job> {
        let index = seq.checked_sub(self.cursor + 1)?;
        self.window.get_mut(index as usize)
    }

    fn load(&mut self) -> Result<(), MirrorError> {
        while self.cursor_has_news() {
            let rows = self.setup.reader.rows(self.last_loaded(), LOAD)?;
            if rows.is_empty() {
                break; // not visible to this connection yet: the next turn has them
            }
            for row in rows {
                let stage = match plan::staging(&row.change) {
                    Staging::None => Stage::Ready,
                    Staging::File | Staging::Symlink => Stage::Waiting,
                };
                self.window.push_back(Job {
                    row,
                    stage,
                    step: Step::Waiting,
                    restaged: 0,
                    anew: false,
                });
            }
        }
        Ok(())
    }

    // ---- staging ----

    fn start_uploads(&mut self) -> Result<(), MirrorError> {
        let handles = self.remote.features().max_handles.unwrap_or(u64::MAX) / 2;
        let limit = STAGING.min(handles.max(1) as usize);
        while self.stage_next <= self.last_loaded() && self.uploading.len() < limit {
            if self.open_files() >= OPEN_FILES {
                break;
            }
            let seq = self.stage_next;
            self.stage_next += 1;
            self.stage(seq)?;
        }
        Ok(())
    }

    fn open_files(&self) -> usize {
        let held = self.uploading.iter().filter(|seq| {
            let job = self.window.get((**seq - self.cursor - 1) as usize);
            job.is_some_and(|j| matches!(&j.stage, Stage::Uploading(u) if u.holds_file()))
        });
        held.count()
    }

    fn stage(&mut self, seq: Seq) -> Result<(), MirrorError> {
        let place = self.setup.place.stage(seq);
        let rules = self.setup.rules;
        let index = (seq - self.cursor - 1) as usize;
        let Some(job) = self.window.get_mut(index) else {
            return Ok(());
        };
        if !matches!(job.stage, Stage::Waiting) {
            return Ok(());
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
                // A second try must not find the first one's.
                if job.restaged > 0 {
                    job.stage = Stage::Symlink(requests.len() + 1, None);
                    let ticket = self.remote.send(Request::Remove { path: place });
                    self.tickets.insert(ticket, Purpose::Stage(seq));
                }
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

    fn upload(&mut self, seq: Seq, dest: Vec<u8>, in_place: bool) -> Result<(), MirrorError> {
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
    fn feed_uploads(&mut self) -> Result<(), MirrorError> {
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

    // ---- publishing ----

    fn publish(&mut self) -> Result<(), MirrorError> {
        self.barrier = false;
        while self.publish_next <= self.last_loaded()
            && self.publishing < PUBLISHING
            && self.trouble.is_none()
        {
            let seq = self.publish_next;
            let index = (seq - self.cursor - 1) as usize;
            let job = &self.window[index];
            match job.stage {
                Stage::Ready => {}
                Stage::Gone => {
                    self.finish(seq);
                    self.publish_next += 1;
                    continue;
                }
                Stage::Waiting | Stage::Uploading(_) | Stage::Symlink(..) => break,
            }
            if self.must_wait(&job.row.change) {
                self.barrier = true;
                break;
            }
            let how = if job.anew {
                let from = self.setup.place.stage(seq);
                let to = self.setup.place.path(job.row.change.path());
                Publish::Requests(vec![Request::PosixRename { from, to }])
            } else {
                plan::publish(&job.row.change, seq, &self.setup.place, self.setup.rules)
            };
            if seq > self.announced {
                self.announce()?;
            }
            match how {
                Publish::Requests(requests) => {
                    self.send(seq, requests);
                    self.publish_next += 1;
                }
                Publish::InPlace => {
                    self.start_in_place(seq)?;
                    if !matches!(self.window[index].stage, Stage::Gone) {
                        break;
                    }
                }
                Publish::Exchange => {
                    self.trouble = Some(seq);
                    break;
                }
            }
        }
        Ok(())
    }

    /// J3: what is about to become visible is on the disk first. Requests that wait to be written are
    /// on their way meanwhile.
    fn announce(&mut self) -> Result<(), MirrorError> {
        self.remote.pump(Duration::ZERO, None)?;
        let upto = self.last_loaded();
        self.setup.journal.announce(self.setup.name, upto)?;
        self.announced = upto;
        Ok(())
    }

    /// J4: whether something in flight keeps this change from being sent.
    fn must_wait(&self, change: &Change) -> bool {
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
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Content { .. }
            | Change::Attr { .. } => {
                !self.pivots.is_empty() && change.paths().any(|p| self.pivots.touches(p))
            }
        }
    }

    fn send(&mut self, seq: Seq, mut requests: Vec<Request>) {
        let uncertain = seq <= self.uncertain;
        let index = (seq - self.cursor - 1) as usize;
        let change = &self.window[index].row.change;
        if requests.is_empty() {
            self.finish(seq);
            return;
        }
        if uncertain || change.is_pivot() {
            requests.extend(plan::looks(change, &self.setup.place));
        }
        self.note_in_flight(index);
        self.publishing += 1;
        self.window[index].step = Step::Sent(vec![None; requests.len()], requests.len());
        for (i, request) in requests.into_iter().enumerate() {
            let ticket = self.remote.send(request);
            self.tickets.insert(ticket, Purpose::Publish(seq, i));
        }
    }

    fn note_in_flight(&mut self, index: usize) {
        let job = &self.window[index];
        for path in job.row.change.paths() {
            self.in_flight.insert(path);
            if job.row.change.is_pivot() {
                self.pivots.insert(path);
            }
        }
        if job.is_staged() {
            *self
                .arrivals
                .entry(job.row.change.path().clone())
                .or_default() += 1;
        }
    }

    fn forget_in_flight(&mut self, job: &Job) {
        for path in job.row.change.paths() {
            self.in_flight.remove(path);
            if job.row.change.is_pivot() {
                self.pivots.remove(path);
            }
        }
        if job.is_staged() {
            let path = job.row.change.path();
            if let Some(count) = self.arrivals.get_mut(path) {
                *count -= 1;
                if *count == 0 {
                    self.arrivals.remove(path);
                }
            }
        }
    }

    /// A file with several names: nothing earlier may still be under way, and nothing later starts
    /// before it is through.
    fn start_in_place(&mut self, seq: Seq) -> Result<(), MirrorError> {
        if self.publishing > 0 {
            return Ok(());
        }
        let index = (seq - self.cursor - 1) as usize;
        if !matches!(self.window[index].step, Step::Waiting) {
            return Ok(());
        }
        let dest = self.setup.place.path(self.window[index].row.change.path());
        self.upload(seq, dest, true)?;
        if matches!(self.window[index].stage, Stage::Uploading(_)) {
            self.note_in_flight(index);
            self.publishing += 1;
            self.window[index].step = Step::InPlace;
        }
        Ok(())
    }

    /// Marks a row as done that was not sent.
    fn finish(&mut self, seq: Seq) {
        let index = (seq - self.cursor - 1) as usize;
        self.note_in_flight(index);
        self.window[index].step = Step::Done;
    }

    // ---- replies ----

    fn take(&mut self, ticket: Ticket, reply: Reply) -> Result<(), MirrorError> {
        match self.tickets.remove(&ticket) {
            Some(Purpose::Stage(seq)) => self.take_staged(seq, reply),
            Some(Purpose::Publish(seq, i)) => {
                self.take_published(seq, i, reply);
                Ok(())
            }
            Some(Purpose::Settle) => {
                if let Reply::Status(status) = &reply {
                    log::debug!(
                        "{}: a directory's time was not set: {status}",
                        self.setup.name
                    );
                }
                self.settle.take(self.setup.journal.head());
                self.settle.reached(self.cursor);
                Ok(())
            }
            None => Ok(()), // the wire layer knows every ticket: this is an abandoned ask's
        }
    }

    fn take_staged(&mut self, seq: Seq, reply: Reply) -> Result<(), MirrorError> {
        let in_place = self
            .job(seq)
            .is_some_and(|j| matches!(j.step, Step::InPlace));
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        let outcome = match &mut job.stage {
            Stage::Uploading(upload) => match upload.take(reply) {
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
                    // The removal of an earlier try may find nothing.
                    if status.code != code::NO_SUCH_FILE {
                        failure.get_or_insert(status);
                    }
                }
                let over = *missing == 0;
                over.then(|| failure.take().map_or(Outcome::Complete, Outcome::Refused))
            }
            Stage::Ready | Stage::Waiting | Stage::Gone => None,
        };
        let Some(outcome) = outcome else {
            return Ok(());
        };
        self.uploading.remove(&seq);
        if in_place {
            self.in_place_ended(seq, outcome);
            return Ok(());
        }
        let Some(job) = self.job(seq) else {
            return Ok(());
        };
        match outcome {
            Outcome::Changed if job.restaged < RESTAGE => {
                job.restaged += 1;
                job.stage = Stage::Waiting;
                self.stage_next = self.stage_next.min(seq);
            }
            Outcome::Complete | Outcome::Changed => job.stage = Stage::Ready,
            Outcome::Refused(status) => {
                return Err(MirrorError::refused(seq, &job.row.change, status));
            }
        }
        Ok(())
    }

    fn in_place_ended(&mut self, seq: Seq, outcome: Outcome) {
        self.publishing -= 1;
        let Some(job) = self.job(seq) else { return };
        job.stage = Stage::Ready;
        match outcome {
            // Half old, half new can't be helped in place; the next content is coming.
            Outcome::Complete | Outcome::Changed => {
                job.step = Step::Done;
                self.publish_next = seq + 1;
            }
            Outcome::Refused(status) => self.to_trouble(seq, Verdict::Failed(status)),
        }
    }

    fn take_published(&mut self, seq: Seq, i: usize, reply: Reply) {
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
        let looks = if uncertain || job.row.change.is_pivot() {
            job.row.change.paths().count()
        } else {
            0
        };
        let (main, looks) = replies.split_at(replies.len() - looks);
        let verdict = match plan::seen(looks) {
            Ok(seen) => {
                let seen = Some(seen).filter(|s| !s.is_empty());
                plan::judge(&job.row.change, uncertain, main, seen.as_deref())
            }
            Err(_) => plan::judge(&job.row.change, uncertain, main, None),
        };
        match verdict {
            Verdict::Done => job.step = Step::Done,
            other => self.to_trouble(seq, other),
        }
        self.publishing -= 1;
    }

    fn to_trouble(&mut self, seq: Seq, verdict: Verdict) {
        if let Some(job) = self.job(seq) {
            job.step = Step::Trouble(verdict);
        }
        self.trouble = Some(self.trouble.map_or(seq, |first| first.min(seq)));
    }

    // ---- the journal ----

    fn unrecorded(&self) -> bool {
        self.window
            .front()
            .is_some_and(|j| matches!(j.step, Step::Done))
    }

    fn record_if_due(&mut self) -> Result<(), MirrorError> {
        let due = self.barrier
            || self.publishing == 0
            || self.recorded_at.elapsed() >= RECORD_EVERY
            || self.window.len() >= WINDOW - LOAD;
        if (due && self.unrecorded()) || self.settle.has_news() {
            self.record()?;
            if self.barrier {
                self.publish()?; // what waited for it need not wait for the next reply
            }
        }
        Ok(())
    }

    /// Notes in the journal what is done.
    fn record(&mut self) -> Result<(), MirrorError> {
        let mut done = None;
        while self.unrecorded() {
            let Some(job) = self.window.pop_front() else {
                break;
            };
            self.cursor = job.row.seq;
            done = Some((job.row.seq, job.row.cum_bytes));
            self.forget_in_flight(&job);
            if !matches!(job.stage, Stage::Gone) {
                self.settle.touch_for(&job.row.change);
            }
        }
        self.settle.reached(self.cursor);
        let (touched, settled) = self.settle.news();
        if done.is_none() && touched.is_empty() && settled.is_empty() {
            return Ok(());
        }
        let progress = Progress {
            cursor: done,
            touched,
            settled,
        };
        self.setup.journal.advance(self.setup.name, &progress)?;
        self.recorded_at = Instant::now();
        Ok(())
    }

    // ---- directories' times ----

    fn is_drained(&self) -> bool {
        self.window.is_empty() && self.cursor >= self.setup.journal.head()
    }

    fn start_settling(&mut self) -> Result<(), MirrorError> {
        let (now, drained) = (Instant::now(), self.is_drained());
        if self.trouble.is_some() || self.settle.due_in(drained, now) != Some(Duration::ZERO) {
            return Ok(());
        }
        let (source, place) = (self.setup.source, &self.setup.place);
        let requests = self
            .settle
            .start(source, place, drained, now)
            .map_err(|why| MirrorError::Source {
                change: "the time of a directory".to_string(),
                why,
            })?;
        for request in requests {
            let ticket = self.remote.send(request);
            self.tickets.insert(ticket, Purpose::Settle);
        }
        if self.settle.has_news() {
            self.record()?;
        }
        Ok(())
    }

    // ---- status ----

    fn show(&mut self) {
        let drained = self.is_drained() && self.settle.is_clear();
        let settled = if self.settle.is_clear() {
            Some(self.cursor)
        } else {
            None
        };
        let current = || {
            let seq = *self.uploading.first()?;
            let job = self.window.get((seq - self.cursor - 1) as usize)?;
            let Stage::Uploading(upload) = &job.stage else {
                return None;
            };
            Some((job.row.change.path().to_string(), upload.progress()))
        };
        self.setup
            .live
            .working(drained, settled, self.remote.traffic().0, current);
    }
}
