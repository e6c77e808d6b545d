//! A mirror that is far behind: what its backlog costs the mount and `status`, how fast it is caught up,
//! and how much memory that takes.
//!
//! The mount is measured beside a second daemon whose log is all but empty, a batch on the one, a batch on
//! the other, all on one processor: where the scheduler puts who calls and who answers decides more
//! than what they do (0.1 or 2.6 between equals was seen).

use crate::Size;
use crate::daemon::Daemon;
use crate::rig::{MIRROR, Rig, bytes, go_on, make_files, until};
use crate::table::{Goal, Table, median, percentile};
use crate::tree::assert_same;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Far enough for the pipeline to be full all the time.
const RTT: Duration = Duration::from_millis(20);
const FILE: usize = 1024;
const BATCH: usize = 100;
const BATCHES: usize = 20;
/// "Within noise": what two medians of the same thing differ by on a busy machine.
const NOISE: f64 = 1.2;

pub fn run(size: &Size, table: &mut Table) {
    let (full, empty) = (Rig::start(RTT), Rig::start(RTT));
    full.pause();
    empty.pause();
    let last = make_files(&full.daemon.source().join("pending"), size.pending, FILE);
    let pending = |rig: &Rig| rig.daemon.mirror(MIRROR)["pending_ops"].as_u64().unwrap();
    let waiting = pending(&full);
    assert!(waiting >= size.pending as u64, "{waiting} are pending only");

    let (mut behind, mut fresh) = (Vec::new(), Vec::new());
    let before = [pin(Some(&full.daemon)), pin(Some(&empty.daemon)), pin(None)];
    for batch in 0..BATCHES {
        behind.extend(create_and_close(&full.daemon.source(), batch));
        fresh.extend(create_and_close(&empty.daemon.source(), batch));
    }
    before.into_iter().for_each(Pinned::undo);
    table.compare(
        format!("create, write, close at the mount, {waiting} pending"),
        median(&behind),
        ("none pending", median(&fresh)),
        Goal::AtMost(NOISE),
    );
    drop(empty);

    let status: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            full.daemon.ok(&["status"]);
            start.elapsed()
        })
        .collect();
    let limit = Duration::from_millis(50);
    for percent in [50, 95] {
        table.time(
            format!("`status`, {waiting} pending, p{percent}"),
            percentile(&status, percent),
            Some(limit),
        );
    }
    forget_inodes(&full.daemon);
    table.number(
        format!("memory, {waiting} pending"),
        memory(&full.daemon, "VmRSS"),
        "MiB",
        Goal::AtMost(64.0),
    );
    catch_up(&full, waiting, &format!("pending/{last}"), table);
}

/// Has the kernel forget the inodes that it knows: what the daemon has of each, 190 bytes, is a row of `BENCH=mount`, and has
/// nothing to do with how many changes are pending.
fn forget_inodes(daemon: &Daemon) {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let mut last = f64::INFINITY;
    until(Duration::from_secs(1), || {
        let before = std::mem::replace(&mut last, memory(daemon, "VmRSS"));
        last >= before - 0.5
    });
}

/// How long each file of a batch took.
fn create_and_close(root: &Path, batch: usize) -> Vec<Duration> {
    go_on();
    let dir = root.join(format!("batch{batch}"));
    fs::create_dir(&dir).unwrap();
    (0..BATCH)
        .map(|n| {
            let data = bytes(n as u64, FILE);
            let path = dir.join(n.to_string());
            let start = Instant::now();
            fs::write(path, data).unwrap();
            start.elapsed()
        })
        .collect()
}

/// The threads that were put on one processor, and where they could be before.
struct Pinned(Vec<(Pid, CpuSet)>);

/// Puts a daemon's threads, or this one, on the first processor that it may use.
fn pin(daemon: Option<&Daemon>) -> Pinned {
    let threads: Vec<i32> = match daemon {
        None => vec![rustix::thread::gettid().as_raw_nonzero().get()],
        Some(daemon) => fs::read_dir(format!("/proc/{}/task", daemon.pid()))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect(),
    };
    let mut pinned = Vec::new();
    for thread in threads {
        let thread = Pid::from_raw(thread);
        let before = sched_getaffinity(thread).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu));
        let mut one = CpuSet::new();
        one.set(first.unwrap());
        sched_setaffinity(thread, &one).unwrap();
        pinned.push((thread.unwrap(), before));
    }
    Pinned(pinned)
}

impl Pinned {
    fn undo(self) {
        for (thread, before) in self.0 {
            // One that has ended meanwhile needs no more.
            let _ = sched_setaffinity(Some(thread), &before);
        }
    }
}

fn catch_up(rig: &Rig, waiting: u64, last: &str, table: &mut Table) {
    reset_peak(&rig.daemon);
    let first = rig.daemon.mirror(MIRROR)["applied_seq"].as_u64().unwrap();
    rig.resume();
    let start = Instant::now();
    let mut progress = Vec::new();
    until(Duration::from_millis(100), || {
        let done = rig.daemon.mirror(MIRROR)["applied_seq"].as_u64().unwrap() - first;
        progress.push((start.elapsed(), done));
        done >= waiting
    });
    rig.wait_for(last, Duration::from_millis(1));
    let peak = memory(&rig.daemon, "VmHWM");
    let tenth = waiting / 10;
    table.number(
        format!("replay of {waiting}, RTT {} ms", RTT.as_millis()),
        waiting as f64 / progress.last().unwrap().0.as_secs_f64(),
        "changes/s",
        Goal::None,
    );
    table.number(
        "— its first tenth".to_string(),
        rate(&progress, 1, tenth),
        "changes/s",
        Goal::None,
    );
    table.number(
        "— its last tenth".to_string(),
        rate(&progress, waiting - tenth, waiting),
        "changes/s",
        Goal::None,
    );
    // Behind the start, where the line has yet to fill.
    table.number(
        "— its last tenth against its second".to_string(),
        100.0 * rate(&progress, waiting - tenth, waiting) / rate(&progress, tenth, 2 * tenth),
        "%",
        Goal::AtLeast(80.0),
    );
    table.number(
        "— most memory meanwhile, the whole daemon".to_string(),
        peak,
        "MiB",
        Goal::AtMost(64.0),
    );
    rig.daemon.wait();
    assert_same(&rig.daemon.source(), &rig.sshd.base());
}

/// Changes a second between two marks.
fn rate(progress: &[(Duration, u64)], from: u64, to: u64) -> f64 {
    let at = |mark: u64| progress.iter().find(|p| p.1 >= mark).unwrap();
    let (a, b) = (at(from), at(to));
    (b.1 - a.1) as f64 / (b.0 - a.0).as_secs_f64().max(1e-3)
}

fn reset_peak(daemon: &Daemon) {
    fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
}

/// A field of /proc/PID/status in MiB.
pub fn memory(daemon: &Daemon, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}
