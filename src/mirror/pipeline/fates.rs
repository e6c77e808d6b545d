//! What became of files that are gone: they do not travel, and neither does what was done to them.
//!
//! The commonest: a program writes a temporary file and renames it over the real one, a thousand times, while
//! the mirror is away. Of the thousand files one is left. Replayed row by row, each rename of a file that the
//! mirror never got would remove what it replaces, and the real name would be missing there until its last
//! version comes; and each would wait for a look at what stands at the temporary name.
//!
//! But the log tells the whole life of such a file: its name is followed through the renames ahead to where
//! it is removed, or replaced. If that is found, and nothing on the way depends on the file, the rows of that
//! life are *dead*: nothing is sent for them. What stood at the name that it took stays as it was, until the
//! next version replaces it in its place in the log: a version is passed over, which is no other order.
//!
//! What can go wrong, and what answers it:
//!
//! * *An older version of the file is there* under the name that it leaves: a dead rename removes what stands
//!   at its old name, unless it is known that nothing does (the name was left by an earlier one that way).
//! * *The next version is another name of the file that was left as it was* (a hard link). A rename of one
//!   name over another of the same file does nothing at all, and says that it did (rename(2)). So it is looked
//!   whether the old name is gone, and it is removed if it is not: [`Verdict::SameFile`].
//! * *A connection breaks in the middle of such a life.* The next session begins behind its content, and
//!   takes the rename for a real one. It finds its old name gone, and so takes it for done; or it moves an
//!   older version over the name whose next one is to come. (Nothing that comes later on its paths was sent
//!   before it was noted: a dead rename counts as one that is under way until then, J4.)
//! * *What is left as it was is another thing*, a symlink perhaps, and the next session, which knows nothing of
//!   this, sets the dead file's mode on it. So a life is followed over one rename only, and behind that
//!   nothing may come on the new name but its end.
//! * *A directory above is moved, or a link is made, or two names are exchanged.* Then nothing is assumed,
//!   and the mirror is looked at, as [`Ghosts`] says.
//!
//! A file that is gone does not come back: what was found here stays true.

use super::*;

/// Which rows of the window name a path, and which are about a file's content.
#[derive(Default)]
pub(super) struct ByPath {
    paths: HashMap<RelPath, VecDeque<Seq>>,
    nodes: HashMap<NodeId, VecDeque<Seq>>,
}

/// Puts a row in; they come in order, but for those that come back.
fn put<K: Eq + std::hash::Hash>(rows: &mut HashMap<K, VecDeque<Seq>>, key: K, seq: Seq) {
    let rows = rows.entry(key).or_default();
    rows.insert(rows.partition_point(|s| *s < seq), seq);
}

fn take<K: Eq + std::hash::Hash>(rows: &mut HashMap<K, VecDeque<Seq>>, key: &K, seq: Seq) {
    if let Some(left) = rows.get_mut(key) {
        left.retain(|s| *s != seq);
        if left.is_empty() {
            rows.remove(key);
        }
    }
}

impl ByPath {
    /// A row has come into the window.
    pub(super) fn came(&mut self, row: &Row) {
        for path in row.change.paths() {
            put(&mut self.paths, path.clone(), row.seq);
        }
        if let Some(node) = row.change.node() {
            put(&mut self.nodes, node.clone(), row.seq);
        }
    }

    /// A row has left the window.
    pub(super) fn left(&mut self, row: &Row) {
        for path in row.change.paths() {
            take(&mut self.paths, path, row.seq);
        }
        if let Some(node) = row.change.node() {
            take(&mut self.nodes, node, row.seq);
        }
    }

    /// The rows about a file's content from `seq` on.
    pub(super) fn rows_of(&self, node: &NodeId, seq: Seq) -> impl Iterator<Item = Seq> + '_ {
        let rows = self.nodes.get(node).into_iter().flatten();
        rows.copied().filter(move |row| *row >= seq)
    }

    fn next(&self, path: &[u8], after: Seq) -> Option<Seq> {
        let key = RelPath::new(path).ok()?;
        let rows = self.paths.get(&key)?;
        rows.get(rows.partition_point(|seq| *seq <= after)).copied()
    }

    /// The next row that names `path`, if none before it names a directory above.
    fn next_alone(&self, path: &RelPath, after: Seq) -> Option<Seq> {
        let next = self.next(path.as_bytes(), after)?;
        let moved = |above| self.next(above, after).is_some_and(|seq| seq < next);
        (!path.ancestors().any(moved)).then_some(next)
    }

    /// The row before that named `path`, if none since names a directory above.
    pub(super) fn previous_alone(&self, path: &RelPath, before: Seq) -> Option<Seq> {
        let rows = self.paths.get(path)?;
        let last = rows.partition_point(|seq| *seq < before).checked_sub(1)?;
        let previous = *rows.get(last)?;
        let moved = |above| self.next(above, previous).is_some_and(|seq| seq < before);
        (!path.ancestors().any(moved)).then_some(previous)
    }
}

/// What is to be done for a row of a file that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is a row like others, as far as is known.
    #[default]
    Lives,
    /// Nothing is to be done.
    Dead,
    /// It is a rename: what stands at its old name is to go.
    Vacates,
}

impl<R: Remote> Pipeline<'_, R> {
    /// Looks what becomes of the file of a row whose content is gone, and marks the rows of its life. False:
    /// the rows that are loaded do not tell.
    pub(super) fn follow_to_its_end(&mut self, index: usize) -> bool {
        let Job { row, vacant, .. } = &self.window[index];
        let Change::Content { path, node, .. } = &row.change else {
            return false;
        };
        let (mut at, mut after, vacant, mut moved) = (path.clone(), row.seq, *vacant, false);
        let (mut dead, mut left) = (vec![(row.seq, Fate::Dead)], Vec::new());
        loop {
            let Some(next) = self.by_path.next_alone(&at, after) else {
                return false;
            };
            let Some(next_at) = self.index(next) else {
                return false;
            };
            match &self.window[next_at].row.change {
                Change::Attr { .. } if !moved => dead.push((next, Fate::Dead)),
                Change::Content { node: same, .. } if same == node && !moved => {
                    dead.push((next, Fate::Dead));
                }
                Change::Unlink { .. } => {
                    left.push((at, next));
                    break;
                }
                Change::Rename { from, to } if *from == at && !moved => {
                    let fate = if vacant { Fate::Dead } else { Fate::Vacates };
                    dead.push((next, fate));
                    left.push((at, next));
                    (at, moved) = (to.clone(), true);
                }
                // Not one that moves on.
                Change::Rename { to, .. } if *to != at => return false,
                Change::Rename { .. } => break,
                Change::Attr { .. }
                | Change::Content { .. }
                | Change::Mkdir { .. }
                | Change::Rmdir { .. }
                | Change::Symlink { .. }
                | Change::Link { .. }
                | Change::Exchange { .. }
                | Change::Repair { .. } => return false,
            }
            after = next;
        }
        for (seq, fate) in dead {
            if let Some(job) = self.job(seq) {
                job.fate = fate;
            }
        }
        // Whoever comes to a name that was left finds nothing there.
        for (path, seq) in left {
            let next = self.by_path.next_alone(&path, seq);
            if let Some(job) = next.and_then(|next| self.job(next)) {
                job.vacant = true;
            }
        }
        true
    }

    /// Whether more rows can be had before a life is given up as not told: when those in front are noted.
    pub(super) fn sees_more_later(&self, index: usize) -> bool {
        let ahead = self.window.len() - index;
        self.loaded < self.setup.journal.head()
            && (self.cursor_has_news() || (index > 0 && ahead < WINDOW / 2))
    }
}
