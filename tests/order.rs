//! What somebody sees who watches a mirror: files in the order in which they were made (P3), each of them
//! whole from the first moment of its name (P4).
//!
//! The watcher is the kernel (inotify): it forgets nothing and keeps the order. A reader looks at every
//! file again and again meanwhile, since a rename must not show half a file either.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Bytes that prove that they are all there and belong together: version, length, and a sum over the rest.
fn whole(version: u32, length: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..length)
        .map(|i| (i as u32).wrapping_mul(version + 7) as u8)
        .collect();
    let mut bytes = head(version, &body);
    bytes.extend(body);
    bytes
}

fn head(version: u32, body: &[u8]) -> Vec<u8> {
    let sum: u64 = body.iter().map(|b| u64::from(*b)).sum();
    format!("{version:010} {:010} {sum:020} ", body.len()).into_bytes()
}

/// Which version this is; none: it is not whole.
fn version_of(bytes: &[u8]) -> Option<u32> {
    let (start, body) = bytes.split_at_checked(43)?;
    let version = std::str::from_utf8(start.get(..10)?).ok()?.parse().ok()?;
    (start == head(version, body)).then_some(version)
}

/// What a watcher saw.
#[derive(Default)]
struct Seen {
    /// Names in the order in which they appeared, each as often as it did.
    appeared: Vec<String>,
    /// What must not be.
    wrong: Vec<String>,
}

impl Seen {
    fn happened(&mut self, what: ReadFlags, name: &str) {
        if name == ".proxyfs" || what.contains(ReadFlags::ISDIR) {
            return;
        }
        if what.intersects(ReadFlags::CREATE | ReadFlags::MODIFY) {
            self.wrong
                .push(format!("{name} is written under its own name"));
        }
        if what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.appeared.push(name.to_owned());
        }
    }

    fn read(&mut self, dir: &Path, name: &str) {
        let Ok(bytes) = fs::read(dir.join(name)) else {
            return; // a temporary name that is gone
        };
        if version_of(&bytes).is_none() {
            let length = bytes.len();
            self.wrong
                .push(format!("{name}: {length} bytes, not whole"));
        }
    }
}

/// Looks at a directory that is watched, until it is told to end and has seen all.
fn watch(dir: &Path, watched: &OwnedFd, end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut buffer = [MaybeUninit::uninit(); 16384];
    let mut events = inotify::Reader::new(watched, &mut buffer);
    loop {
        let last = end.load(Ordering::SeqCst);
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().unwrap_or_default().to_str().unwrap();
                    let what = event.events();
                    assert!(!what.contains(ReadFlags::QUEUE_OVERFLOW));
                    seen.happened(what, name);
                    seen.read(dir, name);
                }
                Err(Errno::AGAIN) => break,
                Err(why) => panic!("{why}"),
            }
        }
        // What is rewritten often is worth more looks than one an event.
        for name in ["rewritten", "replaced"] {
            seen.read(dir, name);
        }
        if last {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Fails unless the files of each writer (what is before `-`), and no others, appeared in the order of
/// their numbers, each once.
fn assert_in_order(seen: &Seen, writers: &[&str], count: usize) {
    assert_eq!(seen.wrong, [""; 0]);
    for writer in writers {
        let prefix = format!("{writer}-");
        let of_this_one = seen.appeared.iter().filter_map(|n| n.strip_prefix(&prefix));
        let numbers: Vec<usize> = of_this_one.map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, Vec::from_iter(0..count), "writer {writer}");
    }
    assert_eq!(seen.appeared.len(), writers.len() * count);
}

struct Watched {
    daemon: Daemon,
    base: PathBuf,
    watched: OwnedFd,
    _parts: (Relay, Sshd),
}

fn over_a_line(rtt: Duration) -> Watched {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), rtt);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    let watched = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MODIFY;
    inotify::add_watch(&watched, sshd.base(), what).unwrap();
    Watched {
        daemon,
        base: sshd.base(),
        watched,
        _parts: (relay, sshd),
    }
}

/// Watches while `work` goes on and until all is there.
fn watched(at: &Watched, work: impl FnOnce(&Path)) -> Seen {
    /// Also when `work` fails: the watcher is waited for.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let end = AtomicBool::new(false);
    std::thread::scope(|all| {
        let watcher = all.spawn(|| watch(&at.base, &at.watched, &end));
        let at_the_end = End(&end);
        work(&at.daemon.source());
        at.daemon.wait();
        drop(at_the_end);
        watcher.join().unwrap()
    })
}

#[test]
fn a_watcher_sees_files_in_the_order_they_were_made_and_whole_at_first_sight() {
    let at = over_a_line(Duration::from_millis(20));
    let seen = watched(&at, |www| {
        for i in 0..60 {
            // A big one holds back the small ones behind it, which are there long before.
            let length = if i % 30 == 7 { 20 * MIB } else { 2000 };
            fs::write(www.join(format!("w-{i}")), whole(1, length)).unwrap();
        }
    });
    assert_in_order(&seen, &["w"], 60);
}

#[test]
fn the_files_of_concurrent_writers_keep_each_writers_order() {
    let at = over_a_line(Duration::from_millis(5));
    let writers = ["a", "b", "c", "d"];
    let seen = watched(&at, |www| {
        std::thread::scope(|all| {
            for writer in writers {
                all.spawn(move || {
                    for i in 0..50 {
                        let length = if i % 25 == 3 { MIB } else { 500 };
                        let bytes = whole(3, length);
                        fs::write(www.join(format!("{writer}-{i}")), bytes).unwrap();
                    }
                });
            }
        });
    });
    assert_in_order(&seen, &writers, 50);
}

#[test]
fn a_rewritten_file_is_never_seen_half() {
    let at = over_a_line(Duration::from_millis(2));
    let seen = watched(&at, |www| {
        for version in 0..60 {
            let bytes = whole(version, 10_000 + 40_000 * (version as usize % 3));
            if version % 2 == 0 {
                fs::write(www.join("rewritten"), bytes).unwrap(); // cut to nothing and written anew
            } else {
                fs::write(www.join("temporary"), &bytes).unwrap();
                fs::rename(www.join("temporary"), www.join("replaced")).unwrap();
            }
        }
    });
    assert_eq!(seen.wrong, [""; 0]);
    for (name, last) in [("rewritten", 58), ("replaced", 59)] {
        let bytes = fs::read(at.base.join(name)).unwrap();
        assert_eq!(version_of(&bytes), Some(last), "{name}");
    }
}
