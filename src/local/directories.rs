//! Requests that list directories.
//!
//! A listing is streamed: an open directory has its own descriptor and the rest of the last chunk that
//! the file system gave; its memory does not grow with the directory. The cookie of an entry is the file
//! system's own (`d_off`), so that a listing that is continued while entries come and go shows every
//! entry that was there all the time exactly once, as the file system promises.

use super::Local;
use super::inodes::ROOT;
use super::sync::{lock, read, write};
use super::sys::{Result, Stat};
use rustix::fs::{OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

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
    /// Opens a directory.
    ///
    /// # Errors
    /// As `open(2)`; ESTALE: it is not there any more.
    pub fn open_directory(&self, node: u64) -> Result<u64> {
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
        Ok(number)
    }

    /// Closes it.
    pub fn close_directory(&self, handle: u64) {
        write(&self.directories).remove(&handle);
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
        self.list(handle, from, |entry| {
            if entry.is_dot() {
                return self.dot(dir, entry).is_some_and(|stat| full(entry, &stat));
            }
            let Ok(stat) = self.inodes.lookup(dir, &entry.name) else {
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
