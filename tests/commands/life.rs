//! Starts, also those that must be refused, and ends.

use super::*;

#[test]
fn signals_and_stop_end_it_gracefully_and_leave_nothing() {
    let daemon = Daemon::new();
    let ways = [
        ("SIGTERM", Some(Signal::TERM)),
        ("SIGINT", Some(Signal::INT)),
        ("asked to by `proxyfs stop`", None),
    ];
    for (why, signal) in ways {
        let mut run = Run::start(&daemon);
        assert!(is_mounted(&daemon.source()));
        fs::write(daemon.source().join(why), "kept").unwrap();
        match signal {
            Some(signal) => run.signal(signal),
            None => {
                daemon.ok(&["stop"]);
                // It is gone when the command returns.
                let stat = fs::read_to_string(format!("/proc/{}/stat", run.0.id()));
                assert!(stat.is_ok_and(|s| s.contains(") Z ")));
            }
        }
        assert_eq!(run.end().code(), Some(0), "{why}");
        assert_gone(&daemon);
        let log = daemon.log();
        assert!(log.contains(&format!("] stopping: {why}\n")), "{log}");
        assert!(log.ends_with("stopped\n"), "{log}");
        assert_eq!(
            fs::read_to_string(daemon.source().join(why)).unwrap(),
            "kept"
        );
        assert_eq!(fs::read_to_string(daemon.file("stderr")).unwrap(), "");
    }
}

#[test]
fn a_second_daemon_is_refused_whatever_it_shares_with_the_first() {
    let mut first = Daemon::new();
    let (_, _unmount) = mount_elsewhere(&mut first);
    let mut over_itself = Daemon::new();
    for daemon in [&mut first, &mut over_itself] {
        daemon.start();
    }
    let shared = [
        (
            "state",
            format!(
                "another proxyfs uses {}: stop it first",
                first.file("state").display()
            ),
        ),
        (
            "www",
            format!(
                "another proxyfs uses {}: stop it first",
                first.source().display()
            ),
        ),
        (
            "run",
            format!(
                "another daemon answers at {}/proxyfs.sock: stop it with `proxyfs stop`, or give this one",
                first.file("run").display()
            ),
        ),
    ];
    for (what, why) in shared {
        let mut second = Daemon::new();
        let (mount_point, _unmount) = mount_elsewhere(&mut second);
        let theirs = first.file(what).display().to_string();
        let own = second.file(what).display().to_string();
        replace(&mut second, &format!("= {own}\n"), &format!("= {theirs}\n"));
        let (code, said) = refused(&second);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(
            said.starts_with("proxyfs: ") && said.contains(&why),
            "{what}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!is_mounted(&mount_point), "{what}");
        // The log file tells it too.
        assert!(second.log().contains(&why), "{what}: {}", second.log());
    }
    let mut second = Daemon::new();
    let (_, _unmount) = mount_elsewhere(&mut second);
    let own = format!("source = {}\n", second.source().display());
    let theirs = format!("source = {}\n", over_itself.source().display());
    replace(&mut second, &own, &theirs);
    let (code, said) = refused(&second);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("is a FUSE file system; most likely another proxyfs"),
        "{said}"
    );
    // The first ones did not notice.
    for daemon in [&mut first, &mut over_itself] {
        assert_eq!(daemon.status()["pid"], daemon.pid());
        daemon.stop();
    }
}

#[test]
fn a_source_whose_disk_is_not_mounted_is_not_taken_for_an_empty_one() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let www = daemon.source();
    fs::write(www.join("file"), "not to be lost").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
    let disk = daemon.file("disk");
    fs::rename(&www, &disk).unwrap();
    fs::create_dir(&www).unwrap();
    let why = "has no .proxyfs/id): is its disk not mounted?";
    let (code, said) = refused(&daemon);
    assert_eq!(code, Some(1));
    assert!(said.contains(why), "{said}");
    assert_gone(&daemon);
    assert_eq!(
        fs::read_dir(&www).unwrap().count(),
        0,
        "it was left as it is"
    );
    // Nor is another source.
    fs::create_dir(www.join(".proxyfs")).unwrap();
    fs::write(www.join(".proxyfs/id"), "0123456789abcdef\n").unwrap();
    let (code, said) = refused(&daemon);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("is another source than the one that the journal"),
        "{said}"
    );
    assert!(base(&sshd, "m").join("file").exists());

    fs::remove_dir_all(&www).unwrap();
    fs::rename(&disk, &www).unwrap();
    daemon.start();
    fs::write(www.join("file"), "and goes on").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn after_a_kill_the_next_start_clears_the_dead_mount_and_nothing_is_lost() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    daemon.ok(&["pause", "m"]);
    let www = daemon.source();
    for n in 0..20 {
        fs::write(www.join(n.to_string()), vec![n; 1000]).unwrap();
    }
    fs::rename(www.join("0"), www.join("zero")).unwrap();
    daemon.kill();
    let dead = fs::read_dir(&www).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN), "{dead}");
    // Its pid file and socket are there, but nobody is at home.
    assert!(daemon.file("run/proxyfs.pid").exists());
    fails(&daemon, &["wait"], "the daemon is not running");
    assert_eq!(daemon.mirror("m")["pending_ops"], 21);

    daemon.start();
    let line = format!(
        "{}: a dead mount of an earlier run is cleared",
        www.display()
    );
    assert!(daemon.log().contains(&line), "{}", daemon.log());
    assert_eq!(fs::read(www.join("19")).unwrap(), vec![19; 1000]);
    daemon.ok(&["resume", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
    assert_gone(&daemon);
}

#[test]
fn an_open_file_does_not_keep_the_daemon_and_what_was_written_is_sent() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::with("flush_after = 1h\nflush_max = 2h");
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    let mut open = fs::File::create(daemon.source().join("upload")).unwrap();
    open.write_all(b"written and not closed").unwrap();
    daemon.stop();
    assert_gone(&daemon);
    let log = daemon.log();
    assert!(
        log.contains("the mount is detached, but some process still uses it"),
        "{log}"
    );
    drop(open);
    let there = fs::read_to_string(daemon.source().join("upload")).unwrap();
    assert_eq!(there, "written and not closed");
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn an_umount_by_hand_ends_the_daemon_gracefully() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    let mut run = Run::start(&daemon);
    fs::write(daemon.source().join("file"), "arrives").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    wait_until("the mount is not busy", || {
        unmount(daemon.source(), UnmountFlags::NOFOLLOW).is_ok()
    });
    assert_eq!(run.end().code(), Some(0));
    assert_gone(&daemon);
    let log = daemon.log();
    assert!(
        log.contains("was unmounted: stopping") && log.ends_with("stopped\n"),
        "{log}"
    );
}

#[test]
fn several_daemons_run_side_by_side() {
    let sshd = Sshd::start();
    let names = ["a", "b", "c"];
    let mut daemons = names.map(|name| {
        let mut daemon = Daemon::new();
        add(&mut daemon, name, &sshd, &[]);
        daemon.start();
        daemon
    });
    for (daemon, name) in daemons.iter().zip(names) {
        fs::write(daemon.source().join(name), name).unwrap();
    }
    for (daemon, name) in daemons.iter().zip(names) {
        everything_arrives(daemon, &sshd, &[name]);
        assert_eq!(daemon.status()["mirrors"].as_array().unwrap().len(), 1);
    }
    daemons[1].ok(&["stop"]);
    assert_gone(&daemons[1]);
    assert_eq!(daemons[0].status()["pid"], daemons[0].pid());
    daemons.iter_mut().for_each(Daemon::stop);
}

#[test]
fn a_mount_point_outside_of_the_source_works_too() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    let (mnt, _unmount) = mount_elsewhere(&mut daemon);
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    assert!(is_mounted(&mnt) && !is_mounted(&daemon.source()));
    fs::create_dir(mnt.join("dir")).unwrap();
    fs::write(mnt.join("dir/file"), "through the mount").unwrap();
    assert!(!mnt.join(".proxyfs").exists());
    everything_arrives(&daemon, &sshd, &["m"]);
    assert_same(&mnt, &base(&sshd, "m"));
    let (status, path) = (daemon.status(), |path: &Path| path.display().to_string());
    assert_eq!(status["source"], path(&daemon.source()));
    assert_eq!(status["mount_point"], path(&mnt));
    daemon.stop();
    assert!(!is_mounted(&mnt));
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
}

#[test]
fn a_mount_whose_daemon_dies_while_it_is_asked_is_cleared_too() {
    let mut daemon = Daemon::new();
    daemon.start();
    // As the service manager does when it has killed one that does not end.
    daemon.signal(libc::SIGSTOP);
    let mut command = daemon.proxyfs(&["stop", "--stale"]);
    die_with_us(&mut command);
    let mut stale = command.spawn().unwrap();
    let place = format!("/proc/{}/wchan", stale.id());
    wait_until("it asks the daemon", || {
        fs::read_to_string(&place).is_ok_and(|place| place.contains("request_wait_answer"))
    });
    daemon.kill();
    let status = stale.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(!is_mounted(&daemon.source()));
}
