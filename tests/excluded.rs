//! What is excluded never reaches a real mirror, and what crosses the border does or goes.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree;
use proxyfs::change::RelPath;
use proxyfs::exclude::Exclude;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

const PATTERNS: &str = "*.tmp, /cache/, /a/private/";

/// Fails unless the mirror has all of the source but what is excluded, and nothing else. The times of
/// directories in which only excluded entries came and went may differ.
#[track_caller]
fn assert_mirrored(daemon: &Daemon, sshd: &Sshd) {
    let exclude = Exclude::parse(PATTERNS).unwrap();
    let sides = [daemon.source(), sshd.base()].map(|root| {
        let mut all = tree::read(&root, false);
        all.retain(|name, entry| {
            let dir = entry.kind == "dir";
            if dir {
                (entry.mtime, entry.mode) = (0, 0);
            }
            root != daemon.source() || !exclude.excludes(&RelPath::new(name).unwrap(), dir)
        });
        all
    });
    assert_eq!(sides[0], sides[1]);
}

#[test]
fn what_is_excluded_stays_here_and_what_crosses_the_border_arrives_or_goes() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::with(&format!("exclude = {PATTERNS}"));
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let source = daemon.source();
    let at = |name: &str| source.join(name);
    let check = || {
        daemon.wait();
        assert_mirrored(&daemon, &sshd);
    };
    fs::create_dir_all(at("cache/d/e")).unwrap();
    fs::create_dir_all(at("a/private")).unwrap();
    fs::create_dir_all(at("b")).unwrap();
    for (name, bytes) in [
        ("cache/d/one", "1"),
        ("cache/d/e/two", "22"),
        ("cache/d/x.tmp", "x"),
        ("a/private/key", "secret"),
        ("a/open", "3"),
        ("b/y.tmp", "y"),
    ] {
        fs::write(at(name), bytes).unwrap();
    }
    symlink("one", at("cache/d/link")).unwrap();
    fs::hard_link(at("cache/d/one"), at("cache/d/e/uno")).unwrap();
    check();
    assert!(!sshd.base().join("cache").exists() && !sshd.base().join("a/private").exists());
    // A careful program's way, over an older one.
    fs::write(at("b/file"), "old").unwrap();
    fs::write(at("b/new.tmp"), "new").unwrap();
    fs::rename(at("b/new.tmp"), at("b/file")).unwrap();
    check();
    assert_eq!(fs::read(sshd.base().join("b/file")).unwrap(), b"new");
    // Directories out and in; what is excluded in them does not keep them from going.
    fs::rename(at("cache/d"), at("d")).unwrap();
    check();
    assert_eq!(fs::read(sshd.base().join("d/e/two")).unwrap(), b"22");
    fs::rename(at("d"), at("b/d")).unwrap();
    fs::rename(at("b"), at("c")).unwrap();
    check();
    fs::rename(at("c/d"), at("cache/d")).unwrap();
    check();
    fs::remove_dir_all(at("c")).unwrap();
    check();
    // The border moves with a directory.
    fs::rename(at("a"), at("z")).unwrap();
    check();
    assert_eq!(
        fs::read(sshd.base().join("z/private/key")).unwrap(),
        b"secret"
    );
    fs::rename(at("z"), at("a")).unwrap();
    check();
    assert!(!sshd.base().join("a/private").exists());
    // Other patterns count from the next start.
    *daemon.ini_mut() = daemon
        .ini_mut()
        .replace("exclude = ", "exclude = *.later, ");
    daemon.write_ini();
    let told = "no mirror changed; exclude will change at the next start\n";
    assert_eq!(daemon.ok(&["reload"]), told);
    fs::write(at("now.later"), "now").unwrap();
    daemon.wait();
    daemon.stop();
    assert_mirrored(&daemon, &sshd);
    daemon.start();
    fs::write(at("then.later"), "then").unwrap();
    fs::write(at("last"), "last").unwrap();
    daemon.wait();
    assert!(sshd.base().join("last").exists() && sshd.base().join("now.later").exists());
    assert!(!sshd.base().join("then.later").exists());
    daemon.stop();
}

/// Writes another `exclude`, and starts the daemon with it.
fn restart_with(daemon: &mut Daemon, exclude: &str) {
    daemon.stop();
    let ini = daemon.ini_mut();
    let line = ini.lines().find(|line| line.starts_with("exclude = "));
    let line = line.unwrap().to_string();
    *ini = ini.replace(&line, &format!("exclude = {exclude}"));
    daemon.write_ini();
    daemon.start();
}

#[test]
fn what_is_not_excluded_any_more_arrives_and_what_is_from_now_on_is_in_nobodys_way() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::with("exclude = *.tmp, /cache/");
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    let (source, mirror) = (daemon.source(), sshd.base());
    fs::create_dir_all(source.join("cache/deep")).unwrap();
    fs::create_dir_all(source.join("dir/sub")).unwrap();
    let big = vec![7; 1 << 20];
    for (name, bytes) in [
        ("cache/deep/file", &b"in the cache"[..]),
        ("dir/sub/x.tmp", b"temporary"),
        ("dir/sub/x.log", b"a log"),
        ("big", &big),
    ] {
        fs::write(source.join(name), bytes).unwrap();
    }
    daemon.wait();
    assert!(!mirror.join("cache").exists() && !mirror.join("dir/sub/x.tmp").exists());

    let before = relay.bytes_up();
    restart_with(&mut daemon, "*.log");
    daemon.wait();
    let lines = tree::differences(&source, &mirror, false);
    assert!(lines.is_empty(), "{lines:#?}");
    let sent = relay.bytes_up() - before;
    assert!(sent < 300_000, "{sent} bytes were sent");

    // What is excluded now stays there as it is, and keeps its directory, which is told; everything else goes on.
    fs::write(source.join("dir/sub/x.log"), "edited unseen").unwrap();
    fs::remove_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("after"), "goes on").unwrap();
    daemon.wait_for_mirror("m", |m| m["parked_ops"] != 0);
    let told = daemon.run(&["wait", "--timeout", "60"]);
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(
        told.contains("or that were excluded later, is not removed"),
        "{told}"
    );
    wait_until("the next change is there", || {
        fs::read(mirror.join("after")).is_ok_and(|bytes| bytes == b"goes on")
    });
    assert_eq!(fs::read(mirror.join("dir/sub/x.log")).unwrap(), b"a log");
    assert!(!mirror.join("dir/sub/x.tmp").exists());
    fs::remove_dir_all(mirror.join("dir")).unwrap();
    daemon.ok(&["try-again"]);
    daemon.wait();
    assert_eq!(daemon.mirror("m")["parked_ops"], 0);

    // With what it was when it was excluded.
    fs::create_dir_all(source.join("dir/sub")).unwrap();
    fs::write(source.join("dir/sub/x.log"), "another log").unwrap();
    daemon.wait();
    assert!(!mirror.join("dir/sub/x.log").exists());
    restart_with(&mut daemon, "*.other");
    daemon.wait();
    let lines = tree::differences(&source, &mirror, false);
    assert!(lines.is_empty(), "{lines:#?}");
    daemon.stop();
}
