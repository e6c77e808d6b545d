//! What changes while the log does not see it reaches the mirrors all the same: edits while no daemon runs, what a
//! killed daemon did not come to record, what goes on by descriptors that outlive it.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn with_a_tree(sshd: &Sshd, port: u16) -> (Daemon, PathBuf, PathBuf) {
    let mut daemon = Daemon::with("exclude = *.tmp");
    add(&mut daemon, "m", sshd, &[("port", &port.to_string())]);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(sshd, "m"));
    for dir in ["dir/sub/deep", "other/one", "other/two", "still/a/b"] {
        fs::create_dir_all(www.join(dir)).unwrap();
    }
    for i in 0..40 {
        fs::write(www.join(format!("still/a/b/{i}")), format!("still {i}")).unwrap();
        fs::write(www.join(format!("other/one/{i}")), format!("one {i}")).unwrap();
    }
    for file in ["dir/a", "dir/b", "dir/sub/c", "dir/sub/deep/d", "e", "f"] {
        fs::write(www.join(file), format!("first {file}")).unwrap();
    }
    fs::write(www.join("big"), vec![b'x'; 3 << 20]).unwrap();
    daemon.wait();
    (daemon, www, mirror)
}

fn mtime(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_mtime(path: &Path, to: SystemTime) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(to)
        .unwrap();
}

fn scanned(daemon: &Daemon) -> serde_json::Value {
    wait_until("the scan ends", || {
        daemon.status()["scan"]["running"] == false
    });
    daemon.status()["scan"].clone()
}

#[test]
fn what_is_edited_while_the_daemon_is_stopped_arrives_and_nothing_else_travels() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let (mut daemon, www, mirror) = with_a_tree(&sshd, relay.port());
    daemon.stop();

    // The same size, and the time as it was.
    let before = mtime(&www.join("dir/a"));
    fs::write(www.join("dir/a"), "FIRST dir/a").unwrap();
    set_mtime(&www.join("dir/a"), before);
    fs::write(www.join("dir/sub/deep/d"), "longer than before").unwrap();
    fs::remove_file(www.join("dir/b")).unwrap();
    fs::remove_dir_all(www.join("other/two")).unwrap();
    fs::rename(www.join("e"), www.join("f")).unwrap();
    fs::rename(www.join("other/one"), www.join("moved")).unwrap();
    fs::create_dir_all(www.join("new/below")).unwrap();
    fs::write(www.join("new/below/file"), "new").unwrap();
    std::os::unix::fs::symlink("below/file", www.join("new/link")).unwrap();
    fs::write(www.join("new/mine.tmp"), "stays here").unwrap();
    let sent = relay.bytes_up();
    daemon.start();
    let seen = scanned(&daemon);
    assert!(seen["entries"].as_u64().unwrap() >= 90, "{seen}");
    everything_arrives_but_what_is_excluded(&daemon, &www, &mirror);
    // The names of one directory that was moved, and a handful of files: far from the 3 MiB that did not change.
    let sent = relay.bytes_up() - sent;
    assert!(sent < 300_000, "{sent} bytes were sent");
    daemon.stop();

    // And when nothing was edited, nothing is to be compared.
    daemon.start();
    let seen = scanned(&daemon);
    assert!(seen["repairs"].as_u64().unwrap() <= 1, "{seen}");
    daemon.stop();
}

#[track_caller]
fn everything_arrives_but_what_is_excluded(daemon: &Daemon, www: &Path, mirror: &Path) {
    daemon.wait();
    let mine = www.join("new/mine.tmp");
    assert!(mine.exists() && !mirror.join("new/mine.tmp").exists());
    let differences = super::support::tree::differences(www, mirror, false);
    let others: Vec<_> = differences
        .iter()
        .filter(|line| !line.contains("new/mine.tmp"))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn a_directory_put_in_place_of_another_is_compared_to_its_bottom() {
    let sshd = Sshd::start();
    let (mut daemon, www, _) = with_a_tree(&sshd, sshd.port());
    // What is deep in it is older than the last checkpoint, and the names are the same.
    fs::create_dir_all(www.join("site.new/a/b")).unwrap();
    fs::create_dir_all(www.join("site/a/b")).unwrap();
    fs::write(www.join("site/a/b/page"), "the old one").unwrap();
    fs::write(www.join("site.new/a/b/page"), "the very new one").unwrap();
    daemon.wait();
    daemon.stop();
    fs::rename(www.join("site"), www.join("site.old")).unwrap();
    fs::rename(www.join("site.new"), www.join("site")).unwrap();
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_was_edited_while_stopped_is_not_hidden_by_what_the_mount_does_before_the_walk() {
    let sshd = Sshd::start();
    let (mut daemon, www, _) = with_a_tree(&sshd, sshd.port());
    // Enough for the walk to take a while.
    for dir in 0..60 {
        let dir = www.join(format!("many/{dir}"));
        fs::create_dir_all(&dir).unwrap();
        (0..100).for_each(|i| fs::write(dir.join(i.to_string()), "m").unwrap());
    }
    daemon.wait();
    for round in 0..3 {
        daemon.stop();
        let edited: Vec<_> = (0..60)
            .map(|dir| www.join(format!("many/{dir}/{round}")))
            .collect();
        edited
            .iter()
            .for_each(|file| fs::write(file, format!("edited {round}")).unwrap());
        daemon.start();
        // At once: files and directories move from where the walk has not been to where it has, or the other
        // way round, and get other attributes.
        for (i, file) in edited.iter().enumerate() {
            match i % 4 {
                0 => fs::rename(file, www.join(format!("dir/from-{round}-{i}"))).unwrap(),
                1 => {
                    let to = www.join(format!("moved-{round}-{i}"));
                    fs::rename(file.parent().unwrap(), &to).unwrap();
                    fs::rename(to, file.parent().unwrap()).unwrap();
                }
                2 => set_mtime(
                    file,
                    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
                ),
                _ => fs::rename(
                    file.parent().unwrap(),
                    www.join(format!("dir/sub/dir-{round}-{i}")),
                )
                .and_then(|()| fs::create_dir_all(file.parent().unwrap()))
                .and_then(|()| fs::write(file, "made anew"))
                .unwrap(),
            }
        }
        everything_arrives(&daemon, &sshd, &["m"]);
    }
    daemon.stop();
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_written_and_not_closed() {
    let sshd = Sshd::start();
    let (mut daemon, www, _) = with_a_tree(&sshd, sshd.port());
    let mut open = fs::File::options()
        .append(true)
        .open(www.join("dir/a"))
        .unwrap();
    open.write_all(b" and more").unwrap();
    let mut held = fs::File::create(www.join("never-closed")).unwrap();
    held.write_all(b"bytes").unwrap();
    daemon.kill();
    drop((open, held));
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn who_goes_on_writing_after_the_daemon_was_killed_is_found_and_followed() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd, sshd.port());
    // As cp does: its writes pass the daemon by.
    let mut survivor = fs::File::options()
        .write(true)
        .create_new(true)
        .open(www.join("dir/long-copy"))
        .unwrap();
    survivor.write_all(b"one ").unwrap();
    daemon.kill();
    if survivor.write_all(b"two ").is_err() {
        // No passthrough here: the kernel lets nobody write without a daemon.
        return;
    }
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    // Where it is now.
    fs::rename(www.join("dir"), www.join("renamed")).unwrap();
    survivor.write_all(b"three ").unwrap();
    let there = mirror.join("renamed/long-copy");
    wait_until("what he wrote arrives", || {
        fs::read(&there).is_ok_and(|bytes| bytes == b"one two three ")
    });
    // The next daemon finds him too, though nobody told it.
    daemon.kill();
    survivor.write_all(b"four ").unwrap();
    daemon.start();
    survivor.write_all(b"five ").unwrap();
    drop(survivor);
    wait_until("the last word arrives", || {
        fs::read(&there).is_ok_and(|bytes| bytes == b"one two three four five ")
    });
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_tree_deeper_than_any_path_is_scanned() {
    let sshd = Sshd::start();
    let (mut daemon, www, _) = with_a_tree(&sshd, sshd.port());
    daemon.stop();
    let name = "d".repeat(200);
    let mut at = rustix::fs::open(www.join("dir"), OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..25 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(&at, "deep", flags, Mode::RWXU).unwrap();
    daemon.start();
    let seen = scanned(&daemon);
    // It is new from the top: one repair, which the server takes as deep as it takes paths.
    assert!(seen["repairs"].as_u64().unwrap() >= 1, "{seen}");
    assert!(!daemon.log().contains("cannot look into"));
    daemon.stop();
    // A change at the bottom is found there.
    let file = rustix::fs::openat(&at, "deep", OFlags::WRONLY, Mode::empty()).unwrap();
    rustix::io::write(&file, b"edited").unwrap();
    drop(file);
    daemon.start();
    let seen = scanned(&daemon);
    assert!(seen["entries"].as_u64().unwrap() >= 115, "{seen}");
    assert!(seen["repairs"].as_u64().unwrap() >= 1, "{seen}");
    daemon.stop();
}

#[test]
fn a_source_that_has_become_empty_empties_no_mirror() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd, sshd.port());
    daemon.stop();
    for entry in fs::read_dir(&www).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == OsStr::from_bytes(b".proxyfs") {
            continue;
        }
        match entry.file_type().unwrap().is_dir() {
            true => fs::remove_dir_all(entry.path()).unwrap(),
            false => fs::remove_file(entry.path()).unwrap(),
        }
    }
    let refused = daemon.run(&["run"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && why.contains("is empty"),
        "{why}"
    );
    assert!(mirror.join("dir/a").exists());
    // It is meant to be.
    fs::write(www.join("empty"), "").unwrap();
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    assert!(!mirror.join("dir").exists());
    // By the mount it may be emptied, of course.
    fs::remove_file(www.join("empty")).unwrap();
    daemon.wait();
    daemon.kill();
    daemon.start();
    daemon.stop();
}

#[test]
fn without_the_scan_nothing_is_looked_for() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd, sshd.port());
    daemon.stop();
    let ini = daemon.ini_mut();
    *ini = ini.replace("exclude = *.tmp", "exclude = *.tmp\nscan_on_start = no");
    daemon.write_ini();
    fs::write(www.join("dir/a"), "not seen").unwrap();
    daemon.start();
    assert_eq!(daemon.status()["scan"]["entries"], 0);
    fs::write(www.join("seen"), "seen").unwrap();
    daemon.wait();
    assert_eq!(fs::read(mirror.join("dir/a")).unwrap(), b"first dir/a");
    daemon.stop();
}

#[test]
fn a_mirror_for_which_the_log_would_grow_too_long_is_compared_when_it_is_back() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::with("log_limit = 256k");
    add(&mut daemon, "near", &sshd, &[]);
    let port = relay.port().to_string();
    add(&mut daemon, "far", &sshd, &[("port", &port)]);
    daemon.start();
    let www = daemon.source();
    fs::create_dir_all(www.join("dir/gone")).unwrap();
    fs::write(www.join("dir/gone/file"), "first").unwrap();
    daemon.wait();
    relay.refuse(true);
    relay.cut();
    let long = "n".repeat(200);
    fs::remove_dir_all(www.join("dir")).unwrap();
    for i in 0..2000 {
        fs::write(www.join(format!("{long}-{i}")), "x").unwrap();
        if i % 200 == 0 {
            daemon.ok(&["wait", "near", "--timeout", "60"]);
        }
    }
    wait_until("the far mirror is given up", || {
        daemon.log().contains("mirror far: it is so far behind")
    });
    // The next checkpoint lets the rows go.
    let had = daemon.mirror("far")["applied_seq"].as_u64().unwrap();
    wait_until("the log is short again", || {
        let tasks = daemon.ok(&["tasks", "far", "--json"]);
        let tasks: serde_json::Value = serde_json::from_str(&tasks).unwrap();
        tasks[0]["seq"].as_u64().unwrap() > had + 100
    });
    assert!(!daemon.log().contains("mirror near: it is so far behind"));
    relay.refuse(false);
    everything_arrives_though_it_may_need_more_than_one_session(&daemon);
    everything_arrives(&daemon, &sshd, &["near", "far"]);
    daemon.stop();
}

fn everything_arrives_though_it_may_need_more_than_one_session(daemon: &Daemon) {
    wait_until("the far mirror is in sync", || {
        daemon.mirror("far")["state"] == "synced"
    });
}
