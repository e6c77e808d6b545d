//! What somebody sees who watches a mirror: files in the order in which they were made (P3), each of them
//! whole from the first moment of its name (P4).
#![allow(clippy::unwrap_used)]

use super::support::daemon::{Daemon, PATIENCE};
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Bytes that prove that they are all there: their number, and then a sum over the rest.
fn whole(version: u32, length: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..length)
        .map(|i| (i as u32).wrapping_mul(version + 7) as u8)
        .collect();
    let sum: u64 = body.iter().map(|b| u64::from(*b)).sum();
    let mut bytes = format!("{length:010} {sum:020} ").into_bytes();
    bytes.extend(body);
    bytes
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, body)) = bytes.split_at_checked(32) else {
        return false;
    };
    let sum: u64 = body.iter().map(|b| u64::from(*b)).sum();
    head == format!("{:010} {sum:020} ", body.len()).as_bytes()
}

/// What a watcher saw: names in the order of their first sight.
#[derive(Default)]
struct Seen {
    order: Vec<Vec<String>>,
    torn: BTreeSet<String>,
}

/// Looks at a directory again and again: which names are new since the last look, and whether every file
/// is whole whenever it is looked at. `until` ends it after one more look.
fn watch(dir: &Path, until: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut known = BTreeSet::new();
    loop {
        let last = until.load(Ordering::SeqCst);
        let mut new = Vec::new();
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
            let name = entry.file_name().into_string().unwrap();
            if name == ".proxyfs" {
                continue;
            }
            // Read by one open file: a rename may replace it meanwhile.
            let Ok(bytes) = fs::read(entry.path()) else {
                continue;
            };
            if !is_whole(&bytes) {
                seen.torn.insert(format!("{name}: {} bytes", bytes.len()));
            }
            if known.insert(name.clone()) {
                new.push(name);
            }
        }
        if !new.is_empty() {
            seen.order.push(new);
        }
        if last {
            return seen;
        }
    }
}

/// Fails unless the names of each writer (what is before `-`) were seen in the order of their numbers. Names
/// that were new in the same look have no order among them, but none may be missing that comes before.
fn assert_in_order(seen: &Seen, count: usize) {
    assert_eq!(seen.torn, BTreeSet::new(), "seen half written");
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    for look in &seen.order {
        let mut numbers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for name in look {
            let (writer, number) = name.split_once('-').unwrap();
            numbers
                .entry(writer)
                .or_default()
                .push(number.parse().unwrap());
        }
        for (writer, mut numbers) in numbers {
            numbers.sort_unstable();
            let next = next.entry(writer).or_default();
            for number in numbers {
                assert_eq!(
                    number, *next,
                    "writer {writer}: seen in another order: {:?}",
                    seen.order
                );
                *next += 1;
            }
        }
    }
    assert!(
        next.values().all(|n| *n == count),
        "not all were seen: {next:?}"
    );
}

struct Watched {
    daemon: Daemon,
    base: PathBuf,
    _parts: (Sshd, Relay),
}

fn over_a_line(rtt: Duration) -> Watched {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), rtt);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait();
    Watched {
        daemon,
        base: sshd.base(),
        _parts: (sshd, relay),
    }
}

/// Watches while `work` goes on and until all is there.
fn watched(at: &Watched, work: impl FnOnce()) -> Seen {
    let stop = AtomicBool::new(false);
    std::thread::scope(|all| {
        let watcher: ScopedJoinHandle<Seen> = all.spawn(|| watch(&at.base, &stop));
        work();
        at.daemon.wait();
        stop.store(true, Ordering::SeqCst);
        watcher.join().unwrap()
    })
}

#[test]
fn a_watcher_sees_files_in_the_order_they_were_made_and_whole_at_first_sight() {
    let at = over_a_line(Duration::from_millis(20));
    let www = at.daemon.source();
    let seen = watched(&at, || {
        for i in 0..60 {
            // A big one between small ones holds back those behind it.
            let length = if i % 20 == 7 { 5_000_000 } else { 2000 };
            fs::write(www.join(format!("w-{i}")), whole(1, length)).unwrap();
        }
    });
    assert_in_order(&seen, 60);
}

#[test]
fn the_files_of_concurrent_writers_keep_each_writers_order() {
    let at = over_a_line(Duration::from_millis(5));
    let www = at.daemon.source();
    let seen = watched(&at, || {
        std::thread::scope(|all| {
            for writer in ["a", "b", "c", "d"] {
                let www = &www;
                all.spawn(move || {
                    for i in 0..50 {
                        let length = if i % 25 == 3 { 1_000_000 } else { 500 };
                        let bytes = whole(3, length);
                        fs::write(www.join(format!("{writer}-{i}")), bytes).unwrap();
                    }
                });
            }
        });
    });
    assert_in_order(&seen, 50);
}

#[test]
fn a_rewritten_file_is_never_seen_half() {
    let at = over_a_line(Duration::from_millis(2));
    let www = at.daemon.source();
    let seen = watched(&at, || {
        let deadline = Instant::now() + PATIENCE;
        for version in 0..40u32 {
            let bytes = whole(version, 10_000 + 40_000 * (version as usize % 3));
            if version % 2 == 0 {
                fs::write(www.join("w-0"), bytes).unwrap(); // cut to nothing and written anew
            } else {
                fs::write(www.join("w-1.tmp"), &bytes).unwrap();
                fs::rename(www.join("w-1.tmp"), www.join("w-1")).unwrap();
            }
            assert!(Instant::now() < deadline);
        }
    });
    assert_eq!(seen.torn, BTreeSet::new());
}
