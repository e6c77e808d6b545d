//! Paths on a mirror that are to be made like the source (rules R3, R4, R7): since somebody changed something there,
//! since the log has not seen what happened here, since the mirror is new, or since it was asked for.
//!
//! A repair sees the future: it copies the present source, not the log's past. `repair a; rename a b` would put
//! the new a's bytes at b. So a path that has to be repaired is a *scar*: what is at it, and below, may be
//! anything, and is left alone. A row that has to do with a scar is not replayed; its paths become scars as
//! well. (A move of a directory above is replayed, and moves the scars in it.) When the mirror is as far as
//! the log was when that began, the scars are repaired. Rows up to where the log was `before` the repair read the
//! source are covered by it. One behind that, which was recorded while it was at work, up to where the log was
//! `after` it, makes a fresh scar. When the mirror has passed all these, the scar is healed.
//!
//! Where a row that moves a directory is not replayed, what was in it stays at its old path there, beside what only the
//! mirror has in it. The log tells no names. So the scar notes whither it was *moved*: what is there under the same
//! name, in the source, is what goes; all else is kept. A row that removes something below the new path means
//! what lies below the old one, too, as long as the scar is there.
//!
//! A *tree* is repaired in slices, in the order of [`walk_order`], and the log goes on in between. So a tree
//! has three parts: what was walked in earlier slices and is an ordinary part of the mirror again; what the
//! last slice has walked, up to `walked`; and what lies ahead. What lies ahead may be anything, unless the tree was
//! as the log says before ([`Trust::Log`]: an administrator's `sync`): then rows are replayed there as ever. But
//! what a rename moves from there to where the walk has been is a scar, else nobody would look at it.
//!
//! That two files have the same size and time proves nothing if one was written twice within a second, and sent in
//! between. So a row that brings bytes and is not replayed has its path sent again, whatever it looks like, unless
//! a repair that compares bytes has covered it. (`Trust::Blank`: nothing older was ever sent to what lies ahead.)
//!
//! What can be cut between two lines: the scars are in the journal, noted in the transaction that moves the
//! cursor over the rows that they stand for. A repair that was cut is made again, from the end of the last slice.
//! What was repaired and is not healed keeps the number up to which rows are not to be replayed on it.
//!
//! Memory: [`FULL`] scars wait at most; where there would be more they are repaired at once, though the mirror is
//! not as far as the log (which costs more where directories have moved since, and ends the same). Of those
//! that are repaired and not healed [`KEPT`] are known by name; of more only the directories are, up to the
//! root. What a row does there is repaired, too: that is never wrong.
//!
//! A repair that the mirror refuses is tried again like a parked change, and shown like one.

mod region;

use super::held::MOST;
use super::related::PathIndex;
use crate::change::{Change, Depth, RelPath, Scope, Seq};
use crate::fault;
use crate::journal::{Mend, Reached, Trust, Walked, now_ms};
use region::{Region, Scar, State};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A repair that was refused waits this many times longer at most than the first time.
const LONGEST: u32 = 12;

/// So many wait for their repair; more do not come before that.
pub(super) const FULL: usize = 4096;

/// So many that are repaired, and not healed, are known by name.
const KEPT: usize = 4096;

const DEPTHS: [Depth; 3] = [Depth::Entry, Depth::Names, Depth::Tree];

/// What a scar is known by.
pub(super) type Key = (RelPath, Depth);

/// The scars of one mirror.
pub(super) struct Scars {
    all: BTreeMap<Key, Scar>,
    /// Those that are to be repaired.
    open: BTreeSet<Key>,
    paths: PathIndex,
    /// How many may be anything there.
    blind: usize,
    /// How many have been moved.
    moved: usize,
    /// What the journal does not know yet.
    news: BTreeSet<Key>,
    /// The first row that was not replayed for their sake.
    since: Option<Seq>,
    /// How far the log was when they were found due.
    due_at: Option<Seq>,
    pause: Duration,
}

/// Whether a change takes away what is at one of its paths.
fn removes(change: &Change, path: &RelPath) -> bool {
    match change {
        Change::Rmdir { .. } | Change::Unlink { .. } | Change::Exchange { .. } => true,
        Change::Rename { from, .. } => from == path,
        Change::Mkdir { .. }
        | Change::Symlink { .. }
        | Change::Link { .. }
        | Change::Content { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => false,
    }
}

/// Whether the bytes at its paths may be others afterwards.
fn brings_bytes(change: &Change) -> bool {
    change.is_pivot() || matches!(change, Change::Content { .. })
}

/// What has to be repaired at one of a row's paths where the row is not replayed. (The log says what is removed by the
/// names of all of it: so with a directory that is moved nothing goes that only the mirror has.)
pub(super) fn mend_for(change: &Change, path: RelPath) -> Mend {
    let scope = if change.is_pivot() {
        Scope::KEEPING
    } else {
        Scope::ENTRY
    };
    let moved = match change {
        Change::Rename { from, to } => Some(to).filter(|_| *from == path),
        Change::Exchange { a, b } => Some(if path == *a { b } else { a }),
        Change::Mkdir { .. }
        | Change::Rmdir { .. }
        | Change::Unlink { .. }
        | Change::Symlink { .. }
        | Change::Link { .. }
        | Change::Content { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => None,
    };
    Mend {
        moved: moved.cloned(),
        ..Mend::new(path, scope)
    }
}

impl Scars {
    /// Starts with what the journal has noted. `pause` is how long a refused repair waits for its next try.
    pub fn new(noted: Vec<Mend>, pause: Duration, at_once: bool) -> Scars {
        let mut scars = Scars {
            all: BTreeMap::new(),
            open: BTreeSet::new(),
            paths: PathIndex::default(),
            blind: 0,
            moved: 0,
            news: BTreeSet::new(),
            since: None,
            due_at: None,
            pause,
        };
        for mend in noted {
            scars.since = Some(0); // it is not known any more
            scars.insert(Scar::new(mend));
        }
        scars.keep_few();
        if at_once {
            scars.try_again();
        }
        scars
    }

    fn insert(&mut self, scar: Scar) {
        let key = (scar.mend.path.clone(), scar.mend.scope.depth);
        self.paths.insert(&key.0);
        self.blind += usize::from(scar.mend.trust != Trust::Log);
        self.moved += usize::from(scar.mend.moved.is_some());
        if scar.is_open() {
            self.open.insert(key.clone());
        }
        self.all.insert(key, scar);
    }

    fn remove(&mut self, key: &Key) -> Option<Scar> {
        let scar = self.all.remove(key)?;
        self.paths.remove(&key.0);
        self.open.remove(key);
        self.blind -= usize::from(scar.mend.trust != Trust::Log);
        self.moved -= usize::from(scar.mend.moved.is_some());
        self.news.insert(key.clone());
        Some(scar)
    }

    fn set_state(&mut self, key: &Key, state: State) {
        let Some(scar) = self.all.get_mut(key) else {
            return;
        };
        (scar.mend.walked, scar.mend.seen) = match &state {
            State::Open => (Walked::Nothing, None),
            State::Part { upto, after, .. } => (Walked::Upto(upto.clone()), Some(*after)),
            State::Done { after, .. } => (Walked::All, Some(*after)),
        };
        scar.state = state;
        if scar.is_open() {
            self.open.insert(key.clone());
        } else {
            self.open.remove(key);
        }
        self.news.insert(key.clone());
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether some are to be repaired, now or later.
    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether more of them are refused than can be kept.
    pub fn are_too_many(&self) -> bool {
        self.open.len() > MOST
    }

    /// Whether they have to be repaired before there can be more.
    pub fn are_full(&self) -> bool {
        self.open.len() >= FULL && self.due().nth(FULL - 1).is_some()
    }

    /// The first row that the mirror may lack for their sake.
    pub fn since(&self) -> Option<Seq> {
        self.since.filter(|_| self.blind > 0)
    }

    /// Makes a path a scar, for row `seq`.
    pub fn add(&mut self, mend: Mend, seq: Seq) {
        if self.blind == 0 && mend.trust != Trust::Log {
            self.since = Some(seq);
        }
        self.due_at = None;
        let depth = self.wider(&mend).unwrap_or(mend.scope.depth);
        let key = (mend.path.clone(), depth);
        self.news.insert(key.clone());
        let Some(mut scar) = self.remove(&key) else {
            self.insert(Scar::new(mend));
            return;
        };
        let old = scar.mend.scope;
        // The same sync once more is that sync.
        let goes_on = mend.trust == Trust::Log
            && matches!(scar.state, State::Part { .. })
            && old.and(mend.scope) == old;
        if !goes_on {
            scar.mend.scope = old.and(mend.scope);
            scar.mend.resend |= mend.resend;
            // What is there is what was there first.
            let first = scar.mend.moved.take().filter(|_| scar.is_open());
            scar.mend.moved = first.or(mend.moved);
            scar.mend.trust = if scar.is_open() {
                scar.mend.trust.min(mend.trust)
            } else {
                mend.trust
            };
            (scar.mend.walked, scar.mend.seen) = (Walked::Nothing, None);
            scar.state = State::Open;
        }
        scar.mend.next_try = None;
        self.insert(scar);
    }

    /// How deep one is that is not begun at the same path, and that does what this one is to do.
    fn wider(&self, mend: &Mend) -> Option<Depth> {
        let deeper = DEPTHS.into_iter().filter(|depth| *depth > mend.scope.depth);
        deeper.into_iter().find(|depth| {
            let scar = self.all.get(&(mend.path.clone(), *depth));
            scar.is_some_and(|scar| {
                matches!(scar.state, State::Open)
                    && scar.mend.trust == Trust::Nothing
                    && scar.mend.scope.and(mend.scope) == scar.mend.scope
            })
        })
    }

    /// Those at a path and above it.
    fn over<'a>(&'a self, path: &RelPath) -> impl Iterator<Item = &'a Scar> {
        let above = path.ancestors().filter_map(|a| RelPath::new(a).ok());
        let mut paths: Vec<RelPath> = if self.paths.reaches_over(path) {
            above.collect()
        } else {
            Vec::new()
        };
        paths.push(path.clone());
        let keys = paths
            .into_iter()
            .flat_map(|path| DEPTHS.map(|depth| (path.clone(), depth)));
        keys.filter_map(|key| self.all.get(&key))
    }

    /// Whether there may be anything at a path on the mirror: a repair is still to come there.
    pub fn leaves_unknown(&self, path: &RelPath) -> bool {
        let ahead = |scar: &Scar| matches!(scar.region(path, false, Seq::MAX), Region::Ahead);
        self.over(path)
            .any(|scar| scar.mend.trust != Trust::Log && ahead(scar))
    }

    /// Whether it is about all that is below its paths. A directory that was made is empty: what a scar has for it may
    /// be another one, which was moved away unseen, with all that was in it. (In a sync only the mirror may have that.)
    fn is_about_all(&self, change: &Change) -> bool {
        let unseen = |path| self.over(path).any(|scar| scar.mend.trust != Trust::Log);
        match change {
            Change::Mkdir { path, .. } => unseen(path),
            Change::Rmdir { .. } => true,
            Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => change.is_pivot(),
        }
    }

    /// Whether a row has to do with a scar, and so is not to be replayed. If it has, its paths are scars, or
    /// covered by a repair.
    pub fn take_up(&mut self, change: &Change, seq: Seq) -> bool {
        if let Change::Repair { path, scope } = change {
            self.add(Mend::new(path.clone(), *scope), seq);
            return true;
        }
        if self.all.is_empty() || !fault::keeps("R4") {
            return false;
        }
        let whole = self.is_about_all(change);
        let goes = matches!(change, Change::Rmdir { .. } | Change::Unlink { .. });
        let held = |path: &RelPath| {
            let holds = |scar: &Scar| match scar.region(path, whole, seq) {
                Region::Ahead => scar.mend.trust != Trust::Log,
                Region::Seen(_) => true,
                Region::Past => false,
            };
            self.over(path).any(holds) || (goes && self.paths.reaches_into(path))
        };
        if !change.paths().any(held) {
            return false;
        }
        self.go_along(change, seq);
        for path in change.paths().cloned().collect::<Vec<_>>() {
            if !self.is_covered(change, &path, seq) {
                let resend = brings_bytes(change);
                let mend = match change {
                    Change::Mkdir { .. } if whole => Mend::new(path, Scope::TREE),
                    _ => mend_for(change, path),
                };
                self.add(Mend { resend, ..mend }, seq);
            }
        }
        true
    }

    /// Whether a repair that was made read the source after row `seq`, or one that is to come will.
    fn is_covered(&self, change: &Change, path: &RelPath, seq: Seq) -> bool {
        let (whole, brings) = (self.is_about_all(change), brings_bytes(change));
        self.over(path).any(|scar| {
            let mend = &scar.mend;
            let itself = mend.path == *path;
            let reaches = mend.scope.depth == Depth::Tree
                || itself && !whole
                || mend.scope.depth == Depth::Names
                    && !whole
                    && path.parent().is_some_and(|parent| parent == mend.path);
            let proves = !brings || mend.scope.bytes || (itself && mend.resend);
            // Else what the row takes away is kept there: nobody has told whither it went.
            let removed = itself && !whole || !removes(change, path) || mend.scope.delete;
            reaches
                && match scar.region(path, whole, seq) {
                    Region::Seen(before) => seq <= before && proves && removed,
                    Region::Ahead => {
                        !itself
                            && mend.scope.depth == Depth::Tree
                            && removed
                            && match mend.trust {
                                Trust::Nothing => proves,
                                Trust::Blank => true,
                                Trust::Log => false,
                            }
                    }
                    Region::Past => false,
                }
        })
    }

    /// A row was replayed: scars move along with what is above them.
    pub fn follow(&mut self, change: &Change, seq: Seq) {
        if self.all.is_empty() {
            return;
        }
        self.go_along(change, seq);
        match change {
            Change::Rename { from, to } => {
                let unseen = self.leaves_unseen(from, to);
                self.take_below(to);
                let moved = self.take_below(from);
                self.put(moved, from, to, seq);
                unseen.into_iter().for_each(|mend| self.add(mend, seq));
            }
            Change::Exchange { a, b } => {
                let unseen = [self.leaves_unseen(a, b), self.leaves_unseen(b, a)];
                let (from_a, from_b) = (self.take_below(a), self.take_below(b));
                self.put(from_a, a, b, seq);
                self.put(from_b, b, a, seq);
                let unseen = unseen.into_iter().flatten();
                unseen.for_each(|mend| self.add(mend, seq));
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

    /// What has yet to be looked at in `to`, since it came from where a walk has not been to where it will not
    /// come.
    fn leaves_unseen(&self, from: &RelPath, to: &RelPath) -> Option<Mend> {
        let comes_to = |scar: &Scar| {
            to.is_at_or_below(&scar.mend.path)
                && matches!(scar.region(to, false, Seq::MAX), Region::Ahead)
        };
        let left = self.over(from).find(|scar| {
            scar.mend.path != *from
                && scar.mend.trust == Trust::Log
                && matches!(scar.region(from, true, Seq::MAX), Region::Ahead)
                && !comes_to(scar)
        })?;
        let mend = Mend::new(to.clone(), left.mend.scope);
        Some(Mend {
            trust: Trust::Log,
            ..mend
        })
    }

    /// Where something was moved the row is about what was left behind, too.
    pub fn go_along(&mut self, change: &Change, seq: Seq) {
        if self.moved == 0 {
            return;
        }
        let mut left = Vec::new();
        for path in change.paths().filter(|path| removes(change, path)) {
            let behind = self.all.values().filter_map(|scar| {
                let moved = scar.mend.moved.as_ref().filter(|moved| *moved != path)?;
                path.moved(moved, &scar.mend.path)
            });
            left.extend(behind.map(|behind| Mend {
                path: behind,
                ..mend_for(change, path.clone())
            }));
        }
        let swaps = match change {
            Change::Rename { from, to } => vec![(from, to)],
            Change::Exchange { a, b } => vec![(a, b), (b, a)],
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => Vec::new(),
        };
        for (key, scar) in &mut self.all {
            let old = scar.mend.moved.as_ref();
            let new = old.and_then(|old| swaps.iter().find_map(|(from, to)| old.moved(from, to)));
            if new.is_some() {
                scar.mend.moved = new;
                self.news.insert(key.clone());
            }
        }
        left.into_iter().for_each(|mend| self.add(mend, seq));
    }

    fn take_below(&mut self, path: &RelPath) -> Vec<Mend> {
        if !self.paths.reaches_into(path) {
            return Vec::new();
        }
        let below = |key: &&Key| key.0.is_at_or_below(path) && key.0 != *path;
        let all: Vec<Key> = self.all.keys().filter(below).cloned().collect();
        let taken = all
            .into_iter()
            .filter_map(|key| Some(self.remove(&key)?.mend));
        taken.collect()
    }

    fn put(&mut self, moved: Vec<Mend>, from: &RelPath, to: &RelPath, seq: Seq) {
        for mend in moved {
            if let Some(path) = mend.path.moved(from, to) {
                let since = self.since;
                let mend = Mend {
                    path,
                    walked: Walked::Nothing,
                    seen: None,
                    ..mend
                };
                self.add(mend, seq);
                self.since = since.or(self.since);
            }
        }
    }

    /// Whether some are to be repaired now: the mirror is at `cursor`, the log at `head`.
    pub fn are_due(&mut self, cursor: Seq, head: Seq) -> bool {
        if !self.has_due() {
            return false;
        }
        cursor >= *self.due_at.get_or_insert(head) || self.are_full()
    }

    /// Those that are to be repaired, in the order of their paths.
    pub fn due(&self) -> impl Iterator<Item = &Mend> {
        let now = now_ms();
        let all = self.open.iter().filter_map(|key| self.all.get(key));
        all.map(|scar| &scar.mend)
            .filter(move |mend| mend.next_try.is_none_or(|at| at <= now))
    }

    /// Whether there are any.
    pub fn has_due(&self) -> bool {
        self.due().next().is_some()
    }

    /// Whether the entry at a path is to be repaired by itself; and whether the bytes of its file are in doubt, or are to be
    /// sent whatever it looks like.
    pub fn resends(&self, path: &RelPath) -> Option<(bool, bool)> {
        if self.open.len() < 2 {
            return None;
        }
        let scar = self.all.get(&(path.clone(), Depth::Entry))?;
        scar.is_open()
            .then_some((scar.mend.scope.bytes, scar.mend.resend))
    }

    /// One was repaired, from where the log was `before` to where it was `after`.
    pub fn repaired(&mut self, key: &Key, before: Seq, after: Seq) {
        self.due_at = None;
        if let Some(scar) = self.all.get_mut(key) {
            (scar.mend.error, scar.mend.next_try) = (None, None);
            self.set_state(key, State::Done { before, after });
        }
    }

    /// One was repaired up to `upto`.
    pub fn repaired_upto(&mut self, key: &Key, upto: Reached, before: Seq, after: Seq) {
        self.due_at = None;
        let Some(scar) = self.all.get(key) else {
            return;
        };
        let (settled, before) = match &scar.state {
            // Where the last slice is settled, this one stands alone.
            State::Part {
                settled: Some(settled),
                upto,
                ..
            } if settled == upto => (Some(settled.clone()), before),
            State::Part {
                settled,
                before: first,
                ..
            } => (settled.clone(), before.min(*first)),
            State::Open | State::Done { .. } => (None, before),
        };
        self.set_state(
            key,
            State::Part {
                settled,
                upto,
                before,
                after,
            },
        );
    }

    /// Makes a path a scar again that could not be repaired; how often it could not is not forgotten.
    pub fn add_again(&mut self, mend: Mend, seq: Seq) {
        let key = (mend.path.clone(), mend.scope.depth);
        let before = self.all.get(&key).map_or(0, |scar| scar.mend.attempts);
        self.add(mend, seq);
        if let Some(scar) = self.all.get_mut(&key) {
            scar.mend.attempts = before;
        }
    }

    /// More has to be done at a path than was known: all below it.
    pub fn grow(&mut self, path: RelPath, scope: Scope, seq: Seq) {
        let scope = Scope {
            depth: Depth::Tree,
            ..scope
        };
        self.add(Mend::new(path, scope), seq);
    }

    /// The mirror refused to have one repaired. Says how often it has by now.
    pub fn refused(&mut self, key: &Key, error: String) -> u32 {
        self.due_at = None;
        let Some(scar) = self.all.get_mut(key) else {
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
        self.news.insert(key.clone());
        attempts
    }

    /// One waits for something else for now.
    pub fn postpone(&mut self, key: &Key) {
        if let Some(scar) = self.all.get_mut(key) {
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
        let mut healed = Vec::new();
        for (key, scar) in &mut self.all {
            match &mut scar.state {
                State::Done { after, .. } if cursor >= *after => healed.push(key.clone()),
                State::Part {
                    settled,
                    upto,
                    after,
                    ..
                } if cursor >= *after => *settled = Some(upto.clone()),
                State::Open | State::Part { .. } | State::Done { .. } => {}
            }
        }
        healed.iter().for_each(|key| drop(self.remove(key)));
    }

    /// Of repaired ones that are too many to be known by name only the directories are kept.
    pub fn keep_few(&mut self) {
        while self.all.len() - self.open.len() > KEPT {
            let done = |scar: &&Scar| !scar.is_open() && !scar.mend.path.is_root();
            let all: Vec<(Key, Seq)> = self
                .all
                .values()
                .filter(done)
                .map(|scar| {
                    let key = (scar.mend.path.clone(), scar.mend.scope.depth);
                    (key, scar.mend.seen.unwrap_or(Seq::MAX))
                })
                .collect();
            // Those that lie deepest first: a few directories may hold most of them.
            let depth = |key: &Key| key.0.ancestors().count();
            let deepest = all.iter().map(|(key, _)| depth(key)).max().unwrap_or(0);
            for (key, after) in all {
                if depth(&key) == deepest {
                    self.remove(&key);
                    self.cover(key.0.parent().unwrap_or_default(), after);
                }
            }
            if deepest == 0 {
                return;
            }
        }
    }

    /// Rows up to `after` are not replayed at a path and below.
    fn cover(&mut self, path: RelPath, after: Seq) {
        let key = (path.clone(), Depth::Entry);
        let seen = match self.all.get(&key) {
            None => after,
            Some(scar) if scar.is_open() => return,
            Some(scar) => scar.mend.seen.unwrap_or(Seq::MAX).max(after),
        };
        self.remove(&key);
        self.insert(Scar::new(Mend {
            walked: Walked::All,
            seen: Some(seen),
            ..Mend::new(path, Scope::ENTRY)
        }));
        self.news.insert(key);
    }

    /// Whether the journal has to be told something.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What the journal has to be told: those that are there, and those that are healed. Told once.
    pub fn news(&mut self) -> (Vec<Mend>, Vec<Key>) {
        let (mut there, mut healed) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.news) {
            match self.all.get(&key) {
                Some(scar) => there.push(scar.mend.clone()),
                None => healed.push(key),
            }
        }
        (there, healed)
    }
}

#[cfg(test)]
mod tests;
