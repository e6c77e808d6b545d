//! What `status` shows of a worker: written by the worker, read by whoever asks, without waiting.

use super::repair::Counts;
use crate::change::{RelPath, Seq};
use crate::status::{MirrorState, Totals};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Over how long the rate is smoothed.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Now {
    /// How the mirror is doing.
    pub state: MirrorState,
    /// A session is up.
    pub up: bool,
    /// It is paused since more would be deleted there at once than may be.
    pub held: bool,
    /// Every change up to here is on the mirror, directories' times included.
    /// None: it is not known what the mirror holds.
    pub settled: Option<Seq>,
    /// What went wrong last, if it still stands.
    pub last_error: Option<String>,
    /// Parked changes are about to be tried again, or are being tried.
    pub trying_parked: bool,
    /// When it is tried again.
    pub retry_at: Option<Instant>,
    /// The file being sent, with its length and how much of it is sent.
    pub current: Option<(String, u64, u64)>,
    /// Bytes sent a second, lately.
    pub bytes_per_second: u64,
    /// Changes done a second, lately.
    pub ops_per_second: f64,
    /// Bytes sent and changes done since it last had everything.
    pub done: (u64, u64),
    /// What the mirror's server lacks.
    pub unsupported: Vec<String>,
    /// A repair that is under way, or was.
    pub repair: Option<Repairing>,
    /// A comparison that is under way.
    pub verify: Option<Repairing>,
    /// What was done since this worker was started.
    pub totals: Totals,
}

/// How far a repair is.
#[derive(Clone, Debug)]
pub struct Repairing {
    /// What was done in this session.
    pub counts: Counts,
    /// The directory where it is.
    pub at: String,
    /// Since when.
    pub since: Instant,
    /// Whether it is, or was.
    pub running: bool,
    /// How much of a tree was walked, 0 to 1.
    pub walked: f64,
    /// A sync was asked for that has not begun.
    asked: bool,
}

impl Repairing {
    fn new() -> Repairing {
        Repairing {
            counts: Counts::default(),
            at: String::new(),
            since: Instant::now(),
            running: true,
            walked: 0.0,
            asked: false,
        }
    }
}

struct Inner {
    now: Now,
    /// What the rates were last measured at: bytes of this session, and the cursor.
    sent: u64,
    cursor: Option<Seq>,
    measured_at: Instant,
    /// Of this session's bytes those that are in the totals.
    counted: u64,
}

/// Shared by a worker and those who ask.
pub struct Live(Mutex<Inner>);

impl Live {
    /// Of a worker that has yet to connect.
    pub fn new(settled: Option<Seq>, last_error: Option<String>) -> Live {
        let now = Now {
            state: MirrorState::Syncing,
            up: false,
            held: false,
            settled,
            last_error,
            trying_parked: false,
            retry_at: None,
            current: None,
            bytes_per_second: 0,
            ops_per_second: 0.0,
            done: (0, 0),
            unsupported: Vec::new(),
            repair: None,
            verify: None,
            totals: Totals::default(),
        };
        Live(Mutex::new(Inner {
            now,
            sent: 0,
            cursor: None,
            measured_at: Instant::now(),
            counted: 0,
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Plain values: whatever a panic left is still a snapshot.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot.
    pub fn now(&self) -> Now {
        self.inner().now.clone()
    }

    /// The worker is not at work: why, and until when.
    pub fn resting(&self, state: MirrorState, error: Option<String>, retry_at: Option<Instant>) {
        let now = &mut self.inner().now;
        now.totals.failures += u64::from(error.is_some() && state != MirrorState::Paused);
        now.state = state;
        now.held = false;
        now.up = false;
        now.last_error = error;
        now.retry_at = retry_at;
        now.current = None;
        now.bytes_per_second = 0;
        now.ops_per_second = 0.0;
    }

    /// It is paused since more would be deleted there at once than may be.
    pub fn hold(&self, why: String) {
        self.resting(MirrorState::Paused, Some(why), None);
        self.inner().now.held = true;
    }

    /// The worker is about to try: nothing is known to be wrong.
    pub fn trying(&self) {
        let now = &mut self.inner().now;
        if now.state == MirrorState::NeedsSync {
            now.settled = None; // until the copy is seen
        }
        if !matches!(now.state, MirrorState::Synced | MirrorState::Syncing) {
            now.state = MirrorState::Syncing;
            now.held = false;
            now.last_error = None;
            now.retry_at = None;
        }
    }

    /// Parked changes are about to be tried again.
    pub fn trying_parked(&self) {
        self.inner().now.trying_parked = true;
    }

    /// A session is up.
    pub fn connected(&self, unsupported: Vec<String>) {
        let mut inner = self.inner();
        (inner.sent, inner.cursor, inner.measured_at) = (0, None, Instant::now());
        inner.counted = 0;
        let now = &mut inner.now;
        now.totals.connections += 1;
        now.state = MirrorState::Syncing;
        now.up = true;
        now.held = false;
        now.last_error = None;
        now.retry_at = None;
        now.unsupported = unsupported;
    }

    /// It has turned out what the mirror can't get.
    pub(super) fn lacks(&self, unsupported: Vec<String>) {
        self.inner().now.unsupported = unsupported;
    }

    /// A repair is at work.
    pub(super) fn repairing(&self, counts: Counts, at: Option<&RelPath>) {
        let now = &mut self.inner().now;
        now.state = MirrorState::Syncing;
        let repair = now.repair.get_or_insert_with(Repairing::new);
        if !repair.running {
            repair.since = Instant::now();
        }
        (repair.counts, repair.running) = (counts, true);
        if let Some(at) = at {
            repair.at = at.to_string();
        }
    }

    /// A sync was asked for: it is under way from here on, though the worker has yet to hear of it.
    pub(super) fn sync_is_asked(&self) {
        let asked = true;
        self.inner().now.repair = Some(Repairing {
            asked,
            ..Repairing::new()
        });
    }

    /// It begins.
    pub(super) fn begins_sync(&self) {
        self.inner().now.repair = Some(Repairing::new());
    }

    /// A comparison is under way, or is over.
    pub(super) fn verifying(&self, counts: Option<Counts>, at: Option<&RelPath>) {
        let now = &mut self.inner().now;
        let Some(counts) = counts else {
            now.verify = None;
            return;
        };
        let verify = now.verify.get_or_insert_with(Repairing::new);
        verify.counts = counts;
        if let Some(at) = at {
            verify.at = at.to_string();
        }
    }

    /// So much of a tree is walked.
    pub(super) fn walked(&self, part: f64) {
        if let Some(repair) = &mut self.inner().now.repair {
            repair.walked = part;
        }
    }

    /// No repair is to be made any more.
    pub(super) fn repaired(&self) {
        if let Some(repair) = self.inner().now.repair.as_mut().filter(|r| !r.asked) {
            repair.running = false;
        }
    }

    /// The worker is at work: `drained` when nothing is left to do, `at_rest` when no parked change is being
    /// tried, `settled` when directories' times
    /// are right up to there, `cursor` how far it is, `sent` the bytes of this session so far.
    pub(super) fn working(
        &self,
        drained: bool,
        at_rest: bool,
        settled: Option<Seq>,
        (cursor, sent): (Seq, u64),
        current: impl FnOnce() -> Option<(String, (u64, u64))>,
    ) {
        let mut inner = self.inner();
        inner.now.totals.sent_bytes += sent.saturating_sub(inner.counted);
        inner.counted = sent.max(inner.counted);
        let elapsed = inner.measured_at.elapsed();
        if drained || elapsed >= RATE_WINDOW {
            let bytes = sent.saturating_sub(inner.sent);
            let ops = cursor.saturating_sub(inner.cursor.unwrap_or(cursor));
            let seconds = elapsed.as_secs_f64();
            let now = &mut inner.now;
            if elapsed >= RATE_WINDOW {
                let smooth = |old: f64, fresh: f64| match now.done {
                    // The first look since it had everything.
                    (0, 0) => fresh,
                    _ => (old + fresh) / 2.0,
                };
                let rates = (
                    smooth(now.bytes_per_second as f64, bytes as f64 / seconds),
                    smooth(now.ops_per_second, ops as f64 / seconds),
                );
                (now.bytes_per_second, now.ops_per_second) = (rates.0 as u64, rates.1);
            }
            now.done = (now.done.0 + bytes, now.done.1 + ops);
            if drained {
                now.done = (0, 0);
                (now.bytes_per_second, now.ops_per_second) = (0, 0.0);
            }
            (inner.sent, inner.cursor) = (sent, Some(cursor));
            inner.measured_at = Instant::now();
        }
        inner.cursor.get_or_insert(cursor);
        let now = &mut inner.now;
        now.state = if drained {
            MirrorState::Synced
        } else {
            MirrorState::Syncing
        };
        now.trying_parked &= !at_rest;
        now.settled = now.settled.max(settled);
        now.current = current().map(|(path, (size, done))| (path, size, done));
    }
}
