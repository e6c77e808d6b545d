//! Many new small files: a mirror that comes back gets what was made meanwhile, `rsync -a` the same tree.
//!
//! Ours is measured until the last file is visible, and all before it are then: they are published in order,
//! each complete with its mode and time. Once from `resume`, connecting included, as rsync's time includes it. And
//! once from the moment when a line that stood still moves again, on the connection that a daemon has. There the
//! first OPENs wait in the line already, which is about a round trip in our favour: it is added to our time. rsync is
//! measured from its start to its end. rclone and sftp are run once, and ended when they take more than a minute.

use crate::opponents;
use crate::rig::{Rig, make_files};
use crate::table::{Goal, Table, median};
use crate::tree::assert_same;
use crate::{Size, rig};
use std::time::{Duration, Instant};

const FILE: usize = 4096;
const LOOK: Duration = Duration::from_millis(1);

pub fn run(size: &Size, table: &mut Table) {
    for rtt in &size.rtts {
        at(*rtt, size, table);
    }
}

fn at(rtt: Duration, size: &Size, table: &mut Table) {
    let rig = Rig::start(rtt);
    let plain = tempfile::tempdir().unwrap();
    make_files(plain.path(), size.new_files, FILE);
    let (mut ours, mut theirs, mut live) = (Vec::new(), Vec::new(), Vec::new());
    let (mut our_connect, mut their_connect) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        rig.pause();
        our_connect.push(connect(&rig));
        rig.pause();
        let dir = format!("round{round}");
        let last = make_files(&rig.daemon.source().join(&dir), size.new_files, FILE);
        let start = Instant::now();
        rig.resume();
        rig.wait_for(&format!("{dir}/{last}"), LOOK);
        ours.push(start.elapsed());
        rig.daemon.wait();
        assert_same(&rig.daemon.source(), &rig.sshd.base());

        // The same on a connection that is there already, as a daemon has it: the line stands still while
        // the files are made.
        let dir = format!("live{round}");
        rig.relay.hold();
        let last = make_files(&rig.daemon.source().join(&dir), size.new_files, FILE);
        let start = Instant::now();
        rig.relay.resume();
        rig.wait_for(&format!("{dir}/{last}"), LOOK);
        live.push(start.elapsed() + rtt);
        rig.daemon.wait();
        assert_same(&rig.daemon.source(), &rig.sshd.base());

        their_connect.push(opponents::connect(&rig));
        let to = rig.sshd.file(&format!("rsync{round}"));
        let slash = plain.path().join(""); // its contents
        theirs.push(opponents::rsync(&rig, &slash, &to));
        assert_same(plain.path(), &to);
        eprintln!(
            "    ProxyFS connected {:.3} s, from resume {:.3} s (connecting {:.3} s), rsync {:.3} s (connecting {:.3} s)",
            live[round].as_secs_f64(),
            ours[round].as_secs_f64(),
            our_connect[round].as_secs_f64(),
            theirs[round].as_secs_f64(),
            their_connect[round].as_secs_f64(),
        );
    }
    let goal = match rtt.as_millis() {
        100 => Goal::AtMost(0.8),
        _ => Goal::None,
    };
    let what = format!(
        "{} new files of 4 KiB, RTT {} ms",
        size.new_files,
        rtt.as_millis()
    );
    let rsync = "rsync -a";
    table.compare(what, median(&ours), (rsync, median(&theirs)), goal);
    let goal = match rtt.as_millis() {
        100 => Goal::AtMost(0.5),
        _ => Goal::AtMost(0.7),
    };
    let what = "— a daemon that is connected already".to_string();
    table.compare(what, median(&live), (rsync, median(&theirs)), goal);
    let to = |name: &str| rig.sshd.file(name);
    let rclone = opponents::rclone(&rig, plain.path(), &to("rclone"));
    let sftp = opponents::sftp(&rig, plain.path(), &to("sftp"));
    for (name, time) in [("rclone --transfers 32", rclone), ("sftp -b", sftp)] {
        table.beside("— the same".to_string(), median(&live), (name, time));
    }
    let less = |all: &[Duration], connect: &[Duration]| median(all).saturating_sub(median(connect));
    table.compare(
        "— both without connecting".to_string(),
        less(&ours, &our_connect),
        (rsync, less(&theirs, &their_connect)),
        Goal::None,
    );
}

/// From `resume` until a session is up, with nothing to do: without asking so often that it disturbs.
fn connect(rig: &Rig) -> Duration {
    let line = format!("mirror {}: connected to", rig::MIRROR);
    let count = || rig.daemon.log().matches(&line).count();
    let before = count();
    let start = Instant::now();
    rig.resume();
    rig::until(LOOK, || count() > before);
    start.elapsed()
}
