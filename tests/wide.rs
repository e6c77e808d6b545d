//! Big files on several lanes of one session, on real servers a long way off.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// So many bytes, of which no two pieces are the same.
pub(super) fn film(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        bytes.extend_from_slice(&(state >> 8).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// How many SFTP services the server has started.
fn services(sshd: &Sshd) -> usize {
    sshd.log().matches("Starting session: subsystem").count()
}

#[test]
fn a_big_file_travels_on_four_lanes_and_is_whole_when_it_is_seen() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(30));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    assert_eq!(services(&sshd), 1, "more than there is work for");
    let bytes = film(1, 40 * MIB + 12_345);
    fs::write(daemon.source().join("film"), &bytes).unwrap();
    let there = sshd.base().join("film");
    wait_until("the film", || there.exists());
    assert!(fs::read(&there).unwrap() == bytes, "it was seen half");
    daemon.wait();
    assert_eq!(services(&sshd), 4);
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(relay.connections(), 1);
    let left = fs::read_dir(sshd.base().join(".proxyfs/stage")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn where_the_server_gives_one_channel_a_big_file_goes_on_that() {
    let sshd = Sshd::builder().line("MaxSessions 1").start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    fs::write(daemon.source().join("film"), film(2, 20 * MIB)).unwrap();
    fs::write(daemon.source().join("note"), "small").unwrap();
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
}

#[test]
fn a_big_file_that_is_cut_off_again_and_again_arrives_whole() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    fs::write(daemon.source().join("film"), film(3, 24 * MIB)).unwrap();
    for _ in 0..3 {
        let before = relay.bytes_up();
        let there = sshd.base().join("film");
        wait_until("bytes", || {
            relay.bytes_up() > before + 6 * MIB as u64 || there.exists()
        });
        relay.cut();
    }
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
}

/// Length of what is staged for a row, or of what it has become.
fn length(base: &Path, seq: u64, name: &str) -> u64 {
    let is_of_row = |name: &str| name.split('-').next() == Some(&seq.to_string());
    let staged = fs::read_dir(base.join(".proxyfs/stage")).unwrap();
    let mut staged = staged.map(|entry| entry.unwrap());
    let staged = staged.find(|entry| is_of_row(&entry.file_name().to_string_lossy()));
    let staged = staged.map_or(PathBuf::new(), |entry| entry.path());
    let len = |path: &Path| fs::metadata(path).map(|m| m.len());
    len(&base.join(name)).or_else(|_| len(&staged)).unwrap_or(0)
}

#[test]
fn several_big_files_share_the_line_and_a_small_one_does_not_wait_for_it() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    relay.hold(); // so that both are there when the line is
    for (seed, name) in [(4, "one"), (5, "two")] {
        fs::write(daemon.source().join(name), film(seed, 24 * MIB)).unwrap();
    }
    fs::write(daemon.source().join("small"), "small").unwrap();
    relay.set_rate(8 * MIB as u64);
    relay.resume();
    let (base, half) = (sshd.base(), 12 * MIB as u64);
    wait_until("half of the first", || length(&base, 1, "one") > half);
    let (one, two) = (length(&base, 1, "one"), length(&base, 2, "two"));
    assert!(two > one / 4, "{one} and {two}: they do not share");
    // The small one is ready long before they are; that it is seen behind them is the order.
    assert_eq!(length(&base, 3, "small"), 5);
    relay.set_rate(0);
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
}

#[test]
fn keys_that_are_changed_again_and_again_do_not_stop_several_lanes() {
    let lines = "RekeyLimit 4M\nLogLevel DEBUG";
    let sshd = Sshd::builder().line(lines).start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "synced");
    fs::write(daemon.source().join("film"), film(6, 48 * MIB)).unwrap();
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
    assert_eq!(relay.connections(), 1, "{}", daemon.log());
    let changes = sshd.log().matches("rekeying").count();
    assert!(changes >= 8, "{changes}");
    assert_eq!(services(&sshd), 4);
}
