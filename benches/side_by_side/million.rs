//! A large tree: how long the daemon takes to serve it at its start, how long the scan takes that looks for what was
//! changed meanwhile, beside `find -newercm` which does the same, and how long `proxyfs sync` of it takes that finds
//! it all the same, beside `rsync -a --dry-run`, which compares by size and time as well.
//!
//! Before each start the daemon was stopped properly, and one file was edited: the scan must find that and nothing
//! else. Everything is in the page cache for everybody, as far as it fits. The tree is made, and copied to the
//! mirror, by several threads at once: else that would take most of the time.

use crate::Size;
use crate::opponents;
use crate::rig::{MIRROR, Rig, bytes, go_on, until};
use crate::table::{Goal, Table, median};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const RTT: Duration = Duration::from_millis(100);
const LENGTH: usize = 32;

/// Files in a directory, and directories in one.
const WIDE: usize = 100;

/// How often a scan and a comparison are measured at most: each takes a minute with a million files.
const ROUNDS: usize = 2;

pub fn run(size: &Size, table: &mut Table) {
    let mut rig = Rig::new(RTT);
    let (source, mirror) = (rig.daemon.source(), rig.sshd.base());
    let made = Instant::now();
    make(&[&source, &mirror], size.entries);
    eprintln!("  made in {:.0} s", made.elapsed().as_secs_f64());
    rig.daemon.start();
    rig.daemon
        .wait_for_mirror(MIRROR, |m| m["state"] == "synced");
    let rounds = size.rounds.min(ROUNDS);
    sync(&rig, rounds, size.entries, table);
    starts(&mut rig, rounds, size.entries, table);
    rig.daemon.stop();
}

/// Makes the same tree in each of these directories.
fn make(tops: &[&Path], files: usize) {
    let directories = files.div_ceil(WIDE);
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() * 2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= directories {
                        return;
                    }
                    go_on();
                    directory(tops, n, (files - n * WIDE).min(WIDE));
                }
            });
        }
    });
}

fn directory(tops: &[&Path], n: usize, files: usize) {
    let [first, others @ ..] = tops else { return };
    let below = format!("{:03}/{:02}", n / WIDE, n % WIDE);
    for top in tops {
        fs::create_dir_all(top.join(&below)).unwrap();
    }
    for file in 0..files {
        let name = format!("{below}/{file:02}.jpg");
        let here = first.join(&name);
        let content = bytes((n * WIDE + file) as u64, LENGTH);
        fs::write(&here, &content).unwrap();
        let time = here.metadata().unwrap().modified().unwrap();
        for top in others {
            let there = fs::File::create(top.join(&name)).unwrap();
            std::io::Write::write_all(&mut &there, &content).unwrap();
            there.set_modified(time).unwrap();
        }
    }
}

fn sync(rig: &Rig, rounds: usize, entries: usize, table: &mut Table) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        go_on();
        let start = Instant::now();
        let told = rig.daemon.ok(&["sync", MIRROR]);
        ours.push(start.elapsed());
        assert!(told.contains(" 0 sent "), "{told}");
        let slash = rig.daemon.source().join("");
        theirs.push(opponents::rsync_dry(rig, &slash, &rig.sshd.base()));
    }
    table.compare(
        format!("`sync` of {entries} files that are the same, RTT 100 ms"),
        median(&ours),
        ("rsync -a --dry-run", median(&theirs)),
        Goal::None,
    );
    memory(rig, "memory after that", table);
}

fn starts(rig: &mut Rig, rounds: usize, entries: usize, table: &mut Table) {
    let (mut served, mut scanned, mut found) = (Vec::new(), Vec::new(), Vec::new());
    let source = rig.daemon.source();
    for round in 0..rounds {
        rig.daemon.ok(&["wait", "--timeout", "120"]);
        rig.daemon.stop();
        let since = rig.daemon.file("since");
        fs::write(&since, "").unwrap();
        // The clock of older file systems ticks that seldom, and find wants what is younger.
        std::thread::sleep(Duration::from_millis(20));
        let edited = "000/00/00.jpg";
        fs::write(source.join(edited), format!("edited {round}")).unwrap();
        found.push(find(&source, &since));
        let start = Instant::now();
        rig.daemon.start();
        served.push(start.elapsed());
        until(Duration::from_millis(20), || {
            rig.daemon.status()["scan"]["running"] == false
        });
        scanned.push(scan_time(&rig.daemon.log()));
        let status = rig.daemon.status();
        assert!(
            status["scan"]["entries"].as_u64().unwrap() >= entries as u64,
            "{status}"
        );
        assert!(
            status["scan"]["repairs"].as_u64().unwrap() <= 2,
            "it found more than was edited: {status}"
        );
        rig.daemon.ok(&["wait", "--timeout", "120"]);
        let there = fs::read_to_string(rig.there(edited)).unwrap();
        assert_eq!(there, format!("edited {round}"));
    }
    table.time(
        format!("start to served, {entries} files"),
        median(&served),
        Some(Duration::from_secs(1)),
    );
    table.compare(
        format!("the scan at the start, {entries} files"),
        median(&scanned),
        ("find -newercm", median(&found)),
        Goal::None,
    );
    memory(rig, "memory after that", table);
}

/// How long `find` takes to find what is younger than a file.
fn find(tree: &Path, since: &Path) -> Duration {
    let start = Instant::now();
    let output = Command::new("find")
        .arg(tree)
        .arg("-newercm")
        .arg(since)
        .output();
    let took = start.elapsed();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("000/00/00.jpg"),
        "{output:?}"
    );
    took
}

/// What the daemon says of its last scan, in the log: to a tenth of a second.
fn scan_time(log: &str) -> Duration {
    let line = log
        .lines()
        .rfind(|line| line.contains("the source is scanned"));
    let seconds = line.and_then(|line| line.split(" entries in ").nth(1)?.split(' ').next());
    Duration::from_secs_f64(seconds.unwrap().parse().unwrap())
}

fn memory(rig: &Rig, what: &str, table: &mut Table) {
    table.number(
        what.to_string(),
        crate::backlog::memory(&rig.daemon, "VmHWM"),
        "MiB",
        Goal::AtMost(128.0),
    );
}
