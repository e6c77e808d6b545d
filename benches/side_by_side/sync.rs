//! A whole tree: a new mirror is filled, beside `rsync -a`. It is measured from the start of the daemon until its mirror has
//! everything, rsync from its start to its end, through the line with its delay.

use crate::Size;
use crate::opponents;
use crate::rig::{MIRROR, Rig, go_on, make_files};
use crate::table::{Goal, Table, median};
use crate::tree::assert_same;
use std::time::{Duration, Instant};

const RTT: Duration = Duration::from_millis(100);
const FILE: usize = 4096;

pub fn run(size: &Size, table: &mut Table) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds {
        go_on();
        let mut rig = Rig::new(RTT);
        make_files(&rig.daemon.source(), size.new_files, FILE);
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
