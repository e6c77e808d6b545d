//! Requests that list directories.
//!
//! A listing is streamed: an open directory has its own descriptor and the rest of the last chunk that
//! the file system gave; its memory does not grow with the directory. The cookie of an entry is the file
//! system's own (`d_off`), so that a listing that is continued while entries come and go shows every
//! entry that was there all the time exactly once, as the file system promises.
//!
//! The kernel keeps a listing, and shows it to who opens the directory as long as its mtime and the kernel's own count
//! of changes are the same. Two dangers, and what answers them:
//!
//! - *Who is in the middle of it is shown what has been removed,* as the kernel looks at its beginning only. So when
//!   something changes in a directory that somebody has open, the kernel is told to drop its listing
//!   ([`Local::is_being_listed`]), before the change is answered; then he is served by us.
//! - *It brings no attributes*: if those have run out, each is asked for alone, which takes several times as
//!   long. So it is shown only while the kernel was told of all of them lately ([`KeptListings`]).

use super::Local;
use super::inodes::ROOT;
use super::sync::{lock, read, write};
use super::sys::{Result, Stat};
use rustix::fs::{OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes asked for at a time: some hundred entries.
const CHUNK: usize = 32 * 1024;

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The node, as far as the directory knows (the place of a mount has another inode behind it).
    pub node: u64,
    /// Where the listing goes on behind this entry.
    pub next: u64,
    /// The type, as the type bits of a mode (`S_IFMT`); 0 where the file system does not tell.
    pub file_type: u32,
    /// The name: one part, any bytes but `/` and NUL.
    pub name: Box<[u8]>,
}

impl DirectoryEntry {
    fn is_dot(&self) -> bool {
        matches!(&*self.name, b"." | b"..")
    }
}

/// For so long the kernel is not told again of the attributes in a directory: half of the time that it may keep them.
const FRESH: Duration = Duration::from_secs(30);

/// Of how many directories that nobody has open it is known what the kernel keeps.
const KEPT: usize = 4096;

/// What the kernel keeps of a directory.
#[derive(Default)]
struct Kept {
    /// Who has it open.
    open: u32,
    /// When it was told last of all entries with their attributes: when that listing began.
    told: Option<Instant>,
    /// It may have a listing, or a part of it.
    listing: bool,
}

impl Kept {
    fn is_fresh(&self, now: Instant) -> bool {
        self.told
            .is_some_and(|told| now.duration_since(told) < FRESH)
    }
}

/// What the kernel keeps of the directories that it has listed.
#[derive(Default)]
pub struct KeptListings(HashMap<u64, Kept>);

impl KeptListings {
    /// One more has it open; true if the kernel's listing may be shown to him.
    fn open(&mut self, node: u64, now: Instant) -> bool {
        if self.0.len() >= KEPT {
            self.0.retain(|_, kept| kept.open > 0 || kept.is_fresh(now));
        }
        if self.0.len() >= KEPT {
            self.0.retain(|_, kept| kept.open > 0);
        }
        let kept = self.0.entry(node).or_default();
        kept.open += 1;
        kept.is_fresh(now)
    }

    fn close(&mut self, node: u64) {
        if let Some(kept) = self.0.get_mut(&node) {
            kept.open = kept.open.saturating_sub(1);
        }
    }

    /// The kernel is being told of what is in it; if `all`, from the beginning and with attributes.
    fn tell(&mut self, node: u64, all: bool, now: Instant) {
        if let Some(kept) = self.0.get_mut(&node) {
            kept.listing = true;
            if all {
                kept.told = Some(now);
            }
        }
    }

    /// What is in it has changed. True if somebody may be reading the kernel's listing.
    fn changed(&mut self, node: u64) -> bool {
        let kept = self.0.get_mut(&node);
        kept.is_some_and(|kept| kept.open > 0 && std::mem::take(&mut kept.listing))
    }
}

struct Listing {
    /// Where `chunk` begins.
    at: u64,
    chunk: VecDeque<DirectoryEntry>,
}

/// An open directory.
pub struct OpenDirectory {
    fd: OwnedFd,
    node: u64,
    listing: Mutex<Listing>,
}

impl Local {
    /// Opens a directory. Returns the handle, and whether the kernel was told of all attributes in it lately, so
    /// that it need not ask for them with the next listing.
    ///
    /// # Errors
    /// As `open(2)`; ESTALE: it is not there any more.
    pub fn open_directory(&self, node: u64) -> Result<(u64, bool)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.inodes.open(&self.inodes.read(), node, flags)?;
        let number = self.last_directory.fetch_add(1, Ordering::Relaxed) + 1;
        let directory = OpenDirectory {
            fd,
            node,
            listing: Mutex::new(Listing {
                at: 0,
                chunk: VecDeque::new(),
            }),
        };
        write(&self.directories).insert(number, Arc::new(directory));
        Ok((number, lock(&self.kept).open(node, Instant::now())))
    }

    /// Closes it.
    pub fn close_directory(&self, handle: u64) {
        let closed = write(&self.directories).remove(&handle);
        if let Some(directory) = closed {
            lock(&self.kept).close(directory.node);
        }
    }

    /// After something has changed in a directory: whether somebody may be reading a listing that the kernel keeps
    /// of it. Then it must drop that before it is told of the change.
    pub fn is_being_listed(&self, node: u64) -> bool {
        lock(&self.kept).changed(node)
    }

    fn directory(&self, handle: u64) -> Result<Arc<OpenDirectory>> {
        read(&self.directories)
            .get(&handle)
            .cloned()
            .ok_or(Errno::BADF)
    }

    /// Waits until the directory is on the disk.
    ///
    /// # Errors
    /// As `fsync(2)`.
    pub fn fsync_directory(&self, handle: u64) -> Result<()> {
        rustix::fs::fsync(&self.directory(handle)?.fd)
    }

    /// Lists from the cookie `from` (0: the beginning) until `full` says that an entry has no room.
    ///
    /// # Errors
    /// As `getdents(2)`; EBADF: no such handle.
    pub fn list(
        &self,
        handle: u64,
        from: u64,
        mut full: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<()> {
        let directory = self.directory(handle)?;
        lock(&self.kept).tell(directory.node, false, Instant::now());
        let mut listing = lock(&directory.listing);
        if listing.at != from {
            listing.chunk.clear();
        }
        if listing.chunk.is_empty() {
            rustix::fs::seek(&directory.fd, SeekFrom::Start(from))?;
            listing.at = from;
        }
        loop {
            if listing.chunk.is_empty() {
                listing.chunk = self.read_chunk(&directory.fd)?;
            }
            let Some(entry) = listing.chunk.front() else {
                return Ok(());
            };
            let hidden = Self::is_reserved(directory.node, &entry.name);
            if !hidden && full(entry) {
                return Ok(());
            }
            listing.at = entry.next;
            listing.chunk.pop_front();
        }
    }

    /// Lists as [`Local::list`], and looks each entry up: those that `full` has taken are known to the
    /// kernel until [`Local::forget`]. For `.` and `..` nothing is counted. What is gone by now, or lies
    /// on another file system, is left out.
    ///
    /// # Errors
    /// As [`Local::list`].
    pub fn list_with_attributes(
        &self,
        handle: u64,
        from: u64,
        mut full: impl FnMut(&DirectoryEntry, &Stat) -> bool,
    ) -> Result<()> {
        let dir = self.directory(handle)?.node;
        if from == 0 {
            lock(&self.kept).tell(dir, true, Instant::now());
        }
        self.list(handle, from, |entry| {
            if entry.is_dot() {
                return self.dot(dir, entry).is_some_and(|stat| full(entry, &stat));
            }
            let Ok(stat) = self.look_up(dir, &entry.name) else {
                return false;
            };
            let no_room = full(entry, &stat);
            if no_room {
                self.forget(stat.ino, 1);
            }
            no_room
        })
    }

    /// What `.` or `..` is; of the root's `..` the number only.
    fn dot(&self, dir: u64, entry: &DirectoryEntry) -> Option<Stat> {
        let tree = self.inodes.read();
        let stat = self.inodes.stat(&tree, dir).ok()?;
        Some(Stat {
            ino: if dir == ROOT { ROOT } else { entry.node },
            ..stat
        })
    }

    fn read_chunk(&self, fd: &OwnedFd) -> Result<VecDeque<DirectoryEntry>> {
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(fd, &mut buffer);
        let mut chunk = VecDeque::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            chunk.push_back(DirectoryEntry {
                node: self.inodes.node(entry.ino()),
                next: entry.next_entry_cookie(),
                file_type: entry.file_type().as_raw_mode(),
                name: entry.file_name().to_bytes().into(),
            });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_is_shown_for_a_while_and_little_is_remembered() {
        let mut kept = KeptListings::default();
        let start = Instant::now();
        assert!(!kept.open(7, start));
        kept.tell(7, false, start);
        assert!(!kept.open(7, start), "without attributes");
        kept.tell(7, true, start);
        assert!(kept.open(7, start + FRESH / 2));
        assert!(!kept.open(7, start + FRESH));
        for node in 8..3 * KEPT as u64 {
            kept.open(node, start);
            kept.tell(node, true, start);
            kept.close(node);
            assert!(kept.0.len() <= KEPT);
        }
        assert!(kept.changed(7), "it is open all the time");
    }

    #[test]
    fn the_kernel_is_told_once_to_drop_what_somebody_may_be_reading() {
        let mut kept = KeptListings::default();
        let now = Instant::now();
        assert!(!kept.changed(7));
        kept.open(7, now);
        assert!(!kept.changed(7), "nothing was listed");
        kept.tell(7, true, now);
        assert!(kept.changed(7));
        assert!(!kept.changed(7));
        kept.tell(7, false, now);
        kept.close(7);
        assert!(!kept.changed(7), "who opens it is shown a new one");
        kept.open(7, now);
        assert!(kept.changed(7));
    }
}
