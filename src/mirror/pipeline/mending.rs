//! Rows that met a mirror which is not as the log expects it, and the repair of what they are about: see
//! [`Scars`].

use super::super::plan::is_dir;
use super::super::repair::{Counts, End, Job, Refusal, Repair, Report, Tools};
use super::super::scars::{FULL, Key, mend_for};
use super::*;
use crate::change::{Depth, Scope};
use crate::journal::{Mend, Trust, Walked};
use rustix::fs::FileType;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// How long a slice of a repair takes, about.
const SLICE: Duration = Duration::from_secs(10);

/// The same while changes wait for the mirror.
const SHORT_SLICE: Duration = Duration::from_secs(2);

/// How often it is shown how far a repair is.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Of what only the mirror has so much is written to the log, of each slice.
const EXTRAS_IN_LOG: usize = 20;

/// How much of the tree a walk is through with that has come to a directory: as if each held as much as its
/// neighbours. (What can't be read is not worth an error here.)
fn walked_part(source: &Source, upto: &RelPath) -> f64 {
    let mut above: Vec<RelPath> = upto
        .ancestors()
        .filter_map(|a| RelPath::new(a).ok())
        .collect();
    above.reverse();
    let (mut walked, mut share) = (0.0, 1.0);
    for (index, dir) in above.iter().enumerate() {
        let below = above.get(index + 1).unwrap_or(upto);
        let names = source.kinds(dir).ok().flatten().unwrap_or_default();
        let is_dir = |kind: &FileType| *kind == FileType::Directory;
        let dirs: Vec<_> = names.iter().filter(|(_, kind)| is_dir(kind)).collect();
        let before = dirs
            .iter()
            .filter(|(name, _)| **name < *below.name())
            .count();
        share /= dirs.len().max(1) as f64;
        walked += share * before as f64;
    }
    walked
}

impl<R: Remote> Pipeline<'_, R> {
    /// A row could not be carried out, and nothing is in flight: what it is about is repaired instead, and so is
    /// what was sent behind it and depends on it.
    pub(super) fn leave_to_repair_all(
        &mut self,
        index: usize,
        status: &Status,
    ) -> Result<(), MirrorError> {
        let row = &self.window[index].row;
        let (seq, change) = (row.seq, row.change.clone());
        let text = format!(
            "change {seq} ({change}) does not fit what is there ({status}): somebody changed it there; it is made \
             like the source"
        );
        self.lull.surprises.warn(self.setup.name, &text);
        self.scars.go_along(&change, seq);
        for path in change.paths() {
            let scar = self.first_wrong(path)?;
            // With a directory that is not there comes all that was in it.
            let mend = if scar == *path {
                Mend {
                    resend: true,
                    ..mend_for(&change, scar)
                }
            } else {
                Mend::new(scar, Scope::TREE)
            };
            self.scars.add(mend, seq);
        }
        self.leave_to_repair(index)?;
        let sent = self.behind_what_was_sent();
        for later in index + 1..sent {
            let job = &self.window[later];
            let aside = matches!(job.step, Step::Held(_));
            if !aside && self.scars.take_up(&job.row.change, job.row.seq) {
                self.leave_to_repair(later)?;
            }
        }
        if let Some(first) = self.staging_refused.take() {
            self.stage_next = self.stage_next.min(first);
        }
        Ok(())
    }

    /// A row is not carried out; its paths are scars.
    pub(super) fn leave_to_repair(&mut self, index: usize) -> Result<(), MirrorError> {
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

    /// Notes that all is to be made like the source, if that was asked for. What is there is as the log says, as far
    /// as is known: so the log goes on meanwhile.
    pub(super) fn begin_sync(&mut self) -> Result<(), MirrorError> {
        let (name, journal) = (self.setup.name, self.setup.journal);
        let Some(scope) = journal.mirror(name)?.sync else {
            return Ok(());
        };
        log::info!("mirror {name}: all of it is made like the source, as was asked for");
        let mend = Mend {
            trust: Trust::Log,
            ..Mend::new(RelPath::root(), scope)
        };
        self.repaired_counts = Counts::default();
        self.setup.live.begins_sync();
        self.scars.add(mend, self.cursor);
        self.record()?;
        Ok(journal.sync_is_noted(name)?)
    }

    /// Whether the pipeline is to come to rest for a repair.
    pub(super) fn repair_is_due(&mut self) -> bool {
        if self.scars.is_empty() || self.publishing > 0 || self.unrecorded() {
            return false;
        }
        self.scars.are_due(self.cursor, self.setup.journal.head())
    }

    /// Repairs what is due, or a slice of it. Nothing is in flight.
    pub(super) fn repair(&mut self) -> Result<(), MirrorError> {
        self.repairing = false;
        self.lull.is_over();
        // First how far the log is, then the source: what is recorded behind this may be seen or not.
        let before = self.setup.journal.head();
        let (jobs, keys) = self.choose()?;
        if jobs.is_empty() {
            return Ok(());
        }
        self.doubted = true;
        self.see_way()?;
        let ran = self.run_slice(&jobs, before);
        // What it has seen, and not seen, holds only if it was there.
        self.doubted = true;
        self.see_way()?;
        let mut report = ran?;
        self.carry = std::mem::take(&mut report.carry);
        let touched = std::mem::take(&mut report.touched);
        touched.into_iter().for_each(|dir| self.settle.touch(dir));
        self.repaired_counts = self.repaired_counts.and(report.counts);
        self.setup.live.repairing(self.repaired_counts, None);
        if report.ends.is_empty() {
            return Ok(()); // it was told to stop
        }
        // What was seen in the source is in the log up to there.
        self.setup.source.wait_for_records();
        let after = self.setup.journal.head();
        for ((end, keys), job) in report.ends.iter().zip(&keys).zip(&jobs) {
            for key in keys {
                match end {
                    End::Done => {
                        if job.scope.depth == Depth::Tree {
                            log::info!(
                                "mirror {}: {} was made like the source",
                                self.setup.name,
                                job.path
                            );
                        }
                        self.scars.repaired(key, before, after);
                    }
                    End::Upto(upto) => {
                        if job.path.is_root() {
                            let walked = walked_part(self.setup.source, &upto.dir);
                            self.setup.live.walked(walked);
                        }
                        let upto = upto.clone();
                        self.scars.repaired_upto(key, upto, before, after);
                    }
                    End::Untouched => {}
                }
            }
        }
        for path in report.also {
            let key = (path, Depth::Entry);
            self.scars.repaired(&key, before, after);
        }
        self.report_extras(&report.extras, report.counts.extras);
        for (path, scope) in report.grows {
            self.scars.grow(path, scope, after);
        }
        self.take_refusals(report.refused, &jobs, after)?;
        for path in report.unsure {
            let scope = Scope {
                bytes: true,
                ..Scope::ENTRY
            };
            self.scars.add(Mend::new(path, scope), after);
        }
        for path in report.unfinished {
            let mend = Mend {
                resend: true,
                ..Mend::new(path, Scope::ENTRY)
            };
            self.scars.add(mend, after);
        }
        if !self.scars.has_open() {
            self.carry.end(&self.setup.place, &mut self.remote);
        }
        self.scars.keep_few();
        self.record()
    }

    /// What of the due ones is repaired next. Little ones first; of those that an administrator has asked for, and
    /// that take long, one. What is set aside at a path comes first there; what is set aside below is left alone.
    fn choose(&mut self) -> Result<(Vec<Job>, Vec<Vec<Key>>), MirrorError> {
        let due: Vec<Mend> = self.scars.due().take(FULL).cloned().collect();
        let little = due.iter().any(|mend| mend.trust == Trust::Nothing);
        let mut chosen: BTreeMap<(bool, RelPath), (Job, Vec<Key>)> = BTreeMap::new();
        let mut comes = PathIndex::default();
        for mend in due {
            let key = (mend.path.clone(), mend.scope.depth);
            if self.held.reaches_over(&mend.path) {
                self.scars.postpone(&key);
                continue;
            }
            if little && mend.trust != Trust::Nothing || !little && !chosen.is_empty() {
                continue;
            }
            let walked = match mend.walked {
                Walked::Upto(path) => Some(path),
                Walked::Nothing | Walked::All => None,
            };
            let place = (walked.is_some(), mend.path.clone());
            if let Some((job, keys)) = chosen.get_mut(&place) {
                let both = job.scope.and(mend.scope);
                // What the one is to keep the other would delete: one after the other.
                let entry = mend.scope.depth == Depth::Entry || job.scope.depth == Depth::Entry;
                if !entry && job.scope.delete != mend.scope.delete {
                    continue;
                }
                job.scope = both;
                job.resend |= mend.resend;
                job.moved = job.moved.take().or(mend.moved);
                keys.push(key);
                continue;
            }
            if comes.reaches_over(&mend.path) {
                continue; // behind what is above it
            }
            if walked.is_none() {
                let entry = self.setup.source.entry(&mend.path);
                let entry = entry.map_err(|why| MirrorError::Source {
                    change: format!("repair {}", mend.path),
                    why,
                })?;
                if entry.is_some() {
                    comes.insert(&mend.path);
                }
            }
            let job = Job {
                path: mend.path,
                scope: mend.scope,
                resend: mend.resend,
                walked,
                moved: mend.moved,
            };
            chosen.insert(place, (job, vec![key]));
        }
        Ok(chosen.into_values().unzip())
    }

    fn run_slice(&mut self, jobs: &[Job], before: Seq) -> Result<Report, MirrorError> {
        let began = Instant::now();
        let heard = RefCell::new(std::mem::take(&mut self.heard));
        let stop = || {
            let mut heard = heard.borrow_mut();
            // Changes are seen by how far the log is.
            let new = std::iter::from_fn(|| self.setup.inbox.next());
            heard.extend(new.filter(|notice| *notice != Notice::Changes));
            heard
                .iter()
                .any(|n| matches!(n, Notice::Stop | Notice::Pause))
        };
        let (name, journal) = (self.setup.name, self.setup.journal);
        let pauses = || {
            let waits = journal.head() > before || !heard.borrow().is_empty();
            began.elapsed() >= if waits { SHORT_SLICE } else { SLICE }
        };
        let announced = Cell::new(None);
        let durable = || {
            let head = journal.head();
            if announced.replace(Some(head)) != Some(head) {
                journal.announce(name, head)?;
            }
            Ok(())
        };
        let (scars, held, live) = (&self.scars, &self.held, self.setup.live);
        let all = self.repaired_counts;
        let shown = Cell::new(None::<Instant>);
        let show = |counts: &Counts, at: Option<&RelPath>| {
            let often = shown.get().is_some_and(|at| at.elapsed() < SHOW_EVERY);
            if !often {
                shown.set(Some(Instant::now()));
                live.repairing(all.and(*counts), at);
            }
        };
        let tools = Tools {
            source: self.setup.source,
            place: &self.setup.place,
            rules: self.setup.rules,
            durable: &durable,
            stop: &stop,
            pauses: &pauses,
            show: &show,
            compare: false,
            left: &|staged| self.setup.kept.of(staged, self.setup.memory),
            spares: &|path| held.reaches_over(path),
            resends: &|path| scars.resends(path),
        };
        let carry = std::mem::take(&mut self.carry);
        let report = Repair::new(&mut self.remote, tools, carry).run(jobs.to_vec());
        if let Ok(report) = &report {
            log::debug!(
                "mirror {name}: a part of {} repairs took {} ms, {} files are half sent",
                jobs.len(),
                began.elapsed().as_millis(),
                report.unfinished.len()
            );
        }
        self.heard = heard.into_inner();
        report
    }

    fn report_extras(&mut self, extras: &[RelPath], count: u64) {
        let name = self.setup.name;
        for path in extras.iter().take(EXTRAS_IN_LOG) {
            log::info!("mirror {name}: only the mirror has {path}; it is kept");
        }
        if count > EXTRAS_IN_LOG as u64 {
            log::info!(
                "mirror {name}: and {} further paths that only the mirror has; `proxyfs sync {name} --delete` \
                 removes them",
                count - EXTRAS_IN_LOG as u64
            );
        }
    }

    /// What the mirror did not take: a directory above it is missing, or shut, or it has to wait.
    /// What is tried again below a tree does no more than that: it deletes only if that does, and compares bytes
    /// if that does.
    fn take_refusals(
        &mut self,
        refused: Vec<Refusal>,
        jobs: &[Job],
        after: Seq,
    ) -> Result<(), MirrorError> {
        if refused.is_empty() {
            return Ok(());
        }
        let rules = self.setup.rules;
        let mut grown: Vec<RelPath> = Vec::new();
        let mut checked = false;
        for Refusal {
            path,
            whole,
            status,
        } in refused
        {
            let over =
                |job: &&Job| job.scope.depth != Depth::Entry && path.is_at_or_below(&job.path);
            let tree = Scope {
                depth: Depth::Tree,
                delete: jobs.iter().filter(over).all(|job| job.scope.delete),
                bytes: jobs.iter().filter(over).any(|job| job.scope.bytes),
            };
            let scope = if whole { tree } else { Scope::ENTRY };
            let mend = Mend {
                // It was to be sent, perhaps.
                resend: !whole,
                ..Mend::new(path.clone(), scope)
            };
            if grown.iter().any(|dir| path.is_at_or_below(dir)) {
                continue;
            }
            if status.code == code::NO_SUCH_FILE {
                let dir = self.first_wrong(&path)?;
                if dir != path || whole {
                    self.scars.grow(dir.clone(), tree, after);
                    grown.push(dir);
                    continue;
                }
            }
            let key = (path.clone(), scope.depth);
            if status.code == code::PERMISSION_DENIED
                && self.open_above([&path].into_iter(), whole)?
            {
                self.scars.add(mend, after);
                continue;
            }
            let why = MirrorError::Unrepaired {
                path: path.to_string(),
                status: status.clone(),
            };
            if !checked && self.takes_nothing()? {
                self.record()?;
                return Err(why);
            }
            checked = true;
            // It was asked in a way that the server does not know. Or an entry's repair, which leaves a directory with
            // something in it alone, was made beside that of a tree above, which has emptied or removed it since.
            let is_entry = |job: &Job| job.scope.depth == Depth::Entry && job.path == path;
            let met = jobs.iter().any(is_entry) && jobs.iter().any(|job| over(&job));
            if self.setup.rules != rules || met {
                self.scars.add(mend, after);
                continue;
            }
            self.scars.add_again(mend, after);
            let (name, text) = (self.setup.name, why.to_string());
            let attempts = self.scars.refused(&key, text.clone());
            if attempts.is_power_of_two() {
                let text = format!(
                    "{text}; it is parked (attempt {attempts}): `proxyfs try-again {name}` tries it at once"
                );
                self.lull.refusals.warn(name, &text);
            }
        }
        if self.scars.are_too_many() {
            let first = None;
            return Err(MirrorError::TooManyParked { first });
        }
        Ok(())
    }
}
