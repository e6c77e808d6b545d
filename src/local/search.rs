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
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// How the last search ended.
#[derive(Default)]
enum Last {
    #[default]
    None,
    /// Most likely the name is still there.
    Found(RelPath),
    /// There was none, when the border of what is excluded had been crossed so often. A name that is made
    /// since then is known, and not searched for.
    Nowhere(u64),
}

/// What was found last.
#[derive(Default)]
pub struct LastFound(Mutex<Last>);

/// A directory that is still to be searched.
struct ToDo {
    above: Arc<OwnedFd>,
    name: Box<[u8]>,
    path: RelPath,
}

impl Local {
    /// A path of the node that is not excluded, if it has any. `last`: where the one before is kept.
    pub(super) fn search(&self, node: u64, last: &LastFound) -> Option<RelPath> {
        let mut last = super::sync::lock(&last.0);
        let crossed = self.crossed.load(Ordering::Relaxed);
        let found = match std::mem::take(&mut *last) {
            Last::Nowhere(then) if then == crossed => None,
            Last::Found(path)
                if self.is_mirrored(&path, false) && leads_to(&self.inodes, &path, node) =>
            {
                Some(path)
            }
            Last::None | Last::Found(_) | Last::Nowhere(_) => self.search_all(node),
        };
        *last = found.clone().map_or(Last::Nowhere(crossed), Last::Found);
        found
    }

    /// What cannot be opened is passed over: the daemon is root, so it was removed just now.
    fn search_all(&self, node: u64) -> Option<RelPath> {
        let inodes = &self.inodes;
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
                let Ok(path) = path.join(name) else { continue };
                let is = || inodes.stat_at(&dir, name);
                if inodes.node(entry.ino()) == node
                    && is().is_ok_and(|stat| inodes.node(stat.ino) == node)
                    && self.is_mirrored(&path, false)
                {
                    return Some(path);
                }
                let is_dir = match entry.file_type() {
                    FileType::Directory => true,
                    FileType::Unknown => is().is_ok_and(|stat| stat.is_dir()),
                    _ => false,
                };
                if is_dir && self.is_mirrored(&path, true) {
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
