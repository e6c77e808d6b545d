//! `max_delete`: a mass deletion stops before the mirrors instead of emptying them (P8).
//!
//! A mistyped `rm -r` or a program run wild is carried out like any other change, on every mirror, within seconds.
//! With a limit, a mirror is paused before the deletion that would be one too many within a minute, a person is
//! told, and `proxyfs resume` lets it through.
//!
//! What can slip by, and what answers it:
//!
//! * *The pause takes effect later than the row is sent.* Rows are counted when they are read from the log, before
//!   anything of them is staged: the first that is too many is not read, nor any behind it.
//! * *The connection breaks, or the daemon is restarted meanwhile.* That the mirror is held is in the journal, on the
//!   disk, before anything else is done; and rows that are read again are not counted again.
//! * *A mirror that was away for a week* gets the deletions of a week at once: what counts is when they were
//!   made, as the log tells, not when they are replayed.
//! * *A part of the tree instead of a number*: the tree is counted when it matters, and only as far as it matters. What is
//!   gone already counts as what was there, at least as far as it has been read: so the limit is rather too low.

use super::source::Source;
use crate::change::{Change, RelPath, Seq};
use crate::config::MaxDelete;
use crate::journal::Row;
use rustix::fs::FileType;
use std::collections::VecDeque;
use std::io;

/// Deletions count together that were made within so long (ms).
const WITHIN: i64 = 60_000;
/// So few deletions are never too large a part of a tree.
const FEW: u64 = 10;

/// Counts what is deleted on one mirror.
#[derive(Debug, Default)]
pub struct Guard {
    /// Rows up to here were let through by a person.
    through: Seq,
    /// Rows up to here are counted.
    counted: Seq,
    /// When the last deletions were made.
    lately: VecDeque<i64>,
    /// The part of the tree has to be looked at when there are more deletions.
    look_at: u64,
}

impl Guard {
    /// Rows up to `seq` are let through, and it is counted anew from there on.
    pub fn let_through(&mut self, seq: Seq) {
        if self.through != seq {
            (self.through, self.look_at) = (seq, 0);
            self.lately.clear();
        }
    }

    /// Whether this row is too much: in words. Then neither it nor any behind it may be carried out.
    ///
    /// # Errors
    /// The source cannot be looked at.
    pub fn stops(&mut self, row: &Row, source: &Source) -> io::Result<Option<String>> {
        let limit = source.max_delete();
        let counts = row.seq > self.through && row.seq > self.counted;
        if limit == MaxDelete::Off || !counts || !is_deletion(&row.change) {
            return Ok(None);
        }
        let old = |at: &i64| (row.at - at).abs() >= WITHIN;
        while self.lately.front().is_some_and(old) {
            self.lately.pop_front();
        }
        if self.lately.is_empty() {
            self.look_at = 0;
        }
        let deletions = self.lately.len() as u64 + 1;
        let too_many = match limit {
            MaxDelete::Off => false,
            MaxDelete::Count(most) => deletions > most,
            MaxDelete::Percent(part) => self.is_too_large(deletions, part.into(), source)?,
        };
        if too_many {
            return Ok(Some(format!(
                "more than {} deletions within a minute, the next of them change {} ({}): with max_delete = {} they \
                 are not carried out here; if they were meant, let them through with `proxyfs resume` for this \
                 mirror; if not, copy back what is still here",
                deletions - 1,
                row.seq,
                row.change,
                limit
            )));
        }
        self.counted = row.seq;
        self.lately.push_back(row.at);
        Ok(None)
    }

    fn is_too_large(&mut self, deletions: u64, part: u64, source: &Source) -> io::Result<bool> {
        if deletions <= FEW || deletions < self.look_at {
            return Ok(false);
        }
        // Twice as much as has to be there now: if so, there is no need to look again until twice as many are gone.
        let enough = 2 * deletions * 100 / part;
        let there = source.entries(enough)? + deletions;
        if there >= enough {
            self.look_at = 2 * deletions;
            return Ok(false);
        }
        self.look_at = 0;
        Ok(deletions * 100 > part * there)
    }
}

fn is_deletion(change: &Change) -> bool {
    match change {
        Change::Unlink { .. } | Change::Rmdir { .. } => true,
        Change::Mkdir { .. }
        | Change::Symlink { .. }
        | Change::Link { .. }
        | Change::Rename { .. }
        | Change::Exchange { .. }
        | Change::Content { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => false,
    }
}

impl Source {
    /// How many files and directories there are, but for what is excluded; counted up to `most`, or a few more.
    ///
    /// # Errors
    /// The operating system's.
    pub fn entries(&self, most: u64) -> io::Result<u64> {
        let mut open = vec![RelPath::root()];
        let mut found = 0;
        while let Some(directory) = open.pop() {
            for (name, kind) in self.kinds(&directory)?.unwrap_or_default() {
                let is_directory = kind == FileType::Directory;
                let Ok(path) = directory.join(&name) else {
                    continue;
                };
                if self.excludes(&path, is_directory) {
                    continue;
                }
                found += 1;
                if is_directory {
                    open.push(path);
                }
            }
            if found >= most {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlink(seq: Seq, at: i64) -> Row {
        let path = RelPath::new(format!("f{seq}").as_bytes()).unwrap();
        Row {
            seq,
            at,
            cum_bytes: 0,
            change: Change::Unlink { path },
        }
    }

    fn tree(files: usize) -> (tempfile::TempDir, Source) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join(".proxyfs")).unwrap();
        for n in 0..files {
            std::fs::write(dir.path().join(format!("a/b/{n}")), "").unwrap();
        }
        let source = Source::open_root(dir.path()).unwrap();
        (dir, source)
    }

    /// How many of `rows` are let through.
    fn through(guard: &mut Guard, rows: impl Iterator<Item = Row>, source: &Source) -> usize {
        rows.take_while(|row| guard.stops(row, source).unwrap().is_none())
            .count()
    }

    #[test]
    fn as_many_deletions_as_may_be_go_through_and_none_more() {
        let (_dir, source) = tree(0);
        let mut guard = Guard::default();
        assert_eq!(
            through(&mut guard, (1..=50).map(|n| unlink(n, 0)), &source),
            50
        );
        source.set_max_delete(MaxDelete::Count(100));
        let rows = || (51..=300).map(|n| unlink(n, n as i64));
        assert_eq!(through(&mut guard, rows(), &source), 100);
        // Read again after a cut: the same row stops it, and it says which.
        assert_eq!(through(&mut guard, rows(), &source), 100);
        let why = guard.stops(&unlink(151, 151), &source).unwrap().unwrap();
        assert!(
            why.starts_with("more than 100 deletions within a minute"),
            "{why}"
        );
        assert!(why.contains("change 151 (unlink f151)"), "{why}");
        // Let through up to 250; then it counts anew.
        guard.let_through(250);
        let rows = (151..=400).map(|n| unlink(n, n as i64));
        assert_eq!(through(&mut guard, rows, &source), 200);
    }

    #[test]
    fn what_was_deleted_slowly_is_no_mass_however_fast_it_is_replayed() {
        let (_dir, source) = tree(0);
        let mut guard = Guard::default();
        source.set_max_delete(MaxDelete::Count(10));
        let slowly = (1..=1000).map(|n| unlink(n, n as i64 * 6_000));
        assert_eq!(through(&mut guard, slowly, &source), 1000);
        let faster = (1001..=2000).map(|n| unlink(n, 10_000_000 + n as i64 * 5_000));
        assert_eq!(through(&mut guard, faster, &source), 10);
        // A clock that was set back makes none either.
        let mut guard = Guard::default();
        source.set_max_delete(MaxDelete::Count(10));
        let back = (1..=100).map(|n| unlink(n, -(n as i64) * 6_000));
        assert_eq!(through(&mut guard, back, &source), 100);
    }

    #[test]
    fn a_part_of_the_tree_is_a_part_of_what_was_there() {
        for (there, part, most) in [(898, 10, 100), (98, 50, 100), (0, 20, 10), (10_000, 1, 101)] {
            let (_dir, source) = tree(there);
            assert_eq!(source.entries(u64::MAX).unwrap(), there as u64 + 2);
            let mut guard = Guard::default();
            source.set_max_delete(MaxDelete::Percent(part));
            let rows = (1..).map(|n| unlink(n, 0));
            let let_through = through(&mut guard, rows, &source);
            assert!(
                let_through.abs_diff(most) <= 1,
                "{let_through} of {there}, {part} %"
            );
        }
    }
}
