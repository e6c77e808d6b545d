//! How a worker is spoken to: a crossbeam channel, and an eventfd that wakes it from poll(2).
//!
//! The danger is a change that nobody is woken for, or a file system side that pays for every mirror
//! with every write. So "there are changes" is one flag: only who raises it sends a notice, and the
//! worker lowers it *before* it reads the journal. What is recorded after that raises it again. A worker that
//! rests (paused, or between two attempts) leaves it raised: else each record would wake each such worker.

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There are new changes in the journal.
    Changes,
    /// Send nothing more until told to.
    Pause,
    /// Go on, and try again at once if something failed.
    Resume,
    /// Try again at once what failed, parked changes too; what is paused stays so.
    TryAgain,
    /// All of the mirror is to be made like the source: the journal tells how.
    Sync,
    /// End.
    Stop,
}

/// The end that speaks. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    notices: Sender<Notice>,
    wake: Arc<OwnedFd>,
    changes: Arc<AtomicBool>,
}

/// The end that listens.
pub struct Inbox {
    notices: Receiver<Notice>,
    wake: Arc<OwnedFd>,
    changes: Arc<AtomicBool>,
}

/// Makes both ends.
///
/// # Errors
/// No descriptor is left.
pub fn inbox() -> io::Result<(Notifier, Inbox)> {
    let (sender, receiver) = unbounded();
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let changes = Arc::new(AtomicBool::new(false));
    let notifier = Notifier {
        notices: sender,
        wake: Arc::clone(&wake),
        changes: Arc::clone(&changes),
    };
    Ok((
        notifier,
        Inbox {
            notices: receiver,
            wake,
            changes,
        },
    ))
}

impl Notifier {
    /// Says that there are new changes. Costs one atomic operation while the worker has not yet taken
    /// notice of the last time.
    pub fn changes(&self) {
        if !self.changes.swap(true, Ordering::AcqRel) {
            self.tell(Notice::Changes);
        }
    }

    /// Tells the worker something. A worker that has ended hears nothing, which is right.
    pub fn tell(&self, notice: Notice) {
        if self.notices.send(notice).is_ok() {
            // The counter of an eventfd can't be full: it takes 2^64 - 2 writes.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

impl Inbox {
    /// The next notice, if there is one. After [`Notice::Changes`] the journal is to be read.
    pub fn next(&self) -> Option<Notice> {
        let notice = self.notices.try_recv().ok();
        if notice == Some(Notice::Changes) {
            self.changes.store(false, Ordering::Release);
        }
        notice
    }

    /// The next notice for one who does not read the journal now: changes are not told again before
    /// [`Inbox::attend`].
    pub fn next_at_rest(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }

    /// From here on changes are told again. To be called before the journal is read.
    pub fn attend(&self) {
        self.changes.store(false, Ordering::Release);
    }

    /// Waits until there may be a notice, `timeout` at most.
    pub fn wait(&self, timeout: Duration) {
        let limit = Timespec {
            tv_sec: timeout.as_secs().min(1 << 30) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&*self.wake, PollFlags::IN)];
        // Interrupted or not: the caller looks for a notice and at the clock.
        let _ = poll(&mut polled, Some(&limit));
        self.silence();
    }

    /// Makes the descriptor unreadable again until the next notice.
    pub fn silence(&self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut counter);
    }
}

impl AsFd for Inbox {
    /// Readable while there may be notices.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn many_changes_are_one_notice_until_it_is_taken() {
        let (notifier, inbox) = inbox().unwrap();
        (0..1000).for_each(|_| notifier.changes());
        assert_eq!(inbox.next(), Some(Notice::Changes));
        assert_eq!(inbox.next(), None);
        notifier.changes();
        assert_eq!(inbox.next(), Some(Notice::Changes));
    }

    #[test]
    fn a_notice_ends_the_wait() {
        let (notifier, inbox) = inbox().unwrap();
        let start = Instant::now();
        std::thread::scope(|all| {
            all.spawn(|| notifier.tell(Notice::Stop));
            while inbox.next() != Some(Notice::Stop) {
                inbox.wait(Duration::from_secs(60));
            }
        });
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn who_rests_is_told_of_changes_once_until_it_attends_again() {
        let (notifier, inbox) = inbox().unwrap();
        notifier.changes();
        assert_eq!(inbox.next_at_rest(), Some(Notice::Changes));
        notifier.changes();
        notifier.tell(Notice::Resume);
        assert_eq!(inbox.next_at_rest(), Some(Notice::Resume));
        assert_eq!(inbox.next_at_rest(), None);
        inbox.attend();
        notifier.changes();
        assert_eq!(inbox.next(), Some(Notice::Changes));
    }
}
