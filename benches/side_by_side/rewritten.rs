//! What a mirror that was away has missed: files that were replaced by a rename time and again, as programs do
//! that write carefully, and a little of a large file.
//!
//! rsync of the result is at an advantage in the first: it knows nothing of the many versions in between.

use crate::opponents;
use crate::rig::{Rig, bytes, go_on, until};
use crate::table::{Goal, Table, median};
use crate::tree::assert_same;
use crate::{Size, rig};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Files that are replaced.
const FILES: usize = 100;
/// Their length in bytes.
const FILE: usize = 20_000;
const LOOK: Duration = Duration::from_millis(2);

pub fn run(size: &Size, table: &mut Table) {
    replaced(size, table);
    a_little(size, table);
}

fn replaced(size: &Size, table: &mut Table) {
    let rtt = Duration::from_millis(20);
    let rig = Rig::start(rtt);
    let plain = tempfile::tempdir().unwrap();
    let (mut ours, mut theirs, mut most) = (Vec::new(), Vec::new(), 0.0_f64);
    for round in 0..size.rounds {
        let name = |n: usize| format!("{n:03}.json");
        rig.pause();
        for version in 0..size.versions {
            go_on();
            for n in 0..FILES {
                let here = rig.daemon.source();
                let temporary = here.join(format!(".{}.tmp", name(n)));
                let seed = (round * size.versions + version) * FILES + n;
                fs::write(&temporary, bytes(seed as u64, FILE)).unwrap();
                fs::rename(&temporary, here.join(name(n))).unwrap();
            }
        }
        let before = rig.relay.bytes_up();
        let start = Instant::now();
        rig.resume();
        let last = rig.daemon.source().join(name(FILES - 1));
        let wanted = fs::read(&last).unwrap();
        let there = rig.there(&name(FILES - 1));
        until(LOOK, || fs::read(&there).is_ok_and(|is| is == wanted));
        ours.push(start.elapsed());
        rig.daemon.wait();
        let changes = (2 * FILES * size.versions) as f64;
        let data = (FILES * FILE) as f64;
        let sent = (rig.relay.bytes_up() - before) as f64;
        most = most.max((sent - 1.2 * data) / changes);
        assert_same(&rig.daemon.source(), &rig.sshd.base());
        for n in 0..FILES {
            fs::copy(
                rig.daemon.source().join(name(n)),
                plain.path().join(name(n)),
            )
            .unwrap();
        }
        let to = rig.sshd.file("rsync");
        theirs.push(opponents::rsync(&rig, &plain.path().join(""), &to));
        assert_same(plain.path(), &to);
    }
    let what = format!(
        "{FILES} files replaced {} times while the mirror is away, RTT {} ms",
        size.versions,
        rtt.as_millis()
    );
    let rsync = ("rsync -a of the result", median(&theirs));
    table.compare(what, median(&ours), rsync, Goal::AtMost(2.0));
    let what = "— bytes a change beyond 1.2 times the last versions".to_string();
    table.number(what, most.max(0.0), "bytes", Goal::AtMost(300.0));
}

fn a_little(size: &Size, table: &mut Table) {
    let rtt = Duration::from_millis(100);
    let rig = Rig::start(rtt);
    let plain = tempfile::tempdir().unwrap();
    let file = plain.path().join("disk.img");
    fs::write(&file, bytes(7, size.changed_file)).unwrap();
    // A copy that is there already: it need not travel over the long line.
    rig.pause();
    let here = rig.daemon.source().join("disk.img");
    fs::copy(&file, &here).unwrap();
    rig.resume();
    rig.daemon.wait();
    let to = rig.sshd.file("rsync.img");
    fs::copy(&file, &to).unwrap();
    let (mut ours, mut theirs, mut sent, mut their_sent) = (Vec::new(), Vec::new(), 0, 0);
    for round in 0..size.rounds.max(3) {
        let part = bytes(100 + round as u64, 4096);
        let at = (round as u64 + 1) * (size.changed_file as u64 / 10);
        let before = rig.relay.bytes_up();
        let image = OpenOptions::new().write(true).open(&here).unwrap();
        image.write_all_at(&part, at).unwrap();
        let start = Instant::now();
        drop(image);
        let there = fs::File::open(rig.there("disk.img")).unwrap();
        let mut is = vec![0; part.len()];
        until(LOOK / 2, || {
            there.read_exact_at(&mut is, at).is_ok() && is == part
        });
        ours.push(start.elapsed());
        rig.daemon.wait();
        sent = sent.max(rig.relay.bytes_up() - before);
        let image = OpenOptions::new().write(true).open(&file).unwrap();
        image.write_all_at(&part, at).unwrap();
        let before = rig.relay.bytes_up();
        theirs.push(opponents::rsync_in_place(&rig, &file, &to));
        their_sent = their_sent.max(rig.relay.bytes_up() - before);
    }
    assert!(fs::read(rig.there("disk.img")).unwrap() == fs::read(&here).unwrap());
    let what = format!(
        "4 KiB changed in {} MiB: closed until visible, RTT {} ms",
        size.changed_file >> 20,
        rtt.as_millis()
    );
    table.time(what, median(&ours), Some(4 * rtt));
    let rsync = ("rsync --inplace", median(&theirs));
    table.compare("— beside".to_string(), median(&ours), rsync, Goal::None);
    let most = Goal::AtMost(16.0 * 1024.0);
    table.number("— bytes sent".to_string(), sent as f64, "bytes", most);
    let what = "— bytes sent by rsync --inplace".to_string();
    table.number(what, their_sent as f64, "bytes", Goal::None);
    rig::go_on();
}
