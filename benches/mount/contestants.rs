//! Who is measured: a directory, and file systems that show one.

use crate::daemon::{Daemon, PATIENCE};
use crate::sshd::{Sshd, die_with_us};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The directory itself.
    Directory,
    /// bindfs.
    Bindfs,
    /// mergerfs.
    Mergerfs,
    /// ProxyFS with so many mirrors, all paused.
    ProxyFs(usize),
}

impl Kind {
    /// Those of the usual parts.
    pub const ALL: &[Kind] = &[
        Kind::Directory,
        Kind::Bindfs,
        Kind::Mergerfs,
        Kind::ProxyFs(1),
    ];
    /// What mirrors cost the mount.
    pub const BY_MIRRORS: &[Kind] = &[Kind::ProxyFs(0), Kind::ProxyFs(1), Kind::ProxyFs(10)];
}

/// What is needed and not there.
pub fn missing() -> Option<String> {
    let there = |program: &&str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null());
        command.stderr(Stdio::null()).status().is_ok()
    };
    let programs = ["bindfs", "mergerfs", "tar", "find"];
    let missing: Vec<&str> = programs.into_iter().filter(|p| !there(p)).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "the Debian package(s) {} are missing: packaging/install-build-deps bench",
            missing.join(", ")
        )
    })
}

/// One of them, ready.
pub struct Contestant {
    /// Which one.
    pub kind: Kind,
    /// Where to work.
    pub at: PathBuf,
    // Dropped in this order.
    daemon: Option<Daemon>,
    _sshd: Option<Sshd>,
    child: Option<Child>,
    dir: tempfile::TempDir,
}

impl Contestant {
    /// Starts it and waits until it is mounted.
    pub fn start(kind: Kind) -> Contestant {
        let dir = tempfile::tempdir().unwrap();
        let (below, at) = (dir.path().join("below"), dir.path().join("mount"));
        fs::create_dir(&below).unwrap();
        fs::create_dir(&at).unwrap();
        let mut contestant = Contestant {
            kind,
            at,
            daemon: None,
            _sshd: None,
            child: None,
            dir,
        };
        match kind {
            Kind::Directory => contestant.at = below,
            Kind::Bindfs => contestant.spawn("bindfs", &["-f"], &below),
            Kind::Mergerfs => contestant.spawn("mergerfs", &["-f"], &below),
            Kind::ProxyFs(mirrors) => contestant.start_daemon(mirrors),
        }
        contestant
    }

    fn spawn(&mut self, program: &str, arguments: &[&str], below: &Path) {
        let mut command = Command::new(program);
        command.args(arguments).arg(below).arg(&self.at);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        die_with_us(&mut command);
        self.child = Some(command.spawn().unwrap());
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        let deadline = Instant::now() + PATIENCE;
        while device(&self.at) == device(self.dir.path()) {
            assert!(Instant::now() < deadline, "{program} does not mount");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn start_daemon(&mut self, mirrors: usize) {
        let sshd = Sshd::start();
        let mut daemon = Daemon::new();
        let usual = daemon
            .ini_mut()
            .replace("log_level = debug", "log_level = info");
        *daemon.ini_mut() = usual;
        for n in 0..mirrors {
            let base = sshd.base().join(n.to_string());
            fs::create_dir(&base).unwrap();
            daemon.add_mirror_at(&format!("m{n}"), &sshd, sshd.port(), "");
            let own = daemon.ini_mut().replace(
                &format!("path = {}\n", sshd.base().display()),
                &format!("path = {}\n", base.display()),
            );
            *daemon.ini_mut() = own;
        }
        daemon.write_ini();
        daemon.start();
        for n in 0..mirrors {
            let name = format!("m{n}");
            daemon.wait_for_mirror(&name, |m| m["state"] == "synced");
            daemon.ok(&["pause", &name]);
            daemon.wait_for_mirror(&name, |m| m["state"] == "paused");
        }
        self.at = daemon.source();
        self.daemon = Some(daemon);
        self._sshd = Some(sshd);
    }

    /// How many changes ProxyFS has recorded; none for the others.
    pub fn recorded(&self) -> Option<u64> {
        let daemon = self.daemon.as_ref()?;
        daemon.status()["log"]["last_seq"].as_u64()
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            while rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH).is_ok() {}
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
