//! Kernel passthrough (Linux 6.9): the kernel reads and writes the source's file itself, at its speed, and
//! keeps no second copy of its pages.
//!
//! Who passes through, and what is still seen:
//!
//! - *For reading*: everything passes.
//! - *For writing*: reads and writes come to us (DIRECT_IO), since the log needs the ranges; pages that are
//!   mapped are the source's own. Such a descriptor cannot be mapped writable without reading.
//! - *For reading and writing*: the same, but stores by mmap pass unseen. So the first who opens a file like
//!   that gets it the old way, with the kernel's cache, where they are seen; only one who comes while others
//!   have it passing must pass too, and is watched ([`Local::let_write_unseen`]).
//! - *Of a new file, for writing only*: writes pass, and the file is watched.
//!
//! The kernel's rules (each of them was met as EIO): all who have an inode open pass, or none does; all
//! of them with the same backing id; and it must live until the last of them is released. So there is one
//! entry an inode, counted from before the answer to the OPEN until the RELEASE. Where the kernel refuses a
//! backing file (a stacked file system below), that inode is opened without, and the log says so once.

use crate::local::{Access, Opened};
use fuser::{BackingId, FopenFlags};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Inode {
    opens: u32,
    backing: Option<Arc<BackingId>>,
}

/// The inodes that are open.
#[derive(Default)]
pub struct Passthrough {
    on: bool,
    inodes: Mutex<HashMap<u64, Inode>>,
    refused: AtomicBool,
}

impl Passthrough {
    /// Nobody has anything open yet.
    pub fn switch_on(&mut self) {
        self.on = true;
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, Inode>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one who opens the inode, and says through what it passes; none: it does not.
    pub fn open(
        &self,
        ino: u64,
        access: Access,
        open_backing: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.on {
            return None;
        }
        let mut inodes = self.inodes();
        let inode = inodes.entry(ino).or_insert_with(|| Inode {
            opens: 0,
            backing: match access {
                Access::ReadAndWrite => None,
                Access::Read | Access::Write | Access::WriteNew => self.backing(open_backing),
            },
        });
        inode.opens += 1;
        inode.backing.clone()
    }

    fn backing(
        &self,
        open_backing: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        match open_backing() {
            Ok(backing) => Some(Arc::new(backing)),
            Err(e) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    log::info!(
                        "the kernel does not read and write this source's files itself: {e}"
                    );
                }
                None
            }
        }
    }

    /// One has closed it.
    pub fn release(&self, ino: u64) {
        if !self.on {
            return;
        }
        let mut inodes = self.inodes();
        let Some(inode) = inodes.get_mut(&ino) else {
            return;
        };
        inode.opens -= 1;
        if inode.opens == 0 {
            let last = inodes.remove(&ino);
            // Closing the backing id is a system call.
            drop(inodes);
            drop(last);
        }
    }
}

/// How one who opened a file that passes uses it.
pub fn passing(opened: &Opened) -> FopenFlags {
    let mut flags = match opened.access {
        Access::Read | Access::WriteNew => FopenFlags::empty(),
        Access::Write | Access::ReadAndWrite => FopenFlags::FOPEN_DIRECT_IO,
    };
    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.flush);
    flags
}
