//! One large file, for information: how it gets on a long line.

use crate::Size;
use crate::opponents;
use crate::rig::{Rig, bytes};
use crate::table::{Goal, Table, median};
use std::fs;
use std::time::{Duration, Instant};

pub fn run(size: &Size, table: &mut Table) {
    let rtt = Duration::from_millis(100);
    let rig = Rig::start(rtt);
    let plain = tempfile::tempdir().unwrap();
    let file = plain.path().join("film.mp4");
    fs::write(&file, bytes(1, size.big_file)).unwrap();
    let (mut ours, mut rsync, mut scp) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds.min(2) {
        let name = format!("film{round}.mp4");
        rig.pause();
        fs::copy(&file, rig.daemon.source().join(&name)).unwrap();
        let start = Instant::now();
        rig.resume();
        rig.wait_for(&name, Duration::from_millis(5));
        ours.push(start.elapsed());
        assert!(fs::read(rig.there(&name)).unwrap() == fs::read(&file).unwrap());
        let to = |how: &str| rig.sshd.file(&format!("{how}{round}"));
        rsync.push(opponents::rsync(&rig, &file, &to("rsync")));
        scp.push(opponents::scp(&rig, &file, &to("scp")));
    }
    for (name, theirs) in [("rsync -a", rsync), ("scp", scp)] {
        let what = format!(
            "one file of {} MiB, RTT {} ms",
            size.big_file >> 20,
            rtt.as_millis()
        );
        table.compare(what, median(&ours), (name, median(&theirs)), Goal::None);
    }
}
