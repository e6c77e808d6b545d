//! Reading the source for a mirror: files by the identity of their inode, directories by path.
//!
//! The danger is to read the wrong file: a path may name another file by the time its change is
//! replayed, or lead outside the source through a symlink that was swapped in. So files are opened by
//! their handle only, and directories part by part without following links.
//!
//! The only `unsafe` of the network side is here: `open_by_handle_at(2)` has no safe wrapper.

use crate::change::{NodeId, RelPath, Times, Timestamp};
use crate::config::MaxDelete;
use crate::exclude::Exclude;
use rustix::fs::{AtFlags, CWD, DirEntry, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The largest handle the kernel makes, in bytes (MAX_HANDLE_SZ, open_by_handle_at(2)).
const MAX_HANDLE: usize = 128;

/// How often an open is tried again that failed for want of memory, a millisecond apart.
const ENOMEM_TRIES: u32 = 20;

/// What is being done to a file of the source, as far as the log does not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// Nothing, and nobody has it open to write.
    No,
    /// Nothing that would make it half old and half new, but somebody has it open to write.
    Open,
    /// A write is under way this moment.
    UnderWay,
    /// It is written from its beginning, and not closed: what is there now is no version of it. It will
    /// be in the log again.
    Anew,
}

/// Tells what is being done to the file with this inode number.
pub type Watch = Box<dyn Fn(u64) -> Writing + Send + Sync>;

/// Returns when what has happened to names in the source by now is in the log.
pub type Barrier = Box<dyn Fn() + Send + Sync>;

/// The source's tree, held by its root.
pub struct Source {
    root: OwnedFd,
    watch: Watch,
    exclude: Exclude,
    /// How much of it may be deleted at once on a mirror.
    max_delete: Mutex<MaxDelete>,
    barrier: Barrier,
}

#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE],
}

impl Source {
    /// Takes the source's root directory, opened before anything was mounted over it, and whom to ask what
    /// is being written.
    pub fn new(root: OwnedFd, watch: Watch) -> Source {
        let exclude = Exclude::default();
        Source {
            root,
            watch,
            exclude,
            max_delete: Mutex::default(),
            barrier: Box::new(|| {}),
        }
    }

    /// How much of it may be deleted at once on a mirror.
    pub fn max_delete(&self) -> MaxDelete {
        *self
            .max_delete
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that, from now on.
    pub fn set_max_delete(&self, most: MaxDelete) {
        *self
            .max_delete
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = most;
    }

    /// The same tree without what is excluded.
    #[must_use]
    pub fn without(self, exclude: Exclude) -> Source {
        Source { exclude, ..self }
    }

    /// The same tree, of which somebody tells when what was seen in it is in the log.
    #[must_use]
    pub fn with_barrier(self, barrier: Barrier) -> Source {
        Source { barrier, ..self }
    }

    /// Waits until what has happened to names by now is in the log: a rename that was seen here may be between its
    /// effect and its record.
    pub fn wait_for_records(&self) {
        (self.barrier)();
    }

    /// Whether a path, a directory or not, is excluded.
    pub fn excludes(&self, path: &RelPath, is_directory: bool) -> bool {
        self.exclude.excludes(path, is_directory)
    }

    /// What is being done to the file with this inode number.
    pub fn writing(&self, inode: u64) -> Writing {
        (self.watch)(inode)
    }

    /// Opens the root directory of a tree that nobody serves.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open_root(path: &Path) -> io::Result<Source> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty())?;
        Ok(Source::new(root, Box::new(|_| Writing::No)))
    }

    /// Opens the file that `node` names, to read; none when it is gone. Needs CAP_DAC_READ_SEARCH.
    ///
    /// # Errors
    /// The operating system's, but ESTALE and ENOENT: those mean that the file is gone.
    pub fn open(&self, node: &NodeId) -> io::Result<Option<File>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is no file handle");
        let (kind, bytes) = node.0.split_first_chunk::<4>().ok_or_else(bad)?;
        if bytes.len() > MAX_HANDLE {
            return Err(bad());
        }
        let mut handle = FileHandle {
            bytes: bytes.len() as libc::c_uint,
            kind: i32::from_le_bytes(*kind),
            handle: [0; MAX_HANDLE],
        };
        handle.handle[..bytes.len()].copy_from_slice(bytes);
        // A FIFO that took the file's place would otherwise block the worker; it can't (a handle
        // names one inode), but the flag costs nothing.
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOATIME;
        let mut tries = 0;
        loop {
            // SAFETY: `handle` has the layout of `struct file_handle` with room for MAX_HANDLE bytes,
            // says in `bytes` how many of them count, and outlives the call, which only reads it.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_open_by_handle_at,
                    self.root.as_raw_fd(),
                    &raw mut handle,
                    flags,
                )
            };
            if fd >= 0 {
                // SAFETY: the kernel has just given us this descriptor; nobody else has it.
                return Ok(Some(File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) })));
            }
            let why = io::Error::last_os_error();
            match why.raw_os_error() {
                Some(libc::ESTALE | libc::ENOENT) => return Ok(None),
                Some(libc::EINTR) => {}
                // While the number of a deleted inode is given to a new one, the kernel says ENOMEM for
                // a moment (iget_locked() finds it half made). Seen once in 200,000 opens.
                Some(libc::ENOMEM) if tries < ENOMEM_TRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(why),
            }
        }
    }

    /// What a directory of the source is like now; none when there is no directory at that path.
    ///
    /// # Errors
    /// The operating system's, but those that mean that it is not there.
    pub fn directory(&self, path: &RelPath) -> io::Result<Option<Stat>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for part in path
            .as_bytes()
            .split(|b| *b == b'/')
            .filter(|p| !p.is_empty())
        {
            let next = match &at {
                Some(dir) => openat(dir, part, flags, Mode::empty()),
                None => openat(&self.root, part, flags, Mode::empty()),
            };
            match next {
                Ok(dir) => at = Some(dir),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(why) => return Err(why.into()),
            }
        }
        Ok(Some(fstat(at.as_ref().unwrap_or(&self.root))?))
    }

    /// What is at a path now, not following a link there; none: nothing.
    ///
    /// # Errors
    /// The operating system's, but those that mean that it is not there.
    pub fn entry(&self, path: &RelPath) -> io::Result<Option<Entry>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let gone = |why: Errno| match why {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Ok(None),
            why => Err(io::Error::from(why)),
        };
        let mut at = openat(&self.root, ".", flags | OFlags::DIRECTORY, Mode::empty())?;
        let parts = path.as_bytes().split(|b| *b == b'/');
        for part in parts.filter(|p| !p.is_empty()) {
            // A part that is no directory says so when the next is looked for in it.
            at = match openat(&at, part, flags, Mode::empty()) {
                Ok(next) => next,
                Err(why) => return gone(why),
            };
        }
        let stat = fstat(&at)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File(node_of(&at)?),
            FileType::Symlink => {
                Kind::Symlink(rustix::fs::readlinkat(&at, "", Vec::new())?.into_bytes())
            }
            _ => Kind::Other,
        };
        Ok(Some(Entry { stat, kind }))
    }

    /// What is in a directory now, by name, without ProxyFS's own; none where there is no directory.
    ///
    /// # Errors
    /// The operating system's, but those that mean that it is not there.
    pub fn list(&self, path: &RelPath) -> io::Result<Option<Vec<Named>>> {
        self.read(path, |at, entry| {
            statat(at, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// The same where it is enough what each is: mostly the directory itself tells.
    ///
    /// # Errors
    /// The operating system's, but those that mean that it is not there.
    pub fn kinds(&self, path: &RelPath) -> io::Result<Option<Vec<Named<FileType>>>> {
        self.read(path, |at, entry| match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(at, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(FileType::from_raw_mode(stat.st_mode))
            }
            told => Ok(told),
        })
    }

    fn read<T>(
        &self,
        path: &RelPath,
        look: impl Fn(&OwnedFd, &DirEntry) -> Result<T, Errno>,
    ) -> io::Result<Option<Vec<Named<T>>>> {
        let Some(at) = self.open_directory(path)? else {
            return Ok(None);
        };
        let mut all: Vec<Named<T>> = Vec::new();
        for entry in rustix::fs::Dir::read_from(&at)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let ours = path.is_root() && name == b".proxyfs";
            if ours || matches!(name, b"." | b"..") {
                continue;
            }
            match look(&at, &entry) {
                Ok(seen) => all.push((name.into(), seen)),
                Err(Errno::NOENT) => {} // gone meanwhile
                Err(why) => return Err(why.into()),
            }
        }
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(Some(all))
    }

    /// What some entries of a directory are like, of each that is there; none where there is no directory.
    ///
    /// # Errors
    /// The operating system's, but those that mean that it is not there.
    pub fn stats<'n>(
        &self,
        path: &RelPath,
        names: impl Iterator<Item = &'n [u8]>,
    ) -> io::Result<Option<Vec<Option<Stat>>>> {
        let Some(at) = self.open_directory(path)? else {
            return Ok(None);
        };
        let look = |name| match statat(&at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(why) => Err(why.into()),
        };
        names.map(look).collect::<io::Result<_>>().map(Some)
    }

    /// A directory, to read it; none where there is none.
    fn open_directory(&self, path: &RelPath) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = openat(&self.root, ".", flags, Mode::empty())?;
        let parts = path.as_bytes().split(|b| *b == b'/');
        for part in parts.filter(|p| !p.is_empty()) {
            at = match openat(&at, part, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(why) => return Err(why.into()),
            };
        }
        Ok(Some(at))
    }

    /// Whether the root holds anything but ProxyFS's own directory.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_empty(&self) -> io::Result<bool> {
        crate::local::holds_only(&self.root, &[])
    }
}

/// An entry of a directory: its name, and what it is like, as far as it was looked at.
pub type Named<T = Stat> = (Box<[u8]>, T);

/// What the source has at a path.
pub struct Entry {
    /// Its attributes.
    pub stat: Stat,
    /// What it is.
    pub kind: Kind,
}

/// What something is.
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(NodeId),
    /// A symbolic link, and what it points to.
    Symlink(Vec<u8>),
    /// Something that does not travel.
    Other,
}

/// The handle of a file, as [`NodeId`] has it.
fn node_of(file: &OwnedFd) -> io::Result<NodeId> {
    let mut handle = FileHandle {
        bytes: MAX_HANDLE as libc::c_uint,
        kind: 0,
        handle: [0; MAX_HANDLE],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: `handle` has the layout of `struct file_handle` with room for MAX_HANDLE bytes, and says so;
    // the empty name is a string with its end; `mount` is an int. All outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            file.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut id = handle.kind.to_le_bytes().to_vec();
    id.extend_from_slice(&handle.handle[..(handle.bytes as usize).min(MAX_HANDLE)]);
    Ok(NodeId(id.into()))
}

/// The times in a `stat`.
pub fn times_of(stat: &Stat) -> Times {
    Times {
        atime: Timestamp {
            seconds: stat.st_atime,
            nanoseconds: stat.st_atime_nsec as u32,
        },
        mtime: mtime_of(stat),
    }
}

/// The modification time in a `stat`.
pub fn mtime_of(stat: &Stat) -> Timestamp {
    Timestamp {
        seconds: stat.st_mtime,
        nanoseconds: stat.st_mtime_nsec as u32,
    }
}

/// A time as SFTP v3 has it: unsigned seconds. Earlier than 1970 becomes 1970, later than 2106 that.
pub fn sftp_time(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}
