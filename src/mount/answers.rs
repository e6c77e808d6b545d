//! From what `fuser` has to what [`crate::local::Local`] takes, and from its answers to replies.

use crate::change::Timestamp;
use crate::local::{Caller, Opened, SetTime, Stat};
use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry,
    ReplyXattr, Request, TimeOrNow,
};
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel may keep names, their absence, and attributes.
pub const TTL: Duration = Duration::from_secs(60);

thread_local! {
    /// Where data and attributes are read to: once a thread, as large as was needed.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `size` bytes of this thread's buffer.
pub fn with_buffer<T>(size: u32, f: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        f(&mut buffer[..size])
    })
}

/// The number, as it is.
pub fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

/// For whom something is made.
pub fn caller(req: &Request, umask: u32) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        umask,
        thread: req.pid(),
    }
}

/// From the type bits of a mode.
pub fn kind(file_type: u32) -> FileType {
    match file_type & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// To what `fuser` turns into the same seconds and nanoseconds. What it cannot hold is 1970.
pub fn system_time(t: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(t.seconds.unsigned_abs());
    let seconds = if t.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    seconds
        .and_then(|s| s.checked_add(Duration::from_nanos(u64::from(t.nanoseconds))))
        .unwrap_or(UNIX_EPOCH)
}

/// Back from what `fuser` makes of the kernel's seconds and nanoseconds. Before 1970 it subtracts the
/// nanoseconds where they count forwards (0.18, `system_time_from_time`): -1 s and 0.25 s come as 1.25 s
/// before 1970.
pub fn timestamp(t: SystemTime) -> Timestamp {
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: after.as_secs().cast_signed(),
            nanoseconds: after.subsec_nanos(),
        },
        Err(before) => Timestamp {
            seconds: before.duration().as_secs().wrapping_neg().cast_signed(),
            nanoseconds: before.duration().subsec_nanos(),
        },
    }
}

/// A time to set, or none.
pub fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(t)) => SetTime::At(timestamp(t)),
    }
}

/// What the kernel is told of a file.
pub fn file_attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(stat.mode),
        perm: (stat.mode & 0o7777) as u16,
        nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
        uid: stat.uid,
        gid: stat.gid,
        // The kernel's 32-bit encoding is the lower half of stat's.
        rdev: stat.rdev as u32,
        blksize: stat.blksize,
        flags: 0,
    }
}

/// "There is no such name", to be kept as long as a name: node 0.
pub fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Pages stay from one open to the next; the kernel drops them when the mtime it is told of differs.
pub fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.flush);
    flags
}

/// The kernel keeps a listing until the directory changes: it does that itself, or sees another mtime. `fresh`: the
/// one that it has may be shown again. Else it asks once more, and gets all attributes with it.
pub fn listing_flags(fresh: bool) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_CACHE_DIR;
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, fresh);
    flags
}

/// What [`crate::local::Local`] answers.
pub type LocalResult<T> = Result<T, rustix::io::Errno>;

/// Answers with a name that the kernel may keep.
pub fn reply_entry(reply: ReplyEntry, made: LocalResult<Stat>) {
    match made {
        Ok(stat) => reply.entry(&TTL, &file_attr(&stat), Generation(0)),
        Err(e) => reply.error(errno(e)),
    }
}

/// Answers with attributes that the kernel may keep.
pub fn reply_attr(reply: ReplyAttr, stat: LocalResult<Stat>) {
    match stat {
        Ok(stat) => reply.attr(&TTL, &file_attr(&stat)),
        Err(e) => reply.error(errno(e)),
    }
}

/// Answers that it was done.
pub fn reply_empty(reply: ReplyEmpty, done: LocalResult<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// Answers with what `read` fills the buffer with; where the kernel has no room (`size` is 0) with its
/// length.
pub fn reply_xattr(
    reply: ReplyXattr,
    size: u32,
    read: impl FnOnce(&mut [u8]) -> LocalResult<usize>,
) {
    with_buffer(size, |buffer| match read(buffer) {
        Ok(length) if size == 0 => reply.size(u32::try_from(length).unwrap_or(u32::MAX)),
        Ok(length) => reply.data(&buffer[..length]),
        Err(e) => reply.error(errno(e)),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fractions() {
        let quarter_past = Timestamp {
            seconds: -1,
            nanoseconds: 250_000_000,
        };
        assert_eq!(
            system_time(quarter_past),
            UNIX_EPOCH - Duration::from_millis(750)
        );
        // What fuser 0.18 makes of the kernel's -1 s and 0.25 s.
        let from_fuser = UNIX_EPOCH - Duration::new(1, 250_000_000);
        assert_eq!(timestamp(from_fuser), quarter_past);
        let later = Timestamp {
            seconds: 5,
            nanoseconds: 7,
        };
        assert_eq!(timestamp(system_time(later)), later);
    }
}
