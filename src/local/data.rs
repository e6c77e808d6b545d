//! Requests about the bytes of files: open, read, write, cut, allocate, copy, sync, close.
//!
//! Bytes are marked when they are in the file, and recorded by the close() that follows (J1): FLUSH,
//! which the kernel sends for each close() of each copy of a descriptor and whose answer it waits for.
//! RELEASE, for which nobody waits, brings what came after (mmap stores). A file that was made or
//! emptied and has no byte yet is not recorded by a FLUSH: most likely it is the shell's copy of the
//! descriptor that is closed, and an empty file would appear on the mirrors (P4). Its record is made by
//! the FLUSH after the first byte, or by RELEASE. And a process that starts another one has copies of all
//! its descriptors closed in there, also of the upload that one of its threads is just writing: the FLUSH
//! of a process that has written nothing of what is unlogged makes no record while the writers live. Of a
//! new file that is written to unseen, who made it is taken for who writes it: what a process wrote that
//! has inherited the descriptor is recorded when the maker closes it, at the release or by the flusher, since
//! half a file on the mirrors would be worse. (Nothing in /proc may be read here to find out more: who closes
//! may be inside an execve(2), holding the lock that /proc waits for, and waits for us.)
//!
//! The kernel leaves it to us to take set-user-id and set-group-id bits from a file that somebody writes
//! to (HANDLE_KILLPRIV_V2). That is done *before* the bytes are written, so that there is no moment when
//! other bytes run under those bits. The mode travels with the Content.

use super::Local;
use super::open_files::{Access, FileState, Handle};
use super::sys::{self, Caller, Result, Stat};
use super::unseen::Watch;
use crate::fault;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the kernel is told of an opened file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// The daemon's descriptor of it.
    pub fd: Arc<OwnedFd>,
    /// What it may do.
    pub access: Access,
    /// Whether the kernel shall tell of every close().
    pub flush: bool,
    /// Whether set-id bits were taken away, which the kernel does not know yet.
    pub privileges_cleared: bool,
}

/// Whose write it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The thread that writes; see [`super::Caller`].
    pub thread: u32,
    /// Set-id bits go.
    pub kill_privileges: bool,
    /// The kernel writes back what an application stored by mmap and was told to be written.
    pub cached: bool,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many bytes are in the file; fewer than were given if the disk is full.
    pub bytes: usize,
    /// Whether set-id bits were taken away, which the kernel does not know yet.
    pub privileges_cleared: bool,
}

/// Of the flags of an open(2) those that the daemon's descriptor needs too. Not O_APPEND (the kernel
/// says where to write), O_DIRECT (our buffers are not aligned), O_TRUNC (done apart, with its mark).
pub fn open_flags(flags: i32) -> OFlags {
    let wanted = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;
    OFlags::from_bits_retain((flags & wanted).cast_unsigned())
}

fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

fn access(flags: i32) -> Access {
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Access::Read,
        libc::O_WRONLY => Access::Write,
        _ => Access::ReadAndWrite,
    }
}

/// Takes the set-id bits away that a write by this thread, which is not root's, takes away. True if there
/// were any. The kernel leaves set-group-id alone where the group may not execute, and only for members.
pub fn clear_privileges(fd: impl AsFd, thread: u32) -> Result<bool> {
    let stat = sys::stat(fd.as_fd())?;
    let cleared = without_privileges(&stat, thread);
    if cleared != stat.permissions() {
        sys::chmod(fd, cleared)?;
    }
    Ok(cleared != stat.permissions())
}

/// The permission bits without those that a write or a chown by this thread takes away.
pub fn without_privileges(stat: &Stat, thread: u32) -> u32 {
    let mode = stat.permissions();
    let mut cleared = mode & !libc::S_ISUID;
    if mode & libc::S_ISGID != 0
        && (mode & libc::S_IXGRP != 0 || !sys::is_in_group(thread, stat.gid))
    {
        cleared &= !libc::S_ISGID;
    }
    cleared
}

impl Local {
    /// Opens a regular file; with O_TRUNC empties it.
    ///
    /// # Errors
    /// As `open(2)`; ESTALE: no name leads to it; EROFS to write while the log is closed.
    pub fn open_file(&self, node: u64, flags: i32, caller: Caller) -> Result<Opened> {
        let truncate = flags & libc::O_TRUNC != 0;
        if truncate || may_write(flags) {
            self.log.check()?;
        }
        let fd = self
            .inodes
            .open(&self.inodes.read(), node, open_flags(flags))?;
        let state = may_write(flags).then(|| self.open.add_writer(node));
        let emptied = match &state {
            Some(state) if truncate => cut(state, &fd, 0, caller),
            None if truncate => self.cut_path(node, 0, caller),
            _ => Ok(false),
        };
        let privileges_cleared = emptied.inspect_err(|_| {
            if let Some(state) = &state {
                self.remove_writer(state);
            }
        })?;
        let flush = state.is_some();
        Ok(self.opened(fd, state, access(flags), flush, privileges_cleared))
    }

    fn opened(
        &self,
        fd: OwnedFd,
        state: Option<Arc<FileState>>,
        access: Access,
        flush: bool,
        privileges_cleared: bool,
    ) -> Opened {
        let fd = Arc::new(fd);
        let handle = Handle {
            fd: fd.clone(),
            state,
            access,
            unseen: AtomicBool::new(false),
        };
        Opened {
            handle: self.open.open(handle),
            fd,
            access,
            flush,
            privileges_cleared,
        }
    }

    /// The kernel is about to let this descriptor change the file without asking: by mmap, or if it has
    /// made it ([`Access::WriteNew`]) by writing. To be called before the application has it. `made`: what
    /// it was when it was made.
    ///
    /// # Errors
    /// As `fstat(2)`; EBADF: no such handle, or one for reading.
    pub fn let_write_unseen(&self, handle: u64, made: Option<&Stat>) -> Result<()> {
        let handle = self.open.get(handle)?;
        let state = handle.writer()?;
        let mut dirty = state.lock();
        let stat = match made {
            Some(stat) => *stat,
            None => {
                dirty.look();
                sys::stat(&handle.fd)?
            }
        };
        let watch = || Watch::new(handle.fd.clone(), &stat, self.fine_stamps);
        dirty.watch(watch, handle.access == Access::ReadAndWrite);
        handle.unseen.store(true, Ordering::Release);
        Ok(())
    }

    /// A file that was just made: whoever made it writes it, even by a descriptor for reading.
    ///
    /// If it is for writing only, its writes may be left unseen, as the file is recorded whole anyway. But if it
    /// stays open after that, it is recorded whole each time, since nobody knows where it was written. So
    /// only with O_EXCL: programs that unpack or copy a file in one go make it so (cp, tar). Shells' `>`,
    /// uploads and downloads, which may take hours, do not; of them only what is new shall travel (P5). Not
    /// with set-id bits, which go with the first write: the kernel must be told.
    pub(super) fn opened_new(&self, fd: OwnedFd, stat: &Stat, flags: i32, thread: u32) -> Opened {
        let state = self.open.add_writer(stat.ino);
        state.lock().made(thread);
        let set_id = stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        let in_one_go = flags & (libc::O_EXCL | libc::O_APPEND) == libc::O_EXCL;
        let unseen = self.fine_stamps && in_one_go && !set_id;
        let access = match access(flags) {
            Access::Write if unseen => Access::WriteNew,
            other => other,
        };
        self.opened(fd, Some(state), access, true, false)
    }

    /// Reads up to `buffer.len()` bytes, fewer at the end of the file only.
    ///
    /// # Errors
    /// As `pread(2)`; EBADF: no such handle.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let handle = self.open.get(handle)?;
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&handle.fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes bytes. What the kernel writes back for mmap is taken also while the log is closed, for it
    /// would be lost.
    ///
    /// # Errors
    /// As `pwrite(2)`; EBADF: not open for writing; EROFS while the log is closed.
    pub fn write(&self, handle: u64, offset: u64, bytes: &[u8], by: Writer) -> Result<Written> {
        let handle = self.open.get(handle)?;
        let state = handle.writer()?;
        if !by.cached {
            self.log.check()?;
        }
        state.lock().begin();
        let done = write_all(&handle.fd, offset, bytes, by);
        fault::point("local.written");
        let mut dirty = state.lock();
        if let Ok(written) = &done {
            dirty.wrote(offset, offset + written.bytes as u64);
            if !by.cached {
                dirty.written_by(by.thread);
            }
        }
        dirty.end();
        done
    }

    /// Sets the size through an open handle; logged when that is closed. True if set-id bits went.
    pub(super) fn cut_handle(&self, handle: &Handle, size: u64, caller: Caller) -> Result<bool> {
        self.log.check()?;
        cut(handle.writer()?, &handle.fd, size, caller)
    }

    /// Sets the size without a handle; logged at once, unless the file is new and someone else is still
    /// writing it. True if set-id bits went.
    pub(super) fn cut_path(&self, node: u64, size: u64, caller: Caller) -> Result<bool> {
        let fd = self
            .inodes
            .open(&self.inodes.read(), node, OFlags::WRONLY)?;
        self.log.check()?;
        let state = self.open.add_writer(node);
        let cleared = cut(&state, &fd, size, caller);
        let logged = self.log_unless(&state, |dirty| dirty.is_new());
        self.remove_writer(&state);
        logged.and(cleared)
    }

    /// Logs the file, unless `later` says that it waits.
    fn log_unless(
        &self,
        state: &FileState,
        later: impl Fn(&mut super::Dirty) -> bool,
    ) -> Result<()> {
        // Most files are clean when they are closed, and need not wait for the tree.
        {
            let mut dirty = state.lock();
            dirty.look();
            if !dirty.is_dirty() || later(&mut dirty) {
                return Ok(());
            }
        }
        let tree = self.inodes.read();
        self.log_content(&tree, state, &mut state.lock())
    }

    fn remove_writer(&self, state: &FileState) {
        self.open.remove_writer(state);
        self.forget_if_clean(state);
    }

    /// A copy of a descriptor is closed by `thread`: what its process wrote is in the log when this
    /// returns (see the module's comment for what waits).
    ///
    /// # Errors
    /// EIO: it could not be recorded; it will be.
    pub fn flush_file(&self, handle: u64, thread: u32) -> Result<()> {
        let handle = self.open.get(handle)?;
        let Some(state) = &handle.state else {
            return Ok(());
        };
        self.log_unless(state, |dirty| {
            if dirty.is_no_writer(thread, sys::is_another_process) {
                return true;
            }
            let awaits_its_bytes = dirty.awaits_its_bytes();
            if awaits_its_bytes {
                dirty.put_off();
            }
            awaits_its_bytes
        })
    }

    /// The last copy of a descriptor is closed, and nothing is mapped any more. While others have the file
    /// open to write it is left to them: a release may come late.
    ///
    /// # Errors
    /// As [`Local::flush_file`].
    pub fn release_file(&self, handle: u64) -> Result<()> {
        let Some(handle) = self.open.close(handle) else {
            return Err(Errno::BADF);
        };
        let Some(state) = &handle.state else {
            return Ok(());
        };
        if handle.unseen.load(Ordering::Acquire) {
            let mut dirty = state.lock();
            dirty.look();
            dirty.unwatch(handle.access == Access::ReadAndWrite);
        }
        self.open.remove_writer(state);
        let logged = self.log_unless(state, |_| state.has_writers());
        self.forget_if_clean(state);
        logged
    }

    /// Waits for the disk, then logs what was written; not of a file that is new or was emptied, since
    /// it may be half-written (P4).
    ///
    /// # Errors
    /// As `fsync(2)`; EIO: it could not be recorded.
    pub fn fsync_file(&self, handle: u64, data_only: bool) -> Result<()> {
        let handle = self.open.get(handle)?;
        if data_only {
            rustix::fs::fdatasync(&handle.fd)?;
        } else {
            rustix::fs::fsync(&handle.fd)?;
        }
        match &handle.state {
            Some(state) => self.log_unless(state, |dirty| dirty.is_whole()),
            None => Ok(()),
        }
    }

    /// Allocates, punches, zeroes, inserts or collapses a part of a file. True if set-id bits went.
    ///
    /// # Errors
    /// As `fallocate(2)`; EROFS while the log is closed.
    pub fn fallocate(
        &self,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
        caller: Caller,
    ) -> Result<bool> {
        let handle = self.open.get(handle)?;
        let state = handle.writer()?;
        self.log.check()?;
        let mode = FallocateFlags::from_bits_retain(mode);
        let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
        state.lock().begin();
        let done = (|| {
            let old = sys::stat(&handle.fd)?;
            let cleared = caller.uid != 0 && clear_privileges(&handle.fd, caller.thread)?;
            rustix::fs::fallocate(&handle.fd, mode, offset, length)?;
            Ok((old, sys::stat(&handle.fd)?, cleared))
        })();
        let mut dirty = state.lock();
        if let Ok((old, new, _)) = done {
            // The time alone may have changed: by a hole behind the end.
            if (old.size, old.mtime) != (new.size, new.mtime) {
                dirty.resized(old.size, new.size);
            }
            let new = new.size;
            if mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE) {
                dirty.wrote(offset, new);
            } else if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
                dirty.wrote(offset, end.min(new));
            }
        }
        dirty.end();
        done.map(|(_, _, cleared)| cleared)
    }

    /// Copies bytes from file to file within the source's file system (which may share them).
    ///
    /// # Errors
    /// As `copy_file_range(2)`; EROFS while the log is closed.
    pub fn copy_range(
        &self,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
        caller: Caller,
    ) -> Result<Written> {
        let (source, target) = (self.open.get(from.0)?, self.open.get(to.0)?);
        let state = target.writer()?;
        self.log.check()?;
        // The answer has 32 bits.
        let length = usize::try_from(length.min(1 << 30)).map_err(|_| Errno::INVAL)?;
        let (mut read_at, mut write_at) = (from.1, to.1);
        state.lock().begin();
        let done = (|| {
            let privileges_cleared =
                caller.uid != 0 && clear_privileges(&target.fd, caller.thread)?;
            let bytes = rustix::fs::copy_file_range(
                &source.fd,
                Some(&mut read_at),
                &target.fd,
                Some(&mut write_at),
                length,
            )?;
            Ok(Written {
                bytes,
                privileges_cleared,
            })
        })();
        let mut dirty = state.lock();
        if let Ok(written) = &done {
            dirty.wrote(to.1, to.1 + written.bytes as u64);
        }
        dirty.end();
        done
    }

    /// Finds the next data or hole (SEEK_DATA, SEEK_HOLE).
    ///
    /// # Errors
    /// As `lseek(2)`; EINVAL for the others, which the kernel does itself.
    pub fn seek(&self, handle: u64, offset: i64, whence: i32) -> Result<u64> {
        let handle = self.open.get(handle)?;
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let position = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&handle.fd, position)
    }
}

fn write_all(fd: &OwnedFd, offset: u64, bytes: &[u8], by: Writer) -> Result<Written> {
    let privileges_cleared = by.kill_privileges && clear_privileges(fd, by.thread)?;
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(Written {
        bytes: done,
        privileges_cleared,
    })
}

fn cut(state: &FileState, fd: &OwnedFd, size: u64, caller: Caller) -> Result<bool> {
    state.lock().begin();
    let done = (|| {
        let old = sys::stat(fd)?;
        let cleared = caller.uid != 0 && clear_privileges(fd, caller.thread)?;
        rustix::fs::ftruncate(fd, size)?;
        Ok((old, sys::stat(fd)?, cleared))
    })();
    let mut dirty = state.lock();
    // A file that was that long already is as it was; but who empties it is about to write it anew.
    if let Ok((old, new, _)) = done
        && (size == 0 || (old.size, old.mtime) != (size, new.mtime))
    {
        dirty.resized(old.size, size);
    }
    dirty.end();
    done.map(|(_, _, cleared)| cleared)
}
