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
//! * *A row is replayed after a symlink was put in its way*: its chmod, or the removal of something below
//!   it, would go through the link and out of the tree. So a symlink is sent only when everything
//!   earlier on its path and below is noted as done.
//! * *A request fails behind others that were sent with it.* Later rows on the same paths have seen a
//!   state that is not theirs. So the pipeline drains, the failure is dealt with alone, and all that was
//!   sent behind it is sent again, as uncertain rows.
//! * *A change is refused for a reason of its own*: it is set aside, with all that depends on it, and the
//!   rest goes on; see [`Held`].
//! * *The mirror's disk fills up in a WRITE, the rename behind it succeeds* (P4): nothing is published
//!   before every reply of its staging is there.

use super::covers::{self, Covers};
use super::errors::MirrorError;
use super::ghosts::Ghosts;
use super::guard::Guard;
use super::held::Held;
use super::inbox::{Inbox, Notice};
use super::live::Live;
use super::marker::{Marker, Renewal};
use super::plan::{self, Place, Publish, Rules, Staging, Verdict};
use super::related::PathIndex;
use super::repair::{self, Counts};
use super::resume::{Kept, Left, Memory, Staged, is_in_place};
use super::scars::Scars;
use super::settle::Settle;
use super::source::Source;
use super::upload::{CHUNK, Outcome, Start, Upload, attributes_now};
use crate::change::{ByteRanges, Change, Extent, NodeId, RelPath, Seq};
use crate::journal::{Journal, JournalError, Progress, Reader, Row, SOURCE_ID, now_ms};
use crate::sftp::lanes::{FAR, MOST_LANES};
use crate::sftp::{Attrs, OpenMode, Remote, Reply, Request, Status, Ticket, code};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

mod aside;
mod fates;
mod in_place;
mod job;
mod lacking;
mod loading;
mod mending;
mod passing;
mod progress;
mod publishing;
mod staging;
mod sweeping;
mod trouble;
mod way;

use aside::Lull;
use fates::{ByPath, Fate};
use job::{Job, Stage, Step};
pub(super) use trouble::MARKS;

/// Rows in memory at most.
const WINDOW: usize = 4096;
/// Rows read from the journal at a time.
const LOAD: usize = 512;
/// Files open there at once at most, where the server has the handles.
const STAGING: usize = 1024;
/// Handles of the server that are left to others, and to what is being closed.
const SPARE_HANDLES: u64 = 64;
/// Bytes of small files at most that wait here for the server to open them.
const READ_AHEAD: usize = 8 << 20;
/// Files being staged that are kept open here, at most.
const OPEN_FILES: usize = 16;
/// Bytes of file data without a reply at most, on each lane: more than OpenSSH's window, so that it stays
/// full.
const UNACKNOWLEDGED: usize = 3 << 20;
/// What a big file sends before the next big file has its turn, in WRITEs.
const TURN: usize = 4;
/// Another lane is of use for so many bytes more: OpenSSH's window.
const LANE_BYTES: u64 = 2 << 20;
/// Changes being published at once at most.
const PUBLISHING: usize = 1024;
/// How often a file that changes while it is read is staged again. After that it is published as it
/// is: its next content is in the log already, or about to be.
const RESTAGE: u32 = 3;
/// A mirror that was behind for so long is worth a line in the log when it no longer is.
const WORTH_A_LINE: Duration = Duration::from_secs(60);
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
    /// How long a parked change waits for its first try.
    pub parked_pause: Duration,
    /// Parked changes are tried again at once.
    pub try_again: bool,
    /// What earlier sessions have left there of files that were on their way.
    pub kept: Kept,
    /// How much of them is known to be there; to be brought up to date when this session ends.
    pub memory: &'a Memory,
    /// What stops a mass deletion.
    pub guard: &'a RefCell<Guard>,
}

/// Why a pipeline ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to pause.
    Paused,
    /// It was told to stop.
    Stopped,
}

/// Whose a reply is.
#[derive(Clone, Copy)]
enum Purpose {
    Stage(Seq),
    Publish(Seq, usize),
    Settle(usize),
    Marker,
}

/// One session's work: see the module's text.
pub struct Pipeline<'a, R: Remote> {
    setup: Setup<'a>,
    remote: R,
    /// Rows that are not yet noted as done, in the order of the log.
    window: VecDeque<Job>,
    /// The last row that was read from the journal.
    loaded: Seq,
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
    /// Those of them that have something to send.
    feeding: BTreeSet<Seq>,
    /// Whose turn it is among the big ones.
    feed_turn: Seq,
    /// What they need together.
    burden: staging::Burden,
    /// A row that could not be staged: none behind it is tried.
    staging_refused: Option<Seq>,
    publishing: usize,
    /// Paths of rows that were sent and are not noted as done.
    in_flight: PathIndex,
    /// Those of pivots among them.
    pivots: PathIndex,
    /// Those of staged files and symlinks among them.
    arrivals: HashMap<RelPath, u32>,
    /// The stage is to be swept when all is done.
    sweeps: bool,
    /// A row waits for others to be noted as done.
    barrier: bool,
    /// Something has come since it was looked what may pass a file that is being sent.
    may_pass: bool,
    /// The first row that is to be dealt with alone.
    trouble: Option<Seq>,
    settle: Settle,
    /// Directories whose time could not be set, since one above them is shut.
    shut_out: Vec<RelPath>,
    ghosts: Ghosts,
    covers: Covers,
    /// How many rows that set attributes have been sent.
    attrs_set: u64,
    by_path: ByPath,
    held: Held,
    /// What is known while nothing is sent.
    lull: Lull,
    scars: Scars,
    /// Nothing is sent any more, since a repair is to be made.
    repairing: bool,
    /// Something was taken for absent since the session's way in was last seen.
    doubted: bool,
    /// Rows up to here were sent by an earlier session.
    inherited: Seq,
    /// Files that such a session may have open in the stage.
    resumed: HashSet<NodeId>,
    /// What was heard while a repair was under way.
    heard: VecDeque<Notice>,
    /// What goes on in the next slice of a repair.
    carry: repair::Carry,
    /// What the repairs of this session have done.
    repaired_counts: Counts,
    recorded_at: Instant,
    /// Everything up to here is done, directories' times included.
    settled: Option<Seq>,
    /// What that will be when the pass under way is over.
    settling: Option<Seq>,
    /// Since when, and at which change, the mirror has not had everything.
    behind_since: Option<(Instant, Seq)>,
    /// Whether it has had everything once in this session.
    caught_up: bool,
    /// Why the next row may not be carried out, if so.
    too_much: Option<String>,
    marker: Renewal,
    source_id: String,
}

/// How many lanes are of use for so many bytes on a long line.
pub fn lanes_for(bytes: u64) -> usize {
    (1 + bytes / LANE_BYTES).min(MOST_LANES as u64) as usize
}

impl<'a, R: Remote> Pipeline<'a, R> {
    /// Starts behind the mirror's cursor.
    ///
    /// # Errors
    /// The journal's.
    pub fn new(setup: Setup<'a>, remote: R) -> Result<Pipeline<'a, R>, MirrorError> {
        let position = setup.journal.mirror(setup.name)?;
        let touched = setup.reader.touched(setup.name)?;
        let ghosts = Ghosts::new(setup.reader.ghosts(setup.name)?);
        let (marked, _) = setup.journal.marker(setup.name)?;
        let source_id = setup.journal.meta(SOURCE_ID)?.unwrap_or_default();
        let parked = setup.reader.parked(setup.name, usize::MAX)?;
        let mends = setup.reader.repairs(setup.name)?;
        let scars = Scars::new(mends, setup.parked_pause, setup.try_again);
        let before = setup.live.now().repair.filter(|repair| repair.running);
        let held = Held::new(parked, setup.parked_pause, setup.try_again);
        let now = Instant::now();
        for (file, bytes) in setup.journal.partial(setup.name)? {
            if file.0 > position.cursor {
                setup.memory.borrow_mut().entry(file).or_insert(bytes);
            }
        }
        let was_cut = !setup.memory.borrow().is_empty() || !setup.kept.is_empty();
        Ok(Pipeline {
            sweeps: was_cut || position.sent_upto > position.cursor,
            setup,
            remote,
            window: VecDeque::new(),
            loaded: position.cursor,
            tickets: HashMap::new(),
            cursor: position.cursor,
            stage_next: position.cursor + 1,
            publish_next: position.cursor + 1,
            announced: position.cursor,
            uncertain: position.sent_upto,
            uploading: BTreeSet::new(),
            feeding: BTreeSet::new(),
            feed_turn: 0,
            burden: staging::Burden::default(),
            staging_refused: None,
            publishing: 0,
            in_flight: PathIndex::default(),
            pivots: PathIndex::default(),
            arrivals: HashMap::new(),
            barrier: false,
            may_pass: true,
            trouble: None,
            settle: Settle::new(touched, now),
            shut_out: Vec::new(),
            ghosts,
            covers: Covers::default(),
            attrs_set: 0,
            by_path: ByPath::default(),
            held,
            lull: Lull::default(),
            scars,
            repairing: false,
            doubted: false,
            inherited: position.sent_upto,
            resumed: HashSet::new(),
            heard: VecDeque::new(),
            carry: repair::Carry::default(),
            repaired_counts: before.map_or(Counts::default(), |repair| repair.counts),
            recorded_at: now,
            settled: None,
            settling: None,
            behind_since: None,
            caught_up: false,
            too_much: None,
            marker: Renewal::new(marked, now),
            source_id,
        })
    }

    /// Replays what is in the log, and what comes, until it is told to stop or something fails.
    ///
    /// # Errors
    /// The connection broke, the mirror refused a change, or the journal or the source can't be read.
    /// What is done by then is noted.
    pub fn run(&mut self) -> Result<Ended, MirrorError> {
        let ended = self.work();
        // What has been done is done, however the session ended. (To ask now might take long.)
        let noted = if self.doubted { Ok(()) } else { self.record() };
        let remembered = self.remember();
        let ended = ended?;
        noted?;
        remembered?;
        Ok(ended)
    }

    /// Notes how far files are that are on their way, for the next session.
    fn remember(&self) -> Result<(), JournalError> {
        let far = |job: &Job| {
            let on_its_way = matches!(job.stage, Stage::Uploading(_) | Stage::Ready);
            let version = job.version.filter(|_| on_its_way)?;
            Some(((job.row.seq, version), job.arrived))
        };
        let now: HashMap<_, _> = self.window.iter().filter_map(far).collect();
        let mut memory = self.setup.memory.borrow_mut();
        // What no upload has begun with in this session is still as it was.
        memory.retain(|(seq, version), _| {
            let other = || now.keys().any(|key| key.0 == *seq);
            is_in_place(*version) && *seq > self.cursor && !other()
        });
        memory.extend(now);
        let in_place = memory.iter().filter(|(file, _)| is_in_place(file.1));
        let partial: Vec<_> = in_place.map(|(file, bytes)| (*file, *bytes)).collect();
        if partial.is_empty() {
            return Ok(());
        }
        self.setup.journal.note_partial(self.setup.name, &partial)
    }

    fn work(&mut self) -> Result<Ended, MirrorError> {
        self.begin_sync()?;
        loop {
            while let Some(notice) = self.heard.pop_front().or_else(|| self.setup.inbox.next()) {
                match notice {
                    Notice::Stop => return Ok(Ended::Stopped),
                    Notice::Pause => return Ok(Ended::Paused),
                    Notice::Resume | Notice::TryAgain => {
                        self.held.try_again();
                        self.scars.try_again();
                    }
                    Notice::Sync => self.begin_sync()?,
                    Notice::Changes => {}
                }
            }
            self.repairing = !self.is_halted() && self.repair_is_due();
            if !self.is_halted() {
                self.load()?;
                // In this order: files that are closed make room for others in the same round trip.
                self.feed_uploads()?;
                self.start_uploads()?;
                self.try_held_again()?;
                self.publish()?;
            } else {
                self.feed_uploads()?;
                if self.remote.outstanding() == 0 {
                    if self.repairing {
                        self.repair()?;
                    } else {
                        self.deal_with_trouble()?;
                    }
                    continue;
                }
            }
            self.record_if_due()?;
            self.start_settling()?;
            self.renew_marker()?;
            self.sweep()?;
            self.show();
            self.pump()?;
            while let Some((ticket, reply)) = self.remote.reply() {
                self.may_pass = true;
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
        if let Some(due) = self.settle.due_in(self.settles_at_once(), now) {
            wait = wait.min(due);
        }
        if self.is_drained()
            && let Some(due) = self.marker.due_in(self.reached(), now)
        {
            wait = wait.min(due);
        }
        // What is to be dealt with alone may have been found while nothing was on its way.
        let next_is_known = self.is_halted() && self.remote.outstanding() == 0;
        if self.cursor_has_news() || next_is_known {
            wait = Duration::ZERO;
        }
        self.remote
            .pump(wait, Some(std::os::fd::AsFd::as_fd(self.setup.inbox)))?;
        self.setup.inbox.silence();
        Ok(())
    }

    /// Whether something is to be dealt with alone, once nothing is in flight.
    fn is_halted(&self) -> bool {
        self.trouble.is_some() || !self.shut_out.is_empty() || self.repairing
    }

    /// Where in the window the first row is that is `seq` or behind it.
    fn first_from(&self, seq: Seq) -> usize {
        // Without a gap, as it mostly is, no search is needed.
        let first = self.window.front().map_or(seq, |job| job.row.seq);
        let index = seq.saturating_sub(first) as usize;
        match self.window.get(index) {
            Some(job) if job.row.seq == seq => index,
            Some(_) | None => self.window.partition_point(|job| job.row.seq < seq),
        }
    }

    /// Where in the window a row is.
    fn index(&self, seq: Seq) -> Option<usize> {
        let index = self.first_from(seq);
        let job = self.window.get(index)?;
        (job.row.seq == seq).then_some(index)
    }

    fn job(&mut self, seq: Seq) -> Option<&mut Job> {
        let index = self.index(seq)?;
        self.window.get_mut(index)
    }

    fn take(&mut self, ticket: Ticket, reply: Reply) -> Result<(), MirrorError> {
        match self.tickets.remove(&ticket) {
            Some(Purpose::Stage(seq)) => self.take_staged(seq, ticket, reply),
            Some(Purpose::Publish(seq, i)) => {
                self.take_published(seq, i, reply);
                Ok(())
            }
            Some(Purpose::Settle(index)) => {
                let status = match reply {
                    Reply::Status(status) => Some(status),
                    Reply::Ok
                    | Reply::Handle(_)
                    | Reply::Data(_)
                    | Reply::Names(_)
                    | Reply::Attrs(_) => None,
                };
                if let Some(status) = &status {
                    self.doubted |= status.code == code::NO_SUCH_FILE;
                    let name = self.setup.name;
                    log::debug!(
                        "mirror {name}: a directory's time was not set ({index}): {status}"
                    );
                }
                let denied = status.is_some_and(|s| s.code == code::PERMISSION_DENIED);
                if let Some(denied) = self.settle.take(index, denied) {
                    if denied.is_empty() {
                        self.settled = self.settling.or(self.settled);
                    }
                    self.settling = None;
                    self.shut_out = denied;
                }
                Ok(())
            }
            Some(Purpose::Marker) => self.take_marker(&reply),
            None => Ok(()), // a removal of which nothing is to be learned
        }
    }

    fn is_drained(&self) -> bool {
        self.window.is_empty() && self.cursor >= self.setup.journal.head()
    }
}
