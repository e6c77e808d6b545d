//! What the kernel reads and writes itself, and that nothing of it is missed.

use super::*;
use std::io::Seek;

/// A test of what must be so whoever moves the bytes.
fn both_ways(test: fn(&TestMount)) {
    for passthrough in [true, false] {
        test(&TestMount::passing(passthrough));
    }
}

fn read_and_write(path: impl AsRef<Path>) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).unwrap()
}

/// Stores a byte by mmap; the mapping is gone when this returns.
fn store(file: &File, at: usize, byte: u8) {
    use std::os::fd::AsRawFd;
    let length = file.metadata().unwrap().len() as usize;
    assert!(at < length);
    // SAFETY: a new mapping of a file of this length, which nobody cuts; written inside of it, and
    // unmapped once, when no reference to it is left.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        map.cast::<u8>().add(at).write(byte);
        assert_eq!(libc::munmap(map, length), 0);
    }
}

#[test]
fn a_new_file_is_one_record_and_an_unchanged_one_none() {
    both_ways(|m| {
        let mut f = make(m.path("a"));
        for _ in 0..3 {
            f.write_all(&[b'x'; 5000]).unwrap();
        }
        assert_eq!(f.metadata().unwrap().len(), 15000);
        assert!(m.recorder.take().is_empty());
        drop(f);
        assert_eq!(
            m.recorder.take().len(),
            1,
            "in the log when close() returns"
        );
        for open in [to_write, read_and_write] {
            drop(open(m.path("a")));
        }
        drop(File::open(m.path("a")).unwrap());
        // The release comes after close(): it is through when the state is gone.
        wait_until("the release", || {
            !m.local
                .is_open_to_write(fs::metadata(m.path("a")).unwrap().ino())
        });
        assert!(m.take().is_empty());
        assert!(fs::read(m.source("a")).unwrap() == [b'x'; 15000]);
        assert!(fs::read(m.path("a")).unwrap() == [b'x'; 15000]);
    });
}

#[test]
fn ranges_written_to_a_known_file_are_recorded_while_others_read_it() {
    both_ways(|m| {
        fs::write(m.path("a"), [b'x'; 10000]).unwrap();
        m.take();
        let mut reader = File::open(m.path("a")).unwrap();
        let f = to_write(m.path("a"));
        f.write_all_at(b"12345", 5000).unwrap();
        f.write_all_at(b"6", 10000).unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes.len(), &bytes[4999..5006]), (10001, &b"x12345x"[..]));
        drop(f);
        assert_eq!(m.take(), ["content a 5000..5005 10000..10001 of 10001"]);
    });
}

#[test]
fn whoever_may_map_a_file_that_others_are_reading_has_all_of_it_recorded() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), [b'x'; 10000]).unwrap();
    });
    let reader = File::open(m.path("a")).unwrap();
    let f = read_and_write(m.path("a"));
    f.write_all_at(b"12345", 5000).unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a whole of 10000"]);
    let mut bytes = [0; 7];
    reader.read_exact_at(&mut bytes, 4999).unwrap();
    assert_eq!(&bytes, b"x12345x");
}

#[test]
fn a_new_file_that_is_written_to_after_its_record_is_recorded_again_wherever_it_was_written() {
    let m = TestMount::new();
    let mut f = make(m.path("tmp"));
    f.write_all(b"12").unwrap();
    fs::rename(m.path("tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content tmp whole of 2", "rename tmp -> a"]);
    f.rewind().unwrap();
    f.write_all(b"3").unwrap();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(m.take(), ["content a whole of 2", "rename a -> b"]);
    // The length is the same, and the time is set back.
    f.write_all(b"4").unwrap();
    f.set_modified(UNIX_EPOCH).unwrap();
    f.set_modified(UNIX_EPOCH).unwrap();
    drop(f);
    assert_eq!(
        m.take(),
        ["attr b mtime 0", "content b whole of 2"],
        "the attribute at once, the bytes at the close"
    );
    assert_eq!(fs::read(m.source("b")).unwrap(), b"34");
}

#[test]
fn a_new_file_that_stays_open_is_recorded_when_nobody_writes_any_more() {
    both_ways(|m| {
        let later = || Instant::now() + Duration::from_secs(6);
        let mut f = make(m.path("a"));
        m.local.flush_due(later());
        f.write_all(b"1").unwrap();
        m.local.flush_due(Instant::now());
        assert!(m.recorder.take().is_empty(), "it may be half-written");
        m.local.flush_due(later());
        assert_eq!(m.take(), ["content a whole of 1"]);
        m.local.flush_due(later());
        assert!(m.take().is_empty(), "nobody wrote");
        f.write_all(b"2").unwrap();
        m.local.flush_due(later());
        assert_eq!(m.take().len(), 1);
        drop(f);
        assert!(m.take().is_empty(), "nobody wrote");
    });
}

#[test]
fn of_a_new_file_that_a_shell_or_an_upload_holds_open_only_what_is_new_travels() {
    both_ways(|m| {
        let later = || Instant::now() + Duration::from_secs(6);
        let mut f = File::create(m.path("a")).unwrap();
        f.write_all(b"12").unwrap();
        m.local.flush_due(later());
        assert_eq!(m.take(), ["content a whole of 2"]);
        f.write_all(b"3").unwrap();
        m.local.flush_due(later());
        assert_eq!(m.take(), ["content a 2..3 of 3"]);
    });
}

#[test]
fn a_checkpoint_does_not_pass_an_unseen_write() {
    let m = TestMount::new();
    let mut f = make(m.path("tmp"));
    f.write_all(b"1").unwrap();
    fs::rename(m.path("tmp"), m.path("a")).unwrap();
    // It may be written to at any moment, and nobody is told.
    let node = f.metadata().unwrap().ino();
    assert_eq!(m.local.unlogged().nodes, [node]);
    f.write_all(b"2").unwrap();
    assert_eq!(m.local.unlogged().nodes, [node]);
    drop(f);
    wait_until("the release comes", || m.local.unlogged().nodes.is_empty());
}

#[test]
fn what_is_stored_by_mmap_while_others_read_is_recorded_at_the_release() {
    both_ways(|m| {
        fs::write(m.path("a"), vec![b'x'; 8192]).unwrap();
        m.take();
        let mut reader = File::open(m.path("a")).unwrap();
        let f = read_and_write(m.path("a"));
        store(&f, 5000, b'y');
        drop(f);
        assert_eq!(m.wait_for(1).len(), 1);
        assert_eq!(fs::read(m.source("a")).unwrap()[5000], b'y');
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[5000], b'y');
        // Nothing is stored: nothing is recorded.
        drop(read_and_write(m.path("a")));
        wait_until("the release", || {
            !m.local
                .is_open_to_write(fs::metadata(m.path("a")).unwrap().ino())
        });
        assert!(m.take().is_empty());
    });
}

/// A page that is dirty already can be stored to without a trace, unless it was written back.
#[test]
fn what_is_stored_in_a_page_again_after_its_record_is_recorded_again() {
    use std::os::fd::AsRawFd;
    let m = TestMount::new();
    fs::write(m.path("a"), vec![b'x'; 4096]).unwrap();
    let _reader = File::open(m.path("a")).unwrap();
    let f = read_and_write(m.path("a"));
    m.take();
    // SAFETY: a new mapping of a file of this length, which nobody cuts; written inside of it, and
    // unmapped once, when no reference to it is left.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = f.as_raw_fd();
        let map = libc::mmap(
            std::ptr::null_mut(),
            4096,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        for byte in [b'1', b'2', b'3'] {
            map.cast::<u8>().write(byte);
            m.local.flush_due(Instant::now() + Duration::from_secs(6));
            assert_eq!(m.take(), ["content a whole of 4096"], "store {byte}");
        }
        assert_eq!(libc::munmap(map, 4096), 0);
    }
    drop(f);
    assert!(m.take().is_empty());
}

/// Half of an upload must not appear because another thread starts a process (P4).
#[test]
fn a_process_that_inherited_a_new_file_and_ends_records_nothing_of_it() {
    both_ways(|m| {
        let mut f = make(m.path("a"));
        f.write_all(b"half").unwrap();
        let copy = f.try_clone().unwrap();
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig=KILL", "true"]).stdin(copy);
        assert!(child.status().unwrap().success());
        // The command's own copy is this process's.
        drop(child);
        let recorded = m.recorder.take().len();
        f.write_all(b" and half").unwrap();
        drop(f);
        let all = recorded + m.recorder.take().len();
        assert!((1..=2).contains(&all), "{all}");
        assert_eq!(fs::read(m.source("a")).unwrap(), b"half and half");
    });
}

#[test]
fn opens_of_all_kinds_at_a_time_never_fail_and_lose_nothing() {
    both_ways(|m| {
        fs::write(m.path("a"), vec![b'x'; 4096]).unwrap();
        m.take();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    for round in 0..150 {
                        match (round + thread) % 4 {
                            0 => drop(fs::read(m.path("a")).unwrap()),
                            1 => to_write(m.path("a")).write_all_at(b"w", thread).unwrap(),
                            2 => read_and_write(m.path("a"))
                                .write_all_at(b"b", 100 + thread)
                                .unwrap(),
                            _ => {
                                let own = m.path(format!("own{thread}-{round}"));
                                fs::write(&own, "1").unwrap();
                                fs::remove_file(&own).unwrap();
                            }
                        }
                    }
                });
            }
        });
        let bytes = fs::read(m.source("a")).unwrap();
        assert_eq!(
            (&bytes[..4], &bytes[100..104]),
            (&b"wwww"[..], &b"bbbb"[..])
        );
        assert!(!m.take().is_empty());
    });
}

#[test]
fn a_stranger_takes_set_id_bits_from_a_new_file_by_writing_and_root_does_not() {
    both_ways(|m| {
        for (uid, mode) in [(1000, "755"), (0, "6755")] {
            let script = format!(
                "exec 3> f{uid} && chmod 6755 f{uid} && echo x >&3 && exec 3>&- && \
                 [ $(stat -c %a f{uid}) = {mode} ]"
            );
            let output = m.sh_as(uid, uid, &script);
            assert!(output.status.success(), "{uid}: {output:?}");
            assert_eq!(
                super::mode(m.source(format!("f{uid}"))),
                u32::from_str_radix(mode, 8).unwrap()
            );
        }
    });
}

/// Before the first write the kernel asks whether there is one; of a new file that is answered from memory.
#[test]
fn a_capability_that_a_new_file_got_is_there_and_goes_with_the_next_write() {
    both_ways(|m| {
        let mut f = make(m.path("a"));
        f.write_all(b"1").unwrap();
        let name = "security.capability";
        // CAP_NET_BIND_SERVICE, permitted and effective, as linux/capability.h lays it out.
        let mut capability = [0; 20];
        capability[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
        capability[4..8].copy_from_slice(&(1_u32 << 10).to_le_bytes());
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(m.path("a"), name, &capability, flags).unwrap();
        let mut found = [0; 20];
        rustix::fs::getxattr(m.path("a"), name, &mut found).unwrap();
        assert_eq!(found, capability);
        f.write_all(b"2").unwrap();
        drop(f);
        let gone = rustix::fs::getxattr(m.source("a"), name, &mut found);
        assert_eq!(gone, Err(Errno::NODATA));
    });
}
