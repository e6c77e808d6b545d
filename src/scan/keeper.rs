//! The keeper: a thread that scans the source at the start, and then makes marks and checkpoints.
//!
//! A mark costs one touched file and one row, a second at most, and only when something was changed. A
//! checkpoint writes all that is dirty in the source's file system (syncfs(2)), which may take long: at most
//! every [`CHECKPOINT_EVERY`], and never on a thread that serves the mount.
//!
//! The order of a checkpoint (J5): how far the log is, the time, what is unlogged; then the source is made durable,
//! then the log, with the note of all this behind it. Cut anywhere before the end, the one before still holds.
//!
//! At the end of a run the last checkpoint is the word that it was a proper end. If the disk does not take it in
//! time, there is none, and the next start finds an unclean end, which costs it some comparing.

use super::marks::{self, FsClock, Mark, Plan};
use super::{Scan, ScanError};
use crate::fault;
use crate::journal::JournalError;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::fs::syncfs;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often marks are made at most.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// How often checkpoints are made at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// How often it is looked whether survivors are still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A running keeper.
pub struct Keeper {
    work: Arc<Work>,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// What it does.
pub struct Work {
    /// What marks and checkpoints are made of.
    pub scan: Scan,
    /// The source's clock.
    pub clock: FsClock,
}

impl Keeper {
    /// Starts it: with the scan, if one is planned ([`Scan::prepare`] has been called).
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(scan: Scan, plan: Plan, clock: FsClock) -> io::Result<Keeper> {
        let work = Arc::new(Work { scan, clock });
        let (stop, stopped) = bounded(1);
        let body = Arc::clone(&work);
        let thread = std::thread::Builder::new()
            .name("keeper".to_string())
            .spawn(move || body.live(&plan, &stopped))?;
        Ok(Keeper { work, stop, thread })
    }

    /// Tells it to end.
    pub fn halt(&self) {
        self.work.scan.stop.store(true, Ordering::Relaxed);
    }

    /// Ends it. `clean`: nothing is mounted and everything is logged; then the last checkpoint is made, by
    /// `deadline`.
    pub fn end(self, clean: bool, deadline: Instant) {
        self.work.scan.stop.store(true, Ordering::Relaxed);
        drop(self.stop);
        wait_for(&self.thread, deadline);
        if !clean || !self.thread.is_finished() || !self.work.scan.progress.is_done() {
            return;
        }
        let work = Arc::clone(&self.work);
        let last = std::thread::Builder::new()
            .name("checkpoint".to_string())
            .spawn(move || work.checkpoint(true));
        match last {
            Ok(last) => {
                wait_for(&last, deadline);
                if !last.is_finished() {
                    log::warn!(
                        "the source's disk does not take what is written in time: the next start \
                         compares more than it had to"
                    );
                }
            }
            Err(why) => log::warn!("no last checkpoint: {why}"),
        }
    }
}

fn wait_for(thread: &JoinHandle<()>, deadline: Instant) {
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the last mark, or checkpoint, was made of: with the same, there is nothing to note.
type Ground = (u64, Vec<u64>);

impl Work {
    fn live(&self, plan: &Plan, stopped: &Receiver<()>) {
        match self.scan.run(plan) {
            Ok(()) => {}
            // No mark and no checkpoint: the next start begins where this one did.
            Err(ScanError::Stopped) => return,
            Err(_) => {
                let _ = stopped.recv();
                return;
            }
        }
        let (mut marked, mut covered): (Option<Ground>, Option<Ground>) = (None, None);
        let mut next_checkpoint = Instant::now();
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_look {
                self.scan.survivors.look(&self.scan.local);
                next_look = now + LOOK_EVERY;
            }
            if now >= next_checkpoint
                && let Some(ground) = self.make(&covered, Self::note_checkpoint)
            {
                next_checkpoint = now + CHECKPOINT_EVERY;
                marked = Some(ground.clone());
                covered = Some(ground);
            } else if let Some(ground) = self.make(&marked, Self::note_mark) {
                marked = Some(ground);
            }
            match stopped.recv_timeout(MARK_EVERY) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Makes a mark or a checkpoint, unless it would be made of the same as the last one.
    fn make(
        &self,
        last: &Option<Ground>,
        note: fn(&Work, &Mark) -> Result<(), String>,
    ) -> Option<Ground> {
        // Without touching anything, at first: an idle source is left in peace.
        let mut nodes = self.scan.local.unlogged().nodes;
        nodes.sort_unstable();
        if last.as_ref() == Some(&(self.scan.journal.head(), nodes)) {
            return None;
        }
        let mark = self.take()?;
        let ground = (mark.seq, mark.nodes.clone());
        match note(self, &mark) {
            Ok(()) => Some(ground),
            Err(why) => {
                log::error!("what is in the log could not be noted: {why}");
                None
            }
        }
    }

    /// The last checkpoint of a run. `clean`: it was a proper end.
    pub fn checkpoint(&self, clean: bool) {
        let Some(mark) = self.take() else {
            return;
        };
        let done = match clean {
            true => self.durable().and_then(|()| {
                marks::note_checkpoint(&self.scan.journal, &mark, true).map_err(in_words)
            }),
            false => self.note_checkpoint(&mark),
        };
        if let Err(why) = done {
            log::error!("no last checkpoint: {why}");
        }
    }

    /// A mark as it is now; none while the log is closed.
    pub fn take(&self) -> Option<Mark> {
        // In this order: see the module's comment.
        let seq = self.scan.journal.head();
        fault::point("checkpoint.began");
        let (time, wall) = (self.clock.now(), SystemTime::now());
        let (wall_ms, up_ms) = (crate::journal::now_ms(), marks::up_ms());
        let unlogged = self.scan.local.unlogged();
        if unlogged.until == UNIX_EPOCH {
            return None;
        }
        let since = wall.duration_since(unlogged.until).unwrap_or_default();
        let time = match since.is_zero() {
            true => time,
            false => marks::earlier(time, since + Duration::from_secs(2)),
        };
        let mut nodes = unlogged.nodes;
        nodes.sort_unstable();
        Some(Mark {
            seq,
            time,
            wall_ms,
            up_ms,
            empty: self.is_empty(),
            nodes,
        })
    }

    /// Notes a mark.
    ///
    /// # Errors
    /// In words: the journal's.
    pub fn note_mark(&self, mark: &Mark) -> Result<(), String> {
        marks::note_mark(&self.scan.journal, mark).map_err(in_words)
    }

    /// Makes the source durable, and notes a checkpoint.
    ///
    /// # Errors
    /// In words: the disk's, or the journal's.
    pub fn note_checkpoint(&self, mark: &Mark) -> Result<(), String> {
        self.durable()?;
        fault::point("checkpoint.durable");
        marks::note_checkpoint(&self.scan.journal, mark, false).map_err(in_words)
    }

    /// Makes the source durable.
    fn durable(&self) -> Result<(), String> {
        syncfs(self.scan.local.root_fd()).map_err(|why| format!("syncfs of the source: {why}"))
    }

    fn is_empty(&self) -> bool {
        is_empty(self.scan.local.root_fd()).unwrap_or(false)
    }
}

/// Whether there is nothing in the source that anybody put there. (That ext4's lost+found is there does not tell: it is all that
/// is left of a disk that was emptied.)
///
/// # Errors
/// It cannot be read.
pub fn is_empty(root: BorrowedFd<'_>) -> io::Result<bool> {
    crate::local::holds_only(root, &[b"lost+found"])
}

fn in_words(why: JournalError) -> String {
    why.to_string()
}
