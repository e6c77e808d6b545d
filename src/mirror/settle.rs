//! The times of directories on a mirror.
//!
//! A directory's modification time is set by what happens in it, here as there, and no change is
//! recorded for it. So the directories that a replayed change touched are noted, in the journal in the
//! same transaction as the change's completion (a crash forgets none), and get the source's present
//! time once their changes are through: when the queue has drained, and every second while it has not.
//!
//! The danger is that the source is ahead of the log: what it has at a path now may be another directory than
//! the mirror has there, or one where the mirror has a file. So a directory is looked at first, and what
//! was seen is sent only when the mirror has got exactly as far as the log was at the look, and nothing
//! has touched or moved the directory in between. Else it is looked at again. (How far the log is, is
//! asked a moment after the look: what the look saw before it was recorded is recorded by then.)
//!
//! (SETSTAT follows a symbolic link: where a repair is still to come there may be one in a directory's place, to a file that
//! would get the directory's mode and time. There, too, it waits.)
//!
//! A directory whose mode keeps the mirror's user from working in it is opened for that, and gets its mode
//! back here with its time. It is noted before it is opened.

use super::plan::Place;
use super::source::{Source, sftp_time};
use crate::change::{Change, RelPath, Seq};
use crate::sftp::{Attrs, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

/// How long a touched directory waits while changes keep coming.
const EVERY: Duration = Duration::from_secs(1);

/// How long after a look the log is asked how far it is. A record takes some ten microseconds.
const GRACE: Duration = Duration::from_millis(20);

/// How many directories one pass takes: bounds the requests in flight.
const PASS: usize = 512;

/// The directories to be set right.
pub(super) struct Settle {
    /// Each with a number that grows when it is touched again.
    touched: BTreeMap<RelPath, u64>,
    counter: u64,
    /// Not yet in the journal.
    fresh: Vec<RelPath>,
    /// Taken out since the journal was told.
    settled: Vec<RelPath>,
    look: Option<Look>,
    /// The pass under way: what each of its requests is for, and how many replies are missing.
    pass: Option<(Vec<Asked>, usize)>,
    /// Directories that could not be reached in the last pass.
    denied_before: BTreeSet<RelPath>,
    looked_at: Instant,
}

/// What was seen in the source.
struct Look {
    at: Instant,
    /// Directories with their numbers, and what they have to get; none: there is no directory.
    seen: Vec<(RelPath, u64, Option<Attrs>)>,
    /// How far the log was.
    head: Option<Seq>,
}

/// What a request of a pass is for.
struct Asked {
    dir: RelPath,
    /// Its number when it was asked.
    number: u64,
    denied: bool,
}

impl Settle {
    /// Starts with what the journal has noted.
    pub fn new(noted: Vec<RelPath>, now: Instant) -> Settle {
        Settle {
            touched: noted.into_iter().map(|p| (p, 0)).collect(),
            counter: 0,
            fresh: Vec::new(),
            settled: Vec::new(),
            look: None,
            pass: None,
            denied_before: BTreeSet::new(),
            looked_at: now,
        }
    }

    /// Notes the directories that a change has touched.
    pub fn touch_for(&mut self, change: &Change) {
        match change {
            Change::Mkdir { path, .. } => {
                self.touch(path.clone());
                self.touch_parent(path);
            }
            Change::Rename { from, to } => {
                self.moved(&[(from, to)]);
                self.touch(to.clone()); // if it is a directory
                self.touch_parent(from);
                self.touch_parent(to);
            }
            Change::Exchange { a, b } => {
                self.moved(&[(a, b), (b, a)]);
                for path in [a, b] {
                    self.touch(path.clone());
                    self.touch_parent(path);
                }
            }
            Change::Rmdir { path }
            | Change::Unlink { path }
            | Change::Symlink { path, .. }
            | Change::Content { path, .. }
            | Change::Link { path, .. } => self.touch_parent(path),
            // What it changes is noted when it is made.
            Change::Repair { .. } => {}
            // What a look saw of it may be older.
            Change::Attr { path, .. } => {
                if self.touched.contains_key(path) {
                    self.touch(path.clone());
                }
            }
        }
    }

    fn touch_parent(&mut self, path: &RelPath) {
        if let Some(parent) = path.parent() {
            self.touch(parent);
        }
    }

    /// Notes of a moved directory and of what lies below it move along.
    fn moved(&mut self, moves: &[(&RelPath, &RelPath)]) {
        let mut new_places = Vec::new();
        for (from, to) in moves {
            let below = self
                .touched
                .keys()
                .filter(|p| p.is_at_or_below(from))
                .cloned();
            for old in below.collect::<Vec<_>>() {
                new_places.extend(old.moved(from, to));
                self.touched.remove(&old);
                self.settled.push(old);
            }
        }
        for new in new_places {
            self.touch(new);
        }
    }

    /// Notes that a directory has to be set right.
    pub fn touch(&mut self, dir: RelPath) {
        self.counter += 1;
        if self.touched.insert(dir.clone(), self.counter).is_none() {
            self.fresh.push(dir);
        }
    }

    /// Whether nothing is left to be done.
    pub fn is_clear(&self) -> bool {
        self.touched.is_empty()
    }

    /// What the journal has to be told, added and taken out. Told once.
    pub fn news(&mut self) -> (Vec<RelPath>, Vec<RelPath>) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|p| self.touched.contains_key(p));
        let mut settled = std::mem::take(&mut self.settled);
        settled.retain(|p| !self.touched.contains_key(p));
        (fresh, settled)
    }

    /// Whether there is something to tell.
    pub fn has_news(&self) -> bool {
        !self.fresh.is_empty() || !self.settled.is_empty()
    }

    /// Whether one pass reaches all that is to be set.
    pub fn fits_a_pass(&self) -> bool {
        self.touched.len() <= PASS
    }

    /// When there is something to be done next; none while replies are awaited, or the mirror has to get on
    /// first, or nothing is touched. `drained` says that the mirror has every change in the log.
    pub fn due_in(&self, drained: bool, now: Instant) -> Option<Duration> {
        if self.pass.is_some() || self.touched.is_empty() {
            return None;
        }
        match &self.look {
            None if drained => Some(Duration::ZERO),
            None => Some(EVERY.saturating_sub(now.duration_since(self.looked_at))),
            Some(look) if look.head.is_none() => {
                Some(GRACE.saturating_sub(now.duration_since(look.at)))
            }
            Some(_) => None,
        }
    }

    /// Looks at the source. What lies deeper comes first: a directory that is shut again hides what is
    /// in it. Says whether it did: not while an earlier look is in use.
    ///
    /// # Errors
    /// The source can't be looked at.
    pub fn look(&mut self, source: &Source, now: Instant) -> io::Result<bool> {
        if self.look.is_some() || self.pass.is_some() {
            return Ok(false);
        }
        let mut seen = Vec::new();
        for (dir, number) in self.touched.iter().rev().take(PASS) {
            let attrs = source.directory(dir)?.map(|stat| Attrs {
                // The mirror's own root has the mode that its admin gave it.
                mode: Some(stat.st_mode & 0o7777).filter(|_| !dir.is_root()),
                times: Some((sftp_time(stat.st_atime), sftp_time(stat.st_mtime))),
                ..Attrs::default()
            });
            seen.push((dir.clone(), *number, attrs));
        }
        self.looked_at = now;
        self.look = Some(Look {
            at: now,
            seen,
            head: None,
        });
        Ok(true)
    }

    /// The requests of a look, once the mirror is as far as the log was then. `busy` says of a directory
    /// whether a change on it, or above it, was sent and is not behind `cursor`, or is set aside, or is left to a repair
    /// that is still to come. None: not yet.
    pub fn requests(
        &mut self,
        place: &Place,
        busy: impl Fn(&RelPath) -> bool,
        cursor: Seq,
        head: Seq,
        now: Instant,
    ) -> Option<Vec<Request>> {
        let look = self.look.as_mut()?;
        if look.head.is_none() && now.duration_since(look.at) >= GRACE {
            look.head = Some(head);
        }
        if look.head.is_none_or(|head| cursor < head) {
            return None;
        }
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for (dir, number, attrs) in self.look.take()?.seen {
            if self.touched.get(&dir) != Some(&number) || busy(&dir) {
                continue; // it has changed since
            }
            match attrs {
                Some(attrs) => {
                    requests.push(Request::Setstat {
                        path: place.path(&dir),
                        attrs,
                    });
                    asked.push(Asked {
                        dir,
                        number,
                        denied: false,
                    });
                }
                None => self.give_up(&dir),
            }
        }
        self.pass = Some((asked, requests.len())).filter(|_| !requests.is_empty());
        Some(requests)
    }

    /// Takes the reply to request number `index` of the pass. When the pass is over, gives the directories
    /// that could not be reached; they stay touched. (What failed otherwise, or is denied a second time,
    /// is not tried again: a time is not worth a stopped mirror, and the next change sets it.)
    pub fn take(&mut self, index: usize, denied: bool) -> Option<Vec<RelPath>> {
        let (asked, missing) = self.pass.as_mut()?;
        asked[index].denied = denied;
        *missing -= 1;
        if *missing > 0 {
            return None;
        }
        let asked = self.pass.take().map(|p| p.0).unwrap_or_default();
        let before = std::mem::take(&mut self.denied_before);
        let mut shut_out = Vec::new();
        for Asked {
            dir,
            number,
            denied,
        } in asked
        {
            if denied && !before.contains(&dir) {
                shut_out.push(dir);
            } else if self.touched.get(&dir) == Some(&number) {
                self.give_up(&dir);
            }
        }
        self.denied_before = shut_out.iter().cloned().collect();
        Some(shut_out)
    }

    /// A directory need not be set any more.
    pub fn give_up(&mut self, dir: &RelPath) {
        if self.touched.remove(dir).is_some() {
            self.settled.push(dir.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::related::PathIndex;
    use super::*;

    /// How far the log is.
    const HEAD: Seq = 9;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn at_work() -> (tempfile::TempDir, Source, Settle) {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::open_root(dir.path()).unwrap();
        (dir, source, Settle::new(Vec::new(), Instant::now()))
    }

    fn send(settle: &mut Settle, cursor: Seq) -> Option<Vec<String>> {
        let later = Instant::now() + GRACE;
        let requests = settle.requests(&Place::new(b"/m"), |_| false, cursor, HEAD, later)?;
        let paths = requests.iter().map(|r| match r {
            Request::Setstat { path, .. } => String::from_utf8_lossy(path).into_owned(),
            other => panic!("{other:?}"),
        });
        Some(paths.collect())
    }

    /// A look and what comes of it.
    fn pass(settle: &mut Settle, source: &Source) -> Vec<String> {
        assert!(settle.look(source, Instant::now()).unwrap());
        let paths = send(settle, HEAD).unwrap();
        for i in 0..paths.len() {
            settle.take(i, false);
        }
        paths
    }

    #[test]
    fn the_parents_of_what_changed_are_set_and_then_clear() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        settle.touch_for(&Change::Unlink { path: path("d/a") });
        settle.touch_for(&Change::Unlink { path: path("b") });
        assert_eq!(settle.news(), (vec![path("d"), RelPath::root()], vec![]));
        assert_eq!(pass(&mut settle, &source), ["/m/d", "/m"]);
        assert!(settle.is_clear());
        assert_eq!(settle.news(), (vec![], vec![path("d"), RelPath::root()]));
    }

    #[test]
    fn what_was_seen_is_sent_when_the_mirror_is_as_far_as_the_log_was_then() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink { path: path("a") });
        settle.look(&source, Instant::now()).unwrap();
        assert_eq!(send(&mut settle, HEAD - 1), None);
        assert_eq!(send(&mut settle, HEAD), Some(vec!["/m".to_string()]));
    }

    #[test]
    fn what_was_touched_or_moved_since_the_look_is_looked_at_again() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir_all(dir.path().join("old/x")).unwrap();
        std::fs::create_dir_all(dir.path().join("new/x")).unwrap();
        settle.touch_for(&Change::Unlink {
            path: path("old/x/f"),
        });
        settle.look(&source, Instant::now()).unwrap();
        settle.touch_for(&Change::Rename {
            from: path("old"),
            to: path("new"),
        });
        assert_eq!(send(&mut settle, HEAD), Some(vec![]));
        assert_eq!(pass(&mut settle, &source), ["/m/new/x", "/m/new", "/m"]);
        assert!(settle.is_clear());
    }

    #[test]
    fn what_was_set_by_itself_since_the_look_is_looked_at_again() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink { path: path("a") });
        settle.look(&source, Instant::now()).unwrap();
        settle.touch_for(&Change::Attr {
            path: RelPath::root(),
            symlink: false,
            mode: Some(0o500),
            owner: None,
            times: None,
        });
        assert_eq!(send(&mut settle, HEAD), Some(vec![]));
        assert!(!settle.is_clear());
        settle.touch_for(&Change::Attr {
            path: path("file"),
            symlink: false,
            mode: Some(0o400),
            owner: None,
            times: None,
        });
        assert_eq!(pass(&mut settle, &source), ["/m"]);
        assert!(settle.is_clear());
    }

    #[test]
    fn what_is_under_way_above_a_directory_may_move_it_so_it_waits() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir_all(dir.path().join("d/x")).unwrap();
        settle.touch_for(&Change::Unlink {
            path: path("d/x/f"),
        });
        settle.look(&source, Instant::now()).unwrap();
        let mut in_flight = PathIndex::default();
        in_flight.insert(&path("d"));
        let (place, later) = (Place::new(b"/m"), Instant::now() + GRACE);
        let requests = settle.requests(&place, |d| in_flight.reaches_over(d), HEAD, HEAD, later);
        assert_eq!(requests, Some(vec![]));
        assert!(!settle.is_clear());
    }

    #[test]
    fn a_directory_that_is_gone_is_given_up() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink {
            path: path("gone/f"),
        });
        assert_eq!(pass(&mut settle, &source), [""; 0]);
        assert!(settle.is_clear());
    }

    #[test]
    fn what_could_not_be_reached_is_tried_once_more_and_then_given_up() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink { path: path("a") });
        for denied in [vec![RelPath::root()], vec![]] {
            assert!(!settle.is_clear());
            settle.look(&source, Instant::now()).unwrap();
            send(&mut settle, HEAD).unwrap();
            assert_eq!(settle.take(0, true), Some(denied));
        }
        assert!(settle.is_clear());
    }
}
