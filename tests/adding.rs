//! Mirrors that are added, tried out and removed by commands, on real servers.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::pty::Pty;
use super::support::relay::Relay;
use super::support::sshd::{Sshd, keygen};
use super::support::tree::assert_same;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::Duration;

/// What a command said, without a terminal: its exit code, standard output and errors.
fn say(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon
        .proxyfs(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The words of an add-mirror for this server.
fn adding(sshd: &Sshd, more: &[&str]) -> Vec<String> {
    let (port, key) = (sshd.port().to_string(), sshd.key_path());
    let base = sshd.base();
    let mut all = vec![
        "add-mirror",
        "127.0.0.1",
        sshd.user(),
        base.to_str().unwrap(),
    ];
    all.extend(["--port", &port, "--key", key.to_str().unwrap()]);
    all.extend(more);
    all.into_iter().map(str::to_string).collect()
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_mirror_is_tried_out_added_and_removed_while_another_one_goes_on() {
    let (old, new) = (Sshd::start(), Sshd::start());
    let relay = Relay::start(old.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("old", &old, relay.port(), "bandwidth_limit = 1M");
    daemon.start();
    daemon.wait();
    // An upload that takes its time.
    let www = daemon.source();
    fs::write(www.join("video"), vec![7; 6 << 20]).unwrap();
    daemon.wait_for_mirror("old", |m| m["bytes_per_second"].as_u64() > Some(0));

    let words = adding(&new, &["--name", "new", "--accept-key"]);
    let (code, out, err) = say(&daemon, &refs(&words));
    assert_eq!(code, Some(0), "{out}{err}");
    for line in [
        "shows the ssh-ed25519 key SHA256:",
        "  ok   login        as root, at SSH-2.0-OpenSSH",
        "  ok   directory    ",
        "  ok   write        a file of ",
        "  ok   throughput   ",
        "  ok   clock        the same as here",
        "  ok   rename       a file replaces another",
        "  ok   attributes   mode and time can be set",
        "  ok   hard links   can be made",
        "free space   ",
        "  ok   extensions   all that are of use",
        "\nmirror new added\n",
        "`proxyfs wait new` waits for it",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
    let file = daemon.file("mirrors.d/new.ini");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    let known = fs::read_to_string(daemon.file("known_hosts")).unwrap();
    assert!(
        known.starts_with(&format!("[127.0.0.1]:{} ssh-ed25519 ", new.port())),
        "{known}"
    );
    // Nothing of the trial is left.
    let left: Vec<_> = fs::read_dir(new.base().join(".proxyfs"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("check"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    fs::write(www.join("file"), "for both").unwrap();
    daemon.wait();
    assert_eq!(
        fs::read_to_string(new.base().join("file")).unwrap(),
        "for both"
    );
    assert_same(&www, &old.base());
    assert_same(&www, &new.base());
    assert_eq!(relay.connections(), 1, "the other mirror was disturbed");

    // A second one of that name or at that place is refused before anything is tried.
    let (code, _, err) = say(&daemon, &refs(&words));
    assert_eq!(code, Some(1));
    assert!(err.contains("there is a mirror new already"), "{err}");
    let (code, _, err) = say(&daemon, &refs(&adding(&new, &["--name", "again"])));
    assert_eq!(code, Some(1));
    assert!(
        err.contains("the mirror new has that directory already"),
        "{err}"
    );

    // One that lacks changes is removed when that is said.
    daemon.ok(&["pause", "new"]);
    daemon.wait_for_mirror("new", |m| m["state"] == "paused");
    fs::write(www.join("late"), "not for new").unwrap();
    let (code, out, err) = say(&daemon, &["remove-mirror", "new"]);
    assert_eq!(code, Some(1));
    assert!(
        out.contains("new lacks 1 change, and will not get them") && err.contains("--yes"),
        "{out}{err}"
    );
    assert!(file.exists());
    let (code, out, err) = say(&daemon, &["remove-mirror", "new", "--yes"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("mirror new removed\n"), "{out}");
    assert!(!file.exists());
    assert_eq!(daemon.status()["mirrors"].as_array().unwrap().len(), 1);
    assert!(new.base().join("file").exists());
    // One of that name that comes later is a new one, wherever it is.
    let place = new.file("place");
    fs::create_dir(&place).unwrap();
    let mut words = words;
    words[3] = place.display().to_string();
    let (code, out, err) = say(&daemon, &refs(&words));
    assert_eq!(code, Some(0), "{out}{err}");
    fs::write(www.join("file"), "for the new place").unwrap();
    daemon.wait();
    // It was filled with all there is.
    assert_same(&www, &place);
    let (code, _, err) = say(&daemon, &["remove-mirror", "old"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("remove its section [mirror old] there"),
        "{err}"
    );
    daemon.wait();
    assert_eq!(relay.connections(), 1, "the other mirror was disturbed");
    daemon.stop();
}

#[test]
fn an_unknown_host_is_shown_and_only_a_yes_lets_it_in() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.start();
    let words = adding(&sshd, &[]);
    // Nobody to ask.
    let (code, _, err) = say(&daemon, &refs(&words));
    assert_eq!(code, Some(1));
    assert!(
        err.contains("give --accept-key if it is") && err.contains("was not accepted"),
        "{err}"
    );
    for answer in ["no\r", "maybe\ryes\r"] {
        assert!(!daemon.file("known_hosts").exists() && !daemon.file("mirrors.d").exists());
        let mut screen = Pty::spawn(daemon.proxyfs(&refs(&words)));
        screen.wait_for("shows the ssh-ed25519 key SHA256:");
        screen.wait_for("Is it the right one? [yes/no] ");
        screen.keys(answer);
        let code = screen.end().code();
        assert_eq!(code, Some(i32::from(answer == "no\r")), "{}", screen.seen);
    }
    daemon.wait_for_mirror("127.0.0.1", |m| m["state"] == "synced");
    // Its name in the first ProxyFS is its host.
    let mut console = Pty::spawn(daemon.proxyfs(&["console"]));
    console.wait_for("proxyfs> ");
    console.keys("remove_mirror '127.0.0.1'\r");
    console.wait_for("mirror 127.0.0.1 removed");
    console.keys("quit\r");
    assert!(console.end().success());
    daemon.stop();
}

#[test]
fn what_does_not_work_there_is_told_and_nothing_is_added() {
    let sshd = Sshd::builder().ordinary_user().start();
    let daemon = Daemon::new();
    let base = sshd.base();
    let wrong_key = daemon.file("wrong");
    keygen(&wrong_key, "ed25519", "");
    let missing = base.join("missing");
    let file = base.join("file");
    fs::write(&file, "").unwrap();
    let closed = base.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o755)).unwrap();
    let key = sshd.key_path();
    for (path, key, told) in [
        (
            &missing,
            &key,
            vec!["FAIL directory", "create it there, owned by"],
        ),
        (&file, &key, vec!["FAIL directory", "is not a directory"]),
        (
            &closed,
            &key,
            vec!["FAIL write", "nothing can be made there"],
        ),
        (
            &base,
            &wrong_key,
            vec![
                "FAIL login",
                "refuses the login",
                "the public key of",
                "\nssh-ed25519 AAAA",
            ],
        ),
    ] {
        let port = sshd.port().to_string();
        let (code, out, err) = say(
            &daemon,
            &[
                "add-mirror",
                "127.0.0.1",
                sshd.user(),
                path.to_str().unwrap(),
                "--name",
                "m",
                "--port",
                &port,
                "--accept-key",
                "--key",
                key.to_str().unwrap(),
            ],
        );
        assert_eq!(code, Some(1), "{out}");
        assert!(err.contains("nothing was added"), "{err}");
        let squeezed = out.replace("\n                    ", " ");
        for words in told {
            assert!(squeezed.contains(words), "{words} is not in {out}");
        }
        assert!(!daemon.file("mirrors.d").exists());
    }
    // A key that is another than the one that was accepted is never accepted.
    let known = fs::read_to_string(daemon.file("known_hosts")).unwrap();
    assert_eq!(known.lines().count(), 1, "{known}");
    let other = daemon.file("other");
    keygen(&other, "ed25519", "");
    let public = super::support::sshd::public_of(&other);
    let changed = format!("[127.0.0.1]:{} {public}\n", sshd.port());
    fs::write(daemon.file("known_hosts"), changed).unwrap();
    let (code, out, _) = say(&daemon, &refs(&adding(&sshd, &["--accept-key"])));
    assert_eq!(code, Some(1));
    let squeezed = out.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["FAIL host key", "which is not the one at"] {
        assert!(squeezed.contains(words), "{out}");
    }
    assert!(!squeezed.contains("the public key of"), "{out}");
}

#[test]
fn the_doctor_finds_what_is_wrong_and_where() {
    let (good, mut bad) = (Sshd::start(), Sshd::start());
    let mut daemon = Daemon::new();
    daemon.add_mirror("good", &good);
    daemon.add_mirror("bad", &bad);
    let (code, out, _) = say(&daemon, &["doctor"]);
    // The daemon has never run: that is worth a word, and no fault.
    assert!(out.contains("  note daemon       not running"), "{out}");
    assert!(
        out.contains("  ok   FUSE         ") && out.contains("  ok   source       "),
        "{out}"
    );
    assert_eq!(code, Some(0), "{out}");
    daemon.start();
    daemon.wait();
    bad.stop();
    let (code, out, err) = say(&daemon, &["doctor"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(err.contains("see the lines with FAIL"), "{err}");
    assert!(out.contains("  ok   daemon       running, pid "), "{out}");
    let faults: Vec<&str> = out.lines().filter(|l| l.starts_with("  FAIL")).collect();
    assert_eq!(faults.len(), 1, "{out}");
    assert!(faults[0].contains("connection"), "{out}");
    assert_eq!(say(&daemon, &["doctor", "good"]).0, Some(0));
    assert_eq!(say(&daemon, &["doctor", "bad"]).0, Some(1));
    let (code, _, err) = say(&daemon, &["doctor", "ugly"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("configured: good, bad"), "{err}");
    fs::set_permissions(daemon.file("state"), Permissions::from_mode(0o755)).unwrap();
    let (_, out, _) = say(&daemon, &["doctor"]);
    assert!(
        out.contains("  FAIL state_dir    others may look into"),
        "{out}"
    );
    daemon.stop();
}
