//! A daemon, a line and a server, put together; and how to wait for things and be interrupted.

use crate::daemon::{Daemon, PATIENCE};
use crate::relay::Relay;
use crate::sshd::Sshd;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The name of the only mirror.
pub const MIRROR: &str = "m";

/// One daemon with one mirror, some way off. Fields are dropped in this order.
pub struct Rig {
    pub daemon: Daemon,
    pub relay: Relay,
    pub sshd: Sshd,
    pub rtt: Duration,
}

impl Rig {
    /// All of it running and the mirror connected.
    pub fn start(rtt: Duration) -> Rig {
        let mut rig = Rig::new(rtt);
        rig.daemon.start();
        rig.daemon
            .wait_for_mirror(MIRROR, |m| m["state"] == "synced");
        rig
    }

    /// The same with a daemon that is yet to be started.
    pub fn new(rtt: Duration) -> Rig {
        let sshd = Sshd::start();
        let relay = Relay::start(sshd.port(), rtt);
        let mut daemon = Daemon::new();
        daemon.add_mirror_at(MIRROR, &sshd, relay.port(), "");
        let usual = daemon
            .ini_mut()
            .replace("log_level = debug", "log_level = info");
        *daemon.ini_mut() = usual;
        daemon.write_ini();
        Rig {
            daemon,
            relay,
            sshd,
            rtt,
        }
    }

    pub fn pause(&self) {
        self.daemon.ok(&["pause", MIRROR]);
        self.daemon
            .wait_for_mirror(MIRROR, |m| m["state"] == "paused");
    }

    pub fn resume(&self) {
        self.daemon.ok(&["resume", MIRROR]);
    }

    /// Where a path is seen on the mirror.
    pub fn there(&self, path: &str) -> PathBuf {
        self.sshd.base().join(path)
    }

    /// Waits until a path is on the mirror. Looks often, but leaves the processors to those who work.
    pub fn wait_for(&self, path: &str, look_every: Duration) {
        let path = self.there(path);
        until(look_every, || fs::symlink_metadata(&path).is_ok());
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Lets SIGINT and SIGTERM end the run by a panic, so that everything is taken down.
pub fn stop_on_signals() {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).unwrap();
    }
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            if flag.load(Ordering::Relaxed) {
                STOP.store(true, Ordering::Relaxed);
                return;
            }
        }
    });
}

/// # Panics
/// The run was interrupted.
pub fn go_on() {
    assert!(!STOP.load(Ordering::Relaxed), "interrupted");
}

/// Waits until something is so.
#[track_caller]
pub fn until(look_every: Duration, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 10 * PATIENCE;
    while !so() {
        go_on();
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(look_every);
    }
}

/// `dir` with `count` files of `size` bytes, a hundred in a directory; the path of the last one, below
/// `dir`. All bytes differ from file to file.
pub fn make_files(dir: &Path, count: usize, size: usize) -> String {
    let mut last = String::new();
    for n in 0..count {
        let sub = dir.join(format!("{:04}", n / 100));
        if n % 100 == 0 {
            go_on();
            fs::create_dir_all(&sub).unwrap();
        }
        last = format!("{:04}/{:02}.jpg", n / 100, n % 100);
        fs::write(dir.join(&last), bytes(n as u64, size)).unwrap();
    }
    last
}

/// So many bytes that no compression makes less of.
pub fn bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(size);
    out
}

/// One line about where this was measured.
pub fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let first = |program: &str, argument: &str| {
        let output = std::process::Command::new(program).arg(argument).output();
        let output = output.map(|o| [o.stdout, o.stderr].concat());
        let text = String::from_utf8(output.unwrap_or_default()).unwrap_or_default();
        let line = text.lines().next().unwrap_or("?");
        line.split([',', 'p'].as_slice())
            .next()
            .map(|_| line.to_string())
            .unwrap_or_default()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let ssh = first("ssh", "-V");
    let ssh = ssh.split([' ', ',']).next().unwrap_or("?");
    let rsync = first("rsync", "--version");
    let rsync: Vec<&str> = rsync.split_whitespace().take(3).collect();
    format!(
        "{processors} processors, Linux {}, {ssh}, {}; medians",
        kernel.trim(),
        rsync.join(" ")
    )
}
