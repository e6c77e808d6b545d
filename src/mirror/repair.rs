//! Makes paths on a mirror like the source, whatever they are there now (rules R3 and R7).
//!
//! The danger is to make it worse: to show a file half (P4), to follow a symbolic link out of the tree, to
//! remove what only the mirror has. So files and links come through the staging area and a rename, as ever;
//! nothing is followed; a directory that is in the way, or that the source has not, is removed only if it is empty,
//! and what only the mirror has below is kept, unless the repair is of a tree and is to delete.
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
//! whose mode or owner differs only these are set. `Scope::bytes` takes no file for the same and sends it again.
//!
//! Work is done in slices: [`Tools::pauses`] is asked before each directory, and when it says so what is on its way
//! is finished, and the report tells how far each tree is.
//!
//! Memory: the entries of the directories that are being read ([`LISTED`], or the largest directory, at some 250
//! bytes an entry), the names of directories that are still to be walked beside the way down, and [`FILES`] uploads.

pub mod order;

mod compare;
mod files;
mod listing;
mod reading;
mod walk;

use super::errors::MirrorError;
use super::plan::{self, Place, Rules, is_dir};
use super::source::{Entry, Kind, Source};
use crate::change::{Depth, Owner, RelPath, Scope, Seq};
use crate::sftp::{Attrs, Remote, Reply, Request, Status, Ticket, code};
pub use compare::Difference;
use compare::{Sort, sort_of, sort_there};
use files::{File, Link};
use listing::{Listings, There};
use reading::Reading;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::time::Duration;
use walk::Dir;

/// Files on their way at once.
const FILES: usize = 256;

/// Bytes of file data without a reply at most, on each lane.
const UNACKNOWLEDGED: usize = 3 << 20;

/// The numbers under which files are made ready here are above this one: far above those of changes.
pub const NUMBERS: Seq = 1 << 62;

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

/// What it works with.
pub struct Tools<'a> {
    /// The tree that is mirrored.
    pub source: &'a Source,
    /// Where things are there.
    pub place: &'a Place,
    /// What the mirror gets.
    pub rules: Rules,
    /// Makes durable what is in the log.
    pub durable: &'a dyn Fn() -> Result<(), MirrorError>,
    /// Whether to stop at once.
    pub stop: &'a dyn Fn() -> bool,
    /// Whether the slice is over.
    pub pauses: &'a dyn Fn() -> bool,
    /// Is told how far it is, now and again.
    pub show: &'a dyn Fn(&Counts, Option<&RelPath>),
    /// Nothing is changed there: it is only told in what entries differ.
    pub compare: bool,
    /// Whether a path, and what is below it, is left alone.
    pub spares: &'a dyn Fn(&RelPath) -> bool,
    /// Whether a file below is to be sent whatever it looks like; none: nothing is known of it.
    pub resends: &'a dyn Fn(&RelPath) -> Option<bool>,
}

/// One path that is to be made like the source.
#[derive(Clone, Debug)]
pub struct Job {
    /// Which.
    pub path: RelPath,
    /// How much of it.
    pub scope: Scope,
    /// Its own bytes are sent whatever it looks like.
    pub resend: bool,
    /// Of a tree: it was walked up to here.
    pub walked: Option<RelPath>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is like the source, but for what was refused, or has grown.
    Done,
    /// The walk has come to this directory.
    Upto(RelPath),
    /// It was not begun, or not far enough to be told.
    Untouched,
}

/// Something that the mirror did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What.
    pub path: RelPath,
    /// It is a directory that can't be read or made: all that is below is concerned.
    pub whole: bool,
    /// What the server said.
    pub status: Status,
}

/// What has been done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of the source that were compared.
    pub entries: u64,
    /// Files, links and directories that were made or replaced.
    pub sent: u64,
    /// Bytes of file data in them.
    pub bytes: u64,
    /// Entries of which only attributes were set.
    pub set: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that only the mirror has, and that were kept.
    pub extras: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Counts) -> Counts {
        Counts {
            entries: self.entries + other.entries,
            sent: self.sent + other.sent,
            bytes: self.bytes + other.bytes,
            set: self.set + other.set,
            removed: self.removed + other.removed,
            extras: self.extras + other.extras,
        }
    }
}

/// What came of a slice.
#[derive(Debug, Default)]
pub struct Report {
    /// Of each job. Empty: it was told to stop.
    pub ends: Vec<End>,
    /// What the mirror did not take.
    pub refused: Vec<Refusal>,
    /// Directories that the mirror has not at all: trees to be repaired.
    pub grows: Vec<(RelPath, Scope)>,
    /// Directories whose modes and times are to be set.
    pub touched: BTreeSet<RelPath>,
    /// Paths below a tree of which more was known, and that are repaired with it.
    pub also: Vec<RelPath>,
    /// What only the mirror has.
    pub extras: Vec<RelPath>,
    /// In what entries differ, if nothing is to be changed: so many of them as there is room for.
    pub differences: Vec<(RelPath, Difference)>,
    /// How many more there are.
    pub further: u64,
    /// How much was done.
    pub counts: Counts,
    /// The last number that a file was made ready under.
    pub number: Seq,
    /// Files with several names that are there: inode, a name, and how many are still to come.
    pub linked: HashMap<u64, (RelPath, u64)>,
}

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
    last: Vec<Option<RelPath>>,
    next_id: u64,
    files: std::collections::BTreeMap<Seq, File>,
    /// Files to be sent once more.
    again: Vec<File>,
    /// What is ready to be shown.
    ready: Vec<files::Ready>,
    links: HashMap<Seq, Link>,
    /// Files that are read back.
    reading: std::collections::BTreeMap<Seq, Reading>,
    /// Names that are to be given to files once these are there.
    later: Vec<(RelPath, RelPath)>,
    /// Files with several names that are there: inode, a name, and how many are still to come.
    pub linked: HashMap<u64, (RelPath, u64)>,
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
    /// Begins with nothing. Files are made ready under numbers above `number`.
    pub fn new(remote: &'a mut R, tools: Tools<'a>, number: Seq) -> Repair<'a, R> {
        Repair {
            tools,
            remote,
            jobs: Vec::new(),
            report: Report {
                number,
                ..Report::default()
            },
            tickets: HashMap::new(),
            listings: Listings::default(),
            queue: VecDeque::new(),
            last: Vec::new(),
            next_id: 0,
            files: std::collections::BTreeMap::new(),
            again: Vec::new(),
            ready: Vec::new(),
            links: HashMap::new(),
            reading: std::collections::BTreeMap::new(),
            later: Vec::new(),
            linked: HashMap::new(),
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
        self.report.ends = vec![End::Untouched; jobs.len()];
        self.jobs = jobs;
        let done = self.look_at_all()? && self.fix_all()? && self.walk()?;
        self.listings.drop_all(self.remote);
        if !done {
            self.report.ends.clear();
            return Ok(self.report);
        }
        self.drain()?;
        while self.listings.is_waiting() {
            self.turn()?;
        }
        self.end_jobs();
        self.report.linked = self.linked;
        Ok(self.report)
    }

    fn end_jobs(&mut self) {
        let mut open: Vec<bool> = vec![false; self.jobs.len()];
        self.queue.iter().for_each(|dir| open[dir.job] = true);
        for (job, open) in open.into_iter().enumerate() {
            self.report.ends[job] = match (open, self.last[job].take()) {
                (false, _) => End::Done,
                (true, Some(upto)) => End::Upto(upto),
                (true, None) => End::Untouched,
            };
        }
    }

    /// Asks what is at each job's path. Says whether to go on.
    fn look_at_all(&mut self) -> Result<bool, MirrorError> {
        self.looks = self.jobs.iter().map(|_| None).collect();
        let mut next = 0;
        let mut waiting = self.jobs.len();
        while waiting > 0 {
            while next < self.jobs.len() && self.remote.outstanding() < 1024 {
                if self.jobs[next].walked.is_some() {
                    self.looks[next] = Some(Ok(None)); // not asked for
                } else {
                    let path = self.tools.place.path(&self.jobs[next].path);
                    let ticket = self.remote.send(Request::Lstat { path });
                    self.tickets.insert(ticket, Purpose::Look(next));
                }
                next += 1;
            }
            waiting = self.looks.iter().filter(|look| look.is_none()).count();
            if waiting > 0 {
                self.turn()?;
            }
            if (self.tools.stop)() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What goes, goes from below; what comes, comes from above.
    fn fix_all(&mut self) -> Result<bool, MirrorError> {
        let mut comes = Vec::new();
        for job in (0..self.jobs.len()).rev() {
            let path = self.jobs[job].path.clone();
            let entry = self.tools.source.entry(&path);
            match entry.map_err(source_error(&path))? {
                None => {
                    self.fix_job(job, None)?;
                }
                Some(entry) => comes.push((job, entry)),
            }
            if (self.tools.stop)() {
                return Ok(false);
            }
        }
        for (job, entry) in comes.into_iter().rev() {
            if let Some(walked) = self.jobs[job].walked.clone() {
                self.resume(job, &walked)?;
                continue;
            }
            if let Next::Into(fresh) = self.fix_job(job, Some(entry))? {
                let path = self.jobs[job].path.clone();
                self.push_back(Dir {
                    id: 0,
                    path,
                    job,
                    fresh,
                });
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
            resend,
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
        resend: bool,
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
                self.put_away(job, path, &there.attrs)?;
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
                self.put_away(job, path.clone(), &there.attrs)?;
            }
            self.make_directory(&path, &here)?;
            return Ok(Next::Into(true));
        }
        if let (Some(Sort::Directory), Some(there)) = (kind, there) {
            self.put_away(job, path.clone(), &there.attrs)?;
        }
        let there = there.filter(|_| kind != Some(Sort::Directory));
        if sort == Some(Sort::Symlink) {
            self.fix_symlink(path, there)?;
            return Ok(Next::Nothing);
        }
        let there = there.filter(|_| kind == Some(Sort::File));
        let bytes = self.jobs[job].scope.bytes || resend;
        self.fix_file(path, &here, there, bytes)?;
        Ok(Next::Nothing)
    }

    /// Takes away what is at a path that the source has nothing at, or something else.
    fn put_away(&mut self, job: usize, path: RelPath, there: &Attrs) -> Result<(), MirrorError> {
        let scope = self.jobs[job].scope;
        self.report.touched.extend(path.parent());
        self.report.counts.removed += 1;
        let at = self.tools.place.path(&path);
        if !is_dir(there) {
            self.send_as(Purpose::Gone(path), Request::Remove { path: at });
        } else if scope.depth != Depth::Entry && scope.delete {
            // As it would be if the source had nothing by this name.
            self.clear(path)?;
        } else {
            self.send_as(Purpose::Gone(path), Request::Rmdir { path: at });
        }
        Ok(())
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

    /// Moves bytes, takes what has come, and shows what is ready.
    fn turn(&mut self) -> Result<(), MirrorError> {
        self.feed()?;
        self.remote.pump(Duration::from_millis(200), None)?;
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
                && self.files.is_empty()
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
