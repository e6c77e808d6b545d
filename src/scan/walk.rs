//! The walk: looks at every entry of the source once, and records repairs of the suspects.
//!
//! Everything is reached by descriptors, a part of a path at a time, and no link is followed: a tree may be deeper
//! than PATH_MAX, and whoever may write below the source leads the walk nowhere. What is on another file system
//! is left out, as it is by the mount.
//!
//! Memory: for each directory on the way down to where the walk is, the names of those in it that it has still to
//! visit, and at most [`MOST_NAMES`] names of suspects.
//!
//! A path that was moved while the walk was below it is repaired under its old name, which harms nothing, and all
//! of it is walked again in its new place.

use super::marks::Plan;
use super::{Scan, ScanError};
use crate::change::{RelPath, Scope, Timestamp};
use crate::exclude::Exclude;
use crate::local::Local;
use crate::local::suspects::{ENTRY, Judged, NEW_TREE, Suspicion, born, scope_of_directory};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// So many names of suspects are kept until the end of their directory, where it is known how many there are.
const MOST_NAMES: usize = 1 << 16;

/// If there are so many, and they are most of a directory without directories in it, one repair of all of it is
/// recorded instead of one of each.
const MANY: usize = 64;

/// What is already recorded for all that is below a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Above {
    Nothing,
    /// All names, sizes and times are compared.
    Compared,
    /// And all bytes: only who is written to by a survivor is of interest.
    Covered,
}

/// A directory to be visited.
struct Below {
    name: Box<[u8]>,
    suspect: bool,
    above: Above,
}

/// A directory that is being visited.
struct Level {
    fd: OwnedFd,
    path: RelPath,
    below: Vec<Below>,
}

pub(super) struct Walk<'a> {
    scan: &'a Scan,
    suspicion: &'a Suspicion,
    excluded_before: &'a [Exclude],
    survivors: &'a HashSet<u64>,
    device: (u32, u32),
}

const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn look(dir: impl AsFd, name: &[u8]) -> Result<Statx, Errno> {
    let what = StatxFlags::TYPE
        | StatxFlags::NLINK
        | StatxFlags::INO
        | StatxFlags::CTIME
        | StatxFlags::BTIME;
    rustix::fs::statx(dir, name, LOOK | AtFlags::EMPTY_PATH, what)
}

/// Opens a directory of the source by its path.
pub(super) fn open(root: BorrowedFd<'_>, path: &RelPath) -> Result<OwnedFd, Errno> {
    let mut at = rustix::fs::openat(root, c".", DIRECTORY, Mode::empty())?;
    if !path.is_root() {
        for part in path.as_bytes().split(|b| *b == b'/') {
            at = rustix::fs::openat(&at, part, DIRECTORY, Mode::empty())?;
        }
    }
    Ok(at)
}

impl<'a> Walk<'a> {
    pub fn new(
        scan: &'a Scan,
        plan: &'a Plan,
        survivors: &'a HashSet<u64>,
    ) -> Result<Walk<'a>, ScanError> {
        let root = look(scan.local.root_fd(), b"").map_err(ScanError::Source)?;
        Ok(Walk {
            scan,
            suspicion: &plan.suspicion,
            excluded_before: &plan.excluded_before,
            survivors,
            device: (root.stx_dev_major, root.stx_dev_minor),
        })
    }

    /// Walks the whole source, and what was moved meanwhile.
    pub fn all(&self) -> Result<(), ScanError> {
        let root = self.scan.local.judged(Local::ROOT);
        let suspect = root.is_some_and(Judged::is_suspect);
        self.tree(RelPath::root(), suspect, None)?;
        while let Some((path, node)) = self.scan.local.take_moved() {
            let judged = self.scan.local.judged(node);
            let suspect = judged.is_some_and(Judged::is_suspect);
            self.tree(path, suspect, Some(node))?;
        }
        Ok(())
    }

    fn tree(&self, path: RelPath, suspect: bool, node: Option<u64>) -> Result<(), ScanError> {
        let fd = match open(self.scan.local.root_fd(), &path) {
            Ok(fd) => fd,
            // Removed, or moved once more: that is known too.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(why) => return self.unreadable(path, why),
        };
        if let Some(node) = node
            && look(&fd, b"").is_ok_and(|stat| self.scan.local.node_of(stat.stx_ino) != node)
        {
            return Ok(());
        }
        let mut way = vec![self.visit(fd, path, suspect, Above::Nothing)?];
        while let Some(level) = way.last_mut() {
            let Some(next) = level.below.pop() else {
                way.pop();
                continue;
            };
            let Ok(path) = level.path.join(&next.name) else {
                continue;
            };
            match rustix::fs::openat(&level.fd, &*next.name, DIRECTORY, Mode::empty()) {
                Ok(fd) => way.push(self.visit(fd, path, next.suspect, next.above)?),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(why) => self.unreadable(path, why)?,
            }
        }
        Ok(())
    }

    /// What cannot be looked into may be anything.
    fn unreadable(&self, path: RelPath, why: Errno) -> Result<(), ScanError> {
        log::error!(
            "the scan cannot look into {path} of the source: {why}; all of it is compared with the mirrors"
        );
        self.scan.record(path, NEW_TREE)
    }

    /// Looks at what is in a directory. `suspect`: it is one itself.
    fn visit(
        &self,
        fd: OwnedFd,
        path: RelPath,
        suspect: bool,
        above: Above,
    ) -> Result<Level, ScanError> {
        let mut level = Level {
            fd,
            path,
            below: Vec::new(),
        };
        let mut found = Found {
            suspects: Vec::new(),
            entries: 0,
            above,
        };
        let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
        let listed = level.fd.try_clone().map_err(|_| Errno::MFILE);
        let listed = match listed {
            Ok(listed) => listed,
            Err(why) => {
                self.unreadable(level.path.clone(), why)?;
                return Ok(level);
            }
        };
        let mut entries = RawDir::new(&listed, &mut buffer);
        let mut batch: Vec<(u64, Box<[u8]>)> = Vec::new();
        loop {
            self.scan.check()?;
            batch.clear();
            let mut more = false;
            while let Some(entry) = entries.next() {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(Errno::NOENT) => break, // removed
                    Err(why) => {
                        self.unreadable(level.path.clone(), why)?;
                        break;
                    }
                };
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") && !Local::is_own(&level.path, name) {
                    batch.push((entry.ino(), name.into()));
                }
                more = true;
                if entries.is_buffer_empty() {
                    break;
                }
            }
            if !more {
                break;
            }
            // In the order in which most file systems have them on the disk.
            batch.sort_unstable_by_key(|entry| entry.0);
            for (_, name) in batch.drain(..) {
                self.entry(&mut level, &mut found, name, suspect)?;
            }
        }
        self.record_found(&level, found)?;
        Ok(level)
    }

    fn entry(
        &self,
        level: &mut Level,
        found: &mut Found,
        name: Box<[u8]>,
        suspect_above: bool,
    ) -> Result<(), ScanError> {
        // What is gone by now was removed by a request, or shows by its directory's ctime the next time.
        let Ok(stat) = look(&level.fd, &name) else {
            return Ok(());
        };
        let progress = &self.scan.progress;
        progress.entries.fetch_add(1, Ordering::Relaxed);
        found.entries += 1;
        if (stat.stx_dev_major, stat.stx_dev_minor) != self.device {
            return Ok(());
        }
        let local = &self.scan.local;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let node = local.node_of(stat.stx_ino);
        let judged = local.judged(node);
        let suspect = match judged {
            Some(judged) => judged.is_suspect(),
            None => self.suspicion.is_about(node, ctime(&stat)),
        };
        if kind == FileType::Directory {
            return self.directory(
                level,
                found.above,
                name,
                (&stat, judged, suspect, suspect_above),
            );
        }
        let survivor = kind == FileType::RegularFile && self.survivors.contains(&node);
        if survivor && let Ok(path) = level.path.join(&name) {
            if !local.is_mirrored(&path, false) {
                return Ok(());
            }
            self.scan.survivors.adopt(local, &path, node);
            return self.scan.record(path, ENTRY);
        }
        let recorded = matches!(judged, Some(Judged::Recorded | Judged::Covered));
        let can_be = matches!(kind, FileType::RegularFile | FileType::Symlink);
        if !suspect
            && can_be
            && found.above == Above::Nothing
            && self.came_in(level, &name, false)
            && let Ok(path) = level.path.join(&name)
        {
            return self.scan.record(path, Scope::ENTRY);
        }
        if suspect && can_be && !recorded && found.above < Above::Covered {
            found.suspects.push(name);
            if found.suspects.len() >= MOST_NAMES {
                let so_far = std::mem::take(&mut found.suspects);
                self.record_names(level, found, so_far)?;
            }
        }
        Ok(())
    }

    /// Whether an entry was excluded before, and is not now.
    fn came_in(&self, level: &Level, name: &[u8], directory: bool) -> bool {
        let was = |path: &RelPath| {
            let mut before = self.excluded_before.iter();
            before.any(|exclude| exclude.excludes(path, directory))
        };
        !self.excluded_before.is_empty()
            && level
                .path
                .join(name)
                .is_ok_and(|path| was(&path) && self.scan.local.is_mirrored(&path, directory))
    }

    fn directory(
        &self,
        level: &mut Level,
        mut above: Above,
        name: Box<[u8]>,
        (stat, judged, suspect, suspect_above): (&Statx, Option<Judged>, bool, bool),
    ) -> Result<(), ScanError> {
        let Ok(path) = level.path.join(&name) else {
            return Ok(());
        };
        if !self.scan.local.is_mirrored(&path, true) {
            return Ok(());
        }
        let whole = path.clone();
        match judged {
            Some(Judged::Covered) => above = Above::Covered,
            Some(Judged::Clean | Judged::Recorded | Judged::SomeNamesRecorded) => {}
            None if suspect => {
                let new = born(stat).is_some_and(|born| born >= self.suspicion.since);
                let scope = scope_of_directory(suspect_above, new);
                let then = match (scope.depth, scope.bytes) {
                    (crate::change::Depth::Tree, true) => Above::Covered,
                    (crate::change::Depth::Tree, false) => Above::Compared,
                    _ => Above::Nothing,
                };
                if above == Above::Nothing || then == Above::Covered && above < Above::Covered {
                    self.scan.record(path, scope)?;
                }
                above = above.max(then);
            }
            None => {}
        }
        if above == Above::Nothing && self.came_in(level, &name, true) {
            self.scan.record(whole, Scope::TREE)?;
            above = Above::Compared;
        }
        // Below what is covered there is nothing to find but survivors.
        if above < Above::Covered || !self.survivors.is_empty() {
            level.below.push(Below {
                name,
                suspect,
                above,
            });
        }
        Ok(())
    }

    /// Records the suspects of a directory.
    fn record_found(&self, level: &Level, mut found: Found) -> Result<(), ScanError> {
        let suspects = std::mem::take(&mut found.suspects);
        self.record_names(level, &mut found, suspects)
    }

    fn record_names(
        &self,
        level: &Level,
        found: &mut Found,
        names: Vec<Box<[u8]>>,
    ) -> Result<(), ScanError> {
        let most = names.len() >= MANY && names.len() * 2 >= found.entries;
        if most && level.below.is_empty() && !level.path.is_root() {
            found.above = Above::Covered;
            return self.scan.record(level.path.clone(), NEW_TREE);
        }
        for name in names {
            if let Ok(path) = level.path.join(&name)
                && self.scan.local.is_mirrored(&path, false)
            {
                self.scan.record(path, ENTRY)?;
            }
        }
        Ok(())
    }
}

/// What was found in a directory so far.
struct Found {
    suspects: Vec<Box<[u8]>>,
    entries: usize,
    above: Above,
}

fn ctime(stat: &Statx) -> Timestamp {
    Timestamp {
        seconds: stat.stx_ctime.tv_sec,
        nanoseconds: stat.stx_ctime.tv_nsec,
    }
}
