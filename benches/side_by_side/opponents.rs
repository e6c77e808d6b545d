//! What else brings files to another host, on the same line, to the same server, with the same key.

use crate::rig::{Rig, go_on};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// ssh's options: nothing of this user's or this machine's.
fn options(rig: &Rig) -> Vec<String> {
    let known = rig.sshd.known_hosts_path();
    let mut all = vec![
        "-F".to_string(),
        "none".to_string(),
        "-i".to_string(),
        rig.sshd.key_path().display().to_string(),
    ];
    for option in [
        "IdentitiesOnly=yes".to_string(),
        "IdentityAgent=none".to_string(),
        "BatchMode=yes".to_string(),
        "StrictHostKeyChecking=yes".to_string(),
        // The relay's port is no host of its own.
        "HostKeyAlias=127.0.0.1".to_string(),
        format!("UserKnownHostsFile={}", known.display()),
        "LogLevel=ERROR".to_string(),
    ] {
        all.extend(["-o".to_string(), option]);
    }
    all
}

fn host(rig: &Rig) -> String {
    format!("{}@127.0.0.1", rig.sshd.user())
}

/// Nobody is waited for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for one that may take ages; none: it was ended then.
fn timed_or_ended(command: &mut Command) -> Option<Duration> {
    go_on();
    let start = Instant::now();
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}: {status}");
            return Some(start.elapsed());
        }
        go_on();
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

fn timed(command: &mut Command) -> Duration {
    go_on();
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let took = start.elapsed();
    go_on();
    assert!(output.status.success(), "{command:?}: {output:?}");
    took
}

/// `rsync -a` of `from` into `to` on the server.
pub fn rsync(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a"], from, to)
}

/// `rsync -a --inplace`, which sends what changed of a file that is there.
pub fn rsync_in_place(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a", "--inplace"], from, to)
}

/// `rsync -a --dry-run`.
pub fn rsync_dry(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a", "--dry-run"], from, to)
}

/// `rsync -a --delete`.
pub fn rsync_delete(rig: &Rig, from: &Path, to: &Path) -> Duration {
    rsync_by(rig, &["-a", "--delete"], from, to)
}

fn rsync_by(rig: &Rig, how: &[&str], from: &Path, to: &Path) -> Duration {
    let port = rig.relay.port().to_string();
    let shell = [
        vec!["ssh".to_string(), "-p".to_string(), port],
        options(rig),
    ]
    .concat();
    timed(
        Command::new("rsync")
            .args(how)
            .args(["-e", &shell.join(" ")])
            .arg(from)
            .arg(format!("{}:{}", host(rig), to.display())),
    )
}

/// `scp` of one file.
pub fn scp(rig: &Rig, from: &Path, to: &Path) -> Duration {
    timed(
        Command::new("scp")
            .args(["-q", "-P", &rig.relay.port().to_string()])
            .args(options(rig))
            .arg(from)
            .arg(format!("{}:{}", host(rig), to.display())),
    )
}

/// `rclone copy` of a directory's files, 32 at a time.
pub fn rclone(rig: &Rig, from: &Path, to: &Path) -> Option<Duration> {
    let mut command = Command::new("rclone");
    command.args(["copy", "--transfers", "32", "--checkers", "32"]);
    command.args(["--config", "/dev/null", "--sftp-host", "127.0.0.1"]);
    // Else it runs a program there for every file.
    command.args(["--sftp-disable-hashcheck", "--ignore-checksum"]);
    command.args(["--sftp-port", &rig.relay.port().to_string()]);
    command.args(["--sftp-user", rig.sshd.user(), "--sftp-key-file"]);
    command.arg(rig.sshd.key_path()).arg(from);
    timed_or_ended(command.arg(format!(":sftp:{}", to.display())))
}

/// `sftp -b` with one `put -rp`.
pub fn sftp(rig: &Rig, from: &Path, to: &Path) -> Option<Duration> {
    let batch = rig.sshd.file("batch");
    let put = format!("put -rp {} {}\n", from.display(), to.display());
    std::fs::write(&batch, put).unwrap();
    let mut command = Command::new("sftp");
    command.args(options(rig)).arg("-b").arg(&batch);
    command.args(["-P", &rig.relay.port().to_string(), &host(rig)]);
    timed_or_ended(&mut command)
}

/// A running lsyncd, with a second of delay (it takes no less).
pub struct Lsyncd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Lsyncd {
    /// Mirrors `from` to `to` on the server: files by rsync, moves and removals by ssh, as it recommends.
    pub fn start(rig: &Rig, from: &Path, to: &Path) -> Lsyncd {
        let dir = tempfile::tempdir().unwrap();
        // `-o NAME=VALUE` as it wants them.
        let options = options(rig).into_iter().filter_map(|option| {
            let (name, value) = option.split_once('=')?;
            Some(format!("{name} = {value:?}"))
        });
        let options: Vec<String> = options.collect();
        let text = format!(
            "settings {{ nodaemon = true, logfile = {:?}, statusFile = {:?} }}\n\
             sync {{ default.rsyncssh, source = {from:?}, host = {:?}, targetdir = {to:?}, delay = 1,\n\
             rsync = {{ archive = true }},\n\
             ssh = {{ port = {}, identityFile = {:?}, options = {{ {} }} }} }}\n",
            dir.path().join("log"),
            dir.path().join("status"),
            host(rig),
            rig.relay.port(),
            rig.sshd.key_path(),
            options.join(", "),
        );
        let file = dir.path().join("lsyncd.lua");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("lsyncd");
        command
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.stderr(std::fs::File::create(dir.path().join("stderr")).unwrap());
        let child = command.spawn().unwrap();
        Lsyncd { child, dir }
    }

    /// # Panics
    /// It has ended: it does at the first error on the line.
    pub fn must_run(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            let said = std::fs::read_to_string(self.dir.path().join("stderr"));
            panic!("lsyncd has ended: {}", said.unwrap());
        }
    }
}

impl Drop for Lsyncd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Processor time of all children that have ended so far, ssh and the like included.
pub fn children_cpu() -> Duration {
    cpu("/proc/self/stat", [15, 16])
}

/// Processor time of a running process.
pub fn cpu_of(pid: u32) -> Duration {
    cpu(&format!("/proc/{pid}/stat"), [13, 14])
}

/// The sum of two fields of proc(5)'s `stat`, counted from 0.
fn cpu(file: &str, fields: [usize; 2]) -> Duration {
    let text = std::fs::read_to_string(file).unwrap();
    // Behind the name, which may hold anything: from the third field on.
    let rest = text.rsplit_once(") ").unwrap().1;
    let all: Vec<&str> = rest.split(' ').collect();
    let ticks: u64 = fields
        .iter()
        .map(|n| all[n - 2].parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10) // a tick is 10 ms on every Linux that we know
}

/// What rsync pays before its first word: an ssh that runs nothing.
pub fn connect(rig: &Rig) -> Duration {
    timed(
        Command::new("ssh")
            .args(["-p", &rig.relay.port().to_string()])
            .args(options(rig))
            .args([host(rig), "true".to_string()]),
    )
}
