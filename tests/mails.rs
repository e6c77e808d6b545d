//! What needs a person is mailed, once: received and read here from a real mail server.
#![allow(clippy::unwrap_used)]

mod own;

use super::mirror_errors::{add, base, everything_arrives, never_by_itself};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Port;
use super::support::smtpd::{LOGIN, Smtpd, Wants};
use super::support::sshd::{Sshd, ids_of};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// Adds the section `[mail]`.
fn mail(daemon: &mut Daemon, smtpd: &Smtpd, lines: &str) {
    daemon.ini_mut().push_str(&smtpd.ini(lines));
    daemon.write_ini();
}

#[track_caller]
fn holds(text: &str, all: &[&str]) {
    for words in all {
        assert!(text.contains(words), "{words}: {text}");
    }
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim()
        .to_string()
}

/// Every mirror's directory is missing: they are stopped until it is made.
fn with_stopped_mirrors(names: &[&str]) -> (Sshd, Daemon) {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    for name in names {
        add(&mut daemon, name, &sshd, &never_by_itself(&[]));
        fs::remove_dir(base(&sshd, name)).unwrap();
    }
    (sshd, daemon)
}

#[test]
fn what_stops_mirrors_is_one_mail_with_what_to_do_and_one_when_it_is_over() {
    let smtpd = Smtpd::start(Wants::StartTlsAndLogin);
    let (sshd, mut daemon) = with_stopped_mirrors(&["m", "n"]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    let (subject, body) = smtpd.wait_for(1);
    let host = host();
    assert_eq!(
        subject,
        format!("[proxyfs {host}] mirror m is stopped, and one more")
    );
    let place = sshd.base().join("m");
    holds(
        &body,
        &[
            &format!(
                "ProxyFS on {host}, which mirrors {}",
                daemon.source().display()
            ),
            &format!(
                "Mirror m is stopped mirror: m, {}@127.0.0.1:{}, port ",
                sshd.user(),
                place.display()
            ),
            " UTC (",
            &format!(
                "reason: the mirror's directory {} does not exist: create it there",
                place.display()
            ),
            "to do: put right what the reason says; then `proxyfs try-again m`",
            "Mirror n is stopped",
            "All mirrors, at ",
            &format!("`proxyfs status` on {host}"),
        ],
    );
    let first = &smtpd.mails()[0];
    assert_eq!(first["tls"], true);
    assert_eq!(first["login"], LOGIN.0);
    assert_eq!(first["from"], "proxyfs@web1.test");
    assert_eq!(
        first["to"],
        serde_json::json!(["admin@mail.test", "night@mail.test"])
    );
    assert_eq!(first["headers"]["auto-submitted"], "auto-generated");
    for line in first["body"].as_str().unwrap().lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let status = daemon.status();
    assert_eq!(status["alarms"].as_array().unwrap().len(), 2, "{status:#}");
    assert_eq!(status["alarms"][0]["kind"], "stopped");
    assert_eq!(status["mail"]["waiting"], 0);
    assert_eq!(status["mail"]["last_error"], serde_json::Value::Null);

    // It stands, and is tried in vain: nobody has to be told again. Nor after a restart.
    daemon.ok(&["try-again"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
    daemon.kill();
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "stopped");
    base(&sshd, "m");
    daemon.ok(&["try-again", "m"]);
    let (subject, body) = smtpd.wait_for(2);
    assert_eq!(subject, format!("[proxyfs {host}] mirror m is up again"));
    holds(
        &body,
        &[
            "Mirror m is up again",
            "over: ",
            "it was: the mirror's directory",
        ],
    );
    assert!(!body.contains("to do:"), "{body}");
    let status = daemon.status();
    assert_eq!(status["alarms"].as_array().unwrap().len(), 1, "{status:#}");

    // The password went to the mail server and nowhere else.
    let said = [daemon.log(), status.to_string(), daemon.ok(&["status"])].concat();
    assert!(!said.contains(LOGIN.1), "{said}");
    let command = fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&command).contains(LOGIN.1));
    daemon.stop();
    let mails = smtpd.mails();
    assert_eq!(mails.len(), 2);
    assert!(
        mails
            .iter()
            .all(|m| !m["raw"].as_str().unwrap().contains(LOGIN.1))
    );
}

#[test]
fn many_refused_changes_are_one_mail() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[("backoff_max", "1h")]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    let locked = daemon.source().join("locked");
    fs::create_dir(&locked).unwrap();
    daemon.wait();
    let there = base(&sshd, "m").join("locked");
    chown(&there, Some(0), Some(0)).unwrap();
    // Held back, so that they come at once.
    daemon.ok(&["pause", "m"]);
    for n in 1..=60 {
        fs::write(locked.join(format!("f{n:04}")), "refused").unwrap();
    }
    daemon.ok(&["resume", "m"]);
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.contains("mirror m refuses "), "{subject}");
    holds(
        &body,
        &[
            "path: locked/f0001 reason: change ",
            "permission denied",
            "path: locked/f0010",
            " more: see `proxyfs tasks m`",
            " of them refused",
        ],
    );
    assert!(!body.contains("f0011"), "{body}");
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 60);
    let (uid, gid) = ids_of(sshd.user());
    chown(&there, Some(uid), Some(gid)).unwrap();
    daemon.ok(&["try-again"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    let (subject, _) = smtpd.wait_for(2);
    assert!(
        subject.ends_with("mirror m has taken what it refused"),
        "{subject}"
    );
    daemon.stop();
    assert_eq!(smtpd.mails().len(), 2);
}

#[test]
fn a_mail_waits_for_its_server_and_survives_a_kill() {
    let mut smtpd = Smtpd::new(Wants::Nothing);
    let (_sshd, mut daemon) = with_stopped_mirrors(&["m"]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    let failing = |daemon: &Daemon, words: &str| {
        let status = daemon.status();
        let error = status["mail"]["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_string();
        status["mail"]["waiting"] == 1 && error.contains(words)
    };
    wait_until("the mail fails", || failing(&daemon, "Connection refused"));
    holds(
        &daemon.ok(&["status"]),
        &["MAIL: 1 news cannot be mailed", "smtp"],
    );
    holds(
        &daemon.log(),
        &["no mail could be sent (it is tried again): 127.0.0.1, port "],
    );
    daemon.kill();
    // Told without a daemon too.
    assert!(
        failing(&daemon, "Connection refused"),
        "{:#}",
        daemon.status()
    );
    // Another reason: it is there, and does not want it.
    fs::write(smtpd.file("refuse"), "451 4.3.0 the spool is full today").unwrap();
    smtpd.run();
    daemon.start();
    let full = "transient error (451): 4.3.0 the spool is full today";
    wait_until("the mail is refused", || failing(&daemon, full));
    assert!(smtpd.mails().is_empty());
    fs::remove_file(smtpd.file("refuse")).unwrap();
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.ends_with("mirror m is stopped"), "{subject}");
    holds(&body, &["does not exist: create it there"]);
    wait_until("nothing waits", || daemon.status()["mail"]["waiting"] == 0);
    daemon.stop();
    assert_eq!(smtpd.mails().len(), 1);
}

#[test]
fn a_mirror_out_of_reach_or_behind_is_mailed_after_a_while() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let mut sshd = Sshd::start();
    let nobody = Port::reserve();
    let mut daemon = Daemon::new();
    add(&mut daemon, "slow", &sshd, &[("bandwidth_limit", "50k")]);
    add(&mut daemon, "gone", &sshd, &[]);
    let other = Sshd::start();
    add(
        &mut daemon,
        "dead",
        &other,
        &[("port", &nobody.number().to_string())],
    );
    mail(&mut daemon, &smtpd, "alert_after = 2s\ndigest = 1s\n");
    daemon.start();
    let (subject, body) = smtpd.wait_for(1);
    assert!(
        subject.ends_with("mirror dead cannot be reached"),
        "{subject}"
    );
    holds(
        &body,
        &[
            "reason: ",
            "refuses the connection",
            "to do: if the host is meant to be down: nothing",
        ],
    );
    fs::write(daemon.source().join("big"), vec![b'x'; 400_000]).unwrap();
    let (subject, body) = smtpd.wait_for(2);
    assert!(subject.ends_with("mirror slow is behind"), "{subject}");
    holds(
        &body,
        &[
            " still to be sent; the oldest is ",
            "to do: see `proxyfs status`",
        ],
    );
    let (subject, _) = smtpd.wait_for(3);
    assert!(subject.ends_with("mirror slow has caught up"), "{subject}");
    // One that answers again is told too.
    sshd.stop();
    let (subject, _) = smtpd.wait_for(4);
    holds(&subject, &["cannot be reached, and one more"]);
    daemon.stop();
}

#[test]
fn test_mail_tells_what_the_mail_server_said() {
    let smtpd = Smtpd::start(Wants::TlsAndLogin);
    let mut daemon = Daemon::new();
    let refused = |daemon: &Daemon| {
        let output = daemon.run(&["test-mail"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains(LOGIN.1), "{said}");
        said
    };
    holds(
        &refused(&daemon),
        &["there is no section [mail] in the configuration: add it"],
    );
    let without = daemon.ini_mut().clone();
    mail(&mut daemon, &smtpd, "");
    let said = daemon.ok(&["test-mail"]);
    holds(
        &said,
        &[
            "the daemon is not running; sent by this command: a mail to admin@mail.test, Night Shift \
             <night@mail.test> was taken (127.0.0.1, port ",
            ", tls, as watchman): 250 2.0.0 taken as number 1",
        ],
    );
    daemon.start();
    let said = daemon.ok(&["test-mail"]);
    holds(
        &said,
        &["a mail to admin@mail.test", "250 2.0.0 taken as number 2"],
    );
    let (subject, body) = smtpd.wait_for(2);
    assert_eq!(subject, format!("[proxyfs {}] test", host()));
    holds(&body, &["This is a test: mails from ProxyFS arrive here."]);
    assert_eq!(smtpd.mails()[1]["tls"], true);

    fs::write(smtpd.file("password"), "wrong\n").unwrap();
    let said = refused(&daemon);
    holds(
        &said,
        &[
            "permanent error (535)",
            "see that `user` and `password_file` in [mail] are right",
        ],
    );
    fs::remove_file(smtpd.file("password")).unwrap();
    holds(
        &refused(&daemon),
        &["password_file ", "No such file or directory"],
    );
    // Nobody vouches for the server.
    let mut strange = smtpd.ini("");
    strange = strange
        .lines()
        .filter(|l| !l.starts_with("ca_file"))
        .collect::<Vec<_>>()
        .join("\n");
    *daemon.ini_mut() = without + &strange;
    daemon.write_ini();
    daemon.ok(&["reload"]);
    fs::write(smtpd.file("password"), LOGIN.1).unwrap();
    holds(
        &refused(&daemon),
        &["certificate", "name its CA's with `ca_file` in [mail]"],
    );
    assert_eq!(smtpd.mails().len(), 2);
    daemon.stop();
}

#[test]
fn a_mail_that_was_taken_when_the_daemon_was_killed_comes_again_as_the_same() {
    let smtpd = Smtpd::start(Wants::Nothing);
    let (_sshd, mut daemon) = with_stopped_mirrors(&["m"]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    fs::write(smtpd.file("kill"), daemon.pid().to_string()).unwrap();
    smtpd.wait_for(1);
    assert_eq!(daemon.ends(), None, "it was not killed");
    daemon.start();
    let (subject, _) = smtpd.wait_for(2);
    assert!(subject.ends_with("mirror m is stopped"), "{subject}");
    wait_until("nothing waits", || daemon.status()["mail"]["waiting"] == 0);
    daemon.stop();
    let mails = smtpd.mails();
    assert_eq!(mails.len(), 2);
    let id = |n: usize| mails[n]["headers"]["message-id"].as_str().unwrap();
    assert_eq!(id(0), id(1));
}

#[test]
fn an_address_that_is_refused_keeps_nobody_else_from_being_told() {
    let smtpd = Smtpd::start(Wants::StartTlsAndLogin);
    fs::write(smtpd.file("unknown"), "admin@mail.test").unwrap();
    let (_sshd, mut daemon) = with_stopped_mirrors(&["m"]);
    mail(&mut daemon, &smtpd, "");
    daemon.start();
    let (subject, _) = smtpd.wait_for(1);
    assert!(subject.ends_with("mirror m is stopped"), "{subject}");
    let only = serde_json::json!(["night@mail.test"]);
    assert_eq!(smtpd.mails()[0]["to"], only);
    let words = "that mail was not taken for admin@mail.test: ";
    wait_until("the log tells", || daemon.log().contains(words));
    holds(&daemon.log(), &["550", "there is nobody of that name"]);
    let output = daemon.run(&["test-mail"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    holds(&said, &["was taken", "; but not for admin@mail.test: "]);
    assert_eq!(smtpd.mails()[1]["to"], only);
    // Nobody is left: it is tried again, and told.
    fs::write(smtpd.file("unknown"), "admin@mail.test night@mail.test").unwrap();
    let output = daemon.run(&["test-mail"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    holds(
        &said,
        &["permanent error (550)", "see that the server takes mails"],
    );
    daemon.stop();
    assert_eq!(smtpd.mails().len(), 2);
}

#[test]
fn a_host_with_a_sendmail_uses_that() {
    let (sshd, mut daemon) = with_stopped_mirrors(&["m"]);
    let (program, got) = (daemon.file("sendmail"), daemon.file("got"));
    let script = format!(
        "#!/bin/sh\nfor a; do echo \"<$a>\"; done > {0}.new; cat >> {0}.new; mv {0}.new {0}\n",
        got.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let lines = format!(
        "\n[mail]\nto = root@localhost\nfrom = proxyfs@web1.test\nsendmail = {}\n",
        program.display()
    );
    daemon.ini_mut().push_str(&lines);
    daemon.write_ini();
    daemon.start();
    wait_until("a mail comes", || got.exists());
    let mail = fs::read_to_string(&got).unwrap();
    holds(
        &mail,
        &[
            "<-i>\n<-f>\n<proxyfs@web1.test>\n<-->\n<root@localhost>\n",
            "To: root@localhost",
            "mirror m is stopped",
        ],
    );
    // One that fails is told of in its own words.
    fs::write(&program, "#!/bin/sh\necho 'no spool' >&2\nexit 75\n").unwrap();
    let output = daemon.run(&["test-mail"]);
    let said = String::from_utf8(output.stderr).unwrap();
    holds(&said, &["it failed (exit status: 75): no spool"]);
    drop(sshd);
    daemon.stop();
}

#[test]
fn a_hook_is_told_what_happens_and_one_that_fails_is_told_of() {
    let (sshd, mut daemon) = with_stopped_mirrors(&["m"]);
    let (program, told) = (daemon.file("hook"), daemon.file("told"));
    let script = format!(
        "#!/bin/sh\nenv | grep ^PROXYFS_ | sort > {0}.new; mv {0}.new {0}.$PROXYFS_ID\n",
        told.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let line = format!("\non_event = {}\nmount_point", program.display());
    *daemon.ini_mut() = daemon.ini_mut().replacen("\nmount_point", &line, 1);
    daemon.write_ini();
    daemon.start();
    let of = |n: u32| daemon.file(&format!("told.{n}"));
    wait_until("the hook is run", || of(1).exists());
    let environment = fs::read_to_string(of(1)).unwrap();
    holds(
        &environment,
        &[
            "PROXYFS_EVENT=stopped\n",
            "PROXYFS_CHANGE=raised\n",
            "PROXYFS_TITLE=mirror m is stopped\n",
            "PROXYFS_MIRROR=m\n",
            "PROXYFS_MIRROR_HOST=127.0.0.1\n",
            "PROXYFS_REASON=the mirror's directory ",
            &format!("PROXYFS_SOURCE={}\n", daemon.source().display()),
        ],
    );
    base(&sshd, "m");
    daemon.ok(&["try-again", "m"]);
    wait_until("the hook is run again", || of(2).exists());
    holds(
        &fs::read_to_string(of(2)).unwrap(),
        &["PROXYFS_CHANGE=recovered\n"],
    );
    // Nobody is mailed.
    assert_eq!(daemon.status()["mail"], serde_json::Value::Null);

    fs::write(&program, "#!/bin/sh\necho 'no pager' >&2\nexit 7\n").unwrap();
    daemon.kill();
    fs::remove_dir_all(base(&sshd, "m")).unwrap();
    daemon.start();
    let words = "on_event for stopped (raised): ";
    wait_until("the failure is logged", || daemon.log().contains(words));
    holds(
        &daemon.log(),
        &["/hook: it failed (exit status: 7): no pager"],
    );
    daemon.stop();
}
