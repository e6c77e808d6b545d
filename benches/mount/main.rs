//! `make bench BENCH=mount`: the mount beside the directory itself, bindfs and mergerfs.
//!
//! What makes numbers lie, and what answers it:
//!
//! * *Where the scheduler puts who calls and who answers* decides more than what they do (112 or 928 µs for the
//!   same create was seen). So this program and all that it starts stay on the same processors, one by default.
//! * *A machine that is busy with something else.* All contestants are measured in turns, in several rounds, on
//!   one file system, and judged by the ratio of the medians.
//! * *An opponent at a disadvantage.* bindfs and mergerfs run as their packages have them; they record nothing.
//!   ProxyFS is the program as it is released, its log on the same disk, its mirrors paused.
//! * *Speed by leaving something out.* What was written is read back from the source and the log's rows are
//!   counted, outside of the measured time.
//! * *A disk that takes minutes for a round* would let nobody see the end of it. So the whole is bounded: a part
//!   stops before the round that would take it beyond its share of [`WHOLE`], and the table says how many there were.
//!
//! A goal that is missed makes the exit status 1. Nothing is left behind, also when it is interrupted.
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

mod contestants;
mod memory;
mod table;
mod work;

use contestants::{Contestant, Kind};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use table::Table;

/// How large everything is.
pub struct Size {
    /// Measurements of each kind, in turns.
    pub rounds: usize,
    /// Bytes of the file that is read.
    pub read: u64,
    /// Bytes of the files that are written.
    pub write: u64,
    /// Small files.
    pub files: usize,
    /// Entries of the tree that tar unpacks, at least.
    pub tree: usize,
    /// Files that are known at a time.
    pub known: usize,
}

impl Size {
    fn full() -> Size {
        Size {
            rounds: 5,
            read: 1 << 30,
            write: 512 << 20,
            files: 20_000,
            tree: 10_000,
            known: 200_000,
        }
    }

    fn quick() -> Size {
        Size {
            rounds: 3,
            read: 256 << 20,
            write: 64 << 20,
            files: 3000,
            tree: 2000,
            known: 50_000,
        }
    }
}

/// A group of works that one contestant does in one go.
type Part = fn(&Contestant, &Size) -> Vec<work::Measured>;

const PARTS: [(&str, Part, &[Kind], &str); 5] = [
    ("read", work::read, Kind::ALL, "one large file"),
    ("write", work::write, Kind::ALL, "a new large file"),
    ("small", work::small, Kind::ALL, "many small files"),
    ("tree", work::tree, Kind::ALL, "tar x and rm -rf of a tree"),
    (
        "mirrors",
        work::with_mirrors,
        Kind::BY_MIRRORS,
        "small files and a tree with no, one and ten mirrors",
    ),
];

/// How long all parts together take, about. Each has at least one round, however long that takes.
const WHOLE: Duration = Duration::from_secs(9 * 60);

const USAGE: &str = "make bench BENCH=\"mount [--quick] [--rounds N] [--cpus N] [PART...]\"\n\nParts (all, if none is named):";

fn usage() {
    println!("{USAGE}");
    for (name, _, _, what) in PARTS {
        println!("  {name:10}  {what}");
    }
    println!("  memory      what the daemon needs for each inode that the kernel knows");
}

/// The number behind an option.
fn number(argument: Option<String>) -> usize {
    let number = argument.as_ref().and_then(|a| a.parse().ok());
    number.unwrap_or_else(|| {
        eprintln!("a number is missing");
        usage();
        std::process::exit(2);
    })
}

fn main() {
    let mut size = Size::full();
    let (mut wanted, mut rounds, mut cpus) = (Vec::new(), None, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo's
            "--quick" => size = Size::quick(),
            "--rounds" => rounds = Some(number(arguments.next())),
            "--cpus" => cpus = number(arguments.next()),
            "--help" => return usage(),
            part if part == "memory" || PARTS.iter().any(|p| p.0 == part) => {
                wanted.push(part.to_string());
            }
            other => {
                eprintln!("there is no part or option {other}");
                usage();
                std::process::exit(2);
            }
        }
    }
    size.rounds = rounds.map_or(size.rounds, |n| n.max(1));
    if let Some(missing) = contestants::missing() {
        eprintln!("{missing}");
        std::process::exit(2);
    }
    stop_on_signals();
    pin(cpus.max(1));
    let started = Instant::now();
    let mut table = Table::default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mut left = PARTS.iter().filter(|p| is_wanted(p.0)).count() as u32;
    let memory = is_wanted("memory");
    let mut done = Vec::new();
    for (name, part, kinds, _) in PARTS {
        if is_wanted(name) {
            let share = WHOLE.saturating_sub(started.elapsed()) / (left + u32::from(memory));
            left -= 1;
            eprintln!("{name} ...");
            let rounds = run(part, kinds, &size, share, &mut table);
            eprintln!(
                "{name}: {rounds} rounds, {:.0} s",
                started.elapsed().as_secs_f64()
            );
            done.push(rounds.to_string());
        }
    }
    let memory = memory.then(|| memory::run(size.known));
    println!(
        "\nLinux {}, on {cpus} processor(s), {} rounds of each part; the directory's time, the others' as a multiple of it\n\n{table}",
        std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim(),
        done.join("/"),
    );
    let mut missed = table.missed();
    if let Some(memory) = memory {
        println!("{memory}\n");
        missed.extend(memory.missed());
    }
    for missed in &missed {
        println!("missed: {missed}");
    }
    eprintln!("{:.0} s in all", started.elapsed().as_secs_f64());
    std::process::exit(if missed.is_empty() { 0 } else { 1 });
}

/// All contestants in turns; who begins moves on, so that nobody always comes after the same one. Returns how many
/// rounds there were: as many as were asked for, or as go into `share`.
fn run(part: Part, kinds: &[Kind], size: &Size, share: Duration, table: &mut Table) -> usize {
    let started = Instant::now();
    let contestants: Vec<Contestant> = kinds.iter().map(|kind| Contestant::start(*kind)).collect();
    let mut done = vec![Vec::new(); contestants.len()];
    let mut rounds = 0;
    while rounds < size.rounds {
        for turn in 0..contestants.len() {
            let who = (turn + rounds) % contestants.len();
            done[who].push(part(&contestants[who], size));
        }
        rounds += 1;
        let each = started.elapsed() / rounds as u32;
        if started.elapsed() + each > share {
            break;
        }
    }
    for (contestant, measured) in contestants.iter().zip(done) {
        table.add(contestant.kind, measured);
    }
    rounds
}

/// This program, and all that it starts, on so many of the processors that it may use, the last ones.
fn pin(cpus: usize) {
    let may = sched_getaffinity(None).unwrap();
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU)
        .rev()
        .filter(|cpu| may.is_set(*cpu))
        .take(cpus)
        .for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set).unwrap();
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Lets SIGINT and SIGTERM end the run by a panic, so that everything is taken down.
fn stop_on_signals() {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).unwrap();
    }
    std::thread::spawn(move || {
        while !flag.load(Ordering::Relaxed) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        STOP.store(true, Ordering::Relaxed);
    });
}

/// # Panics
/// The run was interrupted.
pub fn go_on() {
    assert!(!STOP.load(Ordering::Relaxed), "interrupted");
}
