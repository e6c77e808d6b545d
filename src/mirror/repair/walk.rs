//! Walking trees: one directory after another in [`walk_order`](super::order::walk_order), read ahead of time.

use super::compare::{Sort, sort_of};
use super::listing::Read;
use super::*;
use rustix::fs::FileType;
use std::cmp::Ordering;

/// So far ahead it is looked for directories that can be read already.
const AHEAD: usize = 1024;

/// A directory that is to be walked.
pub(super) struct Dir {
    pub id: u64,
    pub path: RelPath,
    pub job: usize,
    /// It was just made there.
    pub fresh: bool,
}

impl<R: Remote> Repair<'_, R> {
    pub(super) fn push_back(&mut self, dir: Dir) {
        self.next_id += 1;
        let id = self.next_id;
        self.queue.push_back(Dir { id, ..dir });
    }

    /// Puts what is left of a tree into the queue that was walked up to a directory: what is in that, and
    /// what comes behind it in each one above.
    pub(super) fn resume(&mut self, job: usize, walked: &RelPath) -> Result<(), MirrorError> {
        let root = self.jobs[job].path.clone();
        let mut at = walked.clone();
        let mut behind: Option<RelPath> = None;
        loop {
            let list = self.tools.source.kinds(&at).map_err(source_error(&at))?;
            for (name, kind) in list.unwrap_or_default() {
                let Ok(path) = at.join(&name) else { continue };
                let comes = behind.as_ref().is_none_or(|b| path.name() > b.name());
                let excluded = || self.tools.source.excludes(&path, true);
                if kind == FileType::Directory && comes && !excluded() {
                    let fresh = false;
                    self.push_back(Dir {
                        id: 0,
                        path,
                        job,
                        fresh,
                    });
                }
            }
            if at == root || at.is_root() {
                return Ok(());
            }
            let above = at.parent().unwrap_or_default();
            behind = Some(std::mem::replace(&mut at, above));
        }
    }

    /// Walks what is in the queue, until that is empty or the slice is over. Says whether to go on.
    pub(super) fn walk(&mut self) -> Result<bool, MirrorError> {
        while let Some(first) = self.queue.front() {
            if (self.tools.stop)() {
                return Ok(false);
            }
            let many = self.report.refused.len() >= REFUSED || self.report.grows.len() >= REFUSED;
            if (self.tools.pauses)() || many {
                return Ok(true);
            }
            let (id, fresh) = (first.id, first.fresh);
            self.read_ahead();
            if !fresh && !self.listings.is_ready(id) {
                self.turn()?;
                continue;
            }
            let Some(dir) = self.queue.pop_front() else {
                break;
            };
            let there = match fresh {
                true => Some(Read::All(Vec::new())),
                false => self.listings.finish(id),
            };
            let goes_on = match there {
                Some(Read::All(there)) => self.compare(&dir, there)?,
                // The walk does not go on into it.
                Some(Read::Refused(status)) => {
                    self.refuse(dir.path.clone(), true, status);
                    true
                }
                None => true,
            };
            if !goes_on {
                return Ok(false);
            }
            self.last[dir.job] = Some(dir.path);
            self.name_many()?;
        }
        Ok(true)
    }

    fn read_ahead(&mut self) {
        let most = match self.remote.features().max_handles {
            Some(handles) => DIRECTORIES.min((handles / 4).max(1) as usize),
            None => DIRECTORIES,
        };
        for (index, dir) in self.queue.iter().take(AHEAD).enumerate() {
            let first = index == 0;
            if self.listings.under_way() >= most || (!first && self.listings.held() >= LISTED) {
                return;
            }
            if !dir.fresh && !self.listings.is_known(dir.id) {
                let place = self.tools.place.path(&dir.path);
                self.listings.begin(dir.id, place, self.remote);
            }
        }
    }

    /// Makes a directory's own entries like the source's; its directories come next. Says whether to go on.
    fn compare(&mut self, dir: &Dir, there: Vec<There>) -> Result<bool, MirrorError> {
        let here = self.tools.source.list(&dir.path);
        let Some(here) = here.map_err(source_error(&dir.path))? else {
            return Ok(true); // it is gone by now: that is in the log
        };
        (self.tools.show)(&self.report.counts, Some(&dir.path));
        let scope = self.jobs[dir.job].scope;
        let mut below = Vec::new();
        let mut there = there.into_iter().peekable();
        for (index, (name, stat)) in here.into_iter().enumerate() {
            if index % 256 == 255 && (self.tools.stop)() {
                return Ok(false);
            }
            while there.peek().is_some_and(|t| t.name < name) {
                if let Some(extra) = there.next() {
                    self.is_extra(dir, &extra)?;
                }
            }
            let twin = match there.peek().map(|t| t.name.cmp(&name)) {
                Some(Ordering::Equal) => there.next(),
                Some(_) | None => None,
            };
            let Ok(path) = dir.path.join(&name) else {
                continue;
            };
            if (self.tools.spares)(&path) {
                continue;
            }
            self.report.counts.entries += 1;
            let known = (self.tools.resends)(&path);
            let is_directory = sort_of(&stat) == Sort::Directory;
            let resend = known.unwrap_or(false);
            let next = self.fix(dir.job, path.clone(), Some(stat), twin.as_ref(), resend)?;
            if known.is_some() && !is_directory {
                self.report.also.push(path.clone());
            }
            if let Next::Into(fresh) = next
                && scope.depth == Depth::Tree
            {
                below.push((path, fresh));
            }
        }
        for extra in there {
            self.is_extra(dir, &extra)?;
        }
        for (path, fresh) in below.into_iter().rev() {
            self.next_id += 1;
            self.queue.push_front(Dir {
                id: self.next_id,
                path,
                job: dir.job,
                fresh,
            });
        }
        Ok(true)
    }

    /// Something that only the mirror has.
    fn is_extra(&mut self, dir: &Dir, extra: &There) -> Result<(), MirrorError> {
        let Ok(path) = dir.path.join(&extra.name) else {
            return Ok(());
        };
        let ours = dir.path.is_root() && &*extra.name == plan::PRIVATE_DIR.as_bytes();
        let excluded = self.tools.source.excludes(&path, is_dir(&extra.attrs));
        if ours || excluded || (self.tools.spares)(&path) {
            return Ok(());
        }
        // It may have come since the directory was read here, or been removed with its name known to the log.
        if self.entry(&path)?.is_some() {
            return Ok(());
        }
        if self.tools.compare {
            self.report.counts.extras += 1;
            self.differs(path, Difference::Extra);
            return Ok(());
        }
        let Scope { depth, delete, .. } = self.jobs[dir.job].scope;
        let named = (self.tools.resends)(&path).is_some();
        if !delete && !named {
            self.report.counts.extras += 1;
            if self.report.extras.len() < NAMED {
                self.report.extras.push(path);
            }
            return Ok(());
        }
        if is_dir(&extra.attrs) && depth != Depth::Tree {
            // What is in it is a matter of a tree.
            self.report.grows.push((path, self.jobs[dir.job].scope));
            return Ok(());
        }
        self.put_away(dir.job, path, &extra.attrs)
    }

    /// Removes a directory with all that is in it, but what is excluded.
    pub(super) fn clear(&mut self, path: RelPath) -> Result<(), MirrorError> {
        enum Task {
            Clear(RelPath),
            Rmdir(RelPath),
        }
        let mut tasks = vec![Task::Clear(path)];
        let mut kept: Vec<RelPath> = Vec::new();
        while let Some(task) = tasks.pop() {
            if (self.tools.stop)() {
                return Ok(());
            }
            match task {
                Task::Rmdir(path) if kept.iter().any(|kept| kept.is_at_or_below(&path)) => {}
                Task::Rmdir(path) => {
                    let at = self.tools.place.path(&path);
                    self.send_as(Purpose::Gone(path), Request::Rmdir { path: at });
                }
                Task::Clear(path) => {
                    let there = self.read(&path)?;
                    tasks.push(Task::Rmdir(path.clone()));
                    for entry in there {
                        let Ok(child) = path.join(&entry.name) else {
                            continue;
                        };
                        let directory = is_dir(&entry.attrs);
                        if self.tools.source.excludes(&child, directory)
                            || (self.tools.spares)(&child)
                        {
                            kept.push(child);
                            continue;
                        }
                        self.report.counts.removed += 1;
                        if directory {
                            tasks.push(Task::Clear(child));
                        } else {
                            let at = self.tools.place.path(&child);
                            self.send_as(Purpose::Gone(child), Request::Remove { path: at });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads one directory and waits for it.
    fn read(&mut self, path: &RelPath) -> Result<Vec<There>, MirrorError> {
        self.next_id += 1;
        let id = self.next_id;
        let place = self.tools.place.path(path);
        self.listings.begin(id, place, self.remote);
        loop {
            match self.listings.finish(id) {
                Some(Read::All(entries)) => return Ok(entries),
                Some(Read::Refused(status)) => {
                    if status.code != code::NO_SUCH_FILE {
                        self.refuse(path.clone(), true, status);
                    }
                    return Ok(Vec::new());
                }
                None => self.turn()?,
            }
        }
    }
}
