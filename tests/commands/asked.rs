//! What each command says, with the daemon up and down.

use super::*;

/// The words of a mirror's line in the table of `status`.
fn row<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let words = |l: &'a str| l.split_whitespace().collect::<Vec<&str>>();
    let row = status.lines().map(words).find(|w| w.first() == Some(&name));
    row.expect(status)
}

#[test]
fn every_command_does_what_its_help_says() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let www = daemon.source();
    let checked = daemon.ok(&["check-config"]);
    assert_eq!(
        checked,
        format!("{}: no problem found\n", daemon.config().display())
    );
    let status = daemon.ok(&["status"]);
    let head = format!(
        "proxyfs   running, pid {}\nmount     {} (over itself)\nlog       0 changes so far, ",
        daemon.pid(),
        www.display()
    );
    assert!(status.starts_with(&head), "{status}");
    assert_eq!(daemon.ok(&["tasks"]), "no open tasks\n");
    assert_eq!(daemon.ok(&["tasks", "--json"]), "[]\n");

    assert_eq!(daemon.ok(&["pause", "m"]), "");
    daemon.wait_for_mirror("m", |m| m["state"] == "paused");
    fs::write(www.join("one"), vec![0; 2048]).unwrap();
    fs::rename(www.join("one"), www.join("uno")).unwrap();
    fs::create_dir(www.join("dir")).unwrap();
    let tasks = daemon.ok(&["tasks"]);
    let lines: Vec<Vec<&str>> = tasks
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["change", "mirror", "age", "size", "task"]);
    assert_eq!(lines[1][..2], ["1", "m"]);
    assert_eq!(lines[1][3..], ["2.0", "KiB", "content", "one"]);
    assert_eq!(lines[2][3..], ["rename", "one", "->", "uno"]);
    assert_eq!(lines[3][3..], ["mkdir", "dir"]);
    assert_eq!(lines.len(), 4, "{tasks}");
    let short = daemon.ok(&["tasks", "m", "--limit", "1"]);
    assert!(
        short.ends_with(
            "content one
... and 2 more
"
        ),
        "{short}"
    );
    let json: serde_json::Value = serde_json::from_str(&daemon.ok(&["tasks", "--json"])).unwrap();
    assert_eq!(json[2]["verb"], "mkdir", "{json:#}");
    let mirror = daemon.mirror("m");
    assert_eq!(
        (&mirror["pending_ops"], &mirror["pending_bytes"]),
        (&3.into(), &2048.into())
    );
    let status = daemon.ok(&["status"]);
    assert_eq!(
        row(&status, "m")[1..5],
        ["paused", "3", "2.0", "KiB"],
        "{status}"
    );
    assert!(
        status.contains("\n  to do      `proxyfs resume m` lets it go on\n"),
        "{status}"
    );
    fails(&daemon, &["wait"], "mirror m is paused: ");
    fails(
        &daemon,
        &["wait", "m", "--timeout", "60"],
        "`proxyfs resume m`",
    );

    assert_eq!(daemon.ok(&["resume", "m"]), "");
    assert_eq!(daemon.ok(&["wait", "m", "--timeout", "60"]), "");
    everything_arrives(&daemon, &sshd, &["m"]);
    for command in ["tasks", "wait", "pause", "resume"] {
        fails(
            &daemon,
            &[command, "web2"],
            "there is no mirror \"web2\"; configured: m",
        );
    }
    assert_eq!(daemon.ok(&["reload"]), "no mirror changed\n");
    for wrong in [
        &["statsu"][..],
        &["pause"],
        &["wait", "--timeout", "soon"],
        &["run", "only"],
    ] {
        let said = say(daemon.proxyfs(wrong));
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{}",
            said.err
        );
    }
    daemon.stop();
}

#[test]
fn the_status_has_every_field_that_scripts_read() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let status = daemon.status();
    let keys =
        |v: &serde_json::Value| -> Vec<String> { v.as_object().unwrap().keys().cloned().collect() };
    let listed = |v: &serde_json::Value, wanted: &str| {
        for field in wanted.split_whitespace() {
            assert!(
                keys(v).iter().any(|k| k == field),
                "{field} is not in {v:#}"
            );
        }
    };
    listed(&status, "source mount_point pid read_only log mirrors");
    listed(&status["log"], "last_seq bytes");
    listed(
        &status["mirrors"][0],
        "name host port user path state pending_ops pending_bytes parked_ops oldest_pending_seconds \
         applied_seq bytes_per_second eta_seconds current last_error retry_in_seconds unsupported",
    );
    assert_eq!(status["pid"], daemon.pid());
    daemon.stop();
}

#[test]
fn with_the_daemon_down_the_journal_tells_and_commands_say_so() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    fails(
        &daemon,
        &["status"],
        "journal.db: there is no journal here yet",
    );
    fails(&daemon, &["tasks"], "there is no journal here yet");
    assert!(!daemon.file("state").exists() && !daemon.file("run").exists());
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    daemon.ok(&["pause", "m"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "paused");
    fs::write(daemon.source().join("file"), "not sent").unwrap();
    daemon.stop();

    let status = daemon.ok(&["status"]);
    assert!(
        status.starts_with("proxyfs   NOT RUNNING: start it with `proxyfs run` or its service\n"),
        "{status}"
    );
    assert_eq!(
        row(&status, "m")[1..5],
        ["paused", "1", "8", "B"],
        "{status}"
    );
    assert!(daemon.status()["pid"].is_null());
    let tasks = daemon.ok(&["tasks", "m"]);
    assert!(tasks.ends_with("content file\n"), "{tasks}");
    fails(
        &daemon,
        &["tasks", "web2"],
        "there is no mirror \"web2\"; configured: m",
    );
    for command in [
        &["wait"][..],
        &["pause", "m"],
        &["resume", "m"],
        &["reload"],
        &["stop"],
    ] {
        fails(
            &daemon,
            command,
            "the daemon is not running (nobody answers at ",
        );
    }
    // A mirror stays paused over a restart, until it is resumed.
    daemon.start();
    assert_eq!(daemon.mirror("m")["state"], "paused");
    // A daemon has its journal alone. Who cannot ask it is told so, also what it had when it is dead.
    let socket = daemon.file("run").join("proxyfs.sock");
    let hidden = daemon.file("run").join("hidden.sock");
    fs::rename(&socket, &hidden).unwrap();
    fails(&daemon, &["status"], "journal.db: a daemon has it, ");
    fs::rename(&hidden, &socket).unwrap();
    fs::write(daemon.source().join("another"), "not sent either").unwrap();
    daemon.kill();
    // Two files, and what the scan at the start was not sure of.
    let pending = daemon.mirror("m")["pending_ops"].as_u64().unwrap();
    assert!((2..=4).contains(&pending), "{pending}");
    daemon.start();
    daemon.ok(&["resume", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn waiting_has_an_end_when_a_mirror_is_late() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    let (port, known) = (relay.port().to_string(), known_anywhere(&sshd));
    add(
        &mut daemon,
        "m",
        &sshd,
        &[("port", &port), ("known_hosts", &known)],
    );
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    relay.hold();
    fs::write(daemon.source().join("file"), "on its way").unwrap();
    fails(
        &daemon,
        &["wait", "--timeout", "1"],
        "after 1 s not everything is on m yet: see `proxyfs status`",
    );
    relay.resume();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn only_root_and_the_daemons_own_user_may_give_commands() {
    // The ordinary user is made by whoever needs it first.
    let _sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    daemon.start();
    let mode = |name| fs::metadata(daemon.file(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("run/proxyfs.sock"), 0o600);
    assert_eq!(mode("state"), 0o700);
    fs::set_permissions(daemon.file(""), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(daemon.file("run"), Permissions::from_mode(0o755)).unwrap();
    let (uid, gid) = ids_of(ORDINARY_USER);
    // The checkout may lie where only root gets, such as /root.
    let program = daemon.file("proxyfs");
    fs::copy(env!("CARGO_BIN_EXE_proxyfs"), &program).unwrap();
    for name in ["status", "stop"] {
        let mut command = Command::new(&program);
        command.arg(name).arg("--config").arg(daemon.config());
        command.uid(uid).gid(gid).current_dir("/");
        let said = say(command);
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(
            said.err.starts_with("proxyfs: not allowed to use "),
            "{}",
            said.err
        );
    }
    assert!(is_mounted(&daemon.source()));
    daemon.stop();
}

#[test]
fn a_typing_error_in_the_configuration_is_told_with_its_line_and_nothing_is_touched() {
    let mut daemon = Daemon::new();
    replace(&mut daemon, "mount_point = ", "moutn_point = ");
    let before = fs::read_dir(daemon.file("")).unwrap().count();
    for command in ["run", "check-config", "status"] {
        let said = say(daemon.proxyfs(&[command]));
        assert_eq!(
            (said.code, said.out.as_str()),
            (Some(2), ""),
            "{}",
            said.err
        );
        assert!(said.err.starts_with("proxyfs: "), "{}", said.err);
        let line = format!(
            "{}:3: unknown key `moutn_point` in [proxyfs]: did you mean `mount_point`?",
            daemon.config().display()
        );
        assert!(said.err.contains(&line), "{}\n{line}", said.err);
    }
    assert_eq!(fs::read_dir(daemon.file("")).unwrap().count(), before);
    assert_eq!(fs::read_dir(daemon.source()).unwrap().count(), 0);
    assert!(!is_mounted(&daemon.source()));
    fs::remove_file(daemon.config()).unwrap();
    let said = say(daemon.proxyfs(&["run"]));
    assert_eq!(said.code, Some(2));
    assert!(
        said.err
            .contains("proxyfs.ini: there is no such file: create it from"),
        "{}",
        said.err
    );
}

#[test]
fn the_log_has_a_line_for_an_event_and_none_for_a_file() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    replace(&mut daemon, "log_level = debug", "log_level = info");
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    for n in 0..100 {
        fs::write(daemon.source().join(n.to_string()), "small").unwrap();
    }
    everything_arrives(&daemon, &sshd, &["m"]);
    let busy = daemon.log();
    assert!((2..=4).contains(&busy.lines().count()), "{busy}");
    // To see that nothing happens takes a while.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.log(), busy);
    daemon.stop();
    let rest = daemon.log()[busy.len()..].to_string();
    assert_eq!(rest.lines().count(), 2, "{rest}");
}

#[test]
fn a_daemon_whose_file_got_a_mistake_still_tells_how_it_is() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    let good = daemon.ini_mut().clone();
    for (wrong, words) in [
        ("mount_piont = /x", "unknown key `mount_piont`"),
        ("this is no INI", "is neither `key = value` nor"),
    ] {
        *daemon.ini_mut() = good.replacen("source =", &format!("{wrong}\nsource ="), 1);
        daemon.write_ini();
        for command in [
            &["status"][..],
            &["status", "--json"],
            &["tasks"],
            &["wait"],
            &["metrics"],
        ] {
            let said = say(daemon.proxyfs(command));
            assert_eq!(said.code, Some(0), "{command:?}: {}", said.err);
            assert!(said.err.contains(words), "{}", said.err);
            assert!(
                said.err
                    .lines()
                    .all(|l| l.starts_with("proxyfs: warning: ")),
                "{}",
                said.err
            );
        }
        let status = daemon.ok(&["status"]);
        assert!(status.starts_with(&format!("proxyfs   running, pid {}\n", daemon.pid())));
        let said = say(daemon.proxyfs(&["check"]));
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(1), ""),
            "{}",
            said.out
        );
        assert!(
            said.out
                .starts_with("PROXYFS WARNING - the daemon would not start again")
                && said.out.contains(words),
            "{}",
            said.out
        );
        // A reload changes nothing, and says why.
        let said = say(daemon.proxyfs(&["reload"]));
        assert_eq!(said.code, Some(2), "{}", said.err);
        assert!(said.err.contains(words), "{}", said.err);
        daemon.signal(libc::SIGHUP);
        wait_until("the log tells", || {
            daemon.log().contains("configuration not changed: ") && daemon.log().contains(words)
        });
    }
    // What tells nothing about its daemon is no other's.
    let elsewhere = daemon.file("none.ini");
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyfs"));
    command.arg("status").arg("--config").arg(&elsewhere);
    let said = say(command);
    assert_eq!(said.code, Some(2), "{}", said.err);
    *daemon.ini_mut() = good;
    daemon.write_ini();
    assert_eq!(daemon.mirror("m")["state"], "synced");
    daemon.stop();
}
