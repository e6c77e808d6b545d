//! Changes of an open file that no request tells of.
//!
//! With kernel passthrough two kinds of stores reach the source's file without us: what is written through
//! a descriptor of a *new* file (it is recorded whole anyway, so its writes need not be seen), and what is
//! stored by mmap through a descriptor for reading and writing. Not recorded, they would be lost.
//!
//! So while such a descriptor is open, the file is *watched*: whoever is about to record it, and twice a
//! second the flusher, looks at its size and modification time. Others than at the last look: bytes have
//! changed, nobody knows which, so the record has the whole file. What could hide a change from a look:
//!
//! - *A write between the look and the record.* The stamp of the look stays, so that the next look finds it.
//!   The last look is made at the release, when nobody can write any more.
//! - *A clock that has not moved on between two writes.* Where the file system's stamps are not fine enough
//!   (see [`has_fine_stamps`]; Linux before 6.13), a stamp that is younger than a tick is not believed: the
//!   next look calls the file changed. New files are not written unseen there, as each would be recorded twice.
//! - *A time that was set back* by utimensat(2). That is a request: it looks before, and the time that was
//!   set is what the next look expects.
//! - *A page that is written to again by mmap* changes no stamp while it is dirty. So the pages of a file that
//!   may be mapped are written back after the look and before the record ([`Watch::protect`]): the next
//!   store faults, and gets a new stamp.
//!
//! A checkpoint (J5) must know since when bytes are unlogged: since the last look that found nothing.

use super::sys::{self, Result, Stat};
use crate::change::Timestamp;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longer than a tick of the clock that coarse stamps are taken from (10 ms at 100 Hz).
const TICK: Duration = Duration::from_millis(20);

/// How many writes of a test must all have other times.
const TRIALS: usize = 8;

/// When a look was taken.
pub type Look = (Instant, SystemTime);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    mtime: Timestamp,
}

impl From<&Stat> for Stamp {
    fn from(stat: &Stat) -> Stamp {
        Stamp {
            size: stat.size,
            mtime: stat.mtime,
        }
    }
}

/// What a file was like at the last look.
#[derive(Debug)]
pub struct Watch {
    fd: Arc<OwnedFd>,
    /// Descriptors that may change it unseen; of these, by mmap.
    users: u32,
    mappable: u32,
    fine: bool,
    /// None: not to be believed.
    stamp: Option<Stamp>,
    /// The last look, if it could be taken.
    stat: Option<Stat>,
    looked: Look,
}

impl Watch {
    /// From here on, of what is opened as `fd`: `stat` is from before anybody could write through it.
    pub fn new(fd: Arc<OwnedFd>, stat: &Stat, fine: bool) -> Watch {
        Watch {
            fd,
            users: 0,
            mappable: 0,
            fine,
            stamp: Some(stat.into()),
            stat: Some(*stat),
            looked: (Instant::now(), SystemTime::now()),
        }
    }

    /// One descriptor more.
    pub fn add(&mut self, mappable: bool) {
        self.users += 1;
        self.mappable += u32::from(mappable);
    }

    /// One less; true if none is left.
    pub fn remove(&mut self, mappable: bool) -> bool {
        self.users = self.users.saturating_sub(1);
        self.mappable = self.mappable.saturating_sub(u32::from(mappable));
        self.users == 0
    }

    /// Looks. If something has changed: when that was not so yet.
    pub fn look(&mut self) -> Option<Look> {
        let now = (Instant::now(), SystemTime::now());
        let before = std::mem::replace(&mut self.looked, now);
        self.stat = sys::stat(&self.fd).ok();
        let stamp = self.stat.as_ref().map(Stamp::from);
        let changed = stamp.is_none() || stamp != self.stamp;
        self.stamp = stamp.filter(|s| self.fine || is_old(s.mtime, now.1));
        changed.then_some(before)
    }

    /// When the last look was.
    pub fn last_look(&self) -> Look {
        self.looked
    }

    /// The file, and what it was at the last look.
    pub fn looked_at(&self) -> Option<(&OwnedFd, Stat)> {
        Some((&self.fd, self.stat?))
    }

    /// This time was set, by a request.
    pub fn time_was_set(&mut self, mtime: Timestamp) {
        if let Some(stamp) = &mut self.stamp {
            stamp.mtime = mtime;
        }
    }

    /// Lets the next store by mmap change the stamp.
    pub fn protect(&mut self) {
        if self.mappable > 0 && sys::write_back(&self.fd).is_err() {
            self.stamp = None;
        }
    }
}

fn is_old(mtime: Timestamp, now: SystemTime) -> bool {
    let mtime = Duration::new(mtime.seconds.unsigned_abs(), mtime.nanoseconds);
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(mtime).is_some_and(|age| age > TICK)
}

/// Whether a write that follows a look always has another time than the one before the look, in the file
/// system of this directory (multigrain timestamps, Linux 6.13). Tried with a file that has no name.
pub fn has_fine_stamps(dir: impl AsFd) -> bool {
    let tried = || -> Result<bool> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, c".", flags, Mode::RUSR)?;
        let mut last = sys::stat(&file)?.mtime;
        for _ in 0..TRIALS {
            rustix::io::pwrite(&file, b"x", 0)?;
            let mtime = sys::stat(&file)?.mtime;
            if mtime == last {
                return Ok(false);
            }
            last = mtime;
        }
        Ok(true)
    };
    tried().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn watched(fine: bool) -> (tempfile::TempDir, File, Watch) {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let fd = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
        let stat = sys::stat(&fd).unwrap();
        (dir, file, Watch::new(fd, &stat, fine))
    }

    #[test]
    fn a_look_finds_what_was_written_since_the_last_one_and_only_that() {
        let (_dir, mut file, mut watch) = watched(true);
        assert_eq!(watch.look(), None);
        let before = watch.looked;
        file.write_all(b"new").unwrap();
        assert_eq!(watch.look(), Some(before));
        assert_eq!(watch.look(), None);
    }

    #[test]
    fn a_coarse_stamp_is_not_believed_before_its_tick_is_over() {
        let (_dir, mut file, mut watch) = watched(false);
        file.write_all(b"new").unwrap();
        assert!(watch.look().is_some());
        // Something may have been written in the same tick.
        assert!(watch.look().is_some());
        std::thread::sleep(TICK * 2);
        assert!(watch.look().is_some());
        assert_eq!(watch.look(), None);
    }

    #[test]
    fn a_time_that_was_set_is_no_change_but_a_write_after_it_is() {
        let (_dir, mut file, mut watch) = watched(true);
        let old = Timestamp {
            seconds: 7,
            nanoseconds: 0,
        };
        let set = |file: &File| {
            sys::set_times(file, sys::SetTime::Keep, sys::SetTime::At(old)).unwrap();
        };
        set(&file);
        watch.time_was_set(old);
        assert_eq!(watch.look(), None);
        set(&file);
        watch.time_was_set(old);
        file.write_all(b"x").unwrap();
        assert!(watch.look().is_some());
    }
}
