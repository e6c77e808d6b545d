//! The same operation on the mount and on a directory of the file system below: what it returns, and what
//! is there afterwards, must be the same; as root, as an ordinary user with a supplementary group, and as a
//! stranger.
//!
//! An operation is a function that works in the current directory and tells what it saw. It runs in a
//! thread with its own user, groups, umask and directory (Linux keeps them a thread).

mod attributes;
mod making;
mod moving;
mod reading_and_writing;

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
