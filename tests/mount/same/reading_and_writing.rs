//! Opening, reading and writing.

use super::*;

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
