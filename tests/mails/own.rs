//! What is wrong with the daemon itself: its start, its log, its mount, its threads; and a mirror that its log gave up.

use super::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

#[test]
fn a_daemon_that_does_not_start_says_so_once_and_that_it_has_started() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let mut daemon = Daemon::new();
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    daemon.stop();
    // As where its disk is not mounted.
    let (id, away) = (daemon.source().join(".proxyfs"), daemon.file("away"));
    fs::rename(&id, &away).unwrap();
    for _ in 0..3 {
        let output = daemon.run(&["run"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.ends_with("the daemon does not start"), "{subject}");
    holds(
        &body,
        &[
            "is its disk not mounted? Mount it and start again",
            "to do: ",
        ],
    );
    // Who looks is told too.
    let why = "is its disk not mounted? Mount it and start again";
    let shown = daemon
        .ok(&["status"])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    holds(
        &shown,
        &["NOT RUNNING", "WRONG: it does not start, for ", why],
    );
    let checked = daemon.run(&["check"]);
    let checked = String::from_utf8(checked.stdout).unwrap();
    holds(&checked, &["CRITICAL - the daemon does not start: ", why]);
    fs::rename(&away, &id).unwrap();
    daemon.start();
    let (subject, _) = smtpd.wait_for(2);
    assert!(subject.ends_with("the daemon has started"), "{subject}");
    assert_eq!(daemon.status()["alarms"], serde_json::json!([]));
    daemon.stop();
    daemon.start();
    daemon.stop();
    assert_eq!(smtpd.mails().len(), 2);
}

#[test]
fn a_hook_is_told_that_the_daemon_does_not_start_though_no_mail_gets_away() {
    let mut smtpd = Smtpd::new(Wants::Nothing);
    let mut daemon = Daemon::new();
    mail(&mut daemon, &smtpd, "");
    let (program, told) = (daemon.file("hook"), daemon.file("told"));
    let script = format!("#!/bin/sh\necho $PROXYFS_EVENT >> {}\n", told.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let line = format!("\non_event = {}\nmount_point", program.display());
    *daemon.ini_mut() = daemon.ini_mut().replacen("\nmount_point", &line, 1);
    daemon.write_ini();
    daemon.start();
    daemon.stop();
    fs::remove_dir_all(daemon.source().join(".proxyfs")).unwrap();
    for n in 0..4 {
        if n == 2 {
            smtpd.run();
        }
        assert_eq!(daemon.run(&["run"]).status.code(), Some(1));
        assert_eq!(
            fs::read_to_string(&told).unwrap(),
            "not-started\n",
            "try {n}"
        );
    }
    assert_eq!(smtpd.mails().len(), 1);
}

/// A file system of its own, gone when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn at(path: &Path) -> Small {
        fs::create_dir(path).unwrap();
        let size = Some(c"size=4m");
        mount("proxyfs-test", path, "tmpfs", MountFlags::empty(), size).unwrap();
        Small(path.to_path_buf())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_log_that_cannot_be_written_is_mailed_though_the_mail_cannot_be_kept() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let mut daemon = Daemon::new();
    let state = Small::at(&daemon.file("state"));
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    fs::write(daemon.source().join("before"), "x").unwrap();
    let filler = state.0.join("filler");
    let _ = fs::write(&filler, vec![0; 8 << 20]);
    wait_until("the mount is read-only", || {
        let _ = fs::write(daemon.source().join("more"), "x");
        daemon.status()["read_only"] == true
    });
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.ends_with("the mount is read-only"), "{subject}");
    holds(&body, &["the disk is full", "applications get EROFS"]);
    fs::remove_file(&filler).unwrap();
    let (subject, _) = smtpd.wait_for(2);
    assert!(
        subject.ends_with("the mount is writable again"),
        "{subject}"
    );
    fs::write(daemon.source().join("after"), "x").unwrap();
    daemon.stop();
    drop(daemon);
    assert_eq!(smtpd.mails().len(), 2);
}

#[test]
fn a_worker_that_died_is_started_again_and_mailed_once() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    mail(&mut daemon, &smtpd, "");
    let dies = daemon.lets_die_at("journal.advance");
    daemon.start();
    for name in ["one", "two"] {
        fs::write(&dies, "").unwrap();
        fs::write(daemon.source().join(name), "bytes").unwrap();
        wait_until("the worker dies", || !dies.exists());
        everything_arrives(&daemon, &sshd, &["m"]);
    }
    let (subject, body) = smtpd.wait_for(1);
    assert!(
        subject.ends_with("the worker of mirror m died"),
        "{subject}"
    );
    holds(
        &body,
        &[
            "reason: its thread ended by itself: see the daemon's log",
            "to do: it was started again by itself, and nothing is lost; please report this bug",
        ],
    );
    holds(
        &daemon.log(),
        &[
            "a bug: thread mirror m panicked at src/fault.rs",
            "mirror m: its worker has died (a bug)",
        ],
    );
    daemon.stop();
    assert_eq!(smtpd.mails().len(), 1);
}

/// Aborts the connection of the mount to the kernel, as a person or a script may.
fn abort(at: &Path) {
    let connections = tempfile::tempdir().unwrap();
    mount(
        "none",
        connections.path(),
        "fusectl",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let part = format!(" {} ", at.display());
    let line = mounts.lines().rfind(|l| l.contains(&part)).unwrap();
    let device = line.split_whitespace().nth(2).unwrap();
    let minor = device.split_once(':').unwrap().1;
    let written = fs::write(connections.path().join(minor).join("abort"), "1");
    unmount(connections.path(), UnmountFlags::DETACH).unwrap();
    written.unwrap();
}

#[test]
fn a_mount_that_is_taken_away_is_mailed_before_the_daemon_ends() {
    for by_abort in [true, false] {
        let smtpd = Smtpd::start(Wants::Nothing);
        let mut daemon = Daemon::new();
        mail(&mut daemon, &smtpd, "");
        daemon.start();
        fs::write(daemon.source().join("file"), "bytes").unwrap();
        // Who stands in it keeps it alive, detached.
        let inside = fs::File::open(daemon.source()).unwrap();
        match by_abort {
            true => abort(&daemon.source()),
            false => unmount(daemon.source(), UnmountFlags::DETACH).unwrap(),
        }
        let (subject, body) = smtpd.wait_for(1);
        assert!(
            subject.ends_with("the mount was taken away, and the daemon has ended"),
            "{subject}"
        );
        holds(
            &body,
            &[
                &format!(
                    "reason: {} was unmounted, not by the daemon",
                    daemon.source().display()
                ),
                "to do: find out who unmounted it, and start the daemon again",
            ],
        );
        assert_eq!(daemon.ends(), Some(0));
        holds(&daemon.log(), &["was unmounted: stopping"]);
        // What was made at its path meanwhile is found by the next one.
        fs::write(daemon.source().join("bare"), "bytes").unwrap();
        daemon.start();
        assert!(daemon.source().join("file").exists());
        daemon.stop();
        drop(inside);
        assert_eq!(smtpd.mails().len(), 1);
    }
}

#[test]
fn a_mirror_that_fell_out_of_the_log_is_mailed_with_what_to_do() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let mut sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    fs::write(daemon.source().join("first"), "bytes").unwrap();
    daemon.wait();
    sshd.stop();
    for n in 0..9 {
        fs::write(daemon.source().join("second"), n.to_string()).unwrap();
    }
    daemon.stop();
    daemon.lose_what_is_owed("m");
    daemon.start();
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.ends_with("mirror m needs a sync"), "{subject}");
    let words = "its changes were dropped from the log, which would have outgrown log_limit";
    holds(&body, &["reason: it was out of reach", words, "to do: "]);
    let both = |m: &serde_json::Value| {
        let error = m["last_error"].as_str().unwrap_or_default();
        error.contains("refuses the connection") && error.contains(words)
    };
    daemon.wait_for_mirror("m", both);
    sshd.restart();
    everything_arrives(&daemon, &sshd, &["m"]);
    let (subject, _) = smtpd.wait_for(2);
    assert!(
        subject.ends_with("mirror m needs no sync any more"),
        "{subject}"
    );
    let mirror = daemon.mirror("m");
    assert_eq!(mirror["last_error"], serde_json::Value::Null, "{mirror:#}");
    daemon.stop();
}
