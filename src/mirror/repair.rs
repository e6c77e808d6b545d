//! Makes paths on a mirror like the source, whatever they are there now (rules R3 and R7).
//!
//! The danger is to make it worse: to show a file half (P4), to follow a symbolic link out of the tree, to
//! remove what only the mirror has. So files and links come through the staging area and a rename, as ever;
//! nothing is followed; a directory that is in the way, or that the source has not, is removed only if it is empty,
//! and what only the mirror has below is kept, unless the repair is of a tree and is to delete. What was moved away in
//! the source is nothing that only the mirror has ([`Job::moved`]).
//!
//! What is sent is the *present* source. So the caller repairs when the mirror is as far as the log was
//! before, and looks afterwards what has been recorded for these paths meanwhile.
//!
//! What can be cut between two lines: anything. A repair that is begun anew ends the same, since it asks for
//! nothing but what is there. But a directory that was made there, and not filled, must not be taken for one that
//! is as it was: so only a tree's repair makes directories, and that is noted in the journal first
//! ([`Report::grows`]). J3: before anything becomes visible, `durable` is called, so that what was
//! read here does not outlive its record; once for as many files as are ready.
//!
//! A file that has the same type, size and modification time (in seconds, as SFTP has them) is the same; of one
//! whose mode or owner differs only these are set. `Scope::bytes` takes no file for the same before its bytes are
//! compared: `suspects.rs`.
//!
//! Work is done in slices: [`Tools::pauses`] is asked behind each entry, and when it says so what is on its way
//! is finished, and the report tells how far each tree is. Neither a big file nor a long directory makes a slice long:
//! of a big file the rest is sent in the next slice, if it is the same by then, and until it is there its path is one
//! that is to be repaired; and a walk may stop between any two entries. Where it goes on it asks for each entry of the
//! source (the list of before is old by now), and reads the whole directory once, at its end and over as many slices
//! as that takes, for names that only the mirror has.
//!
//! Memory: the entries of the directories that are being read ([`LISTED`], or the largest directory, at some 250
//! bytes an entry), the names of directories that are still to be walked beside the way down, and as many uploads as
//! `burden.rs` lets through.

pub mod order;

mod burden;
mod clearing;
mod compare;
mod files;
mod listing;
mod reading;
mod report;
mod resumed;
mod suspects;
mod walk;

use super::errors::MirrorError;
use super::plan::{self, Place, Rules, is_dir};
use super::resume::{Left, Staged};
use super::source::{Entry, Kind, Source};
use crate::change::{Depth, Owner, RelPath, Scope, Seq};
use crate::journal::Reached;
use crate::sftp::{Attrs, Remote, Reply, Request, Status, Ticket, code};
use burden::Burden;
use clearing::Clearing;
pub use compare::Difference;
use compare::{Sort, sort_of, sort_there};
use files::{File, Link};
use listing::{Listings, There};
use reading::Reading;
pub use report::{Carry, Counts, End, Job, Refusal, Report, Tools};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};
use walk::Dir;

/// Files on their way at once that are open here, since they are longer than one WRITE. What else bounds them:
/// `burden.rs`.
const FILES: usize = 256;

/// Bytes of file data without a reply at most, on each lane. On a slow line it is what is sent in a second, since that
/// is what a slice has to wait for at its end. At first, when nothing is known of the line, it is little.
const UNACKNOWLEDGED: usize = 3 << 20;
const LEAST: usize = 256 << 10;
const FIRST: usize = 512 << 10;

/// So often it is looked how fast the line is.
const MEASURE_EVERY: Duration = Duration::from_millis(250);

/// Files with several names that are known at most.
const LINKED: usize = 100_000;

/// Directories that are being read at once, where the server has the handles.
const DIRECTORIES: usize = 192;

/// Entries of directories that are kept before their turn comes.
const LISTED: usize = 50_000;

/// So often a file that changes while it is read is sent again. Its next content is in the log.
const AGAIN: u32 = 3;

/// Refusals in a slice at most: with more it ends.
const REFUSED: usize = 1000;

/// Differences that are told in full at most.
const DIFFERENCES: usize = 10_000;

/// Paths that only the mirror has are named, up to so many of them.
pub const NAMED: usize = 1000;

/// A slice under way.
pub struct Repair<'a, R: Remote> {
    tools: Tools<'a>,
    remote: &'a mut R,
    jobs: Vec<Job>,
    report: Report,
    tickets: HashMap<Ticket, Purpose>,
    listings: Listings,
    /// Directories that are to be walked, in order.
    queue: VecDeque<Dir>,
    /// Of each job the directory that was walked last.
    last: Vec<Option<Reached>>,
    /// Which jobs were begun, and need not be again.
    begun: Vec<bool>,
    /// Something was done in this slice: so it may end.
    moved_on: bool,
    clearing: Clearing,
    carry: Carry,
    /// When it was looked how much has been sent, how much that was, and whether the line was full.
    measured: (Instant, u64, bool),
    files: std::collections::BTreeMap<Seq, File>,
    /// What those need.
    burden: Burden,
    /// Those of them that are sent no further in this slice.
    frozen: HashSet<Seq>,
    /// No file is begun any more.
    ends: bool,
    /// Files to be sent once more.
    again: Vec<File>,
    /// What is ready to be shown.
    ready: Vec<files::Ready>,
    links: HashMap<Seq, Link>,
    /// Files whose checksums are asked for.
    suspects: Vec<suspects::Suspect>,
    /// Files that are read back.
    reading: std::collections::BTreeMap<Seq, Reading>,
    /// Names that are to be given to files once these are there.
    later: Vec<(RelPath, RelPath)>,
    /// What was looked for, by job.
    looks: Vec<Option<Result<Option<Attrs>, Status>>>,
}

enum Purpose {
    /// A request for this file.
    Send(Seq),
    /// One for a file that is read back.
    Read(Seq, reading::Asked),
    /// One for this symbolic link.
    Symlink(Seq),
    /// A second name for a file, made ready under this number.
    Name(Seq, RelPath),
    /// A request whose refusal counts, about this path.
    Must(RelPath),
    /// A removal: what is gone is removed.
    Gone(RelPath),
    /// One of what is in a directory that goes.
    Cleared(RelPath, u64),
    /// A directory is to be there.
    Made(RelPath),
    /// Where a symbolic link points to, and where it should.
    Target(RelPath, Box<Entry>, Attrs),
    /// What is at a job's path.
    Look(usize),
}

/// What comes of an entry.
enum Next {
    Nothing,
    /// A directory to go into; `true`: it was just made.
    Into(bool),
}

impl<'a, R: Remote> Repair<'a, R> {
    /// Begins with what an earlier slice of this session has left.
    pub fn new(remote: &'a mut R, tools: Tools<'a>, mut carry: Carry) -> Repair<'a, R> {
        let mut listings = std::mem::take(&mut carry.listings);
        listings.go_on(remote);
        let measured = (Instant::now(), remote.traffic().0, false);
        Repair {
            tools,
            remote,
            jobs: Vec::new(),
            report: Report::default(),
            tickets: HashMap::new(),
            listings,
            queue: VecDeque::new(),
            last: Vec::new(),
            begun: Vec::new(),
            moved_on: false,
            clearing: Clearing::default(),
            carry,
            measured,
            files: std::collections::BTreeMap::new(),
            burden: Burden::default(),
            frozen: HashSet::new(),
            ends: false,
            again: Vec::new(),
            ready: Vec::new(),
            links: HashMap::new(),
            suspects: Vec::new(),
            reading: std::collections::BTreeMap::new(),
            later: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// Makes the paths of `jobs` like the source, or a part of them. They are to be in the order of their paths, and
    /// none that the source has may lie below another that it has.
    ///
    /// # Errors
    /// The connection's; the source can't be read.
    pub fn run(mut self, jobs: Vec<Job>) -> Result<Report, MirrorError> {
        self.last = jobs.iter().map(|job| job.walked.clone()).collect();
        self.begun = vec![false; jobs.len()];
        self.report.ends = vec![End::Untouched; jobs.len()];
        self.jobs = jobs;
        let done = self.look_at_all()? && self.fix_all()? && self.walk()?;
        let long = self.carry.long.as_ref().map(|(_, id)| *id);
        self.listings.drop_all_but(long, self.remote);
        if !done {
            self.report.ends.clear();
            return Ok(self.report);
        }
        while !(self.is_over() || self.files.is_empty() && self.suspects.is_empty()) {
            if (self.tools.stop)() {
                self.report.ends.clear();
                return Ok(self.report);
            }
            self.turn()?;
        }
        self.postpone_suspects();
        self.freeze();
        self.drain()?;
        while self.listings.is_waiting() {
            self.turn()?;
        }
        self.pause_files();
        self.end_jobs();
        self.carry.listings = self.listings;
        self.report.carry = self.carry;
        Ok(self.report)
    }

    /// Whether the slice is over.
    fn is_over(&self) -> bool {
        self.moved_on && (self.tools.pauses)()
    }

    fn new_id(&mut self) -> u64 {
        self.carry.next_id += 1;
        self.carry.next_id
    }

    fn end_jobs(&mut self) {
        let mut open: Vec<bool> = vec![false; self.jobs.len()];
        self.queue.iter().for_each(|dir| open[dir.job] = true);
        for (job, open) in open.into_iter().enumerate() {
            let path = &self.jobs[job].path;
            let unfinished =
                self.report.unfinished.contains(path) || self.report.unsure.contains(path);
            self.report.ends[job] = match (open, self.last[job].take()) {
                _ if !self.begun[job] || unfinished => End::Untouched,
                (false, _) => End::Done,
                (true, Some(upto)) => End::Upto(upto),
                (true, None) => End::Untouched,
            };
        }
    }

    /// Asks what is at each job's path. Says whether to go on.
    fn look_at_all(&mut self) -> Result<bool, MirrorError> {
        let jobs = self.jobs.iter();
        let paths = jobs.map(|job| job.walked.is_none().then(|| job.path.clone()));
        self.look(paths.collect())
    }

    /// Asks what is at these paths, where there are some. Says whether to go on.
    fn look(&mut self, paths: Vec<Option<RelPath>>) -> Result<bool, MirrorError> {
        let not_asked = |path: &Option<RelPath>| path.is_none().then_some(Ok(None));
        self.looks = paths.iter().map(not_asked).collect();
        let paths = paths.into_iter().enumerate();
        let mut paths = paths.filter_map(|(n, path)| Some((n, path?))).peekable();
        loop {
            while self.remote.outstanding() < 1024
                && let Some((index, path)) = paths.next()
            {
                let path = self.tools.place.path(&path);
                self.send_as(Purpose::Look(index), Request::Lstat { path });
            }
            if paths.peek().is_none() && self.looks.iter().all(Option::is_some) {
                return Ok(true);
            }
            self.turn()?;
            if (self.tools.stop)() {
                return Ok(false);
            }
        }
    }

    /// What goes, goes from below; what comes, comes from above.
    fn fix_all(&mut self) -> Result<bool, MirrorError> {
        let mut comes = Vec::new();
        for job in (0..self.jobs.len()).rev() {
            let path = self.jobs[job].path.clone();
            let entry = self.tools.source.entry(&path);
            match entry.map_err(source_error(&path))? {
                None => {
                    self.begun[job] = true;
                    self.fix_job(job, None)?;
                }
                Some(entry) => comes.push((job, entry)),
            }
            if (self.tools.stop)() {
                return Ok(false);
            }
        }
        if !self.clear_all(true)? {
            return Ok(!(self.tools.stop)());
        }
        for (job, entry) in comes.into_iter().rev() {
            if self.is_over() {
                return Ok(true);
            }
            self.begun[job] = true;
            if let Some(walked) = self.jobs[job].walked.clone() {
                self.resume(job, &walked)?;
                continue;
            }
            let next = self.fix_job(job, Some(entry))?;
            self.moved_on = true;
            if let Next::Into(fresh) = next {
                let path = self.jobs[job].path.clone();
                self.push_back(Dir::new(path, job, fresh));
            }
            if (self.tools.stop)() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fix_job(&mut self, job: usize, entry: Option<Entry>) -> Result<Next, MirrorError> {
        let Job {
            path,
            scope,
            resend,
            ..
        } = self.jobs[job].clone();
        let there = match self.looks[job].take() {
            Some(Ok(there)) => there,
            Some(Err(status)) => {
                self.refuse(path, false, status);
                return Ok(Next::Nothing);
            }
            None => None,
        };
        let links = None;
        let there = there.map(|attrs| There {
            name: path.name().into(),
            attrs,
            links,
        });
        let sort = entry.as_ref().map(|entry| sort_of(&entry.stat));
        let next = self.fix(
            job,
            path.clone(),
            entry.map(|e| e.stat),
            there.as_ref(),
            (false, resend),
        )?;
        self.report.counts.entries += 1;
        // Something is not known of a directory, else it were no job.
        if sort == Some(Sort::Directory) {
            self.report.touched.insert(path);
        }
        Ok(match (next, scope.depth) {
            (Next::Into(_), Depth::Entry) => Next::Nothing,
            (next, _) => next,
        })
    }

    /// Makes one entry like the source's, which is `here`.
    fn fix(
        &mut self,
        job: usize,
        path: RelPath,
        here: Option<rustix::fs::Stat>,
        there: Option<&There>,
        (suspect, resend): (bool, bool),
    ) -> Result<Next, MirrorError> {
        let sort = here.as_ref().map(sort_of);
        let is_directory = sort == Some(Sort::Directory) || there.is_some_and(|t| is_dir(&t.attrs));
        if self.tools.source.excludes(&path, is_directory) {
            return Ok(Next::Nothing); // whatever it is
        }
        if self.tools.compare {
            let bytes = self.jobs[job].scope.bytes;
            let here = here.filter(|_| sort != Some(Sort::Other));
            return self.compare_only(path, here, there, bytes);
        }
        let Some(here) = here.filter(|_| sort != Some(Sort::Other)) else {
            if let Some(there) = there {
                self.put_away(job, path, &there.attrs);
            }
            return Ok(Next::Nothing);
        };
        let kind = there.map(|there| sort_there(&there.attrs));
        if sort == Some(Sort::Directory) {
            if let (Some(Sort::Directory), Some(there)) = (kind, there) {
                self.compare_directory(&path, &here, &there.attrs);
                return Ok(Next::Into(false));
            }
            if self.jobs[job].scope.depth != Depth::Tree {
                let scope = self.jobs[job].scope;
                self.report.grows.push((path, scope));
                return Ok(Next::Nothing);
            }
            if let Some(there) = there {
                self.put_away(job, path.clone(), &there.attrs);
            }
            self.make_directory(&path, &here)?;
            return Ok(Next::Into(true));
        }
        if let (Some(Sort::Directory), Some(there)) = (kind, there) {
            self.put_away(job, path.clone(), &there.attrs);
            self.clear_all(false)?;
        }
        let there = there.filter(|_| kind != Some(Sort::Directory));
        if sort == Some(Sort::Symlink) {
            self.fix_symlink(path, there)?;
            return Ok(Next::Nothing);
        }
        let there = there.filter(|_| kind == Some(Sort::File));
        let suspect = self.jobs[job].scope.bytes || suspect;
        self.fix_file(path, &here, there, (suspect, resend))?;
        Ok(Next::Nothing)
    }

    /// Takes away what is at a path that the source has nothing at, or something else.
    fn put_away(&mut self, job: usize, path: RelPath, there: &Attrs) {
        let scope = self.jobs[job].scope;
        self.report.touched.extend(path.parent());
        self.report.counts.removed += 1;
        let at = self.tools.place.path(&path);
        if !is_dir(there) {
            self.send_as(Purpose::Gone(path), Request::Remove { path: at });
        } else if scope.depth != Depth::Entry && scope.delete || self.jobs[job].moved.is_some() {
            // As it would be if the source had nothing by this name.
            self.begin_clear(job, path);
        } else {
            self.send_as(Purpose::Gone(path), Request::Rmdir { path: at });
        }
    }

    fn make_directory(
        &mut self,
        path: &RelPath,
        here: &rustix::fs::Stat,
    ) -> Result<(), MirrorError> {
        (self.tools.durable)()?;
        self.report.touched.extend(path.parent());
        self.report.touched.insert(path.clone());
        self.report.counts.sent += 1;
        // Open for us; its own mode is set at the end.
        let mode = here.st_mode & 0o7777 | 0o700;
        let attrs = Attrs {
            mode: Some(mode),
            ..Attrs::default()
        };
        let at = self.tools.place.path(path);
        let mkdir = Request::Mkdir {
            path: at.clone(),
            attrs,
        };
        self.send_as(Purpose::Made(path.clone()), mkdir);
        let mut attributes =
            plan::attributes(Some(mode), Some(owner_of(here)), None, self.tools.rules);
        attributes.retain(|_| self.tools.rules.setstat);
        for request in plan::set(at, attributes, false) {
            self.send_as(Purpose::Must(path.clone()), request);
        }
        Ok(())
    }

    fn refuse(&mut self, path: RelPath, whole: bool, status: Status) {
        // What lies below a directory that could not be made fails with it.
        let mut wholes = self
            .report
            .refused
            .iter()
            .filter(|r| r.whole)
            .rev()
            .take(64);
        if !wholes.any(|refusal| path.is_at_or_below(&refusal.path)) {
            self.report.refused.push(Refusal {
                path,
                whole,
                status,
            });
        }
    }

    /// How much may be under way on a lane.
    fn measure(&mut self) {
        let (since, before, was_full) = self.measured;
        let took = since.elapsed();
        // What has arrived: a lot has room on the way there.
        let on_the_way = self.remote.unacknowledged_bytes();
        let is_full = on_the_way > self.carry.room / 2;
        if took < MEASURE_EVERY && was_full {
            return;
        }
        let arrived = self.remote.traffic().0.saturating_sub(on_the_way as u64);
        self.measured = (Instant::now(), arrived, is_full);
        let lanes = self.remote.lanes().max(1);
        // Only a line that was full all the time, as far as can be seen, shows how fast it is.
        if was_full && is_full {
            let a_second = arrived.saturating_sub(before) as f64 / took.as_secs_f64();
            self.carry.room = (a_second as usize / lanes).clamp(LEAST, UNACKNOWLEDGED);
        }
    }

    /// Moves bytes, takes what has come, and shows what is ready.
    fn turn(&mut self) -> Result<(), MirrorError> {
        self.turn_within(Duration::from_millis(200))
    }

    /// The same, and waits no longer than that.
    fn turn_within(&mut self, wait: Duration) -> Result<(), MirrorError> {
        self.measure();
        self.ask_for_checksums()?;
        self.remote.pump(wait, None)?;
        while let Some((ticket, reply)) = self.remote.reply() {
            let Some(reply) = self.listings.take(ticket, reply, self.remote) else {
                continue;
            };
            if let Some(purpose) = self.tickets.remove(&ticket) {
                self.take(purpose, ticket, reply)?;
            }
        }
        for file in std::mem::take(&mut self.again) {
            self.begin(file)?;
        }
        self.publish()?;
        // Files that are closed make room for others in the same round trip.
        self.feed()?;
        (self.tools.show)(&self.report.counts, None);
        Ok(())
    }

    fn take(&mut self, purpose: Purpose, ticket: Ticket, reply: Reply) -> Result<(), MirrorError> {
        let refused = match &reply {
            Reply::Status(status) => Some(status.clone()),
            Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
                None
            }
        };
        match (purpose, refused) {
            (Purpose::Send(number), _) => self.take_file(number, ticket, reply)?,
            (Purpose::Read(number, asked), _) => self.take_read(number, asked, reply)?,
            (Purpose::Symlink(number), status) => self.take_symlink(number, status),
            (Purpose::Name(number, path), status) => self.take_name(number, path, status)?,
            (Purpose::Target(path, entry, attrs), _) => {
                self.take_target(path, &entry, &attrs, &reply);
            }
            (Purpose::Look(job), status) => {
                self.looks[job] = Some(match (reply, status) {
                    (Reply::Attrs(attrs), _) => Ok(Some(attrs)),
                    (_, Some(status)) if status.code != code::NO_SUCH_FILE => Err(status),
                    _ => Ok(None),
                });
            }
            (Purpose::Cleared(path, dir), why) => self.take_cleared(path, dir, why),
            (Purpose::Gone(path), Some(status)) if status.code != code::NO_SUCH_FILE => {
                self.refuse(path, false, status);
            }
            (Purpose::Made(path), Some(status)) => self.refuse(path, true, status),
            (Purpose::Must(path), Some(status)) => self.refuse(path, false, status),
            (Purpose::Gone(_) | Purpose::Made(_) | Purpose::Must(_), _) => {}
        }
        Ok(())
    }

    /// Waits until nothing is under way, but the reading of directories.
    fn drain(&mut self) -> Result<(), MirrorError> {
        loop {
            self.name_later()?;
            let idle = self.reading.is_empty()
                && self.suspects.is_empty()
                && self.files.keys().all(|number| self.frozen.contains(number))
                && self.again.is_empty()
                && self.ready.is_empty();
            if idle && self.tickets.is_empty() && self.later.is_empty() {
                return Ok(());
            }
            self.turn()?;
        }
    }

    fn send_as(&mut self, purpose: Purpose, request: Request) {
        let ticket = self.remote.send(request);
        self.tickets.insert(ticket, purpose);
    }
}

fn owner_of(stat: &rustix::fs::Stat) -> Owner {
    Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

fn source_error(path: &RelPath) -> impl Fn(io::Error) -> MirrorError {
    let change = format!("repair {path}");
    move |why| MirrorError::Source {
        change: change.clone(),
        why,
    }
}
