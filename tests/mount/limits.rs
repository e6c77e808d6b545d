//! What is looked up, hidden, refused and forgotten.

use super::*;

#[test]
fn what_was_replaced_behind_the_mount_is_looked_up_again() {
    let options = LocalOptions {
        open_directories: 1,
        ..LocalOptions::default()
    };
    let m = TestMount::with(options, |source| {
        fs::create_dir(source.join("d")).unwrap();
        fs::create_dir(source.join("other")).unwrap();
        fs::write(source.join("d/a"), "old").unwrap();
    });
    assert_eq!(fs::read(m.path("d/a")).unwrap(), b"old");
    fs::rename(m.source("d"), m.source("gone")).unwrap();
    fs::create_dir(m.source("d")).unwrap();
    fs::write(m.source("d/a"), "new").unwrap();
    fs::read_dir(m.path("other")).unwrap().count();
    assert!(
        !m.path("other/a").exists(),
        "the only open directory is another one now"
    );
    assert_eq!(fs::read(m.path("d/a")).unwrap(), b"new");
    fs::write(m.path("d/a"), "newer").unwrap();
    assert_eq!(fs::read(m.source("gone/a")).unwrap(), b"old");
    assert_eq!(m.take(), ["content d/a whole of 5"]);
}

#[test]
fn an_empty_directory_that_is_removed_while_it_is_open_lists_nothing() {
    let m = TestMount::new();
    fs::create_dir(m.path("d")).unwrap();
    let dir = File::open(m.path("d")).unwrap();
    fs::remove_dir(m.path("d")).unwrap();
    m.take();
    assert_eq!(
        rustix::fs::mkdirat(&dir, "x", Mode::from_raw_mode(0o755)),
        Err(Errno::NOENT)
    );
    assert!(dir.metadata().is_ok());
    dir.set_permissions(PermissionsExt::from_mode(0o700))
        .unwrap();
    assert!(m.take().is_empty());
}

#[test]
fn what_is_ours_in_the_root_is_hidden_and_cannot_be_made() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::create_dir(source.join(".proxyfs")).unwrap();
        fs::create_dir(source.join("d")).unwrap();
        fs::create_dir(source.join("d/.proxyfs")).unwrap();
        fs::write(source.join("a"), "a").unwrap();
    });
    for plus in [false, true] {
        // The first listing asks for attributes too, a listing that goes on does not.
        let dir = File::open(m.path("")).unwrap();
        let names = rustix::fs::Dir::new(dir).unwrap().map(|e| {
            let entry = e.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if plus {
                let _ = fs::symlink_metadata(m.path(&name));
            }
            name
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, [".", "..", "a", "d"]);
    }
    assert_eq!(errno(fs::metadata(m.path(".proxyfs"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(m.path(".proxyfs"))), libc::EPERM);
    assert_eq!(errno(File::create(m.path(".proxyfs"))), libc::EPERM);
    assert_eq!(
        errno(fs::rename(m.path("d"), m.path(".proxyfs"))),
        libc::EPERM
    );
    assert_eq!(errno(fs::remove_dir(m.path(".proxyfs"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_file(m.path(".proxyfs"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(m.path(".proxyfs/id"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(m.path("d/../.proxyfs"))), libc::ENOENT);
    assert_eq!(errno(symlink("d", m.path(".proxyfs"))), libc::EPERM);
    assert_eq!(
        errno(fs::hard_link(m.path("a"), m.path(".proxyfs"))),
        libc::EPERM
    );
    let fifo = rustix::fs::FileType::Fifo;
    let made = rustix::fs::mknodat(CWD, m.path(".proxyfs"), fifo, Mode::RUSR, 0);
    assert_eq!(made, Err(Errno::PERM));
    assert_eq!(
        errno(fs::rename(m.path(".proxyfs"), m.path("x"))),
        libc::ENOENT
    );
    for flags in [RenameFlags::EXCHANGE, RenameFlags::NOREPLACE] {
        let (a, ours) = (m.path("a"), m.path(".proxyfs"));
        let onto = rustix::fs::renameat_with(CWD, &a, CWD, &ours, flags);
        assert!(matches!(onto, Err(Errno::PERM | Errno::NOENT)), "{onto:?}");
        let from = rustix::fs::renameat_with(CWD, &ours, CWD, &a, flags);
        assert!(matches!(from, Err(Errno::NOENT | Errno::EXIST)), "{from:?}");
    }
    assert!(m.source(".proxyfs").is_dir());
    assert!(
        m.path("d/.proxyfs").is_dir(),
        "below the root it is a name as any"
    );
    assert!(m.take().is_empty());
}

#[test]
fn inode_numbers_are_the_same_by_every_way() {
    let m = TestMount::new();
    fs::write(m.path("a"), "x").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    fs::hard_link(m.path("a"), m.path("d/b")).unwrap();
    let ino = |name: &str| fs::metadata(m.path(name)).unwrap().ino();
    assert_eq!(ino("a"), ino("d/b"));
    assert_eq!(ino("a"), fs::metadata(m.source("a")).unwrap().ino());
    assert_eq!(ino(""), 1);
    assert_eq!(ino("d/.."), 1);
    use std::os::unix::fs::DirEntryExt;
    for entry in fs::read_dir(m.path("")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
    }
}

#[test]
fn errors_are_those_of_the_file_system_below() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::create_dir_all(source.join("full/x")).unwrap();
        fs::create_dir(source.join("empty")).unwrap();
        fs::write(source.join("a"), "x").unwrap();
    });
    assert_eq!(errno(fs::remove_dir(m.path("full"))), libc::ENOTEMPTY);
    assert_eq!(
        errno(fs::rename(m.path("empty"), m.path("full"))),
        libc::ENOTEMPTY
    );
    assert_eq!(
        errno(fs::rename(m.path("full"), m.path("full/x/y"))),
        libc::EINVAL
    );
    assert_eq!(
        errno(fs::rename(m.path("a"), m.path("empty"))),
        libc::EISDIR
    );
    assert_eq!(
        errno(fs::hard_link(m.path("full"), m.path("l"))),
        libc::EPERM
    );
    assert_eq!(errno(fs::create_dir(m.path("a"))), libc::EEXIST);
    assert_eq!(errno(fs::read_link(m.path("a"))), libc::EINVAL);
    assert_eq!(errno(File::open(m.path("a/b"))), libc::ENOTDIR);
    let f = to_write(m.path("a"));
    assert_eq!(errno(f.write_at(b"x", i64::MAX as u64 - 4)), libc::EFBIG);
    drop(f);
    assert_eq!(m.take().len(), 0);
}

#[test]
fn locks_work_between_processes() {
    let m = TestMount::new();
    fs::write(m.path("a"), "x").unwrap();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    rustix::fs::flock(&f, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(!m.sh_as(0, 0, "flock -n a true").status.success());
    rustix::fs::flock(&f, rustix::fs::FlockOperation::Unlock).unwrap();
    m.sh("flock -n a true");
    rustix::fs::fcntl_lock(&f, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let try_it = "perl -MFcntl -e 'open(F, \"+<\", \"a\") or die; \
                  my $lock = pack(\"ssx4qql\", F_WRLCK, 0, 0, 0, 0); \
                  fcntl(F, F_SETLK, $lock) or exit 3'";
    assert_eq!(m.sh_as(0, 0, try_it).status.code(), Some(3));
    drop(f);
    m.sh(try_it);
}

/// Takes, asks for or gives back a lock of an open file description on some bytes.
fn ofd_lock(f: &File, kind: i32, start: i64, length: i64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: an open descriptor, and a struct flock that outlives the call.
    match unsafe { libc::fcntl(f.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn locks_of_byte_ranges_hold_between_descriptions_and_go_with_them() {
    let m = TestMount::new();
    fs::write(m.path("a"), "0123456789").unwrap();
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(m.path("a"))
            .unwrap()
    };
    let (one, other) = (open(), open());
    ofd_lock(&one, libc::F_WRLCK, 0, 5).unwrap();
    assert_eq!(errno(ofd_lock(&other, libc::F_WRLCK, 4, 2)), libc::EAGAIN);
    assert_eq!(errno(ofd_lock(&other, libc::F_RDLCK, 0, 1)), libc::EAGAIN);
    ofd_lock(&other, libc::F_WRLCK, 5, 5).unwrap();
    ofd_lock(&one, libc::F_UNLCK, 0, 2).unwrap();
    ofd_lock(&other, libc::F_RDLCK, 0, 2).unwrap();
    let again = open();
    assert_eq!(errno(ofd_lock(&again, libc::F_RDLCK, 3, 1)), libc::EAGAIN);
    drop(one);
    ofd_lock(&again, libc::F_WRLCK, 3, 1).unwrap();
}

#[test]
fn a_lock_waits_for_another_process_and_goes_with_it() {
    let m = TestMount::new();
    fs::write(m.path("a"), "x").unwrap();
    let script = "open(F, \"a\") and flock(F, 2) or exit 3; $| = 1; print \"locked\\n\"; sleep 600";
    let mut holder = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "perl", "-e", script])
        .current_dir(m.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    holder
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 7])
        .unwrap();
    let f = File::open(m.path("a")).unwrap();
    let now = rustix::fs::FlockOperation::NonBlockingLockShared;
    assert_eq!(rustix::fs::flock(&f, now), Err(Errno::WOULDBLOCK));
    let waiting = std::thread::spawn(move || {
        rustix::fs::flock(&f, rustix::fs::FlockOperation::LockExclusive)
    });
    holder.kill().unwrap();
    holder.wait().unwrap();
    waiting.join().unwrap().unwrap();
}

#[test]
fn statfs_tells_of_the_file_system_below() {
    let m = TestMount::new();
    let (mount, source) = (
        rustix::fs::statvfs(m.path("")).unwrap(),
        rustix::fs::statvfs(m.source("")).unwrap(),
    );
    assert_eq!(
        (mount.f_blocks, mount.f_bsize),
        (source.f_blocks, source.f_bsize)
    );
    assert_eq!(mount.f_namemax, 255);
}

#[test]
fn what_the_kernel_forgets_is_forgotten_here() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        for i in 0..500 {
            fs::create_dir(source.join(format!("d{i}"))).unwrap();
            File::create(source.join(format!("d{i}/f"))).unwrap();
        }
    });
    let open: Vec<File> = (0..500)
        .map(|i| File::open(m.path(format!("d{i}/f"))).unwrap())
        .collect();
    assert_eq!(
        m.local.known_inodes(),
        1001,
        "what is open is not forgotten"
    );
    drop(open);
    wait_until("the kernel forgets", || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        m.local.known_inodes() < 100
    });
    fs::write(m.path("d7/f"), "x").unwrap();
    assert_eq!(m.take(), ["content d7/f whole of 1"]);
}

#[test]
fn a_file_system_mounted_below_the_source_is_refused() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::create_dir(source.join("other")).unwrap();
    });
    let other = MountGuard(m.source("other"));
    rustix::mount::mount(
        "none",
        &other.0,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    assert_eq!(errno(fs::metadata(m.path("other"))), libc::EXDEV);
    assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 0);
}

struct MountGuard(std::path::PathBuf);

impl Drop for MountGuard {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What Linux does not let through to a FUSE file system, so that applications see that they have to do
/// without (as on NFS). The list is the README's.
#[test]
fn what_fuse_does_not_let_through_is_refused_and_harms_nothing() {
    let m = TestMount::new();
    fs::write(m.path("a"), [b'x'; 16384]).unwrap();
    m.take();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        let refused = rustix::fs::fallocate(&f, mode, 4096, 4096);
        assert_eq!(refused, Err(Errno::OPNOTSUPP), "{mode:?}");
    }
    let nameless = rustix::fs::open(m.path(""), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(nameless.err(), Some(Errno::OPNOTSUPP));
    let whiteout =
        rustix::fs::renameat_with(CWD, m.path("a"), CWD, m.path("b"), RenameFlags::WHITEOUT);
    assert_eq!(whiteout, Err(Errno::INVAL));
    assert_eq!(rustix::fs::ioctl_getflags(&f).err(), Some(Errno::NOTTY));
    drop(f);
    assert!(m.take().is_empty());
    assert_eq!(fs::read(m.path("a")).unwrap(), [b'x'; 16384]);
}

#[test]
fn a_large_file_is_written_and_read_through_the_mount() {
    let m = TestMount::new();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7 / 3) as u8).collect();
    fs::write(m.path("a"), &bytes).unwrap();
    assert!(fs::read(m.path("a")).unwrap() == bytes);
    assert!(fs::read(m.source("a")).unwrap() == bytes);
    assert_eq!(m.take(), ["content a whole of 5000000"]);
    let flags = libc::O_DIRECT;
    let mut direct = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(m.path("a"))
        .unwrap();
    // O_DIRECT wants its buffers aligned.
    let mut room = vec![0; 8 << 20];
    let aligned = room.as_ptr().align_offset(4096);
    let again = &mut room[aligned..aligned + (4 << 20)];
    direct.read_exact(again).unwrap();
    assert!(*again == bytes[..4 << 20]);
}
