//! Which rows of the log a send has covered already: a file is sent once, whatever happened to it while its
//! mirror was away.
//!
//! The log holds no bytes; they are read when they are sent. Each write is in the file before its record is
//! in the log (J1). So who asks how far the log is, and *then* begins to read a file, reads at least what
//! every Content of that inode up to there is about: the send covers them. Their places in the log demand
//! nothing more than the attributes, and those only if a row in between has set others.
//!
//! What can go wrong, and what answers it:
//!
//! * *The file goes back in time.* A row's bytes are made ready ahead; if an earlier row of the same file has
//!   to be made ready again (it changed while it was read), that one is published with newer bytes, and the
//!   later row's old ones behind it. So a row is asked again when it is published, and what was made ready for
//!   it is thrown away if the newer bytes are there. An entry is not pushed out in between: there is room for
//!   every send of a window, see [`MOST`].
//! * *The send that covers comes to nothing:* the file is gone, or is being written anew, or is refused. Then
//!   the claim is taken back ([`Covers::withdraw`]), and the rows that relied on it are made ready
//!   themselves.
//! * *The covered row's name is another file there.* Where the mirror has real hard links, what was sent under
//!   one name is to be seen under all. But a copy that was made without them has a file for each name. So a
//!   file that has, or had, several names is covered only under the same name.
//! * *A connection breaks.* What was covered is forgotten, and sent again if its row is not noted as done.
//!   It is read anew then, so it is newer still.
//!
//! Memory is bounded: a claim is kept only while rows that it may cover are ahead, and of too many the oldest
//! goes. Its file is sent once more then, which is a loss of time and of nothing else.

use crate::change::{NodeId, RelPath, Seq};
use std::collections::{HashMap, VecDeque};

/// Claims at most. More than a window of rows can make, each sent four times.
const MOST: usize = 32 * 1024;

/// One send of a file.
struct Cover {
    /// The row that it was for.
    by: Seq,
    /// How far the log was before the file was read.
    upto: Seq,
    path: RelPath,
    linked: bool,
    /// How many rows had set attributes, of whatever, when these were set last. None: not yet.
    set_at: Option<u64>,
}

/// The sends of a session that may cover rows that are still ahead.
#[derive(Default)]
pub(super) struct Covers {
    claims: HashMap<NodeId, Cover>,
    /// In the order in which they were made; of those that were made anew also the old ones.
    order: VecDeque<(NodeId, Seq)>,
}

/// Of which row and which file.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The row.
    pub seq: Seq,
    /// The inode.
    pub node: &'a NodeId,
    /// Its name then.
    pub path: &'a RelPath,
    /// Whether it had others.
    pub linked: bool,
}

impl Covers {
    /// A file is about to be sent for a row; the log was at `upto` before it was opened.
    pub fn claim(&mut self, at: Place<'_>, upto: Seq) {
        if upto <= at.seq {
            self.claims.remove(at.node); // nothing is ahead
            return;
        }
        let cover = Cover {
            by: at.seq,
            upto,
            path: at.path.clone(),
            linked: at.linked,
            set_at: None,
        };
        self.claims.insert(at.node.clone(), cover);
        self.order.push_back((at.node.clone(), at.seq));
        while self.claims.len() > MOST || self.order.len() > 2 * MOST {
            let Some((node, by)) = self.order.pop_front() else {
                break;
            };
            self.withdraw(&node, by);
        }
    }

    /// The earlier row whose send covers this one.
    pub fn of(&self, at: Place<'_>) -> Option<Seq> {
        let cover = self.claims.get(at.node)?;
        let several = cover.linked || at.linked;
        let covered = cover.by < at.seq && at.seq <= cover.upto;
        (covered && (!several || cover.path == *at.path)).then_some(cover.by)
    }

    /// What was claimed for row `by` was not sent.
    pub fn withdraw(&mut self, node: &NodeId, by: Seq) {
        if self.claims.get(node).is_some_and(|cover| cover.by == by) {
            self.claims.remove(node);
        }
    }

    /// Row `by` is being published, the `attrs_set` rows that set attributes before it are too.
    pub fn published(&mut self, node: &NodeId, by: Seq, attrs_set: u64) {
        if let Some(cover) = self.claims.get_mut(node).filter(|cover| cover.by == by) {
            cover.set_at = Some(attrs_set);
        }
    }

    /// Whether a covered row has to set its file's attributes: another row may have set them since. (Or that
    /// is not known any more.)
    pub fn sets_attributes(&mut self, node: &NodeId, attrs_set: u64) -> bool {
        match self.claims.get_mut(node) {
            Some(cover) => cover.set_at.replace(attrs_set) != Some(attrs_set),
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn node(n: u32) -> NodeId {
        NodeId(n.to_le_bytes().into())
    }

    fn at<'a>(seq: Seq, node: &'a NodeId, path: &'a RelPath, linked: bool) -> Place<'a> {
        Place {
            seq,
            node,
            path,
            linked,
        }
    }

    #[test]
    fn a_send_covers_the_rows_of_its_file_up_to_where_the_log_was() {
        let (mut covers, n, other) = (Covers::default(), node(1), node(2));
        let (a, b) = (path("a"), path("b"));
        covers.claim(at(3, &n, &a, false), 9);
        assert_eq!(covers.of(at(3, &n, &a, false)), None, "itself");
        assert_eq!(covers.of(at(4, &n, &b, false)), Some(3));
        assert_eq!(covers.of(at(9, &n, &a, false)), Some(3));
        assert_eq!(covers.of(at(10, &n, &a, false)), None);
        assert_eq!(covers.of(at(4, &other, &a, false)), None);
        covers.withdraw(&n, 2);
        assert_eq!(covers.of(at(4, &n, &a, false)), Some(3));
        covers.withdraw(&n, 3);
        assert_eq!(covers.of(at(4, &n, &a, false)), None);
    }

    #[test]
    fn a_file_with_several_names_is_covered_under_the_same_name_only() {
        let (mut covers, n, a, b) = (Covers::default(), node(1), path("a"), path("b"));
        covers.claim(at(1, &n, &a, true), 9);
        assert_eq!(covers.of(at(2, &n, &b, false)), None);
        assert_eq!(covers.of(at(2, &n, &a, false)), Some(1));
        covers.claim(at(1, &n, &a, false), 9);
        assert_eq!(covers.of(at(2, &n, &b, true)), None);
    }

    #[test]
    fn attributes_are_set_again_only_behind_a_row_that_set_some() {
        let (mut covers, n, a) = (Covers::default(), node(1), path("a"));
        covers.claim(at(1, &n, &a, false), 9);
        covers.published(&n, 1, 5);
        assert!(!covers.sets_attributes(&n, 5));
        assert!(covers.sets_attributes(&n, 6));
        assert!(!covers.sets_attributes(&n, 6));
        assert!(covers.sets_attributes(&node(2), 6));
    }

    #[test]
    fn ten_times_as_many_files_take_no_more_memory() {
        let (mut covers, a) = (Covers::default(), path("a"));
        for n in 0..10 * MOST as u32 {
            covers.claim(at(u64::from(n), &node(n), &a, false), u64::MAX);
        }
        assert!(covers.claims.len() <= MOST && covers.order.len() <= 2 * MOST);
        let newest = node(10 * MOST as u32 - 1);
        assert!(covers.of(at(u64::MAX, &newest, &a, false)).is_some());
        for _ in 0..5 * MOST {
            covers.claim(at(1, &newest, &a, false), 9);
        }
        assert!(covers.order.len() <= 2 * MOST);
    }
}
