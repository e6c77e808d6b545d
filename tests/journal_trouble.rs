//! The journal is lost or damaged: it is noticed, nothing is changed that could not be recorded, and there is a way out by
//! which nothing gets lost.
#![allow(clippy::unwrap_used)]

use super::mirror_errors::{add, base, everything_arrives, resume};
use super::support::daemon::Daemon;
use super::support::disks::{Disk, Small};
use super::support::mounts::wait_until;
use super::support::smtpd::{Smtpd, Wants};
use super::support::sshd::Sshd;
use proxyfs::change::{Change, Owner, RelPath, Times, Timestamp};
use proxyfs::journal::{CHECKED_AT_ONCE, Journal, Recorder};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn with_a_mirror(sshd: &Sshd, lines: &[(&str, &str)]) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", sshd, lines);
    daemon.start();
    fs::write(daemon.source().join("file"), "first").unwrap();
    daemon.wait();
    let journal = daemon.file("state/journal.db");
    (daemon, journal)
}

/// Waits until the mount is read-only, and the status says why and what to do.
#[track_caller]
fn is_closed(daemon: &Daemon, why: &str) {
    wait_until("the log is closed", || daemon.status()["read_only"] == true);
    let status = daemon.status();
    let reason = status["read_only_reason"].as_str().unwrap();
    assert!(
        reason.contains("journal.db") && reason.contains(why),
        "{reason}"
    );
    assert!(reason.contains("`proxyfs rebuild`"), "{reason}");
    let screen = daemon.ok(&["status"]);
    assert!(
        screen.contains("READ-ONLY") && screen.contains("the mount refuses"),
        "{screen}"
    );
    let refused = fs::write(daemon.source().join("file"), "not recorded").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{refused}");
}

#[track_caller]
fn is_open(daemon: &Daemon) {
    wait_until("the log is open", || daemon.status()["read_only"] == false);
}

/// Ends a daemon whose log is closed: it says so.
fn end(daemon: &mut Daemon) {
    let stopped = daemon.run(&["stop"]);
    assert!(stopped.status.success(), "{stopped:?}");
    daemon.kill(); // it has ended: only its exit code is left
}

#[track_caller]
fn refused_start(daemon: &Daemon) -> String {
    let refused = daemon.run(&["run"]);
    assert_eq!(refused.status.code(), Some(1));
    String::from_utf8(refused.stderr).unwrap()
}

#[test]
fn a_journal_that_is_moved_replaced_or_deleted_closes_the_log_until_it_is_back() {
    let (sshd, smtpd) = (Sshd::start(), Smtpd::start(Wants::Nothing));
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[("first_sync", "none")]);
    daemon.ini_mut().push_str(&smtpd.ini(""));
    daemon.write_ini();
    daemon.start();
    let (www, journal) = (daemon.source(), daemon.file("state/journal.db"));
    fs::write(www.join("file"), "first").unwrap();
    daemon.wait();

    let away = daemon.file("away.db");
    fs::rename(&journal, &away).unwrap();
    is_closed(&daemon, "was deleted or moved");
    let (subject, body) = smtpd.wait_for(1);
    assert!(subject.ends_with("the mount is read-only"), "{subject}");
    assert!(
        body.contains("was deleted or moved") && body.contains("proxyfs rebuild"),
        "{body}"
    );
    // None is made in its place by the daemon, whatever it does meanwhile.
    assert!(!journal.exists());
    fs::rename(&away, &journal).unwrap();
    is_open(&daemon);
    fs::write(www.join("file"), "when it was back").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);

    fs::rename(&journal, &away).unwrap();
    fs::copy(&away, &journal).unwrap();
    is_closed(&daemon, "was replaced by another file");
    fs::rename(&away, &journal).unwrap();
    is_open(&daemon);
    let wal = daemon.file("state/journal.db-wal");
    fs::rename(&wal, &away).unwrap();
    is_closed(&daemon, "-wal was deleted or moved");
    fs::rename(&away, &wal).unwrap();
    is_open(&daemon);

    // With changes that no mirror has yet, and that no log tells of then.
    daemon.ok(&["pause", "m"]);
    fs::create_dir(www.join("dir")).unwrap();
    fs::write(www.join("dir/new"), "lost with the log").unwrap();
    fs::write(www.join("file"), "lost with the log too").unwrap();
    fs::remove_file(&journal).unwrap();
    is_closed(&daemon, "was deleted or moved");
    end(&mut daemon);
    // A start alone finds that there was a journal.
    daemon.start();
    let log = daemon.log();
    assert!(log.contains("the source had a journal before"), "{log}");
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_journal_that_is_cut_short_closes_the_log_for_good_and_is_rebuilt() {
    let sshd = Sshd::start();
    let (mut daemon, journal) = with_a_mirror(&sshd, &[]);
    let length = journal.metadata().unwrap().len();
    let file = File::options().write(true).open(&journal).unwrap();
    file.set_len(length / 2).unwrap();
    is_closed(&daemon, "was cut short");
    file.set_len(length).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1200)); // two looks
    is_closed(&daemon, "was cut short");

    let running = daemon.run(&["rebuild", "--yes"]);
    let said = String::from_utf8(running.stderr).unwrap();
    assert!(said.contains("stop it first (`proxyfs stop`)"), "{said}");
    end(&mut daemon);
    let asked = daemon.run(&["rebuild"]);
    let said = String::from_utf8(asked.stderr).unwrap();
    assert!(said.contains("give --yes"), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    fs::write(daemon.source().join("file"), "edited while it was stopped").unwrap();
    let said = daemon.ok(&["rebuild", "--yes"]);
    assert!(
        said.contains("each (m) is compared with the whole source"),
        "{said}"
    );
    let aside = daemon.file("state/journal.db.aside-1");
    assert!(said.contains(&aside.display().to_string()), "{said}");
    assert!(aside.exists());
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

/// Wipes a page that has `words`; the daemon must be stopped.
fn damage(state: &Path, words: &[u8]) {
    drop(Journal::open(state).unwrap()); // what is in the WAL goes into the database
    let db = state.join("journal.db");
    let bytes = fs::read(&db).unwrap();
    let at = bytes.windows(words.len()).position(|w| w == words).unwrap();
    let page = (at / 1024 * 1024) as u64;
    let file = File::options().write(true).open(&db).unwrap();
    file.write_all_at(&[0x77; 1024], page).unwrap();
}

/// Records some hundred changes that the paused mirror lacks, and kills the daemon when a mark says that they are known.
fn kill_with_rows(daemon: &mut Daemon) {
    daemon.ok(&["pause", "m"]);
    for n in 0..200 {
        fs::write(daemon.source().join(format!("file-{n}")), "waits").unwrap();
    }
    let wal = daemon.file("state/journal.db-wal");
    wait_until("they are noted as known", || {
        let text = fs::read(&wal).unwrap();
        text.windows(6).any(|w| w == b"seq=20")
    });
    daemon.kill();
}

#[test]
fn a_journal_that_was_damaged_when_the_daemon_was_killed_is_found_at_the_start_and_rebuilt() {
    let sshd = Sshd::start();
    let (mut daemon, journal) = with_a_mirror(&sshd, &[]);
    let (www, state) = (daemon.source(), daemon.file("state"));
    kill_with_rows(&mut daemon);
    damage(&state, b"file-60");
    let said = refused_start(&daemon);
    assert!(
        said.contains("journal.db: the journal is damaged (") && said.contains("`proxyfs rebuild`"),
        "{said}"
    );

    // Not while the disk of the source is away.
    let disk = daemon.file("disk");
    fs::rename(&www, &disk).unwrap();
    fs::create_dir(&www).unwrap();
    let refused = daemon.run(&["rebuild", "--yes"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("is its disk not mounted?"), "{said}");
    assert!(!refused.status.success() && journal.exists());
    fs::remove_dir(&www).unwrap();
    fs::rename(&disk, &www).unwrap();

    daemon.ok(&["rebuild", "--yes"]);
    daemon.start();
    daemon.wait_for_mirror("m", |m| m["state"] == "paused");
    assert!(!base(&sshd, "m").join("file-60").exists());
    resume(&daemon, &["m"]);
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

#[test]
fn a_long_journal_that_was_damaged_is_found_while_the_mount_is_used_already() {
    let sshd = Sshd::start();
    let (mut daemon, _) = with_a_mirror(&sshd, &[]);
    let (www, state) = (daemon.source(), daemon.file("state"));
    kill_with_rows(&mut daemon);
    let journal = Journal::open(&state).unwrap();
    let one = (CHECKED_AT_ONCE / 8) as usize;
    for n in 0..9 {
        let long = Change::Symlink {
            path: RelPath::new(format!("link-{n}").as_bytes()).unwrap(),
            target: vec![b'x'; one].into(),
            owner: Owner { uid: 0, gid: 0 },
            times: Times {
                atime: Timestamp::default(),
                mtime: Timestamp::default(),
            },
        };
        journal.record(&long).unwrap();
    }
    drop(journal);
    damage(&state, b"file-60");
    daemon.start();
    is_closed(&daemon, "the journal is damaged (");
    end(&mut daemon);
    daemon.ok(&["rebuild", "--yes"]);
    daemon.start();
    resume(&daemon, &["m"]);
    fs::write(www.join("file"), "in the end").unwrap();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
}

/// The kernel writes a new file itself and asks nobody, also while nothing can be recorded.
#[test]
fn what_the_kernel_writes_by_itself_while_the_log_is_closed_arrives() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    daemon.add_mirror("m", &sshd);
    let disk = Small::mount(&daemon.file("state"), 512);
    daemon.start();
    daemon.wait();
    let www = daemon.source();
    let mut open = File::create_new(www.join("stays-open")).unwrap();
    let mut closed = File::create_new(www.join("closed-meanwhile")).unwrap();
    open.write_all(b"before ").unwrap();
    let filler = daemon.file("state/filler");
    let _full = fs::write(&filler, vec![1; 1 << 20]);
    wait_until("the journal is full", || {
        let _refused = fs::create_dir(www.join("dir"));
        let _gone = fs::remove_dir(www.join("dir"));
        daemon.status()["read_only"] == true
    });
    // Where the kernel does not write it by itself, this is refused, which is as good.
    let written = open.write_all(b"while it was closed ").is_ok();
    let _written = closed.write_all(b"and gone");
    drop(closed);
    fs::remove_file(&filler).unwrap();
    is_open(&daemon);
    open.write_all(b"after").unwrap();
    drop(open);
    daemon.wait();
    let there = fs::read_to_string(sshd.base().join("stays-open")).unwrap();
    assert_eq!(there.contains("while it was closed"), written, "{there}");
    let lines = super::kills::differences(&www, &sshd.base());
    assert!(lines.is_empty(), "{}\n{}", lines.join("\n"), daemon.log());
    daemon.stop();
    drop(daemon);
    drop(disk);
}

/// A disk that could not write says so once: the next fsync succeeds, and what it could not write is not there.
#[test]
fn what_the_disk_did_not_take_is_never_sent_and_closes_the_log_for_good() {
    let sshd = Sshd::start();
    let mut daemon = Daemon::new();
    add(&mut daemon, "m", &sshd, &[]);
    let pool = Small::mount(&daemon.file("pool"), 24 << 10);
    let disk = Disk::thin(&daemon.file("pool"), &daemon.file("state"));
    daemon.start();
    let (www, base) = (daemon.source(), base(&sshd, "m"));
    fs::write(www.join("file"), "first").unwrap();
    daemon.wait();

    let filler = daemon.file("pool/filler");
    let full = fs::write(&filler, vec![1; 32 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    // Each is longer than what is left of a block. Where the log begins at its start again it has blocks, and the
    // change is on the disk, so it may go; in the end one needs a new block.
    let lost = (0..100)
        .map(|n| format!("not on the disk {n}"))
        .find(|name| {
            if std::os::unix::fs::symlink("x".repeat(4000), www.join(name)).is_err() {
                return true;
            }
            let arrived = || base.join(name).symlink_metadata().is_ok();
            wait_until("it arrives, or the log is closed", || {
                arrived() || daemon.status()["read_only"] == true
            });
            !arrived()
        });
    let lost = lost.expect("the log is closed");
    // What the disk did not take may be read as something else than was written, too: then the journal is damaged.
    is_closed(&daemon, "`proxyfs rebuild`");
    fs::remove_file(&filler).unwrap();
    daemon.ok(&["try-again"]);
    daemon.wait_for_mirror("m", |m| {
        let why = m["last_error"].as_str().unwrap_or_default();
        why.contains("`proxyfs rebuild`")
    });
    std::thread::sleep(std::time::Duration::from_millis(1200)); // two looks
    is_closed(&daemon, "`proxyfs rebuild`");
    assert!(base.join(&lost).symlink_metadata().is_err());

    end(&mut daemon);
    daemon.ok(&["rebuild", "--yes"]);
    daemon.start();
    everything_arrives(&daemon, &sshd, &["m"]);
    daemon.stop();
    drop(daemon);
    drop(disk);
    drop(pool);
}
