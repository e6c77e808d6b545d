//! Uploads that are cut go on where they were (P5), on a real server; how their lanes may overtake each other
//! is played through in `cuts.rs`.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use super::wide::film;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

const MIB: usize = 1 << 20;

/// A film of so many MiB on its way on a line that takes its time, of which `sent` have passed when the line is
/// cut. It stays cut.
fn cut_film(mib: usize, sent: usize) -> (Sshd, Relay, Daemon) {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    relay.set_rate(24 * MIB as u64);
    fs::write(daemon.source().join("film"), film(9, mib * MIB)).unwrap();
    cut_at(&relay, sent);
    (sshd, relay, daemon)
}

fn cut_at(relay: &Relay, sent: usize) {
    wait_until("bytes", || relay.bytes_up() > (sent * MIB) as u64);
    relay.refuse(true);
    relay.cut();
}

/// How many MiB travel until all is there.
fn mib_until_synced(relay: &Relay, daemon: &Daemon) -> usize {
    let before = relay.bytes_up();
    relay.refuse(false);
    daemon.wait();
    (relay.bytes_up() - before) as usize / MIB
}

fn staged(sshd: &Sshd) -> usize {
    let stage = sshd.base().join(".proxyfs/stage");
    fs::read_dir(stage).unwrap().count()
}

#[test]
fn an_upload_that_was_cut_near_its_end_goes_on_there() {
    let (sshd, relay, daemon) = cut_film(60, 54);
    assert!(!sshd.base().join("film").exists());
    // What was under way at the cut travels again.
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 60 - 54 + 14, "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(staged(&sshd), 0);
}

#[test]
fn an_upload_that_was_cut_near_its_end_goes_on_in_a_new_daemon() {
    let (sshd, relay, mut daemon) = cut_film(60, 54);
    daemon.kill();
    daemon.start();
    // What may have been under way at the cut, at most, travels again.
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 60 - 54 + 18, "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(staged(&sshd), 0);
}

#[test]
fn a_file_that_changed_while_it_was_cut_off_travels_whole() {
    let (sshd, relay, daemon) = cut_film(24, 18);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(daemon.source().join("film"))
        .unwrap();
    file.write_all_at(b"another scene", 5 * MIB as u64).unwrap();
    drop(file);
    let mib = mib_until_synced(&relay, &daemon);
    assert!((23..30).contains(&mib), "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(staged(&sshd), 0);
}

#[test]
fn what_was_half_there_of_a_file_that_is_gone_is_removed() {
    let (sshd, relay, daemon) = cut_film(24, 18);
    assert_eq!(staged(&sshd), 1);
    fs::remove_file(daemon.source().join("film")).unwrap();
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 1, "{mib} MiB");
    wait_until("the stage to be empty", || staged(&sshd) == 0);
    assert_same(&daemon.source(), &sshd.base());
}

/// A file with two names that is made anew where it stands, cut near its end.
fn cut_linked_film(mib: usize, sent: usize) -> (Sshd, Relay, Daemon) {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    let film_here = daemon.source().join("film");
    fs::write(&film_here, "a trailer").unwrap();
    fs::hard_link(&film_here, daemon.source().join("again")).unwrap();
    daemon.wait();
    let before = relay.bytes_up() as usize;
    relay.set_rate(24 * MIB as u64);
    fs::write(&film_here, film(9, mib * MIB)).unwrap();
    wait_until("bytes", || relay.bytes_up() as usize > before + sent * MIB);
    relay.refuse(true);
    relay.cut();
    (sshd, relay, daemon)
}

/// Both names are one file there, like here.
fn assert_linked(sshd: &Sshd, daemon: &Daemon) {
    assert_same(&daemon.source(), &sshd.base());
    let inode = |name: &str| sshd.base().join(name).metadata().unwrap().ino();
    assert_eq!(inode("film"), inode("again"));
}

#[test]
fn an_upload_of_a_file_with_several_names_goes_on_where_it_was_cut() {
    let (sshd, relay, daemon) = cut_linked_film(40, 36);
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 40 - 36 + 14, "{mib} MiB");
    assert_linked(&sshd, &daemon);
}

#[test]
fn an_upload_of_a_file_with_several_names_goes_on_in_a_new_daemon() {
    let (sshd, relay, mut daemon) = cut_linked_film(40, 36);
    daemon.kill();
    daemon.start();
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 40 - 36 + 18, "{mib} MiB");
    assert_linked(&sshd, &daemon);
}

#[test]
fn a_file_with_several_names_that_changed_while_it_was_cut_off_has_no_old_bytes() {
    let (sshd, relay, daemon) = cut_linked_film(24, 18);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(daemon.source().join("again"))
        .unwrap();
    file.write_all_at(b"another scene", 5 * MIB as u64).unwrap();
    drop(file);
    let mib = mib_until_synced(&relay, &daemon);
    assert!((23..32).contains(&mib), "{mib} MiB");
    assert_linked(&sshd, &daemon);
}

/// The same with a film that was there before the mirror was: a repair sends it.
fn cut_first_sync(mib: usize, sent: usize) -> (Sshd, Relay, Daemon) {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    let there = daemon.source().join("film");
    fs::write(&there, film(9, mib * MIB)).unwrap();
    // What was changed a moment ago does not go on.
    wait_until("the film to be a little old", || {
        let changed = there.metadata().unwrap().ctime() as u64;
        let age = SystemTime::UNIX_EPOCH + Duration::from_secs(changed);
        age.elapsed().is_ok_and(|age| age > Duration::from_secs(4))
    });
    relay.set_rate(24 * MIB as u64);
    daemon.start();
    cut_at(&relay, sent);
    (sshd, relay, daemon)
}

#[test]
fn a_repairs_upload_that_was_cut_near_its_end_goes_on_there() {
    let (sshd, relay, daemon) = cut_first_sync(60, 54);
    assert!(!sshd.base().join("film").exists());
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 60 - 54 + 18, "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    wait_until("the stage to be empty", || staged(&sshd) == 0);
}

#[test]
fn a_repairs_upload_that_was_cut_near_its_end_goes_on_in_a_new_daemon() {
    let (sshd, relay, mut daemon) = cut_first_sync(60, 54);
    daemon.kill();
    daemon.start();
    let mib = mib_until_synced(&relay, &daemon);
    assert!(mib < 60 - 54 + 18, "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    wait_until("the stage to be empty", || staged(&sshd) == 0);
}

#[test]
fn what_a_repair_had_half_sent_of_a_file_that_changed_since_travels_whole() {
    let (sshd, relay, mut daemon) = cut_first_sync(24, 18);
    daemon.stop();
    // Of the same size and with the time of before: only when the inode changed tells.
    let path = daemon.source().join("film");
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"another scene", 5 * MIB as u64).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    daemon.start();
    let mib = mib_until_synced(&relay, &daemon);
    assert!((23..30).contains(&mib), "{mib} MiB");
    assert_same(&daemon.source(), &sshd.base());
    wait_until("the stage to be empty", || staged(&sshd) == 0);
}
