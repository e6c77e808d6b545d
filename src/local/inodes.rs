//! The inode table: which inodes the kernel knows, by which names they are reached.
//!
//! The kernel names an inode by a number (*node*). It is the number that the source's file system has
//! for it, so that it is the same for all names of a file and after a restart; only the root is 1,
//! as FUSE wants it, and an inode that is 1 itself gets the root's number.
//!
//! Dangers, and what answers them:
//!
//! - *A descriptor an inode* would run out of descriptors, *a path an inode* fails beyond PATH_MAX. So
//!   an inode is its names, each of them (directory, name); directories are opened part by part,
//!   O_NOFOLLOW, and the last used ones kept open.
//! - *An inode number comes back* for another file while the kernel still means the old one. So before
//!   a name is taken away the inode is opened (O_PATH) and kept until the kernel forgets it: the number
//!   stays taken, and a file without names stays reachable.
//! - *The name has become another file* (someone changed the source behind the mount). So what is
//!   reached by a name is compared with the number, and ESTALE if it is another: the kernel looks again.
//! - *A path changes while it is recorded* (J2). Whoever needs a path holds the tree's lock, from
//!   before the system call until the record is in the log; what changes paths holds its write side.

use super::numbered::Numbered;
use super::sync::{lock, read, write};
use super::sys::{self, Result, Stat};
use crate::change::{NodeId, RelPath};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The node of the root.
pub const ROOT: u64 = 1;

/// What an inode is, as far as the log cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory: one name.
    Directory,
    /// A regular file: any number of names.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device: works here, and mirrors cannot have it.
    Special,
}

impl Kind {
    /// The kind of what `stat` is about.
    pub fn of(stat: &Stat) -> Kind {
        match stat.file_type() {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::Regular,
            libc::S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        }
    }

    /// Whether mirrors can have it, so that its changes are recorded.
    pub fn is_recorded(self) -> bool {
        match self {
            Kind::Directory | Kind::Regular | Kind::Symlink => true,
            Kind::Special => false,
        }
    }
}

/// An entry of a directory: the directory's node, and the name in it.
pub type Entry = (u64, Box<[u8]>);

struct Node {
    kind: Kind,
    /// How often the kernel was told of this node, less what it has forgotten.
    lookups: AtomicU64,
    /// Names that it was reached by and that were not taken away; the oldest first.
    names: Vec<Entry>,
    /// How many names of other nodes say that they are in here.
    children: u64,
    /// Open since its last known name went.
    kept: Option<Arc<OwnedFd>>,
}

/// All known nodes. See the module's comment for who may hold it how.
pub struct Tree {
    nodes: Numbered<Node>,
    /// What was kept of nodes that were dropped: closing it may remove a file from the disk, and nobody
    /// shall wait for that.
    dropped: Vec<Arc<OwnedFd>>,
    /// How often names were about to change.
    changes: u64,
}

impl Tree {
    fn new() -> Tree {
        let root = Node {
            kind: Kind::Directory,
            lookups: AtomicU64::new(1),
            names: Vec::new(),
            children: 0,
            kept: None,
        };
        Tree {
            nodes: Numbered::from_iter([(ROOT, root)]),
            dropped: Vec::new(),
            changes: 0,
        }
    }

    /// What the node is; none if the kernel does not know it (any more).
    pub fn kind(&self, node: u64) -> Option<Kind> {
        self.nodes.get(&node).map(|n| n.kind)
    }

    /// The path of the node by its oldest known name. None for one without names, also below a removed
    /// directory.
    pub fn path(&self, node: u64) -> Option<RelPath> {
        if node == ROOT {
            return Some(RelPath::root());
        }
        let (dir, name) = self.nodes.get(&node)?.names.first()?;
        self.path_in(*dir, name)
    }

    /// The path of a node that has exactly one known name.
    pub fn only_path(&self, node: u64) -> Option<RelPath> {
        match &*self.nodes.get(&node)?.names {
            [(dir, name)] => self.path_in(*dir, name),
            _ => None,
        }
    }

    /// The paths of the node by all its known names, the oldest first.
    pub fn paths(&self, node: u64) -> impl Iterator<Item = RelPath> {
        let names = self.nodes.get(&node).into_iter().flat_map(|n| &n.names);
        names.filter_map(|(dir, name)| self.path_in(*dir, name))
    }

    /// The path of the entry `name` of the directory `dir`; none if the directory has none.
    pub fn path_in(&self, mut dir: u64, name: &[u8]) -> Option<RelPath> {
        let mut parts = vec![name];
        while dir != ROOT {
            let (above, name) = self.nodes.get(&dir)?.names.first()?;
            parts.push(name);
            dir = *above;
            // Directories moved behind the mount can look like a ring for a while.
            if parts.len() > self.nodes.len() + 1 {
                return None;
            }
        }
        parts.reverse();
        RelPath::new(&parts.join(&b'/')).ok()
    }

    /// Counts one more lookup if the node is known by this name.
    fn count_known(&self, node: u64, kind: Kind, dir: u64, name: &[u8]) -> bool {
        let Some(known) = self.nodes.get(&node) else {
            return false;
        };
        let same = known.kind == kind && known.names.iter().any(|n| n.0 == dir && *n.1 == *name);
        if same {
            known.lookups.fetch_add(1, Ordering::Relaxed);
        }
        same
    }

    /// Notes that the kernel has been told of `node` under this name.
    pub fn enter(&mut self, node: u64, kind: Kind, dir: u64, name: &[u8]) {
        if self.count_known(node, kind, dir, name) {
            return;
        }
        let known = self.nodes.entry(node).or_insert_with(|| Node {
            kind,
            lookups: AtomicU64::new(0),
            names: Vec::new(),
            children: 0,
            kept: None,
        });
        known.lookups.fetch_add(1, Ordering::Relaxed);
        // A directory has one name. Another kind than before: the number was given to another inode
        // behind the mount, and the old names are not this one's.
        let old = if kind == Kind::Directory || known.kind != kind {
            std::mem::take(&mut known.names)
        } else {
            Vec::new()
        };
        known.kind = kind;
        known.kept = None;
        // Nearly all have one name, and a vector that grows by itself begins with room for four.
        known.names.reserve_exact(1);
        known.names.push((dir, name.into()));
        if let Some(above) = self.nodes.get_mut(&dir) {
            above.children += 1;
        }
        self.leave(&old);
    }

    /// A known node gets one more name, and nobody was told yet.
    pub fn add_name(&mut self, node: u64, dir: u64, name: &[u8]) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.names.push((dir, name.into()));
            known.kept = None;
            if let Some(above) = self.nodes.get_mut(&dir) {
                above.children += 1;
            }
        }
    }

    /// Takes a name away. When it was the last known one, `kept` stays open until the kernel forgets
    /// the node.
    pub fn remove_name(&mut self, node: u64, dir: u64, name: &[u8], kept: Option<OwnedFd>) {
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        let before = known.names.len();
        known.names.retain(|n| n.0 != dir || *n.1 != *name);
        if known.names.len() == before {
            return;
        }
        if known.names.is_empty() {
            known.kept = kept.map(Arc::new);
        }
        self.leave(&[(dir, name.into())]);
    }

    /// These names are gone: their directories have fewer children, and may be nobody's then.
    fn leave(&mut self, names: &[Entry]) {
        for (dir, _) in names {
            if let Some(above) = self.nodes.get_mut(dir) {
                above.children = above.children.saturating_sub(1);
            }
            self.drop_unknown(*dir);
        }
    }

    /// Takes the kernel's word that it forgot `count` lookups; true if none are left.
    fn forget(&self, node: u64, count: u64) -> bool {
        let Some(known) = self.nodes.get(&node) else {
            return false;
        };
        let less = |n: u64| Some(n.saturating_sub(count));
        let before = known
            .lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        before.is_ok_and(|n| n <= count)
    }

    /// Drops the node if the kernel has forgotten it and no known name lies in it; then the same for
    /// the directories above it.
    pub fn drop_unknown(&mut self, node: u64) {
        let mut candidates = vec![node];
        while let Some(node) = candidates.pop() {
            let gone = self.nodes.get(&node).is_some_and(|n| {
                n.lookups.load(Ordering::Acquire) == 0 && n.children == 0 && node != ROOT
            });
            if !gone {
                continue;
            }
            let Some(node) = self.nodes.remove(&node) else {
                continue;
            };
            self.dropped.extend(node.kept);
            for (dir, _) in node.names {
                if let Some(above) = self.nodes.get_mut(&dir) {
                    above.children = above.children.saturating_sub(1);
                }
                candidates.push(dir);
            }
        }
    }

    /// Whether the node is here although the kernel does not know it any more.
    pub fn is_forgotten(&self, node: u64) -> bool {
        let known = self.nodes.get(&node);
        known.is_some_and(|n| n.lookups.load(Ordering::Acquire) == 0)
    }

    /// Gives room back after most of what was known was forgotten; true if there was some.
    fn shrink(&mut self) -> bool {
        let spare = self.nodes.capacity() > ROOM && self.nodes.len() < self.nodes.capacity() / 4;
        if spare {
            self.nodes.shrink_to((self.nodes.len() * 2).max(ROOM));
        }
        spare
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

/// Directories that are open, the least lately used ones closed first (second chance).
struct OpenDirectories {
    open: Numbered<(Arc<OwnedFd>, bool)>,
    ring: VecDeque<u64>,
    limit: usize,
}

impl OpenDirectories {
    fn get(&mut self, node: u64) -> Option<Arc<OwnedFd>> {
        let slot = self.open.get_mut(&node)?;
        slot.1 = true;
        Some(slot.0.clone())
    }

    fn put(&mut self, node: u64, fd: Arc<OwnedFd>) {
        if self.open.insert(node, (fd, false)).is_none() {
            self.ring.push_back(node);
        }
        while self.open.len() > self.limit {
            let Some(oldest) = self.ring.pop_front() else {
                return;
            };
            match self.open.get_mut(&oldest) {
                Some(slot) if slot.1 => {
                    slot.1 = false;
                    self.ring.push_back(oldest);
                }
                _ => {
                    self.open.remove(&oldest);
                }
            }
        }
    }

    fn remove(&mut self, node: u64) {
        if self.open.remove(&node).is_some() {
            self.ring.retain(|n| *n != node);
        }
    }
}

/// Where a node was found.
pub struct Located<'t> {
    /// The directory of its name; none for one that is reached by `fd` only.
    pub entry: Option<(Arc<OwnedFd>, &'t Entry)>,
    /// A descriptor of it, if there is one already: the root, directories, and what has no name.
    fd: Option<Arc<OwnedFd>>,
    /// What it is now. `ino` is the source's, not the node.
    pub stat: Stat,
}

/// The table, and the way from a node to its file.
pub struct Inodes {
    tree: RwLock<Tree>,
    directories: Mutex<OpenDirectories>,
    /// What the kernel has forgotten, to be counted when nobody has to wait for it.
    forgotten: Mutex<Vec<(u64, u64)>>,
    root: Arc<OwnedFd>,
    root_stat: Stat,
}

/// Room for so many nodes is never given back.
const ROOM: usize = 8192;

/// How much may be forgotten and not counted yet.
const FORGOTTEN: usize = 1024;

impl Inodes {
    /// A table that knows the root only. `limit`: how many directories are kept open.
    pub fn new(root: OwnedFd, limit: usize) -> Result<Inodes> {
        let root_stat = sys::stat(&root)?;
        Ok(Inodes {
            tree: RwLock::new(Tree::new()),
            directories: Mutex::new(OpenDirectories {
                open: Numbered::default(),
                ring: VecDeque::new(),
                limit: limit.max(1),
            }),
            forgotten: Mutex::default(),
            root: Arc::new(root),
            root_stat,
        })
    }

    /// The source's root.
    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Holds all paths still.
    pub fn read(&self) -> RwLockReadGuard<'_, Tree> {
        read(&self.tree)
    }

    /// Holds everything that needs a path away, as names are about to change.
    pub fn write(&self) -> RwLockWriteGuard<'_, Tree> {
        let mut tree = write(&self.tree);
        tree.changes += 1;
        tree
    }

    /// The node of an inode number: the same, but for the root (1) and an inode 1 (the root's number).
    pub fn node(&self, ino: u64) -> u64 {
        if ino == self.root_stat.ino {
            ROOT
        } else if ino == ROOT {
            self.root_stat.ino
        } else {
            ino
        }
    }

    /// The same, with the node for a number.
    pub fn outward(&self, stat: Stat) -> Stat {
        Stat {
            ino: self.node(stat.ino),
            ..stat
        }
    }

    /// What the entry is.
    ///
    /// # Errors
    /// EXDEV for what is on another file system: mounted below the source, or a Btrfs subvolume.
    pub fn stat_at(&self, dir: impl AsFd, name: &[u8]) -> Result<Stat> {
        self.on_the_source(sys::stat_at(dir, name)?)
    }

    /// What a descriptor stands for.
    ///
    /// # Errors
    /// As [`Inodes::stat_at`].
    pub fn stat_opened(&self, fd: impl AsFd) -> Result<Stat> {
        self.on_the_source(sys::stat(fd)?)
    }

    fn on_the_source(&self, stat: Stat) -> Result<Stat> {
        if stat.dev != self.root_stat.dev {
            return Err(Errno::XDEV);
        }
        Ok(stat)
    }

    /// The directory `node`, as a descriptor to start from.
    ///
    /// # Errors
    /// ESTALE if it is not known, or not there any more.
    pub fn directory(&self, tree: &Tree, node: u64) -> Result<Arc<OwnedFd>> {
        // Upwards to a directory that is open, then down again.
        let mut closed: Vec<(u64, &Entry)> = Vec::new();
        let mut at = node;
        let mut fd = loop {
            if at == ROOT {
                break self.root.clone();
            }
            if let Some(open) = lock(&self.directories).get(at) {
                break open;
            }
            let known = tree.nodes.get(&at).ok_or(Errno::STALE)?;
            if known.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            if let Some(kept) = &known.kept {
                break kept.clone();
            }
            let name = known.names.first().ok_or(Errno::STALE)?;
            closed.push((at, name));
            if closed.len() > tree.nodes.len() {
                return Err(Errno::STALE);
            }
            at = name.0;
        };
        for (node, (_, name)) in closed.into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let opened = sys::open_at(&fd, name, flags, 0).map_err(|e| match e {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
                other => other,
            })?;
            self.expect(node, &sys::stat(&opened)?)?;
            fd = Arc::new(opened);
            lock(&self.directories).put(node, fd.clone());
        }
        Ok(fd)
    }

    fn expect(&self, node: u64, stat: &Stat) -> Result<()> {
        if stat.dev == self.root_stat.dev && self.node(stat.ino) == node {
            Ok(())
        } else {
            Err(Errno::STALE)
        }
    }

    /// Finds the node: by the first of its names that still leads to it, or by what was kept of it.
    ///
    /// # Errors
    /// ESTALE if it is not known, or no name leads to it.
    pub fn locate<'t>(&self, tree: &'t Tree, node: u64) -> Result<Located<'t>> {
        self.locate_by(tree, node, |_| true)
    }

    /// The same, by names that `accept` takes only.
    pub fn locate_by<'t>(
        &self,
        tree: &'t Tree,
        node: u64,
        accept: impl Fn(&Entry) -> bool,
    ) -> Result<Located<'t>> {
        let open = |fd: Arc<OwnedFd>| {
            let stat = sys::stat(&fd)?;
            Ok(Located {
                entry: None,
                fd: Some(fd),
                stat,
            })
        };
        if node == ROOT {
            return open(self.root.clone());
        }
        let known = tree.nodes.get(&node).ok_or(Errno::STALE)?;
        if known.kind == Kind::Directory {
            return open(self.directory(tree, node)?);
        }
        if let Some(kept) = &known.kept {
            return open(kept.clone());
        }
        for entry in known.names.iter().filter(|entry| accept(entry)) {
            let Ok(dir) = self.directory(tree, entry.0) else {
                continue;
            };
            if let Ok(stat) = sys::stat_at(&dir, &entry.1)
                && self.expect(node, &stat).is_ok()
            {
                return Ok(Located {
                    entry: Some((dir, entry)),
                    fd: None,
                    stat,
                });
            }
        }
        Err(Errno::STALE)
    }

    /// What the node is now, `ino` being the node.
    pub fn stat(&self, tree: &Tree, node: u64) -> Result<Stat> {
        Ok(self.outward(self.locate(tree, node)?.stat))
    }

    /// Opens the node.
    pub fn open(&self, tree: &Tree, node: u64, flags: OFlags) -> Result<OwnedFd> {
        let found = self.locate(tree, node)?;
        let opened = match (&found.entry, &found.fd) {
            (Some((dir, entry)), _) => sys::open_at(dir, &entry.1, flags, 0)?,
            (None, Some(fd)) if found.stat.is_dir() => sys::open_at(fd, b".", flags, 0)?,
            (None, Some(fd)) => sys::reopen(fd, flags)?,
            (None, None) => return Err(Errno::STALE),
        };
        self.expect(node, &sys::stat(&opened)?)?;
        Ok(opened)
    }

    /// Opens the node for its attributes only, whatever it is.
    pub fn open_path(&self, tree: &Tree, node: u64) -> Result<Arc<OwnedFd>> {
        let found = self.locate(tree, node)?;
        match (found.entry, found.fd) {
            (_, Some(fd)) => Ok(fd),
            (Some((dir, entry)), None) => {
                let opened = sys::open_at(dir, &entry.1, OFlags::PATH, 0)?;
                self.expect(node, &sys::stat(&opened)?)?;
                Ok(Arc::new(opened))
            }
            (None, None) => Err(Errno::STALE),
        }
    }

    /// The identity of what was found.
    pub fn node_id(&self, found: &Located) -> Result<NodeId> {
        match (&found.entry, &found.fd) {
            (Some((dir, entry)), _) => sys::node_id(dir, &entry.1),
            (None, Some(fd)) => sys::node_id(fd, b""),
            (None, None) => Err(Errno::STALE),
        }
    }

    /// Looks a name up and counts it as known to the kernel.
    pub fn lookup(&self, dir: u64, name: &[u8]) -> Result<Stat> {
        let (stat, seen_at) = {
            let tree = self.read();
            let stat = self.outward(self.stat_at(self.directory(&tree, dir)?, name)?);
            if tree.count_known(stat.ino, Kind::of(&stat), dir, name) {
                return Ok(stat);
            }
            (stat, tree.changes)
        };
        let mut tree = write(&self.tree);
        let stat = if tree.changes == seen_at {
            stat
        } else {
            // Between the two another file may have got the name.
            self.outward(self.stat_at(self.directory(&tree, dir)?, name)?)
        };
        tree.enter(stat.ino, Kind::of(&stat), dir, name);
        Ok(stat)
    }

    /// The kernel has forgotten `count` lookups. Counted by [`Inodes::count_forgotten`]: at once if nobody
    /// holds the tree, since a request that does must not be waited for, nor wait; else by the next one.
    pub fn forget(&self, node: u64, count: u64, needed: impl Fn(u64) -> bool) {
        let many = {
            let mut forgotten = lock(&self.forgotten);
            forgotten.push((node, count));
            forgotten.len() >= FORGOTTEN
        };
        self.count_forgotten(many, needed);
    }

    /// Counts what the kernel has forgotten; if `wait`, for certain. `needed` says whether a node must
    /// stay although the kernel knows it no more (bytes of it are not logged yet).
    pub fn count_forgotten(&self, wait: bool, needed: impl Fn(u64) -> bool) {
        let mut tree = match self.tree.try_write() {
            Ok(tree) => tree,
            Err(_) if wait => write(&self.tree),
            Err(_) => return,
        };
        let forgotten = std::mem::take(&mut *lock(&self.forgotten));
        for (node, count) in forgotten {
            if node != ROOT && tree.forget(node, count) && !needed(node) {
                self.drop_unknown(&mut tree, node);
            }
        }
        let dropped = std::mem::take(&mut tree.dropped);
        let shrunk = wait && tree.shrink();
        drop(tree);
        drop(dropped);
        if shrunk {
            sys::give_memory_back();
        }
    }

    /// Drops the node if the kernel knows it no more.
    pub fn drop_unknown(&self, tree: &mut Tree, node: u64) {
        let directory = tree.kind(node) == Some(Kind::Directory);
        tree.drop_unknown(node);
        if directory && tree.kind(node).is_none() {
            lock(&self.directories).remove(node);
        }
    }
}
