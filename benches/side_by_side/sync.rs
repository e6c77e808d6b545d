//! A whole tree: a new mirror is filled, beside `rsync -a`; and one that is the same is compared, beside
//! `rsync -a --dry-run`, which compares by size and time as well.
//!
//! The first is measured from the start of the daemon until its mirror has everything, rsync from its start to its
//! end; the second is `proxyfs sync` at the command line. All through the line with its delay.

use crate::Size;
use crate::opponents;
use crate::rig::{MIRROR, Rig, go_on, make_files};
use crate::table::{Goal, Table, median};
use crate::tree::assert_same;
use std::process::Command;
use std::time::{Duration, Instant};

const RTT: Duration = Duration::from_millis(100);
const FILE: usize = 4096;

/// Of the tree that is compared only.
const SMALL: usize = 32;

pub fn run(size: &Size, table: &mut Table) {
    fill(size, table);
    compare(size, table);
}

/// A daemon that is yet to be started, with files in its source.
fn rig(files: usize, length: usize) -> Rig {
    let rig = Rig::new(RTT);
    make_files(&rig.daemon.source(), files, length);
    rig
}

fn fill(size: &Size, table: &mut Table) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        go_on();
        let mut rig = rig(size.new_files, FILE);
        let start = Instant::now();
        rig.daemon.start();
        rig.daemon
            .wait_for_mirror(MIRROR, |m| m["state"] == "synced");
        ours.push(start.elapsed());
        assert_same(&rig.daemon.source(), &rig.sshd.base());
        let to = rig.sshd.file("rsync");
        let slash = rig.daemon.source().join("");
        theirs.push(opponents::rsync(&rig, &slash, &to));
        rig.daemon.stop();
    }
    let what = format!("a new mirror of {} files, RTT 100 ms", size.new_files);
    table.compare(
        what,
        median(&ours),
        ("rsync -a", median(&theirs)),
        Goal::None,
    );
}

fn compare(size: &Size, table: &mut Table) {
    let mut rig = rig(size.entries, SMALL);
    let source = rig.daemon.source();
    let copied = Command::new("cp")
        .arg("-aT")
        .args([&source, &rig.sshd.base()])
        .status();
    assert!(copied.unwrap().success());
    rig.daemon.start();
    rig.daemon
        .wait_for_mirror(MIRROR, |m| m["state"] == "synced");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds.min(3) {
        go_on();
        let start = Instant::now();
        let told = rig.daemon.ok(&["sync", MIRROR]);
        ours.push(start.elapsed());
        assert!(told.contains(" 0 sent "), "{told}");
        let slash = source.join("");
        theirs.push(opponents::rsync_dry(&rig, &slash, &rig.sshd.base()));
        eprintln!(
            "    ProxyFS {:.2} s, rsync {:.2} s",
            ours.last().unwrap().as_secs_f64(),
            theirs.last().unwrap().as_secs_f64()
        );
    }
    let what = format!(
        "`sync` of {} files that are the same, RTT 100 ms",
        size.entries
    );
    let rsync = ("rsync -a --dry-run", median(&theirs));
    table.compare(what, median(&ours), rsync, Goal::None);
    table.number(
        "memory after that".to_string(),
        crate::backlog::memory(&rig.daemon, "VmHWM"),
        "MiB",
        Goal::AtMost(128.0),
    );
    rig.daemon.stop();
}
