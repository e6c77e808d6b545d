//! The console on a terminal (a pty), as somebody uses it who knows the first ProxyFS, and as a script does.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::pty::Pty;
use super::support::sshd::Sshd;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

const PROMPT: &str = "proxyfs> ";

#[test]
fn the_console_knows_the_first_names_completes_and_keeps_its_history() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("web2", &sshd);
    daemon.start();
    daemon.wait();
    let mut console = Pty::spawn(daemon.proxyfs(&["console"]));
    console.wait_for(PROMPT);
    console.keys("show_help\r");
    console.wait_for("supported commands:\r\n* show_help - shows this screen\r\n");
    console.wait_for("* kill_now - ends the daemon, gracefully\r\n");
    console.wait_for(PROMPT);
    console.keys("show_tasks '127.0.0.1'\r");
    console.wait_for("no open tasks");
    console.wait_for(PROMPT);
    // Tab completes the command and the mirror; a letter too much is taken back.
    console.keys("pausx\x7f\tw\t\r");
    console.wait_for("pause web2");
    console.wait_for(PROMPT);
    daemon.wait_for_mirror("web2", |m| m["state"] == "paused");
    // A mistake is told and ends nothing.
    console.keys("show_taks\r");
    console.wait_for("error: unrecognized subcommand 'show_taks'");
    console.wait_for(PROMPT);
    // Lines that come at once, as when they are pasted, are carried out one after the other.
    console.keys("resume web9\rpause web8\r");
    console.wait_for("proxyfs: there is no mirror \"web9\"; configured: web2");
    console.wait_for(PROMPT);
    console.wait_for("proxyfs: there is no mirror \"web8\"; configured: web2");
    console.wait_for(PROMPT);
    console.keys("resume 'web2'\r");
    console.wait_for(PROMPT);
    daemon.wait_for_mirror("web2", |m| m["state"] != "paused");
    console.keys("quit\r");
    assert_eq!(console.end().code(), Some(1), "a command failed");

    // Another day: arrow up brings the last line but `quit`.
    let history = daemon.file("state/console_history");
    assert_eq!(fs::metadata(&history).unwrap().mode() & 0o7777, 0o600);
    let mut console = Pty::spawn(daemon.proxyfs(&["console"]));
    console.wait_for(PROMPT);
    console.keys("\x1b[A\x1b[A");
    console.wait_for("resume 'web2'");
    console.keys("\x15kill_now\r");
    console.wait_for(PROMPT);
    console.keys("show_status\r");
    console.wait_for("NOT RUNNING");
    console.wait_for(PROMPT);
    console.keys("\x04");
    assert!(console.end().success());
}

#[test]
fn the_console_reads_a_command_a_line_where_there_is_no_terminal() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("web2", &sshd);
    daemon.start();
    daemon.wait();
    let ask = |lines: &str| {
        let mut command = daemon.proxyfs(&["console"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(lines.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, err) =
        ask("# what is open?\nshow_tasks '127.0.0.1'\nshow_status\nquit\npause web2\n");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.starts_with("no open tasks\nproxyfs   running, pid "),
        "{out}"
    );
    assert!(!out.contains(PROMPT) && !out.contains('\x1b'), "{out}");
    assert_ne!(daemon.mirror("web2")["state"], "paused");
    // What follows a mistake is done all the same, and the exit code tells of it.
    let (code, out, err) = ask("pause nobody\nshow_tasks");
    assert_eq!((code, out.as_str()), (Some(1), "no open tasks\n"));
    assert!(err.contains("there is no mirror \"nobody\""), "{err}");
    daemon.stop();
}
