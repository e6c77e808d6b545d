//! The program as a service: what it tells systemd, what a killed one leaves, what it needs of the machine, and the
//! files that init systems are given.
#![allow(clippy::unwrap_used)]

use super::support::daemon::{Daemon, PATIENCE};
use super::support::mounts::wait_until;
use super::support::sshd::Sshd;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn packaging(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    fs::read_to_string(dir.join(name)).unwrap()
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_when_the_mount_can_be_used_and_when_it_ends() {
    let daemon = Daemon::new();
    let socket = daemon.file("notify");
    let heard = UnixDatagram::bind(&socket).unwrap();
    heard.set_read_timeout(Some(PATIENCE)).unwrap();
    let next = || {
        let mut buffer = [0; 500];
        let length = heard.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        text.lines().next().unwrap().to_string()
    };
    let mut run = daemon.proxyfs(&["run"]);
    run.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null());
    let mut run = Killed(run.spawn().unwrap());
    assert_eq!(next(), "READY=1");
    assert!(daemon.file("run/proxyfs.pid").exists());
    fs::write(daemon.source().join("file"), "through the mount").unwrap();
    assert_eq!(daemon.status()["log"]["last_seq"], 1);
    kill_process(Pid::from_child(&run.0), Signal::HUP).unwrap();
    assert_eq!(next(), "RELOADING=1");
    assert_eq!(next(), "READY=1");
    kill_process(Pid::from_child(&run.0), Signal::TERM).unwrap();
    assert_eq!(next(), "STOPPING=1");
    assert_eq!(run.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_a_killed_daemon_left_is_taken_away_by_stop_and_a_running_one_is_not() {
    let mut daemon = Daemon::new();
    for arguments in [&["stop", "--stale"][..], &["stop"]] {
        daemon.start();
        fs::write(daemon.source().join("file"), "kept").unwrap();
        daemon.ok(&["stop", "--stale"]);
        assert_eq!(daemon.status()["pid"], daemon.pid(), "it goes on");
        daemon.kill();
        assert!(fs::read_dir(daemon.source()).is_err(), "a dead mount");
        daemon.ok(arguments);
        let file = fs::read_to_string(daemon.source().join("file"));
        assert_eq!(file.unwrap(), "kept");
        daemon.ok(&["stop", "--stale"]);
        assert_eq!(daemon.run(&["stop"]).status.code(), Some(1));
    }
}

#[test]
fn an_idle_daemon_is_small() {
    let (sshd, mut daemon) = (Sshd::start(), Daemon::new());
    for name in ["web2", "web3"] {
        daemon.add_mirror(name, &sshd);
        let base = sshd.base().join(name);
        fs::create_dir(&base).unwrap();
        let path = format!("path = {}\n", sshd.base().display());
        *daemon.ini_mut() = daemon
            .ini_mut()
            .replace(&path, &format!("path = {}\n", base.display()));
    }
    daemon.write_ini();
    daemon.start();
    fs::write(daemon.source().join("file"), "arrives").unwrap();
    daemon.wait();
    let status = format!("/proc/{}/status", daemon.pid());
    let kib = |what: &str| -> u64 {
        let all = fs::read_to_string(&status).unwrap();
        let line = all.lines().find(|l| l.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Pages of the program itself are not counted: this one is not optimized, and not stripped.
    wait_until(
        "an idle daemon with two mirrors takes less than 16 MiB",
        || kib("RssAnon:") < 12 << 10 && kib("VmRSS:") < 40 << 10,
    );
    daemon.stop();
}

#[test]
fn the_program_needs_openssl_and_the_c_library_only() {
    let program = env!("CARGO_BIN_EXE_proxyfs");
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<&str> = text
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .filter_map(|l| l.rsplit('/').next())
        .filter_map(|l| l.split(".so").next())
        .map(|l| {
            if l.starts_with("ld-linux") {
                "ld-linux"
            } else {
                l
            }
        })
        .collect();
    let allowed = [
        "libssl",
        "libcrypto",
        "libz",
        "libzstd",
        "libgcc_s",
        "libm",
        "libc",
        "ld-linux",
        "linux-vdso",
    ];
    assert!(found.contains("libssl") && found.contains("libc"), "{text}");
    for library in found {
        assert!(allowed.contains(&library), "{library} is new:\n{text}");
    }
}

#[test]
fn the_units_of_systemd_are_good_and_leave_the_mount_visible() {
    let unit = packaging("systemd/proxyfs.service");
    // Each of these gives the service a mount namespace of its own (systemd.exec(5)).
    for option in [
        "Protect",
        "Private",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "Bind",
        "Root",
        "Mount",
        "Dynamic",
        "ProcSubset",
        "LogNamespace",
        "StateDirectory",
    ] {
        let given = unit.lines().find(|l| l.starts_with(option));
        assert_eq!(given, None);
    }
    let template = packaging("systemd/proxyfs@.service");
    let of_template = unit
        .replace("over SFTP\n", "over SFTP (%i)\n")
        .replace("/etc/proxyfs/proxyfs.ini", "/etc/proxyfs/%i.ini")
        .replace("edit proxyfs`", "edit proxyfs@NAME`");
    assert!(
        template.ends_with(&of_template),
        "the two differ in more than the name"
    );
    // systemd's own opinion, where it is installed.
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("proxyfs.service", unit),
        ("proxyfs@shop.service", template),
    ] {
        let program = env!("CARGO_BIN_EXE_proxyfs");
        let text = text
            .replace("/usr/bin/proxyfs", program)
            .replace("Documentation=", "#");
        fs::write(dir.path().join(name), text).unwrap();
        let mut verify = Command::new("systemd-analyze");
        match verify.arg("verify").arg(dir.path().join(name)).output() {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            said => {
                let said = said.unwrap();
                let told = String::from_utf8(said.stderr).unwrap();
                assert!(said.status.success() && !told.contains(name), "{told}");
            }
        }
    }
}
