//! Directories that go, with what is in them.
//!
//! The danger is to take along what only the mirror has. So a directory is removed only when all that was in it is gone,
//! each removal is answered for, and what is kept keeps the directories above it: RMDIR does the rest.
//!
//! All directories of a level are read at once, and what is in each is removed as soon as it is read: the time that it
//! takes grows with how deep they are, not with how many. A directory is removed when the last reply about what was in
//! it is there, so servers that work on many requests at once do no harm either.
//!
//! Memory: the directories that are still to be read, and those above them.

use super::listing::Read;
use super::*;
use std::collections::{HashMap, HashSet};

/// So many removals without a reply.
const REMOVALS: usize = 2048;

/// A directory that goes.
struct Going {
    path: RelPath,
    job: usize,
    /// The one above it, if that goes too.
    above: Option<u64>,
    /// What is not answered, or not gone, of what is in it; and the reading of it. In the end its own removal.
    waiting: usize,
    /// Its own removal was sent.
    leaves: bool,
    /// Something in it is kept, or it is itself.
    kept: bool,
}

/// All that go.
#[derive(Default)]
pub(super) struct Clearing {
    all: HashMap<u64, Going>,
    unread: Vec<u64>,
    reading: Vec<u64>,
    /// Those that were asked for: they are under way, or were. One that is found in another one, which goes too,
    /// may be through before that was read.
    asked: HashMap<RelPath, u64>,
    /// Of these those that stay.
    stay: HashSet<u64>,
}

impl<R: Remote> Repair<'_, R> {
    /// Begins to remove a directory, with all in it that goes. Those below others come first.
    pub(super) fn begin_clear(&mut self, job: usize, path: RelPath) {
        let id = self.new_id();
        self.clearing.asked.insert(path.clone(), id);
        self.goes_too(id, job, path, None);
    }

    fn goes_too(&mut self, id: u64, job: usize, path: RelPath, above: Option<u64>) {
        let going = Going {
            path,
            job,
            above,
            waiting: 1,
            leaves: false,
            kept: false,
        };
        self.clearing.all.insert(id, going);
        self.clearing.unread.push(id);
    }

    /// Removes what was begun. Says whether all of it is gone; else the slice is over, and what is left of it is
    /// forgotten.
    pub(super) fn clear_all(&mut self, may_pause: bool) -> Result<bool, MirrorError> {
        while !self.clearing.all.is_empty() {
            let over = (self.tools.stop)() || may_pause && self.is_over();
            if over {
                for going in std::mem::take(&mut self.clearing).all.into_values() {
                    if self.jobs[going.job].path == going.path {
                        self.begun[going.job] = false;
                    }
                }
                return Ok(false);
            }
            let most = self.most_read();
            while self.listings.under_way() < most
                && let Some(id) = self.clearing.unread.pop()
            {
                let place = self.tools.place.path(&self.clearing.all[&id].path);
                self.listings.begin(id, place, self.remote);
                self.clearing.reading.push(id);
            }
            let ready = |id: &u64| self.listings.is_ready(*id);
            let next = self.clearing.reading.iter().position(ready);
            match next.filter(|_| self.remote.outstanding() < REMOVALS) {
                Some(at) => {
                    let id = self.clearing.reading.swap_remove(at);
                    self.clear(id)?;
                    self.moved_on = true;
                }
                None => self.turn()?,
            }
        }
        self.clearing = Clearing::default();
        Ok(true)
    }

    /// One was read.
    fn clear(&mut self, id: u64) -> Result<(), MirrorError> {
        let (Some(read), Some(going)) = (self.listings.finish(id), self.clearing.all.get_mut(&id))
        else {
            return Ok(());
        };
        let (path, job) = (going.path.clone(), going.job);
        let entries = match read {
            Read::All(entries) => entries,
            Read::Refused(status) => {
                if status.code != code::NO_SUCH_FILE {
                    going.kept = true;
                    self.refuse(path.clone(), true, status);
                }
                Vec::new()
            }
        };
        let (mut waiting, mut kept) = (0, false);
        for There { name, attrs, .. } in entries {
            let Ok(child) = path.join(&name) else {
                continue;
            };
            // It goes by itself.
            if let Some(other) = self.clearing.asked.get(&child) {
                kept |= self.clearing.stay.contains(other);
                if let Some(other) = self.clearing.all.get_mut(other) {
                    other.above = Some(id);
                    waiting += 1;
                }
                continue;
            }
            let directory = is_dir(&attrs);
            let ours = self.tools.source.excludes(&child, directory) || (self.tools.spares)(&child);
            if ours || !self.goes(job, &child)? {
                kept = true;
                if !ours {
                    self.keep(child);
                }
                continue;
            }
            self.report.counts.removed += 1;
            waiting += 1;
            if directory {
                let below = self.new_id();
                self.goes_too(below, job, child, Some(id));
            } else {
                let at = self.tools.place.path(&child);
                self.send_as(Purpose::Cleared(child, id), Request::Remove { path: at });
            }
        }
        if let Some(going) = self.clearing.all.get_mut(&id) {
            going.waiting += waiting;
            going.kept |= kept;
        }
        self.less_waits(id, false);
        Ok(())
    }

    /// One thing less that a directory waits for.
    fn less_waits(&mut self, id: u64, kept: bool) {
        let Some(going) = self.clearing.all.get_mut(&id) else {
            return;
        };
        going.waiting -= 1;
        going.kept |= kept;
        if going.waiting > 0 {
            return;
        }
        if !going.kept && !going.leaves {
            (going.leaves, going.waiting) = (true, 1);
            let path = going.path.clone();
            let at = self.tools.place.path(&path);
            self.send_as(Purpose::Cleared(path, id), Request::Rmdir { path: at });
            return;
        }
        let Some(going) = self.clearing.all.remove(&id) else {
            return;
        };
        if going.kept && self.clearing.asked.contains_key(&going.path) {
            self.clearing.stay.insert(id);
        }
        if let Some(above) = going.above {
            self.less_waits(above, going.kept);
        }
    }

    /// The reply to a removal, of something in a directory or of that itself.
    pub(super) fn take_cleared(&mut self, path: RelPath, directory: u64, why: Option<Status>) {
        let why = why.filter(|status| status.code != code::NO_SUCH_FILE);
        let kept = why.is_some();
        if let Some(status) = why {
            self.refuse(path, false, status);
        }
        self.less_waits(directory, kept);
    }

    /// Whether what the source has not, and the mirror has, goes: it is to be deleted, or has moved away.
    pub(super) fn goes(&self, job: usize, path: &RelPath) -> Result<bool, MirrorError> {
        let Job {
            path: root,
            scope,
            moved,
            ..
        } = &self.jobs[job];
        if scope.delete && scope.depth != Depth::Entry {
            return Ok(true);
        }
        let Some(twin) = moved.as_ref().and_then(|moved| path.moved(root, moved)) else {
            return Ok(false);
        };
        // Whatever it is there: the name is the source's. (In a directory in its place nothing has such a name.)
        Ok(self.entry(&twin)?.is_some())
    }

    /// Something that only the mirror has stays.
    pub(super) fn keep(&mut self, path: RelPath) {
        self.report.counts.extras += 1;
        if self.report.extras.len() < NAMED {
            self.report.extras.push(path);
        }
    }
}
