//! kill -9 at any moment, under load, while connections break too: both mirrors end like the source (P2).
//!
//! The real program, the kernel's mount, two OpenSSH servers; one behind a relay that cuts and holds, one of which the
//! server itself is killed. Nobody stops working for all that. `PROXYFS_SEED=n` begins with the same choices, but
//! threads and processes never meet in the same order twice.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::load::Load;
use super::support::mounts::wait_until;
use super::support::random::Random;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How the trees differ, but for which names are one file: a file that was repaired under one of its names is a file
/// of its own there.
pub fn differences(source: &Path, mirror: &Path) -> Vec<String> {
    let (mut here, mut there) = (tree::read(source, false), tree::read(mirror, false));
    for entry in here.values_mut().chain(there.values_mut()) {
        entry.same_as = None;
    }
    let root_mode = here[&Vec::new()].mode;
    there.get_mut(&Vec::new()).unwrap().mode = root_mode;
    let shown = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
    let mut lines = Vec::new();
    for (path, entry) in here
        .iter()
        .filter(|(path, entry)| there.get(*path) != Some(*entry))
    {
        lines.push(format!(
            "{}: {entry:?}, there {:?}",
            shown(path),
            there.get(path)
        ));
    }
    let only = there.keys().filter(|path| !here.contains_key(*path));
    lines.extend(only.map(|path| format!("only there: {}", shown(path))));
    lines
}

/// Kills the daemon so often under load.
fn kill_often(seed: u64, times: u32) {
    let mut random = Random(seed);
    let near = Sshd::start();
    let mut far = Sshd::builder().ordinary_user().start();
    let relay = Relay::start(near.port(), Duration::from_millis(random.pick(&[0, 5, 20])));
    let mut daemon = Daemon::with("flush_after = 200ms");
    daemon.add_mirror_at("near", &near, relay.port(), "io_timeout = 1s");
    daemon.add_mirror("far", &far);
    daemon.start();
    let www = daemon.source();
    let load = Load::default();
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&load);
        for worker in 0..2 {
            let (load, www) = (&load, &www);
            scope.spawn(move || load.work(www, seed * 2 + worker));
        }
        for _ in 0..times {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            match random.below(6) {
                0 => relay.cut(),
                1 => relay.hold(),
                2 => relay.resume(),
                3 => far.kill(),
                _ => {}
            }
            daemon.kill();
            if random.one_in(3) {
                far.restart();
                relay.resume();
            }
            daemon.start();
        }
        // Fewer would be no load.
        wait_until("something was done", || {
            load.done.load(Ordering::Relaxed) > 100
        });
        drop(stop);
    });
    relay.resume();
    far.restart();
    daemon.ok(&["try-again"]);
    daemon.wait();
    for (name, sshd) in [("near", &near), ("far", &far)] {
        let lines = differences(&www, &sshd.base());
        assert!(
            lines.is_empty(),
            "seed {seed}, {name}:\n{}\n{}",
            lines.join("\n"),
            daemon.log()
        );
    }
    daemon.stop();
}

/// Nobody works on when a test has failed.
pub struct StopOnDrop<'a>(pub &'a Load);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_daemon_that_is_killed_under_load_again_and_again_loses_nothing() {
    kill_often(1, 6);
}

#[test]
#[ignore = "a soak: kills for PROXYFS_SOAK_SECONDS"]
fn soak_a_daemon_that_is_killed_under_load() {
    let end = Instant::now() + soak_time();
    let mut kills = 0;
    while Instant::now() < end {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        eprintln!("seed {seed}");
        kill_often(seed, 10);
        kills += 10;
    }
    eprintln!("{kills} kills");
}

/// How long a soak lasts.
pub fn soak_time() -> Duration {
    let seconds = std::env::var("PROXYFS_SOAK_SECONDS").map_or(60, |s| s.parse().unwrap());
    Duration::from_secs(seconds)
}
