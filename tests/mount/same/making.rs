//! Making files and directories: whose they are, and what may be done with them.

use super::*;

#[test]
fn making_and_owning() {
    compare(&[
        ("umask", |t| {
            for mask in [0, 0o027, 0o777] {
                umask(mask);
                t.did("file", File::create(format!("f{mask}")));
                t.did("dir", fs::create_dir(format!("d{mask}")));
                t.did("fifo", mknod(&format!("p{mask}"), libc::S_IFIFO | 0o666, 0));
            }
        }),
        ("bits asked for", |t| {
            umask(0);
            for mode in [0o0000, 0o4755, 0o2755, 0o6777, 0o1666] {
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(format!("f{mode}"));
                if let Some(mut f) = t.did("create", made) {
                    t.did("write to what was made", f.write_all(b"x"));
                }
                t.did(
                    "mkdir",
                    rustix::fs::mkdir(format!("d{mode}"), Mode::from_raw_mode(mode)),
                );
                t.did("mknod", mknod(&format!("n{mode}"), libc::S_IFREG | mode, 0));
            }
        }),
        ("groups handed down", |t| {
            umask(0o002);
            for dir in ["group", "foreign"] {
                t.did("file", fs::write(format!("{dir}/f"), "x"));
                t.did("dir", fs::create_dir(format!("{dir}/d")));
                t.did("below", fs::write(format!("{dir}/d/f"), "x"));
                t.did("link", symlink("x", format!("{dir}/s")));
                let with_setgid = Mode::from_raw_mode(0o2775);
                let flags = OFlags::CREATE | OFlags::WRONLY;
                t.did(
                    "setgid",
                    rustix::fs::open(format!("{dir}/g"), flags, with_setgid),
                );
                t.did(
                    "setgid dir",
                    rustix::fs::mkdir(format!("{dir}/h"), with_setgid),
                );
            }
        }),
        ("default ACLs", |t| {
            umask(0o077);
            t.did("file", fs::write("acl/f", "x"));
            t.did("dir", fs::create_dir("acl/d"));
            t.did("below", fs::write("acl/d/f", "x"));
            t.did("node", mknod("acl/p", libc::S_IFIFO | 0o640, 0));
            t.did("link", symlink("x", "acl/s"));
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open("acl/m");
            t.did("with a mode", made);
        }),
        ("ACLs", |t| {
            t.did("set", set_xattr("mine", ACCESS, &acl(6, 7, 4, 5, 0)));
            t.gave("get", xattr("mine", ACCESS));
            t.did(
                "chmod changes the mask",
                fs::set_permissions("mine", PermissionsExt::from_mode(0o630)),
            );
            t.gave("get", xattr("mine", ACCESS));
            t.did(
                "default of a file",
                set_xattr("mine", DEFAULT, &acl(6, 7, 4, 5, 0)),
            );
            t.did(
                "of a directory",
                set_xattr("own", DEFAULT, &acl(7, 7, 7, 7, 0)),
            );
            t.did("make below", fs::write("own/new", "x"));
            t.did("remove", rustix::fs::removexattr("own", DEFAULT));
            t.did("nonsense", set_xattr("mine", ACCESS, b"nonsense"));
            // Setting an ACL takes setgid from who is not in the group.
            t.did(
                "with setgid",
                set_xattr("setgid", ACCESS, &acl(6, 7, 4, 5, 0)),
            );
            t.gave("as a stranger", fs::read("mine").map(|b| b.len()));
        }),
        ("devices", |t| {
            for (i, kind) in [
                libc::S_IFCHR,
                libc::S_IFBLK,
                libc::S_IFSOCK,
                libc::S_IFIFO,
                libc::S_IFREG,
            ]
            .iter()
            .enumerate()
            {
                t.did(
                    "mknod",
                    mknod(&format!("n{i}"), kind | 0o644, libc::makedev(1, 3)),
                );
                t.did(
                    "again",
                    mknod(&format!("n{i}"), kind | 0o644, libc::makedev(1, 3)),
                );
            }
            t.did(
                "large numbers",
                mknod(
                    "large",
                    libc::S_IFCHR | 0o644,
                    libc::makedev(4000, 1_000_000),
                ),
            );
            t.did("no kind", mknod("none", 0o644, 0));
            t.did("a directory", mknod("dir", libc::S_IFDIR | 0o755, 0));
            with(t, "n0", libc::O_RDWR, |t, mut f| {
                t.did("write to /dev/null's", f.write_all(b"x"));
                t.gave("read", f.read(&mut [0; 4]));
            });
        }),
        ("links", |t| {
            for (from, to) in [
                ("mine", "l1"),
                ("theirs", "l2"),
                ("link", "l3"),
                ("own", "l4"),
                ("dangling", "l5"),
                ("mine", "own/l6"),
                ("nothing", "l7"),
                ("mine", "open"),
                ("fifo", "l8"),
                ("setid", "l9"),
            ] {
                t.did(&format!("{from} -> {to}"), fs::hard_link(from, to));
            }
            let follow = rustix::fs::linkat(CWD, "link", CWD, "followed", AtFlags::SYMLINK_FOLLOW);
            t.did("following", follow);
            t.gave("names", fs::metadata("mine").map(|s| s.nlink()));
        }),
        ("symbolic links", |t| {
            t.did(
                "make",
                symlink(std::ffi::OsStr::from_bytes(&[b'x'; 4095]), "longest"),
            );
            t.did(
                "too long",
                symlink(std::ffi::OsStr::from_bytes(&[b'x'; 4096]), "longer"),
            );
            t.did("empty", symlink("", "empty"));
            t.did("there", symlink("x", "mine"));
            t.gave("read", fs::read_link("link"));
            t.gave("read no link", fs::read_link("mine"));
            t.gave("length", fs::symlink_metadata("longest").map(|s| s.len()));
            for link in ["link", "dangling", "loop", "dirlink", "dirlink/a"] {
                t.gave("stat", fs::metadata(link).map(|s| s.len()));
                t.gave("open", File::open(link).map(drop));
            }
            with(t, "dangling", libc::O_WRONLY | libc::O_CREAT, |_, _| ());
            with(
                t,
                "link",
                libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
                |_, _| (),
            );
            with(t, "link", libc::O_RDONLY | libc::O_NOFOLLOW, |_, _| ());
            t.did("lchown", lchown("link", Some(1234), Some(777)));
        }),
    ]);
}
