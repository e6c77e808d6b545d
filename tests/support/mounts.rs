//! A kernel mount of a temporary source, with a recorder in place of the journal.
//!
//! The mount is taken away when the value is dropped, also by a panic; processes that a test starts die
//! with it (`setpriv --pdeathsig`).
#![allow(clippy::unwrap_used)]

use proxyfs::change::{Change, Extent, Seq};
use proxyfs::journal::{RecordError, Recorder};
use proxyfs::local::{Local, LocalOptions};
use proxyfs::mount::{MountOptions, Mounted, mount};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` says so.
///
/// # Panics
/// It never did.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Keeps what is recorded, and fails when told to.
#[derive(Default)]
pub struct Recording {
    changes: Mutex<Vec<Change>>,
    failing: AtomicBool,
}

impl Recording {
    /// From now on nothing can be recorded, or everything again.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    /// What was recorded since the start or the last `take`.
    pub fn take(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock().unwrap())
    }
}

impl Recorder for Recording {
    fn record(&self, change: &Change) -> Result<Seq, RecordError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(RecordError("the test says so".into()));
        }
        let mut changes = self.changes.lock().unwrap();
        changes.push(change.clone());
        Ok(changes.len() as Seq)
    }
}

/// A change in one line, with all that a test can foretell (no owner, times or inode).
pub fn show(change: &Change) -> String {
    match change {
        Change::Mkdir { mode, .. } => format!("{change} {mode:o}"),
        Change::Symlink { target, .. } => {
            format!("{change} -> {}", String::from_utf8_lossy(target))
        }
        Change::Content {
            extent,
            size,
            linked,
            ..
        } => {
            let extent = match extent {
                Extent::Whole => " whole".to_owned(),
                Extent::Ranges(ranges) => {
                    ranges.iter().map(|(a, b)| format!(" {a}..{b}")).collect()
                }
            };
            let linked = if *linked { " linked" } else { "" };
            format!("{change}{extent} of {size}{linked}")
        }
        Change::Attr {
            symlink,
            mode,
            owner,
            times,
            ..
        } => {
            let symlink = if *symlink { " symlink" } else { "" };
            let mode = mode.map_or(String::new(), |m| format!(" mode {m:o}"));
            let owner = owner.map_or(String::new(), |o| format!(" owner {}:{}", o.uid, o.gid));
            let times = times.map_or(String::new(), |t| format!(" mtime {}", t.mtime.seconds));
            format!("{change}{symlink}{mode}{owner}{times}")
        }
        Change::Rmdir { .. }
        | Change::Unlink { .. }
        | Change::Link { .. }
        | Change::Rename { .. }
        | Change::Exchange { .. }
        | Change::Repair { .. } => change.to_string(),
    }
}

/// A mount of a temporary source.
pub struct TestMount {
    mounted: Option<Mounted>,
    /// What serves it.
    pub local: Arc<Local>,
    /// What it records to.
    pub recorder: Arc<Recording>,
    mount_point: PathBuf,
    source: PathBuf,
    _dir: tempfile::TempDir,
}

impl TestMount {
    /// An empty source, mounted beside it.
    pub fn new() -> TestMount {
        TestMount::with(LocalOptions::default(), |_| ())
    }

    /// A source that `fill` has made, mounted beside it.
    pub fn with(options: LocalOptions, fill: impl FnOnce(&Path)) -> TestMount {
        TestMount::at(options, "mount", true, fill)
    }

    /// An empty source, mounted beside it; whether the kernel may read and write its files itself.
    pub fn passing(passthrough: bool) -> TestMount {
        TestMount::passing_with(LocalOptions::default(), passthrough)
    }

    /// The same with options.
    pub fn passing_with(options: LocalOptions, passthrough: bool) -> TestMount {
        TestMount::at(options, "mount", passthrough, |_| ())
    }

    /// The same, mounted over itself.
    pub fn over_source(fill: impl FnOnce(&Path)) -> TestMount {
        TestMount::at(LocalOptions::default(), "source", true, fill)
    }

    fn at(
        options: LocalOptions,
        mount_point: &str,
        passthrough: bool,
        fill: impl FnOnce(&Path),
    ) -> TestMount {
        check_the_machine();
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let mount_point = dir.path().join(mount_point);
        for path in [&source, &mount_point] {
            std::fs::create_dir_all(path).unwrap();
        }
        // For other users too.
        for path in [dir.path(), &source] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        fill(&source);
        let recorder = Arc::new(Recording::default());
        let local = Local::open(&source, options, recorder.clone()).unwrap();
        let local = Arc::new(local);
        let how = MountOptions {
            passthrough,
            ..MountOptions::default()
        };
        let mounted = mount(local.clone(), &mount_point, how).unwrap();
        TestMount {
            mounted: Some(mounted),
            local,
            recorder,
            mount_point,
            source,
            _dir: dir,
        }
    }

    /// A path below the mount point.
    pub fn path(&self, below: impl AsRef<[u8]>) -> PathBuf {
        self.mount_point.join(OsStr::from_bytes(below.as_ref()))
    }

    /// A path below the source.
    pub fn source(&self, below: impl AsRef<[u8]>) -> PathBuf {
        self.source.join(OsStr::from_bytes(below.as_ref()))
    }

    /// What was recorded since the last call. What close() does not wait for is waited for.
    pub fn take(&self) -> Vec<String> {
        self.local.flush_closed().unwrap();
        self.recorder.take().iter().map(show).collect()
    }

    /// As `take`, but waits until `count` changes are there.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<String> {
        let mut all = Vec::new();
        wait_until("changes", || {
            all.extend(self.recorder.take().iter().map(show));
            all.len() >= count
        });
        all
    }

    /// Runs a shell script in the mount as an ordinary user.
    pub fn sh_as(&self, uid: u32, gid: u32, script: &str) -> Output {
        Command::new("setpriv")
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .args(["--clear-groups", "--pdeathsig=KILL", "sh", "-c", script])
            .current_dir(&self.mount_point)
            .output()
            .unwrap()
    }

    /// Runs a shell script in the mount; it must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.sh_as(0, 0, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The mount itself.
    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    /// To be unmounted by the test.
    pub fn take_mounted(&mut self) -> Mounted {
        self.mounted.take().unwrap()
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            let done = mounted.unmount();
            if !std::thread::panicking() {
                done.unwrap();
            }
        }
    }
}

/// # Panics
/// Not root, or no /dev/fuse.
#[track_caller]
pub fn check_the_machine() {
    assert!(
        Path::new("/dev/fuse").exists(),
        "these tests mount: load the fuse module (modprobe fuse)"
    );
    assert!(
        rustix::fs::statat(rustix::fs::CWD, "/proc/self", rustix::fs::AtFlags::empty())
            .is_ok_and(|s| s.st_uid == 0),
        "these tests mount: run them as root"
    );
}
