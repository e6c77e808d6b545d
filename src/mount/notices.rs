//! What the kernel is told without being asked: that something it keeps is not so any more.

use super::answers::{LocalResult, TTL};
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::sync::{Arc, OnceLock};

/// The way to tell it.
pub struct Notices(Arc<OnceLock<Notifier>>);

impl Notices {
    /// `notifier` is filled in once the session is there, before the first request but INIT.
    pub fn new(notifier: Arc<OnceLock<Notifier>>) -> Notices {
        Notices(notifier)
    }

    /// The listing that it keeps of a directory.
    pub fn drop_listing(&self, dir: INodeNo) {
        if let Some(notifier) = self.0.get()
            && let Err(e) = notifier.inval_inode(dir, 0, 0)
        {
            log::debug!("the kernel did not drop the listing of {dir}: {e}");
        }
    }

    /// A change that could not be recorded has happened, and the kernel was told that it failed: it
    /// shall look again at what it believes to be at these names. By a thread of its own, since the
    /// kernel waits for the directory's lock, which may be held by who waits for this thread.
    pub fn look_again<T>(&self, done: &LocalResult<T>, names: &[(INodeNo, &OsStr)]) {
        if !matches!(done, Err(rustix::io::Errno::IO)) {
            return;
        }
        let Some(notifier) = self.0.get().cloned() else {
            return;
        };
        let names: Vec<_> = names.iter().map(|n| (n.0, n.1.to_owned())).collect();
        let thread = std::thread::Builder::new().name("fuse-notify".into());
        let started = thread.spawn(move || {
            for (dir, name) in names {
                if let Err(e) = notifier.inval_entry(dir, &name) {
                    log::debug!("the kernel did not look again at {name:?}: {e}");
                }
            }
        });
        if let Err(e) = started {
            log::warn!("the kernel may show old names for {} s: {e}", TTL.as_secs());
        }
    }

    /// Tells the kernel that attributes have changed without its knowing.
    pub fn forget_attributes(&self, changed: bool, ino: INodeNo) {
        if changed
            && let Some(notifier) = self.0.get()
            && let Err(e) = notifier.inval_inode(ino, -1, 0)
        {
            log::warn!(
                "the kernel may show old attributes of inode {ino} for {} s: {e}",
                TTL.as_secs()
            );
        }
    }
}
