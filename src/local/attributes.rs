//! Requests about attributes: mode, owner, times, extended attributes, the file system's numbers.
//!
//! They hold the tree lock's read side over system call and record: the path stays what it is in the
//! log, and no checkpoint comes between the two. Two changes of the same inode's attributes do not
//! meet: the kernel lets one in at a time.
//!
//! What was set on a file before the log knows it travels with its Content. Whether the log knows it is
//! asked *after* the system call: a record of the Content in between makes one too many, not one too few.
//!
//! Values are recorded as they are after the call, since the file system may have done more or less than
//! it was asked (chown takes set-id bits away, times are rounded), and only if they are others than
//! before.

use super::inodes::{Kind, Tree};
use super::search::LastFound;
use super::sys::{self, Caller, Result, SetTime, Stat};
use super::{Local, data};
use crate::change::{Change, Owner, Times};
use rustix::fs::{StatVfs, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What shall be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes, of a regular file.
    pub size: Option<u64>,
    /// Last access.
    pub atime: SetTime,
    /// Last change of the content.
    pub mtime: SetTime,
}

impl Default for SetAttributes {
    fn default() -> SetAttributes {
        SetAttributes {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
        }
    }
}

impl SetAttributes {
    fn sets_times(&self) -> bool {
        (self.atime, self.mtime) != (SetTime::Keep, SetTime::Keep)
    }

    fn sets_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    /// Nothing at all: chown(2) with neither owner nor group, which takes set-id bits away and changes the
    /// ctime nevertheless. Or the kernel wants those bits gone before a write.
    fn is_nothing(&self) -> bool {
        self.only_size() && self.size.is_none()
    }

    fn only_size(&self) -> bool {
        self.mode.is_none() && !self.sets_owner() && !self.sets_times()
    }
}

/// The longest list of names that Linux gives (xattr(7)).
const XATTR_LIST_MAX: usize = 65536;

/// Whether what is not said to be a chown(2) may take set-id bits away. A stranger may not do so by a chown;
/// and for a write the write itself does it.
fn may_clear(stat: &Stat, caller: Caller) -> bool {
    caller.uid == 0
        || caller.uid == stat.uid
        || stat.is_dir()
        || data::without_privileges(stat, caller.thread) == stat.permissions()
}

/// After a chown or an ACL by somebody who is not in the file's group: set-group-id goes. The kernel does
/// so by itself for whom it knows; the daemon's call was root's.
fn drop_setgid(fd: impl AsFd, before: &Stat, caller: Caller) -> Result<()> {
    if caller.uid == 0
        || before.mode & libc::S_ISGID == 0
        || sys::is_in_group(caller.thread, before.gid)
    {
        return Ok(());
    }
    let now = sys::stat(fd.as_fd())?.permissions();
    if now & libc::S_ISGID != 0 {
        sys::chmod(fd, now & !libc::S_ISGID)?;
    }
    Ok(())
}

/// The attributes whose setting may change the permission bits.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// Capabilities of a program, which a write takes away.
const CAPABILITY: &[u8] = b"security.capability";

impl Local {
    /// What the node is; through a handle also if no name leads to it.
    ///
    /// # Errors
    /// ESTALE: no name leads to it.
    pub fn attributes(&self, node: u64, handle: Option<u64>) -> Result<Stat> {
        match handle.and_then(|handle| self.open.get(handle).ok()) {
            Some(handle) => Ok(self.inodes.outward(sys::stat(&handle.fd)?)),
            None => self.inodes.stat(&self.inodes.read(), node),
        }
    }

    /// Sets attributes: the size, then owner, mode and times. Returns what they are then.
    ///
    /// # Errors
    /// As `truncate(2)`, `chown(2)`, `chmod(2)`, `utimensat(2)`; EROFS while the log is closed; EIO: it
    /// was set, and is not recorded yet.
    pub fn set_attributes(
        &self,
        node: u64,
        handle: Option<u64>,
        set: &SetAttributes,
        caller: Caller,
    ) -> Result<Stat> {
        let handle = handle.map(|handle| self.open.get(handle)).transpose()?;
        if let Some(size) = set.size {
            match &handle {
                Some(handle) => self.cut_handle(handle, size, caller)?,
                None => self.cut_path(node, size, caller)?,
            };
        }
        let tree = self.inodes.read();
        let opened: Arc<OwnedFd>;
        let fd = match &handle {
            Some(handle) => handle.fd.as_fd(),
            None => {
                opened = self.inodes.open_path(&tree, node)?;
                opened.as_fd()
            }
        };
        if set.only_size() && set.size.is_some() {
            return Ok(self.inodes.outward(sys::stat(fd)?));
        }
        self.log.check()?;
        let before = sys::stat(fd)?;
        if set.sets_owner() || (set.is_nothing() && may_clear(&before, caller)) {
            sys::chown(fd, set.uid, set.gid)?;
            if !before.is_dir() {
                drop_setgid(fd, &before, caller)?;
            }
        }
        if let Some(mode) = set.mode {
            sys::chmod(fd, mode)?;
        }
        if set.sets_times() {
            // Of a file that is written to unseen, a look tells what was written by its time.
            let state = self.open.state(node);
            let mut dirty = state.as_ref().map(|state| state.lock());
            if let Some(dirty) = &mut dirty {
                dirty.look();
            }
            sys::set_times(fd, set.atime, set.mtime)?;
            if let (Some(dirty), SetTime::At(mtime)) = (&mut dirty, set.mtime) {
                dirty.time_was_set(mtime);
            }
        }
        let after = sys::stat(fd)?;
        self.record_attributes(&tree, node, &before, &after, set.sets_times())?;
        Ok(self.inodes.outward(after))
    }

    /// Records what differs; times only if they were set, since writes change them too.
    fn record_attributes(
        &self,
        tree: &Tree,
        node: u64,
        before: &Stat,
        after: &Stat,
        times_set: bool,
    ) -> Result<()> {
        let owner = |s: &Stat| Owner {
            uid: s.uid,
            gid: s.gid,
        };
        let times = |s: &Stat| Times {
            atime: s.atime,
            mtime: s.mtime,
        };
        let mode = (before.permissions() != after.permissions()).then(|| after.permissions());
        let owner = (owner(before) != owner(after)).then(|| owner(after));
        let times = (times_set && times(before) != times(after)).then(|| times(after));
        if mode.is_none() && owner.is_none() && times.is_none() {
            return Ok(());
        }
        if !Self::is_recorded(tree, node) || self.open.is_new(node) {
            return Ok(());
        }
        let path = match tree.path(node) {
            None if after.nlink > 0 && !after.is_dir() => self.search(node, &LastFound::default()),
            // An excluded name is no reason to search for another one: a whole tree of copies that share
            // their files may be there, and all of it be changed.
            _ => self.mirrored_path(tree, node, after.is_dir()),
        };
        match path {
            Some(path) => self.log.record(Change::Attr {
                path,
                symlink: Kind::of(after) == Kind::Symlink,
                mode,
                owner,
                times,
            }),
            // It has no name any more.
            None => Ok(()),
        }
    }

    /// The numbers of the file system that the node lies on.
    ///
    /// # Errors
    /// As `fstatvfs(2)`.
    pub fn statfs(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(self.inodes.root())
    }

    fn xattr_path(&self, tree: &Tree, node: u64) -> Result<(Arc<OwnedFd>, String)> {
        let fd = self.inodes.open_path(tree, node)?;
        let path = sys::proc_path(&fd);
        Ok((fd, path))
    }

    /// Reads an extended attribute into `buffer`; an empty buffer asks for the length.
    ///
    /// # Errors
    /// As `getxattr(2)`: ENODATA, ERANGE.
    pub fn xattr(&self, node: u64, name: &[u8], buffer: &mut [u8]) -> Result<usize> {
        // The kernel asks for this before the first write to a file.
        if name == CAPABILITY
            && let Some(state) = self.open.state(node)
            && state.lock().is_plain()
        {
            return Err(Errno::NODATA);
        }
        let (_open, path) = self.xattr_path(&self.inodes.read(), node)?;
        if buffer.is_empty() {
            rustix::fs::getxattr_query(path, name)
        } else {
            rustix::fs::getxattr(path, name, buffer)
        }
    }

    /// Lists the names of extended attributes, each with a NUL behind it; an empty buffer asks for the
    /// length. Those that only root may read (`trusted.`) are shown to root only.
    ///
    /// # Errors
    /// As `listxattr(2)`: ERANGE.
    pub fn list_xattrs(&self, node: u64, buffer: &mut [u8], caller: Caller) -> Result<usize> {
        let (_open, path) = self.xattr_path(&self.inodes.read(), node)?;
        if caller.uid == 0 {
            return if buffer.is_empty() {
                rustix::fs::listxattr_query(path)
            } else {
                rustix::fs::listxattr(path, buffer)
            };
        }
        let mut all = vec![0; XATTR_LIST_MAX];
        let length = rustix::fs::listxattr(path, &mut all[..])?;
        let names = all[..length].split_inclusive(|b| *b == 0);
        let shown: Vec<u8> = names
            .filter(|name| !name.starts_with(b"trusted."))
            .flatten()
            .copied()
            .collect();
        if !buffer.is_empty() {
            let room = buffer.get_mut(..shown.len()).ok_or(Errno::RANGE)?;
            room.copy_from_slice(&shown);
        }
        Ok(shown.len())
    }

    /// Sets an extended attribute: here only, mirrors cannot have it. An ACL that changes the mode's
    /// group bits is recorded as that mode.
    ///
    /// # Errors
    /// As `setxattr(2)`; EROFS while the log is closed.
    pub fn set_xattr(
        &self,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        let flags = XattrFlags::from_bits_retain(flags);
        self.change_xattr(node, name, |fd, path, before| {
            rustix::fs::setxattr(path, name, value, flags)?;
            before.map_or(Ok(()), |before| drop_setgid(fd, before, caller))
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As `removexattr(2)`; EROFS while the log is closed.
    pub fn remove_xattr(&self, node: u64, name: &[u8]) -> Result<()> {
        self.change_xattr(node, name, |_, path, _| rustix::fs::removexattr(path, name))
    }

    fn change_xattr(
        &self,
        node: u64,
        name: &[u8],
        change: impl FnOnce(&OwnedFd, &str, Option<&Stat>) -> Result<()>,
    ) -> Result<()> {
        let tree = self.inodes.read();
        self.log.check()?;
        let (fd, path) = self.xattr_path(&tree, node)?;
        if let Some(state) = self.open.state(node) {
            state.lock().not_plain();
        }
        if name != ACCESS_ACL {
            return change(&fd, &path, None);
        }
        let before = sys::stat(&fd)?;
        change(&fd, &path, Some(&before))?;
        self.record_attributes(&tree, node, &before, &sys::stat(&fd)?, false)
    }
}
