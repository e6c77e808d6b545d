//! The mount: every operation once by a real kernel, and what is recorded of it.
#![allow(clippy::unwrap_used)]

use crate::support::mounts::{PATIENCE, TestMount, check_the_machine, show, wait_until};
use proxyfs::change::{Change, Extent, Timestamp};
use proxyfs::local::{Local, LocalOptions, open_node};
use proxyfs::mount::{MountError, MountOptions, Unmounted, clear_stale, mount};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn to_write(path: impl AsRef<Path>) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

// ---- what is recorded -------------------------------------------------------------------------

#[test]
fn a_new_file_is_one_record_with_all_that_was_set_on_it() {
    let m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"hello").unwrap();
    f.set_permissions(PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::fchown(&f, Some(7), Some(8)).unwrap();
    f.set_modified(UNIX_EPOCH + Duration::from_secs(1000))
        .unwrap();
    assert!(m.take().is_empty());
    drop(f);
    assert_eq!(m.take(), ["content a whole of 5"]);
    let there = fs::metadata(m.source("a")).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mtime()), (7, 8, 1000));
    assert_eq!(mode(m.source("a")), 0o640);
    assert_eq!(fs::read(m.source("a")).unwrap(), b"hello");
}

#[test]
fn a_content_record_names_the_inode_that_holds_the_bytes() {
    let m = TestMount::new();
    fs::write(m.path("a"), "one").unwrap();
    fs::write(m.path("b"), "two").unwrap();
    fs::rename(m.path("b"), m.path("c")).unwrap();
    let read = |change: &Change| {
        let Change::Content { node, .. } = change else {
            panic!("{change}");
        };
        let fd = open_node(m.local.root_fd(), node, OFlags::RDONLY).unwrap();
        std::io::read_to_string(File::from(fd)).unwrap()
    };
    let changes = m.recorder.take();
    assert_eq!(read(&changes[0]), "one");
    assert_eq!(read(&changes[1]), "two");
}

#[test]
fn touching_a_new_file_is_one_record_and_touching_it_again_is_its_times() {
    let m = TestMount::new();
    m.sh("touch -d @1000000000 a");
    assert_eq!(m.wait_for(1), ["content a whole of 0"]);
    m.sh("touch -d @1100000000 a");
    assert_eq!(m.wait_for(1), ["attr a mtime 1100000000"]);
    m.sh("touch -d @1100000000 a");
    assert!(m.take().is_empty());
}

#[test]
fn a_file_that_a_shell_redirects_to_appears_with_its_bytes() {
    let m = TestMount::new();
    m.sh("echo hello > a; echo more >> a; : > empty");
    let recorded = m.wait_for(3);
    assert_eq!(
        recorded,
        [
            "content a whole of 6",
            "content a 6..11 of 11",
            "content empty whole of 0"
        ]
    );
    // The same for one that is there and emptied.
    m.sh("echo again > a");
    assert_eq!(m.take(), ["content a whole of 6"]);
}

#[test]
fn a_half_written_file_is_not_recorded_by_a_process_started_meanwhile() {
    let m = TestMount::new();
    let f = File::create(m.path("a")).unwrap();
    f.write_all_at(b"half", 0).unwrap();
    for _ in 0..5 {
        assert!(Command::new("true").status().unwrap().success());
    }
    assert!(m.take().is_empty(), "this process is still writing it");
    // Closed by another thread than the one that wrote it.
    std::thread::spawn(move || drop(f)).join().unwrap();
    assert_eq!(m.take(), ["content a whole of 4"]);
}

#[test]
fn a_late_release_does_not_record_what_another_is_writing() {
    let m = TestMount::new();
    fs::write(m.path("a"), "old").unwrap();
    m.take();
    let old = to_write(m.path("a"));
    let new = File::create(m.path("a")).unwrap();
    drop(old);
    // A request that comes after the release of `old`, or nearly so.
    fs::create_dir(m.path("d")).unwrap();
    new.write_all_at(b"half", 0).unwrap();
    let released = m.recorder.take().iter().map(show).collect::<Vec<_>>();
    assert_eq!(released, ["mkdir d 755"]);
    drop(new);
    assert_eq!(m.take(), ["content a whole of 4"]);
}

#[test]
fn only_the_ranges_that_were_written_are_recorded() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 1000]).unwrap();
    });
    let f = to_write(m.path("a"));
    f.write_all_at(b"abc", 10).unwrap();
    f.write_all_at(b"def", 13).unwrap();
    f.write_all_at(b"ghi", 990).unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a 10..16 990..993 of 1000"]);
    let mut f = OpenOptions::new().append(true).open(m.path("a")).unwrap();
    f.write_all(b"end").unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a 1000..1003 of 1003"]);
    drop(to_write(m.path("a")));
    drop(File::open(m.path("a")).unwrap());
    assert!(m.take().is_empty(), "opened for writing, and not written");
}

#[test]
fn the_size_alone_is_a_record_too() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 100]).unwrap();
    });
    let truncate = |size: u64| m.sh(&format!("truncate -s {size} a"));
    // By path, without a handle.
    let path = rustix::fs::open(m.path("a"), OFlags::PATH, Mode::empty()).unwrap();
    drop(path);
    truncate(50);
    assert_eq!(m.wait_for(1), ["content a of 50"]);
    truncate(5000);
    assert_eq!(m.wait_for(1), ["content a of 5000"]);
    truncate(0);
    assert_eq!(m.wait_for(1), ["content a whole of 0"]);
    let f = to_write(m.path("a"));
    f.set_len(10).unwrap();
    assert!(m.take().is_empty());
    drop(f);
    assert_eq!(m.take(), ["content a of 10"]);
}

#[test]
fn a_file_cut_by_its_path_is_recorded_at_once() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 100]).unwrap();
    });
    // perl's truncate() with a name is truncate(2).
    let cut = |size: u64| m.sh(&format!("perl -e 'truncate(\"a\", {size}) or die $!'"));
    cut(50);
    assert_eq!(m.take(), ["content a of 50"]);
    cut(0);
    assert_eq!(m.take(), ["content a whole of 0"]);
}

#[test]
fn a_file_that_is_emptied_and_rewritten_is_whole() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 100]).unwrap();
    });
    fs::write(m.path("a"), "new").unwrap();
    assert_eq!(m.take(), ["content a whole of 3"]);
    assert_eq!(fs::read(m.source("a")).unwrap(), b"new");
    assert_eq!(fs::read(m.path("a")).unwrap(), b"new");
}

#[test]
fn directories_links_and_names_are_recorded_in_order() {
    let m = TestMount::new();
    fs::create_dir(m.path("d")).unwrap();
    symlink("d/nowhere", m.path("s")).unwrap();
    fs::write(m.path("d/a"), "1").unwrap();
    fs::hard_link(m.path("d/a"), m.path("b")).unwrap();
    fs::rename(m.path("d"), m.path("e")).unwrap();
    fs::rename(m.path("b"), m.path("e/c")).unwrap();
    fs::remove_file(m.path("e/a")).unwrap();
    fs::remove_file(m.path("e/c")).unwrap();
    fs::remove_file(m.path("s")).unwrap();
    fs::remove_dir(m.path("e")).unwrap();
    assert_eq!(
        m.take(),
        [
            "mkdir d 755",
            "symlink s -> d/nowhere",
            "content d/a whole of 1",
            "link d/a -> b",
            "rename d -> e",
            "rename b -> e/c",
            "unlink e/a",
            "unlink e/c",
            "unlink s",
            "rmdir e"
        ]
    );
    assert_eq!(fs::read_dir(m.source("")).unwrap().count(), 0);
}

#[test]
fn a_symbolic_link_keeps_target_owner_and_times() {
    let m = TestMount::new();
    symlink("any thing", m.path("s")).unwrap();
    let made = m.recorder.take();
    let there = fs::symlink_metadata(m.source("s")).unwrap();
    let Change::Symlink { target, times, .. } = &made[0] else {
        panic!("{made:?}");
    };
    assert_eq!(&**target, b"any thing");
    assert_eq!(times.mtime.seconds, there.mtime());
    lchown(m.path("s"), Some(3), Some(4)).unwrap();
    m.sh("touch -h -d @5000 s");
    assert_eq!(
        m.take(),
        ["attr s symlink owner 3:4", "attr s symlink mtime 5000"]
    );
    assert_eq!(fs::read_link(m.path("s")).unwrap(), Path::new("any thing"));
}

#[test]
fn attributes_are_recorded_with_exact_values_and_only_if_they_changed() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), "x").unwrap();
        fs::create_dir(source.join("d")).unwrap();
        chmod(source.join("a"), 0o644);
    });
    chmod(m.path("a"), 0o644);
    assert!(m.take().is_empty(), "the mode it had");
    chmod(m.path("a"), 0o4755);
    chmod(m.path("d"), 0o700);
    assert_eq!(m.take(), ["attr a mode 4755", "attr d mode 700"]);
    chown(m.path("a"), Some(5), None).unwrap();
    assert_eq!(
        m.take(),
        ["attr a mode 755 owner 5:0"],
        "chown takes set-user-id away"
    );
    chown(m.path("a"), Some(5), Some(0)).unwrap();
    assert!(m.take().is_empty(), "the owner it had");
    let at = UNIX_EPOCH - Duration::from_millis(1250);
    File::open(m.path("a")).unwrap().set_modified(at).unwrap();
    let recorded = m.recorder.take();
    let [
        Change::Attr {
            times: Some(times),
            mode: None,
            owner: None,
            ..
        },
    ] = &recorded[..]
    else {
        panic!("{recorded:?}");
    };
    let expected = Timestamp {
        seconds: -2,
        nanoseconds: 750_000_000,
    };
    assert_eq!(times.mtime, expected, "before 1970, with its fraction");
    assert_eq!(fs::metadata(m.source("a")).unwrap().modified().unwrap(), at);
    assert_eq!(fs::metadata(m.path("a")).unwrap().modified().unwrap(), at);
}

#[test]
fn a_file_renamed_while_it_is_written_is_logged_before() {
    let m = TestMount::new();
    let mut f = File::create(m.path("tmp")).unwrap();
    f.write_all(b"1").unwrap();
    fs::rename(m.path("tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content tmp whole of 1", "rename tmp -> a"]);
    f.write_all(b"2").unwrap();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(m.take(), ["content a 1..2 of 2", "rename a -> b"]);
    f.write_all(b"3").unwrap();
    drop(f);
    assert_eq!(m.take(), ["content b 2..3 of 3"]);
}

#[test]
fn a_file_open_below_a_renamed_directory_is_recorded_where_it_is_now() {
    let m = TestMount::new();
    fs::create_dir_all(m.path("d/e")).unwrap();
    let mut f = File::create(m.path("d/e/a")).unwrap();
    f.write_all(b"1").unwrap();
    m.take();
    fs::rename(m.path("d"), m.path("x")).unwrap();
    f.write_all(b"2").unwrap();
    drop(f);
    assert_eq!(m.take(), ["rename d -> x", "content x/e/a whole of 2"]);
}

#[test]
fn a_file_unlinked_before_it_was_logged_never_travels() {
    let m = TestMount::new();
    let mut f = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(m.path("a"))
        .unwrap();
    f.write_all(b"12345").unwrap();
    fs::remove_file(m.path("a")).unwrap();
    f.write_all(b"67").unwrap();
    f.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    let mut text = [0; 7];
    f.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"1234567", "it is still there for who has it open");
    assert_eq!(
        (f.metadata().unwrap().nlink(), f.metadata().unwrap().len()),
        (0, 7)
    );
    drop(f);
    let told = format!("attr / mtime {}", fs::metadata(m.path("")).unwrap().mtime());
    assert_eq!(m.take(), [told], "only its directory has changed");
    m.local.flush_all().unwrap();
    assert!(m.take().is_empty());
}

#[test]
fn writes_after_the_last_unlink_are_not_recorded() {
    let m = TestMount::new();
    fs::write(m.path("a"), "1").unwrap();
    let mut f = to_write(m.path("a"));
    f.write_all(b"xx").unwrap();
    fs::remove_file(m.path("a")).unwrap();
    f.write_all(b"yy").unwrap();
    drop(f);
    fs::write(m.path("a"), "again").unwrap();
    assert_eq!(
        m.take(),
        ["content a whole of 1", "unlink a", "content a whole of 5"]
    );
}

#[test]
fn a_file_with_several_names_is_recorded_by_one_that_is_left() {
    let m = TestMount::new();
    fs::write(m.path("a"), "1").unwrap();
    fs::hard_link(m.path("a"), m.path("b")).unwrap();
    fs::write(m.path("b"), "22").unwrap();
    assert_eq!(
        m.take(),
        [
            "content a whole of 1",
            "link a -> b",
            "content a whole of 2 linked"
        ]
    );
    let mut f = to_write(m.path("a"));
    f.write_all(b"3").unwrap();
    fs::remove_file(m.path("a")).unwrap();
    drop(f);
    assert_eq!(m.take(), ["unlink a", "content b 0..1 of 2"]);
}

#[test]
fn a_name_that_nobody_used_is_found_when_it_is_the_last_one() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::create_dir_all(source.join("d/e")).unwrap();
        fs::write(source.join("a"), "old").unwrap();
        fs::hard_link(source.join("a"), source.join("d/e/b")).unwrap();
    });
    let mut f = OpenOptions::new().append(true).open(m.path("a")).unwrap();
    fs::remove_file(m.path("a")).unwrap();
    f.write_all(b"er").unwrap();
    f.sync_all().unwrap();
    f.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(m.path("d"), m.path("x")).unwrap();
    f.write_all(b"!").unwrap();
    drop(f);
    assert_eq!(
        m.take(),
        [
            "unlink a",
            "content d/e/b 3..5 of 5",
            "attr d/e/b mode 600",
            "rename d -> x",
            "content x/e/b 5..6 of 6"
        ]
    );
}

#[test]
fn a_new_file_is_logged_before_it_is_linked() {
    let m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"1").unwrap();
    fs::hard_link(m.path("a"), m.path("b")).unwrap();
    f.write_all(b"2").unwrap();
    drop(f);
    assert_eq!(
        m.take(),
        [
            "content a whole of 1",
            "link a -> b",
            "content a 1..2 of 2 linked"
        ]
    );
}

#[test]
fn a_replaced_file_is_gone_in_one_rename() {
    let m = TestMount::new();
    fs::write(m.path("a"), "a").unwrap();
    fs::write(m.path("b"), "bb").unwrap();
    let mut old = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("b"))
        .unwrap();
    old.write_all(b"old").unwrap();
    // One that the log does not know is replaced too.
    let unlogged = File::create(m.path("c")).unwrap();
    m.take();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    fs::rename(m.path("b"), m.path("c")).unwrap();
    let mut text = String::new();
    old.write_all(b"er").unwrap();
    File::open(m.path("c"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "a");
    drop((old, unlogged));
    assert_eq!(m.take(), ["rename a -> b", "rename b -> c"]);
    assert_eq!(fs::read(m.source("c")).unwrap(), b"a");
}

#[test]
fn renames_that_do_not_replace_and_that_exchange() {
    let m = TestMount::new();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/x"), "x").unwrap();
    fs::write(m.path("a"), "a").unwrap();
    m.take();
    let rename =
        |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, m.path(a), CWD, m.path(b), flags);
    assert_eq!(rename("a", "d", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename("a", "b", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    assert!(m.take().is_empty());
    rename("a", "d", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("d")).unwrap(), b"a");
    assert_eq!(fs::read(m.path("a/x")).unwrap(), b"x");
    rename("d", "e", RenameFlags::NOREPLACE).unwrap();
    fs::write(m.path("a/x"), "xx").unwrap();
    assert_eq!(
        m.take(),
        [
            "exchange a <-> d",
            "rename d -> e",
            "content a/x whole of 2"
        ]
    );
}

#[test]
fn what_mirrors_cannot_have_works_and_is_not_recorded() {
    let m = TestMount::new();
    let mknod = |name: &str, mode: u32, dev| {
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        let bits = Mode::from_raw_mode(mode & 0o777);
        rustix::fs::mknodat(CWD, m.path(name), kind, bits, dev).unwrap();
    };
    mknod("fifo", libc::S_IFIFO | 0o600, 0);
    mknod("null", libc::S_IFCHR | 0o666, libc::makedev(1, 3));
    drop(std::os::unix::net::UnixListener::bind(m.path("socket")).unwrap());
    chmod(m.path("fifo"), 0o644);
    fs::hard_link(m.path("fifo"), m.path("fifo2")).unwrap();
    fs::rename(m.path("fifo2"), m.path("fifo3")).unwrap();
    fs::remove_file(m.path("fifo3")).unwrap();
    assert_eq!(
        fs::metadata(m.path("null")).unwrap().rdev(),
        libc::makedev(1, 3)
    );
    to_write(m.path("null")).write_all(b"gone").unwrap();
    let told = format!("attr / mtime {}", fs::metadata(m.path("")).unwrap().mtime());
    assert_eq!(m.take(), [told], "the directory of one that went");
    assert_eq!(m.local.counters().special_files, 3);
    // Over something that mirrors have, it takes that away.
    fs::write(m.path("a"), "a").unwrap();
    fs::rename(m.path("fifo"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content a whole of 1", "unlink a"]);
    mknod("plain", libc::S_IFREG | 0o640, 0);
    assert_eq!(m.take(), ["content plain whole of 0"]);
}

#[test]
fn what_is_stored_by_mmap_is_recorded_at_the_release() {
    let m = TestMount::new();
    fs::write(m.path("a"), vec![b'x'; 8192]).unwrap();
    m.take();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    let fd = OwnedFd::from(f);
    let length = 8192;
    // SAFETY: a new mapping of a file of this length, which nobody cuts; written inside of it, and
    // unmapped once, when no reference to it is left.
    unsafe {
        use std::os::fd::AsRawFd;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        drop(fd);
        at.cast::<u8>().add(5000).write(b'y');
        assert_eq!(libc::munmap(at, length), 0);
    }
    let recorded = m.wait_for(1);
    assert_eq!(recorded, ["content a 4096..8192 of 8192"]);
    assert_eq!(fs::read(m.source("a")).unwrap()[5000], b'y');
}

#[test]
fn fsync_records_a_known_file_and_not_a_new_one() {
    let m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"half").unwrap();
    f.sync_all().unwrap();
    assert!(m.take().is_empty(), "half of a new file");
    drop(f);
    let mut f = OpenOptions::new().append(true).open(m.path("a")).unwrap();
    m.take();
    f.write_all(b"line").unwrap();
    f.sync_data().unwrap();
    assert_eq!(m.take(), ["content a 4..8 of 8"]);
    drop(f);
    assert!(m.take().is_empty());
    File::open(m.path("")).unwrap().sync_all().unwrap();
}

#[test]
fn files_that_stay_open_are_recorded_in_time() {
    let m = TestMount::new();
    fs::write(m.path("log"), "").unwrap();
    let mut f = OpenOptions::new().append(true).open(m.path("log")).unwrap();
    m.take();
    f.write_all(b"line").unwrap();
    let now = Instant::now();
    m.local.flush_due(now);
    assert!(m.take().is_empty());
    assert!(m.local.logged_until() < std::time::SystemTime::now() - Duration::from_nanos(1));
    m.local.flush_due(now + Duration::from_secs(6));
    assert_eq!(m.take(), ["content log 0..4 of 4"]);
    m.local.flush_due(now + Duration::from_secs(12));
    assert!(m.take().is_empty());
}

#[test]
fn a_checkpoint_does_not_pass_a_write_that_is_not_logged() {
    let m = TestMount::new();
    let before = std::time::SystemTime::now();
    let mut f = File::create(m.path("a")).unwrap();
    let made = std::time::SystemTime::now();
    f.write_all(b"1").unwrap();
    let until = m.local.logged_until();
    assert!(before <= until && until <= made);
    drop(f);
    assert!(m.local.logged_until() > made);
}

#[test]
fn allocating_punching_and_copying_are_recorded_as_what_they_change() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 16384]).unwrap();
        fs::write(source.join("b"), vec![b'y'; 100]).unwrap();
    });
    let f = to_write(m.path("a"));
    let mtime = || fs::metadata(m.source("a")).unwrap().modified().unwrap();
    let before = mtime();
    rustix::fs::fallocate(&f, FallocateFlags::KEEP_SIZE, 0, 65536).unwrap();
    drop(f);
    // No byte and no size has changed; the time, that depends on the kernel.
    let told = (mtime() != before).then(|| "content a of 16384".to_owned());
    assert_eq!(m.take(), Vec::from_iter(told));
    let f = to_write(m.path("a"));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&f, punch, 4096, 4096).unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a 4096..8192 of 16384"]);
    let f = to_write(m.path("a"));
    f.set_modified(UNIX_EPOCH).unwrap();
    assert_eq!(m.take(), ["attr a mtime 0"]);
    rustix::fs::fallocate(&f, punch, 20000, 100).unwrap();
    drop(f);
    assert_ne!(mtime(), UNIX_EPOCH);
    assert_eq!(m.take(), ["content a of 16384"]); // for its time
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Hole(0)), Ok(4096));
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Data(4096)), Ok(8192));
    assert_eq!(fs::read(m.path("a")).unwrap()[4096..8192], vec![0; 4096]);
    rustix::fs::fallocate(&f, FallocateFlags::empty(), 0, 20000).unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a of 20000"]);
    let (from, to) = (File::open(m.path("b")).unwrap(), to_write(m.path("a")));
    let copied = rustix::fs::copy_file_range(&from, Some(&mut 10), &to, Some(&mut 30), 50);
    assert_eq!(copied, Ok(50));
    drop(to);
    assert_eq!(m.take(), ["content a 30..80 of 20000"]);
    assert_eq!(fs::read(m.path("a")).unwrap()[30..80], vec![b'y'; 50]);
}

#[test]
fn concurrent_writers_of_many_files_record_each_once() {
    let m = TestMount::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let m = &m;
            scope.spawn(move || {
                for i in 0..100 {
                    fs::write(m.path(format!("{thread}-{i}")), format!("{i}")).unwrap();
                }
            });
        }
    });
    let mut recorded = m.take();
    recorded.sort();
    let mut expected: Vec<String> = (0..8)
        .flat_map(|t| {
            (0..100)
                .map(move |i| format!("content {t}-{i} whole of {}", if i < 10 { 1 } else { 2 }))
        })
        .collect();
    expected.sort();
    assert_eq!(recorded, expected);
}

#[test]
fn writers_of_one_file_lose_no_range() {
    let m = TestMount::new();
    fs::write(m.path("a"), vec![0; 64 * 1000]).unwrap();
    m.take();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let m = &m;
            scope.spawn(move || {
                for i in 0..250 {
                    let f = to_write(m.path("a"));
                    f.write_all_at(&[1; 64], (i * 4 + thread) * 64).unwrap();
                }
            });
        }
    });
    let mut all = proxyfs::change::ByteRanges::new();
    for change in m.recorder.take() {
        let Change::Content {
            extent: Extent::Ranges(ranges),
            ..
        } = change
        else {
            panic!("{change}");
        };
        all.merge(&ranges);
    }
    assert_eq!(all.iter().collect::<Vec<_>>(), [(0, 64000)]);
}

/// A mirror without a network: carries out what is recorded, and trusts that it fits.
struct Replica<'a> {
    dir: tempfile::TempDir,
    source: &'a TestMount,
}

impl Replica<'_> {
    fn at(&self, path: &proxyfs::change::RelPath) -> std::path::PathBuf {
        self.dir.path().join(path.as_path())
    }

    fn apply(&self, change: &Change) -> std::io::Result<()> {
        match change {
            Change::Mkdir { path, mode, .. } => {
                fs::create_dir(self.at(path))?;
                chmod(self.at(path), *mode);
                Ok(())
            }
            Change::Rmdir { path } => fs::remove_dir(self.at(path)),
            Change::Unlink { path } => fs::remove_file(self.at(path)),
            Change::Symlink { path, target, .. } => {
                symlink(std::ffi::OsStr::from_bytes(target), self.at(path))
            }
            Change::Link { from, path } => fs::hard_link(self.at(from), self.at(path)),
            Change::Rename { from, to } => fs::rename(self.at(from), self.at(to)),
            Change::Exchange { a, b } => {
                let (a, b) = (self.at(a), self.at(b));
                Ok(rustix::fs::renameat_with(
                    CWD,
                    a,
                    CWD,
                    b,
                    RenameFlags::EXCHANGE,
                )?)
            }
            Change::Content {
                path,
                node,
                extent,
                size,
                ..
            } => {
                let target = OpenOptions::new()
                    .write(true)
                    .create(matches!(extent, Extent::Whole))
                    .truncate(false)
                    .open(self.at(path))?;
                let Ok(fd) = open_node(self.source.local.root_fd(), node, OFlags::RDONLY) else {
                    return Ok(());
                };
                let source = File::from(fd);
                target.set_permissions(source.metadata()?.permissions())?;
                let ranges = match extent {
                    Extent::Whole => [(0, *size)].into_iter().collect(),
                    Extent::Ranges(ranges) => ranges.clone(),
                };
                for (start, end) in ranges.iter() {
                    let mut bytes = vec![0; (end - start) as usize];
                    let length = source.read_at(&mut bytes, start)?;
                    target.write_all_at(&bytes[..length], start)?;
                }
                target.set_len(*size)
            }
            Change::Attr { path, mode, .. } => {
                if let Some(mode) = mode {
                    chmod(self.at(path), *mode);
                }
                Ok(())
            }
        }
    }
}

/// Every entry below `dir`: path, type and mode, links, what it holds.
fn listing(dir: &Path) -> Vec<(String, u32, u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut to_do = vec![dir.to_owned()];
    while let Some(next) = to_do.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let holds = if stat.is_dir() {
                to_do.push(path.clone());
                Vec::new()
            } else if stat.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            found.push((name, stat.mode(), links, holds));
        }
    }
    found.sort();
    found
}

/// Random operations in a small tree, so that they meet; most fail, and that is part of it.
fn play(m: &TestMount, seed: u64, rounds: usize) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n
    };
    let mut open: Vec<File> = Vec::new();
    for _ in 0..rounds {
        let mut name = || {
            let dirs = ["", "", "d/", "e/", "d/f/"];
            let dir = dirs[random(dirs.len() as u64) as usize];
            format!(
                "{dir}{}",
                ["a", "b", "c", "d", "e", "f"][random(6) as usize]
            )
        };
        let (from, to) = (m.path(name()), m.path(name()));
        let (offset, length) = (random(3000), random(300) as usize + 1);
        let bytes = vec![b'a' + random(26) as u8; length];
        let any = if open.is_empty() {
            0
        } else {
            random(open.len() as u64) as usize
        };
        let _ = match random(18) {
            0 => fs::create_dir(&from),
            1 => fs::remove_dir(&from),
            2 | 3 => fs::remove_file(&from),
            4 => symlink("target", &from),
            5 => fs::hard_link(&from, &to),
            6 | 7 => fs::rename(&from, &to),
            8 => rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE)
                .map_err(Into::into),
            9 | 10 => fs::write(&from, &bytes),
            11 => OpenOptions::new()
                .append(true)
                .create(true)
                .open(&from)
                .and_then(|mut f| f.write_all(&bytes)),
            12 => fs::set_permissions(&from, PermissionsExt::from_mode(0o700 + random(64) as u32)),
            13 => OpenOptions::new()
                .write(true)
                .create(random(2) == 0)
                .truncate(random(4) == 0)
                .open(&from)
                .map(|f| open.push(f)),
            14 | 15 => open
                .get(any)
                .map_or(Ok(()), |f| f.write_all_at(&bytes, offset)),
            16 => open.get(any).map_or(Ok(()), |f| f.set_len(random(3000))),
            _ => {
                if !open.is_empty() {
                    open.swap_remove(any);
                }
                Ok(())
            }
        };
    }
}

#[test]
fn what_is_recorded_makes_the_same_tree_elsewhere() {
    for seed in 1..=6 {
        let m = TestMount::new();
        for dir in ["d", "e", "d/f"] {
            fs::create_dir(m.path(dir)).unwrap();
        }
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let m = &m;
                scope.spawn(move || play(m, seed * 10 + thread, 800));
            }
        });
        m.local.flush_all().unwrap();
        let changes = m.recorder.take();
        assert!(changes.len() > 100, "they must not all have failed");
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica { dir, source: &m };
        for (i, change) in changes.iter().enumerate() {
            if let Err(e) = replica.apply(change) {
                let shown: Vec<String> =
                    changes[i.saturating_sub(30)..=i].iter().map(show).collect();
                panic!("seed {seed}: {e} at the last of {shown:#?}");
            }
        }
        let (source, copy) = (listing(&m.source("")), listing(replica.dir.path()));
        for (a, b) in source.iter().zip(&copy) {
            let differ = a.3.iter().zip(&b.3).position(|(x, y)| x != y);
            assert_eq!(
                (&a.0, a.1, a.2, a.3.len()),
                (&b.0, b.1, b.2, b.3.len()),
                "seed {seed}"
            );
            assert_eq!(differ, None, "seed {seed}: {}", a.0);
        }
        assert_eq!(source.len(), copy.len(), "seed {seed}");
    }
}

// ---- when the log does not take it ------------------------------------------------------------

#[test]
fn a_log_that_fails_makes_the_mount_read_only_until_all_is_recorded_in_order() {
    let m = TestMount::new();
    fs::create_dir(m.path("d")).unwrap();
    let mut open = File::create(m.path("d/open")).unwrap();
    open.write_all(b"1").unwrap();
    fs::write(m.path("a"), "1").unwrap();
    m.take();

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
    assert_eq!(m.take(), ["rename a -> b", "content d/open whole of 1"]);
    fs::create_dir(m.path("e")).unwrap();
    assert_eq!(m.take(), ["mkdir e 755"]);
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

// ---- users and modes --------------------------------------------------------------------------

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

// ---- names and trees --------------------------------------------------------------------------

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
    let stay = 20_000;
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
    });
    let listed: Vec<_> = fs::read_dir(m.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed, ["d"]);
    assert_eq!(errno(fs::metadata(m.path(".proxyfs"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(m.path(".proxyfs"))), libc::EPERM);
    assert_eq!(errno(File::create(m.path(".proxyfs"))), libc::EPERM);
    assert_eq!(
        errno(fs::rename(m.path("d"), m.path(".proxyfs"))),
        libc::EPERM
    );
    assert_eq!(errno(fs::remove_dir(m.path(".proxyfs"))), libc::ENOENT);
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
    let mut again = Vec::new();
    direct.read_to_end(&mut again).unwrap();
    assert!(again == bytes);
}

// ---- mounting ---------------------------------------------------------------------------------

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
            "mount::holds_a_mount_until_it_is_killed",
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
