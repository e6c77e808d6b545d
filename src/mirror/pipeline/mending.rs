//! Rows that met a mirror which is not as the log expects it, and the repair of what they are about: see
//! [`Scars`].

use super::super::plan::is_dir;
use super::super::repair::{Repair, Repaired, Tools};
use super::*;
use std::cell::RefCell;

impl<R: Remote> Pipeline<'_, R> {
    /// A row could not be carried out, and nothing is in flight: what it is about is repaired instead, and so is
    /// what was sent behind it and depends on it.
    pub(super) fn leave_to_repair_all(
        &mut self,
        index: usize,
        status: &Status,
    ) -> Result<(), MirrorError> {
        let (name, row) = (self.setup.name, &self.window[index].row);
        let (seq, change) = (row.seq, row.change.clone());
        log::warn!(
            "mirror {name}: change {seq} ({change}) does not fit what is there ({status}): somebody changed \
             it there; it is made like the source"
        );
        for path in change.paths() {
            let scar = self.first_wrong(path)?;
            // With a directory that is not there comes all that was in it.
            let deep = change.is_pivot() || scar != *path;
            self.scars.add(&scar, deep, seq);
        }
        self.leave_to_repair(index)?;
        let sent = self.first_from(self.publish_next);
        for later in index + 1..sent {
            let job = &self.window[later];
            let aside = matches!(job.step, Step::Held(_));
            if !aside && self.scars.take_up(&job.row.change, job.row.seq) {
                self.leave_to_repair(later)?;
            }
        }
        self.publish_next = self.publish_next.max(seq + 1);
        if let Some(first) = self.staging_refused.take() {
            self.stage_next = self.stage_next.min(first);
        }
        Ok(())
    }

    /// A row is not carried out; its paths are scars.
    pub(super) fn leave_to_repair(&mut self, index: usize) -> Result<(), MirrorError> {
        if self.scars.are_too_many() {
            let first = None;
            return Err(MirrorError::TooManyParked { first });
        }
        let job = &self.window[index];
        let seq = job.row.seq;
        if matches!(job.stage, Stage::Ready) && !matches!(job.step, Step::Done) {
            self.discard_staged(seq);
        }
        self.comes_to_nothing(seq);
        self.window[index].taken_up = true;
        if !self.window[index].noted {
            self.note_in_flight(index);
        }
        self.window[index].step = Step::Done;
        Ok(())
    }

    /// Whether there is a directory where the change speaks of a file, or the other way round. Some systems
    /// call it denied to link or unlink a directory.
    pub(super) fn is_of_another_kind(&mut self, change: &Change) -> Result<bool, MirrorError> {
        let directory = match change {
            Change::Mkdir { .. } | Change::Rmdir { .. } => true,
            Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Content { .. } => false,
            Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => {
                return Ok(false);
            }
        };
        let path = self.setup.place.path(change.path());
        let there = self.ask(Request::Lstat { path })?;
        Ok(matches!(there, Reply::Attrs(attrs) if is_dir(&attrs) != directory))
    }

    /// The topmost directory above a path that is not there, or is none; the path itself, if all are.
    fn first_wrong(&mut self, path: &RelPath) -> Result<RelPath, MirrorError> {
        let mut above: Vec<RelPath> = path
            .ancestors()
            .filter_map(|a| RelPath::new(a).ok())
            .collect();
        above.reverse();
        for dir in above.into_iter().filter(|dir| !dir.is_root()) {
            let at = self.setup.place.path(&dir);
            match self.ask(Request::Lstat { path: at })? {
                Reply::Attrs(attrs) if is_dir(&attrs) => {}
                Reply::Status(status) if status.code == code::PERMISSION_DENIED => break,
                _ => return Ok(dir),
            }
        }
        Ok(path.clone())
    }

    /// Whether the pipeline is to come to rest for a repair.
    pub(super) fn repair_is_due(&mut self) -> bool {
        if self.scars.is_empty() || self.publishing > 0 || self.unrecorded() {
            return false;
        }
        self.scars.are_due(self.cursor, self.setup.journal.head())
    }

    /// Repairs what is due. Nothing is in flight.
    pub(super) fn repair(&mut self) -> Result<(), MirrorError> {
        self.repairing = false;
        let due = self.scars.due();
        let (mut goes, mut comes) = (Vec::new(), Vec::new());
        for (path, deep) in due {
            let entry = self.setup.source.entry(&path);
            let entry = entry.map_err(|why| MirrorError::Source {
                change: format!("repair {path}"),
                why,
            })?;
            // What goes, goes from below; what comes, comes from above.
            match entry {
                None => goes.push((path, deep)),
                Some(_) => comes.insert(0, (path, deep)),
            }
        }
        let mut linked = HashMap::new();
        let mut whole: Vec<(RelPath, Seq)> = Vec::new();
        for (path, deep) in goes.into_iter().chain(comes) {
            let within = |w: &&(RelPath, Seq)| path.is_at_or_below(&w.0);
            if let Some((_, before)) = whole.iter().find(within) {
                let after = self.setup.journal.head();
                self.scars.repaired(&path, *before, after);
                continue;
            }
            // What is set aside there comes first.
            if self.held.touches(&Change::Unlink { path: path.clone() }) {
                self.scars.postpone(&path);
                continue;
            }
            self.open_above([&path].into_iter(), false)?;
            let before = self.setup.journal.head();
            let heard = RefCell::new(std::mem::take(&mut self.heard));
            let stop = || {
                let mut heard = heard.borrow_mut();
                heard.extend(std::iter::from_fn(|| self.setup.inbox.next()));
                heard
                    .iter()
                    .any(|n| matches!(n, Notice::Stop | Notice::Pause))
            };
            let (name, journal) = (self.setup.name, self.setup.journal);
            let durable = || Ok(journal.announce(name, journal.head())?);
            let tools = Tools {
                source: self.setup.source,
                place: &self.setup.place,
                rules: self.setup.rules,
                durable: &durable,
                stop: &stop,
            };
            let mut repair = Repair::new(&mut self.remote, tools);
            repair.linked = std::mem::take(&mut linked);
            let ended = repair.path(&path, deep);
            let touched = repair.touched();
            linked = std::mem::take(&mut repair.linked);
            self.heard = heard.into_inner();
            touched.into_iter().for_each(|dir| self.settle.touch(dir));
            match ended? {
                Repaired::Done => {
                    log::info!("mirror {name}: {path} was made like the source");
                    self.scars
                        .repaired(&path, before, self.setup.journal.head());
                    if deep {
                        whole.push((path, before));
                    }
                }
                Repaired::Interrupted => return Ok(()),
                Repaired::Refused(at, status) => self.repair_refused(&path, &at, &status)?,
            }
        }
        self.record()
    }

    fn repair_refused(
        &mut self,
        path: &RelPath,
        at: &RelPath,
        status: &Status,
    ) -> Result<(), MirrorError> {
        let why = MirrorError::Unrepaired {
            path: at.to_string(),
            status: status.clone(),
        };
        if self.takes_nothing()? {
            return Err(why);
        }
        let (name, text) = (self.setup.name, why.to_string());
        let attempts = self.scars.refused(path, text.clone());
        if attempts.is_power_of_two() {
            log::warn!(
                "mirror {name}: {text}; it is parked (attempt {attempts}): `proxyfs try-again {name}` \
                 tries it at once"
            );
        }
        Ok(())
    }
}
