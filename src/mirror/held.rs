//! Changes that a mirror does not take for now, set aside so that everything else goes on (rule R5).
//!
//! A change that is refused for a reason of its own (permission denied, a name that is not possible there)
//! is *parked* with its error. What depends on it *waits behind it*: every later change whose path is, or
//! lies above or below, a path of one that is set aside. So the set is closed: what is in it can be carried
//! out later, in its own order, whatever has happened outside it meanwhile; a rename carries the dependency
//! to the new name by being in the set itself.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *A row leaves the window and is lost.* It goes into the journal's table `parked`, whole, in the
//!   transaction that moves the cursor over it: "behind the cursor" means done, or parked. The log may
//!   then drop the row; nothing is skipped.
//! * *A cut while parked rows are tried again.* They stay in the table until each is noted as done, and
//!   are tried as uncertain rows. Nothing related to them was sent from outside the set, and inside it J4
//!   holds as ever (they go through the same window), so a rename among them is judged by its old name.
//! * *A power cut* (J3): a row that was never sent is not behind `sent_upto`; before the rows are sent again
//!   the log, and this table with it, is made durable.
//! * *Memory*: the rows are kept here, at most [`MOST`]. Where there are more, the mirror stops as a whole.

use super::related::PathIndex;
use crate::change::{Change, RelPath, Seq};
use crate::journal::{Parked, Row, now_ms};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many changes may be set aside; with one more the mirror stops as a whole.
pub const MOST: usize = 10_000;

/// A parked change waits this many times longer at most than the first time.
const LONGEST: u32 = 12;

/// The changes of one mirror that are set aside.
pub(super) struct Held {
    /// As the journal has them.
    rows: BTreeMap<Seq, Parked>,
    /// Paths of those that are set aside and not being tried again.
    paths: PathIndex,
    /// How many are set aside, and not yet in `rows`.
    fresh: usize,
    /// They are tried again at once.
    at_once: bool,
    /// They are being tried again: those up to here.
    trying: Option<Seq>,
    /// When the first of them is to be tried again, at the earliest (Unix time in milliseconds).
    next_try: i64,
    /// How long the first try of a parked one waits.
    pause: Duration,
}

impl Held {
    /// Starts with what the journal has noted. `pause` is how long a parked change waits for its first
    /// try; `at_once` has the first try be now.
    pub fn new(noted: Vec<Parked>, pause: Duration, at_once: bool) -> Held {
        let mut held = Held {
            rows: BTreeMap::new(),
            paths: PathIndex::default(),
            fresh: 0,
            at_once,
            trying: None,
            next_try: i64::MIN,
            pause,
        };
        for parked in noted {
            held.insert_paths(&parked.row.change);
            held.rows.insert(parked.row.seq, parked);
        }
        held
    }

    fn insert_paths(&mut self, change: &Change) {
        change.paths().for_each(|path| self.paths.insert(path));
    }

    /// Whether a change depends on one that is set aside.
    pub fn touches(&self, change: &Change) -> bool {
        !self.paths.is_empty() && change.paths().any(|path| self.paths.touches(path))
    }

    /// Whether one that is set aside is about this directory, or one above it.
    pub fn reaches_over(&self, dir: &RelPath) -> bool {
        self.paths.reaches_over(dir)
    }

    /// A change is set aside; it is in the journal when [`Held::note`] has been told of it.
    pub fn add(&mut self, seq: Seq, change: &Change) {
        self.insert_paths(change);
        self.fresh += usize::from(!self.rows.contains_key(&seq));
    }

    /// A row that is set aside leaves the window: what the journal has to be told of it.
    pub fn note(&mut self, row: Row, error: Option<String>) -> Parked {
        let before = self.rows.get(&row.seq);
        self.fresh -= usize::from(before.is_none());
        let attempts = before.map_or(0, |p| p.attempts) + u32::from(error.is_some());
        let next_try = error.as_ref().map(|_| {
            let times = 1u32.checked_shl(attempts.saturating_sub(1));
            let pause = self
                .pause
                .saturating_mul(times.map_or(LONGEST, |t| t.min(LONGEST)));
            now_ms().saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX))
        });
        self.next_try = self.next_try.min(next_try.unwrap_or(i64::MAX));
        let parked = Parked {
            row,
            error,
            attempts,
            next_try,
        };
        self.rows.insert(parked.row.seq, parked.clone());
        parked
    }

    /// A row is done. Says whether the journal has to be told that it is not set aside any more.
    pub fn done(&mut self, seq: Seq) -> bool {
        self.rows.remove(&seq).is_some()
    }

    /// The first one that the mirror lacks.
    pub fn first(&self) -> Option<Seq> {
        self.rows.keys().next().copied()
    }

    /// How often this one was refused before.
    pub fn attempts(&self, seq: Seq) -> u32 {
        self.rows.get(&seq).map_or(0, |p| p.attempts)
    }

    /// Whether there is no room for this one.
    pub fn is_full(&self, seq: Seq) -> bool {
        self.rows.len() + self.fresh >= MOST && !self.rows.contains_key(&seq)
    }

    /// Has them tried again at once.
    pub fn try_again(&mut self) {
        self.at_once = true;
    }

    /// Whether they are to be tried again now.
    pub fn is_due(&mut self) -> bool {
        if self.trying.is_some() || self.rows.is_empty() {
            return false;
        }
        let now = now_ms();
        if !self.at_once && self.next_try <= now {
            // It may be that of one that is done since.
            let all = self.rows.values().filter_map(|p| p.next_try);
            self.next_try = all.min().unwrap_or(i64::MAX);
        }
        self.at_once || self.next_try <= now
    }

    /// Hands all of them out to be tried again, in order. They stay noted until they are done. `cursor` is
    /// behind all of them.
    pub fn take_all(&mut self, cursor: Seq) -> Vec<Row> {
        self.at_once = false;
        self.trying = Some(cursor);
        self.paths = PathIndex::default();
        self.rows.values().map(|p| p.row.clone()).collect()
    }

    /// Says how far the window is: `first` is its first row. Whether the last try is over, and nothing
    /// is to be tried at once.
    pub fn is_at_rest(&mut self, first: Option<Seq>) -> bool {
        if self
            .trying
            .is_some_and(|upto| first.is_none_or(|first| first > upto))
        {
            self.trying = None;
        }
        self.at_once &= !self.rows.is_empty();
        self.trying.is_none() && !self.at_once
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn row(seq: Seq, change: Change) -> Row {
        Row {
            seq,
            at: 0,
            cum_bytes: 0,
            change,
        }
    }

    fn rename(a: &str, b: &str) -> Change {
        Change::Rename {
            from: path(a),
            to: path(b),
        }
    }

    #[test]
    fn a_rename_carries_the_dependency_to_its_new_name() {
        let mut held = Held::new(Vec::new(), Duration::from_secs(1), false);
        let unlink = |s| Change::Unlink { path: path(s) };
        held.add(1, &unlink("d/f"));
        assert!(held.touches(&unlink("d")) && held.touches(&unlink("d/f/x")));
        assert!(!held.touches(&unlink("d/g")) && !held.touches(&unlink("e/f")));
        assert!(held.touches(&rename("d", "e")));
        held.add(2, &rename("d", "e"));
        assert!(held.touches(&unlink("e/f")));
    }

    #[test]
    fn pauses_grow_up_to_the_longest_and_who_waits_behind_has_none() {
        let mut held = Held::new(Vec::new(), Duration::from_secs(10), false);
        let change = rename("a", "b");
        let mut pauses = Vec::new();
        for _ in 0..7 {
            held.add(5, &change);
            let parked = held.note(row(5, change.clone()), Some("denied".to_string()));
            let pause = (parked.next_try.unwrap() - now_ms()) as f64 / 1000.0;
            pauses.push(pause.round() as u64);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 120, 120, 120]);
        held.add(6, &change);
        let waiting = held.note(row(6, change), None);
        assert_eq!((waiting.next_try, waiting.attempts), (None, 0));
        assert!(!held.is_due());
        held.try_again();
        assert!(held.is_due());
        assert_eq!(held.take_all(9).len(), 2);
        assert!(!held.is_at_rest(Some(5)));
        assert!(held.done(5) && held.done(6) && !held.done(7));
        assert!(held.is_at_rest(Some(10)));
    }
}
