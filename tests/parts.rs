//! Only what changed travels: counted in bytes on a real line to a real server.
#![allow(clippy::unwrap_used)]

use super::support::daemon::Daemon;
use super::support::relay::Relay;
use super::support::sshd::Sshd;
use super::support::tree::assert_same;
use rustix::fs::FallocateFlags;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

/// Length of the file at first.
const SIZE: usize = 4 << 20;

struct World {
    daemon: Daemon,
    relay: Relay,
    sshd: Sshd,
}

impl World {
    /// A file is on the mirror, and the line is quiet.
    fn new() -> World {
        World::with(Sshd::start(), "")
    }

    /// The same with more lines of INI for the mirror.
    fn with(sshd: Sshd, lines: &str) -> World {
        let relay = Relay::start(sshd.port(), Duration::ZERO);
        let mut daemon = Daemon::with("flush_after = 200ms");
        daemon.add_mirror_at("m", &sshd, relay.port(), lines);
        daemon.start();
        let world = World {
            daemon,
            relay,
            sshd,
        };
        let bytes: Vec<u8> = (0..SIZE as u32).map(|n| (n % 251) as u8).collect();
        fs::write(world.here(), bytes).unwrap();
        world.daemon.wait();
        world
    }

    fn here(&self) -> PathBuf {
        self.daemon.source().join("big")
    }

    fn there(&self) -> PathBuf {
        self.sshd.base().join("big")
    }

    fn open(&self) -> File {
        OpenOptions::new().write(true).open(self.here()).unwrap()
    }

    /// How many bytes it takes until what is done is on the mirror, and the mirror is like the source.
    fn bytes(&self, what: impl FnOnce()) -> u64 {
        let before = self.relay.bytes_up();
        what();
        self.daemon.wait();
        assert_same(&self.daemon.source(), &self.sshd.base());
        self.relay.bytes_up() - before
    }
}

#[test]
fn of_a_big_file_only_the_bytes_that_changed_travel() {
    let world = World::new();
    let inode = world.there().metadata().unwrap().ino();
    let some = [7; 4096];
    // In the middle; at two places; behind the end; and a part of it made longer by nothing.
    let middle = world.bytes(|| world.open().write_all_at(&some, 1_000_000).unwrap());
    let two = world.bytes(|| {
        let file = world.open();
        file.write_all_at(&some, 5).unwrap();
        file.write_all_at(&some, 3_000_000).unwrap();
    });
    let append = world.bytes(|| {
        let mut file = OpenOptions::new().append(true).open(world.here()).unwrap();
        file.write_all(&some).unwrap();
    });
    let longer = world.bytes(|| world.open().set_len(3 * SIZE as u64).unwrap());
    let cut = world.bytes(|| world.open().set_len(SIZE as u64 - 5000).unwrap());
    // A file that stays open is logged all the same, and its appends are appends.
    let mut log = OpenOptions::new().append(true).open(world.here()).unwrap();
    let open = world.bytes(|| {
        log.write_all(&some).unwrap();
        let there = || world.there().metadata().unwrap().len();
        let wanted = world.here().metadata().unwrap().len();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while there() != wanted {
            assert!(std::time::Instant::now() < deadline, "it does not come");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    drop(log);
    let punched = world.bytes(|| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(world.open(), flags, 70_000, 8192).unwrap();
    });
    let sent = [middle, two, append, longer, cut, open, punched];
    assert!(sent.iter().all(|bytes| *bytes <= 16 * 1024), "{sent:?}");
    assert_eq!(
        world.there().metadata().unwrap().ino(),
        inode,
        "it was replaced"
    );
}

#[test]
fn a_file_with_several_names_gets_what_changed_under_all_of_them() {
    let world = World::new();
    fs::hard_link(world.here(), world.daemon.source().join("other")).unwrap();
    let sent = world.bytes(|| world.open().write_all_at(b"new", 1_000_000).unwrap());
    assert!(sent <= 16 * 1024, "{sent}");
    let other = world.sshd.base().join("other").metadata().unwrap();
    assert_eq!(other.ino(), world.there().metadata().unwrap().ino());
}

#[test]
fn a_file_that_is_not_there_as_the_log_says_travels_whole() {
    let world = World::new();
    let change = || world.open().write_all_at(b"new", 1_000_000).unwrap();
    // Gone; emptied; something else.
    fs::remove_file(world.there()).unwrap();
    assert!(world.bytes(change) > SIZE as u64);
    fs::write(world.there(), "").unwrap();
    assert!(world.bytes(change) > SIZE as u64);
    fs::remove_file(world.there()).unwrap();
    let elsewhere = world.sshd.file("elsewhere");
    fs::write(&elsewhere, vec![1; SIZE]).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.there()).unwrap();
    assert!(world.bytes(change) > SIZE as u64);
    assert!(fs::read(&elsewhere).unwrap().iter().all(|b| *b == 1));
    // Of one that somebody cut a little the end is sent.
    let file = OpenOptions::new().write(true).open(world.there()).unwrap();
    file.set_len(SIZE as u64 - 100_000).unwrap();
    let sent = world.bytes(change);
    assert!((100_000..150_000).contains(&sent), "{sent}");
}

#[test]
fn when_most_of_a_file_changed_it_is_sent_and_seen_whole() {
    let world = World::new();
    let inode = world.there().metadata().unwrap().ino();
    let sent = world.bytes(|| {
        let bytes = vec![9; SIZE / 2 + 1];
        world.open().write_all_at(&bytes, 0).unwrap();
    });
    assert!(sent > SIZE as u64);
    assert_ne!(world.there().metadata().unwrap().ino(), inode);
}

/// Cut anywhere in the middle of such updates, in a daemon that is stopped and started too.
#[test]
fn what_changed_while_a_line_breaks_again_and_again_is_there_in_the_end() {
    let mut world = World::new();
    for round in 0..6u64 {
        for part in 0..20 {
            let bytes = vec![(round * 20 + part) as u8; 60_000];
            world
                .open()
                .write_all_at(&bytes, part * 200_000 + round * 777)
                .unwrap();
            if part % 7 == round {
                world.relay.cut();
            }
        }
        if round == 3 {
            world.daemon.kill();
            world.daemon.start();
        }
    }
    world.daemon.wait();
    assert_same(&world.daemon.source(), &world.sshd.base());
}

#[test]
fn with_atomic_updates_the_bytes_that_changed_travel_and_the_file_is_replaced_whole() {
    let world = World::with(Sshd::start(), "atomic_updates = yes");
    // Who has the old one open keeps it as it is.
    let (old, inode) = (
        File::open(world.there()).unwrap(),
        world.there().metadata().unwrap().ino(),
    );
    let bytes = world.bytes(|| {
        let file = world.open();
        file.write_all_at(&[7; 4096], 5).unwrap();
        file.write_all_at(&[7; 4096], 3_000_000).unwrap();
    });
    assert!(bytes < 24 * 1024, "{bytes} bytes");
    assert_ne!(world.there().metadata().unwrap().ino(), inode);
    let mut seen = [0; 4096];
    old.read_exact_at(&mut seen, 5).unwrap();
    assert!(seen.iter().any(|b| *b != 7), "the old one was changed");
    let cut = world.bytes(|| world.open().set_len(2_000_000).unwrap());
    assert!(cut < 24 * 1024, "{cut} bytes");
    let stage = world.sshd.base().join(".proxyfs/stage");
    assert_eq!(fs::read_dir(stage).unwrap().count(), 0);
    assert_eq!(
        world.daemon.mirror("m")["unsupported"],
        serde_json::json!([])
    );
}

#[test]
fn with_atomic_updates_a_server_that_copies_nothing_gets_the_file_whole() {
    let program = "exec /usr/lib/openssh/sftp-server -P copy-data";
    let sshd = Sshd::builder().sftp_script(program).start();
    let world = World::with(sshd, "atomic_updates = yes");
    let inode = world.there().metadata().unwrap().ino();
    let bytes = world.bytes(|| world.open().write_all_at(&[7; 4096], 5).unwrap());
    assert!(bytes > SIZE as u64, "{bytes} bytes");
    assert_ne!(world.there().metadata().unwrap().ino(), inode);
    let unsupported = world.daemon.mirror("m")["unsupported"].to_string();
    assert!(unsupported.contains("sent whole"), "{unsupported}");
}

/// Lets everything pass, but holds what comes behind each copy-data up, as a slow disk would: so long for each MiB.
const SLOW_DISK: &str = r#"exec python3 -c '
import os, struct, subprocess, sys, time
server = subprocess.Popen(["/usr/lib/openssh/sftp-server"], stdin=subprocess.PIPE)
size = int(sys.argv[1])
def read(n):
    data = b""
    while len(data) < n:
        more = os.read(0, n - len(data))
        if not more:
            server.stdin.close()
            sys.exit(server.wait())
        data += more
    return data
while True:
    length = read(4)
    packet = read(struct.unpack(">I", length)[0])
    at = packet.find(b"\x00\x00\x00\x09copy-data")
    if packet[0] == 200 and at == 5:
        rest = packet[at + 13:]
        rest = rest[4 + struct.unpack(">I", rest[:4])[0]:]
        offset, wanted = struct.unpack(">QQ", rest[:16])
        time.sleep((wanted or size - offset) / (1 << 20) * 0.12)
    server.stdin.write(length + packet)
    server.stdin.flush()
' "#;

#[test]
fn a_big_file_is_copied_on_a_mirror_whose_disk_is_slow() {
    let size = 48 << 20;
    let sshd = Sshd::builder()
        .sftp_script(&format!("{SLOW_DISK}{size}"))
        .start();
    // The whole takes longer than this, a part of it does not.
    let world = World::with(sshd, "atomic_updates = yes\nio_timeout = 5s");
    fs::remove_file(world.here()).unwrap();
    let film = File::create(world.here()).unwrap();
    film.write_all_at(&[1; 1 << 20], 0).unwrap();
    film.set_len(size).unwrap();
    drop(film);
    world.daemon.wait();
    let inode = world.there().metadata().unwrap().ino();
    let bytes = world.bytes(|| world.open().write_all_at(&[7; 4096], 5).unwrap());
    assert!(bytes < 64 * 1024, "{bytes} bytes");
    assert_ne!(world.there().metadata().unwrap().ino(), inode);
}
