//! The plug is pulled: what the disk has lost the mirrors must not keep, and what it kept they must have.
//!
//! Source and journal lie on disks of their own, in image files, which are shut down by the ioctl that file systems
//! have for such tests: nothing is written any more, and everything fails. Then they are mounted again, as after a
//! power cut, and the daemon is started.
#![allow(clippy::unwrap_used)]

use super::kills::{StopOnDrop, differences, soak_time};
use super::support::daemon::Daemon;
use super::support::disks::{Bind, Disk};
use super::support::load::Load;
use super::support::random::Random;
use super::support::sshd::Sshd;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime};

/// A daemon whose source is on a disk, and its journal on the same or on the machine's own.
struct World {
    daemon: Daemon,
    sshd: Sshd,
    // In this order they are dropped.
    binds: Vec<Bind>,
    disk: Disk,
    journal_too: bool,
}

impl World {
    fn new(kind: &'static str, journal_too: bool) -> World {
        let sshd = Sshd::start();
        let mut daemon = Daemon::new();
        daemon.add_mirror("m", &sshd);
        let disk = Disk::mount(kind, &daemon.file("disk"));
        let mut world = World {
            daemon,
            sshd,
            binds: Vec::new(),
            disk,
            journal_too,
        };
        world.bind();
        world.daemon.start();
        world
    }

    fn bind(&mut self) {
        let disk = self.daemon.file("disk");
        self.binds
            .push(Bind::mount(&disk.join("www"), &self.daemon.source()));
        if self.journal_too {
            let state = self.daemon.file("state");
            self.binds.push(Bind::mount(&disk.join("state"), &state));
        }
    }

    /// The plug was pulled; the machine comes up again.
    fn come_up_again(&mut self) {
        self.daemon.kill();
        self.binds.clear();
        self.disk.plug_in_again();
        self.bind();
    }

    fn check(&self, told: &str) {
        self.daemon.wait();
        let lines = differences(&self.daemon.source(), &self.sshd.base());
        let log = self.daemon.log();
        assert!(lines.is_empty(), "{told}:\n{}\n{log}", lines.join("\n"));
    }
}

/// What a mirror has and the disk has lost is undone on the mirror. Says whether the disk has lost it: it may write by
/// itself at any moment.
fn the_mirror_is_ahead(kind: &'static str) -> bool {
    let mut world = World::new(kind, false);
    let www = world.daemon.source();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let set_old = |name: &str| {
        let file = fs::File::options()
            .write(true)
            .open(www.join(name))
            .unwrap();
        file.set_modified(old).unwrap();
    };
    fs::create_dir(www.join("d")).unwrap();
    for name in ["kept", "edited", "removed", "renamed", "d/in it"] {
        fs::write(www.join(name), format!("what is in {name}")).unwrap();
        set_old(name);
    }
    world.daemon.wait();
    world.daemon.stop(); // with a checkpoint: all this is on the disk
    world.daemon.start();
    world.daemon.wait();

    fs::write(www.join("new"), "lost").unwrap();
    let edited = fs::File::options()
        .write(true)
        .open(www.join("edited"))
        .unwrap();
    edited.write_all_at(b"WHAT", 0).unwrap();
    drop(edited);
    set_old("edited");
    fs::remove_file(www.join("removed")).unwrap();
    fs::rename(www.join("renamed"), www.join("moved")).unwrap();
    fs::rename(www.join("d"), www.join("e")).unwrap();
    world.daemon.wait();
    let base = world.sshd.base();
    assert!(base.join("new").exists() && base.join("e/in it").exists());

    world.disk.pull_the_plug();
    world.come_up_again();
    let lost = !www.join("new").exists() && www.join("removed").exists();
    world.daemon.start();
    world.check(kind);
    world.daemon.stop();
    if lost {
        let edited = fs::read_to_string(base.join("edited")).unwrap();
        assert_eq!(edited, "what is in edited");
    }
    lost
}

#[test]
fn what_a_disk_has_lost_is_undone_on_the_mirror() {
    assert!(
        (0..5).any(|_| the_mirror_is_ahead("ext4")),
        "the disk has lost nothing: this proves nothing"
    );
}

#[test]
fn what_an_xfs_disk_has_lost_is_undone_on_the_mirror() {
    assert!(
        (0..5).any(|_| the_mirror_is_ahead("xfs")),
        "the disk has lost nothing: this proves nothing"
    );
}

/// The plug is pulled so often under load.
fn pull_often(seed: u64, kind: &'static str, journal_too: bool, times: u32) {
    let mut random = Random(seed);
    let mut world = World::new(kind, journal_too);
    let www = world.daemon.source();
    // A source that is empty all at once is not taken for one (P8).
    fs::write(www.join("kept"), "always").unwrap();
    // (Of the mount it would do nothing.)
    let disk = world.daemon.file("disk");
    let sync = || rustix::fs::syncfs(fs::File::open(&disk).unwrap()).unwrap();
    sync();
    for round in 0..times {
        let load = Load::default();
        std::thread::scope(|scope| {
            let stop = StopOnDrop(&load);
            let seed = random.next();
            let (load, www) = (&load, &www);
            scope.spawn(move || load.work(www, seed));
            std::thread::sleep(Duration::from_millis(50 + random.below(900)));
            match random.below(4) {
                // The mirror has everything, the disk has not.
                0 => {
                    drop(stop);
                    world.daemon.wait();
                }
                1 => sync(),
                _ => {}
            }
            world.disk.pull_the_plug();
        });
        world.come_up_again();
        world.daemon.start();
        world.check(&format!("seed {seed}, {kind}, round {round}"));
    }
    world.daemon.stop();
}

#[test]
fn whenever_the_plug_is_pulled_the_mirror_follows_what_the_disk_kept() {
    pull_often(1, "ext4", true, 3);
    pull_often(2, "xfs", false, 2);
}

#[test]
#[ignore = "a soak: pulls the plug for PROXYFS_SOAK_SECONDS"]
fn soak_whenever_the_plug_is_pulled() {
    let end = Instant::now() + soak_time();
    while Instant::now() < end {
        let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        let mut random = Random(seed);
        let (kind, journal_too) = (random.pick(&["ext4", "xfs"]), random.one_in(2));
        eprintln!("seed {seed}: {kind}, the journal too: {journal_too}");
        pull_often(seed, kind, journal_too, 5);
    }
}
