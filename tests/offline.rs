//! The tree is changed while no daemon runs: the next start finds it, and what travels is what changed.
#![allow(clippy::unwrap_used)]

use super::kills::differences;
use super::support::daemon::Daemon;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::time::Duration;

/// A tree of 4 MiB in 400 files, on a mirror behind a relay that counts; the daemon is stopped.
fn stopped() -> (Sshd, Relay, Daemon) {
    let sshd = Sshd::builder().ordinary_user().start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    let www = daemon.source();
    for dir in 0..20 {
        let dir = www.join(format!("dir-{dir}/sub"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..20u8 {
            let bytes: Vec<u8> = (0..10_000u32)
                .map(|n| ((n * 7919) >> 5) as u8 ^ file)
                .collect();
            fs::write(dir.join(format!("file-{file}")), bytes).unwrap();
        }
    }
    daemon.wait();
    daemon.stop();
    (sshd, relay, daemon)
}

/// Starts it, waits, compares; gives how many bytes went to the mirror, and back.
fn started(sshd: &Sshd, relay: &Relay, daemon: &mut Daemon) -> (u64, u64) {
    let before = (relay.bytes_up(), relay.bytes_down());
    daemon.start();
    daemon.wait();
    let after = (relay.bytes_up(), relay.bytes_down());
    let lines = differences(&daemon.source(), &sshd.base());
    assert!(lines.is_empty(), "{}\n{}", lines.join("\n"), daemon.log());
    daemon.stop();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn what_was_changed_while_no_daemon_ran_is_found_and_little_else_travels() {
    let (sshd, relay, mut daemon) = stopped();
    let www = daemon.source();
    // Nothing: a login, and some questions.
    let (up, _) = started(&sshd, &relay, &mut daemon);
    assert!(up < 40_000, "{up} bytes for nothing");

    let sub = |n: u32| www.join(format!("dir-{n}/sub"));
    fs::write(sub(1).join("new"), [1; 5000]).unwrap();
    // With the same size, and the time set back.
    let path = sub(2).join("file-3");
    let time = path.metadata().unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"edited", 100).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    fs::remove_file(sub(3).join("file-4")).unwrap();
    fs::remove_dir_all(sub(4)).unwrap();
    symlink("file-1", sub(5).join("link")).unwrap();
    fs::rename(www.join("dir-6"), www.join("moved")).unwrap();
    // One in place of another.
    fs::rename(www.join("dir-7"), www.join("old")).unwrap();
    fs::rename(www.join("dir-8"), www.join("dir-7")).unwrap();
    let (up, down) = started(&sshd, &relay, &mut daemon);
    // A directory that was moved unseen is one that is new, of 200 kB each: four have other names now.
    assert!(up < 1_200_000 && down < 400_000, "{up} up, {down} down");
}

#[test]
fn when_only_modes_were_changed_while_no_daemon_ran_no_bytes_travel() {
    let (sshd, relay, mut daemon) = stopped();
    let changed = std::process::Command::new("chmod")
        .args(["-R", "g+w"])
        .arg(daemon.source())
        .status();
    assert!(changed.unwrap().success());
    let (up, down) = started(&sshd, &relay, &mut daemon);
    assert!(up < 600_000 && down < 400_000, "{up} up, {down} down");
}

#[test]
fn a_link_that_was_made_anew_leaves_the_others_alone_that_were_the_same_one_there() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let www = daemon.source();
    symlink("some/target", www.join("b")).unwrap();
    for name in ["a", "c"] {
        fs::hard_link(www.join("b"), www.join(name)).unwrap();
    }
    daemon.wait();
    daemon.stop();
    fs::remove_file(www.join("b")).unwrap();
    symlink("some/target", www.join("b")).unwrap();
    let old = rustix::fs::Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: old,
        last_modification: old,
    };
    let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, www.join("b"), &times, no_follow).unwrap();
    daemon.start();
    daemon.wait();
    let lines = differences(&www, &sshd.base());
    assert!(lines.is_empty(), "{}\n{}", lines.join("\n"), daemon.log());
    daemon.stop();
}
