//! The border between what is mirrored and what is not: excluded paths, and kinds that mirrors cannot have.
//!
//! What lies behind the border is not logged. The dangers are at the border itself:
//!
//! - *What comes out of the excluded world* was never sent: a plain Rename would find nothing on the mirrors.
//!   So its new path is recorded as if it were made there, a directory with all that is below. What is there
//!   already is replaced by a file's content in one step, and removed before anything else comes.
//! - *What goes into it* would stay on the mirrors for ever: so it is recorded as removed, a directory from
//!   its leaves up. What below was excluded, or never logged, mirrors do not have.
//! - *A directory that stays in sight takes the border along*: `/a/cache/` excludes something below `a`, and
//!   not below `b` once `a` is `b`. So after a rename what is below is looked through, if a pattern may say
//!   something else of it there.
//! - *A file with a name on either side*: what is written to it by the excluded one shows by the other one,
//!   which is recorded then.
//!
//! All of it is recorded with the tree's write lock in hand, as the rename itself (J2): nothing of what is
//! looked through can change meanwhile. That takes as long as there are entries in it.

use super::Local;
use super::inodes::{Kind, Located, Tree};
use super::namespace::{Place, owner, times};
use super::sys::{self, Result, Stat};
use crate::change::{Change, Extent, RelPath};
use rustix::fs::{OFlags, RawDir};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Something that is moved.
pub struct Moved<'a> {
    stat: Stat,
    from: &'a Place<'a>,
    to: &'a Place<'a>,
    /// Mirrors have it at its old path.
    known: bool,
    /// Mirrors shall have it at its new path.
    wanted: bool,
}

/// An entry that is looked at in its new place.
struct Entry {
    above: Arc<OwnedFd>,
    name: Box<[u8]>,
    /// Where it was.
    old: RelPath,
    /// Where it is.
    new: RelPath,
}

/// The records of one move, one after the other. One that fails is kept ([`super::log`]), and the rest must
/// follow it.
struct Records<'a> {
    local: &'a Local,
    moved: Vec<&'a Moved<'a>>,
    /// Of files with several names: the first of those that have arrived.
    arrived: HashMap<u64, RelPath>,
    result: Result<()>,
}

impl Records<'_> {
    fn record(&mut self, change: Change) {
        let done = self.local.log.record(change);
        self.result = self.result.and(done);
    }

    /// Whether mirrors have what is at this path although it was moved: it was in sight before, too.
    fn was_mirrored(&self, path: &RelPath) -> bool {
        self.moved.iter().all(|moved| {
            let (Some(from), Some(to)) = (&moved.from.path, &moved.to.path) else {
                return true;
            };
            if !path.is_at_or_below(to) {
                return true;
            }
            let below = &path.as_bytes()[to.as_bytes().len()..];
            let old = RelPath::new(&[from.as_bytes(), below].concat());
            moved.known && old.is_ok_and(|old| self.local.is_mirrored(&old, false))
        })
    }

    /// A path by which mirrors have a file that arrives by another one.
    fn other_name(&self, tree: &Tree, node: u64) -> Option<RelPath> {
        if let Some(path) = self.arrived.get(&node) {
            return Some(path.clone());
        }
        if self.local.open.is_new(node) {
            return None;
        }
        tree.paths(node)
            .find(|path| self.local.is_mirrored(path, false) && self.was_mirrored(path))
    }
}

impl Local {
    /// Whether mirrors have what is at this path, if it is of a kind that they can have.
    pub fn is_mirrored(&self, path: &RelPath, is_directory: bool) -> bool {
        !self.options.exclude.excludes(path, is_directory)
    }

    /// The oldest known path of the node at which mirrors have it.
    pub(super) fn mirrored_path(&self, tree: &Tree, node: u64, is_dir: bool) -> Option<RelPath> {
        if self.options.exclude.is_empty() || node == super::ROOT {
            return tree.path(node);
        }
        tree.paths(node).find(|path| self.is_mirrored(path, is_dir))
    }

    /// Finds a file by a name at which mirrors have it; if there is none, by any.
    pub(super) fn locate_mirrored<'t>(&self, tree: &'t Tree, node: u64) -> Result<Located<'t>> {
        if self.options.exclude.is_empty() {
            return self.inodes.locate(tree, node);
        }
        let mirrored = |(dir, name): &super::inodes::Entry| {
            let path = tree.path_in(*dir, name);
            path.is_some_and(|path| self.is_mirrored(&path, false))
        };
        match self.inodes.locate_by(tree, node, mirrored) {
            Err(Errno::STALE) => self.inodes.locate(tree, node),
            found => found,
        }
    }

    /// Before a move: what mirrors have of it. What was written to it before is logged, if they have it
    /// before and after.
    pub(super) fn known_before<'a>(
        &self,
        tree: &Tree,
        stat: &Stat,
        from: &'a Place<'a>,
        to: &'a Place<'a>,
    ) -> Result<Moved<'a>> {
        let recorded = Kind::of(stat).is_recorded();
        let mirrored = |place: &Place| {
            let path = place.path.as_ref();
            recorded && path.is_some_and(|path| self.is_mirrored(path, stat.is_dir()))
        };
        let (was, wanted) = (mirrored(from), mirrored(to));
        if was && wanted {
            self.log_before(tree, stat.ino)?;
        }
        Ok(Moved {
            stat: *stat,
            from,
            to,
            known: was && !self.open.is_new(stat.ino),
            wanted,
        })
    }

    /// After a move. `replaced`: what was at its new path, if the log knew it.
    pub(super) fn record_rename(
        &self,
        tree: &Tree,
        moved: &Moved,
        replaced: Option<&Stat>,
    ) -> Result<()> {
        let (Some(from), Some(to)) = (&moved.from.path, &moved.to.path) else {
            return Ok(());
        };
        let mut records = self.records(vec![moved]);
        let replaced = replaced.filter(|old| self.is_mirrored(to, old.is_dir()));
        if moved.known && moved.wanted {
            records.record(rename(from, to));
            self.cross_below(tree, moved, &mut records);
            return records.result;
        }
        if moved.known {
            self.depart(&moved.entry(from, from), &mut records);
        }
        if let Some(old) = replaced {
            // A link, which it may be, does not replace anything.
            let regular = Kind::of(&moved.stat) == Kind::Regular;
            let by_content = moved.wanted && regular && moved.stat.nlink == 1;
            if !by_content {
                records.record(removal(to.clone(), old));
            }
        }
        if moved.wanted {
            self.arrive(tree, moved.entry(to, to), &mut records);
        }
        self.crossed.fetch_add(1, Ordering::Relaxed);
        records.result
    }

    /// After two have changed places.
    pub(super) fn record_exchange(&self, tree: &Tree, a: &Moved, b: &Moved) -> Result<()> {
        let (Some(at_a), Some(at_b)) = (&a.from.path, &b.from.path) else {
            return Ok(());
        };
        let mut records = self.records(vec![a, b]);
        for (moved, old) in [(a, at_a), (b, at_b)] {
            if moved.known && !moved.wanted {
                self.depart(&moved.entry(old, old), &mut records);
            }
        }
        match (a.known && a.wanted, b.known && b.wanted) {
            (true, true) => records.record(Change::Exchange {
                a: at_a.clone(),
                b: at_b.clone(),
            }),
            (true, false) => records.record(rename(at_a, at_b)),
            (false, true) => records.record(rename(at_b, at_a)),
            (false, false) => {}
        }
        for (moved, new) in [(a, at_b), (b, at_a)] {
            match (moved.known, moved.wanted) {
                (true, true) => self.cross_below(tree, moved, &mut records),
                (false, true) => self.arrive(tree, moved.entry(new, new), &mut records),
                (_, false) => {}
            }
        }
        self.crossed.fetch_add(1, Ordering::Relaxed);
        records.result
    }

    fn records<'a>(&'a self, moved: Vec<&'a Moved<'a>>) -> Records<'a> {
        Records {
            local: self,
            moved,
            arrived: HashMap::new(),
            result: Ok(()),
        }
    }

    /// Below a directory that mirrors have moved too: what has come into sight, and what has gone out of it.
    fn cross_below(&self, tree: &Tree, moved: &Moved, records: &mut Records) {
        let (Some(from), Some(to)) = (&moved.from.path, &moved.to.path) else {
            return;
        };
        if !moved.stat.is_dir() || !self.options.exclude.may_differ_below(from, to) {
            return;
        }
        self.crossed.fetch_add(1, Ordering::Relaxed);
        let mut to_do = entries(&moved.entry(from, to));
        while let Some(entry) = to_do.pop() {
            let Ok(stat) = self.inodes.stat_at(&entry.above, &entry.name) else {
                continue;
            };
            let was = self.is_mirrored(&entry.old, stat.is_dir());
            match (was, self.is_mirrored(&entry.new, stat.is_dir())) {
                (true, true) if stat.is_dir() => to_do.extend(entries(&entry)),
                (true, false) => self.depart(&entry, records),
                (false, true) => self.arrive(tree, entry, records),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// Records that mirrors lose an entry and all below: of what they had by the old paths, as it is called
    /// by the new ones there.
    fn depart(&self, top: &Entry, records: &mut Records) {
        let mut gone = Vec::new();
        let mut to_do = vec![top.clone()];
        while let Some(entry) = to_do.pop() {
            let Ok(stat) = self.inodes.stat_at(&entry.above, &entry.name) else {
                continue;
            };
            if !self.has(&entry.old, &stat) {
                continue;
            }
            if stat.is_dir() {
                to_do.extend(entries(&entry));
            }
            gone.push(removal(entry.new, &stat));
        }
        for change in gone.into_iter().rev() {
            records.record(change);
        }
    }

    fn has(&self, path: &RelPath, stat: &Stat) -> bool {
        Kind::of(stat).is_recorded()
            && self.is_mirrored(path, stat.is_dir())
            && !self.open.is_new(self.inodes.node(stat.ino))
    }

    /// Records an entry and all below as if it were made there now.
    fn arrive(&self, tree: &Tree, top: Entry, records: &mut Records) {
        // A directory's times come after what is in it.
        let mut to_do = vec![(top, false)];
        while let Some((entry, filled)) = to_do.pop() {
            let Ok(stat) = self.inodes.stat_at(&entry.above, &entry.name) else {
                continue;
            };
            if !self.is_mirrored(&entry.new, stat.is_dir()) {
                continue;
            }
            let path = entry.new.clone();
            match Kind::of(&stat) {
                Kind::Directory if filled => records.record(Change::Attr {
                    path,
                    symlink: false,
                    mode: None,
                    owner: None,
                    times: Some(times(&stat)),
                }),
                Kind::Directory => {
                    records.record(Change::Mkdir {
                        path,
                        mode: stat.permissions(),
                        owner: owner(&stat),
                    });
                    let below = entries(&entry);
                    to_do.push((entry, true));
                    to_do.extend(below.into_iter().map(|entry| (entry, false)));
                }
                Kind::Symlink => {
                    let target = rustix::fs::readlinkat(&entry.above, &*entry.name, Vec::new());
                    if let Ok(target) = target {
                        records.record(Change::Symlink {
                            path,
                            target: target.into_bytes().into(),
                            owner: owner(&stat),
                            times: times(&stat),
                        });
                    }
                }
                Kind::Regular => {
                    let node = self.inodes.node(stat.ino);
                    let from = match stat.nlink {
                        0 | 1 => None,
                        _ => records.other_name(tree, node),
                    };
                    if stat.nlink > 1 {
                        records.arrived.entry(node).or_insert_with(|| path.clone());
                    }
                    match from {
                        Some(from) => records.record(Change::Link { from, path }),
                        None => self.arrive_file(&entry, &stat, records),
                    }
                }
                Kind::Special => {}
            }
        }
    }

    /// A file that mirrors do not have by any name. What is marked of it is in this record.
    fn arrive_file(&self, entry: &Entry, stat: &Stat, records: &mut Records) {
        let Ok(node) = sys::node_id(&entry.above, &entry.name) else {
            return;
        };
        let state = self.open.state(self.inodes.node(stat.ino));
        let mut dirty = state.as_ref().map(|state| state.lock());
        if let Some(dirty) = &mut dirty {
            dirty.look();
            dirty.protect();
        }
        records.record(Change::Content {
            path: entry.new.clone(),
            node,
            extent: Extent::Whole,
            size: stat.size,
            linked: stat.nlink > 1,
        });
        if let Some(dirty) = &mut dirty {
            dirty.logged();
        }
    }
}

impl Moved<'_> {
    /// It in its new place, with these as its paths.
    fn entry(&self, old: &RelPath, new: &RelPath) -> Entry {
        Entry {
            above: self.to.fd.clone(),
            name: self.to.name.into(),
            old: old.clone(),
            new: new.clone(),
        }
    }
}

impl Clone for Entry {
    fn clone(&self) -> Entry {
        Entry {
            above: self.above.clone(),
            name: self.name.clone(),
            old: self.old.clone(),
            new: self.new.clone(),
        }
    }
}

/// What is in a directory; nothing if it is none.
fn entries(of: &Entry) -> Vec<Entry> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(dir) = sys::open_at(of.above.as_fd(), &of.name, flags, 0) else {
        return found;
    };
    let dir = Arc::new(dir);
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut listing = RawDir::new(&dir, &mut buffer);
    while let Some(Ok(entry)) = listing.next() {
        let name = entry.file_name().to_bytes();
        if let (Ok(old), Ok(new)) = (of.old.join(name), of.new.join(name)) {
            found.push(Entry {
                above: dir.clone(),
                name: name.into(),
                old,
                new,
            });
        }
    }
    found
}

fn rename(from: &RelPath, to: &RelPath) -> Change {
    Change::Rename {
        from: from.clone(),
        to: to.clone(),
    }
}

fn removal(path: RelPath, stat: &Stat) -> Change {
    match stat.is_dir() {
        true => Change::Rmdir { path },
        false => Change::Unlink { path },
    }
}
