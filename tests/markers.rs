//! A mirror's directory that is not what it was is recognized before a byte is written to it: wiped, not
//! mounted, older than it was, another source's.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn marker(mirror: &Path) -> String {
    let text = fs::read_link(mirror.join(".proxyfs/position")).unwrap_or_default();
    text.display().to_string()
}

/// A daemon with the mirror "m", with one file and its marker there.
fn with_a_mirror(sshd: &Sshd) -> (Daemon, PathBuf, PathBuf) {
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", sshd, &[("backoff_max", "1h")]);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(sshd, "m"));
    fs::write(www.join("file"), "first").unwrap();
    is_marked(&daemon, &mirror, 1);
    (daemon, www, mirror)
}

/// Waits until the marker is there, and noted.
fn is_marked(daemon: &Daemon, mirror: &Path, seq: u64) {
    let wanted = format!(" seq={seq} ");
    wait_until("the marker is there", || marker(mirror).contains(&wanted));
    daemon.wait();
}

/// Copies a tree with all that is in it, as a backup does.
fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-aT").args([from, to]).status();
    assert!(done.unwrap().success());
}

/// The mirror is told to be wrong, and nothing is written to it.
#[track_caller]
fn is_left_alone(daemon: &Daemon, mirror: &Path, state: &str, words: &str) {
    let before = listing(mirror);
    let told = daemon.wait_for_mirror("m", |m| m["state"] == state);
    let error = told["last_error"].as_str().unwrap();
    assert!(error.contains(words), "{error}");
    assert_eq!(listing(mirror), before);
    let waited = daemon.run(&["wait", "m", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));
}

fn listing(dir: &Path) -> String {
    let listed = Command::new("find")
        .arg(dir)
        .args(["-printf", "%P %y %s %T@\n"])
        .output();
    let text = String::from_utf8(listed.unwrap().stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// What the error tells to do.
fn make_a_copy(daemon: &Daemon, www: &Path, mirror: &Path) {
    let done = Command::new("rsync")
        .args(["-aH", "--delete", "--exclude=/.proxyfs"])
        .arg(format!("{}/", www.display()))
        .arg(mirror)
        .status();
    assert!(done.unwrap().success());
    daemon.ok(&["resume", "m"]);
}

#[test]
fn a_mirror_that_was_wiped_is_not_taken_for_a_copy() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_mirror(&sshd);
    daemon.stop();
    fs::remove_dir_all(&mirror).unwrap();
    fs::create_dir(&mirror).unwrap();
    daemon.start();
    fs::write(www.join("other"), "second").unwrap();
    is_left_alone(
        &daemon,
        &mirror,
        "needs-sync",
        "the marker that was written to ",
    );
    // The word for a copy that nobody made is none.
    daemon.ok(&["resume", "m"]);
    is_left_alone(
        &daemon,
        &mirror,
        "needs-sync",
        "is empty: run `proxyfs sync`",
    );
    let told = daemon.ok(&["sync", "m"]);
    assert!(told.contains("mirror m is like the source: "), "{told}");
    everything_arrives(&daemon, &sshd, &["m"]);
    wait_until("there is a new marker", || !marker(&mirror).is_empty());
    daemon.stop();
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_mirror_whose_disk_was_not_mounted_goes_on_when_it_is() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_mirror(&sshd);
    daemon.stop();
    let disk = mirror.with_extension("disk");
    fs::rename(&mirror, &disk).unwrap();
    fs::create_dir(&mirror).unwrap();
    daemon.start();
    fs::write(www.join("other"), "second").unwrap();
    is_left_alone(
        &daemon,
        &mirror,
        "needs-sync",
        "mount it and run `proxyfs try-again`",
    );
    fs::remove_dir(&mirror).unwrap();
    fs::rename(&disk, &mirror).unwrap();
    daemon.ok(&["try-again", "m"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_mirror_that_was_rolled_back_is_not_taken_for_what_it_was() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_mirror(&sshd);
    let backup = mirror.with_extension("backup");
    copy(&mirror, &backup);
    fs::write(www.join("file"), "second").unwrap();
    is_marked(&daemon, &mirror, 2);
    daemon.stop();
    fs::remove_dir_all(&mirror).unwrap();
    copy(&backup, &mirror);
    daemon.start();
    is_left_alone(
        &daemon,
        &mirror,
        "needs-sync",
        "is older than it was: its marker is of change 1",
    );
    make_a_copy(&daemon, &www, &mirror);
    everything_arrives(&daemon, &sshd, &["m"]);
    is_marked(&daemon, &mirror, 2);
    daemon.stop();
}

#[test]
fn the_mirror_of_another_source_is_left_alone() {
    let sshd = Sshd::start();
    let (mut other, _, theirs) = with_a_mirror(&sshd);
    other.stop();
    let mut daemon = Daemon::new();
    let path = theirs.display().to_string();
    add(
        &mut daemon,
        "m",
        &sshd,
        &[("backoff_max", "1h"), ("path", &path)],
    );
    daemon.start();
    fs::write(daemon.source().join("mine"), "not theirs").unwrap();
    is_left_alone(
        &daemon,
        &theirs,
        "stopped",
        "is the mirror of another source (",
    );
    // That is no matter of a copy.
    daemon.ok(&["resume", "m"]);
    is_left_alone(&daemon, &theirs, "stopped", "correct `path`");
    assert_same(&other.source(), &theirs);
    daemon.stop();
}
