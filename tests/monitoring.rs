//! What monitoring is told: the plugin's line and exit code, and what Prometheus reads.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, never_by_itself};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::sshd::Sshd;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// The plugin's line and its exit code.
#[track_caller]
fn check(daemon: &Daemon, more: &[&str]) -> (String, i32) {
    let output = daemon.run(&[&["check"], more].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.matches('\n').count(), 1, "{said}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr);
    (said, output.status.code().unwrap())
}

#[test]
fn a_plugin_is_told_how_it_is_by_line_and_exit_code() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &never_by_itself(&[]));
    add(&mut daemon, "n", &sshd, &[]);
    let is = |daemon: &Daemon, more: &[&str], begins: &str, code: i32| {
        let (line, exit) = check(daemon, more);
        assert!(line.starts_with(begins), "{line}");
        assert_eq!(exit, code, "{line}");
        line
    };
    // No daemon ever ran; then one was killed.
    is(
        &daemon,
        &[],
        "PROXYFS CRITICAL - the daemon is not running",
        2,
    );
    daemon.start();
    fs::write(daemon.source().join("a"), "bytes").unwrap();
    daemon.wait();
    let line = is(&daemon, &[], "PROXYFS OK - 2 mirrors are up to date", 0);
    assert!(
        line.contains(" | 'm_lag'=0s;300;3600;0 'm_pending'=0;;;0 "),
        "{line}"
    );
    is(
        &daemon,
        &["m"],
        "PROXYFS OK - mirror m is synced | 'm_lag'=0s;",
        0,
    );
    is(
        &daemon,
        &["x"],
        "PROXYFS UNKNOWN - there is no mirror \"x\"",
        3,
    );
    daemon.kill();
    let line = is(
        &daemon,
        &[],
        "PROXYFS CRITICAL - the daemon is not running",
        2,
    );
    assert!(line.contains("'n_pending'=0;"), "{line}");

    fs::rename(base(&sshd, "m"), sshd.base().join("away")).unwrap();
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
    let line = is(
        &daemon,
        &[],
        "PROXYFS CRITICAL - mirror m is stopped: the mirror's directory ",
        2,
    );
    assert!(line.contains("does not exist: create it there"), "{line}");
    is(&daemon, &["n"], "PROXYFS OK - ", 0);
    // What the scan at the start records is no more to come.
    daemon.ok(&["wait", "n"]);
    daemon.ok(&["pause", "n"]);
    for n in 0..3 {
        fs::write(daemon.source().join(format!("f{n}")), "bytes").unwrap();
    }
    is(
        &daemon,
        &["n"],
        "PROXYFS WARNING - mirror n is paused | ",
        1,
    );
    let limits = ["n", "--pending-warning", "1", "--pending-critical", "2"];
    let line = is(
        &daemon,
        &limits,
        "PROXYFS CRITICAL - mirror n lacks 3 changes, 15 B; ",
        2,
    );
    assert!(line.contains("'n_pending'=3;1;2;0"), "{line}");
    wait_until("a second has passed", || {
        check(&daemon, &["n", "--lag-critical", "0"])
            .0
            .contains("CRITICAL - mirror n is behind by ")
    });
    // Whoever runs plugins must not take 2 for "critical" when the call is wrong.
    is(
        &daemon,
        &["--lag-warning", "soon"],
        "PROXYFS UNKNOWN - error: invalid value",
        3,
    );
    fs::write(daemon.config(), "[proxyfs]\ncolour = red\n").unwrap();
    is(&daemon, &[], "PROXYFS UNKNOWN - ", 3);
    daemon.write_ini();
    daemon.stop();
}

/// The samples, by metric and labels. Panics where the text is not what Prometheus reads (text format 0.0.4).
#[track_caller]
fn samples(text: &str) -> BTreeMap<String, f64> {
    let name_ok = |name: &str| {
        let mut chars = name.chars();
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut found, mut heads) = (BTreeMap::new(), BTreeSet::new());
    let (mut helped, mut typed) = (String::new(), (String::new(), String::new()));
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(name_ok(name) && !help.is_empty(), "{line}");
            assert!(heads.insert(name.to_string()), "{name} comes twice");
            helped = name.to_string();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(
                name == helped && ["gauge", "counter"].contains(&kind),
                "{line}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed = (name.to_string(), kind.to_string());
        } else {
            let (what, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = match what.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
                None => (what, ""),
            };
            assert_eq!(name, typed.0, "a sample outside of its group: {line}");
            for label in labels.split(',').filter(|l| !l.is_empty()) {
                let (label, quoted) = label.split_once("=\"").expect(line);
                assert!(name_ok(label) && quoted.ends_with('"'), "{line}");
            }
            let value: f64 = value.parse().expect(line);
            assert!(
                found.insert(what.to_string(), value).is_none(),
                "{line} comes twice"
            );
        }
    }
    found
}

#[test]
fn prometheus_reads_the_metrics_and_its_counters_survive_restarts() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    fs::write(daemon.source().join("a"), vec![b'x'; 100_000]).unwrap();
    daemon.wait();
    let first = samples(&daemon.ok(&["metrics"]));
    assert_eq!(first["proxyfs_up"], 1.0);
    assert_eq!(
        first["proxyfs_mirror_state{mirror=\"m\",state=\"synced\"}"],
        1.0
    );
    assert_eq!(
        first["proxyfs_mirror_state{mirror=\"m\",state=\"stopped\"}"],
        0.0
    );
    assert_eq!(first["proxyfs_mirror_pending_changes{mirror=\"m\"}"], 0.0);
    assert_eq!(first["proxyfs_mirror_connections_total{mirror=\"m\"}"], 1.0);
    assert!(
        first["proxyfs_mirror_sent_bytes_total{mirror=\"m\"}"] >= 100_000.0,
        "{first:?}"
    );
    daemon.stop();
    // Without a daemon nothing is lost, and nothing goes back.
    let down = samples(&daemon.ok(&["metrics"]));
    assert_eq!(down["proxyfs_up"], 0.0);
    daemon.start();
    daemon.wait();
    daemon.wait_for_mirror("m", |m| m["connections_total"] == 2);
    let second = samples(&daemon.ok(&["metrics"]));
    for (name, value) in &first {
        if name.contains("_total") {
            assert!(
                down[name] >= *value && second[name] >= down[name],
                "{name}: {value}, {down:?}, {second:?}"
            );
        }
    }
    daemon.stop();
}

/// Who has a file open may go on with it for some seconds: meanwhile it is told what goes on.
#[test]
fn a_daemon_that_is_stopping_answers_who_asks_and_begins_nothing() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let busy = fs::File::create(daemon.source().join("open")).unwrap();
    daemon.signal(libc::SIGTERM);
    wait_until("it is stopping", || daemon.status()["stopping"] == true);
    let (line, code) = check(&daemon, &[]);
    assert!(line.contains("the daemon is stopping"), "{line}");
    assert_ne!(code, 0, "{line}");
    let metrics = daemon.ok(&["metrics"]);
    assert!(metrics.contains("proxyfs_up 1"), "{metrics}");
    let screen = daemon.ok(&["status"]);
    assert!(screen.contains("proxyfs   stopping, pid "), "{screen}");
    let refused = daemon.run(&["pause", "m"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("the daemon is stopping"), "{said}");
    drop(busy);
    assert_eq!(daemon.ends(), Some(0));
}
