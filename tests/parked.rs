//! Changes that a mirror does not take for a reason of their own: they are parked, what depends on them waits
//! behind them, everything else goes on, and all arrives when it is put right.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::sshd::{Sshd, ids_of};
use super::support::tree::assert_same;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// An ordinary user's mirror "m" with `locked/old`, where the user may do nothing any more; parked changes
/// are tried again by themselves after `pause`.
fn with_a_locked_directory(pause: &str) -> (Sshd, Daemon) {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[("backoff_max", pause)]);
    daemon.start();
    fs::create_dir(daemon.source().join("locked")).unwrap();
    fs::write(daemon.source().join("locked/old"), "before").unwrap();
    daemon.wait();
    give_to(&base(&sshd, "m").join("locked"), (0, 0));
    (sshd, daemon)
}

fn give_to(path: &Path, (uid, gid): (u32, u32)) {
    chown(path, Some(uid), Some(gid)).unwrap();
}

fn unlock(sshd: &Sshd) {
    give_to(&base(sshd, "m").join("locked"), ids_of(sshd.user()));
}

#[test]
fn a_refused_change_is_parked_and_everything_else_goes_on() {
    let (sshd, mut daemon) = with_a_locked_directory("1h");
    let (www, mirror) = (daemon.source(), base(&sshd, "m"));
    fs::write(www.join("locked/new"), "refused").unwrap();
    // Else it might find out that there is nothing to be done there any more.
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1);
    fs::rename(www.join("locked/new"), www.join("moved")).unwrap();
    fs::write(www.join("moved"), "and written again").unwrap();
    fs::write(www.join("free"), "has nothing to do with it").unwrap();
    let parked = |m: &serde_json::Value| m["parked_ops"] == 1 && m["pending_ops"] == 3;
    daemon.wait_for_mirror("m", parked);
    assert_eq!(
        fs::read_to_string(mirror.join("free")).unwrap(),
        "has nothing to do with it"
    );
    assert!(
        !mirror.join("moved").exists(),
        "it waits behind the parked one"
    );
    // An administrator finds what is wrong, and what to do.
    let status = daemon.ok(&["status"]);
    let squeezed = status.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "1 change, failed, waiting for you: see `proxyfs tasks m`",
        "(content locked/new) was refused: permission denied",
        "give the login user the right to write there",
        "`proxyfs try-again m`",
    ] {
        assert!(squeezed.contains(words), "{words}: {status}");
    }
    let tasks = daemon.ok(&["tasks"]);
    assert!(tasks.contains("parked: "), "{tasks}");
    let waited = daemon.run(&["wait", "--timeout", "60"]);
    let said = String::from_utf8(waited.stderr).unwrap();
    assert_eq!(waited.status.code(), Some(1), "{said}");
    assert!(said.contains("mirror m has parked changes: "), "{said}");

    // It is not forgotten, also where the log has been tidied up meanwhile.
    daemon.stop();
    let status = daemon.ok(&["status"]);
    assert!(status.contains("permission denied"), "{status}");
    daemon.start();
    daemon.wait_for_mirror("m", parked);
    // Tried again in vain, and then not.
    daemon.ok(&["try-again", "m"]);
    let waited = daemon.run(&["wait", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));
    unlock(&sshd);
    daemon.ok(&["try-again"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    assert_eq!(
        fs::read_to_string(mirror.join("moved")).unwrap(),
        "and written again"
    );
    daemon.stop();
}

#[test]
fn a_parked_change_is_tried_again_by_itself() {
    let (sshd, mut daemon) = with_a_locked_directory("200ms");
    fs::remove_file(daemon.source().join("locked/old")).unwrap();
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1);
    unlock(&sshd);
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    assert_same(&daemon.source(), &base(&sshd, "m"));
    daemon.stop();
}

#[test]
fn a_mirror_with_more_parked_changes_than_can_be_kept_stops_as_a_whole() {
    let (sshd, mut daemon) = with_a_locked_directory("1h");
    let locked = daemon.source().join("locked");
    fs::write(locked.join("new"), "refused").unwrap();
    for n in 0..10_000 {
        let mode = 0o600 + n % 2;
        fs::set_permissions(locked.join("new"), Permissions::from_mode(mode)).unwrap();
    }
    fs::write(daemon.source().join("behind"), "waits with the others").unwrap();
    let mirror = daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
    let error = mirror["last_error"].as_str().unwrap();
    assert!(
        error.starts_with("more than 10000 changes are parked")
            && error.contains("content locked/new"),
        "{error}"
    );
    unlock(&sshd);
    daemon.ok(&["try-again", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn of_many_changes_that_are_refused_the_log_is_warned_once() {
    const MANY: u64 = 300;
    let (sshd, mut daemon) = with_a_locked_directory("1h");
    let locked = daemon.source().join("locked");
    daemon.ok(&["pause", "m"]);
    for n in 0..MANY {
        fs::write(locked.join(format!("new{n}")), "refused").unwrap();
    }
    daemon.ok(&["resume", "m"]);
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == MANY);
    let log = daemon.log();
    let warned = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("was refused"));
    let (lines, told) = (
        warned.count() as u64,
        log.matches("was refused").count() as u64,
    );
    assert!(
        lines < MANY / 10 && told >= MANY,
        "{lines} warnings, {told} lines"
    );
    unlock(&sshd);
    daemon.ok(&["try-again", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_was_sent_behind_a_refused_change_waits_with_it_and_is_no_surprise() {
    let (sshd, mut daemon) = with_a_locked_directory("1h");
    let new = daemon.source().join("locked/new");
    // They are sent together, so the second is on its way when the first is refused.
    daemon.ok(&["pause", "m"]);
    fs::write(&new, "refused").unwrap();
    fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    daemon.ok(&["resume", "m"]);
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1 && m["pending_ops"] == 2);
    assert!(!daemon.log().contains("does not fit"), "{}", daemon.log());
    unlock(&sshd);
    daemon.ok(&["try-again", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_directory_with_files_that_were_excluded_later_stays_there_and_stops_nothing() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let dir = daemon.source().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.tmp"), "mirrored").unwrap();
    daemon.wait();
    daemon.stop();
    let ini = daemon.ini_mut();
    *ini = ini.replacen("log_level", "exclude = *.tmp\nlog_level", 1);
    daemon.write_ini();
    daemon.start();
    daemon.wait();
    fs::remove_dir_all(&dir).unwrap();
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1);
    fs::write(daemon.source().join("after"), "goes on").unwrap();
    wait_until("what comes after it", || sshd.base().join("after").exists());
    let status = daemon.ok(&["status"]);
    let squeezed = status.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeezed.contains("or that were excluded later"), "{status}");
    // An administrator decides about it.
    fs::remove_file(sshd.base().join("dir/a.tmp")).unwrap();
    daemon.ok(&["try-again", "m"]);
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
    daemon.stop();
}
