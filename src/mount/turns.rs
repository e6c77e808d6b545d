//! Which of the threads that serve the mount wait for requests.
//!
//! If all of them do, the kernel wakes the one that has waited longest. So one application that asks one thing
//! after another is served by all threads in turn, each switched to with cold caches; and what it leaves behind (a
//! FORGET after each unlink) wakes one more while the next request wakes another. On one processor that was a
//! fifth of the time of an unlink.
//!
//! So of the threads that have nothing to do one waits for requests, and the others *rest*. The danger is a request that
//! nobody takes, as the only one who waits has got one that takes its time (a slow disk, an fsync). What
//! answers it:
//!
//! - *Who rests looks up every [`REST`]*: if no request was begun since its last look and one is there, the others are
//!   stuck, and it goes and waits. So it does when nothing was begun for a while, since that costs nothing.
//! - *More comes than one can do*: every few requests, whoever has got one asks the kernel whether the next is there
//!   already, and if so wakes one who rests.
//! - *What takes its time for certain* wakes one at its beginning.
//!
//! Whether somebody waits is a number that may be wrong for the moment between the kernel's answer and its
//! count. Then two wait, or nobody does for a [`REST`]; nothing is lost by either.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long nobody takes a request, at most, although somebody could (twice of it).
const REST: Duration = Duration::from_millis(1);

/// After so many looks without a request it goes and waits.
const QUIET: u32 = 20;

/// After so many requests it is looked whether one more is waiting.
const LOOK: u64 = 16;

#[derive(Default)]
struct Resting {
    count: usize,
    /// How many of them have been called and have not come yet.
    called: usize,
}

/// The threads' turns.
pub struct Turns {
    /// One more descriptor of the connection to the kernel.
    device: OwnedFd,
    /// Threads that wait for a request, or are on their way there.
    waiting: AtomicUsize,
    /// Requests that were begun.
    begun: AtomicU64,
    resting: Mutex<Resting>,
    call: Condvar,
}

/// A request that is being served.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// `threads` of them are about to wait for the first request on `device`.
    pub fn new(device: OwnedFd, threads: usize) -> Turns {
        Turns {
            device,
            waiting: AtomicUsize::new(threads),
            begun: AtomicU64::new(0),
            resting: Mutex::default(),
            call: Condvar::new(),
        }
    }

    /// This thread has got a request. It is answered when what this returns is dropped.
    pub fn begin(&self) -> Turn<'_> {
        let nobody_waits = self.waiting.fetch_sub(1, Ordering::AcqRel) <= 1;
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        if nobody_waits
            && begun.is_multiple_of(LOOK)
            && self.somebody_rests()
            && self.is_one_more_there()
        {
            self.call_one();
        }
        Turn(self)
    }

    /// The same, for one that takes its time.
    pub fn begin_long(&self) -> Turn<'_> {
        let turn = self.begin();
        if self.waiting.load(Ordering::Acquire) == 0 {
            self.call_one();
        }
        turn
    }

    fn somebody_rests(&self) -> bool {
        self.resting().count > 0
    }

    fn is_one_more_there(&self) -> bool {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut device, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call_one(&self) {
        let mut resting = self.resting();
        if resting.called < resting.count {
            resting.called += 1;
            self.call.notify_one();
        }
    }

    fn rest(&self) {
        let mut resting = self.resting();
        resting.count += 1;
        let mut seen = self.begun.load(Ordering::Relaxed);
        let mut quiet = 0;
        loop {
            let waited = self.call.wait_timeout(resting, REST);
            resting = waited.unwrap_or_else(PoisonError::into_inner).0;
            if resting.called > 0 {
                resting.called -= 1;
                break;
            }
            let begun = self.begun.load(Ordering::Relaxed);
            if std::mem::replace(&mut seen, begun) != begun {
                quiet = 0;
                continue;
            }
            quiet += 1;
            if quiet == QUIET || self.is_one_more_there() {
                break;
            }
        }
        resting.count -= 1;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A thread that panics does not wait for requests any more.
        if std::thread::panicking() {
            return;
        }
        let turns = self.0;
        if turns.waiting.load(Ordering::Acquire) > 0 {
            turns.rest();
        }
        turns.waiting.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    /// A thread that ends its turn, and tells when it waits for the next request.
    fn end_one(turns: &Arc<Turns>) -> Receiver<()> {
        let (sender, receiver) = channel();
        let turns = turns.clone();
        let _begun = turns.waiting.fetch_sub(1, Ordering::AcqRel);
        std::thread::spawn(move || {
            drop(Turn(&turns));
            sender.send(()).unwrap();
        });
        receiver
    }

    fn until(turns: &Turns, resting: usize) {
        let deadline = Instant::now() + LONG;
        while turns.resting().count != resting {
            assert!(Instant::now() < deadline, "{resting} should rest");
            std::thread::yield_now();
        }
    }

    fn turns(threads: usize) -> (Arc<Turns>, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (Arc::new(Turns::new(here.into(), threads)), there)
    }

    #[test]
    fn the_last_one_who_waits_never_rests() {
        let (turns, _there) = turns(1);
        for _ in 0..100 {
            drop(turns.begin());
        }
        assert_eq!(turns.waiting.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_rests_waits_again_when_the_other_one_is_stuck() {
        let (turns, mut there) = turns(2);
        let waits = end_one(&turns);
        let stuck = turns.begin();
        there.write_all(b"one more request").unwrap();
        waits.recv_timeout(LONG).unwrap();
        drop(stuck);
    }

    #[test]
    fn who_rests_waits_again_when_nothing_comes() {
        let (turns, _there) = turns(2);
        end_one(&turns).recv_timeout(LONG).unwrap();
        assert_eq!(turns.resting().count, 0);
        assert_eq!(turns.waiting.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn who_rests_is_called_when_more_comes_than_one_can_do() {
        let (turns, mut there) = turns(2);
        there.write_all(b"one more request").unwrap();
        let waits = end_one(&turns);
        until(&turns, 1);
        // It does not come by itself while requests are begun.
        let deadline = Instant::now() + LONG;
        while waits.try_recv().is_err() {
            assert!(Instant::now() < deadline);
            drop(turns.begin());
        }
        assert_eq!(turns.waiting.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn who_rests_is_called_before_something_long() {
        let (turns, _there) = turns(2);
        let waits = end_one(&turns);
        until(&turns, 1);
        let long = turns.begin_long();
        waits.recv_timeout(LONG).unwrap();
        drop(long);
    }

    #[test]
    fn a_thread_that_panics_is_not_counted_any_more() {
        let (turns, _there) = turns(2);
        let other = turns.clone();
        let died = std::thread::spawn(move || {
            let _turn = other.begin();
            panic!("a bug");
        });
        died.join().unwrap_err();
        assert_eq!(turns.waiting.load(Ordering::Relaxed), 1);
    }
}
