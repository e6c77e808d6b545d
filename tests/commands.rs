//! The program as an administrator uses it: every command's output and exit code, signals, reloads, and
//! starts that must be refused.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives, known_anywhere, wait_until};
use super::support::daemon::{Daemon, PATIENCE};
use super::support::relay::Relay;
use super::support::sshd::{ORDINARY_USER, Sshd, die_with_us, ids_of};
use super::support::tree::{assert_same, differences};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a command said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn say(mut command: Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command that fails with 1, prints nothing, and says why in one line.
#[track_caller]
fn fails(daemon: &Daemon, arguments: &[&str], why: &str) {
    let said = say(daemon.proxyfs(arguments));
    assert_eq!(said.code, Some(1), "{arguments:?}: {}", said.err);
    assert_eq!(said.out, "");
    assert!(
        said.err.starts_with("proxyfs: ") && said.err.contains(why),
        "{}",
        said.err
    );
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
}

/// A daemon whose end is of interest.
struct Run(Child);

impl Run {
    fn spawn(daemon: &Daemon) -> Run {
        let mut command = daemon.proxyfs(&["run"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(daemon.file("stderr")).unwrap());
        die_with_us(&mut command);
        Run(command.spawn().unwrap())
    }

    /// One that is up.
    #[track_caller]
    fn start(daemon: &Daemon) -> Run {
        let run = Run::spawn(daemon);
        let pid = format!("{}\n", run.0.id());
        let file = daemon.file("run/proxyfs.pid");
        wait_until("the daemon is up", || {
            fs::read_to_string(&file).is_ok_and(|p| p == pid)
        });
        run
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A start that must fail: its exit code and what it said.
#[track_caller]
fn refused(daemon: &Daemon) -> (Option<i32>, String) {
    let code = Run::spawn(daemon).end().code();
    (code, fs::read_to_string(daemon.file("stderr")).unwrap())
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let part = format!(" {} ", path.display());
    mounts
        .lines()
        .any(|l| l.contains(&part) && l.contains(" fuse.proxyfs "))
}

/// Nothing of the daemon is there any more but its state.
#[track_caller]
fn assert_gone(daemon: &Daemon) {
    assert!(!is_mounted(&daemon.source()));
    assert!(!daemon.file("run/proxyfs.pid").exists());
    assert!(!daemon.file("run/proxyfs.sock").exists());
}

/// Takes a mount away that a failing test leaves.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        while unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

fn replace(daemon: &mut Daemon, from: &str, to: &str) {
    let ini = daemon.ini_mut();
    assert!(ini.contains(from), "{ini}");
    *ini = ini.replace(from, to);
    daemon.write_ini();
}

/// Mounts elsewhere than over the source.
fn mount_elsewhere(daemon: &mut Daemon) -> (PathBuf, Unmount) {
    let mount_point = daemon.file("mnt");
    fs::create_dir(&mount_point).unwrap();
    let from = format!("mount_point = {}", daemon.source().display());
    replace(
        daemon,
        &from,
        &format!("mount_point = {}", mount_point.display()),
    );
    (mount_point.clone(), Unmount(mount_point))
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
        "daemon: running, pid {}\nmount: {} (over itself)\nlog: 0 changes so far, ",
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
    assert!(status.contains("\nmirror m: paused\n"), "{status}");
    assert!(
        status.contains("  pending    3 changes, 2.0 KiB, the oldest "),
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
        status.starts_with("daemon: not running (start it with `proxyfs run`)\n"),
        "{status}"
    );
    assert!(status.contains("\nmirror m: paused\n"), "{status}");
    assert!(
        status.contains("  pending    1 change, 8 B, the oldest "),
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
