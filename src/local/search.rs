//! Finds a name of a file of which no known name is left.
//!
//! A file has two names; the kernel was told of one only, somebody has it open by that one, and then that
//! one is removed. What is written or set afterwards is to be recorded under the other name, which nobody
//! here knows. There is no index from an inode to its names, so the tree is searched for its number.
//!
//! That takes as long as the tree is large, and nothing can be renamed meanwhile (the caller holds the
//! tree still). It is rare: it needs a second name that was not used since the file was opened, and the
//! removal of the first while it is open.

use super::inodes::Inodes;
use super::sys::{self, Result};
use super::{Local, RESERVED};
use crate::change::RelPath;
use rustix::fs::{FileType, OFlags, RawDir};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// The name that was found last: most likely it is still there.
#[derive(Default)]
pub struct LastFound(Mutex<Option<RelPath>>);

/// A directory that is still to be searched.
struct ToDo {
    above: Arc<OwnedFd>,
    name: Box<[u8]>,
    path: RelPath,
}

impl Local {
    /// A path of the node, if it has any. `last`: where the one before is kept.
    pub(super) fn search(&self, node: u64, last: &LastFound) -> Option<RelPath> {
        let mut last = super::sync::lock(&last.0);
        let still = last
            .take()
            .filter(|path| leads_to(&self.inodes, path, node));
        *last = still.or_else(|| search_all(&self.inodes, node));
        last.clone()
    }
}

/// Whether the path leads to the node.
fn leads_to(inodes: &Inodes, path: &RelPath, node: u64) -> bool {
    let open = || -> Result<bool> {
        let mut at = inodes.root().clone();
        let mut parts = path.as_bytes().split(|b| *b == b'/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return Ok(inodes.node(inodes.stat_at(&at, part)?.ino) == node);
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            at = Arc::new(sys::open_at(&at, part, flags, 0)?);
        }
        Ok(false)
    };
    open().unwrap_or(false)
}

/// What cannot be opened is passed over: the daemon is root, so it was removed just now.
fn search_all(inodes: &Inodes, node: u64) -> Option<RelPath> {
    let mut to_do = vec![ToDo {
        above: inodes.root().clone(),
        name: (*b".").into(),
        path: RelPath::root(),
    }];
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    while let Some(ToDo { above, name, path }) = to_do.pop() {
        let Ok(dir) = sys::open_at(&above, &name, OFlags::RDONLY | OFlags::DIRECTORY, 0) else {
            continue;
        };
        let dir = Arc::new(dir);
        if !path.is_root() && inodes.stat_at(&above, &name).is_err() {
            // Another file system.
            continue;
        }
        let mut entries = RawDir::new(&dir, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || (path.is_root() && name == RESERVED) {
                continue;
            }
            let is = || inodes.stat_at(&dir, name);
            if inodes.node(entry.ino()) == node
                && is().is_ok_and(|stat| inodes.node(stat.ino) == node)
            {
                return path.join(name).ok();
            }
            let is_dir = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => is().is_ok_and(|stat| stat.is_dir()),
                _ => false,
            };
            if is_dir && let Ok(path) = path.join(name) {
                to_do.push(ToDo {
                    above: dir.clone(),
                    name: name.into(),
                    path,
                });
            }
        }
    }
    None
}
