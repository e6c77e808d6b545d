//! Disks that fill up under load: the source's, the journal's, the mirror's. Every change either fails visibly to the
//! application, or arrives; and when there is room again, everything goes on by itself.
#![allow(clippy::unwrap_used)]

use super::kills::differences;
use super::support::daemon::Daemon;
use super::support::disks::Small;
use super::support::mounts::wait_until;
use super::support::sshd::Sshd;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Writes and closes a new file; an error of either is one that the application sees.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    // What `close()` says, which Drop throws away.
    let copy = file.try_clone()?;
    // SAFETY: the descriptor is the copy's own, and is given up right after.
    let closed = unsafe { libc::close(copy.as_raw_fd()) };
    std::mem::forget(copy);
    match closed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes files until so many could not be; gives the names of those that could.
fn write_until_it_fails(dir: &Path, prefix: &str, size: usize) -> Vec<String> {
    let (mut written, mut failed) = (Vec::new(), 0);
    for n in 0..4000 {
        let name = format!("{prefix}-{n}");
        match write(&dir.join(&name), &vec![n as u8; size]) {
            Ok(()) => written.push(name),
            Err(why) => {
                let expected = [libc::ENOSPC, libc::EIO, libc::EROFS];
                assert!(expected.contains(&why.raw_os_error().unwrap()), "{why}");
                failed += 1;
            }
        }
        if failed == 3 {
            return written;
        }
    }
    panic!("the disk never was full");
}

/// All that was said to be written is there, and the mirror is like the source.
fn check(daemon: &Daemon, sshd: &Sshd, written: &[String], size: usize) {
    daemon.wait();
    let www = daemon.source();
    for name in written {
        let bytes = fs::read(www.join(name)).unwrap();
        assert_eq!(bytes.len(), size, "{name}");
        let there = fs::read(sshd.base().join(name)).unwrap();
        assert!(bytes == there, "{name} is another one on the mirror");
    }
    let lines = differences(&www, &sshd.base());
    assert!(lines.is_empty(), "{}\n{}", lines.join("\n"), daemon.log());
}

#[test]
fn a_full_source_fails_visibly_and_what_was_written_arrives() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    let disk = Small::mount(&daemon.source(), 2048);
    daemon.start();
    let mut written = write_until_it_fails(&daemon.source(), "a", 30_000);
    check(&daemon, &sshd, &written, 30_000);
    disk.resize(4096);
    written.extend(write_until_it_fails(&daemon.source(), "b", 30_000));
    check(&daemon, &sshd, &written, 30_000);
    daemon.stop();
    drop(daemon);
    drop(disk);
}

#[test]
fn a_full_journal_refuses_changes_until_there_is_room_and_loses_none() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    let disk = Small::mount(&daemon.file("state"), 512);
    daemon.start();
    daemon.wait();
    let filler = daemon.file("state/filler");
    // The disk is full by somebody else's fault.
    let _full = fs::write(&filler, vec![1; 1 << 20]);
    let mut written = write_until_it_fails(&daemon.source(), "a", 100);
    wait_until("status says so", || {
        daemon.status()["read_only"] == true || {
            // The log had some room left in its own files.
            let more = format!("a{}", written.len());
            written.extend(write_until_it_fails(&daemon.source(), &more, 100));
            false
        }
    });
    fs::remove_file(&filler).unwrap();
    wait_until("it is writable again", || {
        daemon.status()["read_only"] == false
    });
    write(&daemon.source().join("after"), &[1; 100]).unwrap();
    let mut all = written;
    all.push("after".to_string());
    check(&daemon, &sshd, &all, 100);
    // And killed while it is full.
    let _full = fs::write(&filler, vec![1; 1 << 20]);
    all.extend(write_until_it_fails(&daemon.source(), "b", 100));
    daemon.kill();
    fs::remove_file(&filler).unwrap();
    daemon.start();
    check(&daemon, &sshd, &all, 100);
    daemon.stop();
    drop(daemon);
    drop(disk);
}

#[test]
fn a_full_mirror_keeps_nobody_waiting_and_gets_everything_when_there_is_room() {
    let (full, good) = (Sshd::start(), Sshd::start());
    let disk = Small::mount(&full.base(), 1024);
    let mut daemon = Daemon::new();
    daemon.add_mirror("full", &full);
    daemon.add_mirror("good", &good);
    daemon.start();
    let names: Vec<String> = (0..100).map(|n| format!("f-{n}")).collect();
    for name in &names {
        write(&daemon.source().join(name), &[7; 30_000]).unwrap();
    }
    daemon.ok(&["wait", "good", "--timeout", "60"]);
    daemon.wait_for_mirror("full", |m| {
        m["last_error"]
            .as_str()
            .is_some_and(|why| why.contains("full"))
    });
    disk.resize(16 * 1024);
    daemon.ok(&["try-again"]);
    check(&daemon, &full, &names, 30_000);
    check(&daemon, &good, &names, 30_000);
    daemon.stop();
    drop(daemon);
}
