//! What may have changed without a record, while the scan at the start has yet to find it.
//!
//! The scan walks the source and finds such things by their ctime ([`Suspicion`]). The mount does not wait for
//! it. So the dangers are what the mount does to something before the walk gets there:
//!
//! - *It gets a new ctime*, by a change that is recorded, and what was wrong with it before cannot be told any
//!   more. Taken for a suspect, every file that is in use would be sent again at each start.
//! - *It is moved from where the walk has not been to where it has been*, and is never seen.
//!
//! The kernel asks for every name once before it does anything to what is there. So at that moment, while the
//! scan runs, what was found is *judged*, by the ctime that it still has. A suspect's repair is recorded
//! at once, under the path that it has in the log at this moment (the tree is held, J2), and what is done
//! to it later is recorded behind that. The scan goes by the judgement instead of the ctime. Of a directory that
//! is moved there is more to see than itself: its new place is walked once more.
//!
//! What is judged is kept until the scan ends: some 30 bytes for each inode that was asked for meanwhile.

use super::inodes::{Kind, ROOT};
use super::sync::lock;
use super::sys::{self, Result, Stat};
use super::{Local, RESERVED};
use crate::change::{Change, Depth, RelPath, Scope, Timestamp};
use rustix::fs::{AtFlags, Statx, StatxFlags};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which inodes the log may not know all about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Those whose ctime is this or later.
    pub since: Timestamp,
    /// And those with these numbers (as nodes: the root's is 1).
    pub nodes: HashSet<u64>,
}

impl Suspicion {
    /// Whether it concerns an inode.
    pub fn is_about(&self, node: u64, ctime: Timestamp) -> bool {
        ctime >= self.since || self.nodes.contains(&node)
    }
}

/// What was found out about an inode before the mount changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The log knows all about it.
    Clean,
    /// It does not; its repair is recorded.
    Recorded,
    /// It does not, and it has several names: the repairs of those that were asked for are recorded.
    SomeNamesRecorded,
    /// It does not; it is a directory, and a repair of all that is in it is recorded.
    Covered,
}

impl Judged {
    /// Whether it is a suspect.
    pub fn is_suspect(self) -> bool {
        self != Judged::Clean
    }
}

/// The repair of a suspect that is no directory.
pub const ENTRY: Scope = Scope {
    bytes: true,
    ..Scope::ENTRY
};

/// The repair of a directory that is new, with all that is in it.
pub const NEW_TREE: Scope = Scope {
    bytes: true,
    ..Scope::TREE
};

/// How much of a suspect directory is to be repaired: which names are in it. But if the directory above is a
/// suspect too, this may be another one than mirrors have by that name, moved here with things in it that
/// are as old as ever: all of it is compared. `new`: it was made since, and so was what is in it.
pub fn scope_of_directory(above: bool, new: bool) -> Scope {
    match (new, above) {
        (true, _) => NEW_TREE,
        (false, true) => Scope::TREE,
        (false, false) => Scope::NAMES,
    }
}

/// When something was made, if its file system knows.
fn birth_time(dir: impl AsFd, name: &[u8]) -> Option<Timestamp> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    born(&rustix::fs::statx(dir, name, flags, StatxFlags::BTIME).ok()?)
}

/// When what was looked at was made, if that was asked for and its file system knows.
pub fn born(stat: &Statx) -> Option<Timestamp> {
    let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then_some(Timestamp {
        seconds: stat.stx_btime.tv_sec,
        nanoseconds: stat.stx_btime.tv_nsec,
    })
}

#[derive(Default)]
struct State {
    suspicion: Suspicion,
    judged: HashMap<u64, Judged>,
    /// Names of files with several names that were asked for, as hashes of (directory, name).
    names: HashSet<u64>,
    hasher: RandomState,
    /// Directories that were moved, by their nodes, and where to.
    moved: HashMap<u64, RelPath>,
}

/// The scan as the requests see it.
#[derive(Default)]
pub struct Suspects {
    running: AtomicBool,
    state: Mutex<State>,
}

impl Suspects {
    fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Something has just been made by a request.
    pub fn made(&self, node: u64) {
        if self.is_running() {
            lock(&self.state).judged.insert(node, Judged::Clean);
        }
    }

    /// A directory has been moved.
    pub fn moved(&self, node: u64, to: Option<&RelPath>) {
        if self.is_running()
            && let Some(to) = to
        {
            lock(&self.state).moved.insert(node, to.clone());
        }
    }
}

impl Local {
    /// A scan begins: to be called before anything is asked for by the mount.
    ///
    /// # Errors
    /// The root cannot be looked at.
    pub fn begin_scan(&self, suspicion: Suspicion) -> Result<()> {
        *lock(&self.suspects.state) = State {
            suspicion,
            ..State::default()
        };
        self.suspects.running.store(true, Ordering::Release);
        let stat = self.inodes.outward(sys::stat(self.inodes.root())?);
        self.judge(None, &stat);
        Ok(())
    }

    /// The scan has seen everything, or is given up.
    pub fn end_scan(&self) {
        self.suspects.running.store(false, Ordering::Release);
        *lock(&self.suspects.state) = State::default();
    }

    /// What was found out about an inode when the mount was asked for it; none: it was not.
    pub fn judged(&self, node: u64) -> Option<Judged> {
        lock(&self.suspects.state).judged.get(&node).copied()
    }

    /// A directory that was moved since the scan began, and is yet to be walked: where it is now, and its node.
    pub fn take_moved(&self) -> Option<(RelPath, u64)> {
        let mut state = lock(&self.suspects.state);
        let node = *state.moved.keys().next()?;
        let to = state.moved.remove(&node)?;
        Some((to, node))
    }

    /// Records that something is to be made like the source on all mirrors.
    ///
    /// # Errors
    /// EIO: the log does not take it (see [`super::log`]); to be tried again.
    pub fn repair(&self, path: RelPath, scope: Scope) -> Result<()> {
        let repair = Change::Repair { path, scope };
        self.log.record_or_keep_yourself(&repair)
    }

    /// The node of an inode number of the source.
    pub fn node_of(&self, inode: u64) -> u64 {
        self.inodes.node(inode)
    }

    /// Looks a name up for the kernel, and judges what is there while a scan runs.
    pub(super) fn look_up(&self, dir: u64, name: &[u8]) -> Result<Stat> {
        let stat = self.inodes.lookup(dir, name)?;
        if self.suspects.is_running() {
            self.judge(Some((dir, name)), &stat);
        }
        Ok(stat)
    }

    /// Judges something that the kernel asks for: `at` is its directory and name, none for the root.
    fn judge(&self, at: Option<(u64, &[u8])>, stat: &Stat) {
        // From here to the record nothing is moved: the path is the one that the log has (J2).
        let tree = self.inodes.read();
        let mut state = lock(&self.suspects.state);
        let several = stat.nlink > 1 && !stat.is_dir();
        match state.judged.get(&stat.ino) {
            Some(Judged::SomeNamesRecorded) if several => {}
            Some(_) => return,
            None if state.suspicion.is_about(stat.ino, stat.ctime) => {}
            None => {
                state.judged.insert(stat.ino, Judged::Clean);
                return;
            }
        }
        let above = at.and_then(|(dir, _)| state.judged.get(&dir).copied());
        let path = match at {
            None => Some(RelPath::root()),
            Some((dir, name)) => tree.path_in(dir, name),
        };
        let mirrored =
            |path: &RelPath| Kind::of(stat).is_recorded() && self.is_mirrored(path, stat.is_dir());
        let Some(path) = path.filter(mirrored) else {
            state.judged.insert(stat.ino, Judged::Clean);
            return;
        };
        if above == Some(Judged::Covered) {
            state.judged.insert(stat.ino, Judged::Covered);
            return;
        }
        let scope = if stat.is_dir() {
            let born = at.and_then(|(dir, name)| {
                let dir = self.inodes.directory(&tree, dir).ok()?;
                birth_time(&dir, name)
            });
            let new = born.is_some_and(|born| born >= state.suspicion.since);
            scope_of_directory(above.is_some_and(Judged::is_suspect), new)
        } else {
            ENTRY
        };
        let judged = match (several, scope.depth == Depth::Tree && scope.bytes) {
            (true, _) => Judged::SomeNamesRecorded,
            (false, true) => Judged::Covered,
            (false, false) => Judged::Recorded,
        };
        state.judged.insert(stat.ino, judged);
        if several && let Some(name) = at {
            let hash = state.hasher.hash_one(name);
            if !state.names.insert(hash) {
                return;
            }
        }
        drop(state);
        // What fails is kept by the log, in order.
        let _ = self.log.record(Change::Repair { path, scope });
    }

    /// Whether an entry is one that no mirror has: ProxyFS's own.
    pub fn is_own(path: &RelPath, name: &[u8]) -> bool {
        path.is_root() && name == RESERVED
    }

    /// The node of the root.
    pub const ROOT: u64 = ROOT;
}
