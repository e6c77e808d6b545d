//! The times of directories on a mirror.
//!
//! A directory's modification time is set by what happens in it, here as there, and no change is
//! recorded for it. So the directories that a replayed change touched are noted, in the journal in the
//! same transaction as the change's completion (a crash forgets none), and get the source's present
//! time once their changes are through: when the queue has drained, and every second while it has not.
//!
//! The danger is a directory that has moved on: the source is ahead of the log, and what it has at that
//! path may be another directory, or nothing. So a note is kept until the mirror has got as far as the log
//! was when the source was looked at: whatever moves the directory until then moves its note along, and it
//! is set again. (How far the log is, is asked a round trip after the look: a change that the look saw
//! before it was recorded is recorded by then.)
//!
//! A directory whose mode kept the mirror's user from writing into it is opened for that, and gets its
//! mode back here. It is noted before it is opened. Which of the noted ones were opened is forgotten by
//! a restart: then all of them get their mode back.

use super::plan::{Place, Rules};
use super::source::{Source, sftp_time};
use crate::change::{Change, RelPath, Seq};
use crate::sftp::{Attrs, Request};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

/// How long a touched directory waits while changes keep coming.
const EVERY: Duration = Duration::from_secs(1);

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
    /// Opened for writing, or maybe so; with the mode to give back where the source does not know better.
    opened: HashMap<RelPath, Option<u32>>,
    /// Set right, if nothing touches them up to this place in the log; with the number that they had.
    set: BTreeMap<RelPath, (u64, Seq)>,
    /// The pass under way: what each of its requests is for, and how many replies are missing.
    pass: Option<(Vec<Asked>, usize)>,
    /// Directories that could not be reached in the last pass.
    denied_before: BTreeSet<RelPath>,
    last: Instant,
}

/// What a request of a pass is for.
struct Asked {
    dir: RelPath,
    /// Its number when it was asked; none: only its mode was given back.
    number: Option<u64>,
    denied: bool,
}

impl Settle {
    /// Starts with what the journal has noted.
    pub fn new(noted: Vec<RelPath>, now: Instant) -> Settle {
        Settle {
            opened: noted.iter().map(|p| (p.clone(), None)).collect(),
            touched: noted.into_iter().map(|p| (p, 0)).collect(),
            counter: 0,
            fresh: Vec::new(),
            settled: Vec::new(),
            set: BTreeMap::new(),
            pass: None,
            denied_before: BTreeSet::new(),
            last: now,
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
            Change::Attr { .. } => {}
        }
    }

    fn touch_parent(&mut self, path: &RelPath) {
        if let Some(parent) = path.parent() {
            self.touch(parent);
        }
    }

    fn touch(&mut self, dir: RelPath) {
        self.counter += 1;
        if self.touched.insert(dir.clone(), self.counter).is_none() {
            self.fresh.push(dir);
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
                let rest = &old.as_bytes()[from.as_bytes().len()..];
                let new = RelPath::new(&[to.as_bytes(), rest].concat());
                new_places.extend(new.map(|new| (new, self.opened.remove(&old))));
                self.touched.remove(&old);
                self.settled.push(old);
            }
        }
        for (new, opened) in new_places {
            if let Some(mode) = opened {
                self.opened.insert(new.clone(), mode);
            }
            self.touch(new);
        }
    }

    /// Notes that a directory is opened; its mode there was `mode`.
    pub fn open(&mut self, dir: &RelPath, mode: u32) {
        self.opened.entry(dir.clone()).or_insert(Some(mode));
        self.touch(dir.clone());
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
        self.waiting().nth(PASS).is_none()
    }

    /// The directories that are to be set, what lies deeper first: one that is shut again hides what is
    /// in it.
    fn waiting(&self) -> impl Iterator<Item = (&RelPath, u64)> {
        let is_set = |dir, number| self.set.get(dir).is_some_and(|s| s.0 == number);
        let all = self
            .touched
            .iter()
            .rev()
            .map(|(dir, number)| (dir, *number));
        all.filter(move |(dir, number)| !is_set(*dir, *number))
    }

    /// When the next pass is due; none while one is under way, or nothing is touched.
    pub fn due_in(&self, drained: bool, now: Instant) -> Option<Duration> {
        if self.pass.is_some() || self.waiting().next().is_none() {
            return None;
        }
        if drained {
            return Some(Duration::ZERO);
        }
        Some(EVERY.saturating_sub(now.duration_since(self.last)))
    }

    /// Starts a pass and gives its requests. `drained` says that the mirror has every change in the log.
    ///
    /// # Errors
    /// The source can't be looked at.
    pub fn start(
        &mut self,
        source: &Source,
        place: &Place,
        rules: Rules,
        drained: bool,
        now: Instant,
    ) -> io::Result<Vec<Request>> {
        self.last = now;
        let mut requests = Vec::new();
        let mut asked = Vec::new();
        let waiting = self.waiting().take(PASS);
        let touched: Vec<(RelPath, u64)> = waiting.map(|(p, n)| (p.clone(), n)).collect();
        for (dir, number) in touched {
            let opened = self.opened.get(&dir).copied();
            match source.directory(&dir)? {
                Some(stat) => {
                    let times = Some((sftp_time(stat.st_atime), sftp_time(stat.st_mtime)));
                    // The mode only where it may be wrong: while changes are still to come, the
                    // present one may not be this one's turn yet.
                    let mode = (opened.is_some() || drained) && !dir.is_root();
                    let mode = mode.then_some(stat.st_mode & 0o7777);
                    let attrs = Attrs {
                        mode,
                        times,
                        ..Attrs::default()
                    };
                    let path = place.path(&dir);
                    // Where the log is not through, a symlink may stand there for the moment.
                    requests.push(match mode {
                        Some(_) => Request::Setstat { path, attrs },
                        None if rules.lsetstat => Request::Lsetstat { path, attrs },
                        None if drained => Request::Setstat { path, attrs },
                        None => continue,
                    });
                    let number = Some(number);
                    asked.push(Asked {
                        dir,
                        number,
                        denied: false,
                    });
                }
                None => {
                    if let Some(mode) = opened.flatten() {
                        let attrs = Attrs {
                            mode: Some(mode),
                            ..Attrs::default()
                        };
                        requests.push(Request::Setstat {
                            path: place.path(&dir),
                            attrs,
                        });
                        self.opened.remove(&dir);
                        let dir = dir.clone();
                        asked.push(Asked {
                            dir,
                            number: None,
                            denied: false,
                        });
                    }
                    if drained {
                        self.touched.remove(&dir);
                        self.settled.push(dir);
                    }
                }
            }
        }
        self.pass = Some((asked, requests.len())).filter(|_| !requests.is_empty());
        Ok(requests)
    }

    /// Takes the reply to request number `index` of the pass. When the pass is over, gives the directories
    /// that could not be reached; they stay touched. (What failed otherwise, or is denied a second time,
    /// is not tried again: a time is not worth a stopped mirror, and the next change sets it.)
    ///
    /// `head` is how far the log is.
    pub fn take(&mut self, index: usize, denied: bool, head: Seq) -> Option<Vec<RelPath>> {
        let (asked, missing) = self.pass.as_mut()?;
        asked[index].denied = denied;
        *missing -= 1;
        if *missing > 0 {
            return None;
        }
        let asked = self.pass.take().map(|p| p.0).unwrap_or_default();
        let before = std::mem::take(&mut self.denied_before);
        let mut denied = Vec::new();
        for Asked {
            dir,
            number,
            denied: is_denied,
        } in asked
        {
            if is_denied && number.is_some() && !before.contains(&dir) {
                denied.push(dir);
                continue;
            }
            if let Some(number) = number {
                self.set.insert(dir, (number, head));
            }
        }
        self.denied_before = denied.iter().cloned().collect();
        Some(denied)
    }

    /// The mirror has every change up to `cursor`, and what they touch is noted: directories that were
    /// set right for that are done.
    pub fn reached(&mut self, cursor: Seq) {
        for (dir, (number, head)) in std::mem::take(&mut self.set) {
            if head > cursor {
                self.set.insert(dir, (number, head));
            } else if self.touched.get(&dir) == Some(&number) {
                self.opened.remove(&dir);
                self.give_up(&dir);
            }
        }
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
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    /// How far the log is.
    const HEAD: Seq = 9;

    const RULES: Rules = Rules {
        owner: false,
        lsetstat: true,
    };

    fn at_work() -> (tempfile::TempDir, Source, Settle) {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::open_root(dir.path()).unwrap();
        (dir, source, Settle::new(Vec::new(), Instant::now()))
    }

    fn pass(settle: &mut Settle, source: &Source, drained: bool) -> Vec<String> {
        let requests = settle
            .start(source, &Place::new(b"/m"), RULES, drained, Instant::now())
            .unwrap();
        for i in 0..requests.len() {
            settle.take(i, false, HEAD);
        }
        if drained {
            settle.reached(HEAD);
        }
        requests
            .iter()
            .map(|r| match r {
                Request::Setstat { path, .. } | Request::Lsetstat { path, .. } => {
                    String::from_utf8_lossy(path).into_owned()
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_parents_of_what_changed_are_set_and_then_clear() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        settle.touch_for(&Change::Unlink { path: path("d/a") });
        settle.touch_for(&Change::Unlink { path: path("b") });
        assert_eq!(settle.news(), (vec![path("d"), RelPath::root()], vec![]));
        assert_eq!(pass(&mut settle, &source, true), ["/m/d", "/m"]);
        assert!(settle.is_clear());
        assert_eq!(settle.news(), (vec![], vec![RelPath::root(), path("d")]));
    }

    #[test]
    fn a_directory_that_was_moved_meanwhile_waits_for_its_rename() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir_all(dir.path().join("new/x")).unwrap();
        settle.touch_for(&Change::Unlink {
            path: path("old/x/f"),
        });
        assert_eq!(pass(&mut settle, &source, false), [""; 0]);
        assert!(!settle.is_clear());
        settle.touch_for(&Change::Rename {
            from: path("old"),
            to: path("new"),
        });
        assert_eq!(
            pass(&mut settle, &source, true),
            ["/m/new/x", "/m/new", "/m"]
        );
    }

    #[test]
    fn a_directory_that_is_gone_is_given_up_only_at_the_end_of_the_log() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink {
            path: path("gone/f"),
        });
        pass(&mut settle, &source, false);
        assert!(!settle.is_clear());
        pass(&mut settle, &source, true);
        assert!(settle.is_clear());
    }

    #[test]
    fn one_that_is_touched_during_its_pass_is_set_again() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink { path: path("a") });
        let place = Place::new(b"/m");
        assert_eq!(
            settle
                .start(&source, &place, RULES, true, Instant::now())
                .unwrap()
                .len(),
            1
        );
        settle.touch_for(&Change::Unlink { path: path("b") });
        assert_eq!(settle.take(0, false, HEAD), Some(vec![]));
        settle.reached(HEAD);
        assert!(!settle.is_clear());
        assert_eq!(pass(&mut settle, &source, true), ["/m"]);
        assert!(settle.is_clear());
    }

    #[test]
    fn what_could_not_be_reached_is_tried_once_more_and_then_given_up() {
        let (_dir, source, mut settle) = at_work();
        settle.touch_for(&Change::Unlink { path: path("a") });
        for denied in [vec![RelPath::root()], vec![]] {
            assert!(!settle.is_clear());
            let place = Place::new(b"/m");
            settle
                .start(&source, &place, RULES, true, Instant::now())
                .unwrap();
            assert_eq!(settle.take(0, true, HEAD), Some(denied));
        }
        settle.reached(HEAD);
        assert!(settle.is_clear());
    }

    #[test]
    fn a_directory_that_another_one_has_replaced_meanwhile_waits_for_its_rename() {
        let (dir, source, mut settle) = at_work();
        std::fs::create_dir_all(dir.path().join("old/x")).unwrap();
        std::fs::create_dir_all(dir.path().join("new/x")).unwrap();
        settle.touch_for(&Change::Unlink {
            path: path("old/x/f"),
        });
        assert_eq!(pass(&mut settle, &source, false), ["/m/old/x"]);
        settle.reached(HEAD - 1);
        assert_eq!(pass(&mut settle, &source, false), [""; 0]);
        settle.touch_for(&Change::Rename {
            from: path("old"),
            to: path("new"),
        });
        settle.reached(HEAD);
        assert_eq!(
            pass(&mut settle, &source, true),
            ["/m/new/x", "/m/new", "/m"]
        );
        assert!(settle.is_clear());
    }

    #[test]
    fn after_a_restart_directories_that_may_be_open_get_their_mode_back() {
        let (dir, source, mut settle) = at_work();
        settle.open(&path("d"), 0o555);
        let mut again = Settle::new(settle.news().0, Instant::now());
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let (place, now) = (Place::new(b"/m"), Instant::now());
        let requests = again.start(&source, &place, RULES, false, now).unwrap();
        let [Request::Setstat { attrs, .. }] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!(attrs.mode, Some(0o755));
    }
}
