//! The way into the log, and what happens when it is closed (J6).
//!
//! The danger: a change has happened locally and its record cannot be written (disk full, I/O error).
//! Forgotten, it would never reach a mirror; recorded later than a change that followed it, it would
//! reach the mirrors in the wrong order.
//!
//! So from the first record that fails: that change and all that come after it are kept here, in order;
//! everything that would change something is refused (EROFS); and [`Log::retry`] writes what was kept,
//! the oldest first. Only when nothing is left, here and among the files with unlogged bytes, the mount
//! is writable again. What is kept is bounded by the few requests that were under way.
//!
//! Nothing is scanned when the log opens again, since nothing can have happened that is neither kept nor watched. Who asks
//! before he changes something is refused. Who does not ask is the kernel, for those who have a new file or a mapped one
//! open (passthrough): such a file is watched ([`super::unseen`]) until its record is made, at the release too, and a
//! record that fails leaves it unlogged and watched. What is killed meanwhile the scan at the next start finds, since no mark
//! is made while the log is closed.

use super::sync::lock;
use super::sys::Result;
use crate::change::Change;
use crate::fault;
use crate::journal::{RecordError, Recorder};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Kept {
    changes: VecDeque<Change>,
    /// Why the log is closed; none while it is open.
    reason: Option<RecordError>,
}

/// The log as the file system side sees it.
pub struct Log {
    recorder: Arc<dyn Recorder>,
    /// Mirrors `kept.reason`, so that the usual case takes no lock here.
    closed: AtomicBool,
    kept: Mutex<Kept>,
}

impl Log {
    /// An open log.
    pub fn new(recorder: Arc<dyn Recorder>) -> Log {
        Log {
            recorder,
            closed: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    /// Whether something may be changed. To be asked with the lock in hand that the change needs.
    ///
    /// # Errors
    /// EROFS while the log is closed.
    pub fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    /// Why the log is closed.
    pub fn reason(&self) -> Option<RecordError> {
        lock(&self.kept).reason.clone()
    }

    /// Records what has happened.
    ///
    /// # Errors
    /// EIO: it is not in the log yet, but kept, and will be recorded in its turn.
    pub fn record(&self, change: Change) -> Result<()> {
        fault::point("local.effect");
        if !self.closed.load(Ordering::Acquire) {
            match self.recorder.record(&change) {
                Ok(_) => {
                    fault::point("local.recorded");
                    return Ok(());
                }
                Err(reason) => self.close(&mut lock(&self.kept), reason),
            }
        }
        let mut kept = lock(&self.kept);
        if kept.reason.is_none() {
            // It was opened again meanwhile, and nothing is kept before this one.
            match self.recorder.record(&change) {
                Ok(_) => return Ok(()),
                Err(reason) => self.close(&mut kept, reason),
            }
        }
        kept.changes.push_back(change);
        Err(Errno::IO)
    }

    /// Records something that the caller keeps itself if it fails, and brings again.
    ///
    /// # Errors
    /// EIO: it is not in the log.
    pub fn record_or_keep_yourself(&self, change: &Change) -> Result<()> {
        fault::point("local.effect");
        let mut kept = lock(&self.kept);
        if !kept.changes.is_empty() {
            return Err(Errno::IO);
        }
        let recorded = if kept.reason.is_none() {
            // The usual case must not hold the others up.
            drop(kept);
            let recorded = self.recorder.record(change);
            fault::point("local.recorded");
            kept = lock(&self.kept);
            recorded
        } else {
            self.recorder.record(change)
        };
        recorded.map(drop).map_err(|reason| {
            self.close(&mut kept, reason);
            Errno::IO
        })
    }

    /// Closes the log if nothing can be recorded in it any more, before a change has to find out.
    pub fn look(&self) {
        if let Err(reason) = self.recorder.check() {
            self.close(&mut lock(&self.kept), reason);
        }
    }

    fn close(&self, kept: &mut Kept, reason: RecordError) {
        if kept.reason.is_none() {
            log::error!("{reason}; nothing can be changed on the mount until it can");
        }
        kept.reason = Some(reason);
        self.closed.store(true, Ordering::Release);
    }

    /// Records what was kept; `rest` brings what others kept themselves and says whether all of it is
    /// in the log now. If so, the log is open again.
    pub fn retry(&self, rest: impl FnOnce() -> bool) {
        {
            let mut kept = lock(&self.kept);
            // With nothing kept, nothing else would tell that it still cannot be written to.
            if let Err(reason) = self.recorder.check() {
                return self.close(&mut kept, reason);
            }
            while let Some(change) = kept.changes.front() {
                if let Err(reason) = self.recorder.record(change) {
                    self.close(&mut kept, reason);
                    return;
                }
                kept.changes.pop_front();
            }
        }
        if !rest() {
            return;
        }
        let mut kept = lock(&self.kept);
        if kept.changes.is_empty() && kept.reason.take().is_some() {
            self.closed.store(false, Ordering::Release);
            log::info!("changes are recorded again; the mount is writable");
        }
    }
}
