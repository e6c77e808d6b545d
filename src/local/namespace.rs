//! Requests that change the tree: make, remove, move, link.
//!
//! Each of them holds the tree lock's write side from before the system call until its record is in the
//! log, so that no other change of a path comes between the two (J2).
//!
//! Killed between them: nobody was told that it happened, and the scan at the next start finds it. The
//! record fails: it has happened, is kept in order, and the caller gets EIO.

use super::inodes::{Kind, Tree};
use super::sys::{self, Caller, Result, Stat, as_caller};
use super::{Local, data};
use crate::change::{Change, Extent, Owner, RelPath, Times};
use crate::fault;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where something is made, with the tree in hand.
pub(super) struct Place<'a> {
    dir: u64,
    pub(super) name: &'a [u8],
    pub(super) fd: Arc<OwnedFd>,
    /// None below a removed directory: the system call will fail.
    pub(super) path: Option<RelPath>,
}

impl Local {
    /// Looks a name up, and counts it as known to the kernel until [`Local::forget`].
    ///
    /// # Errors
    /// ENOENT; EXDEV for what is on another file system.
    pub fn lookup(&self, dir: u64, name: &[u8]) -> Result<Stat> {
        if Self::is_reserved(dir, name) {
            return Err(Errno::NOENT);
        }
        self.look_up(dir, name)
    }

    /// The kernel has forgotten so many lookups of the node.
    pub fn forget(&self, node: u64, count: u64) {
        let needed = |node| self.open.state(node).is_some();
        self.inodes.forget(node, count, needed);
    }

    /// What the kernel has forgotten is given back, for certain.
    pub(super) fn count_forgotten(&self) {
        let needed = |node| self.open.state(node).is_some();
        self.inodes.count_forgotten(true, needed);
    }

    fn place<'a>(&self, tree: &Tree, dir: u64, name: &'a [u8]) -> Result<Place<'a>> {
        Ok(Place {
            dir,
            name,
            fd: self.inodes.directory(tree, dir)?,
            path: tree.path_in(dir, name),
        })
    }

    /// With the tree in hand: may something be made here?
    fn new_place<'a>(&self, tree: &Tree, dir: u64, name: &'a [u8]) -> Result<Place<'a>> {
        self.log.check()?;
        Self::check_name(dir, name)?;
        self.place(tree, dir, name)
    }

    /// What was made, recorded and known to the kernel.
    fn made(
        &self,
        tree: &mut Tree,
        place: &Place,
        change: impl FnOnce(RelPath, &Stat) -> Result<Option<Change>>,
    ) -> Result<Stat> {
        let stat = self.inodes.stat_at(&place.fd, place.name)?;
        if let Some(path) = &place.path
            && self.is_mirrored(path, stat.is_dir())
            && let Some(change) = change(path.clone(), &stat)?
        {
            self.log.record(change)?;
        }
        let stat = self.inodes.outward(stat);
        tree.enter(stat.ino, Kind::of(&stat), place.dir, place.name);
        if stat.is_dir() || stat.nlink == 1 {
            self.suspects.made(stat.ino);
        }
        Ok(stat)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As `mkdir(2)`; EPERM for `.proxyfs` in the root; EROFS and EIO see [`super::log`].
    pub fn mkdir(&self, dir: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Stat> {
        let mut tree = self.inodes.write();
        let place = self.new_place(&tree, dir, name)?;
        {
            let _as = as_caller(caller)?;
            rustix::fs::mkdirat(&place.fd, name, Mode::from_raw_mode(mode))?;
        }
        self.made(&mut tree, &place, |path, stat| {
            Ok(Some(Change::Mkdir {
                path,
                mode: stat.permissions(),
                owner: owner(stat),
            }))
        })
    }

    /// Makes a regular file (logged at once), a FIFO, a socket or a device (never logged).
    ///
    /// # Errors
    /// As `mknod(2)`, and as [`Local::mkdir`].
    pub fn mknod(
        &self,
        dir: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Stat> {
        let mut tree = self.inodes.write();
        let place = self.new_place(&tree, dir, name)?;
        let file_type = FileType::from_raw_mode(mode);
        {
            let _as = as_caller(caller)?;
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::mknodat(&place.fd, name, file_type, mode, u64::from(rdev))?;
        }
        self.made(&mut tree, &place, |path, stat| {
            if !Kind::of(stat).is_recorded() {
                self.special_files.fetch_add(1, Ordering::Relaxed);
                return Ok(None);
            }
            Ok(Some(Change::Content {
                path,
                node: sys::node_id(&place.fd, name)?,
                extent: Extent::Whole,
                size: stat.size,
                linked: false,
            }))
        })
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As `symlink(2)`, and as [`Local::mkdir`].
    pub fn symlink(&self, dir: u64, name: &[u8], target: &[u8], caller: Caller) -> Result<Stat> {
        let mut tree = self.inodes.write();
        let place = self.new_place(&tree, dir, name)?;
        {
            let _as = as_caller(caller)?;
            rustix::fs::symlinkat(target, &place.fd, name)?;
        }
        self.made(&mut tree, &place, |path, stat| {
            Ok(Some(Change::Symlink {
                path,
                target: target.into(),
                owner: owner(stat),
                times: times(stat),
            }))
        })
    }

    /// Makes and opens a regular file. Nothing is recorded before a writer closes it.
    ///
    /// # Errors
    /// As `open(2)`, and as [`Local::mkdir`]. ESTALE if it exists by now, made behind the mount: whoever
    /// asks was not asked whether he may open it, since the kernel takes it for one that he has just made.
    /// The kernel looks it up, then, and opens it.
    pub fn create(
        &self,
        dir: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Stat, data::Opened)> {
        let mut tree = self.inodes.write();
        let place = self.new_place(&tree, dir, name)?;
        let made = {
            let _as = as_caller(caller)?;
            let exclusive = data::open_flags(flags) | OFlags::CREATE | OFlags::EXCL;
            sys::open_at(&place.fd, name, exclusive, mode & 0o7777)
        };
        let fd = made.map_err(|e| match e {
            Errno::EXIST if flags & libc::O_EXCL == 0 => Errno::STALE,
            other => other,
        })?;
        let stat = self.inodes.outward(sys::stat(&fd)?);
        tree.enter(stat.ino, Kind::Regular, dir, name);
        self.suspects.made(stat.ino);
        Ok((stat, self.opened_new(fd, &stat, flags, caller.thread)))
    }

    /// Removes a name of a file. A file that the log does not know yet goes without a trace.
    ///
    /// # Errors
    /// As `unlink(2)`; ENOENT for `.proxyfs` in the root; EROFS and EIO see [`super::log`].
    pub fn unlink(&self, dir: u64, name: &[u8]) -> Result<()> {
        self.remove(dir, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As `rmdir(2)`, and as [`Local::unlink`].
    pub fn rmdir(&self, dir: u64, name: &[u8]) -> Result<()> {
        self.remove(dir, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, dir: u64, name: &[u8], flags: AtFlags) -> Result<()> {
        let mut tree = self.inodes.write();
        self.log.check()?;
        if Self::is_reserved(dir, name) {
            return Err(Errno::NOENT);
        }
        let place = self.place(&tree, dir, name)?;
        // Kept open if the kernel knows it: see `keep`.
        let opened = sys::open_at(&place.fd, name, OFlags::PATH, 0);
        let stat = self.inodes.outward(match &opened {
            Ok(fd) => self.inodes.stat_opened(fd)?,
            // No descriptor is left, perhaps.
            Err(_) => self.inodes.stat_at(&place.fd, name)?,
        });
        let kept = opened.ok().filter(|_| tree.kind(stat.ino).is_some());
        rustix::fs::unlinkat(&place.fd, name, flags)?;
        let known = self.taken_away(&mut tree, &place, &stat, kept);
        // Nobody makes anything here before it is recorded (J2).
        let _held = fault::keeps("J2").then_some(tree);
        match place.path {
            Some(path) if !self.is_mirrored(&path, stat.is_dir()) => Ok(()),
            Some(path) if known => self.log.record(if stat.is_dir() {
                Change::Rmdir { path }
            } else {
                Change::Unlink { path }
            }),
            Some(path) => self.record_directory_times(&place.fd, &path),
            None => Ok(()),
        }
    }

    /// The directory of an entry that mirrors never had: its times have changed all the same.
    fn record_directory_times(&self, fd: &OwnedFd, entry: &RelPath) -> Result<()> {
        let Some(path) = entry.parent() else {
            return Ok(());
        };
        let stat = sys::stat(fd)?;
        self.log.record(Change::Attr {
            path,
            symlink: false,
            mode: None,
            owner: None,
            times: Some(times(&stat)),
        })
    }

    /// Before a name goes: opens what it leads to, if the kernel knows it.
    fn keep(tree: &Tree, place: &Place, stat: &Stat) -> Option<OwnedFd> {
        tree.kind(stat.ino)?;
        sys::open_at(&place.fd, place.name, OFlags::PATH, 0).ok()
    }

    /// After a name went. True if mirrors have it, so that they must be told.
    fn taken_away(
        &self,
        tree: &mut Tree,
        place: &Place,
        stat: &Stat,
        kept: Option<OwnedFd>,
    ) -> bool {
        let logged = Kind::of(stat).is_recorded() && !self.open.is_new(stat.ino);
        tree.remove_name(stat.ino, place.dir, place.name, kept);
        if stat.is_dir() || stat.nlink <= 1 {
            self.open.bury(stat.ino);
        }
        logged
    }

    /// Moves an entry: over what is there, or not (RENAME_NOREPLACE), or both change places
    /// (RENAME_EXCHANGE). What was written to it before is logged before.
    ///
    /// # Errors
    /// As `renameat2(2)`; EINVAL for RENAME_WHITEOUT (it makes a device, which mirrors cannot have);
    /// and as [`Local::mkdir`].
    pub fn rename(
        &self,
        dir: u64,
        name: &[u8],
        new_dir: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        if Self::is_reserved(dir, name) {
            return Err(Errno::NOENT);
        }
        let mut tree = self.inodes.write();
        let to = self.new_place(&tree, new_dir, new_name)?;
        let from = self.place(&tree, dir, name)?;
        let moved = self.inodes.outward(self.inodes.stat_at(&from.fd, name)?);
        let target = match self.inodes.stat_at(&to.fd, new_name) {
            Ok(stat) => Some(self.inodes.outward(stat)),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        let rename = || rustix::fs::renameat_with(&from.fd, name, &to.fd, new_name, flags);
        if target.is_some_and(|t| t.ino == moved.ino) {
            // Two names of one file: nothing happens, says POSIX.
            return rename();
        }
        let move_in = self.known_before(&tree, &moved, &from, &to)?;
        match target {
            Some(target) if flags.contains(RenameFlags::EXCHANGE) => {
                let move_out = self.known_before(&tree, &target, &to, &from)?;
                rename()?;
                self.move_name(&mut tree, &from, &to, moved.ino);
                self.move_name(&mut tree, &to, &from, target.ino);
                self.record_exchange(&tree, &move_in, &move_out)
            }
            Some(target) => {
                let kept = Self::keep(&tree, &to, &target);
                rename()?;
                let known = self.taken_away(&mut tree, &to, &target, kept);
                self.move_name(&mut tree, &from, &to, moved.ino);
                self.record_rename(&tree, &move_in, known.then_some(&target))
            }
            None => {
                rename()?;
                self.move_name(&mut tree, &from, &to, moved.ino);
                self.record_rename(&tree, &move_in, None)
            }
        }
    }

    fn move_name(&self, tree: &mut Tree, from: &Place, to: &Place, node: u64) {
        tree.add_name(node, to.dir, to.name);
        tree.remove_name(node, from.dir, from.name, None);
        if tree.kind(node) == Some(Kind::Directory) {
            self.suspects.moved(node, to.path.as_ref());
        }
    }

    /// Gives a file one more name. A file that the log does not know yet is logged before.
    ///
    /// # Errors
    /// As `link(2)`, and as [`Local::mkdir`].
    pub fn link(&self, node: u64, dir: u64, name: &[u8]) -> Result<Stat> {
        let mut tree = self.inodes.write();
        let place = self.new_place(&tree, dir, name)?;
        self.log_before(&tree, node)?;
        let from = self.mirrored_path(&tree, node, false);
        sys::link(self.inodes.open_path(&tree, node)?, &place.fd, name)?;
        self.made(&mut tree, &place, |path, stat| {
            if !Kind::of(stat).is_recorded() {
                return Ok(None);
            }
            Ok(Some(match from {
                Some(from) => Change::Link { from, path },
                // All names that it is known by are gone or excluded.
                None if Kind::of(stat) == Kind::Symlink => Change::Symlink {
                    path,
                    target: rustix::fs::readlinkat(&place.fd, name, Vec::new())?
                        .into_bytes()
                        .into(),
                    owner: owner(stat),
                    times: times(stat),
                },
                None => Change::Content {
                    path,
                    node: sys::node_id(&place.fd, name)?,
                    extent: Extent::Whole,
                    size: stat.size,
                    linked: stat.nlink > 1,
                },
            }))
        })
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// EINVAL: it is none.
    pub fn readlink(&self, node: u64) -> Result<Vec<u8>> {
        let link = self.inodes.open_path(&self.inodes.read(), node)?;
        Ok(rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes())
    }
}

pub(super) fn owner(stat: &Stat) -> Owner {
    Owner {
        uid: stat.uid,
        gid: stat.gid,
    }
}

pub(super) fn times(stat: &Stat) -> Times {
    Times {
        atime: stat.atime,
        mtime: stat.mtime,
    }
}
