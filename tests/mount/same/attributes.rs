//! Changing attributes.

use super::*;

/// chown(2) with neither owner nor group, of another one's file with set-id bits: EPERM below. The kernel
/// tells a FUSE file system nothing of it that is not told before a write too; so nothing happens on the
/// mount.
fn would_strip_anothers(path: &str) -> bool {
    let me = rustix::process::geteuid().as_raw();
    fs::metadata(path).is_ok_and(|s| me != 0 && me != s.uid() && s.mode() & 0o6000 != 0)
}

#[test]
fn changing_attributes() {
    compare(&[
        ("modes", |t| {
            for path in [
                "mine", "theirs", "own", "link", "setid", "setgid", "my setid", "dangling", "fifo",
                "group",
            ] {
                for mode in [0o600, 0o2755, 0o4711, 0o1777, 0] {
                    t.did(
                        &format!("chmod {path} {mode:o}"),
                        fs::set_permissions(path, PermissionsExt::from_mode(mode)),
                    );
                    t.gave("now", fs::metadata(path).map(|s| s.mode()));
                }
            }
        }),
        ("owners", |t| {
            for path in [
                "mine", "theirs", "own", "link", "my setid", "setgid", "capable", "setid", "fifo",
            ] {
                for (uid, gid) in [
                    (None, Some(777)),
                    (None, Some(888)),
                    (Some(1234), None),
                    (Some(5678), Some(5678)),
                    (None, None),
                    (Some(u32::MAX), Some(u32::MAX)),
                ] {
                    if gid.is_none_or(|gid| gid == u32::MAX) && would_strip_anothers(path) {
                        continue;
                    }
                    t.did(
                        &format!("chown {path} {uid:?} {gid:?}"),
                        chown(path, uid, gid),
                    );
                    t.gave(
                        "now",
                        fs::metadata(path).map(|s| (s.mode(), s.uid(), s.gid())),
                    );
                }
            }
            t.gave("capability", xattr("capable", "security.capability"));
        }),
        ("the owner it has, by descriptor", |t| {
            for path in ["my setid", "mine"] {
                if would_strip_anothers(path) {
                    continue;
                }
                with(t, path, libc::O_RDONLY, |t, f| {
                    t.did("fchown", std::os::unix::fs::fchown(&f, None, None));
                    t.gave("now", f.metadata().map(|s| s.mode()));
                });
            }
        }),
        ("nothing at all", |t| {
            t.did(
                "chmod",
                fs::set_permissions("mine", PermissionsExt::from_mode(0o644)),
            );
            t.did("chown", chown("open", Some(0), Some(0)));
            t.did(
                "truncate",
                rustix::fs::open("own/a", OFlags::WRONLY, Mode::empty())
                    .and_then(|f| rustix::fs::ftruncate(f, 1)),
            );
            for (path, size) in [("mine", 5000), ("own/b", 1), ("theirs", 6), ("setgid", 11)] {
                let path = std::ffi::CString::new(path).unwrap();
                // SAFETY: a string with its NUL.
                let done = match unsafe { libc::truncate(path.as_ptr(), size) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                };
                t.did("truncate by path", done);
            }
            with(t, "theirs", libc::O_WRONLY, |_, _| ());
            with(t, "open", libc::O_RDWR, |t, f| {
                t.gave("write nothing", f.write_at(b"", 0))
            });
            t.did("rename to itself", fs::rename("fifo", "fifo"));
            t.did("rename to the other name", fs::rename("mine", "hard"));
        }),
        ("times", |t| {
            use rustix::fs::{Timespec, Timestamps};
            let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
            let (now, omit) = (at(0, libc::UTIME_NOW), at(0, libc::UTIME_OMIT));
            for path in ["mine", "theirs", "open", "own", "link"] {
                for (a, m) in [
                    (at(1_000_000_000, 123_456_789), at(-5, 500_000_000)),
                    (omit, at(2_000_000_000, 1)),
                    (at(7, 7), omit),
                    (omit, omit),
                    (now, now),
                    (now, omit),
                    (at(5, 0), now),
                    (at(0, 1_000_000_000), omit),
                ] {
                    let times = Timestamps {
                        last_access: a,
                        last_modification: m,
                    };
                    let done = t.did(
                        &format!("{path} {a:?} {m:?}"),
                        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW),
                    );
                    let (shows_a, shows_m) = (a.tv_nsec < 1 << 29, m.tv_nsec < 1 << 29);
                    if done.is_some() {
                        let s = fs::symlink_metadata(path).unwrap();
                        let a = shows_a.then(|| (s.atime(), s.atime_nsec()));
                        let m = shows_m.then(|| (s.mtime(), s.mtime_nsec()));
                        t.gave::<_, Errno>("now", Ok((a, m)));
                    }
                }
            }
        }),
        ("extended attributes", |t| {
            for path in [
                "mine", "open", "theirs", "own", "link", "fifo", "sticky", "acl",
            ] {
                t.gave(&format!("list {path}"), xattrs(path));
                for name in [
                    "user.x",
                    "trusted.x",
                    "security.x",
                    "system.x",
                    "odd.x",
                    "x",
                ] {
                    t.did(
                        &format!("set {name} of {path}"),
                        set_xattr(path, name, b"value"),
                    );
                    t.gave("get", xattr(path, name));
                    t.did("remove", rustix::fs::lremovexattr(path, name));
                }
                t.gave("get", xattr(path, "user.color"));
                t.gave("get", xattr(path, "trusted.color"));
            }
            let set = |flags| rustix::fs::setxattr("mine", "user.color", b"green", flags);
            t.did("create", set(rustix::fs::XattrFlags::CREATE));
            t.did("replace", set(rustix::fs::XattrFlags::REPLACE));
            t.did("empty", set_xattr("mine", "user.empty", b""));
            t.gave("get", xattr("mine", "user.empty"));
            t.did(
                "long name",
                set_xattr("mine", &format!("user.{}", "n".repeat(250)), b"x"),
            );
            t.did(
                "longer name",
                set_xattr("mine", &format!("user.{}", "n".repeat(251)), b"x"),
            );
            t.did("large", set_xattr("mine", "user.large", &[b'x'; 2000]));
            t.did("too large", set_xattr("mine", "user.huge", &[b'x'; 65537]));
            t.gave(
                "no room",
                rustix::fs::getxattr("mine", "user.color", &mut [0u8; 2][..]),
            );
            t.gave(
                "no room for the list",
                rustix::fs::listxattr("mine", &mut [0u8; 2][..]),
            );
        }),
        ("may one?", |t| {
            use rustix::fs::Access;
            for path in [
                "mine", "theirs", "open", "own", "own/a", "own/b", "closed", "setid", "link",
                "dangling", "closed/x",
            ] {
                for access in [
                    Access::EXISTS,
                    Access::READ_OK,
                    Access::WRITE_OK,
                    Access::EXEC_OK,
                ] {
                    t.did(
                        &format!("{path} {access:?}"),
                        rustix::fs::access(path, access),
                    );
                }
                t.did("list", fs::read_dir(path));
            }
        }),
    ]);
}
