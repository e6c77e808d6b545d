//! `make bench`: ProxyFS beside its alternatives, on real parts: the program as it is released, a kernel
//! mount, OpenSSH, and a line with a given delay (the relay of the tests, on loopback).
//!
//! What makes numbers lie, and what answers it:
//!
//! * *A machine that is busy with something else.* What is compared is measured in turns in one run, and
//!   judged by the ratio of the medians.
//! * *An opponent at a disadvantage.* rsync reads a plain directory that is in the page cache, not the mount;
//!   it goes through the same relay to the same server, with the same key.
//! * *Speed by leaving something out.* What arrived is compared with what was sent, to the byte, outside of
//!   the measured time.
//!
//! A goal that is missed makes the exit status 1. As it is, it takes about a quarter of an hour, unattended;
//! `BENCH="--full"`, with a million of changes and files, the better part of an hour. `BENCH="--quick"` for a small try,
//! `BENCH="latency"` for one part: see `--help`. Nothing is left behind, also when it is interrupted.
#![allow(clippy::unwrap_used)]

// The tests' parts; not all of what they can do is needed here.
#[allow(dead_code)]
#[path = "../../tests/support/daemon.rs"]
mod daemon;
#[allow(dead_code)]
#[path = "../../tests/support/relay.rs"]
mod relay;
#[allow(dead_code)]
#[path = "../../tests/support/sshd.rs"]
mod sshd;
#[allow(dead_code)]
#[path = "../../tests/support/tree.rs"]
mod tree;

mod backlog;
mod big_file;
mod latency;
mod million;
mod new_files;
mod opponents;
mod rewritten;
mod rig;
mod sync;
mod table;

use std::time::{Duration, Instant};
use table::Table;

/// How large everything is.
pub struct Size {
    /// Measurements of each kind, in turns.
    pub rounds: usize,
    /// Delays of the line.
    pub rtts: Vec<Duration>,
    /// New files in a round.
    pub new_files: usize,
    /// Files that are waited for one by one.
    pub single_files: usize,
    /// Files in a directory that is moved.
    pub moved_files: usize,
    /// Changes that wait for a mirror.
    pub pending: usize,
    /// Length of the large file in bytes.
    pub big_file: usize,
    /// How often each file is replaced while a mirror is away.
    pub versions: usize,
    /// Length of the file of which a little changes, in bytes.
    pub changed_file: usize,
    /// Files of a large tree.
    pub entries: usize,
}

impl Size {
    fn full() -> Size {
        Size {
            rounds: 5,
            rtts: [100, 20, 0].map(Duration::from_millis).to_vec(),
            new_files: 2000,
            single_files: 200,
            moved_files: 10_000,
            pending: 1_000_000,
            big_file: 256 << 20,
            versions: 200,
            changed_file: 1 << 30,
            entries: 1_000_000,
        }
    }

    /// The same with fewer rounds and shorter backlogs.
    fn usual() -> Size {
        Size {
            rounds: 3,
            pending: 200_000,
            entries: 200_000,
            ..Size::full()
        }
    }

    fn quick() -> Size {
        Size {
            rounds: 1,
            rtts: [100, 0].map(Duration::from_millis).to_vec(),
            new_files: 400,
            single_files: 20,
            moved_files: 500,
            pending: 5000,
            big_file: 16 << 20,
            versions: 20,
            changed_file: 64 << 20,
            entries: 20_000,
        }
    }
}

type Part = fn(&Size, &mut Table);

const PARTS: [(&str, Part, &str); 7] = [
    ("new-files", new_files::run, "many new files, beside rsync"),
    (
        "latency",
        latency::run,
        "from close() to visible on the mirror, beside lsyncd; a directory moved",
    ),
    (
        "backlog",
        backlog::run,
        "a mirror that is far behind: mount, status, memory",
    ),
    (
        "big-file",
        big_file::run,
        "one file, beside rsync, scp and rclone",
    ),
    (
        "rewritten",
        rewritten::run,
        "many versions of a file, and a little of a large one",
    ),
    ("sync", sync::run, "a new mirror, beside rsync"),
    (
        "million",
        million::run,
        "a large tree: a start and its scan, beside find; a sync of what is the same, beside rsync --dry-run",
    ),
];

const USAGE: &str = "make bench BENCH=\"[--quick|--full] [--rounds N] [--rtt MS] [--pending N] [--entries N] [PART...]\"\n\n--rtt is of new-files and big-file, --pending of backlog, --entries of million. Parts (all, if none is named):";

fn usage() {
    println!("{USAGE}");
    for (name, _, what) in PARTS {
        println!("  {name:10}  {what}");
    }
}

/// The number behind an option.
fn number(argument: Option<String>) -> Option<u64> {
    let number = argument.as_ref().and_then(|a| a.parse().ok());
    if number.is_none() {
        eprintln!("a number is missing");
        usage();
        std::process::exit(2);
    }
    number
}

fn main() {
    let mut size = Size::usual();
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut rtt, mut pending, mut entries) = (None, None, None, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's
            "--quick" => size = Size::quick(),
            "--full" => size = Size::full(),
            "--rounds" => rounds = number(arguments.next()),
            "--rtt" => rtt = number(arguments.next()),
            "--pending" => pending = number(arguments.next()),
            "--entries" => entries = number(arguments.next()),
            "--help" => return usage(),
            part if PARTS.iter().any(|p| p.0 == part) => wanted.push(part.to_string()),
            other => {
                eprintln!("there is no part or option {other}");
                usage();
                std::process::exit(2);
            }
        }
    }
    size.rounds = rounds.map_or(size.rounds, |n| n.max(1) as usize);
    size.pending = pending.map_or(size.pending, |n| n.max(1000) as usize);
    size.entries = entries.map_or(size.entries, |n| n.max(100) as usize);
    if let Some(rtt) = rtt {
        size.rtts = vec![Duration::from_millis(rtt)];
    }
    rig::stop_on_signals();
    let started = Instant::now();
    let mut table = Table::new();
    for (name, part, _) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            eprintln!("{name} ...");
            let began = Instant::now();
            part(&size, &mut table);
            eprintln!("    {name}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    println!("\n{}\n\n{table}", rig::machine());
    eprintln!("{:.0} s in all", started.elapsed().as_secs_f64());
    std::process::exit(if table.all_reached() { 0 } else { 1 });
}
