//! Paths on a mirror that are not as the log expects them, since somebody changed something there: they are
//! made like the source (rules R3 and R4).
//!
//! A repair sees the future: it copies the present source, not the log's past. `repair a; rename a b` would put
//! the new a's bytes at b. So a path that has to be repaired is a *scar*: what is at it, and below, may be
//! anything, and is left alone. A row that has to do with a scar is not replayed; its paths become scars as
//! well. (A move of a directory above is replayed, and moves the scars in it.) When the mirror is as far as
//! the log was when that began, the scars are repaired. Rows up to where the log was before the repair read the
//! source are covered by it. One behind that, which was recorded while it was at work, makes its scar a fresh
//! one. When the mirror has passed all these, the scar is healed.
//!
//! What can be cut between two lines: the scars are in the journal, noted in the transaction that moves the
//! cursor over the rows that they stand for. A repair that was cut is made again.
//!
//! A repair that the mirror refuses is tried again like a parked change, and shown like one.

use super::held::MOST;
use super::related::PathIndex;
use crate::change::{Change, Depth, RelPath, Seq};
use crate::journal::{Mend, now_ms};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A repair that was refused waits this many times longer at most than the first time.
const LONGEST: u32 = 12;

/// One path.
struct Scar {
    mend: Mend,
    /// It was repaired: where the log was before, and after.
    repaired: Option<(Seq, Seq)>,
}

/// The scars of one mirror.
pub(super) struct Scars {
    all: BTreeMap<RelPath, Scar>,
    paths: PathIndex,
    /// What the journal does not know yet.
    news: BTreeSet<RelPath>,
    /// The first row that was not replayed for their sake.
    since: Option<Seq>,
    /// How far the log was when they were found due.
    due_at: Option<Seq>,
    pause: Duration,
}

impl Scars {
    /// Starts with what the journal has noted. `pause` is how long a refused repair waits for its next try.
    pub fn new(noted: Vec<Mend>, pause: Duration, at_once: bool) -> Scars {
        let mut scars = Scars {
            all: BTreeMap::new(),
            paths: PathIndex::default(),
            news: BTreeSet::new(),
            since: None,
            due_at: None,
            pause,
        };
        for mend in noted {
            scars.since = Some(1); // it is not known any more
            scars.paths.insert(&mend.path);
            let repaired = None;
            scars.all.insert(mend.path.clone(), Scar { mend, repaired });
        }
        if at_once {
            scars.try_again();
        }
        scars
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether there are more than can be kept.
    pub fn are_too_many(&self) -> bool {
        self.all.len() > MOST
    }

    /// The first row that the mirror may lack for their sake.
    pub fn since(&self) -> Option<Seq> {
        self.since.filter(|_| !self.is_empty())
    }

    /// Makes a path a scar, for row `seq`.
    pub fn add(&mut self, path: &RelPath, deep: bool, seq: Seq) {
        if self.all.is_empty() {
            self.since = Some(seq);
        }
        self.news.insert(path.clone());
        self.due_at = None;
        if let Some(scar) = self.all.get_mut(path) {
            scar.mend.deep |= deep;
            scar.repaired = None;
            return;
        }
        self.paths.insert(path);
        let mend = Mend {
            path: path.clone(),
            deep,
            error: None,
            attempts: 0,
            next_try: None,
        };
        self.all.insert(
            path.clone(),
            Scar {
                mend,
                repaired: None,
            },
        );
    }

    fn remove(&mut self, path: &RelPath) -> Option<Scar> {
        let scar = self.all.remove(path)?;
        self.paths.remove(path);
        self.news.insert(path.clone());
        Some(scar)
    }

    /// Whether a row has to do with a scar, and so is not to be replayed. If it has, its paths are scars, or
    /// covered by a repair.
    pub fn take_up(&mut self, change: &Change, seq: Seq) -> bool {
        if let Change::Repair { path, scope } = change {
            self.add(path, scope.depth > Depth::Entry, seq);
            return true;
        }
        if self.all.is_empty() {
            return false;
        }
        let removes = matches!(change, Change::Rmdir { .. } | Change::Unlink { .. });
        let concerned = |path: &RelPath| {
            self.paths.reaches_over(path) || (removes && self.paths.reaches_into(path))
        };
        if !change.paths().any(concerned) {
            return false;
        }
        let deep = change.is_pivot();
        for path in change.paths().cloned().collect::<Vec<_>>() {
            if !self.is_covered(&path, seq) {
                self.add(&path, deep, seq);
                // What is above it was repaired before this was recorded.
                for above in path
                    .ancestors()
                    .filter_map(|above| RelPath::new(above).ok())
                {
                    if let Some(scar) = self.all.get_mut(&above) {
                        scar.repaired = None;
                    }
                }
            }
        }
        true
    }

    /// Whether a repair that was made read the source after row `seq`.
    fn is_covered(&self, path: &RelPath, seq: Seq) -> bool {
        let covers = |scar: &Scar| scar.repaired.is_some_and(|(before, _)| seq <= before);
        // One above covers it only if it went into it.
        self.all.get(path).is_some_and(covers)
            || path.ancestors().any(|above| {
                let scar = RelPath::new(above)
                    .ok()
                    .and_then(|above| self.all.get(&above));
                scar.is_some_and(|scar| covers(scar) && scar.mend.deep)
            })
    }

    /// A row was replayed: scars move along with what is above them.
    pub fn follow(&mut self, change: &Change, seq: Seq) {
        if self.all.is_empty() {
            return;
        }
        match change {
            Change::Rename { from, to } => {
                self.take_below(to);
                let moved = self.take_below(from);
                self.put(moved, from, to, seq);
            }
            Change::Exchange { a, b } => {
                let (from_a, from_b) = (self.take_below(a), self.take_below(b));
                self.put(from_a, a, b, seq);
                self.put(from_b, b, a, seq);
            }
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => {}
        }
    }

    fn take_below(&mut self, path: &RelPath) -> Vec<(RelPath, bool)> {
        let below = |p: &&RelPath| p.is_at_or_below(path) && *p != path;
        let all: Vec<RelPath> = self.all.keys().filter(below).cloned().collect();
        let taken = all.into_iter().filter_map(|p| {
            let scar = self.remove(&p)?;
            Some((p, scar.mend.deep))
        });
        taken.collect()
    }

    fn put(&mut self, moved: Vec<(RelPath, bool)>, from: &RelPath, to: &RelPath, seq: Seq) {
        for (path, deep) in moved {
            let rest = &path.as_bytes()[from.as_bytes().len()..];
            // Two good paths joined at a part's end make a good path.
            if let Ok(new) = RelPath::new(&[to.as_bytes(), rest].concat()) {
                let since = self.since;
                self.add(&new, deep, seq);
                self.since = since.or(self.since);
            }
        }
    }

    /// Whether some are to be repaired now: the mirror is at `cursor`, the log at `head`.
    pub fn are_due(&mut self, cursor: Seq, head: Seq) -> bool {
        if self.all.is_empty() || self.due().is_empty() {
            return false;
        }
        cursor >= *self.due_at.get_or_insert(head)
    }

    /// Those that are to be repaired, what lies deeper first.
    pub fn due(&self) -> Vec<(RelPath, bool)> {
        let now = now_ms();
        let due =
            |scar: &Scar| scar.repaired.is_none() && scar.mend.next_try.is_none_or(|at| at <= now);
        let all = self.all.iter().rev().filter(|(_, scar)| due(scar));
        all.map(|(path, scar)| (path.clone(), scar.mend.deep))
            .collect()
    }

    /// One was repaired, from where the log was `before` to where it was `after`.
    pub fn repaired(&mut self, path: &RelPath, before: Seq, after: Seq) {
        self.due_at = None;
        if let Some(scar) = self.all.get_mut(path) {
            scar.repaired = Some((before, after));
        }
    }

    /// The mirror refused to have one repaired. Says how often it has by now.
    pub fn refused(&mut self, path: &RelPath, error: String) -> u32 {
        self.due_at = None;
        let Some(scar) = self.all.get_mut(path) else {
            return 0;
        };
        let mend = &mut scar.mend;
        mend.attempts += 1;
        let times = 1u32.checked_shl(mend.attempts - 1).unwrap_or(LONGEST);
        let pause = self.pause.saturating_mul(times.min(LONGEST));
        let pause = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        mend.next_try = Some(now_ms().saturating_add(pause));
        mend.error = Some(error);
        let attempts = mend.attempts;
        self.news.insert(path.clone());
        attempts
    }

    /// One waits for something else for now.
    pub fn postpone(&mut self, path: &RelPath) {
        if let Some(scar) = self.all.get_mut(path) {
            scar.mend.next_try = Some(now_ms() + 1000);
        }
    }

    /// Has all of them tried again at once.
    pub fn try_again(&mut self) {
        self.all
            .values_mut()
            .for_each(|scar| scar.mend.next_try = None);
    }

    /// The mirror is at `cursor`: repaired ones that no row can concern any more are healed.
    pub fn heal(&mut self, cursor: Seq) {
        let healed = |scar: &Scar| scar.repaired.is_some_and(|(_, after)| cursor >= after);
        let all: Vec<RelPath> = self
            .all
            .iter()
            .filter(|(_, scar)| healed(scar))
            .map(|(path, _)| path.clone())
            .collect();
        all.iter().for_each(|path| drop(self.remove(path)));
    }

    /// Whether the journal has to be told something.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What the journal has to be told: those that are there, and those that are healed. Told once.
    pub fn news(&mut self) -> (Vec<Mend>, Vec<RelPath>) {
        let (mut there, mut healed) = (Vec::new(), Vec::new());
        for path in std::mem::take(&mut self.news) {
            match self.all.get(&path) {
                Some(scar) => there.push(scar.mend.clone()),
                None => healed.push(path),
            }
        }
        (there, healed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn rename(a: &str, b: &str) -> Change {
        Change::Rename {
            from: path(a),
            to: path(b),
        }
    }

    fn unlink(s: &str) -> Change {
        Change::Unlink { path: path(s) }
    }

    fn scarred(s: &str) -> Scars {
        let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
        scars.add(&path(s), false, 5);
        scars
    }

    fn paths(scars: &Scars) -> Vec<String> {
        scars.all.keys().map(RelPath::to_string).collect()
    }

    #[test]
    fn what_has_to_do_with_a_scar_becomes_one() {
        let mut scars = scarred("d");
        assert!(!scars.take_up(&unlink("e"), 6));
        assert!(scars.take_up(&rename("d/x", "y"), 6) && scars.take_up(&unlink("y"), 7));
        assert_eq!(paths(&scars), ["d", "d/x", "y"]);
        assert_eq!(scars.since(), Some(5));
    }

    #[test]
    fn a_repair_that_is_recorded_makes_its_path_one() {
        let mut scars = Scars::new(Vec::new(), Duration::from_secs(1), false);
        let (path, scope) = (path("d"), crate::change::Scope::TREE);
        assert!(scars.take_up(&Change::Repair { path, scope }, 5));
        assert!(scars.take_up(&unlink("d/x"), 6));
        assert_eq!(paths(&scars), ["d", "d/x"]);
    }

    #[test]
    fn a_move_above_moves_it_and_is_replayed() {
        let mut scars = scarred("d/x");
        assert!(!scars.take_up(&rename("d", "e"), 6));
        scars.follow(&rename("d", "e"), 6);
        assert_eq!(paths(&scars), ["e/x"]);
        assert!(!scars.take_up(&unlink("d/x"), 7));
        // But a directory is not removed while it may hold what is to go.
        assert!(scars.take_up(&Change::Rmdir { path: path("e") }, 8));
    }

    #[test]
    fn it_is_healed_when_the_mirror_has_passed_the_repair_and_nothing_came_meanwhile() {
        let mut scars = scarred("f");
        assert!(!scars.are_due(8, 9) && scars.are_due(9, 12));
        scars.repaired(&path("f"), 10, 12);
        assert!(scars.take_up(&unlink("f"), 10), "covered");
        scars.heal(11);
        assert!(!scars.is_empty());
        assert!(
            scars.take_up(&unlink("f"), 11),
            "recorded while it was at work"
        );
        scars.heal(12);
        assert!(!scars.is_empty() && !scars.due().is_empty());
        scars.repaired(&path("f"), 12, 12);
        scars.heal(12);
        assert!(scars.is_empty());
        assert_eq!(scars.news(), (vec![], vec![path("f")]));
    }
}
