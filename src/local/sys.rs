//! Safe wrappers of the system calls that the file system side makes: the only `unsafe` of this side.
//!
//! The danger: a path is looked up again at every call, and whoever may write below the source can
//! swap a part of it for a symbolic link that leads outside. So nothing here takes a path of more than
//! one part: a call names a directory by descriptor and an entry by name, and never follows a link.
//! What has been opened is reached as a descriptor (`AT_EMPTY_PATH`, `/proc/self/fd`), which cannot be
//! swapped.
//!
//! The other danger: user, group and umask belong to the process in POSIX, and threads serve different
//! callers at a time. [`as_caller`] uses what Linux keeps a thread: the raw `setfsuid(2)` and
//! `setfsgid(2)`, and after `unshare(CLONE_FS)` the umask. `SECBIT_NO_SETUID_FIXUP` keeps the daemon's
//! capabilities meanwhile: whether the caller may was decided by the kernel (`default_permissions`),
//! with groups that the daemon does not know.

use crate::change::{NodeId, Timestamp};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::ffi::{CString, c_int, c_uint};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the wrappers return: the raw error number, to be handed to the application as it is.
pub type Result<T> = std::result::Result<T, Errno>;

/// What `stat(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Number of names.
    pub nlink: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Which device, of a device node.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of reads and writes, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

impl Stat {
    /// The type bits of the mode (`S_IFMT`).
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// The permission bits of the mode (07777).
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
}

// The types of these fields differ between architectures.
#[allow(clippy::unnecessary_cast)]
impl From<rustix::fs::Stat> for Stat {
    fn from(s: rustix::fs::Stat) -> Stat {
        let time = |seconds, nanoseconds| Timestamp {
            seconds,
            nanoseconds,
        };
        Stat {
            dev: s.st_dev as u64,
            ino: s.st_ino as u64,
            nlink: s.st_nlink as u64,
            mode: s.st_mode as u32,
            uid: s.st_uid,
            gid: s.st_gid,
            rdev: s.st_rdev as u64,
            size: s.st_size as u64,
            blocks: s.st_blocks as u64,
            blksize: s.st_blksize as u32,
            atime: time(s.st_atime as i64, s.st_atime_nsec as u32),
            mtime: time(s.st_mtime as i64, s.st_mtime_nsec as u32),
            ctime: time(s.st_ctime as i64, s.st_ctime_nsec as u32),
        }
    }
}

/// `fstat(2)`; also of an `O_PATH` descriptor.
pub fn stat(fd: impl AsFd) -> Result<Stat> {
    Ok(rustix::fs::fstat(fd)?.into())
}

/// `fstatat(2)` of the entry itself, not of what it may point to.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statat(dir, name, flags)?.into())
}

/// Opens an entry, never a link's target (ELOOP, or the link itself with `O_PATH`). A FIFO does not
/// block.
pub fn open_at(dir: impl AsFd, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// Opens once more what a descriptor stands for, with other flags; also an `O_PATH` descriptor and a
/// file without names.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(proc_path(fd), flags, Mode::empty())
}

/// Where the kernel shows a descriptor as a link that leads to exactly its inode.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Sets the permission bits (07777); also by an `O_PATH` descriptor.
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rustix::fs::fchmod(fd.as_fd(), mode) {
        Err(Errno::BADF) => rustix::fs::chmod(proc_path(fd), mode),
        done => done,
    }
}

/// Sets user and group, each only if given; also of a symbolic link, and by an `O_PATH` descriptor.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    // (uid_t)-1 is "leave it" to the kernel, and no owner that anyone can ask for.
    let uid = uid.filter(|id| *id != u32::MAX);
    let gid = gid.filter(|id| *id != u32::MAX);
    rustix::fs::chownat(
        fd,
        c"",
        uid.map(rustix::fs::Uid::from_raw),
        gid.map(rustix::fs::Gid::from_raw),
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it as it is.
    Keep,
    /// The clock of the file system.
    Now,
    /// This one.
    At(Timestamp),
}

impl SetTime {
    fn raw(self) -> rustix::fs::Timespec {
        let (tv_sec, tv_nsec) = match self {
            SetTime::Keep => (0, libc::UTIME_OMIT),
            SetTime::Now => (0, libc::UTIME_NOW),
            SetTime::At(t) => (t.seconds, t.nanoseconds.into()),
        };
        rustix::fs::Timespec { tv_sec, tv_nsec }
    }
}

/// Sets the times; also of a symbolic link, and by an `O_PATH` descriptor (Linux 5.8).
pub fn set_times(fd: impl AsFd, atime: SetTime, mtime: SetTime) -> Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: atime.raw(),
        last_modification: mtime.raw(),
    };
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    match rustix::fs::utimensat(fd.as_fd(), c"", &times, flags) {
        Err(Errno::INVAL) => {
            rustix::fs::utimensat(rustix::fs::CWD, proc_path(fd), &times, AtFlags::empty())
        }
        done => done,
    }
}

/// Gives what a descriptor stands for one more name.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH)
}

/// The type that `statfs(2)` tells for FUSE file systems.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// Whether a descriptor lies on a FUSE file system.
pub fn is_fuse(fd: impl AsFd) -> Result<bool> {
    // The type of the field differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    let magic = rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff;
    Ok(magic == FUSE_SUPER_MAGIC)
}

/// `struct file_handle` with room for the largest handle (MAX_HANDLE_SZ).
#[repr(C)]
struct RawHandle {
    bytes: c_uint,
    kind: c_int,
    handle: [u8; 128],
}

/// The identity of an inode: of the entry `name`, or with an empty name of what `dir` stands for.
///
/// # Errors
/// EOPNOTSUPP where the file system has no handles (overlayfs).
pub fn node_id(dir: impl AsFd, name: &[u8]) -> Result<NodeId> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    let mut raw = RawHandle {
        bytes: 128,
        kind: 0,
        handle: [0; 128],
    };
    let mut mount_id = 0;
    // SAFETY: `name` is a string that ends with NUL; `raw` has the layout of struct file_handle with
    // as many bytes behind it as it says; both live until the call returns.
    let done = unsafe {
        libc::name_to_handle_at(
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount_id,
            flags,
        )
    };
    if done != 0 {
        return Err(last_error());
    }
    let mut id = raw.kind.to_le_bytes().to_vec();
    id.extend_from_slice(
        raw.handle
            .get(..raw.bytes as usize)
            .ok_or(Errno::OVERFLOW)?,
    );
    Ok(NodeId(id.into()))
}

/// Opens exactly the inode `node`, whatever its name is now. `root` is any descriptor on its file
/// system. Needs CAP_DAC_READ_SEARCH.
///
/// # Errors
/// ESTALE: the inode is gone, and so is its content. Others as `open_by_handle_at(2)`.
pub fn open_node(root: BorrowedFd<'_>, node: &NodeId, flags: OFlags) -> io::Result<OwnedFd> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (kind, handle) = node.0.split_first_chunk::<4>().ok_or_else(invalid)?;
    let mut raw = RawHandle {
        bytes: handle.len() as c_uint,
        kind: c_int::from_le_bytes(*kind),
        handle: [0; 128],
    };
    raw.handle
        .get_mut(..handle.len())
        .ok_or_else(invalid)?
        .copy_from_slice(handle);
    // SAFETY: `raw` has the layout of struct file_handle, and at least as many bytes as it says.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut raw).cast(),
            (flags | OFlags::CLOEXEC).bits() as c_int,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the limit of open files as high as it may go, for the whole process: every file that an
/// application has open is open here too.
///
/// Returns the limit that is in force then.
pub fn raise_open_files_limit() -> Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a struct rlimit that lives until the call returns.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(last_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; the kernel only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(last_error());
    }
    Ok(limit.rlim_cur)
}

/// For whom something is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User that new files belong to.
    pub uid: u32,
    /// Group that new files belong to, if the directory does not say otherwise (setgid).
    pub gid: u32,
    /// Permission bits that new files do not get, if the directory has no default ACL.
    pub umask: u32,
    /// Its thread, as the daemon's process namespace numbers it; 0: not to be seen from here.
    pub thread: u32,
}

/// While this lives, the thread makes files as another user. Dropped in the thread that made it.
pub struct AsCaller {
    ids: bool,
    /// Not for another thread.
    _here: PhantomData<*const ()>,
}

/// Whether a thread works with the rights of this group, as its own or as a supplementary one. Not if it
/// has ended, or cannot be seen from here (0).
pub fn is_in_group(thread: u32, gid: u32) -> bool {
    if thread == 0 {
        return false;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        return false;
    };
    let field = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_whitespace()
    };
    // Of the four the last one is what file systems look at.
    let mut groups = field("Gid:").nth(3).into_iter().chain(field("Groups:"));
    groups.any(|group| group.parse() == Ok(gid))
}

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    /// The umask that is in force, once it was set. It is the thread's own, and nothing else depends on it:
    /// what a thread that serves requests makes, it makes for a caller.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whether two threads, by their numbers, are of different processes, as far as can be told: not if the
/// first has ended, or cannot be seen from here (0).
pub fn is_another_process(thread: u32, other: u32) -> bool {
    let exists = |path: String| rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok();
    thread != other
        && thread != 0
        && other != 0
        && !exists(format!("/proc/{thread}/task/{other}"))
        && exists(format!("/proc/{thread}"))
}

/// Starts to write back all dirty pages of a file, so that a store into one of them by mmap faults
/// again. Does not wait for the disk, but for what is being written at this moment.
pub fn write_back(fd: impl AsFd) -> Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the call takes plain numbers; 0 bytes from 0 on is the whole file.
    if unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, flags) } != 0 {
        return Err(last_error());
    }
    Ok(())
}

/// Gives memory that is not used any more back to the system, after much was freed.
pub fn give_memory_back() {
    // SAFETY: takes a plain number, and touches only what malloc has free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Calls `f` without CAP_FSETID in this thread: what is opened in there for the kernel to write through
/// loses its set-id bits by it, as by an ordinary user's writes.
pub fn without_fsetid<T>(f: impl FnOnce() -> T) -> Result<T> {
    const CAP_FSETID: u32 = 4;
    let before = rustix::thread::capabilities(None)?;
    let mut less = before;
    less.effective
        .remove(rustix::thread::CapabilitySet::from_bits_retain(
            1 << CAP_FSETID,
        ));
    rustix::thread::set_capabilities(None, less)?;
    let done = f();
    rustix::thread::set_capabilities(None, before)?;
    Ok(done)
}

/// `SECBIT_NO_SETUID_FIXUP` of linux/securebits.h.
const SECBIT_NO_SETUID_FIXUP: libc::c_long = 1 << 2;

/// Gives this thread its own umask and securebits; once a thread.
fn prepare_thread() -> Result<()> {
    if PREPARED.get() {
        return Ok(());
    }
    // SAFETY: the calls take plain numbers, and change only what belongs to the calling thread: its
    // securebits, and after the unshare its own umask, root and working directory.
    unsafe {
        let bits = libc::c_long::from(libc::prctl(libc::PR_GET_SECUREBITS));
        if bits < 0
            || libc::prctl(libc::PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) != 0
            || libc::unshare(libc::CLONE_FS) != 0
        {
            return Err(last_error());
        }
    }
    PREPARED.set(true);
    Ok(())
}

/// From here to the drop of what is returned, files made by this thread belong to `caller`, and its
/// umask applies.
///
/// # Errors
/// EPERM without root's rights; EOVERFLOW for a user that has no number here.
pub fn as_caller(caller: Caller) -> Result<AsCaller> {
    prepare_thread()?;
    let ids = caller.uid != 0 || caller.gid != 0;
    let umask = caller.umask & 0o777;
    if UMASK.replace(Some(umask)) != Some(umask) {
        // SAFETY: plain numbers; the umask is this thread's own since prepare_thread.
        unsafe { libc::umask(umask as libc::mode_t) };
    }
    let guard = AsCaller {
        ids,
        _here: PhantomData,
    };
    if ids {
        // SAFETY: plain numbers; glibc's functions are the raw system calls, for this thread only.
        // They report no errors; asked for an invalid number they tell which one is in force.
        let set = unsafe {
            libc::setfsgid(caller.gid);
            libc::setfsuid(caller.uid);
            (
                libc::setfsgid(u32::MAX) as u32,
                libc::setfsuid(u32::MAX) as u32,
            )
        };
        if set != (caller.gid, caller.uid) {
            return Err(Errno::OVERFLOW);
        }
    }
    Ok(guard)
}

impl Drop for AsCaller {
    fn drop(&mut self) {
        if self.ids {
            // SAFETY: plain numbers; user and group are set back to those of the process, of this thread
            // only (`_here` keeps the guard in it).
            unsafe {
                libc::setfsuid(libc::geteuid());
                libc::setfsgid(libc::getegid());
            }
        }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn a_node_is_found_after_a_rename_and_stale_after_its_removal() {
        let (dir, root) = dir();
        std::fs::write(dir.path().join("a"), "old").unwrap();
        let id = node_id(&root, b"a").unwrap();
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let fd = open_node(root.as_fd(), &id, OFlags::RDONLY).unwrap();
        assert_eq!(
            std::io::read_to_string(std::fs::File::from(fd)).unwrap(),
            "old"
        );
        std::fs::remove_file(dir.path().join("b")).unwrap();
        let gone = open_node(root.as_fd(), &id, OFlags::RDONLY).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESTALE));
    }

    #[test]
    fn a_file_belongs_to_the_caller_and_the_thread_to_itself_again() {
        let (_dir, root) = dir();
        let caller = Caller {
            uid: 1234,
            gid: 4321,
            umask: 0o027,
            thread: 0,
        };
        {
            let _as = as_caller(caller).unwrap();
            open_at(&root, b"theirs", OFlags::CREATE | OFlags::WRONLY, 0o666).unwrap();
        }
        let theirs = stat_at(&root, b"theirs").unwrap();
        assert_eq!(
            (theirs.uid, theirs.gid, theirs.permissions()),
            (1234, 4321, 0o640)
        );
        open_at(&root, b"ours", OFlags::CREATE | OFlags::WRONLY, 0o600).unwrap();
        let ours = stat_at(&root, b"ours").unwrap();
        assert_eq!((ours.uid, ours.gid), (0, 0));
    }

    #[test]
    fn a_caller_without_a_number_makes_nothing() {
        let caller = Caller {
            uid: u32::MAX,
            gid: 0,
            umask: 0,
            thread: 0,
        };
        assert_eq!(as_caller(caller).err(), Some(Errno::OVERFLOW));
    }

    #[test]
    fn threads_of_this_process_are_told_from_another_process() {
        let this = std::process::id();
        let there = std::thread::spawn(move || {
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            let thread = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
            assert_ne!(thread, this);
            is_another_process(this, thread)
        });
        assert!(!there.join().unwrap());
        assert!(is_another_process(this, 1));
        assert!(!is_another_process(this, 0));
        assert!(!is_another_process(u32::MAX, this), "the first has ended");
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (dir, root) = dir();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(
            open_at(&root, b"link", OFlags::RDONLY, 0).err(),
            Some(Errno::LOOP)
        );
        assert_eq!(stat_at(&root, b"link").unwrap().file_type(), libc::S_IFLNK);
        let link = open_at(&root, b"link", OFlags::PATH, 0).unwrap();
        let at = Timestamp {
            seconds: -2,
            nanoseconds: 500_000_000,
        };
        set_times(&link, SetTime::Keep, SetTime::At(at)).unwrap();
        chown(&link, Some(7), None).unwrap();
        let after = stat(&link).unwrap();
        assert_eq!((after.mtime, after.uid), (at, 7));
    }
}
