//! Mirrors that lack more than what is in the log: they need a copy, and an administrator's word that it was
//! made.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{
    NEVER, add, base, everything_arrives, never_by_itself, nobody_else_is_disturbed, resume, told,
    waiting_is_vain,
};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::sshd::Sshd;
use proxyfs::journal::Reader;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Makes the mirror a copy of the source, as README tells.
fn rsync(www: &Path, mirror: &Path) {
    let done = std::process::Command::new("rsync")
        .args(["-aH", "--delete", "--exclude=/.proxyfs"])
        .args([
            format!("{}/", www.display()),
            format!("{}/", mirror.display()),
        ])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_source_that_held_files_is_not_taken_for_copied_to_an_empty_directory() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    let www = daemon.source();
    for dir in ["old", "emptied", "replaced"] {
        fs::create_dir(www.join(dir)).unwrap();
    }
    for file in ["old/file", "old/other", "turned", "emptied/last"] {
        fs::write(www.join(file), "from before").unwrap();
    }
    add(
        &mut daemon,
        "m",
        &sshd,
        &never_by_itself(&[("first_sync", "none")]),
    );
    daemon.start();
    told(&daemon, "m", "needs-sync", "is empty: run `proxyfs sync`");
    // What happens until the copy is made is in the copy and in the log.
    fs::hard_link(www.join("old/file"), www.join("old/link")).unwrap();
    fs::rename(www.join("old/other"), www.join("old/renamed")).unwrap();
    fs::remove_file(www.join("turned")).unwrap();
    fs::create_dir(www.join("turned")).unwrap();
    fs::write(www.join("turned/file"), "a directory by now").unwrap();
    fs::remove_file(www.join("emptied/last")).unwrap();
    fs::remove_dir(www.join("emptied")).unwrap();
    fs::create_dir(www.join("emptied")).unwrap();
    fs::write(www.join("emptied/new"), "filled again").unwrap();
    fs::remove_dir(www.join("replaced")).unwrap();
    symlink("old/file", www.join("replaced")).unwrap();
    symlink("nowhere", www.join("link")).unwrap();
    waiting_is_vain(&daemon, "m", "run `proxyfs sync`");
    assert_eq!(fs::read_dir(base(&sshd, "m")).unwrap().count(), 0);

    rsync(&www, &base(&sshd, "m"));
    resume(&daemon, &["m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    fs::write(www.join("old/file"), "and it goes on").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn resuming_a_mirror_is_no_word_for_a_copy_that_nobody_made() {
    let sshd = Sshd::start();
    let key = sshd.file("late_key").display().to_string();
    let mut daemon = Daemon::new();
    let www = daemon.source();
    fs::write(www.join("old"), "from before").unwrap();
    add(
        &mut daemon,
        "m",
        &sshd,
        &never_by_itself(&[("key", &key), ("first_sync", "none")]),
    );
    daemon.start();
    told(&daemon, "m", "stopped", "does not exist");
    // It says nothing of the key that was put right whether the mirror has what it must have.
    fs::copy(sshd.key_path(), &key).unwrap();
    resume(&daemon, &["m"]);
    waiting_is_vain(&daemon, "m", "run `proxyfs sync`");
    told(&daemon, "m", "needs-sync", "is empty");
    // Nor does it where there is no copy yet.
    resume(&daemon, &["m"]);
    waiting_is_vain(&daemon, "m", "run `proxyfs sync`");
    told(&daemon, "m", "needs-sync", "is empty");
    rsync(&www, &base(&sshd, "m"));
    resume(&daemon, &["m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_mirror_that_comes_back_after_its_changes_left_the_log_needs_a_sync() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    let without = daemon.ini_mut().clone();
    add(&mut daemon, "m", &sshd, &NEVER);
    let with = daemon.ini_mut().clone();
    daemon.start();
    let www = daemon.source();
    fs::write(www.join("file"), "first").unwrap();
    daemon.wait();

    *daemon.ini_mut() = without;
    daemon.write_ini();
    assert_eq!(daemon.ok(&["reload"]), "mirror m removed\n");
    for n in 0..5 {
        fs::write(www.join("file"), n.to_string()).unwrap();
    }
    // The daemon has its journal alone; a copy that was torn is made again.
    let lacks = || {
        let copy = tempfile::tempdir().unwrap();
        for file in ["journal.db", "journal.db-wal"] {
            fs::copy(daemon.file("state").join(file), copy.path().join(file)).unwrap();
        }
        let mirror = Reader::open(copy.path()).and_then(|reader| reader.mirror("m"));
        mirror.map_or(0, |mirror| mirror.lacks)
    };
    wait_until("the log is tidied up", || lacks() > 0);
    *daemon.ini_mut() = with;
    daemon.write_ini();
    assert_eq!(daemon.ok(&["reload"]), "mirror m added\n");
    told(
        &daemon,
        "m",
        "needs-sync",
        "changes that this mirror lacks are not in the log any more",
    );
    waiting_is_vain(&daemon, "m", "run `proxyfs sync`");
    assert_eq!(
        fs::read_to_string(base(&sshd, "m").join("file")).unwrap(),
        "first"
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    daemon.ok(&["sync", "m", "--delete"]);
    fs::write(www.join("file"), "last").unwrap();
    everything_arrives(&daemon, &sshd, &["good", "m"]);
    daemon.stop();
}

#[test]
fn a_mirror_that_comes_back_before_its_changes_left_the_log_gets_them() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "slow", &sshd, &[]);
    let without = daemon.ini_mut().clone();
    add(&mut daemon, "m", &sshd, &NEVER);
    let with = daemon.ini_mut().clone();
    daemon.start();
    daemon.wait();
    // Another mirror lacks them too, so they stay in the log.
    daemon.ok(&["pause", "slow"]);
    daemon.wait_for_mirror("slow", |m| m["state"] == "paused");
    *daemon.ini_mut() = without;
    daemon.write_ini();
    daemon.ok(&["reload"]);
    for n in 0..5 {
        fs::write(daemon.source().join("file"), n.to_string()).unwrap();
    }
    *daemon.ini_mut() = with;
    daemon.write_ini();
    daemon.ok(&["reload"]);
    daemon.ok(&["wait", "m", "--timeout", "60"]);
    resume(&daemon, &["slow"]);
    everything_arrives(&daemon, &sshd, &["slow", "m"]);
    daemon.stop();
}

#[test]
fn a_journal_that_is_damaged_stops_the_start_and_says_the_way_out_which_works() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let www = daemon.source();
    fs::write(www.join("file"), "first").unwrap();
    daemon.wait();
    daemon.stop();
    let state = daemon.file("state");
    fs::write(state.join("journal.db"), "no journal ".repeat(1000)).unwrap();
    fs::write(www.join("file"), "changed while it was damaged").unwrap();
    let refused = daemon.run(&["run"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(
        said.contains("journal.db: the journal is damaged (")
            && said.contains("run `proxyfs rebuild`"),
        "{said}"
    );

    daemon.ok(&["rebuild", "--yes"]);
    daemon.start();
    fs::write(www.join("new"), "of the new journal").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    assert_eq!(
        fs::read(base(&sshd, "m").join("file")).unwrap(),
        b"changed while it was damaged"
    );
    daemon.stop();
}
