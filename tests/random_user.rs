//! A random user at the mount, and mirrors that come and go: at the end both are like the source.
//!
//! Everything is real: the kernel, the daemon, two OpenSSH servers (one mirror as root, one as an ordinary
//! user), a connection that is cut, held or refused, a daemon that is stopped and started. `PROXYFS_SEED=n`
//! plays one history again; `PROXYFS_SEEDS=n` plays n of them.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::random::{Random, seeds};
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::{assert_same, differences};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, renameat_with, utimensat};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Seeds that have found something.
const KEPT: [u64; 0] = [];

/// One user: what it does, below its own directory or the common one.
struct User {
    root: PathBuf,
    random: Random,
    open: Vec<File>,
    done: Vec<String>,
}

impl User {
    fn path(&mut self) -> PathBuf {
        let depth = 1 + self.random.below(3);
        let mut path = self.root.clone();
        for _ in 0..depth {
            path.push(self.random.pick(&["a", "b", "c", "d"]));
        }
        path
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.random.pick(&[0, 1, 10, 4096, 40_000, 200_000]);
        let first = self.random.next() as u8;
        (0..length)
            .map(|i| first.wrapping_add((i / 7) as u8))
            .collect()
    }

    /// Tries one thing; most of what is tried can be done.
    fn step(&mut self) {
        let (path, other) = (self.path(), self.path());
        let kind = self.random.below(22);
        let worked = match kind {
            0 | 1 => fs::create_dir(&path).is_ok(),
            2..=4 => fs::write(&path, self.bytes()).is_ok(),
            5 => {
                let bytes = self.bytes();
                let file = OpenOptions::new().append(true).create(true).open(&path);
                file.and_then(|mut f| f.write_all(&bytes)).is_ok()
            }
            6 => self.overwrite(&path).is_ok(),
            7 => {
                let size = self.random.below(50_000);
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|f| f.set_len(size))
                    .is_ok()
            }
            8 => fs::remove_dir(&path).is_ok(),
            9 => fs::remove_file(&path).is_ok(),
            10..=12 => fs::rename(&path, &other).is_ok(),
            13 => renameat_with(CWD, &path, CWD, &other, RenameFlags::NOREPLACE).is_ok(),
            14 => renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE).is_ok(),
            15 => symlink(self.random.pick(&["a", "../b", "/nowhere", "d/d"]), &path).is_ok(),
            16 => fs::hard_link(&path, &other).is_ok(),
            17 => {
                let modes = [0o644, 0o600, 0o444, 0o755, 0o555, 0o4711, 0o2775];
                let mode = fs::Permissions::from_mode(self.random.pick(&modes));
                !path.is_symlink() && fs::set_permissions(&path, mode).is_ok()
            }
            18 => {
                let second = Timespec {
                    tv_sec: self.random.below(2_000_000_000) as i64,
                    tv_nsec: 7,
                };
                let times = Timestamps {
                    last_access: second,
                    last_modification: second,
                };
                utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).is_ok()
            }
            19 => self.write_and_rename(&path).is_ok(),
            20 => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path);
                self.open.extend(file.ok());
                true
            }
            _ => self.use_open_file(),
        };
        if worked {
            self.done
                .push(format!("{kind} {} {}", path.display(), other.display()));
        }
    }

    fn overwrite(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(self.random.below(30_000)))?;
        file.write_all(&self.bytes())
    }

    fn write_and_rename(&mut self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, self.bytes())?;
        fs::rename(&temporary, path)
    }

    /// A file that has been open for a while, whatever has become of its name.
    fn use_open_file(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let index = self.random.below(self.open.len() as u64) as usize;
        let bytes = self.bytes();
        let written = self.open[index].write_all(&bytes).is_ok();
        if self.random.one_in(2) {
            drop(self.open.swap_remove(index));
        }
        written
    }
}

/// What happens to the mirrors while users work.
fn disturb(random: &mut Random, relay: &Relay, sshd: &mut Sshd) {
    match random.below(7) {
        0 | 1 => relay.cut(),
        2 => {
            relay.refuse(true);
            relay.cut();
        }
        3 => relay.refuse(false),
        4 => sshd.kill(),
        5 => {
            sshd.stop();
            sshd.restart();
        }
        _ => relay.hold(),
    }
}

fn play(seed: u64) {
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let root = Sshd::start();
    let mut ordinary = Sshd::builder().ordinary_user().start();
    let relay = Relay::start(root.port(), Duration::from_millis(random.below(20)));
    let mut daemon = Daemon::with("flush_after = 200ms");
    daemon.add_mirror_at("root", &root, relay.port(), "io_timeout = 1s");
    daemon.add_mirror_at("ordinary", &ordinary, ordinary.port(), "");
    daemon.start();
    let mut done = Vec::new();
    for _ in 0..2 + random.below(4) {
        let threads = 1 + random.below(3);
        let users: Vec<User> = (0..threads)
            .map(|_| User {
                // Alone, or all in the same place.
                root: daemon.source(),
                random: Random(random.next()),
                open: Vec::new(),
                done: Vec::new(),
            })
            .collect();
        let working = std::thread::scope(|all| {
            let handles: Vec<_> = users
                .into_iter()
                .map(|mut user| {
                    all.spawn(move || {
                        (0..120).for_each(|_| user.step());
                        user.done
                    })
                })
                .collect();
            for _ in 0..2 {
                disturb(&mut random, &relay, &mut ordinary);
            }
            handles
                .into_iter()
                .map(|h| h.join().unwrap())
                .collect::<Vec<_>>()
        });
        done.extend(working);
        if random.one_in(3) {
            daemon.stop();
            daemon.start();
        }
    }
    relay.resume();
    relay.refuse(false);
    ordinary.stop();
    ordinary.restart();
    daemon.wait();
    for (name, sshd) in [("root", &root), ("ordinary", &ordinary)] {
        let lines = differences(&daemon.source(), &sshd.base(), false);
        let story = || {
            done.iter()
                .map(|d| d.join("\n"))
                .collect::<Vec<_>>()
                .join("\n----\n")
        };
        assert!(
            lines.is_empty(),
            "seed {seed}, mirror {name}:\n{}\n{}",
            lines.join("\n"),
            story()
        );
    }
    daemon.stop();
}

#[test]
fn what_random_users_do_is_on_both_mirrors_at_the_end() {
    for seed in seeds(3, &KEPT) {
        play(seed);
    }
}

#[test]
fn a_daemon_killed_while_a_mirror_is_behind_loses_nothing() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    daemon.start();
    let www = daemon.source();
    daemon.ok(&["pause", "m"]);
    let mut user = User {
        root: www.clone(),
        random: Random(7),
        open: Vec::new(),
        done: Vec::new(),
    };
    (0..400).for_each(|_| user.step());
    user.open.clear();
    // The last close has been answered, and so has what came before it (J1).
    let last = fs::File::create(www.join("last")).unwrap();
    last.set_len(5).unwrap();
    drop(last);
    let head = daemon.status()["log"]["last_seq"].as_u64().unwrap();
    daemon.kill();
    daemon.start();
    assert!(daemon.status()["log"]["last_seq"].as_u64().unwrap() >= head);
    daemon.ok(&["resume", "m"]);
    daemon.wait();
    assert_same(&www, &sshd.base());
}
