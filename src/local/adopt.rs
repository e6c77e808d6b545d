//! Files that somebody writes to without us: by a descriptor that the kernel serves although its daemon is gone.
//!
//! Such a file is treated as if he had it open at this mount for writing unseen ([`super::unseen`]): it is looked
//! at, recorded after a pause, and at the end. Its path is known to the inode table like that of any file
//! that the kernel knows, so that it is recorded where it is after a rename.

use super::Local;
use super::inodes::ROOT;
use super::open_files::{Access, Handle};
use super::sys::{self, Result};
use super::unseen::Watch;
use crate::change::RelPath;
use rustix::fs::OFlags;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A file that is watched.
pub struct Adopted {
    handle: u64,
    /// The way to it, which counts as known to the kernel.
    nodes: Vec<u64>,
}

impl Local {
    /// From here on the file at this path is watched.
    ///
    /// # Errors
    /// It is not there (any more), or cannot be opened.
    pub fn adopt(&self, path: &RelPath) -> Result<Adopted> {
        let mut adopted = Adopted {
            handle: 0,
            nodes: Vec::new(),
        };
        let opened = (|| {
            let mut node = ROOT;
            for part in path.as_bytes().split(|b| *b == b'/') {
                node = self.look_up(node, part)?.ino;
                adopted.nodes.push(node);
            }
            let fd = Arc::new(
                self.inodes
                    .open(&self.inodes.read(), node, OFlags::RDONLY)?,
            );
            let stat = sys::stat(&fd)?;
            Ok((node, fd, stat))
        })();
        let (node, fd, stat) = opened.inspect_err(|_| self.forget_all(&adopted.nodes))?;
        let state = self.open.add_writer(node);
        let watch = || Watch::new(fd.clone(), &stat, self.fine_stamps);
        {
            let mut dirty = state.lock();
            dirty.look();
            dirty.watch(watch, true);
        }
        adopted.handle = self.open.open(Handle {
            fd,
            state: Some(state),
            access: Access::ReadAndWrite,
            unseen: AtomicBool::new(true),
        });
        Ok(adopted)
    }

    /// It is written to no more: what was written is recorded.
    ///
    /// # Errors
    /// As [`Local::release_file`].
    pub fn let_go(&self, adopted: Adopted) -> Result<()> {
        let released = self.release_file(adopted.handle);
        self.forget_all(&adopted.nodes);
        released
    }

    fn forget_all(&self, nodes: &[u64]) {
        nodes.iter().rev().for_each(|node| self.forget(*node, 1));
    }
}
