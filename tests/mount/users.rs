//! Users, modes, names and directories, as the file system below has them.

use super::*;

#[test]
fn what_an_ordinary_user_makes_belongs_to_that_user() {
    let m = TestMount::new();
    let script =
        "umask 027; echo x > a; mkdir d; ln -s a s; mkfifo f; umask 0; mkdir w; echo y > w/b";
    let done = m.sh_as(1234, 4321, script);
    assert!(done.status.success(), "{done:?}");
    for (name, bits) in [
        ("a", 0o640),
        ("d", 0o750),
        ("s", 0o777),
        ("f", 0o640),
        ("w", 0o777),
        ("w/b", 0o666),
    ] {
        let there = fs::symlink_metadata(m.source(name)).unwrap();
        assert_eq!((there.uid(), there.gid()), (1234, 4321), "{name}");
        assert_eq!(mode(m.source(name)), bits, "{name}");
    }
    let mkdir = m
        .recorder
        .take()
        .into_iter()
        .find_map(|change| match change {
            Change::Mkdir { mode, owner, .. } => Some((mode, owner.uid, owner.gid)),
            _ => None,
        });
    assert_eq!(mkdir, Some((0o750, 1234, 4321)));
}

#[test]
fn directories_with_setgid_hand_their_group_down() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::create_dir(source.join("d")).unwrap();
        chown(source.join("d"), Some(0), Some(777)).unwrap();
        chmod(source.join("d"), 0o2777);
    });
    let done = m.sh_as(1234, 4321, "umask 022; echo x > d/a; mkdir d/e");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::metadata(m.source("d/a")).unwrap().gid(), 777);
    assert_eq!(fs::metadata(m.source("d/e")).unwrap().gid(), 777);
    assert_eq!(m.take(), ["content d/a whole of 2", "mkdir d/e 2755"]);
}

#[test]
fn permissions_are_those_of_the_caller() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("secret"), "x").unwrap();
        chmod(source.join("secret"), 0o600);
        fs::create_dir(source.join("sticky")).unwrap();
        chmod(source.join("sticky"), 0o1777);
        fs::write(source.join("sticky/theirs"), "x").unwrap();
    });
    for script in [
        "cat secret",
        "echo x >> secret",
        "chmod 666 secret",
        "rm -f sticky/theirs",
    ] {
        assert!(!m.sh_as(1234, 4321, script).status.success(), "{script}");
    }
    assert!(m.take().is_empty());
}

#[test]
fn a_write_by_an_ordinary_user_takes_set_id_bits_away_at_once() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        for name in ["write", "cut", "empty"] {
            fs::write(source.join(name), "x").unwrap();
            chmod(source.join(name), 0o6777);
        }
    });
    // The kernel knows the modes.
    for name in ["write", "cut", "empty"] {
        assert_eq!(mode(m.path(name)), 0o6777);
    }
    let script = "echo y >> write; truncate -s 0 cut; : > empty";
    assert!(m.sh_as(1234, 4321, script).status.success());
    for name in ["write", "cut", "empty"] {
        assert_eq!(mode(m.source(name)), 0o777, "{name}");
        assert_eq!(mode(m.path(name)), 0o777, "{name}");
    }
    chmod(m.path("write"), 0o4777);
    m.sh("echo z >> write");
    assert_eq!(mode(m.path("write")), 0o4777, "root may");
}

#[test]
fn a_program_that_an_ordinary_user_wrote_to_does_not_run_as_its_owner() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::copy("/usr/bin/id", source.join("id")).unwrap();
        chmod(source.join("id"), 0o4777);
    });
    let who = |script: &str| {
        let output = m.sh_as(1234, 4321, script);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(who("./id -u"), "0\n");
    // No stat() in between that would make the kernel ask again.
    assert_eq!(who("printf x >> id; exec ./id -u"), "1234\n");
}

#[test]
fn a_file_made_behind_the_mount_is_not_opened_for_who_may_not() {
    let m = TestMount::new();
    // The kernel knows that there is none, so that it asks for it to be made.
    assert!(!m.path("secret").exists());
    fs::write(m.source("secret"), "secret").unwrap();
    chmod(m.source("secret"), 0o600);
    let open = "perl -MFcntl -e 'sysopen(F, \"secret\", O_RDWR | O_CREAT) or exit 3; print <F>'";
    assert_eq!(m.sh_as(1234, 4321, open).status.code(), Some(3));
    assert!(!m.path("other").exists());
    fs::write(m.source("other"), "mine").unwrap();
    assert_eq!(m.sh(&open.replace("secret", "other")), "mine");
    assert_eq!(fs::read(m.source("other")).unwrap(), b"mine");
    assert!(m.take().is_empty());
}

#[test]
fn a_stranger_takes_no_set_id_bits_away_by_a_chown_of_nothing() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("setid"), "x").unwrap();
        chmod(source.join("setid"), 0o4755);
    });
    m.sh_as(1234, 4321, "perl -e 'chown(-1, -1, \"setid\")'");
    assert_eq!(mode(m.source("setid")), 0o4755);
    assert!(m.take().is_empty());
    m.sh("perl -e 'chown(-1, -1, \"setid\")'");
    assert_eq!(m.take(), ["attr setid mode 755"]);
}

#[test]
fn a_time_that_no_file_system_can_hold_harms_nobody() {
    let m = TestMount::new();
    fs::write(m.path("a"), "x").unwrap();
    let set = |tv_sec, tv_nsec| {
        let time = rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, m.path("a"), &times, AtFlags::empty())
    };
    for (seconds, nanoseconds) in [
        (i64::MIN, 1),
        (i64::MIN, 0),
        (i64::MAX, 999_999_999),
        (-1, 1),
    ] {
        for _ in 0..4 {
            let _ = set(seconds, nanoseconds);
        }
    }
    assert_eq!(fs::read(m.path("a")).unwrap(), b"x");
}

#[test]
fn acls_and_extended_attributes_stay_here() {
    let m = TestMount::new();
    fs::write(m.path("a"), "x").unwrap();
    m.take();
    let path = m.path("a");
    rustix::fs::setxattr(
        &path,
        "user.color",
        b"blue",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let mut value = [0; 16];
    assert_eq!(
        rustix::fs::getxattr(&path, "user.color", &mut value[..]),
        Ok(4)
    );
    assert_eq!(
        rustix::fs::getxattr(&path, "user.color", &mut value[..2]),
        Err(Errno::RANGE)
    );
    let mut list = [0; 64];
    let length = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    assert!(list[..length].windows(11).any(|w| w == b"user.color\0"));
    rustix::fs::removexattr(&path, "user.color").unwrap();
    assert_eq!(
        rustix::fs::getxattr(&path, "user.color", &mut value[..]),
        Err(Errno::NODATA)
    );
    assert!(m.take().is_empty());
    // An ACL that lets a user in changes the group bits, and those mirrors can have.
    chmod(&path, 0o600);
    m.take();
    let entry = |tag: u16, bits: u16, id: u32| {
        let mut e = tag.to_le_bytes().to_vec();
        e.extend(bits.to_le_bytes());
        e.extend(id.to_le_bytes());
        e
    };
    let none = u32::MAX;
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, none),
        entry(2, 4, 1234),
        entry(4, 0, none),
        entry(16, 4, none),
        entry(32, 0, none),
    ]
    .concat();
    rustix::fs::setxattr(
        &path,
        "system.posix_acl_access",
        &acl,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(m.take(), ["attr a mode 640"]);
    assert!(m.sh_as(1234, 4321, "cat a").status.success());
    assert!(!m.sh_as(1235, 4321, "cat a").status.success());
}

#[test]
fn names_are_any_bytes_and_up_to_255_of_them() {
    let m = TestMount::new();
    let odd = b"caf\xe9 \n\x01";
    fs::write(m.path(odd), "x").unwrap();
    let long = vec![b'n'; 255];
    fs::write(m.path(&long), "x").unwrap();
    assert_eq!(
        errno(fs::write(m.path(vec![b'n'; 256]), "x")),
        libc::ENAMETOOLONG
    );
    let paths: Vec<Vec<u8>> = m
        .recorder
        .take()
        .iter()
        .map(|change| change.path().as_bytes().to_vec())
        .collect();
    assert_eq!(paths, [odd.to_vec(), long.clone()]);
    let mut listed: Vec<Vec<u8>> = fs::read_dir(m.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().as_bytes().to_vec())
        .collect();
    listed.sort();
    assert_eq!(listed, [odd.to_vec(), long]);
}

#[test]
fn trees_deeper_than_a_path_can_tell_work() {
    let m = TestMount::with(
        LocalOptions {
            open_directories: 4,
            ..LocalOptions::default()
        },
        |_| (),
    );
    let name = "d".repeat(200);
    let open = |at: &OwnedFd, name: &str| {
        rustix::fs::openat(at, name, OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let mut at = OwnedFd::from(File::open(m.path("")).unwrap());
    for _ in 0..30 {
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = open(&at, &name);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&at, "file", flags, Mode::from_raw_mode(0o644)).unwrap();
    File::from(file).write_all(b"deep").unwrap();
    let deepest = m.recorder.take().pop().unwrap();
    assert_eq!(deepest.path().as_bytes().len(), 30 * 201 + 4);
    assert!(deepest.path().as_bytes().ends_with(b"/file"));
    // Also when the kernel asks for what it has forgotten, from the top.
    drop(at);
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let mut at = OwnedFd::from(File::open(m.path("")).unwrap());
    for _ in 0..30 {
        at = open(&at, &name);
    }
    let stat = rustix::fs::statat(&at, "file", AtFlags::empty()).unwrap();
    assert_eq!(stat.st_size, 4);
}

#[test]
fn a_large_directory_is_listed_while_entries_come_and_go() {
    let stay = 100_000;
    let m = TestMount::with(LocalOptions::default(), |source| {
        for i in 0..stay {
            File::create(source.join(format!("stay{i}"))).unwrap();
            if i % 10 == 0 {
                File::create(source.join(format!("go{i}"))).unwrap();
            }
        }
    });
    let mut seen = std::collections::HashMap::<String, u32>::new();
    for (count, entry) in fs::read_dir(m.path("")).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        *seen.entry(name).or_default() += 1;
        if count % 20 == 0 {
            let _ = fs::remove_file(m.path(format!("go{}", count / 2)));
            File::create(m.path(format!("come{count}"))).unwrap();
        }
    }
    for i in 0..stay {
        assert_eq!(seen.get(&format!("stay{i}")), Some(&1), "stay{i}");
    }
    assert!(seen.values().all(|n| *n == 1));
}

/// The names of a directory and where each of them begins, as seekdir(3) takes it.
fn tell(dir: *mut libc::DIR) -> Vec<(libc::c_long, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        // SAFETY: the caller's open directory; the entry is looked at before the next call.
        unsafe {
            let at = libc::telldir(dir);
            let entry = libc::readdir(dir);
            if entry.is_null() {
                return all;
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr());
            all.push((at, name.to_bytes().to_vec()));
        }
    }
}

#[test]
fn a_listing_goes_on_at_any_place_that_it_told_also_after_changes() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        for i in 0..3000 {
            File::create(source.join(format!("f{i}"))).unwrap();
        }
    });
    let path = std::ffi::CString::new(m.path("").as_os_str().as_bytes()).unwrap();
    // SAFETY: a string with its NUL.
    let dir = unsafe { libc::opendir(path.as_ptr()) };
    assert!(!dir.is_null());
    let all = tell(dir);
    assert_eq!(all.len(), 3002);
    for i in [2500, 1, 0, 1200, 3001] {
        // SAFETY: the open directory, and a place that telldir gave.
        unsafe { libc::seekdir(dir, all[i].0) };
        assert!(tell(dir) == all[i..], "from {i}");
    }
    // What has gone is missing, and nothing else.
    let gone = |i: &usize| i.is_multiple_of(3) && *i > 10 && *i < 2990;
    for i in (0..all.len()).filter(gone) {
        let name = &all[i].1;
        if !name.starts_with(b".") {
            fs::remove_file(m.path(name)).unwrap();
        }
    }
    // SAFETY: as above.
    unsafe { libc::seekdir(dir, all[1000].0) };
    let names = |all: &[(libc::c_long, Vec<u8>)]| -> Vec<Vec<u8>> {
        all.iter().map(|e| e.1.clone()).collect()
    };
    let left: Vec<_> = (1000..all.len())
        .filter(|i| !gone(i) || all[*i].1.starts_with(b"."))
        .map(|i| all[i].clone())
        .collect();
    assert!(names(&tell(dir)) == names(&left));
    // SAFETY: opened above, and not used any more.
    unsafe { libc::closedir(dir) };
}

#[test]
fn a_listing_can_begin_again() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        for i in 0..2000 {
            File::create(source.join(format!("f{i}"))).unwrap();
        }
    });
    let mut dir = rustix::fs::Dir::new(File::open(m.path("")).unwrap()).unwrap();
    for stop in [700, 1, 1999, 2002] {
        let names: std::collections::HashSet<_> = dir
            .by_ref()
            .take(stop)
            .map(|entry| entry.unwrap().file_name().to_owned())
            .collect();
        assert_eq!(names.len(), stop);
        dir.rewind();
    }
}
