//! One send a file, whatever happened to it while its mirror was away: counted on a server that is a long way
//! off.
#![allow(clippy::unwrap_used)]

use super::round_trips::Scene;
use super::support::tree::assert_same;
use proxyfs::change::{ByteRanges, Change, Extent, RelPath};
use proxyfs::journal::Recorder;
use proxyfs::sftp::Request;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn path(s: &str) -> RelPath {
    RelPath::new(s.as_bytes()).unwrap()
}

fn rename(scene: &Scene, from: &str, to: &str) {
    fs::rename(scene.source().join(from), scene.source().join(to)).unwrap();
    let (from, to) = (path(from), path(to));
    scene.journal.record(&Change::Rename { from, to }).unwrap();
}

fn unlink(scene: &Scene, name: &str) {
    fs::remove_file(scene.source().join(name)).unwrap();
    let path = path(name);
    scene.journal.record(&Change::Unlink { path }).unwrap();
}

fn chmod(scene: &Scene, name: &str, mode: u32) {
    let real = scene.source().join(name);
    fs::set_permissions(real, fs::Permissions::from_mode(mode)).unwrap();
    let change = Change::Attr {
        path: path(name),
        symlink: false,
        mode: Some(mode),
        owner: None,
        times: None,
    };
    scene.journal.record(&change).unwrap();
}

#[test]
fn a_file_that_was_rewritten_a_hundred_times_travels_once_however_far_apart_that_was() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    let version = |n: u32| vec![n as u8; 50_000];
    for n in 0..100 {
        // Under another name from the middle on; and the mode is set back and forth, at last by the content.
        let name = if n < 50 { "old" } else { "new" };
        if n == 50 {
            chmod(&scene, "new", 0o600);
        }
        scene.write(name, &version(n));
        if n == 49 {
            rename(&scene, "old", "new");
        }
        // More than the worker keeps in memory lies between the first and the last.
        for other in 0..60 {
            scene.write(&format!("other-{n}-{other}"), b"x");
        }
    }
    let real = scene.source().join("new");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o444)).unwrap();
    let (mut opened, mut written) = (0, 0);
    scene.replay(rules, |request, _| match request {
        Request::Open { .. } => opened += 1,
        Request::Write { data, .. } => written += data.len(),
        _ => {}
    });
    assert_same(&scene.source(), &scene.mirror());
    assert_eq!((opened, written), (6001, 50_000 + 6000));
}

#[test]
fn files_replaced_by_renames_time_and_again_cost_the_last_version_and_are_never_missing() {
    const FILES: usize = 20;
    const ROUNDS: usize = 100;
    for temporary in [true, false] {
        let scene = Scene::new();
        let (rules, _) = scene.prepare();
        let name = |n: usize| format!("file-{n}");
        for n in 0..FILES {
            scene.write(&name(n), b"the first version");
        }
        scene.replay(rules, |_, _| {});
        for round in 0..ROUNDS {
            for n in 0..FILES {
                // The same temporary name again, or another one each time.
                let temporary = match temporary {
                    true => format!("file-{n}.tmp"),
                    false => format!(".file-{n}.{round}"),
                };
                scene.write(&temporary, format!("version {round} of {n}").as_bytes());
                chmod(&scene, &temporary, 0o640);
                rename(&scene, &temporary, &name(n));
            }
        }
        let (mut requests, mut uploads, mut waited) = (0, 0, 0);
        scene.replay(rules, |request, round_trips| {
            requests += 1;
            uploads += usize::from(matches!(request, Request::Open { .. }));
            waited = round_trips;
            for n in 0..FILES {
                assert!(
                    scene.mirror().join(name(n)).exists(),
                    "{n} before {request:?}"
                );
            }
        });
        assert_same(&scene.source(), &scene.mirror());
        assert_eq!(uploads, FILES);
        assert!(
            requests <= FILES * ROUNDS + 20 * FILES,
            "{requests} requests"
        );
        assert!(waited < 20, "{waited} round trips");
    }
}

#[test]
fn of_files_that_are_gone_only_the_removal_travels() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    scene.write("there", b"before");
    scene.replay(rules, |_, _| {});
    for n in 0..300 {
        let name = format!("{n}");
        scene.write(&name, b"something");
        chmod(&scene, &name, 0o600);
        unlink(&scene, &name);
    }
    scene.write("there", b"after");
    unlink(&scene, "there");
    let mut requests = 0;
    scene.replay(rules, |request, _| {
        // Where something is found absent it is looked once whether the mirror is there.
        if !matches!(request, Request::Setstat { .. } | Request::Lstat { .. }) {
            assert!(matches!(request, Request::Remove { .. }), "{request:?}");
            requests += 1;
        }
    });
    assert_same(&scene.source(), &scene.mirror());
    assert_eq!(requests, 301);
}

#[test]
fn an_older_version_that_is_there_does_not_stay_under_the_name_that_it_left() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    scene.write("tmp", b"an older version");
    scene.write("f", b"what it replaces");
    scene.replay(rules, |_, _| {});
    scene.write("tmp", b"a newer one");
    rename(&scene, "tmp", "f");
    scene.write("new", b"the last");
    rename(&scene, "new", "f");
    scene.replay(rules, |_, _| {});
    assert_same(&scene.source(), &scene.mirror());
}

#[test]
fn a_rewritten_file_does_not_go_back_in_time_when_it_has_to_be_made_ready_again() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    let cut_to = |size: usize, version: u8| {
        fs::write(scene.source().join("f"), vec![version; size]).unwrap();
        scene.record("f", Extent::Ranges(ByteRanges::new()));
    };
    scene.write("f", &[1; 70_000]);
    let (mut writes, mut seen) = (0, Vec::new());
    // The first row's file changes while it is read. The second is made ready, and waits for the first,
    // which is made ready again when the file has changed a second time.
    scene.replay_by(1, rules, |request, _| match request {
        Request::Write { data, .. } if data[0] == 1 => {
            writes += 1;
            match writes {
                1 => cut_to(100, 2),
                3 => cut_to(200, 3),
                _ => {}
            }
        }
        Request::PosixRename { from, .. } if !from.ends_with(b"position.new") => {
            let staged = Path::new(std::ffi::OsStr::from_bytes(from));
            seen.push(fs::read(staged).unwrap()[0]);
        }
        _ => {}
    });
    assert_same(&scene.source(), &scene.mirror());
    assert!(seen.is_sorted(), "{seen:?}");
}

/// Random users found it: the second rename is of two names of the same file there, and moves nothing.
#[test]
fn a_version_that_is_passed_over_leaves_no_second_name_behind() {
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    scene.write("f", b"an older version");
    fs::hard_link(scene.source().join("f"), scene.source().join("other")).unwrap();
    let (from, to) = (path("f"), path("other"));
    scene
        .journal
        .record(&Change::Link { from, path: to })
        .unwrap();
    scene.replay(rules, |_, _| {});
    scene.write("tmp", b"gone before it could travel");
    rename(&scene, "tmp", "f");
    rename(&scene, "other", "f");
    scene.replay(rules, |_, _| {});
    assert_same(&scene.source(), &scene.mirror());
}
