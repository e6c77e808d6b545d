//! One large file: on lines of any length, and on one of a given rate; and what it costs in processor time.
//!
//! Ours is measured from `resume`, connecting included, as the others' time includes it. But for the given rate: there
//! it is the time from when a line that stood still moves again, since it is the line that is judged.

use crate::Size;
use crate::opponents::{self, children_cpu, cpu_of};
use crate::rig::{Rig, bytes};
use crate::table::{Goal, Table, median};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// 100 Mbit/s in bytes a second.
const RATE: u64 = 12_500_000;

pub fn run(size: &Size, table: &mut Table) {
    let plain = tempfile::tempdir().unwrap();
    let file = plain.path().join("film.mp4");
    fs::write(&file, bytes(1, size.big_file)).unwrap();
    for rtt in &size.rtts {
        at(*rtt, &file, size, table);
    }
    at_a_rate(&file, size, table);
}

fn what(size: &Size, rtt: Duration) -> String {
    let (mib, rtt) = (size.big_file >> 20, rtt.as_millis());
    format!("one file of {mib} MiB, RTT {rtt} ms")
}

fn at(rtt: Duration, file: &Path, size: &Size, table: &mut Table) {
    let rig = Rig::start(rtt);
    let (mut ours, mut rsync, mut scp) = (Vec::new(), Vec::new(), Vec::new());
    // Processor time here: ours, rsync's with its ssh, scp's with its ssh.
    let mut cpu = [Duration::ZERO; 3];
    let rounds = size.rounds.min(3);
    for round in 0..rounds {
        let name = format!("film{round}.mp4");
        rig.pause();
        fs::copy(file, rig.daemon.source().join(&name)).unwrap();
        let used = cpu_of(rig.daemon.pid());
        let start = Instant::now();
        rig.resume();
        rig.wait_for(&name, Duration::from_millis(5));
        ours.push(start.elapsed());
        cpu[0] += cpu_of(rig.daemon.pid()) - used;
        assert!(fs::read(rig.there(&name)).unwrap() == fs::read(file).unwrap());
        let to = |how: &str| rig.sshd.file(&format!("{how}{round}"));
        let used = children_cpu();
        rsync.push(opponents::rsync(&rig, file, &to("rsync")));
        let between = children_cpu();
        scp.push(opponents::scp(&rig, file, &to("scp")));
        cpu[1] += between - used;
        cpu[2] += children_cpu() - between;
        for done in [to("rsync"), to("scp")] {
            fs::remove_file(done).unwrap();
        }
        fs::remove_file(rig.daemon.source().join(&name)).unwrap();
        rig.daemon.wait();
        eprintln!(
            "    ProxyFS {:.2} s, rsync {:.2} s, scp {:.2} s",
            ours[round].as_secs_f64(),
            rsync[round].as_secs_f64(),
            scp[round].as_secs_f64()
        );
    }
    let goal = match rtt.as_millis() {
        100 => Goal::AtMost(0.35),
        0 => Goal::AtMost(1.0),
        _ => Goal::None,
    };
    let ours = median(&ours);
    table.compare(what(size, rtt), ours, ("rsync -a", median(&rsync)), goal);
    let same = || "— the same".to_string();
    table.compare(same(), ours, ("scp", median(&scp)), Goal::None);
    let dir = file.parent().unwrap();
    let rclone = opponents::rclone(&rig, dir, &rig.sshd.file("rclone"));
    table.beside(same(), ours, ("rclone --transfers 32", rclone));
    if rtt.is_zero() {
        let gib = (rounds * size.big_file) as f64 / f64::from(1 << 30);
        for (name, theirs) in [("rsync -a", cpu[1]), ("scp", cpu[2])] {
            let (ours, theirs) = (cpu[0].div_f64(gib), theirs.div_f64(gib));
            let what = "— processor time a GiB, at the sending end".to_string();
            table.compare(what, ours, (name, theirs), Goal::None);
        }
    }
}

fn at_a_rate(file: &Path, size: &Size, table: &mut Table) {
    let rtt = Duration::from_millis(20);
    let rig = Rig::start(rtt);
    rig.relay.hold();
    fs::copy(file, rig.daemon.source().join("film.mp4")).unwrap();
    rig.relay.set_rate(RATE);
    let start = Instant::now();
    rig.relay.resume();
    rig.wait_for("film.mp4", Duration::from_millis(5));
    let took = start.elapsed();
    let line = Duration::from_secs_f64(size.big_file as f64 / RATE as f64);
    let what = format!("{}, 100 Mbit/s", what(size, rtt));
    table.share(what, took, ("the line", line), Goal::AtLeast(0.95));
}
