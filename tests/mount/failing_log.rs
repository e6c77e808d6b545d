//! When the log does not take it (J6).

use super::*;

#[test]
fn a_log_that_fails_makes_the_mount_read_only_until_all_is_recorded_in_order() {
    let m = TestMount::new();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/open"), "").unwrap();
    let mut open = to_write(m.path("d/open"));
    m.take();
    open.write_all(b"1").unwrap();
    fs::write(m.path("a"), "1").unwrap();
    assert_eq!(m.take(), ["content a whole of 1"]);

    m.recorder.fail(true);
    // The change has happened, and could not be recorded.
    assert_eq!(errno(fs::rename(m.path("a"), m.path("b"))), libc::EIO);
    assert!(m.source("b").exists());
    wait_until("the kernel sees what has happened nevertheless", || {
        m.path("b").exists() && !m.path("a").exists()
    });
    // Nothing else happens.
    for refused in [
        fs::create_dir(m.path("e")),
        fs::remove_file(m.path("b")),
        fs::write(m.path("new"), "1"),
        fs::set_permissions(m.path("d"), PermissionsExt::from_mode(0o700)),
        open.write_all(b"2"),
        open.set_len(0),
        symlink("x", m.path("s")),
        File::open(m.path("d"))
            .map(drop)
            .and(fs::rename(m.path("d"), m.path("e"))),
    ] {
        assert_eq!(errno(refused), libc::EROFS);
    }
    assert_eq!(fs::read_dir(m.source("")).unwrap().count(), 2);
    assert!(m.local.is_read_only());
    let reason = m.local.read_only_reason().unwrap().to_string();
    assert!(reason.contains("the test says so"), "{reason}");
    // A close that cannot be recorded is kept as well.
    drop(open);
    m.local.flush_due(Instant::now());
    assert!(m.local.is_read_only());
    assert!(m.recorder.take().is_empty());

    m.recorder.fail(false);
    m.local.flush_due(Instant::now());
    assert!(!m.local.is_read_only());
    assert_eq!(m.take(), ["rename a -> b", "content d/open 0..1 of 1"]);
    fs::create_dir(m.path("e")).unwrap();
    assert_eq!(m.take(), ["mkdir e 755"]);
}

/// The kernel does not ask who writes to a file that was new when the log closed: nothing of it is lost.
#[test]
fn what_is_written_unseen_while_the_log_fails_is_recorded_later() {
    let m = TestMount::new();
    let mut open = make(m.path("a"));
    open.write_all(b"1").unwrap();
    m.recorder.fail(true);
    assert_eq!(errno(fs::create_dir(m.path("d"))), libc::EIO);
    open.write_all(b"2").unwrap();
    assert_eq!(errno(fs::write(m.path("b"), "1")), libc::EROFS);
    m.recorder.fail(false);
    m.local.flush_due(Instant::now());
    open.write_all(b"3").unwrap();
    drop(open);
    assert_eq!(m.take().last().unwrap(), "content a whole of 3");
}

#[test]
fn a_close_that_is_not_recorded_says_so_and_is_recorded_later() {
    let m = TestMount::new();
    let script = "open(F, \">\", \"a\") or exit 3; syswrite(F, \"1\") or exit 4; \
                  print \"open\\n\"; <STDIN>; close(F) or exit 5";
    let mut child = Command::new("setpriv")
        .args([
            "--pdeathsig=KILL",
            "perl",
            "-e",
            &format!("$| = 1; {script}"),
        ])
        .current_dir(m.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    m.recorder.fail(true);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(5), "close() fails");
    assert!(m.local.is_read_only());
    m.recorder.fail(false);
    m.local.flush_due(Instant::now());
    assert!(!m.local.is_read_only());
    assert_eq!(m.take(), ["content a whole of 1"]);
    fs::write(m.path("a"), "again").unwrap();
    assert_eq!(m.take(), ["content a whole of 5"]);
}
