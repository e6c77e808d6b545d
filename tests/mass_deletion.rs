//! `max_delete`: what deletes a lot at once stops before the mirrors, until a person lets it through.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives};
use super::support::daemon::Daemon;
use super::support::smtpd::{Smtpd, Wants};
use super::support::sshd::Sshd;
use std::fs;
use std::path::Path;

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Two mirrors with a directory of 200 files, and a limit.
fn with_files(limit: &str) -> (Sshd, Smtpd, Daemon) {
    let (sshd, smtpd) = (Sshd::start(), Smtpd::start(Wants::Nothing));
    let mut daemon = Daemon::with(&format!("max_delete = {limit}"));
    for name in ["m", "n"] {
        add(&mut daemon, name, &sshd, &[]);
    }
    daemon.ini_mut().push_str(&smtpd.ini(""));
    daemon.write_ini();
    daemon.start();
    let files = daemon.source().join("img");
    fs::create_dir(&files).unwrap();
    for n in 0..200 {
        fs::write(files.join(n.to_string()), "bytes").unwrap();
    }
    daemon.wait();
    (sshd, smtpd, daemon)
}

fn is_held(mirror: &serde_json::Value) -> bool {
    let error = mirror["last_error"].as_str().unwrap_or_default();
    mirror["state"] == "paused" && error.starts_with("more than 50 deletions within a minute")
}

#[test]
fn a_mass_deletion_stops_before_every_mirror_until_it_is_let_through() {
    let (sshd, smtpd, mut daemon) = with_files("50");
    fs::write(daemon.source().join("before"), "arrives").unwrap();
    fs::remove_dir_all(daemon.source().join("img")).unwrap();
    fs::write(daemon.source().join("behind"), "waits").unwrap();
    for name in ["m", "n"] {
        daemon.wait_for_mirror(name, is_held);
        let there = base(&sshd, name);
        assert_eq!(
            count(&there.join("img")),
            150,
            "as many as may be, and none more"
        );
        assert!(there.join("before").exists() && !there.join("behind").exists());
    }
    let (subject, body) = smtpd.wait_for(1);
    assert!(
        subject.contains("mirror m is paused before a mass deletion"),
        "{subject}"
    );
    assert!(
        body.contains("if it was meant: `proxyfs resume m` lets it through"),
        "{body}"
    );
    assert!(body.contains("unlink img/"), "{body}");

    let shown = daemon.ok(&["status"]);
    assert!(shown.contains("\nm       HELD BACK "), "{shown}");
    assert_eq!(daemon.run(&["check"]).status.code(), Some(2));

    // It holds, whatever is done but that.
    daemon.ok(&["try-again"]);
    daemon.kill();
    daemon.start();
    for name in ["m", "n"] {
        daemon.wait_for_mirror(name, is_held);
        assert_eq!(count(&base(&sshd, name).join("img")), 150);
    }
    let waited = daemon.run(&["wait", "m", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));

    // One is let through; the other one is not touched by that.
    daemon.ok(&["resume", "m"]);
    daemon.ok(&["wait", "m", "--timeout", "60"]);
    assert!(!base(&sshd, "m").join("img").exists());
    assert_eq!(count(&base(&sshd, "n").join("img")), 150);
    daemon.ok(&["resume", "n"]);
    everything_arrives(&daemon, &sshd, &["m", "n"]);
    let last = (2..=3)
        .map(|n| smtpd.wait_for(n).0)
        .find(|s| s.contains("goes on"));
    assert!(last.is_some(), "{:#?}", smtpd.mails());
    daemon.stop();
}

#[test]
fn a_part_of_the_tree_is_a_limit_too_and_less_goes_through() {
    let (sshd, _smtpd, mut daemon) = with_files("40%");
    let img = daemon.source().join("img");
    for n in 0..60 {
        fs::remove_file(img.join(n.to_string())).unwrap();
    }
    everything_arrives(&daemon, &sshd, &["m", "n"]);
    for n in 60..200 {
        fs::remove_file(img.join(n.to_string())).unwrap();
    }
    for name in ["m", "n"] {
        daemon.wait_for_mirror(name, |m| m["state"] == "paused");
        let left = count(&base(&sshd, name).join("img"));
        // Of what has gone already not all may have been read: so it is not more than the part.
        assert!((200 - 81..=140).contains(&left), "{left}");
    }
    // Without a limit everything goes through, but not by itself.
    *daemon.ini_mut() = daemon
        .ini_mut()
        .replace("max_delete = 40%", "max_delete = off");
    daemon.write_ini();
    daemon.ok(&["reload"]);
    assert_eq!(daemon.mirror("m")["state"], "paused");
    daemon.ok(&["resume", "m"]);
    daemon.ok(&["resume", "n"]);
    everything_arrives(&daemon, &sshd, &["m", "n"]);
    daemon.stop();
}
