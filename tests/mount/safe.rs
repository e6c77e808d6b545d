//! Somebody who may write below the source directly works against root, who works through the mount; and a
//! tree that is larger than what the daemon may have open.

use super::life::Holder;
use super::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// As an ordinary user, swaps a directory and a file for symbolic links that lead outside, and back, until
/// `end`. In a thread that has its user for itself.
fn attack(own: &Path, outside: &Path, end: &AtomicBool, swaps: &AtomicU32) {
    // SAFETY: plain numbers; the raw calls change this thread only.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setresgid, 4321, 4321, 4321), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234), 0);
    }
    let at = |name: &str| own.join(name);
    while !end.load(Ordering::Relaxed) {
        for (name, aside, leads_to) in [
            ("d", "d-aside", outside.to_owned()),
            ("f", "f-aside", outside.join("f")),
        ] {
            fs::rename(at(name), at(aside)).unwrap();
            symlink(&leads_to, at(name)).unwrap();
            std::thread::yield_now();
            // Both ways of taking the link away again.
            if swaps.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
                fs::remove_file(at(name)).unwrap();
            }
            fs::rename(at(aside), at(name))
                .or_else(|_| {
                    fs::remove_file(at(name))?;
                    fs::rename(at(aside), at(name))
                })
                .unwrap();
        }
    }
}

/// What root does in a directory and with a file that it has opened before they were swapped; how much of it
/// worked. So the kernel follows no link, and it is the daemon that must reach the right ones.
fn work(d: &OwnedFd, f: &OwnedFd) -> u32 {
    let mut done = 0;
    let mut count = |worked: bool| done += u32::from(worked);
    let write = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW;
    if let Ok(f) = rustix::fs::openat(d, "f", write, Mode::empty()) {
        count(File::from(f).write_all(b"by root").is_ok());
    }
    let create = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW;
    count(rustix::fs::openat(d, "new", create, Mode::RUSR).is_ok());
    count(rustix::fs::mkdirat(d, "made", Mode::RWXU).is_ok());
    count(rustix::fs::renameat(d, "new", d, "f2").is_ok());
    count(rustix::fs::linkat(d, "f2", d, "f3", AtFlags::empty()).is_ok());
    count(rustix::fs::symlinkat("x", d, "s").is_ok());
    for name in ["f2", "f3", "s"] {
        count(rustix::fs::unlinkat(d, name, AtFlags::empty()).is_ok());
    }
    count(rustix::fs::unlinkat(d, "made", AtFlags::REMOVEDIR).is_ok());
    count(rustix::fs::openat(d, ".", OFlags::RDONLY, Mode::empty()).is_ok());
    let uid = Some(rustix::fs::Uid::from_raw(1234));
    for fd in [d, f] {
        let path = proc_path(fd);
        count(rustix::fs::chmod(&path, Mode::from_raw_mode(0o4775)).is_ok());
        count(rustix::fs::chownat(fd, "", uid, None, AtFlags::EMPTY_PATH).is_ok());
        let none = rustix::fs::XattrFlags::empty();
        count(rustix::fs::setxattr(&path, "user.x", b"by root", none).is_ok());
    }
    if let Ok(f) = rustix::fs::open(proc_path(f), OFlags::WRONLY, Mode::empty()) {
        let f = File::from(f);
        count(f.write_all_at(b"by root", 3).is_ok());
        count(f.set_len(5).is_ok());
        count(f.set_modified(UNIX_EPOCH).is_ok());
    }
    done
}

fn proc_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[test]
fn no_link_that_is_swapped_in_leads_outside() {
    let options = LocalOptions {
        // So that directories are looked up again and again.
        open_directories: 1,
        ..LocalOptions::default()
    };
    let m = TestMount::with(options, |source| {
        fs::create_dir_all(source.join("own/d")).unwrap();
        fs::create_dir_all(source.join("elsewhere/deep")).unwrap();
        for path in ["own/f", "own/d/f"] {
            fs::write(source.join(path), "inside").unwrap();
        }
        for path in ["own", "own/d", "own/f", "own/d/f"] {
            chown(source.join(path), Some(1234), Some(4321)).unwrap();
        }
    });
    let outside = m.source("").with_file_name("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "untouched").unwrap();
    let look = || {
        let of = |path: &Path| {
            let s = fs::symlink_metadata(path).unwrap();
            (s.mode(), s.uid(), s.len(), s.ctime(), s.ctime_nsec())
        };
        let names = fs::read_dir(&outside).unwrap().count();
        (of(&outside), of(&outside.join("f")), names)
    };
    let before = look();
    let (end, swaps) = (AtomicBool::new(false), AtomicU32::new(0));
    let open = |path| rustix::fs::open(m.path(path), OFlags::PATH, Mode::empty()).unwrap();
    let (d, f) = (open("own/d"), open("own/f"));
    let mut done = 0;
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(&m.source("own"), &outside, &end, &swaps));
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) && !attacker.is_finished() {
            done += work(&d, &f);
            let _ = fs::metadata(m.path("elsewhere/deep"));
        }
        end.store(true, Ordering::Relaxed);
        attacker.join().unwrap();
    });
    assert_eq!(look(), before);
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"untouched");
    let swaps = swaps.into_inner();
    assert!(
        done > 100 && swaps > 100,
        "{done} operations, {swaps} swaps"
    );
}

#[test]
fn a_tree_of_any_size_needs_few_descriptors_and_little_memory() {
    const DIRECTORIES: u64 = 400;
    const FILES: u64 = 500;
    check_the_machine();
    // Where it is, in memory: it is made and removed faster.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    for d in 0..DIRECTORIES {
        let path = dir.path().join(format!("source/{d}"));
        fs::create_dir_all(&path).unwrap();
        for f in 0..FILES {
            File::create(path.join(f.to_string())).unwrap();
        }
    }
    let holder = Holder::start(dir.path(), "ulimit -n 1024");
    let mount = dir.path().join("source");
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", holder.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    };
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", holder.pid()))
            .unwrap()
            .count()
    };
    let at_first = memory();
    for d in 0..DIRECTORIES {
        for entry in fs::read_dir(mount.join(d.to_string())).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
    }
    let each = memory().saturating_sub(at_first) / (DIRECTORIES * FILES);
    assert!(each < 1024, "{each} bytes an inode");
    assert!(descriptors() < 400, "{} descriptors", descriptors());
    // Applications get as many as there are.
    let open: Vec<File> = (0..500)
        .map(|i| File::open(mount.join(format!("{}/{i}", i * 7 % DIRECTORIES))).unwrap())
        .collect();
    let made = mount.join("399/new");
    fs::write(&made, "x").unwrap();
    fs::rename(&made, mount.join("0/renamed")).unwrap();
    drop(open);
}
