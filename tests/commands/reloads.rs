//! Reloads, and what a configuration changes.

use super::*;

#[test]
fn a_reload_disturbs_no_mirror_that_it_does_not_change() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let (port, known) = (relay.port().to_string(), known_anywhere(&sshd));
    let mut daemon = Daemon::with("flush_max = 10m");
    add(
        &mut daemon,
        "stays",
        &sshd,
        &[("port", &port), ("known_hosts", &known)],
    );
    daemon.start();
    daemon.wait_for_mirror("stays", |m| m["state"] == "synced");
    assert_eq!(relay.connections(), 1);
    let alone = daemon.ini_mut().clone();
    let hup = |daemon: &Daemon, said: &str| {
        daemon.signal(libc::SIGHUP);
        let line = format!("] configuration read again: {said}\n");
        wait_until(said, || daemon.log().contains(&line));
    };
    let www = daemon.source();

    add(&mut daemon, "other", &sshd, &[]);
    hup(&daemon, "mirror other added");
    fs::write(www.join("one"), "for both").unwrap();
    everything_arrives(&daemon, &sshd, &["stays", "other"]);

    let here = base(&sshd, "other").display().to_string();
    let there = base(&sshd, "elsewhere").display().to_string();
    fs::write(base(&sshd, "elsewhere").join("one"), "a copy").unwrap();
    replace(
        &mut daemon,
        &format!("path = {here}\n"),
        &format!("path = {there}\n"),
    );
    hup(&daemon, "mirror other changed");
    // A directory without a marker may be anything: it takes a word that the copy was made.
    daemon.wait_for_mirror("other", |m| m["state"] == "needs-sync");
    daemon.ok(&["resume", "other"]);
    fs::write(www.join("two"), "for both").unwrap();
    daemon.wait();
    assert_eq!(
        fs::read_to_string(base(&sshd, "elsewhere").join("two")).unwrap(),
        "for both"
    );
    assert!(!base(&sshd, "other").join("two").exists());

    *daemon.ini_mut() = alone;
    replace(&mut daemon, "flush_max = 10m\n", "flush_max = 20m\n");
    hup(
        &daemon,
        "mirror other removed; flush_max will change at the next start",
    );
    fs::write(www.join("three"), "for one").unwrap();
    daemon.wait();
    assert_same(&www, &base(&sshd, "stays"));
    assert!(!base(&sshd, "elsewhere").join("three").exists());
    fails(&daemon, &["pause", "other"], "configured: stays");
    assert_eq!(
        relay.connections(),
        1,
        "the mirror that stays was disturbed"
    );
    daemon.stop();
}

#[test]
fn a_wrong_configuration_at_a_reload_changes_nothing_and_is_told() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    let good = daemon.ini_mut().clone();
    *daemon.ini_mut() = good
        .replace("[mirror m]", "[miror m]")
        .replace("log_level = debug", "log_level = loud");
    daemon.write_ini();
    daemon.signal(libc::SIGHUP);
    wait_until("it is told", || daemon.log().contains("unknown section"));
    let log = daemon.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("configuration not changed: "))
        .collect();
    let file = daemon.config().display().to_string();
    assert_eq!(told.len(), 2, "{log}");
    for line in told {
        assert!(
            line.contains("[ERROR]") && line.contains(&format!("{file}:")),
            "{line}"
        );
    }
    let said = say(daemon.proxyfs(&["check-config"]));
    assert_eq!(said.code, Some(2));
    assert!(
        said.err.contains("`[miror m]`: did you mean [mirror m]?"),
        "{}",
        said.err
    );
    *daemon.ini_mut() = good;
    daemon.write_ini();
    fs::write(daemon.source().join("file"), "goes on").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

/// A mirror that ends slowly holds a reload up, and nobody who asks.
#[test]
fn the_daemon_answers_while_a_mirror_takes_its_time_to_end() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    // It connects, and hears nothing.
    relay.hold();
    let mut daemon = Daemon::new();
    let without = daemon.ini_mut().clone();
    let (port, known) = (relay.port().to_string(), known_anywhere(&sshd));
    add(
        &mut daemon,
        "slow",
        &sshd,
        &[("port", &port), ("known_hosts", &known)],
    );
    daemon.start();
    wait_until("it is connecting", || relay.connections() > 0);
    *daemon.ini_mut() = without;
    daemon.write_ini();
    let mut reload = daemon.proxyfs(&["reload"]);
    let mut reload = reload.stdout(Stdio::null()).spawn().unwrap();
    let mut answers = 0;
    while reload.try_wait().unwrap().is_none() {
        daemon.status();
        answers += 1;
    }
    // It takes two seconds to cut off who is connecting; an answer some milliseconds.
    assert!(answers > 3, "{answers} answers while it was reloading");
    assert!(
        daemon.log().contains("mirror slow removed"),
        "{}",
        daemon.log()
    );
    daemon.stop();
}

#[test]
fn a_bad_file_of_one_mirror_changes_nothing_and_is_named() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    fs::create_dir(daemon.file("mirrors.d")).unwrap();
    let bad = daemon.file("mirrors.d/bad.ini");
    fs::write(&bad, "[mirror bad]\nhost = h\nusr = u\npath = /p\n").unwrap();
    let said = say(daemon.proxyfs(&["reload"]));
    assert_eq!(said.code, Some(2), "{}", said.err);
    let line = format!("{}:3: unknown key `usr`", bad.display());
    assert!(
        said.err.contains(&line) && said.err.contains("`user`"),
        "{}",
        said.err
    );
    daemon.signal(libc::SIGHUP);
    let told = format!("configuration not changed: {line}");
    wait_until("it is told", || daemon.log().contains(&told));
    fs::remove_file(&bad).unwrap();
    assert_eq!(daemon.status()["mirrors"].as_array().unwrap().len(), 1);
    fs::write(daemon.source().join("file"), "goes on").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_log_file_that_was_moved_away_is_opened_anew() {
    let mut daemon = Daemon::new();
    daemon.start();
    fs::rename(daemon.file("log"), daemon.file("log.1")).unwrap();
    daemon.signal(libc::SIGHUP);
    wait_until("there is a new log", || {
        daemon.log().contains("configuration read again")
    });
    let old = fs::read_to_string(daemon.file("log.1")).unwrap();
    assert!(
        old.contains("is mounted at") && !old.contains("read again"),
        "{old}"
    );
    daemon.stop();
    assert!(daemon.log().ends_with("stopped\n"));
}

#[test]
fn owners_are_carried_over_where_that_is_asked_for() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "with", &sshd, &[("preserve_owner", "yes")]);
    add(&mut daemon, "without", &sshd, &[]);
    daemon.start();
    let www = daemon.source();
    fs::create_dir(www.join("dir")).unwrap();
    for name in ["dir/file", "dir/program", "later"] {
        fs::write(www.join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("file", www.join("dir/link")).unwrap();
    for (name, uid, gid) in [
        ("dir", 1234, 4321),
        ("dir/file", 1235, 4320),
        ("dir/program", 7, 8),
    ] {
        chown(www.join(name), Some(uid), Some(gid)).unwrap();
    }
    std::os::unix::fs::lchown(www.join("dir/link"), Some(1236), Some(4322)).unwrap();
    // chown takes set-id bits away; they are given after it.
    fs::set_permissions(www.join("dir/program"), Permissions::from_mode(0o6755)).unwrap();
    everything_arrives(&daemon, &sshd, &["with", "without"]);
    chown(www.join("later"), Some(1), None).unwrap();
    fs::write(www.join("dir/file"), "written again").unwrap();
    everything_arrives(&daemon, &sshd, &["with", "without"]);
    let (with, without) = (base(&sshd, "with"), base(&sshd, "without"));
    assert_eq!(differences(&www, &with, true), [""; 0]);
    let owner = |path: PathBuf| {
        fs::symlink_metadata(path)
            .map(|m| (m.uid(), m.gid()))
            .unwrap()
    };
    assert_eq!(owner(with.join("dir/link")), (1236, 4322));
    for name in ["dir", "dir/file", "dir/link", "dir/program", "later"] {
        assert_eq!(owner(without.join(name)), (0, 0), "{name}");
    }
    daemon.stop();
}
