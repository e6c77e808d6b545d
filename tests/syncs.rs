//! A mirror as a whole is made like the source: a new one, or one that an administrator doubts.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{NEVER, add, base, everything_arrives, resume};
use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::{ORDINARY_USER, Sshd, ids_of};
use super::support::tree::{assert_same, differences};
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tree with one of each, and odd names.
fn plant(www: &Path) {
    for dir in ["d/sub/deep", "d-x", "empty", "shut"] {
        fs::create_dir_all(www.join(dir)).unwrap();
    }
    for (n, file) in [
        "a",
        "d/a",
        "d/sub/b",
        "d/sub/deep/c",
        "d-x/a",
        "odd\nname",
        "shut/f",
    ]
    .iter()
    .enumerate()
    {
        fs::write(www.join(file), format!("{file} {n}").repeat(1000 * n + 1)).unwrap();
    }
    symlink("d/a", www.join("link")).unwrap();
    symlink("nowhere", www.join("d/dangling")).unwrap();
    fs::hard_link(www.join("d/a"), www.join("d-x/twin")).unwrap();
    fs::hard_link(www.join("d/a"), www.join("third")).unwrap();
    let sparse = fs::File::create(www.join("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(b"end", (40 << 20) - 3).unwrap();
    fs::set_permissions(www.join("d/sub/b"), Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(www.join("shut"), Permissions::from_mode(0o555)).unwrap();
}

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

fn sync_of(daemon: &Daemon) -> serde_json::Value {
    daemon.mirror("m")["sync"].clone()
}

#[test]
fn a_new_mirror_is_filled_while_the_log_goes_on_and_keeps_what_only_it_has() {
    for sshd in [Sshd::start(), Sshd::builder().ordinary_user().start()] {
        let mut daemon = Daemon::new();
        let www = daemon.source();
        plant(&www);
        add(&mut daemon, "m", &sshd, &NEVER);
        let mirror = base(&sshd, "m");
        fs::write(mirror.join("stranger"), "only here").unwrap();
        daemon.start();
        fs::write(www.join("d/new"), "made meanwhile").unwrap();
        fs::rename(www.join("d-x/a"), www.join("d-x/renamed")).unwrap();
        fs::remove_file(www.join("a")).unwrap();
        daemon.wait();
        let only = differences(&www, &mirror, false);
        assert_eq!(only.len(), 1, "{only:?}");
        assert!(only[0].contains("stranger"), "{only:?}");
        let log = daemon.log();
        assert!(
            log.contains("only the mirror has stranger; it is kept"),
            "{log}"
        );
        let sync = sync_of(&daemon);
        assert!(sync["extras"] == 1 && sync["running"] == false, "{sync}");
        // One file with three names is one there.
        let [first, twin, third] = ["d/a", "d-x/twin", "third"].map(|p| inode(&mirror.join(p)));
        assert!(first == twin && first == third);
        assert!(mirror.join("sparse").metadata().unwrap().blocks() < 1000);

        let told = daemon.ok(&["sync", "m", "--delete"]);
        assert!(
            told.contains(" 0 sent (0 B), 0 changed in mode or owner, 1 removed"),
            "{told}"
        );
        everything_arrives(&daemon, &sshd, &["m"]);
        daemon.stop();
        daemon.start();
        everything_arrives(&daemon, &sshd, &["m"]);
        daemon.stop();
    }
}

#[test]
fn what_only_a_mirror_has_is_kept_in_a_directory_that_is_shut_there_too() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    let www = daemon.source();
    plant(&www);
    add(&mut daemon, "m", &sshd, &NEVER);
    let mirror = base(&sshd, "m");
    let shut = mirror.join("d/sub");
    fs::create_dir_all(&shut).unwrap();
    fs::write(shut.join("stranger"), "only here").unwrap();
    let (uid, gid) = ids_of(ORDINARY_USER);
    for path in [&mirror.join("d"), &shut, &shut.join("stranger")] {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    fs::set_permissions(&shut, Permissions::from_mode(0o0)).unwrap();
    daemon.start();
    daemon.wait();
    let only = differences(&www, &mirror, false);
    assert_eq!(only.len(), 1, "{only:?}");
    assert!(only[0].contains("d/sub/stranger"), "{only:?}");
    daemon.stop();
}

#[test]
fn a_copy_made_by_other_means_is_compared_and_not_sent_again() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    let www = daemon.source();
    plant(&www);
    add(&mut daemon, "m", &sshd, &[("first_sync", "delete")]);
    let mirror = base(&sshd, "m");
    let done = std::process::Command::new("rsync")
        .args(["-aH", "--exclude=/.proxyfs"])
        .args([format!("{}/", www.display()), mirror.display().to_string()])
        .status();
    assert!(done.unwrap().success());
    fs::write(mirror.join("stranger"), "goes").unwrap();
    fs::write(mirror.join("d-x/a"), "is another one").unwrap();
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    let sync = sync_of(&daemon);
    assert!(sync["sent"] == 1 && sync["removed"] == 1, "{sync}");
    daemon.stop();
}

#[test]
fn what_only_the_mirror_has_in_a_directory_that_is_renamed_during_a_sync_is_kept() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    relay.refuse(true);
    let mut daemon = Daemon::new();
    let www = daemon.source();
    for dir in ["old/sub", "gone/sub", "one", "two/sub"] {
        fs::create_dir_all(www.join(dir)).unwrap();
        fs::write(www.join(dir).join("file"), dir).unwrap();
    }
    for dir in ["one", "two"] {
        fs::write(www.join(dir).join(dir), dir).unwrap();
    }
    // It takes longer to be read than what is in it, which goes by itself.
    for n in 0..300 {
        fs::write(www.join(format!("old/{n}")), "").unwrap();
    }
    let port = relay.port().to_string();
    add(&mut daemon, "m", &sshd, &[("port", &port)]);
    let mirror = base(&sshd, "m");
    let copy = std::process::Command::new("cp")
        .args(["-a", "--", &format!("{}/.", www.display())])
        .arg(&mirror)
        .status();
    assert!(copy.unwrap().success());
    let strangers = [
        "old/sub/stranger",
        "gone/stranger",
        "one/stranger",
        "two/sub/stranger",
    ];
    for stranger in strangers {
        fs::write(mirror.join(stranger), "only here").unwrap();
    }
    daemon.start();
    // Before the sync begins: it finds them in the log.
    fs::rename(www.join("old"), www.join("new")).unwrap();
    fs::rename(www.join("new/sub"), www.join("sub")).unwrap();
    fs::rename(www.join("gone"), www.join("away")).unwrap();
    fs::remove_dir_all(www.join("away")).unwrap();
    let (one, two) = (www.join("one"), www.join("two"));
    let swap = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &two, swap).unwrap();
    relay.refuse(false);
    daemon.ok(&["try-again", "m"]);
    daemon.wait();
    let only = differences(&www, &mirror, false);
    let kept = |path: &str| only.iter().any(|line| line.contains(path));
    for stranger in strangers {
        assert!(mirror.join(stranger).exists(), "{stranger} {only:?}");
        assert!(kept(stranger), "{only:?}");
    }
    for gone in [
        "old/sub/file",
        "gone/sub",
        "one/one",
        "one/file",
        "two/two",
        "two/sub/file",
    ] {
        assert!(!mirror.join(gone).exists(), "{gone} {only:?}");
    }
    daemon.ok(&["sync", "m", "--delete"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

/// A daemon whose mirror is like its source, the source and the mirror; `*.tmp` is excluded.
fn mirrored(sshd: &Sshd) -> (Daemon, PathBuf, PathBuf) {
    let mut daemon = Daemon::with("exclude = *.tmp");
    let www = daemon.source();
    plant(&www);
    add(&mut daemon, "m", sshd, &NEVER);
    daemon.start();
    everything_arrives(&daemon, sshd, &["m"]);
    (daemon, www, base(sshd, "m"))
}

#[test]
fn whatever_was_done_to_a_mirror_is_undone_by_a_sync() {
    for sshd in [Sshd::start(), Sshd::builder().ordinary_user().start()] {
        let (mut daemon, _, mirror) = mirrored(&sshd);
        fs::remove_dir_all(mirror.join("d/sub")).unwrap();
        fs::remove_file(mirror.join("link")).unwrap();
        symlink("elsewhere", mirror.join("link")).unwrap();
        fs::remove_file(mirror.join("a")).unwrap();
        fs::create_dir(mirror.join("a")).unwrap();
        fs::remove_dir(mirror.join("empty")).unwrap();
        fs::write(mirror.join("empty"), "a file").unwrap();
        fs::set_permissions(mirror.join("odd\nname"), Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(mirror.join("d-x/twin")).unwrap();
        fs::write(mirror.join("d-x/twin"), "a file of its own").unwrap();
        fs::write(mirror.join("mine.tmp"), "excluded").unwrap();
        let told = daemon.ok(&["sync", "m"]);
        assert!(told.contains(" 1 changed in mode or owner"), "{told}");
        assert_eq!(
            fs::read_to_string(mirror.join("mine.tmp")).unwrap(),
            "excluded"
        );
        fs::remove_file(mirror.join("mine.tmp")).unwrap();
        daemon.ok(&["sync", "m"]);
        everything_arrives(&daemon, &sshd, &["m"]);
        assert_eq!(inode(&mirror.join("d/a")), inode(&mirror.join("d-x/twin")));

        // What has the same size and time is taken for the same, unless it is not to be.
        let victim = mirror.join("d/sub/deep/c");
        let (meta, mut bytes) = (victim.metadata().unwrap(), fs::read(&victim).unwrap());
        bytes[7] ^= 1;
        fs::write(&victim, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&victim).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
        drop(file);
        daemon.ok(&["sync", "m"]);
        assert!(fs::read(&victim).unwrap() == bytes);
        daemon.ok(&["sync", "m", "--checksum"]);
        everything_arrives(&daemon, &sshd, &["m"]);
        daemon.stop();
    }
}

#[test]
fn a_sync_that_is_cut_again_and_again_ends() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(10));
    let mut daemon = Daemon::new();
    let www = daemon.source();
    for dir in 0..30 {
        let dir = www.join(format!("dir{dir}/below"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..30 {
            fs::write(dir.join(format!("file{file}")), vec![b'x'; 3000]).unwrap();
        }
    }
    let port = relay.port().to_string();
    add(&mut daemon, "m", &sshd, &[("port", &port)]);
    daemon.start();
    let mirror = base(&sshd, "m");
    for n in 1..6 {
        let wanted = format!("dir{}/below/file3", 4 * n);
        let done = || sync_of(&daemon)["running"] == false;
        wait_until("a part is there", || {
            mirror.join(&wanted).exists() || done()
        });
        relay.cut();
        fs::write(www.join("counter"), n.to_string()).unwrap();
    }
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn changes_go_on_while_a_mirror_is_synced() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    let www = daemon.source();
    for dir in 0..100 {
        fs::create_dir_all(www.join(format!("dir{dir}"))).unwrap();
        fs::write(www.join(format!("dir{dir}/file")), vec![b'x'; 20_000]).unwrap();
    }
    let port = relay.port().to_string();
    add(&mut daemon, "m", &sshd, &[("port", &port)]);
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    let mirror = base(&sshd, "m");
    fs::remove_dir_all(mirror.join("dir9")).unwrap();
    daemon.ok(&["pause", "m"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "paused");
    let refused = daemon.run(&["sync", "m", "--checksum"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is paused"));
    resume(&daemon, &["m"]);
    for n in 0..200 {
        let (from, to) = (n % 100, (n * 7) % 100);
        fs::write(www.join(format!("dir{from}/new{n}")), n.to_string()).unwrap();
        fs::rename(
            www.join(format!("dir{from}/new{n}")),
            www.join(format!("dir{to}/moved{n}")),
        )
        .unwrap();
        if n % 10 == 0 {
            let (dir, away) = (www.join(format!("dir{to}")), www.join("away"));
            fs::rename(&dir, &away).unwrap();
            fs::rename(&away, &dir).unwrap();
        }
    }
    wait_until("the sync is over", || sync_of(&daemon)["running"] == false);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn neither_a_big_file_nor_a_long_directory_holds_up_what_changes_while_they_are_synced() {
    const FILES: usize = 1000;
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(10));
    let mut daemon = Daemon::new();
    let www = daemon.source();
    let bytes: Vec<u8> = (0..12u32 << 20)
        .map(|n| (n.wrapping_mul(7919) >> 7) as u8)
        .collect();
    fs::write(www.join("big"), &bytes).unwrap();
    fs::create_dir(www.join("flat")).unwrap();
    for n in 0..FILES {
        fs::write(www.join(format!("flat/{n:04}")), &bytes[n..n + 12_000]).unwrap();
    }
    let port = relay.port().to_string();
    add(&mut daemon, "m", &sshd, &[("port", &port)]);
    let mirror = base(&sshd, "m");
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    fs::remove_file(mirror.join("big")).unwrap();
    for n in 0..FILES {
        fs::remove_file(mirror.join(format!("flat/{n:04}"))).unwrap();
    }
    let there = || fs::read_dir(mirror.join("flat")).unwrap().count();
    relay.set_rate(2_000_000);
    let before = relay.bytes_up();
    std::thread::scope(|all| {
        let sync = all.spawn(|| daemon.ok(&["sync", "m"]));
        for (name, enough) in [("first", 0), ("flat/second", 20)] {
            wait_until("it is under way", || {
                relay.bytes_up() > before + 1_000_000 && there() >= enough
            });
            fs::write(www.join(name), "live").unwrap();
            wait_until("it arrives", || mirror.join(name).exists());
            assert!(there() < FILES, "{name} came when all was there");
            let big = mirror.join("big").exists();
            assert!(enough > 0 || !big, "{name} came behind the big file");
        }
        assert_eq!(sync_of(&daemon)["running"], true);
        relay.set_rate(0);
        sync.join().unwrap();
    });
    everything_arrives(&daemon, &sshd, &["m"]);
    let (sent, all) = (
        (relay.bytes_up() - before) as usize,
        bytes.len() + FILES * 12_000,
    );
    assert!(
        sent < all + all / 10,
        "{sent} bytes for {all}: something was sent twice"
    );
    daemon.stop();
}

#[test]
fn of_files_whose_bytes_are_in_doubt_only_those_that_differ_are_sent() {
    // One that may run programs there, and one that may not.
    let shell = Sshd::builder().ordinary_user().start();
    let sftp_only = Sshd::builder()
        .ordinary_user()
        .line("ForceCommand internal-sftp")
        .start();
    for (sshd, most_down) in [(shell, 300_000), (sftp_only, 10_000_000)] {
        let relay = Relay::start(sshd.port(), Duration::ZERO);
        let mut daemon = Daemon::new();
        let www = daemon.source();
        let odd = ["-n", "a\nb", "$(touch hacked)", "'\"\\", " ", "*"];
        let odd = odd.iter().map(|name| name.as_bytes().to_vec());
        let plain = (0..40).map(|n| format!("file{n}").into_bytes());
        let names: Vec<Vec<u8>> = odd.chain([b"\xff\xfe".to_vec()]).chain(plain).collect();
        for (n, name) in names.iter().enumerate() {
            let name = std::ffi::OsStr::from_bytes(name);
            fs::write(www.join(name), vec![n as u8; 100_000]).unwrap();
        }
        let port = relay.port().to_string();
        add(&mut daemon, "m", &sshd, &[("port", &port)]);
        daemon.start();
        everything_arrives(&daemon, &sshd, &["m"]);
        let mirror = base(&sshd, "m");
        let victims = [mirror.join("a\nb"), mirror.join("file7")];
        for victim in &victims {
            let time = victim.metadata().unwrap().modified().unwrap();
            let file = fs::File::options().write(true).open(victim).unwrap();
            file.write_all_at(b"other", 50_000).unwrap();
            file.set_modified(time).unwrap();
        }
        fs::set_permissions(mirror.join("file8"), Permissions::from_mode(0o600)).unwrap();
        let compared = daemon.run(&["verify", "m", "--checksum"]);
        assert_eq!(compared.status.code(), Some(1));
        let told = String::from_utf8(compared.stdout).unwrap();
        for line in [
            "bytes       a\\nb\n",
            "bytes       file7\n",
            "mode        file8\n",
        ] {
            assert!(told.contains(line), "{line}{told}");
        }
        let before = (relay.bytes_up(), relay.bytes_down());
        let told = daemon.ok(&["sync", "m", "--checksum"]);
        assert!(
            told.contains(" 2 sent (195 KiB), 1 changed in mode"),
            "{told}"
        );
        let (up, down) = (relay.bytes_up() - before.0, relay.bytes_down() - before.1);
        assert!(
            up < 500_000 && down < most_down,
            "{up} up, {down} down of 4.7 MB"
        );
        everything_arrives(&daemon, &sshd, &["m"]);
        daemon.stop();
    }
}

#[test]
fn a_comparison_tells_what_differs_and_changes_nothing() {
    for sshd in [Sshd::start(), Sshd::builder().ordinary_user().start()] {
        let (mut daemon, _, mirror) = mirrored(&sshd);
        let told = daemon.ok(&["verify", "m", "--checksum"]);
        assert!(told.starts_with("mirror m is like the source: "), "{told}");
        let (victim, gone) = (mirror.join("d/sub/deep/c"), mirror.join("d-x/a"));
        let (meta, mut bytes) = (victim.metadata().unwrap(), fs::read(&victim).unwrap());
        bytes[2999] ^= 1;
        fs::write(&victim, &bytes).unwrap();
        let file = fs::File::options().write(true).open(&victim).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
        drop(file);
        assert!(daemon.ok(&["verify", "m"]).contains("is like the source"));
        fs::remove_file(&gone).unwrap();
        fs::write(mirror.join("d-x/stranger"), "only here").unwrap();
        fs::write(mirror.join("d-x/stranger.tmp"), "excluded").unwrap();
        fs::remove_file(mirror.join("link")).unwrap();
        symlink("d/b", mirror.join("link")).unwrap();
        fs::set_permissions(mirror.join("odd\nname"), Permissions::from_mode(0o600)).unwrap();
        fs::write(mirror.join("a"), "longer than it was").unwrap();
        let compared = daemon.run(&["verify", "m", "--checksum"]);
        assert_eq!(compared.status.code(), Some(1));
        let told = String::from_utf8(compared.stdout).unwrap();
        for line in [
            "bytes       d/sub/deep/c\n",
            "missing     d-x/a\n",
            "only there  d-x/stranger\n",
            "target      link\n",
            "mode        odd\\nname\n",
            "size        a\n",
        ] {
            assert!(told.contains(line), "{line}{told}");
        }
        assert!(!told.contains("stranger.tmp"), "{told}");
        assert!(!gone.exists() && fs::read(&victim).unwrap() == bytes);
        let json = daemon.run(&["verify", "m", "--json"]);
        assert_eq!(json.status.code(), Some(1));
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        let paths = json["differences"].as_array().unwrap();
        let missing = paths.iter().find(|d| d["path"] == "d-x/a").unwrap();
        assert_eq!(missing["what"], "missing");
        daemon.ok(&["sync", "m", "--delete", "--checksum"]);
        daemon.ok(&["verify", "m", "--checksum"]);
        daemon.stop();
    }
}

#[test]
fn what_is_just_being_sent_is_no_difference() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(30));
    let mut daemon = Daemon::new();
    let port = relay.port().to_string();
    add(&mut daemon, "m", &sshd, &[("port", &port)]);
    daemon.start();
    let www = daemon.source();
    std::thread::scope(|all| {
        let writer = all.spawn(|| {
            for n in 0..400 {
                fs::write(www.join(format!("file{}", n % 50)), vec![b'x'; n]).unwrap();
                fs::create_dir_all(www.join(format!("dir{}/below", n % 20))).unwrap();
            }
        });
        let told = daemon.ok(&["verify", "m"]);
        assert!(told.contains("is like the source"), "{told}");
        writer.join().unwrap();
    });
    daemon.stop();
}

#[test]
fn a_mirror_that_fell_out_of_the_log_is_made_like_the_source_by_itself() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &NEVER);
    daemon.start();
    let www = daemon.source();
    plant(&www);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.ok(&["pause", "m"]);
    daemon.wait_for_mirror("m", |m| m["state"] == "paused");
    fs::remove_dir_all(www.join("d")).unwrap();
    for n in 0..9 {
        fs::write(www.join("a"), n.to_string()).unwrap();
    }
    daemon.stop();
    // Nobody keeps the log for it here: so it loses what the mirror lacks.
    daemon.lose_what_is_owed("m");
    daemon.start();
    daemon.ok(&["resume", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    let told = daemon.ok(&["verify", "m"]);
    assert!(told.contains("is like the source"), "{told}");
    daemon.stop();
}

#[test]
fn names_of_one_file_there_that_are_several_files_here_get_a_mode_each() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let www = daemon.source();
    for (name, mode) in [("a", 0o600), ("b", 0o644)] {
        fs::write(www.join(name), "the same").unwrap();
        fs::set_permissions(www.join(name), Permissions::from_mode(mode)).unwrap();
        let file = fs::File::options()
            .write(true)
            .open(www.join(name))
            .unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
            .unwrap();
    }
    everything_arrives(&daemon, &sshd, &["m"]);
    // Somebody makes one of them there.
    let mirror = base(&sshd, "m");
    fs::remove_file(mirror.join("a")).unwrap();
    fs::hard_link(mirror.join("b"), mirror.join("a")).unwrap();
    daemon.ok(&["sync", "m"]);
    assert_same(&www, &mirror);
}
