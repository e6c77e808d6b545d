//! The same operation on the mount and on a directory of the file system below: what it returns, and what
//! is there afterwards, must be the same; as root, as an ordinary user with a supplementary group, and as a
//! stranger.
//!
//! An operation is a function that works in the current directory and tells what it saw. It runs in a
//! thread with its own user, groups, umask and directory (Linux keeps them a thread).

use super::*;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// What an operation saw: one line for each call.
#[derive(Default)]
pub struct Told(Vec<String>);

impl Told {
    /// How a call went.
    fn did<T, E: Into<std::io::Error>>(&mut self, what: &str, done: Result<T, E>) -> Option<T> {
        match done {
            Ok(value) => {
                self.0.push(format!("{what}: done"));
                Some(value)
            }
            Err(why) => {
                self.0.push(format!("{what}: {}", why.into()));
                None
            }
        }
    }

    /// What a call returned.
    fn gave<T: std::fmt::Debug, E: Into<std::io::Error>>(&mut self, what: &str, r: Result<T, E>) {
        let r = r.map_err(|e| e.into().to_string());
        self.0.push(format!("{what}: {r:?}"));
    }
}

/// User, group and one supplementary group.
type User = (u32, u32, u32);
const USERS: [User; 3] = [(0, 0, 0), (1234, 4321, 777), (5678, 5678, 5679)];

/// Runs `work` in `dir` as `user`, in a thread that has these for itself.
fn run_as<T: Send>(user: User, dir: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let groups = [user.2];
            // SAFETY: plain numbers, and an array that lives on. The raw calls and the umask change this
            // thread only, as its file system context was taken from the others' before.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_FS), 0);
                libc::umask(0o022);
                assert_eq!(libc::syscall(libc::SYS_setgroups, 1, groups.as_ptr()), 0);
                let (uid, gid) = (user.0, user.1);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            std::env::set_current_dir(dir).unwrap();
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Sets this thread's umask, in an operation.
fn umask(mask: u32) {
    // SAFETY: a plain number; the thread has a umask of its own (`run_as`).
    unsafe { libc::umask(mask) };
}

/// A POSIX ACL as the attribute holds it: owner, user 5678, group, mask, others.
fn acl(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let entries = [
        (1u16, owner, u32::MAX),
        (2, user, 5678),
        (4, group, u32::MAX),
    ];
    for (tag, bits, id) in entries
        .into_iter()
        .chain([(16, mask, u32::MAX), (32, others, u32::MAX)])
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(path.as_ref(), name, value, none)
}

fn xattr(path: impl AsRef<Path>, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

fn xattrs(path: impl AsRef<Path>) -> rustix::io::Result<Vec<String>> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path.as_ref(), &mut list[..])?;
    assert_eq!(length, rustix::fs::llistxattr_query(path.as_ref())?);
    let names = list[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<_> = names
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn mknod(path: &str, mode: u32, dev: u64) -> rustix::io::Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(mode);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode & 0o7777), dev)
}

/// What every operation finds.
fn furnish(dir: &Path) {
    let p = |name: &str| dir.join(name);
    let file = |name: &str, bytes: &[u8], uid, gid, mode| {
        fs::write(p(name), bytes).unwrap();
        chown(p(name), Some(uid), Some(gid)).unwrap();
        chmod(p(name), mode);
    };
    let directory = |name: &str, uid, gid, mode| {
        fs::create_dir(p(name)).unwrap();
        chown(p(name), Some(uid), Some(gid)).unwrap();
        chmod(p(name), mode);
    };
    fs::create_dir(dir).unwrap();
    chmod(dir, 0o777);
    file("mine", &[b'm'; 5000], 1234, 4321, 0o644);
    file("theirs", b"secret", 0, 0, 0o600);
    file("open", &[b'o'; 20000], 0, 0, 0o666);
    file("setid", b"#!/bin/true", 0, 0, 0o6777);
    file("setgid", b"#!/bin/true", 1234, 888, 0o2666);
    file("capable", b"#!/bin/true", 1234, 4321, 0o777);
    file("my setid", b"#!/bin/true", 1234, 4321, 0o6755);
    directory("own", 1234, 4321, 0o755);
    file("own/a", b"a", 1234, 4321, 0o600);
    file("own/b", b"b", 0, 0, 0o600);
    directory("closed", 0, 0, 0o700);
    directory("group", 0, 777, 0o2777);
    directory("foreign", 0, 888, 0o2777);
    directory("sticky", 0, 0, 0o1777);
    file("sticky/theirs", b"x", 0, 0, 0o666);
    file("sticky/mine", b"x", 1234, 4321, 0o666);
    directory("acl", 0, 0, 0o777);
    set_xattr(p("acl"), DEFAULT, &acl(7, 6, 5, 7, 4)).unwrap();
    directory("full", 0, 0, 0o777);
    directory("full/x", 0, 0, 0o777);
    symlink("mine", p("link")).unwrap();
    symlink("nowhere", p("dangling")).unwrap();
    symlink("loop", p("loop")).unwrap();
    symlink("own", p("dirlink")).unwrap();
    fs::hard_link(p("mine"), p("hard")).unwrap();
    rustix::fs::mknodat(
        CWD,
        p("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    set_xattr(p("mine"), "user.color", b"blue").unwrap();
    set_xattr(p("mine"), "trusted.color", b"red").unwrap();
    // CAP_NET_RAW, permitted and effective.
    let capability = [
        &0x0200_0001u32.to_le_bytes()[..],
        &0x2000u32.to_le_bytes(),
        &[0; 12],
    ]
    .concat();
    set_xattr(p("capable"), "security.capability", &capability).unwrap();
}

/// An entry as `stat` and the rest show it, with the times for themselves.
type Shown = BTreeMap<PathBuf, (String, [(i64, i64); 2], u64)>;

fn look(dir: &Path) -> Shown {
    let mut all = BTreeMap::new();
    let mut to_do = vec![dir.to_owned()];
    while let Some(path) = to_do.pop() {
        let s = fs::symlink_metadata(&path).unwrap();
        if s.is_dir() {
            to_do.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let holds = if s.is_file() && s.len() < 1 << 20 {
            let bytes = fs::read(&path).unwrap();
            let sum = bytes.iter().zip(1u64..).fold(0u64, |sum, (b, i)| {
                sum.wrapping_add(i.wrapping_mul(u64::from(*b)))
            });
            format!("sum {sum}")
        } else {
            fs::read_link(&path).map_or(String::new(), |to| to.display().to_string())
        };
        let names = xattrs(&path).unwrap();
        let values: Vec<_> = names
            .iter()
            .map(|n| (n, xattr(&path, n).unwrap()))
            .collect();
        let shown = format!(
            "{:o} {}:{} {} names, {} bytes, device {}, {holds} {values:?}",
            s.mode(),
            s.uid(),
            s.gid(),
            s.nlink(),
            if s.is_dir() { 0 } else { s.len() },
            s.rdev()
        );
        let times = [(s.mtime(), s.mtime_nsec()), (s.ctime(), s.ctime_nsec())];
        all.insert(
            path.strip_prefix(dir).unwrap().to_owned(),
            (shown, times, s.ino()),
        );
    }
    all
}

/// With what the times have become in place of the times.
fn since(before: &Shown, after: &Shown) -> Vec<String> {
    let old: BTreeMap<u64, _> = before.values().map(|b| (b.2, b.1)).collect();
    let times = |now: &[(i64, i64); 2], inode: &u64| match old.get(inode) {
        None => "new",
        Some(old) if old[0] != now[0] => "modified",
        Some(old) if old[1] != now[1] => "changed",
        Some(_) => "as it was",
    };
    let lines = after.iter();
    lines
        .map(|(path, (shown, now, inode))| {
            format!("{}: {shown}, {}", path.display(), times(now, inode))
        })
        .collect()
}

/// Waits until the clock of the file system shows another time than all that is here.
fn let_the_clock_move(probe: &Path) {
    fs::write(probe, "").unwrap();
    let began = fs::metadata(probe).unwrap().modified().unwrap();
    wait_until("the clock moves", || {
        fs::write(probe, "x").unwrap();
        fs::metadata(probe).unwrap().modified().unwrap() > began
    });
}

type Operation = fn(&mut Told);

/// Runs each operation as each user on both sides.
fn compare(operations: &[(&str, Operation)]) {
    let m = TestMount::new();
    let native = m.source("").with_file_name("native");
    fs::create_dir(&native).unwrap();
    chmod(&native, 0o777);
    let case = |i: usize, u: usize| format!("{i}-{u}");
    for (i, _) in operations.iter().enumerate() {
        for (u, _) in USERS.iter().enumerate() {
            furnish(&m.path(case(i, u)));
            furnish(&native.join(case(i, u)));
        }
    }
    let_the_clock_move(&native.join("clock"));
    let mut wrong = Vec::new();
    for (i, (name, operation)) in operations.iter().enumerate() {
        for (u, user) in USERS.iter().enumerate() {
            let run = |dir: &Path| {
                let before = look(dir);
                let mut told = Told::default();
                run_as(*user, dir, || operation(&mut told));
                let after = look(dir);
                (told.0, since(&before, &after), after)
            };
            let (here, below) = (m.path(case(i, u)), m.source(case(i, u)));
            let (told, lines, shown) = run(&here);
            let (native_told, native_lines, _) = run(&native.join(case(i, u)));
            let mut differ = |what: &str, a: &[String], b: &[String]| {
                if a != b {
                    let only = |a: &[String], b: &[String]| -> Vec<String> {
                        a.iter().filter(|l| !b.contains(l)).cloned().collect()
                    };
                    wrong.push(format!(
                        "{name} as {}: {what}\n  mount:  {:#?}\n  below: {:#?}",
                        user.0,
                        only(a, b),
                        only(b, a)
                    ));
                }
            };
            differ("what it returned", &told, &native_told);
            differ("what it left", &lines, &native_lines);
            let flat =
                |shown: &Shown| -> Vec<String> { shown.iter().map(|s| format!("{s:?}")).collect() };
            differ(
                "the kernel shows something else than is there",
                &flat(&shown),
                &flat(&look(&below)),
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn open(t: &mut Told, path: &str, flags: i32) -> Option<File> {
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(0o666));
    t.did(&format!("open {path}"), opened).map(File::from)
}

/// Does something with a file if it could be opened.
fn with(t: &mut Told, path: &str, flags: i32, work: impl FnOnce(&mut Told, File)) {
    if let Some(f) = open(t, path, flags) {
        work(t, f);
    }
}

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

#[test]
fn reading_and_writing() {
    compare(&[
        ("opening", |t| {
            for path in [
                "mine",
                "theirs",
                "open",
                "own",
                "closed",
                "setid",
                "sticky/theirs",
                "sticky/mine",
                "dangling",
                "nothing",
                "link",
                "own/b",
            ] {
                for flags in [
                    libc::O_RDONLY,
                    libc::O_WRONLY,
                    libc::O_RDWR,
                    libc::O_RDONLY | libc::O_DIRECTORY,
                    libc::O_RDWR | libc::O_CREAT,
                    libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
                    libc::O_PATH,
                    libc::O_RDONLY | libc::O_NOATIME,
                    libc::O_WRONLY | libc::O_NOFOLLOW,
                    libc::O_WRONLY | libc::O_DIRECTORY,
                ] {
                    let opened = rustix::fs::open(
                        path,
                        OFlags::from_bits_retain(flags.cast_unsigned()),
                        Mode::from_raw_mode(0o644),
                    );
                    t.did(&format!("{path} {flags:o}"), opened);
                }
            }
        }),
        ("the wrong way", |t| {
            with(t, "open", libc::O_RDONLY, |t, f| {
                t.gave("write", f.write_at(b"x", 0));
                t.did("cut", f.set_len(0));
                t.did(
                    "allocate",
                    rustix::fs::fallocate(&f, FallocateFlags::empty(), 0, 1),
                );
            });
            with(t, "open", libc::O_WRONLY, |t, f| {
                t.gave("read", f.read_at(&mut [0; 1], 0));
                t.did("cut beyond all", f.set_len(i64::MAX as u64));
                t.gave("write beyond all", f.write_at(b"x", i64::MAX as u64 - 1));
                t.did(
                    "allocate beyond all",
                    rustix::fs::fallocate(&f, FallocateFlags::empty(), i64::MAX as u64 - 1, 1),
                );
                t.did(
                    "allocate nothing",
                    rustix::fs::fallocate(&f, FallocateFlags::empty(), 0, 0),
                );
            });
            with(t, "own", libc::O_RDONLY, |t, f| {
                t.gave("read a directory", f.read_at(&mut [0; 1], 0));
                t.did("sync it", f.sync_all());
            });
        }),
        ("emptying", |t| {
            for path in [
                "mine", "theirs", "open", "setid", "setgid", "capable", "my setid", "link", "own",
            ] {
                with(t, path, libc::O_WRONLY | libc::O_TRUNC, |t, f| {
                    t.gave("size", f.metadata().map(|s| (s.len(), s.mode())))
                });
            }
            with(t, "own/a", libc::O_RDONLY | libc::O_TRUNC, |t, f| {
                t.gave("size", f.metadata().map(|s| s.len()))
            });
        }),
        ("set-id bits of who writes", |t| {
            for (i, path) in ["setid", "setgid", "my setid", "capable"]
                .into_iter()
                .enumerate()
            {
                with(t, path, libc::O_WRONLY, |t, f| {
                    match i % 2 {
                        0 => t.gave("write", f.write_at(b"#!", 0)),
                        _ => t.gave(
                            "allocate",
                            rustix::fs::fallocate(&f, FallocateFlags::empty(), 0, 100),
                        ),
                    }
                    t.gave("mode", f.metadata().map(|s| s.mode()));
                });
                t.gave("capability", xattr(path, "security.capability"));
            }
        }),
        ("set-id bits of who cuts, punches or copies", |t| {
            with(t, "setid", libc::O_WRONLY, |t, f| {
                t.did("cut", f.set_len(3));
                t.gave("mode", f.metadata().map(|s| s.mode()));
            });
            with(t, "setgid", libc::O_WRONLY, |t, f| {
                let from = File::open("open").unwrap();
                t.gave(
                    "copy",
                    rustix::fs::copy_file_range(&from, Some(&mut 0), &f, Some(&mut 2), 5),
                );
                t.gave("mode", f.metadata().map(|s| s.mode()));
            });
            with(t, "my setid", libc::O_WRONLY, |t, f| {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                t.did("punch", rustix::fs::fallocate(&f, punch, 0, 4));
                t.gave("mode", f.metadata().map(|s| s.mode()));
            });
        }),
        ("appending", |t| {
            with(t, "open", libc::O_RDWR | libc::O_APPEND, |t, mut f| {
                t.did("write", f.write_all(b"end"));
                t.gave("pwrite appends", f.write_at(b"!", 0));
                t.gave(
                    "seek",
                    std::io::Seek::seek(&mut f, std::io::SeekFrom::Start(1)),
                );
                t.did("write", f.write_all(b"and end"));
                t.gave("at", std::io::Seek::stream_position(&mut f));
                t.did("cut", f.set_len(10));
                t.did("write", f.write_all(b"anew"));
                t.gave("size", f.metadata().map(|s| s.len()));
            });
        }),
        ("allocating", |t| {
            with(t, "open", libc::O_RDWR, |t, f| {
                use FallocateFlags as F;
                let mut file = Vec::new();
                for (flags, offset, length) in [
                    (F::empty(), 0, 30000),
                    (F::KEEP_SIZE, 30000, 70000),
                    (F::PUNCH_HOLE | F::KEEP_SIZE, 4096, 4096),
                    (F::PUNCH_HOLE | F::KEEP_SIZE, 5, 100),
                    (F::PUNCH_HOLE, 0, 4096),
                    (F::ZERO_RANGE, 100, 9000),
                    (F::ZERO_RANGE, 29000, 9000),
                    (F::ZERO_RANGE | F::KEEP_SIZE, 30000, 90000),
                    (F::UNSHARE_RANGE, 0, 4096),
                    (F::from_bits_retain(1 << 20), 0, 4096),
                    (F::PUNCH_HOLE | F::KEEP_SIZE, 1 << 30, 4096),
                ] {
                    t.did(
                        &format!("{flags:?} {offset} {length}"),
                        rustix::fs::fallocate(&f, flags, offset, length),
                    );
                    t.gave("size", f.metadata().map(|s| s.len()));
                    file.clear();
                    let read = File::open("open").and_then(|mut f| f.read_to_end(&mut file));
                    let zeros = file.iter().filter(|b| **b == 0).count();
                    t.gave("zeros", read.map(|n| (n, zeros)));
                }
            });
        }),
        ("holes", |t| {
            with(t, "sparse", libc::O_RDWR | libc::O_CREAT, |t, f| {
                t.gave("far away", f.write_at(b"end", 1 << 40));
                t.gave("middle", f.write_at(b"middle", 1 << 20));
                t.did("sync", f.sync_all());
                for at in [
                    0,
                    1 << 20,
                    (1 << 20) + 1,
                    (1 << 20) + 4096,
                    1 << 40,
                    (1 << 40) + 3,
                    1 << 41,
                ] {
                    t.gave("data", rustix::fs::seek(&f, SeekFrom::Data(at)));
                    t.gave("hole", rustix::fs::seek(&f, SeekFrom::Hole(at)));
                }
                let mut bytes = [1; 6];
                t.gave(
                    "read",
                    f.read_at(&mut bytes, (1 << 40) - 3)
                        .map(|n| bytes[..n].to_vec()),
                );
                t.gave("stat", f.metadata().map(|s| (s.len(), s.blocks())));
                t.did("cut", f.set_len((1 << 40) + 1));
                t.gave("stat", f.metadata().map(|s| s.len()));
                t.did("cut", f.set_len(100));
                t.gave("from the end", rustix::fs::seek(&f, SeekFrom::End(-10)));
                t.gave("before it all", rustix::fs::seek(&f, SeekFrom::End(-1000)));
                t.gave(
                    "read",
                    f.read_at(&mut bytes, 98).map(|n| bytes[..n].to_vec()),
                );
            });
        }),
        ("copying", |t| {
            with(t, "copy", libc::O_RDWR | libc::O_CREAT, |t, f| {
                let Ok(from) = File::open("open") else { return };
                for (at, to, length) in [
                    (0, 0, 10000),
                    (19000, 50000, 5000),
                    (30000, 0, 100),
                    (5, 5, 0),
                ] {
                    t.gave(
                        "copy",
                        rustix::fs::copy_file_range(
                            &from,
                            Some(&mut { at }),
                            &f,
                            Some(&mut { to }),
                            length,
                        ),
                    );
                    t.gave("size", f.metadata().map(|s| s.len()));
                }
                t.gave(
                    "within",
                    rustix::fs::copy_file_range(&f, Some(&mut 0), &f, Some(&mut 60000), 1000),
                );
                t.gave(
                    "over itself",
                    rustix::fs::copy_file_range(&f, Some(&mut 0), &f, Some(&mut 500), 1000),
                );
                t.gave(
                    "to a reader",
                    rustix::fs::copy_file_range(&f, Some(&mut 0), &from, Some(&mut 0), 10),
                );
                t.gave("all of it", std::io::copy(&mut &from, &mut &f));
            });
        }),
        ("what the file system has", |t| {
            t.gave(
                "statvfs",
                rustix::fs::statvfs(".")
                    .map(|s| (s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax)),
            );
            t.gave(
                "block size",
                fs::metadata("open").map(|s| (s.blksize(), s.blocks())),
            );
        }),
    ]);
}
