//! The paths that the log names, after a crash of the machine: what mirrors have of them the disk may have lost.

use super::{Scan, ScanError, walk};
use crate::change::{Change, RelPath, Scope, Seq};
use crate::local::suspects::{ENTRY, NEW_TREE};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// How many rows are read at once.
const AT_ONCE: usize = 1000;

/// Of so many paths it is remembered that they have their repair. Of more some get a second one.
const REMEMBERED: usize = 1 << 20;

/// Records a repair of every path that a change behind `after` names, and of those that a mirror may have or not.
pub(super) fn repair(scan: &Scan, after: Seq) -> Result<(), ScanError> {
    let head = scan.journal.head();
    let reader = scan.journal.reader()?;
    let mirrors = reader.mirrors()?;
    // What is uncertain on a mirror: the notes of what it has may be lost.
    let mut parts: Vec<(Seq, Seq)> = mirrors
        .iter()
        .map(|m| (m.cursor, m.sent_upto.min(head)))
        .filter(|(from, to)| from < to)
        .collect();
    parts.push((after, head));
    parts.sort_unstable();
    let mut seen = Seen::default();
    let mut at = 0;
    for (from, to) in parts {
        at = from.max(at);
        while at < to {
            scan.check()?;
            let rows = reader.rows(at, AT_ONCE)?;
            if rows.first().is_none_or(|row| row.seq > to) {
                break;
            }
            for row in rows.into_iter().take_while(|row| row.seq <= to) {
                at = row.seq;
                for (path, scope) in concerned(row.change, &|path| is_directory(scan, path)) {
                    if seen.is_new(&path, scope) {
                        scan.record(path, scope)?;
                    }
                }
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    all: HashSet<u64>,
    hasher: RandomState,
}

impl Seen {
    fn is_new(&mut self, path: &RelPath, scope: Scope) -> bool {
        if self.all.len() >= REMEMBERED {
            return true;
        }
        let hash = self.hasher.hash_one((path, scope.depth, scope.bytes));
        self.all.insert(hash)
    }
}

/// What a change may have left otherwise than the source is. The bytes of what it names are compared; below a
/// directory that was moved, size and time: which bytes are other ones there is told by rows of their own.
fn concerned(change: Change, is_directory: &dyn Fn(&RelPath) -> bool) -> Vec<(RelPath, Scope)> {
    // What is a file here, or nothing, may be a directory there by now, with things in it.
    let with = |path: RelPath, directory: Scope| {
        let scope = if is_directory(&path) {
            directory
        } else {
            NEW_TREE
        };
        (path, scope)
    };
    let moved = |path| with(path, Scope::TREE);
    let changed = |path| with(path, ENTRY);
    match change {
        Change::Mkdir { path, .. }
        | Change::Rmdir { path }
        | Change::Unlink { path }
        | Change::Symlink { path, .. }
        | Change::Content { path, .. }
        | Change::Attr { path, .. } => vec![changed(path)],
        Change::Link { from, path } => vec![changed(from), changed(path)],
        Change::Rename { from, to } => vec![moved(from), moved(to)],
        Change::Exchange { a, b } => vec![moved(a), moved(b)],
        Change::Repair { path, scope } => vec![(path, scope)],
    }
}

fn is_directory(scan: &Scan, path: &RelPath) -> bool {
    walk::open(scan.local.root_fd(), path).is_ok()
}
