//! What the daemon needs for each inode that the kernel knows, and whether it gives it back.

use crate::daemon::Daemon;
use crate::go_on;
use std::fmt;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that an inode may take, its name included.
const MOST: f64 = 512.0;

/// Bytes of each of so many files.
pub struct Memory {
    files: usize,
    known: f64,
    forgotten: f64,
}

/// Looks `files` files up, then has the kernel forget them.
pub fn run(files: usize) -> Memory {
    let mut daemon = Daemon::new();
    let usual = daemon
        .ini_mut()
        .replace("log_level = debug", "log_level = info");
    *daemon.ini_mut() = usual;
    daemon.write_ini();
    for n in 0..files {
        let dir = daemon.source().join((n / 1000).to_string());
        if n % 1000 == 0 {
            go_on();
            fs::create_dir(&dir).unwrap();
        }
        File::create(dir.join(format!("picture-{n}.jpg"))).unwrap();
    }
    daemon.start();
    let before = resident(&daemon);
    let mut find = Command::new("find");
    find.arg(daemon.source()).arg("-ls").stdout(Stdio::null());
    assert!(find.status().unwrap().success());
    let known = resident(&daemon);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut forgotten = known;
    // The kernel forgets in its own time, and the daemon tidies up twice a second.
    while forgotten > before + (known - before) / 5 && Instant::now() < deadline {
        go_on();
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(Duration::from_millis(700));
        forgotten = resident(&daemon);
    }
    let each = |after: u64| after.saturating_sub(before) as f64 / files as f64;
    Memory {
        files,
        known: each(known),
        forgotten: each(forgotten),
    }
}

fn resident(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

impl Memory {
    /// The goals that were missed.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.known > MOST {
            missed.push(format!("an inode takes more than {MOST} bytes"));
        }
        if self.forgotten > self.known / 4.0 {
            missed.push("what the kernel has forgotten is not given back".to_string());
        }
        missed
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Memory of the daemon for each of {} known files: {:.0} bytes; {:.0} when the kernel has forgotten them.",
            self.files, self.known, self.forgotten
        )
    }
}
