//! Somebody changes something on a mirror itself. The next change there that does not fit what it finds has
//! that made like the source, and only that.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives};
use super::round_trips::Scene;
use super::support::daemon::Daemon;
use super::support::sshd::Sshd;
use super::support::tree::{assert_same, differences};
use proxyfs::change::{Change, RelPath, Scope};
use proxyfs::fault;
use proxyfs::journal::Recorder;
use proxyfs::local::{Local, LocalOptions};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

fn with_a_tree(sshd: &Sshd) -> (Daemon, PathBuf, PathBuf) {
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", sshd, &[("backoff_max", "1h")]);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(sshd, "m"));
    fs::create_dir_all(www.join("dir/sub")).unwrap();
    fs::create_dir(www.join("other")).unwrap();
    for file in ["dir/a", "dir/sub/b", "other/c", "d", "e"] {
        fs::write(www.join(file), format!("first {file}")).unwrap();
    }
    symlink("a", www.join("dir/link")).unwrap();
    fs::hard_link(www.join("dir/a"), www.join("dir/twin")).unwrap();
    daemon.wait();
    (daemon, www, mirror)
}

#[test]
fn a_directory_that_was_removed_there_comes_back_whole_with_the_next_change_in_it() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd);
    fs::remove_dir_all(mirror.join("dir")).unwrap();
    fs::remove_file(mirror.join("e")).unwrap();
    fs::write(mirror.join("stranger"), "only here").unwrap();
    fs::write(www.join("dir/sub/b"), "second").unwrap();
    fs::write(www.join("dir/sub/new"), "new").unwrap();
    daemon.wait();
    for file in [
        "dir/a",
        "dir/sub/b",
        "dir/sub/new",
        "dir/link",
        "dir/twin",
        "other/c",
    ] {
        let there = fs::read(mirror.join(file)).unwrap();
        assert!(there == fs::read(www.join(file)).unwrap(), "{file}");
    }
    assert!(mirror.join("dir/link").is_symlink());
    // Only what is concerned.
    assert!(!mirror.join("e").exists() && mirror.join("stranger").exists());
    let log = daemon.log();
    assert!(log.contains("dir was made like the source"), "{log}");
    fs::write(www.join("e"), "again").unwrap();
    fs::remove_file(mirror.join("stranger")).unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_was_removed_there_and_is_renamed_here_arrives_under_its_new_name() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd);
    fs::remove_dir_all(mirror.join("dir/sub")).unwrap();
    fs::remove_file(mirror.join("e")).unwrap();
    fs::rename(www.join("dir/sub"), www.join("moved")).unwrap();
    fs::rename(www.join("moved/b"), www.join("b")).unwrap();
    fs::hard_link(www.join("e"), www.join("f")).unwrap();
    fs::write(www.join("moved/b"), "another one").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_is_of_another_kind_there_is_replaced() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd);
    fs::remove_dir_all(mirror.join("other")).unwrap();
    fs::write(mirror.join("other"), "a file").unwrap();
    fs::remove_file(mirror.join("e")).unwrap();
    fs::create_dir(mirror.join("e")).unwrap();
    fs::write(www.join("other/c"), "second").unwrap();
    fs::write(www.join("e"), "second").unwrap();
    fs::create_dir(www.join("made")).unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_directory_with_files_that_only_the_mirror_has_is_not_removed() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd);
    fs::write(mirror.join("other/stranger"), "only here").unwrap();
    fs::remove_file(www.join("other/c")).unwrap();
    fs::remove_dir(www.join("other")).unwrap();
    fs::write(www.join("free"), "goes on").unwrap();
    let told = daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1);
    let error = told["last_error"].as_str().unwrap();
    assert!(error.contains("files that only the mirror has"), "{error}");
    assert!(mirror.join("other/stranger").exists() && mirror.join("free").exists());
    let waited = daemon.run(&["wait", "--timeout", "60"]);
    assert_eq!(waited.status.code(), Some(1));
    // Over a restart, too.
    daemon.stop();
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["parked_ops"] == 1);
    fs::remove_file(mirror.join("other/stranger")).unwrap();
    daemon.ok(&["try-again", "m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_only_the_mirror_has_in_a_renamed_directory_is_kept_though_the_rename_does_not_fit() {
    let sshd = Sshd::start();
    let (mut daemon, www, mirror) = with_a_tree(&sshd);
    fs::write(mirror.join("dir/sub/stranger"), "only here").unwrap();
    fs::create_dir(mirror.join("moved")).unwrap();
    fs::write(mirror.join("moved/mine"), "only here").unwrap();
    fs::rename(www.join("dir"), www.join("moved")).unwrap();
    daemon.wait();
    let only = differences(&www, &mirror, false);
    for stranger in ["dir/sub/stranger", "moved/mine"] {
        assert!(mirror.join(stranger).exists(), "{stranger} {only:?}");
        assert!(only.iter().any(|line| line.contains(stranger)), "{only:?}");
    }
    assert!(!mirror.join("dir/a").exists() && !mirror.join("dir/sub/b").exists());
    daemon.ok(&["sync", "m", "--delete"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn what_is_excluded_is_neither_sent_nor_removed_by_a_repair() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::with("exclude = *.tmp");
    add(&mut daemon, "m", &sshd, &[("backoff_max", "1h")]);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(&sshd, "m"));
    fs::create_dir(www.join("dir")).unwrap();
    fs::write(www.join("dir/file"), "first").unwrap();
    fs::write(www.join("dir/mine.tmp"), "stays here").unwrap();
    daemon.wait();
    fs::remove_dir_all(mirror.join("dir")).unwrap();
    fs::write(www.join("dir/file"), "second").unwrap();
    daemon.wait();
    assert_eq!(
        fs::read_to_string(mirror.join("dir/file")).unwrap(),
        "second"
    );
    assert!(!mirror.join("dir/mine.tmp").exists());
    daemon.stop();
}

#[test]
fn a_repair_behind_a_rename_that_is_under_way_is_made_at_its_place() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    let (old, new) = (scene.source().join("old"), scene.source().join("new"));
    for dir in [&old, &scene.mirror().join("old")] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "as it was").unwrap();
    }
    fs::rename(&old, &new).unwrap();
    fs::write(new.join("file"), "edited, and nobody has seen it").unwrap();
    let path = |path: &str| RelPath::new(path.as_bytes()).unwrap();
    let rename = Change::Rename {
        from: path("old"),
        to: path("new"),
    };
    let repair = Change::Repair {
        path: path("new/file"),
        scope: Scope::ENTRY,
    };
    scene.journal.record(&rename).unwrap();
    scene.journal.record(&repair).unwrap();
    scene.replay(rules, |_, _| {});
    assert_same(&scene.source(), &scene.mirror());
}

#[test]
fn an_entry_that_a_tree_above_it_takes_along_is_not_parked() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    fs::create_dir_all(scene.mirror().join("dir/gone")).unwrap();
    fs::write(scene.mirror().join("dir/gone/file"), "only there").unwrap();
    let tree = Scope {
        delete: true,
        ..Scope::TREE
    };
    for (path, scope) in [("dir", tree), ("dir/gone", Scope::ENTRY)] {
        let path = RelPath::new(path.as_bytes()).unwrap();
        let repair = Change::Repair { path, scope };
        scene.journal.record(&repair).unwrap();
    }
    let reader = scene.journal.reader().unwrap();
    scene.replay(rules, |_, _| {
        let repairs = reader.repairs("m").unwrap();
        let parked = repairs.iter().find(|repair| repair.attempts > 0);
        assert!(parked.is_none(), "{parked:?}");
    });
    assert_same(&scene.source(), &scene.mirror());
}

#[test]
fn a_repair_that_sees_a_change_which_is_not_recorded_yet_waits_for_its_record() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    let (a, b) = (b"a".as_slice(), b"b".as_slice());
    for name in ["a", "b"] {
        for root in [scene.source(), scene.mirror()] {
            fs::write(root.join(name), name.repeat(4)).unwrap();
        }
        let repair = Change::Repair {
            path: RelPath::new(name.as_bytes()).unwrap(),
            scope: Scope {
                bytes: true,
                ..Scope::ENTRY
            },
        };
        scene.journal.record(&repair).unwrap();
    }
    let recorder = Arc::clone(&scene.journal) as Arc<dyn Recorder>;
    let local = Local::open(&scene.source(), LocalOptions::default(), recorder).unwrap();
    let local = Arc::new(local);
    let (happened, has_happened) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let ours = Arc::clone(&local);
    let user = std::thread::spawn(move || {
        fault::watch(Some(Box::new(move |point| {
            if point == "local.effect" {
                happened.send(()).unwrap();
                may_go.recv().unwrap();
            }
        })));
        ours.rename(1, a, 1, b, libc::RENAME_EXCHANGE).unwrap();
    });
    has_happened.recv().unwrap();
    let (ours, goes) = (Arc::clone(&local), go.clone());
    scene.barrier.set(Some(Box::new(move || {
        let _ = goes.send(()); // it may have gone on by now
        ours.wait_for_records();
    })));
    scene.replay(rules, |_, _| {});
    let _ = go.send(());
    user.join().unwrap();
    scene.replay(rules, |_, _| {});
    assert_same(&scene.source(), &scene.mirror());
}
