//! The mirror's directory: its disk and its rights.

use super::*;

#[test]
fn a_directory_that_is_not_as_it_must_be_stops_its_mirror_until_it_is() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    let names = ["missing", "file", "foreign"];
    for name in ["good", "missing", "file", "foreign"] {
        let changes: &[_] = if name == "good" { &[] } else { &NEVER };
        add(&mut daemon, name, &sshd, changes);
    }
    let [missing, file, foreign] = names.map(|n| base(&sshd, n));
    fs::remove_dir(&missing).unwrap();
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "no directory").unwrap();
    chown(&foreign, Some(0), Some(0)).unwrap();
    daemon.start();
    let at = |path: &Path, words: &str| format!("{} {words}", path.display());
    told(
        &daemon,
        "missing",
        "stopped",
        &at(&missing, "does not exist: create it there"),
    );
    told(
        &daemon,
        "file",
        "stopped",
        &at(&file, "is not a directory: correct"),
    );
    let words = at(
        &foreign,
        "is not writable for the login user (permission denied): chown it",
    );
    told(&daemon, "foreign", "stopped", &words);
    nobody_else_is_disturbed(&daemon, &sshd);
    assert!(!missing.exists(), "a missing directory is never made");
    assert_eq!(fs::read_to_string(&file).unwrap(), "no directory");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);

    fs::remove_file(&file).unwrap();
    fs::remove_dir(&foreign).unwrap();
    for name in names {
        base(&sshd, name);
    }
    resume(&daemon, &names);
    everything_arrives(&daemon, &sshd, &["good", "missing", "file", "foreign"]);
    daemon.stop();
}

#[test]
fn a_mirror_whose_disk_is_full_loses_nothing_and_shows_nothing_half() {
    let sshd = Sshd::start();
    let disk = Tmpfs::mount(base(&sshd, "full"), "size=1m,mode=0755");
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    // Tried again by itself.
    add(&mut daemon, "full", &sshd, &[]);
    daemon.start();
    let (www, full) = (daemon.source(), base(&sshd, "full"));
    fs::write(www.join("old"), vec![1; 400_000]).unwrap();
    daemon.wait();
    fs::write(www.join("small"), "fits").unwrap();
    fs::write(www.join("old"), vec![2; 800_000]).unwrap();
    fs::write(www.join("big"), vec![3; 3_000_000]).unwrap();
    fs::rename(www.join("small"), www.join("after")).unwrap();
    told(&daemon, "full", "stopped", "content old");
    told(
        &daemon,
        "full",
        "stopped",
        "see that the mirror's disk is not full",
    );
    nobody_else_is_disturbed(&daemon, &sshd);
    waiting_is_vain(&daemon, "full", "not full");
    // As it was before the change that does not fit: whole.
    assert_eq!(fs::read(full.join("old")).unwrap(), vec![1; 400_000]);
    assert!(!full.join("big").exists() && !full.join("after").exists());
    assert_eq!(fs::read_to_string(full.join("small")).unwrap(), "fits");

    disk.resize("size=16m");
    daemon.wait_for_mirror("full", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["good", "full"]);
    assert_eq!(
        fs::read_dir(full.join(".proxyfs/stage")).unwrap().count(),
        0
    );
    daemon.stop();
}

#[test]
fn a_mirror_whose_disk_becomes_read_only_stops_and_goes_on_when_it_is_writable() {
    let sshd = Sshd::start();
    let disk = Tmpfs::mount(base(&sshd, "m"), "size=16m,mode=0755");
    let mut daemon = Daemon::new();
    add(&mut daemon, "good", &sshd, &[]);
    add(&mut daemon, "m", &sshd, &[]);
    daemon.start();
    let (www, there) = (daemon.source(), base(&sshd, "m"));
    fs::write(www.join("old"), "old").unwrap();
    daemon.wait();
    disk.read_only(true);
    fs::write(www.join("old"), "new").unwrap();
    fs::create_dir(www.join("dir")).unwrap();
    fs::rename(www.join("old"), www.join("dir/moved")).unwrap();
    told(
        &daemon,
        "m",
        "stopped",
        "see that the mirror's disk is not full",
    );
    told(&daemon, "m", "stopped", "read-only");
    nobody_else_is_disturbed(&daemon, &sshd);
    assert_eq!(
        daemon.mirror("m")["parked_ops"],
        0,
        "it is not about a change"
    );
    assert_eq!(fs::read_to_string(there.join("old")).unwrap(), "old");
    // A daemon that is started meanwhile says the same.
    daemon.stop();
    daemon.start();
    told(&daemon, "m", "stopped", "");
    disk.read_only(false);
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    everything_arrives(&daemon, &sshd, &["good", "m"]);
    daemon.stop();
}

#[test]
fn a_disk_that_is_full_from_the_beginning_is_not_called_one_without_rights() {
    let sshd = Sshd::start();
    // One for its root, and none for anything else.
    let disk = Tmpfs::mount(base(&sshd, "full"), "nr_inodes=1,mode=0755");
    let mut daemon = Daemon::new();
    add(&mut daemon, "full", &sshd, &NEVER);
    daemon.start();
    told(&daemon, "full", "stopped", "see that its disk is not full");
    fs::write(daemon.source().join("file"), "later").unwrap();
    disk.resize("nr_inodes=1000");
    resume(&daemon, &["full"]);
    everything_arrives(&daemon, &sshd, &["full"]);
    daemon.stop();
}

#[test]
fn an_ordinary_user_gets_into_what_modes_of_the_source_keep_it_out_of() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &NEVER);
    daemon.start();
    let (www, mirror) = (daemon.source(), base(&sshd, "m"));
    let set = |path: &str, mode| {
        fs::set_permissions(www.join(path), Permissions::from_mode(mode)).unwrap()
    };
    fs::create_dir_all(www.join("shut/inner")).unwrap();
    fs::create_dir(www.join("dark")).unwrap();
    for file in ["shut/inner/gone", "linked", "dark/file"] {
        fs::write(www.join(file), "first").unwrap();
    }
    fs::hard_link(www.join("linked"), www.join("shut/twin")).unwrap();
    set("linked", 0o444);
    set("dark/file", 0o000);
    for (dir, mode) in [("shut/inner", 0o555), ("shut", 0o555), ("dark", 0o000)] {
        set(dir, mode);
    }
    everything_arrives(&daemon, &sshd, &["m"]);
    // root may do here what the user may not do there.
    fs::write(www.join("shut/inner/new"), "into a directory that is shut").unwrap();
    fs::create_dir(www.join("shut/inner/below")).unwrap();
    symlink("new", www.join("shut/inner/link")).unwrap();
    fs::remove_file(www.join("shut/inner/gone")).unwrap();
    fs::write(
        www.join("linked"),
        "a read-only file with two names, written again",
    )
    .unwrap();
    fs::write(www.join("dark/file"), "second").unwrap();
    fs::write(www.join("dark/other"), "second").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    let mode = |path: &str| fs::metadata(mirror.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        [
            "shut",
            "shut/inner",
            "dark",
            "linked",
            "shut/twin",
            "dark/file"
        ]
        .map(mode),
        [0o555, 0o555, 0o000, 0o444, 0o444, 0o000]
    );
    // A directory that moves, and one that goes.
    fs::rename(www.join("shut/inner"), www.join("dark/inner")).unwrap();
    fs::remove_dir_all(www.join("shut")).unwrap();
    fs::write(www.join("linked"), "one name is left").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    let owner = fs::metadata(mirror.join("dark/inner/new")).unwrap().uid();
    assert_eq!(owner, ids_of(ORDINARY_USER).0);
    assert_eq!(differences(&www, &mirror, false), [""; 0]);
    daemon.stop();
}

#[test]
fn what_was_in_a_shut_directory_goes_though_a_later_change_has_opened_or_removed_it() {
    let sshd = Sshd::builder().ordinary_user().start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &NEVER);
    daemon.start();
    let dir = daemon.source().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "first").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.ok(&["pause", "m"]);
    fs::set_permissions(&dir, Permissions::from_mode(0o500)).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    // And one that is empty there, for what was in it does not travel; it goes before it is seen that it was shut.
    let empty = daemon.source().join("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(empty.join("file"), "first").unwrap();
    fs::set_permissions(&empty, Permissions::from_mode(0o000)).unwrap();
    fs::remove_dir_all(&empty).unwrap();
    resume(&daemon, &["m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    assert!(!daemon.log().contains("refused"), "{}", daemon.log());
    daemon.stop();
}
