//! What the README says, held against the program: settings, commands, messages, and what it tells the
//! reader to type.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::sshd::Sshd;
use std::fs;

#[test]
fn a_mirror_that_was_just_resumed_can_be_waited_for() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    daemon.wait();
    for round in 0..5 {
        daemon.ok(&["pause", "m"]);
        daemon.wait_for_mirror("m", |m| m["state"] == "paused");
        fs::write(daemon.source().join("file"), round.to_string()).unwrap();
        daemon.ok(&["resume", "m"]);
        daemon.wait();
        let there = fs::read_to_string(sshd.base().join("file")).unwrap();
        assert_eq!(there, round.to_string());
    }
    daemon.stop();
}

#[test]
fn a_mirror_that_needs_a_sync_is_not_said_to_have_everything() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    fs::write(daemon.source().join("old"), "from before").unwrap();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "needs-sync");
    let waited = daemon.run(&["wait", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));
    let said = String::from_utf8(waited.stderr).unwrap();
    assert!(
        said.starts_with("proxyfs: mirror m is needs-sync: "),
        "{said}"
    );
    fs::write(sshd.base().join("old"), "from before").unwrap();
    daemon.ok(&["resume", "m"]);
    daemon.wait();
    daemon.stop();
}
