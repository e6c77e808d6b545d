//! The program as an administrator uses it: every command's output and exit code, signals, reloads, and
//! starts that must be refused.
#![allow(clippy::unwrap_used)]

mod asked;
mod life;
mod reloads;

use super::mirror_errors::{add, base, everything_arrives, known_anywhere};
use super::support::daemon::{Daemon, PATIENCE};
use super::support::mounts::wait_until;
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
