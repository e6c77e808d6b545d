//! The scan: at the start it finds in the source what the log does not know.
//!
//! What the log may not know: a change whose daemon was killed between effect and record; what was edited while no
//! daemon ran; what a process goes on writing through a descriptor that the kernel serves without a daemon
//! ([`survivors`]); and after a crash of the machine, what the disk has lost although mirrors have it. The scan
//! records repairs ([`Change::Repair`]) for all that, and never talks to a mirror: what is at those paths is
//! compared with each mirror when it gets there.
//!
//! It goes by the ctime: everything older than the last mark or checkpoint ([`marks`]) is known. So
//!
//! - an edited file shows by its own ctime, also if its size and time are as before;
//! - what was made, removed or moved shows by the ctime of its directory, of which the names are compared;
//! - a directory that was moved shows by its own. What is in it is as old as ever, so if the directory above is a
//!   suspect too, all of it is compared (by size and time, with no byte sent for what is the same);
//! - what is new is a directory's worth at a time: one repair, and nothing below it is looked at.
//!
//! The mount does not wait for the walk, and what it does meanwhile must not hide anything: that is told in
//! [`suspects`](crate::local::suspects). Until the scan has ended no mark and no checkpoint is made: killed in
//! the middle, the next start begins it anew.
//!
//! When the clock was set back, a ctime says nothing, and all is compared.
//!
//! After a crash of the machine, or of a file system, the disk may have lost what mirrors have: a change with its
//! ctime. What mirrors have is in the log, on the disk (J3). So the paths of all rows since the last checkpoint
//! are repaired, and of those that a mirror may or may not have (R4), as the notes of what it has may be lost
//! too.

pub mod excluded;
pub mod keeper;
pub mod marks;
mod rows;
pub mod survivors;
mod walk;

use crate::change::{RelPath, Scope};
use crate::fault;
use crate::journal::{Journal, JournalError};
use crate::local::Local;
use crate::local::suspects::Suspicion;
use marks::Plan;
use rustix::io::Errno;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use survivors::Survivors;
use walk::Walk;

/// How long to wait before a record that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The key of [`Journal::meta`] under which the number of entries is that the last scan saw.
const ENTRIES: &str = "scan_entries";

/// Why a scan did not come to its end.
#[derive(Debug)]
pub enum ScanError {
    /// It was told to stop.
    Stopped,
    /// The journal cannot be read.
    Journal(JournalError),
    /// The source cannot be read.
    Source(Errno),
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanError::Stopped => f.write_str("the scan was stopped"),
            ScanError::Journal(why) => write!(f, "the scan of the source failed: {why}"),
            ScanError::Source(why) => write!(f, "the scan of the source failed: {why}"),
        }
    }
}

impl std::error::Error for ScanError {}

impl From<JournalError> for ScanError {
    fn from(why: JournalError) -> ScanError {
        ScanError::Journal(why)
    }
}

/// How far a scan is.
#[derive(Debug, Default)]
pub struct Progress {
    running: AtomicBool,
    failed: AtomicBool,
    entries: AtomicU64,
    /// How many the last scan saw; 0: not known.
    expected: AtomicU64,
    repairs: AtomicU64,
    times: Mutex<(Option<Instant>, Duration)>,
}

/// A look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// It is under way.
    pub running: bool,
    /// Entries that were looked at.
    pub entries: u64,
    /// How many the last scan saw.
    pub expected: Option<u64>,
    /// Repairs that were recorded.
    pub repairs: u64,
    /// How long it has taken so far.
    pub took: Duration,
}

impl Progress {
    fn begin(&self, expected: u64) {
        self.expected.store(expected, Ordering::Relaxed);
        *self.times() = (Some(Instant::now()), Duration::ZERO);
        self.running.store(true, Ordering::Release);
    }

    fn end(&self, whole: bool) {
        let mut times = self.times();
        times.1 = times.0.map_or(Duration::ZERO, |start| start.elapsed());
        self.failed.store(!whole, Ordering::Release);
        self.running.store(false, Ordering::Release);
    }

    fn times(&self) -> std::sync::MutexGuard<'_, (Option<Instant>, Duration)> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is under way.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Whether all is known now: it has come to its end, or there was nothing to scan.
    pub fn is_done(&self) -> bool {
        !self.is_running() && !self.failed.load(Ordering::Acquire)
    }

    /// How far it is.
    pub fn look(&self) -> Seen {
        let running = self.is_running();
        let (start, took) = *self.times();
        let expected = self.expected.load(Ordering::Relaxed);
        Seen {
            running,
            entries: self.entries.load(Ordering::Relaxed),
            expected: (expected > 0).then_some(expected),
            repairs: self.repairs.load(Ordering::Relaxed),
            took: match (running, start) {
                (true, Some(start)) => start.elapsed(),
                _ => took,
            },
        }
    }
}

/// A scan that is to be made, with what it works with.
pub struct Scan {
    /// The source.
    pub local: Arc<Local>,
    /// The log.
    pub journal: Arc<Journal>,
    /// How far it is.
    pub progress: Arc<Progress>,
    /// Who writes to the source without us.
    pub survivors: Arc<Survivors>,
    /// Set to give it up.
    pub stop: Arc<AtomicBool>,
}

impl Scan {
    /// Prepares it: from here on the mount may be used. To be called before it is.
    ///
    /// # Errors
    /// The source's root cannot be looked at.
    pub fn prepare(&self, plan: &Plan) -> Result<(), ScanError> {
        let expected = self.journal.meta(ENTRIES)?;
        let expected = expected.and_then(|n| n.parse().ok()).unwrap_or(0);
        if plan.is_needed() {
            self.progress.begin(expected);
            self.local
                .begin_scan(plan.suspicion.clone())
                .map_err(ScanError::Source)?;
        }
        Ok(())
    }

    /// Makes it. Returns when everything is found and recorded, which may take minutes.
    ///
    /// # Errors
    /// See [`ScanError`]; it is made again at the next start then.
    pub fn run(&self, plan: &Plan) -> Result<(), ScanError> {
        if !plan.is_needed() {
            return Ok(());
        }
        let done = self.find(plan);
        self.local.end_scan();
        self.progress.end(done.is_ok());
        let seen = self.progress.look();
        match &done {
            Ok(()) => log::info!(
                "the source is scanned: {} entries in {:.1} s, {} to be compared with the mirrors",
                seen.entries,
                seen.took.as_secs_f64(),
                seen.repairs
            ),
            Err(ScanError::Stopped) => {}
            Err(why) => log::error!("{why}; it is made again at the next start"),
        }
        done
    }

    fn find(&self, plan: &Plan) -> Result<(), ScanError> {
        if let Some(why) = plan.everything {
            log::warn!("{why}: the whole source is compared with the mirrors");
            self.record(RelPath::root(), Scope::TREE)?;
        }
        if let Some(after) = plan.rows_after {
            log::warn!(
                "the machine or a disk went down: what was changed since change {after} is compared with \
                 the mirrors"
            );
            rows::repair(self, after)?;
        }
        let nodes = self.survivors.find(&self.local);
        if !nodes.is_empty() {
            log::warn!(
                "{} file{} of the source may still be written to by processes that a former daemon served: \
                 watched until they are closed",
                nodes.len(),
                if nodes.len() == 1 { "" } else { "s" }
            );
        }
        let walk = Walk::new(self, plan, &nodes)?;
        walk.all()?;
        let entries = self.progress.entries.load(Ordering::Relaxed).to_string();
        self.journal.note(&[(ENTRIES, &entries)])?;
        if !plan.excluded_before.is_empty() {
            excluded::is_found(&self.journal, self.local.exclude())?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ScanError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(ScanError::Stopped),
            false => Ok(()),
        }
    }

    /// Records a repair; waits while the log is closed.
    fn record(&self, path: RelPath, scope: Scope) -> Result<(), ScanError> {
        fault::point("scan.found");
        while self.local.repair(path.clone(), scope).is_err() {
            self.check()?;
            std::thread::sleep(AGAIN);
        }
        self.progress.repairs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A suspicion of nothing: what a new journal begins with.
pub fn nothing() -> Suspicion {
    Suspicion {
        since: crate::change::Timestamp {
            seconds: i64::MAX,
            nanoseconds: 0,
        },
        ..Suspicion::default()
    }
}
