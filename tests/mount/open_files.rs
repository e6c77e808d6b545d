//! Files that stay open, are mapped, cut, copied, or written by many.

use super::*;

#[test]
fn what_is_stored_by_mmap_is_recorded_at_the_release() {
    // Not made through the mount: while its maker's late release still has it passing, whoever may map it is
    // watched, and the file is recorded whole.
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 8192]).unwrap();
    });
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

/// A shared mapping of a whole file, as long as it lives.
struct Mapped(*mut u8, usize);

impl Mapped {
    fn new(f: &File) -> Mapped {
        use std::os::fd::AsRawFd;
        let length = f.metadata().unwrap().len() as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of a file that no test cuts while it is mapped.
        let at = unsafe {
            let none = std::ptr::null_mut();
            libc::mmap(none, length, protection, libc::MAP_SHARED, f.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at.cast(), length)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped as long as `self` lives, and borrowed from it. Others may change the bytes through
        // the file meanwhile; the tests look when nobody does.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }

    fn sync(&self) {
        // SAFETY: what was mapped, and still is.
        let done = unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) };
        assert_eq!(done, 0);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped once.
        assert_eq!(unsafe { libc::munmap(self.0.cast(), self.1) }, 0);
    }
}

#[test]
fn a_mapped_file_is_one_with_what_is_read_and_written() {
    let m = TestMount::new();
    fs::write(m.path("a"), vec![b'x'; 16384]).unwrap();
    m.take();
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(m.path("a"))
            .unwrap()
    };
    let (f, g) = (open(), open());
    let (mut one, mut other) = (Mapped::new(&f), Mapped::new(&g));
    one.bytes()[10] = b'1';
    assert_eq!(other.bytes()[10], b'1');
    f.write_all_at(b"2", 5000).unwrap();
    assert_eq!((one.bytes()[5000], other.bytes()[5000]), (b'2', b'2'));
    other.bytes()[9000] = b'3';
    let mut read = [0; 1];
    g.read_exact_at(&mut read, 9000).unwrap();
    assert_eq!(&read, b"3");
    one.sync();
    other.sync();
    let there = fs::read(m.source("a")).unwrap();
    assert_eq!((there[10], there[5000], there[9000]), (b'1', b'2', b'3'));
    drop((f, g));
    // After the close, and after msync.
    one.bytes()[12500] = b'4';
    drop((one, other));
    let mut all = proxyfs::change::ByteRanges::new();
    wait_until("all that was stored is recorded", || {
        for change in m.recorder.take() {
            match change {
                Change::Content {
                    extent: Extent::Ranges(ranges),
                    ..
                } => all.merge(&ranges),
                Change::Content {
                    extent: Extent::Whole,
                    size,
                    ..
                } => all.insert(0, size),
                other => panic!("{other}"),
            }
        }
        let has = |at| all.iter().any(|r| r.0 <= at && at < r.1);
        has(10) && has(5000) && has(9000) && has(12500)
    });
    assert_eq!(fs::read(m.source("a")).unwrap()[12500], b'4');
}

#[test]
fn lines_that_several_processes_append_are_all_there_and_whole() {
    let m = TestMount::new();
    fs::write(m.path("log"), "").unwrap();
    m.take();
    let script = |who: char| {
        let line = who.to_string().repeat(99);
        format!(
            "perl -e 'open(F, \">>\", \"log\") or die; for (1..200) {{ syswrite(F, \"{line}\\n\") == 100 or die }}'"
        )
    };
    std::thread::scope(|scope| {
        for who in ['a', 'b', 'c', 'd'] {
            let (m, script) = (&m, script(who));
            scope.spawn(move || m.sh(&script));
        }
    });
    let text = fs::read_to_string(m.path("log")).unwrap();
    assert_eq!(text.len(), 4 * 200 * 100);
    for who in ['a', 'b', 'c', 'd'] {
        let line = who.to_string().repeat(99);
        assert_eq!(text.lines().filter(|l| *l == line).count(), 200);
    }
    assert_eq!(fs::read_to_string(m.source("log")).unwrap(), text);
    let mut all = proxyfs::change::ByteRanges::new();
    for change in m.recorder.take() {
        let Change::Content { extent, size, .. } = &change else {
            panic!("{change}")
        };
        match extent {
            Extent::Ranges(ranges) => all.merge(ranges),
            Extent::Whole => all.insert(0, *size),
        }
    }
    assert_eq!(all.iter().collect::<Vec<_>>(), [(0, 80_000)]);
}

#[test]
fn processes_talk_through_a_fifo_and_a_socket() {
    let m = TestMount::new();
    assert_eq!(m.sh("mkfifo p; echo hello > p & cat p"), "hello\n");
    let listener = std::os::unix::net::UnixListener::bind(m.path("s")).unwrap();
    let path = m.path("s");
    let client = std::thread::spawn(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"hello").unwrap();
    });
    let mut text = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut text)
        .unwrap();
    client.join().unwrap();
    assert_eq!(text, "hello");
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
    let node = m.path("log").metadata().unwrap().ino();
    assert_eq!(m.local.unlogged().nodes, [node]);
    m.local.flush_due(now + Duration::from_secs(6));
    assert_eq!(m.take(), ["content log 0..4 of 4"]);
    m.local.flush_due(now + Duration::from_secs(12));
    assert!(m.take().is_empty());
}

#[test]
fn a_checkpoint_does_not_pass_a_write_that_is_not_logged() {
    let m = TestMount::new();
    let mut f = File::create(m.path("a")).unwrap();
    f.write_all(b"1").unwrap();
    let node = f.metadata().unwrap().ino();
    assert_eq!(m.local.unlogged().nodes, [node]);
    drop(f);
    wait_until("it is logged", || m.local.unlogged().nodes.is_empty());
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
    let f = File::open(m.path("a")).unwrap();
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Hole(0)), Ok(4096));
    assert_eq!(rustix::fs::seek(&f, SeekFrom::Data(4096)), Ok(8192));
    assert_eq!(fs::read(m.path("a")).unwrap()[4096..8192], vec![0; 4096]);
    // For writing only: whoever may map the file, and comes before the readers' late release, is watched,
    // and the file is recorded whole.
    let f = to_write(m.path("a"));
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
