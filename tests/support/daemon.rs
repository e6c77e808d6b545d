//! The real daemon: the program itself, with an INI file of its own, a source, a state directory and any
//! mirrors. Stopped and unmounted when dropped, also when a test fails.
#![allow(clippy::unwrap_used)]

use super::sshd::{Sshd, die_with_us};
use proxyfs::journal::Journal;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for what must come: far longer than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon to be run, running, or stopped again.
pub struct Daemon {
    dir: tempfile::TempDir,
    child: Option<Child>,
    ini: String,
    /// What the daemon finds in its environment.
    environment: Vec<(&'static str, String)>,
}

impl Daemon {
    /// A source mounted over itself, no mirror yet; not running.
    pub fn new() -> Daemon {
        Daemon::with("")
    }

    /// The same with more lines in the section `[proxyfs]`.
    pub fn with(lines: &str) -> Daemon {
        assert!(
            rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "these tests need root and /dev/fuse"
        );
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("www")).unwrap();
        let d = dir.path().display();
        let ini = format!(
            "[proxyfs]\nsource = {d}/www\nmount_point = {d}/www\nstate_dir = {d}/state\n\
             run_dir = {d}/run\nlog_file = {d}/log\nlog_level = debug\n{lines}\n"
        );
        let daemon = Daemon {
            dir,
            child: None,
            ini,
            environment: Vec::new(),
        };
        daemon.write_ini();
        daemon
    }

    /// Adds a mirror on a private server, reached on `port` (a relay's), with more lines of INI.
    pub fn add_mirror_at(&mut self, name: &str, sshd: &Sshd, port: u16, lines: &str) {
        write!(
            self.ini,
            "\n[mirror {name}]\nhost = 127.0.0.1\nport = {port}\nuser = {}\npath = {}\nkey = {}\n\
             known_hosts = {}\nbackoff_min = 50ms\nbackoff_max = 500ms\n{lines}\n",
            sshd.user(),
            sshd.base().display(),
            sshd.key_path().display(),
            sshd.known_hosts_path().display(),
        )
        .unwrap();
        self.write_ini();
    }

    /// Adds a mirror on a private server.
    pub fn add_mirror(&mut self, name: &str, sshd: &Sshd) {
        self.add_mirror_at(name, sshd, sshd.port(), "");
    }

    /// The INI text, to be changed; see [`Daemon::write_ini`].
    pub fn ini_mut(&mut self) -> &mut String {
        &mut self.ini
    }

    /// Has a thread of the daemon die at this point (see `fault.rs`), each time that the file which this gives is made.
    pub fn lets_die_at(&mut self, point: &str) -> PathBuf {
        let file = self.file("die");
        self.environment
            .push(("PROXYFS_DIE_AT", format!("{point}={}", file.display())));
        file
    }

    /// Puts the INI text into its file.
    pub fn write_ini(&self) {
        fs::write(self.config(), &self.ini).unwrap();
    }

    /// The INI file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("proxyfs.ini")
    }

    /// The source, and the mount over it.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("www")
    }

    /// A file or directory of the daemon's: `state`, `run`, `log`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Starts it and waits until it is mounted.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        let pid_file = self.file("run/proxyfs.pid");
        let up = || fs::read_to_string(&pid_file).is_ok_and(|p| p.trim() == self.pid().to_string());
        let deadline = Instant::now() + PATIENCE;
        while !up() {
            let ended = self.ended();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the daemon did not start ({ended:?}):\n{}\n{}",
                self.log(),
                fs::read_to_string(self.file("stderr")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the program without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it is running already");
        let errors = fs::File::create(self.file("stderr")).unwrap();
        let mut command = self.proxyfs(&["run"]);
        command
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        die_with_us(&mut command);
        self.child = Some(command.spawn().unwrap());
    }

    fn ended(&self) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let gone = stat.is_empty() || stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z"));
        gone.then(|| "it has ended".to_string())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is not running").id()
    }

    /// A command of the program, with this daemon's configuration.
    pub fn proxyfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxyfs"));
        command.args(arguments).arg("--config").arg(self.config());
        command
            .env_remove("PROXYFS_CONFIG")
            .env_remove("SSH_AUTH_SOCK");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.proxyfs(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "proxyfs {} failed: {}\n{}\nlog:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            tail(&self.log())
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until all that was changed is on all mirrors.
    #[track_caller]
    pub fn wait(&self) {
        self.ok(&["wait", "--timeout", "120"]);
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// One mirror's part of `status --json`.
    #[track_caller]
    pub fn mirror(&self, name: &str) -> serde_json::Value {
        let status = self.status();
        let mirrors = status["mirrors"].as_array().unwrap();
        mirrors
            .iter()
            .find(|m| m["name"] == name)
            .expect("no such mirror")
            .clone()
    }

    /// Waits until a mirror's part of the status is as wanted; gives it.
    #[track_caller]
    pub fn wait_for_mirror(
        &self,
        name: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mirror = self.mirror(name);
            if wanted(&mirror) {
                return mirror;
            }
            assert!(
                Instant::now() < deadline,
                "mirror {name} stays at {mirror:#}\n{}",
                tail(&self.log())
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Of one that is stopped: its log loses all that a mirror lacks, as when it has outgrown log_limit.
    #[track_caller]
    pub fn lose_what_is_owed(&self, mirror: &str) {
        let journal = Journal::open(&self.file("state")).unwrap();
        journal.cover(journal.head());
        journal.maintain().unwrap();
        assert!(journal.mirror(mirror).unwrap().lacks > 0);
    }

    /// Ends it gracefully, which must succeed.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            tail(&self.log())
        );
    }

    /// Waits until it has ended by itself, whatever its exit code; gives that.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status.code();
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log ended with:\n{}", tail(&self.log()));
            if let Some(kept) = std::env::var_os("PROXYFS_KEEP_LOG") {
                let _ = fs::copy(self.file("log"), kept);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Killed or crashed, it leaves its mount.
        while rustix::mount::unmount(self.source(), rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}
