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

struct Holder(Child, std::path::PathBuf);

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
    let child = Command::new("setpriv")
        .arg("--pdeathsig=KILL")
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "mount::life::holds_a_mount_until_it_is_killed",
            "--ignored",
        ])
        .env(HOLDER, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut holder = Holder(child, source.clone());
    wait_until("the other process has mounted", || {
        dir.path().join("ready").exists()
    });
    assert!(!clear_stale(&source).unwrap(), "it is alive");
    assert_eq!(fs::read(source.join("a")).unwrap(), b"x");
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    wait_until("the mount is dead", || {
        fs::metadata(source.join("a")).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    assert!(clear_stale(&source).unwrap());
    assert_eq!(fs::read(source.join("a")).unwrap(), b"x");
    assert!(!clear_stale(&source).unwrap());
}
