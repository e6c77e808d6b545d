//! Names that the source had, at this place in the log, and the mirror has not.
//!
//! A file that is deleted while its mirror is away never travels: when its content is replayed the
//! inode is gone. But other rows still speak of its name before they delete it, and to carry those out as
//! if it were there does harm: `rename t f` would leave the old f in place of the new one, and the
//! chmod behind it would hit the wrong file, or follow a symlink out of the tree. So such names are
//! known: the mirror has exactly the source's names of that moment less the ghosts. A rename of a ghost
//! removes what it would have replaced.
//!
//! The set goes with the cursor: it is noted in the same transaction. A name becomes a ghost only when a
//! look has shown that nothing is there (an older version may be), and only moves, links and exchanges
//! ask for it; those wait, by J4, until everything earlier on their paths is noted.

use crate::change::{Change, RelPath};
use std::collections::BTreeSet;

/// The ghosts of a mirror at its cursor.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    names: BTreeSet<RelPath>,
    added: Vec<RelPath>,
    removed: Vec<RelPath>,
}

impl Ghosts {
    /// Starts with what the journal has noted.
    pub fn new(noted: Vec<RelPath>) -> Ghosts {
        Ghosts {
            names: noted.into_iter().collect(),
            ..Ghosts::default()
        }
    }

    /// What a change comes to on a mirror with these ghosts; none: nothing.
    pub fn effect(&self, change: &Change) -> Option<Change> {
        let is_ghost = |path: &RelPath| self.names.contains(path);
        match change {
            Change::Rename { from, to } if is_ghost(from) => {
                Some(Change::Unlink { path: to.clone() })
            }
            Change::Link { from, .. } if is_ghost(from) => None,
            Change::Exchange { a, b } => match (is_ghost(a), is_ghost(b)) {
                (false, false) => Some(change.clone()),
                (true, false) => Some(Change::Rename {
                    from: b.clone(),
                    to: a.clone(),
                }),
                (false, true) => Some(Change::Rename {
                    from: a.clone(),
                    to: b.clone(),
                }),
                (true, true) => None,
            },
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => Some(change.clone()),
        }
    }

    /// A change is done. `absent`: its content was gone, and nothing is there.
    pub fn follow(&mut self, change: &Change, absent: bool) {
        match change {
            Change::Content { path, .. } if absent => self.add(path.clone()),
            _ if self.names.is_empty() => {}
            Change::Content { path, .. }
            | Change::Mkdir { path, .. }
            | Change::Rmdir { path }
            | Change::Unlink { path }
            | Change::Symlink { path, .. } => self.remove(path),
            Change::Link { from, path } => {
                if self.names.contains(from) {
                    self.add(path.clone());
                }
            }
            Change::Rename { from, to } => {
                drop(self.take(to));
                let moved = self.take(from);
                self.put(moved, from, to);
            }
            Change::Exchange { a, b } => {
                let (from_a, from_b) = (self.take(a), self.take(b));
                self.put(from_a, a, b);
                self.put(from_b, b, a);
            }
            // Ghosts at its path stay: they are names that the mirror lacks at most, and a name that is repaired
            // is not moved by a row before it is healed.
            Change::Attr { .. } | Change::Repair { .. } => {}
        }
    }

    /// What the journal has to be told, added and taken out. Told once.
    pub fn news(&mut self) -> (Vec<RelPath>, Vec<RelPath>) {
        let (mut added, mut removed) = (
            std::mem::take(&mut self.added),
            std::mem::take(&mut self.removed),
        );
        added.retain(|p| self.names.contains(p));
        removed.retain(|p| !self.names.contains(p));
        (added, removed)
    }

    fn add(&mut self, path: RelPath) {
        if self.names.insert(path.clone()) {
            self.added.push(path);
        }
    }

    fn remove(&mut self, path: &RelPath) {
        if self.names.remove(path) {
            self.removed.push(path.clone());
        }
    }

    /// Takes out the ghosts at a path and below it.
    fn take(&mut self, path: &RelPath) -> Vec<RelPath> {
        let all: Vec<RelPath> = self
            .names
            .iter()
            .filter(|p| p.is_at_or_below(path))
            .cloned()
            .collect();
        all.iter().for_each(|p| self.remove(p));
        all
    }

    fn put(&mut self, moved: Vec<RelPath>, from: &RelPath, to: &RelPath) {
        for path in moved {
            path.moved(from, to)
                .into_iter()
                .for_each(|new| self.add(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Extent, NodeId};

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn gone(s: &str) -> Change {
        let (node, extent) = (NodeId([0; 8].into()), Extent::Whole);
        Change::Content {
            path: path(s),
            node,
            extent,
            size: 0,
            linked: false,
        }
    }

    fn rename(a: &str, b: &str) -> Change {
        Change::Rename {
            from: path(a),
            to: path(b),
        }
    }

    #[test]
    fn a_ghost_that_is_moved_removes_what_it_would_have_replaced() {
        let mut ghosts = Ghosts::default();
        ghosts.follow(&gone("t"), true);
        assert_eq!(
            ghosts.effect(&rename("t", "f")),
            Some(Change::Unlink { path: path("f") })
        );
        ghosts.follow(&rename("t", "f"), false);
        assert_eq!(ghosts.news(), (vec![path("f")], vec![path("t")]));
        assert_eq!(ghosts.effect(&rename("t", "x")), Some(rename("t", "x")));
    }

    #[test]
    fn ghosts_move_with_their_directory_and_end_with_their_name() {
        let mut ghosts = Ghosts::default();
        ghosts.follow(&gone("d/t"), true);
        ghosts.follow(&rename("d", "e"), false);
        assert_eq!(
            ghosts.effect(&Change::Link {
                from: path("e/t"),
                path: path("l")
            }),
            None
        );
        ghosts.follow(
            &Change::Link {
                from: path("e/t"),
                path: path("l"),
            },
            false,
        );
        ghosts.follow(&Change::Unlink { path: path("e/t") }, false);
        ghosts.follow(&gone("l"), false);
        assert!(ghosts.names.is_empty());
        assert_eq!(ghosts.news().0, []);
    }

    #[test]
    fn an_exchange_with_a_ghost_is_a_move() {
        let mut ghosts = Ghosts::default();
        ghosts.follow(&gone("a"), true);
        let swap = Change::Exchange {
            a: path("a"),
            b: path("b"),
        };
        assert_eq!(ghosts.effect(&swap), Some(rename("b", "a")));
        ghosts.follow(&swap, false);
        assert_eq!(ghosts.effect(&swap), Some(rename("a", "b")));
    }
}
