//! Whatever is killed, cut or changed behind our back, at whatever step: in the end the mirror is like the source
//! (P2), and no file was ever seen torn (P4).
//!
//! All is real but the network and the kernel's way to us: the journal, a tree on a file system in memory, the local
//! side with its order of effect and record, the pipeline; and a server that cuts the connection before a request, or
//! after its effect and before its reply. One thread does it all, so that a seed plays the same history again (but where
//! two users work at once): users work between any two requests, and the daemon dies at any [`fault::point`].
//! Dying is unwinding, and going on with a copy of the state directory as it was at that point: nothing that is done
//! while unwinding counts.
//!
//! What is looked at at each step: what is told to be done is in the log (J1), once, with the bytes that were changed, and in
//! the order of what two users who work at once have done (J2); what is shown on the mirror is whole (P4),
//! and a row that is on the disk, or a repair, tells of it (J3); a rename is sent when all before it on its paths is noted
//! as done, and nothing on them before it is noted itself (J4); the log drops nothing that the mirror lacks (J5); where only
//! connections broke nothing is repaired (R2); a mirror that was put back to a backup is not taken for what it was (R6).
//! Power cuts leave of the WAL at least what was made durable, and of the source all, or what the last checkpoint has
//! made durable. (The inodes that come back then are new ones: `tests/power.rs` does it with real disks.) In every fourth
//! history strangers change things on the mirror, or a backup is put back there; in the end a sync is asked for. Half of the
//! sessions get their replies late and in any order.
//!
//! That it finds bugs is shown by breaking rules one at a time ([`fault::keeps`]): see `the_simulation_finds_…` below.
//!
//! `PROXYFS_SEED=n` plays one history again, `PROXYFS_SEEDS=n` so many; `make soak SECONDS=n` plays new ones for so
//! long.
#![allow(clippy::unwrap_used)]

mod hands;
mod real;
mod world;

use super::support::random::seeds;
use super::support::sshd::Sshd;
use proxyfs::fault;
use proxyfs::sftp::session::Target;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::{Life, World};

/// Seeds that have found something: 210 a file edited in place that a repair of its directory took for the same, 423 a link
/// where the mirror has a full directory, the last a first run that was killed before it had noted anything.
const KEPT: [u64; 3] = [210, 423, 1_795_537_831_854_494];

/// How many histories are played.
const SEEDS: u64 = 2000;

/// What a history is to show.
#[derive(Clone, Copy, PartialEq)]
enum Play {
    /// Everything but what follows.
    Anything,
    /// Two users work at once. Who comes first is not of the seed, so nothing dies here, and nothing is found later.
    TwoUsers,
}

/// One history. Gives how often the daemon died in it.
fn play(seed: u64, target: Option<&Target>, play: Play) -> u32 {
    let mut world = World::new(seed, target);
    match play {
        Play::Anything => {}
        Play::TwoUsers => world.is_shared(),
    }
    let quiet = play == Play::TwoUsers;
    let lives = 1 + world.random().below(4);
    let mut deaths = 0;
    let mut life: Option<Life> = None;
    for _ in 0..lives {
        let mortal = world.random().chance(70);
        let died = world.live(&mut life, mortal && !quiet);
        if died {
            deaths += 1;
            life = None;
            world.after_death();
        } else if !quiet && world.random().one_in(3) {
            world.end(life.take().unwrap());
        }
        if life.is_none() && world.random().one_in(2) {
            world.edit_offline();
        }
    }
    world.come_to_rest(life);
    world.check();
    deaths
}

/// Plays on as many threads as there are processors, to the first failure; says which seed failed.
fn play_all(target: Option<&Target>, next: impl Fn() -> Option<u64> + Sync) -> (u64, u64) {
    let (played, died) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let next = || next().filter(|_| !failed.load(Ordering::Relaxed));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let deaths = std::panic::catch_unwind(|| play(seed, target, Play::Anything))
                        .unwrap_or_else(|why| {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!("PROXYFS_SEED={seed} fails");
                            std::panic::resume_unwind(why)
                        });
                    died.fetch_add(deaths.into(), Ordering::Relaxed);
                    played.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (played.into_inner(), died.into_inner())
}

#[test]
fn whatever_dies_and_whenever_the_mirror_ends_like_the_source() {
    let all = seeds(SEEDS, &KEPT);
    let at = AtomicU64::new(0);
    let next = || {
        let n = at.fetch_add(1, Ordering::Relaxed);
        all.get(n as usize).copied()
    };
    let (played, died) = play_all(None, next);
    assert_eq!(played, all.len() as u64);
    assert!(died > 0 || played < 20, "nobody died in {played} histories");
}

#[test]
fn on_a_real_server_too_the_mirror_ends_like_the_source() {
    let sshd = Sshd::start();
    let at = AtomicU64::new(0);
    let next = || Some(at.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < 24);
    assert_eq!(play_all(Some(&sshd.target()), next).0, 24);
}

#[test]
fn what_two_users_do_at_once_is_recorded_in_the_order_in_which_it_happened() {
    for seed in seeds(120, &[]) {
        play(seed, None, Play::TwoUsers);
    }
}

/// The mirror was sent them, and then the machine lost power with the newest part of the log.
#[test]
fn what_was_staged_for_rows_that_the_log_has_lost_is_swept() {
    let mut world = World::new(1, None);
    world.leave_in_stage("900-0123456789ab");
    world.come_to_rest(None);
    world.check();
}

/// Plays histories until one fails since a rule is broken (those pass where it is kept); gives why.
fn finds(rule: &'static str, kind: Play) -> String {
    finds_from(0, rule, kind)
}

fn finds_from(first: u64, rule: &'static str, kind: Play) -> String {
    let found = (first..SEEDS).find_map(|seed| {
        fault::break_rule(Some(rule));
        let failed = std::panic::catch_unwind(|| play(seed, None, kind)).err();
        fault::break_rule(None);
        fault::watch(None);
        let why = failed?
            .downcast::<String>()
            .map_or_else(|_| String::new(), |why| *why);
        Some((seed, why))
    });
    let (seed, why) = found.unwrap_or_else(|| panic!("nobody finds that {rule} is broken"));
    let first_line = why.lines().next().unwrap_or_default();
    println!("{rule} is found broken in history {seed}: {first_line}");
    first_line.to_string()
}

#[test]
fn the_simulation_finds_a_change_that_is_told_twice_not_at_all_or_with_other_bytes() {
    let names = ["is not what was done", "the log tells of"];
    for (rule, says) in [
        ("told once", names),
        ("told at all", names),
        ("told in full", ["the log has not told of all"; 2]),
        ("told no more", ["were changed, and it tells of"; 2]),
    ] {
        let why = finds(rule, Play::Anything);
        assert!(says.iter().any(|says| why.contains(says)), "{rule}: {why}");
    }
}

#[test]
fn the_simulation_finds_a_removal_that_is_recorded_behind_what_was_made_there_since() {
    let why = finds("J2", Play::TwoUsers);
    assert!(why.contains("is not what was done"), "{why}");
}

#[test]
fn the_simulation_finds_a_change_that_is_seen_before_the_disk_knows_of_it() {
    finds("J3", Play::Anything);
}

#[test]
fn the_simulation_finds_a_rename_that_nobody_can_tell_from_one_that_did_not_happen() {
    finds("J4", Play::Anything);
}

#[test]
fn the_simulation_finds_what_is_not_safe_to_be_done_twice() {
    finds("R2", Play::Anything);
}

#[test]
fn the_simulation_finds_a_row_that_is_replayed_where_a_repair_has_seen_the_future() {
    // From 0 on it is the same one.
    finds_from(350, "R4", Play::Anything);
}

#[test]
#[ignore = "a soak: plays new histories for PROXYFS_SOAK_SECONDS"]
fn soak_whatever_dies_and_whenever() {
    let seconds = std::env::var("PROXYFS_SOAK_SECONDS").map_or(60, |s| s.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
    let at = AtomicU64::new(first);
    let next = || (Instant::now() < end).then(|| at.fetch_add(1, Ordering::Relaxed));
    let (played, died) = play_all(None, next);
    eprintln!("{played} histories with {died} deaths");
    let sshd = Sshd::start();
    let end = Instant::now() + Duration::from_secs(seconds / 4);
    let next = || (Instant::now() < end).then(|| at.fetch_add(1, Ordering::Relaxed));
    let (played, died) = play_all(Some(&sshd.target()), next);
    eprintln!("{played} histories with {died} deaths on a real server");
}
