//! What is recorded where something is excluded, above all at the border.

use super::*;
use proxyfs::exclude::Exclude;

fn excluding(patterns: &str, fill: impl FnOnce(&Path)) -> TestMount {
    let options = LocalOptions {
        exclude: Exclude::parse(patterns).unwrap(),
        ..LocalOptions::default()
    };
    TestMount::with(options, fill)
}

#[test]
fn nothing_that_is_excluded_is_recorded() {
    let m = excluding("*.tmp, /cache/", |_| ());
    fs::create_dir_all(m.path("cache/d")).unwrap();
    fs::write(m.path("cache/d/a"), "1").unwrap();
    fs::write(m.path("cache/d/a"), "2").unwrap();
    fs::write(m.path("a.tmp"), "1").unwrap();
    fs::write(m.path(b"caf\xe9.tmp"), "1").unwrap();
    let mut f = OpenOptions::new()
        .append(true)
        .open(m.path("a.tmp"))
        .unwrap();
    f.write_all(b"2").unwrap();
    f.sync_all().unwrap();
    m.local
        .flush_due(Instant::now() + Duration::from_secs(1000));
    drop(f);
    m.sh("truncate -s 10 a.tmp; chmod 600 a.tmp; touch -d @5 a.tmp cache/d; mkfifo cache/p");
    symlink("x", m.path("cache/s")).unwrap();
    fs::hard_link(m.path("a.tmp"), m.path("cache/b")).unwrap();
    fs::rename(m.path("cache/d"), m.path("cache/e")).unwrap();
    fs::rename(m.path("cache/s"), m.path("b.tmp")).unwrap();
    fs::remove_file(m.path("cache/e/a")).unwrap();
    fs::remove_dir(m.path("cache/e")).unwrap();
    fs::remove_file(m.path("a.tmp")).unwrap();
    m.local.flush_all().unwrap();
    assert!(m.take().is_empty());
    fs::write(m.path("cache2"), "x").unwrap();
    assert_eq!(m.take(), ["content cache2 whole of 1"]);
    assert!(m.local.unlogged().nodes.is_empty());
}

#[test]
fn what_comes_out_arrives_and_what_goes_in_is_removed() {
    let m = excluding("*.tmp, /cache/", |_| ());
    fs::create_dir(m.path("cache")).unwrap();
    // The way of careful programs: nothing but the whole file is recorded.
    fs::write(m.path("a.tmp"), "whole").unwrap();
    fs::rename(m.path("a.tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content a whole of 5"]);
    fs::write(m.path("a.tmp"), "again!").unwrap();
    fs::rename(m.path("a.tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content a whole of 6"]);
    // With the writer still at it.
    let mut f = File::create(m.path("b.tmp")).unwrap();
    f.write_all(b"1").unwrap();
    fs::rename(m.path("b.tmp"), m.path("b")).unwrap();
    assert_eq!(m.take(), ["content b whole of 1"]);
    f.write_all(b"2").unwrap();
    drop(f);
    // Of a new file the kernel may write the bytes itself: then nobody knows which.
    let line = m.take().remove(0);
    assert!(
        line == "content b 1..2 of 2" || line == "content b whole of 2",
        "{line}"
    );
    // And back.
    let mut f = to_write(m.path("b"));
    f.write_all(b"3").unwrap();
    fs::rename(m.path("b"), m.path("cache/b")).unwrap();
    drop(f);
    assert_eq!(m.take(), ["unlink b"]);
    // What the log never knew goes without a trace.
    let mut f = File::create(m.path("c")).unwrap();
    f.write_all(b"1").unwrap();
    fs::rename(m.path("c"), m.path("c.tmp")).unwrap();
    drop(f);
    assert!(m.take().is_empty());
    // A symbolic link over a file, and a file over a symbolic link.
    symlink("x", m.path("s.tmp")).unwrap();
    fs::rename(m.path("s.tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["unlink a", "symlink a -> x"]);
    fs::rename(m.path("c.tmp"), m.path("a")).unwrap();
    assert_eq!(m.take(), ["content a whole of 1"]);
}

#[test]
fn directories_cross_the_border_with_all_that_is_below() {
    let m = excluding("*.tmp, /cache/", |source| {
        fs::create_dir_all(source.join("cache/d/e")).unwrap();
        fs::write(source.join("cache/d/a"), "1").unwrap();
        fs::write(source.join("cache/d/b.tmp"), "1").unwrap();
        fs::write(source.join("cache/d/e/c"), "22").unwrap();
        symlink("a", source.join("cache/d/e/s")).unwrap();
        fs::hard_link(source.join("cache/d/a"), source.join("cache/d/e/a")).unwrap();
        fs::create_dir(source.join("d")).unwrap();
    });
    let sorted = |m: &TestMount| {
        let mut lines = m.take();
        lines.retain(|line| !line.contains("mtime"));
        let first = lines.remove(0);
        lines.sort();
        lines.insert(0, first);
        lines
    };
    fs::rename(m.path("cache/d"), m.path("x")).unwrap();
    let arrived = sorted(&m);
    let linked = |a: &str, b: &str| format!("link {a} -> {b}");
    assert_eq!(arrived[0], "mkdir x 755");
    assert!(arrived.contains(&"mkdir x/e 755".into()), "{arrived:#?}");
    assert!(arrived.contains(&"content x/e/c whole of 2".into()));
    assert!(arrived.contains(&"symlink x/e/s -> a".into()));
    assert!(arrived.contains(&linked("x/a", "x/e/a")) || arrived.contains(&linked("x/e/a", "x/a")));
    assert!(arrived.iter().any(|l| l.ends_with("a whole of 1 linked")));
    assert_eq!(arrived.len(), 6);
    fs::rename(m.path("x"), m.path("cache/y")).unwrap();
    let gone = m.take();
    assert_eq!(gone.last().unwrap(), "rmdir x");
    let at = |what: &str| gone.iter().position(|l| l == what).unwrap();
    assert!(at("unlink x/e/c") < at("rmdir x/e") && at("unlink x/e/s") < at("rmdir x/e"));
    assert!(at("unlink x/e/a") < at("rmdir x/e") && at("unlink x/a") < at("rmdir x"));
    assert_eq!(gone.len(), 6);
    // Over an empty one that is known.
    fs::rename(m.path("cache/y"), m.path("d")).unwrap();
    assert_eq!(m.take()[..2], ["rmdir d", "mkdir d 755"]);
}

#[test]
fn a_directory_that_is_renamed_takes_the_border_along() {
    let m = excluding("/a/cache/, *.tmp", |source| {
        fs::create_dir_all(source.join("a/cache/d")).unwrap();
        fs::write(source.join("a/x"), "1").unwrap();
        fs::write(source.join("a/x.tmp"), "1").unwrap();
        fs::write(source.join("a/cache/d/y"), "1").unwrap();
        fs::create_dir(source.join("c")).unwrap();
    });
    let take = || {
        let mut lines = m.take();
        lines.retain(|line| !line.contains("mtime"));
        lines
    };
    fs::rename(m.path("a"), m.path("b")).unwrap();
    let arrived = [
        "rename a -> b",
        "mkdir b/cache 755",
        "mkdir b/cache/d 755",
        "content b/cache/d/y whole of 1",
    ];
    assert_eq!(take(), arrived);
    fs::rename(m.path("b"), m.path("a")).unwrap();
    let gone = [
        "rename b -> a",
        "unlink a/cache/d/y",
        "rmdir a/cache/d",
        "rmdir a/cache",
    ];
    assert_eq!(take(), gone);
    fs::rename(m.path("c"), m.path("d")).unwrap();
    assert_eq!(take(), ["rename c -> d"]);
    // An exchange: what was excluded at one place is in sight at the other.
    let exchange = |a: &str, b: &str| {
        rustix::fs::renameat_with(CWD, m.path(a), CWD, m.path(b), RenameFlags::EXCHANGE).unwrap();
    };
    exchange("a", "d");
    assert_eq!(
        take(),
        [
            "exchange a <-> d",
            "mkdir d/cache 755",
            "mkdir d/cache/d 755",
            "content d/cache/d/y whole of 1"
        ]
    );
    fs::write(m.path("e.tmp"), "22").unwrap();
    fs::write(m.path("e"), "1").unwrap();
    take();
    exchange("e.tmp", "e");
    assert_eq!(take(), ["unlink e", "content e whole of 2"]);
}

#[test]
fn a_file_with_names_on_both_sides_is_recorded_by_the_mirrored_one() {
    let m = excluding("*.tmp, /cache/", |source| {
        fs::create_dir(source.join("cache")).unwrap();
        fs::write(source.join("cache/old"), "1").unwrap();
        fs::create_dir(source.join("d")).unwrap();
        fs::hard_link(source.join("cache/old"), source.join("d/old")).unwrap();
    });
    fs::write(m.path("a"), "1").unwrap();
    fs::hard_link(m.path("a"), m.path("a.tmp")).unwrap();
    fs::write(m.path("a.tmp"), "22").unwrap();
    chmod(m.path("a.tmp"), 0o600);
    assert_eq!(
        m.take(),
        [
            "content a whole of 1",
            "content a whole of 2 linked",
            "attr a mode 600"
        ]
    );
    fs::hard_link(m.path("a.tmp"), m.path("b")).unwrap();
    assert_eq!(m.take(), ["link a -> b"]);
    fs::write(m.path("c.tmp"), "1").unwrap();
    fs::hard_link(m.path("c.tmp"), m.path("c")).unwrap();
    assert_eq!(m.take(), ["content c whole of 1 linked"]);
    // By the excluded name only; the other one was never asked for.
    let mut f = OpenOptions::new()
        .append(true)
        .open(m.path("cache/old"))
        .unwrap();
    f.write_all(b"2").unwrap();
    drop(f);
    assert_eq!(m.take(), ["content d/old 1..2 of 2 linked"]);
    // Out of the excluded world to another name of the same file.
    fs::hard_link(m.path("a.tmp"), m.path("cache/a")).unwrap();
    fs::rename(m.path("cache/a"), m.path("d/a")).unwrap();
    let line = m.take().remove(0);
    assert!(line == "link a -> d/a" || line == "link b -> d/a", "{line}");
}
