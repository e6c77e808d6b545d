//! What is recorded of files, directories and attributes.

use super::*;

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
fn what_changes_nothing_is_not_recorded() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 100]).unwrap();
        fs::hard_link(source.join("a"), source.join("b")).unwrap();
        fs::create_dir(source.join("d")).unwrap();
        chmod(source.join("a"), 0o644);
    });
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("a"))
        .unwrap();
    assert_eq!(f.write_at(b"", 50).unwrap(), 0);
    f.sync_all().unwrap();
    drop(f);
    m.sh("chmod 644 a; chown 0:0 a d;");
    assert!(m.take().is_empty());
    fs::rename(m.path("a"), m.path("b")).unwrap();
    fs::rename(m.path("d"), m.path("d")).unwrap();
    for refused in [
        fs::create_dir(m.path("d")),
        fs::remove_dir(m.path("a")),
        fs::remove_file(m.path("d")),
        fs::hard_link(m.path("a"), m.path("b")),
        fs::rename(m.path("d"), m.path("a")),
        fs::rename(m.path("a"), m.path("d")),
        symlink("x", m.path("a")),
        fs::write(m.path("a/x"), "x"),
    ] {
        refused.unwrap_err();
    }
    m.local.flush_all().unwrap();
    assert!(m.take().is_empty());
    // The size that it has: what that changes (ext4 sets the time) depends on the file system below.
    let mtime = || fs::metadata(m.source("a")).unwrap().modified().unwrap();
    for by_path in [false, true] {
        let before = mtime();
        wait_until("the clock moves", || {
            std::time::SystemTime::now() > before + Duration::from_millis(20)
        });
        if by_path {
            m.sh("perl -e 'truncate(\"a\", 100) or die'");
        } else {
            to_write(m.path("a")).set_len(100).unwrap();
        }
        let told = (mtime() != before).then(|| "content a of 100 linked".to_owned());
        assert_eq!(m.take(), Vec::from_iter(told));
    }
}

#[test]
fn each_copy_of_a_descriptor_records_what_was_written_before_it_was_closed() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("a"), vec![b'x'; 100]).unwrap();
    });
    let f = to_write(m.path("a"));
    let (copy, another) = (f.try_clone().unwrap(), f.try_clone().unwrap());
    f.write_all_at(b"1", 1).unwrap();
    drop(copy);
    assert_eq!(m.take(), ["content a 1..2 of 100"]);
    drop(another);
    assert!(m.take().is_empty());
    f.write_all_at(b"2", 2).unwrap();
    drop(f);
    assert_eq!(m.take(), ["content a 2..3 of 100"]);
    fs::create_dir(m.path("d")).unwrap();
    assert_eq!(m.take(), ["mkdir d 755"], "and nothing by the release");
}

#[test]
fn what_a_process_wrote_that_is_killed_is_recorded() {
    let m = TestMount::with(LocalOptions::default(), |source| {
        fs::write(source.join("known"), vec![b'x'; 100]).unwrap();
        fs::write(source.join("gone"), "x").unwrap();
    });
    let script = "open(A, \"+<\", \"known\") or exit 3; sysseek(A, 10, 0); syswrite(A, \"abc\"); \
                  open(B, \">\", \"new\") or exit 3; syswrite(B, \"half\"); open(C, \">>\", \"gone\"); \
                  syswrite(C, \"y\"); unlink(\"gone\"); open(D, \">>\", \"unchanged\"); \
                  print \"ready\\n\"; sleep 600";
    let mut child = Command::new("setpriv")
        .args([
            "--pdeathsig=KILL",
            "perl",
            "-e",
            &format!("$| = 1; {script}"),
        ])
        .current_dir(m.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 6])
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut recorded = m.wait_for(4);
    recorded.sort();
    let expected = [
        "content known 10..13 of 100",
        "content new whole of 4",
        "content unchanged whole of 0",
        "unlink gone",
    ];
    assert_eq!(recorded, expected);
    assert_eq!(fs::read(m.source("new")).unwrap(), b"half");
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
