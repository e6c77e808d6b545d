//! `order = relaxed`, on a slow line and a real server.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::mounts::wait_until;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use super::wide::film;
use std::fs;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// A film that is being sent on a slow line, and what came behind it; what of that is there while it is not.
fn seen_before_the_film(order: &str) -> Vec<String> {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::from_millis(20));
    let mut daemon = Daemon::with(&format!("order = {order}"));
    daemon.add_mirror_at("m", &sshd, relay.port(), "");
    daemon.start();
    let www = daemon.source();
    fs::create_dir(www.join("dir")).unwrap();
    fs::write(www.join("old"), "old").unwrap();
    daemon.wait();
    relay.hold(); // so that all is there when the line is
    relay.set_rate(2 * MIB as u64);
    fs::write(www.join("dir/film"), film(11, 16 * MIB)).unwrap();
    fs::write(www.join("note"), "note").unwrap();
    fs::write(www.join("temporary"), "new").unwrap();
    fs::rename(www.join("temporary"), www.join("old")).unwrap();
    fs::create_dir(www.join("other")).unwrap();
    fs::rename(www.join("dir"), www.join("moved")).unwrap();
    fs::write(www.join("moved/in"), "behind").unwrap();
    fs::write(www.join("last"), "last").unwrap();
    relay.resume();
    let base = sshd.base();
    let film_there = || base.join("dir/film").exists() || base.join("moved/film").exists();
    let mut seen = Vec::new();
    wait_until("the film", || {
        let there = |name: &&str| base.join(name).exists();
        let names = ["note", "other", "moved", "moved/in", "last"];
        let mut now: Vec<String> = names
            .iter()
            .filter(|n| there(n))
            .map(|n| n.to_string())
            .collect();
        if fs::read_to_string(base.join("old")).unwrap() == "new" {
            now.push("old".to_string());
        }
        if film_there() {
            return true;
        }
        seen = now;
        seen.len() >= 4
    });
    relay.set_rate(0);
    daemon.wait();
    assert_same(&www, &base);
    seen
}

#[test]
fn what_has_nothing_to_do_with_a_film_that_is_being_sent_passes_it_where_the_order_is_relaxed() {
    // Its directory is not moved before it, nor is what is done in there then.
    let seen = seen_before_the_film("relaxed");
    assert!(
        ["note", "other", "last"]
            .iter()
            .all(|n| seen.contains(&n.to_string())),
        "{seen:?}"
    );
    assert!(
        !seen.iter().any(|name| name.starts_with("moved")),
        "{seen:?}"
    );
}

#[test]
fn nothing_passes_a_film_where_the_order_is_strict() {
    assert_eq!(seen_before_the_film("strict"), [""; 0]);
}

#[test]
fn text_takes_less_of_the_line_where_it_is_compressed() {
    let sshd = Sshd::start();
    let relay = Relay::start(sshd.port(), Duration::ZERO);
    let mut daemon = Daemon::new();
    daemon.add_mirror_at("m", &sshd, relay.port(), "compression = yes");
    daemon.start();
    let text = "the same line again and again\n".repeat(4 * MIB / 30);
    fs::write(daemon.source().join("text"), text).unwrap();
    daemon.wait();
    assert_same(&daemon.source(), &sshd.base());
    assert!(
        relay.bytes_up() < 2 * MIB as u64,
        "{} bytes",
        relay.bytes_up()
    );
}
