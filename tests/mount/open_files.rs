//! Files that stay open, are mapped, cut, copied, or written by many.

use super::*;

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
