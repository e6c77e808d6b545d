//! Removing, moving and linking.

use super::*;

#[test]
fn removing_and_moving() {
    compare(&[
        ("removing", |t| {
            for path in [
                "mine",
                "theirs",
                "link",
                "own",
                "sticky/theirs",
                "sticky/mine",
                "closed/x",
                "nothing",
                "fifo",
                "full",
                "own/b",
                "mine/x",
                "acl",
            ] {
                t.did(&format!("unlink {path}"), fs::remove_file(path));
            }
            for path in [
                "full",
                "own",
                "full/x",
                "closed",
                "theirs",
                "dirlink",
                "acl/.",
                "full/x/..",
                "group",
            ] {
                t.did(&format!("rmdir {path}"), fs::remove_dir(path));
            }
        }),
        ("moving", |t| {
            for (from, to) in [
                ("mine", "own/moved"),
                ("theirs", "sticky/moved"),
                ("own/moved", "mine2"),
                ("sticky/mine", "back"),
                ("sticky/theirs", "gone"),
                ("open", "sticky/theirs"),
                ("own", "full"),
                ("full", "full/x/y"),
                ("own", "acl"),
                ("fifo", "own"),
                ("full", "fifo"),
                ("link", "own/link"),
                ("dirlink", "acl"),
                ("nothing", "mine"),
                ("closed", "acl/closed"),
                ("closed/x", "y"),
                ("full/x/..", "z"),
                ("hard", "setid"),
                ("group", "foreign"),
            ] {
                t.did(&format!("{from} -> {to}"), fs::rename(from, to));
            }
        }),
        ("moving with flags", |t| {
            let rename = |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, a, CWD, b, flags);
            for flags in [
                RenameFlags::NOREPLACE,
                RenameFlags::EXCHANGE,
                RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
            ] {
                for (from, to) in [
                    ("mine", "open"),
                    ("mine", "new"),
                    ("mine", "own"),
                    ("full", "full/x"),
                    ("full/x", "full"),
                    ("mine", "hard"),
                    ("own/a", "sticky/theirs"),
                    ("link", "theirs"),
                    ("fifo", "sticky/mine"),
                    ("nothing", "mine"),
                    ("mine", "nothing"),
                ] {
                    t.did(&format!("{from} {flags:?} {to}"), rename(from, to, flags));
                }
            }
        }),
        ("names", |t| {
            for name in [
                "n".repeat(255),
                "n".repeat(256),
                "ä".repeat(127),
                " ".into(),
                "a\nb\t\u{1}\\".into(),
                "...".into(),
                "-rf".into(),
            ] {
                t.did("file", fs::write(&name, "x"));
                t.did("dir", fs::create_dir(format!("acl/{name}")));
                t.did("rename", fs::rename(&name, format!("group/{name}")));
            }
            let odd = std::ffi::OsStr::from_bytes(b"caf\xe9\xff\xfe");
            t.did("bytes", fs::write(odd, "x"));
            t.gave("read", fs::read(odd));
            for path in [
                "",
                ".",
                "..",
                "mine/",
                "own/",
                "./own/../mine",
                "own//a",
                "nothing/",
                "link/",
                "dirlink/",
            ] {
                t.gave("stat", fs::metadata(path).map(|s| s.mode()));
                t.did("mkdir", fs::create_dir(path));
            }
            t.gave("too long", fs::metadata("x/".repeat(2100)).map(drop));
        }),
        ("removed and still open", |t| {
            with(t, "mine", libc::O_RDWR, |t, f| {
                t.did("unlink", fs::remove_file("hard"));
                t.gave("names", f.metadata().map(|s| s.nlink()));
                t.did("unlink", fs::remove_file("mine"));
                t.gave(
                    "names",
                    f.metadata()
                        .map(|s| (s.nlink(), s.len(), s.mode(), s.uid())),
                );
                t.gave("write", f.write_at(b"after", 5000));
                t.did("chmod", f.set_permissions(PermissionsExt::from_mode(0o600)));
                t.did("chown", std::os::unix::fs::fchown(&f, None, Some(777)));
                t.did("cut", f.set_len(5003));
                t.did("times", f.set_modified(UNIX_EPOCH));
                t.did(
                    "attribute",
                    rustix::fs::fsetxattr(&f, "user.y", b"1", rustix::fs::XattrFlags::empty()),
                );
                let mut bytes = [0; 8];
                t.gave(
                    "read",
                    f.read_at(&mut bytes, 4999).map(|n| bytes[..n].to_vec()),
                );
                t.gave(
                    "stat",
                    f.metadata()
                        .map(|s| (s.nlink(), s.len(), s.mode(), s.gid(), s.mtime())),
                );
                t.did("sync", f.sync_all());
                let by_proc = format!("/proc/thread-self/fd/{}", f.as_raw_fd());
                t.did(
                    "link",
                    rustix::fs::linkat(CWD, &by_proc, CWD, "again", AtFlags::SYMLINK_FOLLOW),
                );
                t.gave(
                    "open again",
                    File::open(&by_proc)
                        .and_then(|f| f.metadata())
                        .map(|s| s.len()),
                );
                t.did("the name is free", fs::write("mine", "new"));
                t.gave("still the old", f.metadata().map(|s| s.len()));
            });
            with(t, "full/x", libc::O_RDONLY, |t, f| {
                t.did("rmdir", fs::remove_dir("full/x"));
                t.gave("stat", f.metadata().map(|s| (s.nlink(), s.mode())));
                t.did(
                    "make inside",
                    rustix::fs::mkdirat(&f, "y", Mode::from_raw_mode(0o755)),
                );
                t.did(
                    "up",
                    rustix::fs::openat(&f, "..", OFlags::RDONLY, Mode::empty()),
                );
            });
        }),
        ("replaced and still open", |t| {
            with(t, "mine", libc::O_RDWR, |t, f| {
                t.did("rename over", fs::rename("own/a", "mine"));
                t.did("and its other name", fs::remove_file("hard"));
                t.gave("stat", f.metadata().map(|s| (s.nlink(), s.len())));
                t.gave("write", f.write_at(b"zzz", 0));
                t.gave("the new one", fs::read("mine"));
            });
        }),
        ("a directory that is removed while one is in it", |t| {
            let made =
                fs::create_dir("acl/here").and_then(|()| std::env::set_current_dir("acl/here"));
            t.did("go", made);
            t.did("remove", fs::remove_dir("../here"));
            t.gave("stat", fs::metadata(".").map(|s| s.nlink()));
            t.did("make", fs::write("x", "x"));
            t.gave("list", fs::read_dir(".").map(|d| d.count()));
            t.gave("up", fs::metadata("..").map(drop));
        }),
    ]);
}
