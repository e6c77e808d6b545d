//! What the kernel asks, and how it is answered: unpack, call [`Local`], reply or errno. No logic.
//!
//! How long the kernel may keep what it was told: [`TTL`]. All changes come through the mount, so the
//! kernel knows of each, and nothing it keeps gets wrong by itself. Two things do change without it, and
//! it is told: set-id bits that a write took away (they must not live on in its cache, an exec would
//! honour them), and changes that have happened and were answered with EIO, as they are not recorded yet. A minute instead of for ever, so that an edit behind the mount, which is not supported,
//! shows nevertheless.

use super::answers::{
    LocalResult, TTL, caller, errno, file_attr, fopen_flags, kind, listing_flags, no_entry,
    reply_attr, reply_empty, reply_entry, reply_xattr, set_time, with_buffer,
};
use super::notices::Notices;
use super::passthrough::{Passthrough, passing};
use crate::local::{
    Access, DirectoryEntry, Local, Opened, SetAttributes, Stat, Writer, without_fsetid,
};
use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Largest write that the kernel may send at once.
const MAX_WRITE: u32 = 1024 * 1024;

/// What is asked of the kernel, as far as it can. Never FUSE_WRITEBACK_CACHE: writes would reach us
/// after the close() that they belong to. No locks: the kernel does them itself.
const CAPABILITIES: [InitFlags; 7] = [
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_AUTO_INVAL_DATA,
];

/// The mounted file system, as `fuser` calls it.
pub struct ProxyFs {
    local: Arc<Local>,
    notices: Notices,
    /// Whether to ask for passthrough.
    ask: bool,
    passthrough: Passthrough,
}

impl ProxyFs {
    /// `notifier` is filled in once the session is there, before the first request but INIT.
    /// `passthrough`: whether the kernel may do without us what it can.
    pub fn new(local: Arc<Local>, notifier: Arc<OnceLock<Notifier>>, passthrough: bool) -> ProxyFs {
        ProxyFs {
            local,
            notices: Notices::new(notifier),
            ask: passthrough,
            passthrough: Passthrough::default(),
        }
    }

    /// Through what an opened file passes; none: through us.
    fn backing(
        &self,
        ino: u64,
        opened: &Opened,
        made: Option<&Stat>,
        uid: u32,
        open: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
    ) -> LocalResult<Option<Arc<BackingId>>> {
        let open = || match opened.access {
            // What root writes leaves set-id bits where they are, what others write does not.
            Access::WriteNew if uid != 0 => without_fsetid(|| open(&opened.fd))?,
            _ => open(&opened.fd),
        };
        let backing = self.passthrough.open(ino, opened.access, open);
        let unseen = matches!(opened.access, Access::WriteNew | Access::ReadAndWrite);
        if backing.is_some()
            && unseen
            && let Err(e) = self.local.let_write_unseen(opened.handle, made)
        {
            self.passthrough.release(ino);
            // Nothing was written through it yet.
            let _ = self.local.release_file(opened.handle);
            return Err(e);
        }
        Ok(backing)
    }

    /// What the kernel keeps of these names' directories is not to be shown after a change to who is just reading
    /// it; and what it believes to be at them may be wrong if the change failed.
    fn changed<T>(&self, done: &LocalResult<T>, names: &[(INodeNo, &OsStr)]) {
        for (dir, _) in names {
            if self.local.is_being_listed(dir.0) {
                self.notices.drop_listing(*dir);
            }
        }
        self.notices.look_again(done, names);
    }
}

impl Filesystem for ProxyFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            // An older kernel does what it can.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(MAX_WRITE);
        if self.ask {
            let can = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            // One file system below: the source's.
            if can && config.set_max_stack_depth(1).is_ok() {
                self.passthrough.switch_on();
                let fine = self.local.has_fine_stamps();
                log::info!(
                    "the kernel reads the source's files itself{}",
                    if fine { ", and writes new ones" } else { "" }
                );
            } else {
                log::info!("this kernel cannot read the source's files itself (Linux 6.9 can)");
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.local.lookup(parent.0, name.as_bytes()) {
            Err(rustix::io::Errno::NOENT) => reply.entry(&TTL, &no_entry(), Generation(0)),
            found => reply_entry(reply, found),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.local.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.local.attributes(ino.0, fh.map(|fh| fh.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            mode,
            uid,
            gid,
            size,
            atime: set_time(atime),
            mtime: set_time(mtime),
        };
        let handle = fh.map(|fh| fh.0);
        let done = self
            .local
            .set_attributes(ino.0, handle, &set, caller(req, 0));
        self.notices.forget_attributes(done.is_err(), ino);
        reply_attr(reply, done);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.local.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = caller(req, umask);
        let made = self
            .local
            .mknod(parent.0, name.as_bytes(), mode, rdev, caller);
        self.changed(&made, &[(parent, name)]);
        reply_entry(reply, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = caller(req, umask);
        let made = self.local.mkdir(parent.0, name.as_bytes(), mode, caller);
        self.changed(&made, &[(parent, name)]);
        reply_entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.local.unlink(parent.0, name.as_bytes());
        self.changed(&done, &[(parent, name)]);
        reply_empty(reply, done);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.local.rmdir(parent.0, name.as_bytes());
        self.changed(&done, &[(parent, name)]);
        reply_empty(reply, done);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let made = self
            .local
            .symlink(parent.0, link_name.as_bytes(), target, caller(req, 0));
        self.changed(&made, &[(parent, link_name)]);
        reply_entry(reply, made);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.local.rename(
            parent.0,
            name.as_bytes(),
            newparent.0,
            newname.as_bytes(),
            flags.bits(),
        );
        self.changed(&done, &[(parent, name), (newparent, newname)]);
        reply_empty(reply, done);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let made = self.local.link(ino.0, newparent.0, newname.as_bytes());
        self.changed(&made, &[(newparent, newname)]);
        reply_entry(reply, made);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.local.open_file(ino.0, flags.0, caller(req, 0)) {
            Ok(opened) => {
                self.notices
                    .forget_attributes(opened.privileges_cleared, ino);
                let backing =
                    self.backing(ino.0, &opened, None, req.uid(), |fd| reply.open_backing(fd));
                let handle = FileHandle(opened.handle);
                match backing {
                    Ok(Some(backing)) => {
                        reply.opened_passthrough(handle, passing(&opened), &backing);
                    }
                    Ok(None) => reply.opened(handle, fopen_flags(&opened)),
                    Err(e) => reply.error(errno(e)),
                }
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        with_buffer(size, |buffer| match self.local.read(fh.0, offset, buffer) {
            Ok(length) => reply.data(&buffer[..length]),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let by = Writer {
            thread: req.pid(),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            cached: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        match self.local.write(fh.0, offset, data, by) {
            Ok(written) => {
                self.notices
                    .forget_attributes(written.privileges_cleared, ino);
                // No more than `data` is long, which the kernel counts in 32 bits.
                reply.written(written.bytes as u32);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.local.flush_file(fh.0, req.pid()));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let done = self.local.release_file(fh.0);
        self.passthrough.release(ino.0);
        reply_empty(reply, done);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.local.fsync_file(fh.0, datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.local.open_directory(ino.0) {
            Ok((handle, fresh)) => reply.opened(FileHandle(handle), listing_flags(fresh)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.local.list(fh.0, offset, |entry: &DirectoryEntry| {
            let name = OsStr::from_bytes(&entry.name);
            reply.add(INodeNo(entry.node), entry.next, kind(entry.file_type), name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let full = |entry: &DirectoryEntry, stat: &Stat| {
            let name = OsStr::from_bytes(&entry.name);
            let attr = file_attr(stat);
            reply.add(attr.ino, entry.next, name, &TTL, &attr, Generation(0))
        };
        match self.local.list_with_attributes(fh.0, offset, full) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.local.close_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.local.fsync_directory(fh.0));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.local.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = flags.cast_unsigned();
        let done = self
            .local
            .set_xattr(ino.0, name.as_bytes(), value, flags, caller(req, 0));
        reply_empty(reply, done);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, |buffer| {
            self.local.xattr(ino.0, name.as_bytes(), buffer)
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(req, 0);
        reply_xattr(reply, size, |buffer| {
            self.local.list_xattrs(ino.0, buffer, caller)
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.local.remove_xattr(ino.0, name.as_bytes()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = caller(req, umask);
        let created = self
            .local
            .create(parent.0, name.as_bytes(), mode, flags, caller);
        self.changed(&created, &[(parent, name)]);
        match created {
            Ok((stat, opened)) => {
                let open = |fd: &OwnedFd| reply.open_backing(fd);
                let handle = FileHandle(opened.handle);
                let (attr, generation) = (file_attr(&stat), Generation(0));
                match self.backing(stat.ino, &opened, Some(&stat), req.uid(), open) {
                    Ok(Some(backing)) => {
                        let flags = passing(&opened);
                        reply.created_passthrough(&TTL, &attr, generation, handle, flags, &backing);
                    }
                    Ok(None) => {
                        reply.created(&TTL, &attr, generation, handle, fopen_flags(&opened));
                    }
                    Err(e) => {
                        self.local.forget(stat.ino, 1);
                        reply.error(errno(e));
                    }
                }
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = mode.cast_unsigned();
        let done = self
            .local
            .fallocate(fh.0, offset, length, mode, caller(req, 0))
            .map(|cleared| self.notices.forget_attributes(cleared, ino));
        reply_empty(reply, done);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.local.seek(fh.0, offset, whence) {
            Ok(position) => reply.offset(position.cast_signed()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        match self.local.copy_range(from, to, len, caller(req, 0)) {
            Ok(written) => {
                self.notices
                    .forget_attributes(written.privileges_cleared, ino_out);
                // No more than 1 GiB.
                reply.written(written.bytes as u32);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    // The rest has no meaning here; answered, so that `fuser` does not log each of them.

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
