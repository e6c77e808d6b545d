//! One file after another over a live connection: from the end of close() until it is visible on the
//! mirror, which it is only when it is whole. And the move of a directory with many files in it.
//!
//! lsyncd is measured the same way, over the same line to the same server: what it mirrors is a plain directory.

use crate::Size;
use crate::opponents::{self, Lsyncd};
use crate::rig::{Rig, bytes, make_files, until};
use crate::table::{Goal, Table, percentile};
use crate::tree::assert_same;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_micros(200);

/// lsyncd takes seconds for each: so many do.
const OF_LSYNCD: usize = 10;

pub fn run(size: &Size, table: &mut Table) {
    for rtt in [0, 100].map(Duration::from_millis) {
        let rig = Rig::start(rtt);
        let (here, there) = (rig.daemon.source(), rig.sshd.base());
        let times: Vec<Duration> = (0..size.single_files)
            .map(|n| one(&here, &there, n, || {}))
            .collect();
        let theirs = of_lsyncd(&rig);
        let goals = [
            (50, 3 * rtt + Duration::from_millis(20)),
            (99, Duration::ZERO),
        ];
        for (percent, goal) in goals {
            let what = format!(
                "close() to visible there, RTT {} ms, p{percent} of {}",
                rtt.as_millis(),
                times.len()
            );
            let ours = percentile(&times, percent);
            table.time(what, ours, Some(goal).filter(|g| !g.is_zero()));
            let theirs = ("lsyncd, delay = 1", percentile(&theirs, percent));
            table.compare("— beside".to_string(), ours, theirs, Goal::None);
        }
        moved(&rig, size, table);
    }
}

fn one(here: &Path, there: &Path, n: usize, mut still: impl FnMut()) -> Duration {
    let name = format!("{n}.jpg");
    let mut file = File::create(here.join(&name)).unwrap();
    file.write_all(&bytes(n as u64, 4096)).unwrap();
    drop(file);
    let start = Instant::now();
    let path = there.join(&name);
    until(LOOK, || {
        still();
        fs::metadata(&path).is_ok_and(|m| m.len() == 4096)
    });
    start.elapsed()
}

fn of_lsyncd(rig: &Rig) -> Vec<Duration> {
    let here = tempfile::tempdir().unwrap();
    let there = rig.sshd.file("lsyncd");
    fs::create_dir(&there).unwrap();
    let mut lsyncd = Lsyncd::start(rig, here.path(), &there);
    let mut one = |n| one(here.path(), &there, n, || lsyncd.must_run());
    one(OF_LSYNCD); // its start is not measured
    (0..OF_LSYNCD).map(one).collect()
}

/// A directory of many files gets another name.
fn moved(rig: &Rig, size: &Size, table: &mut Table) {
    let here = rig.daemon.source();
    make_files(&here.join("old"), size.moved_files, 100);
    rig.daemon.wait();
    let before = rig.relay.bytes_up();
    let start = Instant::now();
    fs::rename(here.join("old"), here.join("new")).unwrap();
    rig.wait_for("new", LOOK);
    let ours = start.elapsed();
    rig.daemon.wait();
    let sent = rig.relay.bytes_up() - before;
    assert_same(&here, &rig.sshd.base());

    let plain = tempfile::tempdir().unwrap();
    make_files(&plain.path().join("old"), size.moved_files, 100);
    let to = rig.sshd.file("moved");
    opponents::rsync(rig, &plain.path().join(""), &to);
    fs::rename(plain.path().join("old"), plain.path().join("new")).unwrap();
    let before = rig.relay.bytes_up();
    let theirs = opponents::rsync_delete(rig, &plain.path().join(""), &to);
    let their_bytes = rig.relay.bytes_up() - before;
    assert_same(plain.path(), &to);
    let what = format!(
        "a directory of {} files renamed, RTT {} ms",
        size.moved_files,
        rig.rtt.as_millis()
    );
    let rsync = ("rsync -a --delete", theirs);
    table.compare(what, ours, rsync, Goal::AtMost(1.0));
    // A few requests with what encryption adds; a name of each file would be ten times as much.
    let most = Goal::AtMost(2048.0);
    table.number("— bytes sent".to_string(), sent as f64, "bytes", most);
    let what = "— bytes sent by rsync --delete".to_string();
    table.number(what, their_bytes as f64, "bytes", Goal::None);
}
