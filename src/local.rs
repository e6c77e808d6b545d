//! The local effect of every request and its record in the log: the one place that orders the two.
//!
//! What could go wrong between the effect and the record, and the ordering that answers it:
//!
//! - *Recorded after the application knows of it*, a change could be missing in the log when everything
//!   is killed (J1). So a request is answered after its record: namespace changes and attributes at once,
//!   bytes at the close() that follows. Killed between the effect and the record, nobody was told of it,
//!   and the scan at the next start finds it by its ctime. (That scan is a room to come, here and wherever
//!   it is spoken of; until then such a change reaches the mirrors with the next one of the same file.)
//! - *Recorded in another order than it happened*, a change would be replayed on the wrong file (J2).
//!   Requests that change the tree hold the tree lock's write side over system call and record; requests
//!   that record something under a path hold its read side. A file that is renamed or linked is logged
//!   before, so that what was written before a rename is on the mirror before it.
//! - *Not recordable* (disk full): [`log`] keeps what happened, in order, and refuses what has not (J6).
//! - *Half a file*: a new file is recorded when a writer closes it, with all that was set on it before;
//!   what is removed before it was recorded never travels (P4).
//!
//! Order of locks: the tree ([`inodes`]), then one file's ([`open_files`]), then the log's. A file's lock
//! is never held over a read or write of data: a slow disk under one file must not hold the tree up.
//! The tree lock is never taken twice by one thread (a waiting writer between the two would end it).
//!
//! The rooms: [`namespace`], [`attributes`], [`data`] and [`directories`] hold the requests.

mod adopt;
mod attributes;
mod border;
mod data;
mod directories;
mod inodes;
mod log;
mod namespace;
mod numbered;
mod open_files;
mod search;
pub mod suspects;
mod sync;
mod sys;
mod unseen;

pub use adopt::Adopted;
pub use attributes::SetAttributes;
pub use data::{Opened, Writer, Written};
pub use directories::DirectoryEntry;
pub use open_files::Access;
pub use sys::{Caller, SetTime, Stat, node_id, open_node, without_fsetid};

use crate::change::{Change, NodeId, RelPath};
use crate::exclude::Exclude;
use crate::journal::{RecordError, Recorder};
use directories::{KeptListings, OpenDirectory};
use inodes::{Inodes, Kind, ROOT, Tree};
use log::Log;
use open_files::{Dirty, FileState, OpenFiles, Which};
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use suspects::Suspects;
use sys::Result;

/// The name in the root that is ProxyFS's own, and hidden from the mount.
pub const RESERVED: &[u8] = b".proxyfs";

/// How the file system side works.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// A file that stays open is logged when nobody wrote to it for so long.
    pub flush_after: Duration,
    /// And at the latest so long after the first unlogged write.
    pub flush_max: Duration,
    /// How many directories are kept open at most; never more than a quarter of the descriptors that
    /// the process may have.
    pub open_directories: usize,
    /// What is not mirrored, and so not logged.
    pub exclude: Exclude,
}

impl Default for LocalOptions {
    fn default() -> LocalOptions {
        LocalOptions {
            flush_after: Duration::from_secs(5),
            flush_max: Duration::from_secs(600),
            open_directories: 1024,
            exclude: Exclude::default(),
        }
    }
}

/// Why a source cannot be used.
#[derive(Debug)]
pub enum LocalError {
    /// It is not there, or cannot be opened.
    Open(PathBuf, io::Error),
    /// It is a FUSE file system already, most likely the mount of another daemon.
    IsFuse(PathBuf),
    /// Its file system cannot name inodes (`name_to_handle_at(2)`).
    NoHandles(PathBuf, io::Error),
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LocalError::Open(path, e) => write!(
                f,
                "the source {} cannot be opened: {e}; check `source` in the configuration",
                path.display()
            ),
            LocalError::IsFuse(path) => write!(
                f,
                "the source {} is a FUSE file system; most likely another proxyfs is mounted over it: \
                 stop that one, or unmount it (umount {0}), and start again",
                path.display()
            ),
            LocalError::NoHandles(path, e) => write!(
                f,
                "the file system of the source {} has no file handles ({e}); use a directory on ext4, \
                 XFS, Btrfs, ZFS, F2FS or tmpfs (overlayfs, and so most containers' own file systems, \
                 have none), and run as root",
                path.display()
            ),
        }
    }
}

impl std::error::Error for LocalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LocalError::Open(_, e) | LocalError::NoHandles(_, e) => Some(e),
            LocalError::IsFuse(_) => None,
        }
    }
}

/// What was made here and mirrors cannot have; since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Device nodes, FIFOs and sockets that were made.
    pub special_files: u64,
}

/// So many unlogged files are told by their numbers; of more, since when there are some.
const MOST_UNLOGGED: usize = 4096;

/// See [`Local::unlogged`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlogged {
    /// Until when everything is logged, by this machine's clock; 1970 while the log is closed.
    pub until: SystemTime,
    /// Files that are written to, or may be, and not logged yet, whatever their ctime is.
    pub nodes: Vec<u64>,
}

/// The source, as the mount and the daemon use it.
pub struct Local {
    source: PathBuf,
    options: LocalOptions,
    inodes: Inodes,
    open: OpenFiles,
    directories: RwLock<HashMap<u64, Arc<OpenDirectory>>>,
    last_directory: AtomicU64,
    kept: Mutex<KeptListings>,
    log: Log,
    special_files: AtomicU64,
    /// Whether a write shows in a file's times, always.
    fine_stamps: bool,
    /// How often something was moved over the border of what is excluded.
    crossed: AtomicU64,
    /// What is judged while a scan runs.
    suspects: Suspects,
}

/// Whether this directory can be a source: it is there, is no mount of ours, and its file system has handles.
///
/// # Errors
/// What [`Local::open`] would say.
pub fn try_source(source: &Path) -> std::result::Result<(), LocalError> {
    open_source(source).map(drop)
}

/// Whether a directory, the source's root, holds nothing but ProxyFS's own entry and those of these `names`.
///
/// # Errors
/// It cannot be read.
pub fn holds_only(root: impl AsFd, names: &[&[u8]]) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(root, c".", flags, rustix::fs::Mode::empty())?;
    for entry in rustix::fs::Dir::new(root)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b".." | RESERVED) && !names.contains(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the source's root, if it can be a source.
///
/// # Errors
/// See [`LocalError`].
pub fn open_source(source: &Path) -> std::result::Result<OwnedFd, LocalError> {
    let failed = |e: Errno| LocalError::Open(source.to_owned(), e.into());
    let no_handles = |e: io::Error| LocalError::NoHandles(source.to_owned(), e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, source, flags, rustix::fs::Mode::empty()).map_err(failed)?;
    if sys::is_fuse(&root).map_err(failed)? {
        return Err(LocalError::IsFuse(source.to_owned()));
    }
    let id = sys::node_id(&root, b"").map_err(|e| no_handles(e.into()))?;
    sys::open_node(root.as_fd(), &id, OFlags::PATH).map_err(no_handles)?;
    Ok(root)
}

impl Local {
    /// Opens the source and checks that it can be one. From here on it is used through this descriptor
    /// only, so that the mount may lie over it.
    ///
    /// Raises the process's limit of open files to what it may be: every file that an application has
    /// open is open here too.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub fn open(
        source: &Path,
        options: LocalOptions,
        recorder: Arc<dyn Recorder>,
    ) -> std::result::Result<Local, LocalError> {
        let failed = |e: Errno| LocalError::Open(source.to_owned(), e.into());
        let source =
            std::fs::canonicalize(source).map_err(|e| LocalError::Open(source.to_owned(), e))?;
        let root = open_source(&source)?;
        let fine_stamps = unseen::has_fine_stamps(&root);
        let descriptors = sys::raise_open_files_limit().unwrap_or(1024);
        let limit = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
        let inodes = Inodes::new(root, options.open_directories.min(limit)).map_err(failed)?;
        Ok(Local {
            source,
            options,
            inodes,
            open: OpenFiles::default(),
            directories: RwLock::default(),
            last_directory: AtomicU64::new(0),
            kept: Mutex::default(),
            log: Log::new(recorder),
            special_files: AtomicU64::new(0),
            fine_stamps,
            crossed: AtomicU64::new(0),
            suspects: Suspects::default(),
        })
    }

    /// The source's root directory, below the mount if that lies over it.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.inodes.root().as_fd()
    }

    /// Returns when what has happened to names by now is recorded (or kept, if the log fails).
    pub fn wait_for_records(&self) {
        drop(self.inodes.read()); // who changes names holds its other side until the record
    }

    /// The source's path, without symbolic links.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// What is not mirrored.
    pub fn exclude(&self) -> &Exclude {
        &self.options.exclude
    }

    /// What mirrors cannot have.
    pub fn counters(&self) -> Counters {
        Counters {
            special_files: self.special_files.load(Ordering::Relaxed),
        }
    }

    /// What of the file with this inode number is being written and not in the log: whether a write is
    /// under way this moment, and whether it is written from its beginning (new, or emptied). For who reads
    /// the file at the same time and wants a whole version of it.
    pub fn being_written(&self, inode: u64) -> (bool, bool) {
        let state = self.open.state(inode);
        state.map_or((false, false), |state| {
            let dirty = state.lock();
            (dirty.is_under_way(), dirty.is_whole())
        })
    }

    /// Whether somebody has the file with this inode number open to write, or the log lacks some of it.
    pub fn is_open_to_write(&self, inode: u64) -> bool {
        self.open.state(inode).is_some()
    }

    /// How many inodes the kernel knows; for `status` and tests.
    pub fn known_inodes(&self) -> usize {
        self.count_forgotten();
        self.inodes.read().len()
    }

    /// Why nothing can be changed at the moment (J6); none if it can.
    pub fn read_only_reason(&self) -> Option<RecordError> {
        self.log.reason()
    }

    /// Whether a change of a file always shows in its times: whether there are [`Access::WriteNew`], and
    /// stores by mmap are found for certain.
    pub fn has_fine_stamps(&self) -> bool {
        self.fine_stamps
    }

    /// Whether nothing can be changed at the moment.
    pub fn is_read_only(&self) -> bool {
        self.log.reason().is_some()
    }

    /// Logs the files that stay open and whose time has come; first, if the log is closed, tries to
    /// open it again. To be called about twice a second. Failures show in
    /// [`Local::read_only_reason`].
    pub fn flush_due(&self, now: Instant) {
        self.count_forgotten();
        self.log.look();
        if self.is_read_only() {
            self.log.retry(|| self.flush(Which::Overdue).is_ok());
        }
        if !self.is_read_only() {
            let due = Which::Due {
                now,
                after: self.options.flush_after,
                max: self.options.flush_max,
            };
            // What fails is overdue from now on, and the log is closed: that is how it is reported.
            let _ = self.flush(due);
        }
    }

    /// Logs everything that is not logged: at shutdown, when the mount is gone.
    ///
    /// # Errors
    /// The log does not take it. What is missing is found by the scan at the next start.
    pub fn flush_all(&self) -> std::result::Result<(), RecordError> {
        self.log.retry(|| self.flush(Which::Overdue).is_ok());
        let flushed = self.flush(Which::All);
        match self.log.reason() {
            Some(reason) => Err(reason),
            None => flushed.map_err(|e| RecordError(e.to_string())),
        }
    }

    /// Logs every file whose close() was answered before its record was made: an empty new file, which
    /// waits for its bytes until the last descriptor is closed. `wait` calls this, so that what was
    /// closed before it is in the log.
    ///
    /// # Errors
    /// The log does not take it.
    pub fn flush_closed(&self) -> std::result::Result<(), RecordError> {
        self.flush(Which::Closed)
            .map_err(|e| self.log.reason().unwrap_or(RecordError(e.to_string())))
    }

    /// What the log does not know, for a checkpoint (J5): every inode whose ctime is before `until` is in the
    /// log, but for these.
    pub fn unlogged(&self) -> Unlogged {
        let now = SystemTime::now();
        if self.log.reason().is_some() {
            return Unlogged {
                until: UNIX_EPOCH,
                nodes: Vec::new(),
            };
        }
        // With the write side in hand no request is between its effect and its record, except writes
        // of data, which have noted when they began. What begins later is younger than `now`.
        drop(self.inodes.write());
        let (nodes, since) = self.open.unlogged_nodes();
        if self.log.reason().is_some() {
            return Unlogged {
                until: UNIX_EPOCH,
                nodes: Vec::new(),
            };
        }
        match nodes.len() <= MOST_UNLOGGED {
            true => Unlogged { until: now, nodes },
            false => Unlogged {
                until: since.map_or(now, |since| since.min(now)),
                nodes: Vec::new(),
            },
        }
    }

    fn flush(&self, which: Which) -> Result<()> {
        let mut result = Ok(());
        for state in self.open.unlogged(which) {
            let logged = {
                let tree = self.inodes.read();
                self.log_content(&tree, &state, &mut state.lock())
            };
            result = result.and(logged);
            self.forget_if_clean(&state);
        }
        result
    }

    /// Records what the log does not know of a file. The tree is held, so that the path is the one it
    /// has in the log, and the file, so that the next one who asks waits for this record.
    ///
    /// A file without names is not recorded: it exists for those only who have it open. Of one that is
    /// written to unseen, what was written up to the last look is recorded.
    fn log_content(&self, tree: &Tree, state: &FileState, dirty: &mut Dirty) -> Result<()> {
        if !dirty.is_dirty() {
            return Ok(());
        }
        dirty.protect();
        match self.content(tree, state, dirty) {
            Ok(Some(change)) => {
                if let Err(e) = self.log.record_or_keep_yourself(&change) {
                    dirty.failed();
                    return Err(e);
                }
            }
            Ok(None) => {}
            // Removed or replaced behind the mount: the scan at the next start sees what is there.
            Err(Errno::STALE) => {}
            Err(e) => {
                dirty.failed();
                return Err(e);
            }
        }
        dirty.logged();
        Ok(())
    }

    fn content(&self, tree: &Tree, state: &FileState, dirty: &mut Dirty) -> Result<Option<Change>> {
        // Where a new file is was seen when it was made, and what it is at the last look.
        if let Some((fd, stat)) = dirty.looked_at()
            && stat.nlink == 1
            && let Some(path) = tree.only_path(state.node)
        {
            if !self.is_mirrored(&path, false) {
                return Ok(None);
            }
            let node = state.node_id(|| sys::node_id(fd, b""))?;
            return Ok(Some(content_of(path, node, &stat, dirty)));
        }
        let found = self.locate_mirrored(tree, state.node)?;
        let entry = found.entry.as_ref().map(|(_, entry)| *entry);
        let path = entry.and_then(|(dir, name)| tree.path_in(*dir, name));
        let path = match path {
            // No name is known, or none that mirrors have.
            None if entry.is_none() && found.stat.nlink > 0 => {
                self.search(state.node, &state.found)
            }
            Some(path) if !self.is_mirrored(&path, false) => {
                let others = found.stat.nlink > 1;
                others
                    .then(|| self.search(state.node, &state.found))
                    .flatten()
            }
            path => path,
        };
        let Some(path) = path else {
            return Ok(None);
        };
        let node = state.node_id(|| self.inodes.node_id(&found))?;
        Ok(Some(content_of(path, node, &found.stat, dirty)))
    }

    /// Logs what a file has, before its name changes.
    fn log_before(&self, tree: &Tree, node: u64) -> Result<()> {
        match self.open.state(node) {
            Some(state) => {
                let mut dirty = state.lock();
                dirty.look();
                self.log_content(tree, &state, &mut dirty)
            }
            None => Ok(()),
        }
    }

    /// Lets go of a file that is logged and that nobody writes to.
    fn forget_if_clean(&self, state: &FileState) {
        if self.open.forget_if_clean(state.node) {
            self.drop_if_forgotten(state.node);
        }
    }

    /// Lets go of a node that the kernel has forgotten while it was needed.
    fn drop_if_forgotten(&self, node: u64) {
        let forgotten = self.inodes.read().is_forgotten(node);
        if forgotten {
            self.inodes.drop_unknown(&mut self.inodes.write(), node);
        }
    }

    /// Whether the entry is ProxyFS's own.
    fn is_reserved(dir: u64, name: &[u8]) -> bool {
        dir == ROOT && name == RESERVED
    }

    /// Refuses to make ProxyFS's own entry.
    fn check_name(dir: u64, name: &[u8]) -> Result<()> {
        if Self::is_reserved(dir, name) {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// Whether changes of the node are recorded.
    fn is_recorded(tree: &Tree, node: u64) -> bool {
        tree.kind(node).is_some_and(Kind::is_recorded)
    }
}

fn content_of(path: RelPath, node: NodeId, stat: &Stat, dirty: &mut Dirty) -> Change {
    dirty.filled_up_to(stat.size);
    Change::Content {
        path,
        node,
        extent: dirty.extent(),
        size: stat.size,
        linked: stat.nlink > 1,
    }
}
