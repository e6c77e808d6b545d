//! What a path is to the repair of what lies at it or above: in which part of a tree that is walked in slices.

use super::super::repair::order::walk_order;
use crate::change::{RelPath, Seq};
use crate::journal::{Mend, Reached, Walked};
use std::cmp::Ordering;

/// How far a scar's repair is.
pub(super) enum State {
    Open,
    /// Of a tree: up to `settled` the log is replayed again; from there up to `upto` as told by the other two.
    Part {
        settled: Option<Reached>,
        upto: Reached,
        before: Seq,
        after: Seq,
    },
    /// It was repaired: where the log was before, and after.
    Done {
        before: Seq,
        after: Seq,
    },
}

/// What a path is to the repair of what lies above.
pub(super) enum Region {
    /// It is to come.
    Ahead,
    /// It was repaired, and rows up to this one are covered; those of this question are not to be replayed.
    Seen(Seq),
    /// It was, and the log is replayed again.
    Past,
}

/// One path.
pub(super) struct Scar {
    pub mend: Mend,
    pub state: State,
}

/// Whether a walk that has come to `upto` is through with `path`: with its entry, or with all that is below too (`whole`).
fn is_passed(root: &RelPath, path: &RelPath, whole: bool, upto: &Reached) -> bool {
    let Some(parent) = path.parent().filter(|_| path != root) else {
        return !whole;
    };
    let dir = &upto.dir;
    let entry = match walk_order(&parent, dir) {
        Ordering::Less => true,
        Ordering::Equal => upto
            .name
            .as_ref()
            .is_none_or(|name| path.name() <= &name[..]),
        Ordering::Greater => false,
    };
    entry && (!whole || walk_order(path, dir) == Ordering::Less && !dir.is_at_or_below(path))
}

impl Scar {
    pub fn new(mend: Mend) -> Scar {
        let after = mend.seen.unwrap_or(Seq::MAX);
        let state = match &mend.walked {
            Walked::Nothing => State::Open,
            Walked::Upto(upto) => State::Part {
                settled: None,
                upto: upto.clone(),
                before: 0,
                after,
            },
            Walked::All => State::Done { before: 0, after },
        };
        Scar { mend, state }
    }

    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Done { .. })
    }

    pub fn region(&self, path: &RelPath, whole: bool, seq: Seq) -> Region {
        match &self.state {
            State::Open => Region::Ahead,
            State::Done { before, after } if seq <= *after => Region::Seen(*before),
            State::Done { .. } => Region::Past,
            State::Part {
                settled,
                upto,
                before,
                after,
            } => {
                let passed = |whole, upto: &Reached| is_passed(&self.mend.path, path, whole, upto);
                let all = passed(whole, upto);
                if settled
                    .as_ref()
                    .is_some_and(|settled| passed(whole, settled))
                {
                    Region::Past
                } else if seq <= *after && passed(false, upto) {
                    Region::Seen(if all { *before } else { 0 })
                } else if all {
                    Region::Past
                } else {
                    Region::Ahead
                }
            }
        }
    }
}
