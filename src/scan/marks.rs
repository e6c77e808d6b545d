//! Marks and checkpoints: up to when the log knows everything, and what the next start has to look for.
//!
//! A **mark** says: every inode whose ctime is older is in the log, but for these few (open files with bytes that
//! are not logged). It is good as long as the page cache lives: a killed daemon goes on from it. A
//! **checkpoint** says so too, and that all of it, up to a change of the log, is on the disk: after a power cut
//! the next start goes on from there (J5).
//!
//! The time is the file system's own: the ctime of a file that is touched ([`FsClock`]), before it is asked what
//! is unlogged. What is changed later is younger, what was changed before is logged or named. So the wall
//! clock does not matter; but if it is set back, what is changed then looks old. So each mark also notes what the
//! wall clock and the time since the boot were: if they have come apart, no ctime is believed.

use crate::change::{Change, Seq, Timestamp};
use crate::exclude::Exclude;
use crate::fault;
use crate::journal::{Journal, JournalError};
use crate::local::RESERVED;
use crate::local::suspects::Suspicion;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The keys of [`Journal::meta`] for the last mark, the last checkpoint, the run that made them, and whether that
/// run came to a proper end.
const MARK: &str = "mark";
const CHECKPOINT: &str = "checkpoint";
const RUN: &str = "run";
const CLEAN: &str = "clean";

/// Taken off the file system's clock: the processors need not agree to the last microsecond.
const SLACK: Duration = Duration::from_millis(20);

/// Taken off the wall clock where the file system's cannot be asked.
const COARSE_SLACK: Duration = Duration::from_secs(2);

/// A wall clock that is so much behind has been set back; less is a clock being trimmed.
const SET_BACK_MS: i64 = 1000;

/// A journal without marks was written by version 0.1. It may have kept a file's bytes to itself so long.
const OLD_JOURNAL_SLACK_S: i64 = 3600;

/// A mark or a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    /// How far the log was before.
    pub seq: Seq,
    /// All that has an older ctime is in the log.
    pub time: Timestamp,
    /// The wall clock then: milliseconds since 1970.
    pub wall_ms: i64,
    /// The time since the boot then, in milliseconds.
    pub up_ms: i64,
    /// Whether the source was empty.
    pub empty: bool,
    /// Inodes of which something may be missing whatever their ctime is.
    pub nodes: Vec<u64>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timestamp {
            seconds,
            nanoseconds,
        } = self.time;
        write!(
            f,
            "seq={} seconds={seconds} nanoseconds={nanoseconds} wall={} up={} empty={}",
            self.seq,
            self.wall_ms,
            self.up_ms,
            u8::from(self.empty)
        )?;
        self.nodes.iter().try_for_each(|n| write!(f, " node={n}"))
    }
}

impl Mark {
    /// Of a log in which nothing is.
    fn first(now: Timestamp, empty: bool) -> Mark {
        Mark {
            time: now,
            wall_ms: crate::journal::now_ms(),
            up_ms: up_ms(),
            empty,
            ..Mark::default()
        }
    }

    /// Reads what `Display` wrote; none if it is no such text.
    pub fn parse(text: &str) -> Option<Mark> {
        let mut mark = Mark::default();
        let mut fields = 0;
        for field in text.split(' ') {
            let (name, value) = field.split_once('=')?;
            match name {
                "seq" => mark.seq = value.parse().ok()?,
                "seconds" => mark.time.seconds = value.parse().ok()?,
                "nanoseconds" => mark.time.nanoseconds = value.parse().ok()?,
                "wall" => mark.wall_ms = value.parse().ok()?,
                "up" => mark.up_ms = value.parse().ok()?,
                "empty" => mark.empty = value == "1",
                "node" => mark.nodes.push(value.parse().ok()?),
                _ => continue,
            }
            fields += 1;
        }
        (fields >= 5).then_some(mark)
    }
}

/// Which boot of the machine, and which mounts of the source's and the journal's file systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run(String);

impl Run {
    /// This one.
    pub fn now(source: BorrowedFd<'_>, state_dir: &Path) -> Run {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let state = rustix::fs::open(state_dir, OFlags::PATH, Mode::empty()).ok();
        let state = state.map_or(0, |state| mount_id(state.as_fd()));
        let source = mount_id(source);
        Run(format!("{} {source} {state}", boot.trim()))
    }

    fn is_same_boot(&self, other: &str) -> bool {
        self.0.split(' ').next() == other.split(' ').next()
    }
}

/// The mount that a descriptor lies on, by a number that is never used again where the kernel has such (6.8).
fn mount_id(fd: BorrowedFd<'_>) -> u64 {
    /// `STATX_MNT_ID_UNIQUE`
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let ask = |what| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, what).ok();
    for what in [UNIQUE, StatxFlags::MNT_ID] {
        if let Some(stat) = ask(what)
            && stat.stx_mask & what.bits() != 0
        {
            return stat.stx_mnt_id;
        }
    }
    0
}

/// The clock that the source's file system takes its ctimes from.
pub struct FsClock {
    file: Option<OwnedFd>,
    slack: Duration,
}

impl FsClock {
    /// Of the file system of `root`, by a file in `.proxyfs` there.
    pub fn new(root: BorrowedFd<'_>) -> FsClock {
        let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || {
            let dir = rustix::fs::openat(root, RESERVED, dir, Mode::empty())?;
            rustix::fs::openat(dir, "clock", file, Mode::RUSR | Mode::WUSR)
        };
        let open: Result<OwnedFd, Errno> = open();
        FsClock {
            file: open.ok(),
            slack: SLACK,
        }
    }

    /// The same to the tick: for who changes the source on one thread only, as tests do that have no time to lose.
    #[must_use]
    pub fn without_slack(self) -> FsClock {
        FsClock {
            slack: Duration::ZERO,
            ..self
        }
    }

    /// What is changed from now on has this ctime or a later one.
    pub fn now(&self) -> Timestamp {
        let touch = |file: &OwnedFd| -> Result<Timestamp, Errno> {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            };
            let times = Timestamps {
                last_access: now,
                last_modification: now,
            };
            rustix::fs::futimens(file, &times)?;
            let flags = AtFlags::EMPTY_PATH;
            let stat = rustix::fs::statx(file, c"", flags, StatxFlags::CTIME)?;
            Ok(Timestamp {
                seconds: stat.stx_ctime.tv_sec,
                nanoseconds: stat.stx_ctime.tv_nsec,
            })
        };
        match self.file.as_ref().map(touch) {
            Some(Ok(now)) => earlier(now, self.slack),
            _ => earlier(of(SystemTime::now()), COARSE_SLACK),
        }
    }
}

/// A time of the wall clock.
pub fn of(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanoseconds: since.subsec_nanos(),
    }
}

/// So much earlier.
pub fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    let nanoseconds = i64::from(time.nanoseconds) - i64::from(by.subsec_nanos());
    let borrow = i64::from(nanoseconds < 0);
    Timestamp {
        seconds: time.seconds - by.as_secs() as i64 - borrow,
        nanoseconds: (nanoseconds + borrow * 1_000_000_000) as u32,
    }
}

/// Milliseconds since the boot, sleep counted.
pub fn up_ms() -> i64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|s| s.parse::<f64>().ok());
    seconds.map_or(0, |s| (s * 1000.0) as i64)
}

/// What the scan at the start has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is suspect, by its ctime.
    pub suspicion: Suspicion,
    /// Why everything is, if so.
    pub everything: Option<&'static str>,
    /// The disk may have lost something: the paths of the changes behind this one are suspect.
    pub rows_after: Option<Seq>,
    /// The last run did not come to a proper end.
    pub unclean: bool,
    /// When it was last looked at, the source was not empty.
    pub had_content: bool,
    /// What was excluded before, if that was something else than now: see [`excluded`](super::excluded).
    pub excluded_before: Vec<Exclude>,
    nothing: bool,
}

impl Plan {
    /// Nothing is to be done: the journal is new.
    pub fn nothing() -> Plan {
        Plan {
            suspicion: super::nothing(),
            everything: None,
            rows_after: None,
            unclean: false,
            had_content: false,
            excluded_before: Vec::new(),
            nothing: true,
        }
    }

    /// Whether anything is to be done.
    pub fn is_needed(&self) -> bool {
        !self.nothing || !self.excluded_before.is_empty()
    }
}

/// Says what is to be done, by what the journal has noted. `now` is the file system's clock.
///
/// # Errors
/// The journal's.
pub fn plan(journal: &Journal, run: &Run, now: Timestamp) -> Result<Plan, JournalError> {
    let mark = |key| -> Result<Option<Mark>, JournalError> {
        Ok(journal.meta(key)?.and_then(|text| Mark::parse(&text)))
    };
    let (mark, checkpoint) = (mark(MARK)?, mark(CHECKPOINT)?);
    let last_run = journal.meta(RUN)?.unwrap_or_default();
    let clean = journal.meta(CLEAN)?.as_deref() == Some("yes");
    let newest = mark
        .iter()
        .chain(&checkpoint)
        .max_by_key(|m| (m.seq, m.up_ms));
    let had_content = newest.is_some_and(|m| !m.empty) && !was_emptied(journal, newest)?;
    let went_down = !clean && last_run != run.0;
    let mut plan = Plan {
        unclean: !clean,
        had_content,
        nothing: false,
        ..Plan::nothing()
    };
    if went_down {
        plan.rows_after = checkpoint.as_ref().map(|c| c.seq);
    }
    let base = match (clean || went_down, checkpoint, mark) {
        (true, checkpoint, _) => checkpoint,
        (false, checkpoint, None) => checkpoint,
        (false, _, mark) => mark,
    };
    let Some(base) = base else {
        return without_marks(journal, went_down && !last_run.is_empty(), plan);
    };
    let wall_ms = crate::journal::now_ms();
    let behind = (wall_ms - base.wall_ms) - (up_ms() - base.up_ms) < -SET_BACK_MS;
    if now < base.time || run.is_same_boot(&last_run) && behind {
        plan.everything = Some("the clock was set back");
        plan.suspicion = super::nothing();
    } else {
        plan.suspicion.since = base.time;
    }
    plan.suspicion.nodes = base.nodes.iter().copied().collect::<HashSet<u64>>();
    Ok(plan)
}

/// What a journal says that has no mark.
fn without_marks(journal: &Journal, lost: bool, mut plan: Plan) -> Result<Plan, JournalError> {
    if lost {
        plan.everything = Some("the machine went down before the first checkpoint");
        return Ok(plan);
    }
    let head = journal.head();
    let newest = journal.reader()?.rows(head.saturating_sub(1), 1)?;
    let Some(row) = newest.first() else {
        return Ok(Plan::nothing());
    };
    plan.suspicion.since = Timestamp {
        seconds: row.at / 1000 - OLD_JOURNAL_SLACK_S,
        nanoseconds: 0,
    };
    Ok(plan)
}

/// Whether the log tells that something was taken out of the source's root since the mark.
fn was_emptied(journal: &Journal, mark: Option<&Mark>) -> Result<bool, JournalError> {
    let Some(mut after) = mark.map(|mark| mark.seq) else {
        return Ok(false);
    };
    let reader = journal.reader()?;
    loop {
        let rows = reader.rows(after, 1000)?;
        let Some(last) = rows.last() else {
            return Ok(false);
        };
        after = last.seq;
        if rows.iter().any(|row| takes_from_root(&row.change)) {
            return Ok(true);
        }
    }
}

/// Whether an entry of the root is gone afterwards.
fn takes_from_root(change: &Change) -> bool {
    match change {
        Change::Rmdir { path } | Change::Unlink { path } | Change::Rename { from: path, .. } => {
            path.parent().is_some_and(|above| above.is_root())
        }
        Change::Mkdir { .. }
        | Change::Symlink { .. }
        | Change::Link { .. }
        | Change::Exchange { .. }
        | Change::Content { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => false,
    }
}

/// Notes what a new journal of a source that had one begins with: what changes from `now` on is looked for at the next
/// start, and so are survivors. `empty`: the source is.
///
/// # Errors
/// The journal's.
pub fn begin_anew(journal: &Journal, now: Timestamp, empty: bool) -> Result<(), JournalError> {
    let first = Mark::first(now, empty).to_string();
    journal.note(&[(MARK, &first), (CHECKPOINT, &first), (CLEAN, "yes")])
}

/// Notes that a run has begun: what it leaves without a word is unclean. A log in which nothing is yet begins with a
/// mark of `now`, the file system's clock before the plan was made: if the first run is killed before it makes one,
/// what changes until the next is found all the same.
///
/// # Errors
/// The journal's.
pub fn begin(journal: &Journal, run: &Run, now: Timestamp) -> Result<(), JournalError> {
    if journal.head() == 0 && journal.meta(CHECKPOINT)?.is_none() {
        let text = Mark::first(now, true).to_string();
        journal.note(&[(MARK, &text), (CHECKPOINT, &text)])?;
    }
    journal.note(&[(RUN, &run.0), (CLEAN, "no")])?;
    journal.sync()
}

/// Notes a mark.
///
/// # Errors
/// The journal's.
pub fn note_mark(journal: &Journal, mark: &Mark) -> Result<(), JournalError> {
    journal.note(&[(MARK, &mark.to_string())])
}

/// Notes a checkpoint, on the disk when this returns. `clean`: it is the last word of this run.
///
/// # Errors
/// The journal's.
pub fn note_checkpoint(journal: &Journal, mark: &Mark, clean: bool) -> Result<(), JournalError> {
    let text = mark.to_string();
    let last = if clean { "yes" } else { "no" };
    journal.note(&[(MARK, &text), (CHECKPOINT, &text), (CLEAN, last)])?;
    fault::point("checkpoint.noted");
    journal.sync()?;
    journal.cover(mark.seq);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_as_it_was_written() {
        let mark = Mark {
            seq: 7,
            time: Timestamp {
                seconds: -5,
                nanoseconds: 999_999_999,
            },
            wall_ms: 1_700_000_000_123,
            up_ms: 42,
            empty: true,
            nodes: vec![1, u64::MAX],
        };
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark.clone()));
        let newer = format!("{mark} more=yes");
        assert_eq!(Mark::parse(&newer), Some(mark));
        assert_eq!(Mark::parse("seq=x"), None);
        assert_eq!(Mark::parse(""), None);
    }

    #[test]
    fn only_what_is_taken_out_of_the_root_tells_that_it_was_emptied() {
        use crate::journal::Recorder;
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let mark = Mark::default();
        let path = |path: &str| crate::change::RelPath::new(path.as_bytes()).unwrap();
        let owner = crate::change::Owner { uid: 0, gid: 0 };
        let harmless = [
            Change::Mkdir {
                path: path("a"),
                mode: 0o755,
                owner,
            },
            Change::Unlink { path: path("a/b") },
        ];
        for change in &harmless {
            journal.record(change).unwrap();
        }
        assert!(!was_emptied(&journal, Some(&mark)).unwrap());
        journal.record(&Change::Rmdir { path: path("a") }).unwrap();
        assert!(was_emptied(&journal, Some(&mark)).unwrap());
    }

    #[test]
    fn earlier_borrows_a_second() {
        let time = Timestamp {
            seconds: 10,
            nanoseconds: 5,
        };
        let expected = Timestamp {
            seconds: 7,
            nanoseconds: 980_000_005,
        };
        assert_eq!(earlier(time, Duration::from_millis(2020)), expected);
    }
}
