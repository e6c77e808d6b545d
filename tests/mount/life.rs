//! A mount from its beginning to its end, also a bad one.

use super::*;

#[test]
fn the_mount_may_lie_over_the_source() {
    let mut m = TestMount::over_source(|source| fs::write(source.join("old"), "x").unwrap());
    fs::write(m.path("new"), "y").unwrap();
    assert_eq!(m.take(), ["content new whole of 1"]);
    assert_eq!(fs::read(m.path("old")).unwrap(), b"x");
    let recorder = m.recorder.clone();
    let second = Local::open(&m.source(""), LocalOptions::default(), recorder);
    let refused = second.err().unwrap().to_string();
    assert!(
        refused.contains("another proxyfs is mounted over it"),
        "{refused}"
    );
    assert_eq!(m.take_mounted().unmount().unwrap(), Unmounted::Completely);
    assert_eq!(
        fs::read(m.source("new")).unwrap(),
        b"y",
        "the source itself again"
    );
}

#[test]
fn a_mount_point_inside_the_source_is_refused() {
    check_the_machine();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inside")).unwrap();
    let recorder = Arc::new(crate::support::mounts::Recording::default());
    let local = Local::open(dir.path(), LocalOptions::default(), recorder).unwrap();
    let inside = dir.path().join("inside");
    let refused = mount(Arc::new(local), &inside, MountOptions::default());
    assert!(matches!(refused.err(), Some(MountError::InsideSource(..))));
}

#[test]
fn a_mount_in_use_is_detached_and_serves_who_uses_it() {
    let mut m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"1").unwrap();
    let mounted = m.take_mounted();
    let path = m.path("");
    let waiting = std::thread::spawn(move || mounted.unmount().unwrap());
    wait_until("the path is free", || {
        fs::read_dir(&path).unwrap().count() == 0
    });
    f.write_all(b"2").unwrap();
    drop(f);
    assert_eq!(waiting.join().unwrap(), Unmounted::Completely);
    assert_eq!(m.take(), ["content a whole of 2"]);
}

#[test]
fn an_unmount_by_somebody_else_is_noticed() {
    let m = TestMount::new();
    assert!(m.mounted().is_mounted());
    let umount = Command::new("umount").arg(m.path("")).status().unwrap();
    assert!(umount.success());
    assert!(m.mounted().wait_unmounted(PATIENCE));
    assert!(!m.mounted().is_mounted());
}

#[test]
fn what_is_still_open_at_the_end_is_logged_by_flush_all() {
    let m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"1").unwrap();
    m.local.flush_all().unwrap();
    assert_eq!(m.take(), ["content a whole of 1"]);
}

/// Set for the process that holds a mount until it is killed: source and mount point.
const HOLDER: &str = "PROXYFS_TEST_HOLDER";

#[test]
#[ignore = "the other process of a_mount_left_by_a_killed_daemon_is_cleared"]
fn holds_a_mount_until_it_is_killed() {
    let Some(dir) = std::env::var_os(HOLDER) else {
        return;
    };
    let dir = Path::new(&dir);
    let recorder = Arc::new(crate::support::mounts::Recording::default());
    let local = Local::open(&dir.join("source"), LocalOptions::default(), recorder).unwrap();
    let options = MountOptions::default();
    let _mounted = mount(Arc::new(local), &dir.join("source"), options).unwrap();
    fs::write(dir.join("ready"), "").unwrap();
    std::thread::sleep(PATIENCE);
}

/// Another process, which has `source` in its directory mounted over itself until it is killed.
pub struct Holder(Child, std::path::PathBuf);

impl Holder {
    /// `before`: what a shell does first (a limit).
    pub fn start(dir: &Path, before: &str) -> Holder {
        let child = Command::new("setpriv")
            .args(["--pdeathsig=KILL", "sh", "-c"])
            .arg(format!("{before}\nexec \"$@\""))
            .arg("sh")
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "mount::life::holds_a_mount_until_it_is_killed",
                "--ignored",
            ])
            .env(HOLDER, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let holder = Holder(child, dir.join("source"));
        wait_until("the other process has mounted", || {
            dir.join("ready").exists()
        });
        holder
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = rustix::mount::unmount(&self.1, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_mount_left_by_a_killed_daemon_is_cleared() {
    check_the_machine();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), "x").unwrap();
    assert!(!clear_stale(&source).unwrap(), "nothing is mounted");
    let mut holder = Holder::start(dir.path(), "");
    assert!(!clear_stale(&source).unwrap(), "it is alive");
    assert_eq!(fs::read(source.join("a")).unwrap(), b"x");
    // Processes that go on after the daemon was killed do not keep its mount.
    let survivor = OpenOptions::new()
        .read(true)
        .write(true)
        .open(source.join("a"))
        .unwrap();
    let inside = File::open(&source).unwrap();
    let mut written = File::create(source.join("new")).unwrap();
    written.write_all(b"1").unwrap();
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    wait_until("the mount is dead", || {
        fs::metadata(source.join("a")).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    // The kernel may write a new file itself, also when nobody serves the mount any more.
    let there: &[u8] = match written.write_all(b"2") {
        Ok(()) => b"12",
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::ENOTCONN));
            b"1"
        }
    };
    assert!(clear_stale(&source).unwrap());
    assert_eq!(fs::read(source.join("a")).unwrap(), b"x");
    assert_eq!(fs::read(source.join("new")).unwrap(), there);
    assert!(!clear_stale(&source).unwrap());
    // The next one is mounted over all that, and what survived does it no harm.
    fs::remove_file(dir.path().join("ready")).unwrap();
    let next = Holder::start(dir.path(), "");
    fs::write(source.join("b"), "y").unwrap();
    assert!(rustix::fs::openat(&inside, "b", OFlags::RDONLY, Mode::empty()).is_err());
    drop((survivor, inside, written));
    assert_eq!(fs::read(source.join("b")).unwrap(), b"y");
    drop(next);
    assert!(!clear_stale(&source).unwrap(), "it took its mount away");
}
