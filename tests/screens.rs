//! What an administrator sees of `status` on a terminal and elsewhere.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::add;
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::pty::Pty;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn the_status_is_redrawn_in_place_on_a_terminal_and_leaves_it_as_it_was() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("web2", &sshd);
    daemon.start();
    daemon.wait();
    // One with a line that is as long as it may be.
    let long = format!("/{}", "x".repeat(100));
    add(&mut daemon, "web3", &sshd, &[("path", &long)]);
    daemon.ok(&["reload"]);
    daemon.ok(&["pause", "web3"]);
    daemon.ok(&["pause", "web2"]);
    let mut screen = Pty::spawn(daemon.proxyfs(&["status", "--watch"]));
    screen.wait_for("\x1b[?1049h");
    screen.wait_for("\x1b[33mpaused");
    fs::write(daemon.source().join("file"), [7; 3000]).unwrap();
    // Drawn over what was there, without a scrolled line.
    screen.wait_for("2.9 KiB");
    let drawn = screen.wait_for("\x1b[H");
    assert!(
        drawn.contains("\x1b[J") && !drawn.contains("\x1b[2J"),
        "{drawn:?}"
    );
    screen.keys("q");
    screen.wait_for("\x1b[?25h\x1b[?1049l");
    // The last picture stays when the page is turned back.
    screen.wait_for("proxyfs   running");
    assert!(screen.end().success());
    for line in screen.seen.split("\r\n") {
        let mut bare = String::new();
        let mut rest = line;
        while let Some((before, behind)) = rest.split_once('\x1b') {
            bare += before;
            rest = behind
                .split_once(|c: char| c.is_ascii_alphabetic())
                .map_or("", |p| p.1);
        }
        bare += rest;
        assert!(bare.trim_end().chars().count() < 80, "{bare}");
    }
    daemon.stop();
}

#[test]
fn colours_and_redrawing_are_for_terminals_only() {
    let mut daemon = Daemon::new();
    daemon.start();
    assert!(!daemon.ok(&["status"]).contains('\x1b'));
    let mut plain = daemon.proxyfs(&["status"]);
    plain.env("TERM", "xterm");
    let mut screen = Pty::spawn(plain);
    assert!(screen.end().success());
    // One that is told not to paint, and one that a signal ends.
    let mut quiet = daemon.proxyfs(&["status", "--watch"]);
    quiet.stdout(Stdio::piped());
    let mut child = quiet.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut pictures = 0;
    while pictures < 2 {
        let line = lines.next().unwrap().unwrap();
        assert!(!line.contains('\x1b'), "{line}");
        pictures += usize::from(line.starts_with("proxyfs   running"));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    daemon.stop();
}

#[test]
fn no_color_is_honoured_on_a_terminal() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("web2", &sshd);
    daemon.start();
    daemon.wait_for_mirror("web2", |m| m["state"] == "synced");
    for (no_color, painted) in [("", true), ("1", false)] {
        // Pty::spawn takes the variable away: a shell puts it back.
        let mut shell = std::process::Command::new("sh");
        shell.args([
            "-c",
            "NO_COLOR=$1 exec \"$2\" status --config \"$3\"",
            "sh",
            no_color,
        ]);
        shell
            .arg(env!("CARGO_BIN_EXE_proxyfs"))
            .arg(daemon.config());
        let mut screen = Pty::spawn(shell);
        assert!(screen.end().success());
        assert_eq!(
            screen.seen.contains("\x1b[32msynced"),
            painted,
            "{:?}",
            screen.seen
        );
        assert_eq!(screen.seen.contains('\x1b'), painted);
    }
    daemon.stop();
}

/// What is told of a transfer while it runs, and that none of it stays when it is over.
#[test]
fn a_transfer_shows_its_rate_what_is_left_and_the_file() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "bandwidth_limit = 2M");
    daemon.start();
    daemon.wait();
    fs::write(daemon.source().join("video"), vec![7; 12 << 20]).unwrap();
    let under_way = daemon.wait_for_mirror("m", |m| {
        m["bytes_per_second"].as_u64() > Some(0) && m["progress_percent"].as_u64() > Some(0)
    });
    let number = |name: &str| under_way[name].as_u64().expect(name);
    assert_eq!(under_way["state"], "syncing");
    assert_eq!(number("pending_ops"), 1);
    assert_eq!(number("pending_bytes"), 12 << 20);
    assert!(number("eta_seconds") >= 1, "{under_way:#}");
    assert!(number("progress_percent") <= 100);
    let current = under_way["current"].as_str().unwrap();
    assert!(current.starts_with("content video ("), "{current}");
    let text = daemon.ok(&["status"]);
    assert!(
        text.contains("\n  done       [") && text.contains("\n  now        content video ("),
        "{text}"
    );
    daemon.wait();
    let after = daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    for (field, value) in [
        ("bytes_per_second", 0),
        ("ops_per_second", 0),
        ("pending_bytes", 0),
    ] {
        assert_eq!(after[field], value, "{after:#}");
    }
    for field in [
        "eta_seconds",
        "progress_percent",
        "current",
        "oldest_pending_seconds",
    ] {
        assert!(after[field].is_null(), "{after:#}");
    }
    daemon.stop();
}

#[test]
fn what_is_wrong_comes_with_what_to_do_for_scripts_too() {
    let mut sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    daemon.wait();
    assert!(daemon.mirror("m")["advice"].is_null());
    sshd.stop();
    let down = daemon.wait_for_mirror("m", |m| m["state"] == "retrying");
    let advice = down["advice"].as_str().unwrap();
    assert!(advice.contains("`proxyfs try-again m`"), "{advice}");
    wait_until("the screen says so", || {
        let text = daemon.ok(&["status"]);
        text.contains("\n  last error ")
            && text.contains("\n  to do      nothing, if that passes: ")
    });
    daemon.stop();
}
