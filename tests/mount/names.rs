//! Files that are renamed, linked, replaced or unlinked while they are open.

use super::*;

#[test]
fn a_file_renamed_while_it_is_written_is_logged_before() {
    let m = TestMount::passing(false);
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
    let m = TestMount::passing(false);
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
