//! Makes a path on a mirror like the source, whatever it is there now (rule R3).
//!
//! The danger is to make it worse: to show a file half (P4), to follow a symbolic link out of the tree, to
//! remove what only the mirror has. So files and links come through the staging area and a rename, as ever;
//! everything is looked at with LSTAT; a directory that is in the way, or that the source has not, is removed
//! only if it is empty, and what only the mirror has below is kept, unless [`Repair::path`] is told that all
//! below is the past of what changed there (`deep`).
//!
//! What is sent is the *present* source. So the caller repairs when the mirror is as far as the log was
//! before, and looks afterwards what has been recorded for these paths meanwhile.
//!
//! What can be cut between two lines: anything. A repair that is begun anew ends the same, since it asks for
//! nothing but what is there. J3: before anything becomes visible, `durable` is called, so that what was
//! read here does not outlive its record; once for as many files as are ready.
//!
//! Memory: the names of the directories on the way down to where it is, and [`FILES`] uploads.

use super::errors::MirrorError;
use super::plan::{self, Place, Rules, is_dir, stage_symlink};
use super::source::{Entry, Kind, Source, times_of};
use super::upload::{Outcome, Start, Upload, Wanted};
use crate::change::{Owner, RelPath, Seq};
use crate::sftp::{Attrs, Remote, Reply, Request, Status, Ticket, code};
use std::collections::HashMap;
use std::io;
use std::time::Duration;

/// Files on their way at once.
const FILES: usize = 64;

/// Bytes of file data without a reply at most.
const UNACKNOWLEDGED: usize = 4 << 20;

/// The first of the numbers under which files are made ready here: far above those of changes.
const NUMBERS: Seq = 1 << 62;

/// So often a file that changes while it is read is sent again. Its next content is in the log.
const AGAIN: u32 = 3;

/// How a repair ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// It is like the source.
    Done,
    /// The mirror did not take this. The rest may not have been done.
    Refused(RelPath, Status),
    /// It was told to stop.
    Interrupted,
}

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
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
}

/// A repair under way.
pub struct Repair<'a, R: Remote> {
    tools: Tools<'a>,
    remote: &'a mut R,
    files: HashMap<Seq, File>,
    tickets: HashMap<Ticket, Purpose>,
    number: Seq,
    /// What is ready to be shown: number and path.
    ready: Vec<(Seq, RelPath)>,
    refused: Option<(RelPath, Status)>,
    answer: Option<Reply>,
    /// Files with several names that were sent: inode, and a name.
    pub linked: HashMap<u64, RelPath>,
    /// Directories in which something was changed, or that were made: their modes and times are yet to be set.
    touched: Vec<RelPath>,
}

/// A file on its way.
struct File {
    path: RelPath,
    entry: Entry,
    upload: Box<Upload>,
    in_place: bool,
    tries: u32,
}

enum Purpose {
    /// A request for this file.
    Send(Seq),
    /// A request whose refusal counts, about this path.
    Must(RelPath),
    /// The question that is being waited for.
    Ask,
}

/// What is still to be done, the last first.
enum Task {
    /// Make this like the source; `fresh`: nothing is there.
    Fix { path: RelPath, fresh: bool },
    /// Remove what is there, with all below.
    Clear(RelPath),
    /// Remove a directory that was cleared.
    Rmdir(RelPath),
}

impl<'a, R: Remote> Repair<'a, R> {
    /// Begins with nothing.
    pub fn new(remote: &'a mut R, tools: Tools<'a>) -> Repair<'a, R> {
        Repair {
            tools,
            remote,
            files: HashMap::new(),
            tickets: HashMap::new(),
            number: NUMBERS,
            ready: Vec::new(),
            refused: None,
            answer: None,
            linked: HashMap::new(),
            touched: Vec::new(),
        }
    }

    /// Makes `path` like the source. What the source has and the mirror has not at all comes with all that is
    /// below. `deep`: so does a directory that both have, and what lies in the way may be full.
    ///
    /// # Errors
    /// The connection's; the source can't be read.
    pub fn path(&mut self, path: &RelPath, deep: bool) -> Result<Repaired, MirrorError> {
        let (path, fresh) = (path.clone(), false);
        let mut tasks = vec![Task::Fix { path, fresh }];
        while let Some(task) = tasks.pop() {
            if (self.tools.stop)() {
                return Ok(Repaired::Interrupted);
            }
            match task {
                Task::Fix { path, fresh } => self.fix(path, fresh, deep, &mut tasks)?,
                Task::Clear(path) => self.clear(path, &mut tasks)?,
                Task::Rmdir(path) => {
                    self.drain()?;
                    let there = self.tools.place.path(&path);
                    self.must(path, Request::Rmdir { path: there })?;
                }
            }
            if let Some((path, status)) = self.refused.take() {
                self.drain()?;
                self.refused = None;
                return Ok(Repaired::Refused(path, status));
            }
        }
        self.drain()?;
        Ok(match self.refused.take() {
            Some((path, status)) => Repaired::Refused(path, status),
            None => Repaired::Done,
        })
    }

    /// The directories whose modes and times are to be set.
    pub fn touched(&mut self) -> Vec<RelPath> {
        std::mem::take(&mut self.touched)
    }

    fn fix(
        &mut self,
        path: RelPath,
        fresh: bool,
        deep: bool,
        tasks: &mut Vec<Task>,
    ) -> Result<(), MirrorError> {
        let entry = self
            .tools
            .source
            .entry(&path)
            .map_err(source_error(&path))?;
        let there = if fresh { None } else { self.look(&path)? };
        let here = entry
            .as_ref()
            .is_some_and(|e| matches!(e.kind, Kind::Directory));
        let directory = here || there.is_some_and(|attrs| is_dir(&attrs));
        if self.tools.source.excludes(&path, directory) {
            return Ok(()); // whatever it is
        }
        let entry = entry.filter(|entry| !matches!(entry.kind, Kind::Other));
        self.touched.extend(path.parent());
        let Some(entry) = entry else {
            if there.is_some() {
                self.put_away(path, there, deep, tasks)?;
            }
            return Ok(());
        };
        let is_there = |dir: bool| there.is_some_and(|attrs| is_dir(&attrs) == dir);
        if let Kind::Directory = entry.kind {
            if is_there(false) {
                self.put_away(path.clone(), there, deep, tasks)?;
            }
            let made = !is_there(true);
            if made {
                self.make_directory(&path, &entry)?;
            }
            self.touched.push(path.clone());
            if made || deep {
                self.go_into(&path, made, tasks)?;
            }
            return Ok(());
        }
        if is_there(true) {
            // First what is in the way, then this again.
            let fresh = false;
            if deep {
                tasks.push(Task::Fix {
                    path: path.clone(),
                    fresh,
                });
            }
            self.put_away(path.clone(), there, deep, tasks)?;
            if deep || self.refused.is_some() {
                return Ok(());
            }
        }
        match &entry.kind {
            Kind::Symlink(target) => self.make_symlink(path, target, &entry),
            Kind::File(_) => {
                // Its other names there show the bytes too.
                let several = entry.stat.st_nlink > 1;
                let first = self.linked.get(&entry.stat.st_ino).filter(|_| several);
                if let Some(first) = first.cloned()
                    && self.link(first, &path)?
                {
                    return Ok(());
                }
                if several {
                    self.linked.insert(entry.stat.st_ino, path.clone());
                }
                self.send(path, entry, several && is_regular(there), 0)
            }
            Kind::Directory | Kind::Other => Ok(()),
        }
    }

    /// Takes away what is at a path that the source has nothing at, or something else.
    fn put_away(
        &mut self,
        path: RelPath,
        there: Option<Attrs>,
        deep: bool,
        tasks: &mut Vec<Task>,
    ) -> Result<(), MirrorError> {
        let at = self.tools.place.path(&path);
        match there {
            Some(attrs) if is_dir(&attrs) && deep => {
                tasks.push(Task::Clear(path));
                Ok(())
            }
            Some(attrs) if is_dir(&attrs) => self.must(path, Request::Rmdir { path: at }),
            _ => self.must(path, Request::Remove { path: at }),
        }
    }

    /// Removes what is in a directory; it goes itself when that is done.
    fn clear(&mut self, path: RelPath, tasks: &mut Vec<Task>) -> Result<(), MirrorError> {
        let names = self.list(&path)?;
        tasks.push(Task::Rmdir(path.clone()));
        for name in names {
            let Ok(child) = path.join(&name) else {
                continue;
            };
            match self.look(&child)? {
                Some(attrs) if is_dir(&attrs) => tasks.push(Task::Clear(child)),
                Some(_) => {
                    let at = self.tools.place.path(&child);
                    self.send_must(child, Request::Remove { path: at });
                }
                None => {}
            }
        }
        Ok(())
    }

    fn make_directory(&mut self, path: &RelPath, entry: &Entry) -> Result<(), MirrorError> {
        (self.tools.durable)()?;
        // Open for us; its own mode is set at the end.
        let mode = entry.stat.st_mode & 0o7777 | 0o700;
        let attrs = Attrs {
            mode: Some(mode),
            ..Attrs::default()
        };
        let at = self.tools.place.path(path);
        self.must(
            path.clone(),
            Request::Mkdir {
                path: at.clone(),
                attrs,
            },
        )?;
        let mut attributes =
            plan::attributes(Some(mode), Some(owner_of(entry)), None, self.tools.rules);
        attributes.retain(|_| self.tools.rules.setstat);
        for request in plan::set(at, attributes, false) {
            self.send_must(path.clone(), request);
        }
        Ok(())
    }

    /// What is in a directory of the source comes next; and of one that was there, what only the mirror has
    /// goes.
    fn go_into(
        &mut self,
        path: &RelPath,
        made: bool,
        tasks: &mut Vec<Task>,
    ) -> Result<(), MirrorError> {
        if self.refused.is_some() {
            return Ok(());
        }
        let names = self.tools.source.names(path).map_err(source_error(path))?;
        if !made {
            for name in self.list(path)? {
                if !names.contains(&name)
                    && let Ok(extra) = path.join(&name)
                {
                    // Nothing is at the source, so this removes it.
                    tasks.push(Task::Fix {
                        path: extra,
                        fresh: false,
                    });
                }
            }
        }
        for name in names {
            if let Ok(child) = path.join(&name) {
                tasks.push(Task::Fix {
                    path: child,
                    fresh: made,
                });
            }
        }
        Ok(())
    }

    fn make_symlink(
        &mut self,
        path: RelPath,
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), MirrorError> {
        let number = self.next_number();
        let stage = self.tools.place.stage(number);
        let (owner, times) = (owner_of(entry), times_of(&entry.stat));
        let requests = stage_symlink(target, owner, times, stage, self.tools.rules);
        for request in requests {
            self.must(path.clone(), request)?;
        }
        if self.refused.is_none() {
            self.ready.push((number, path));
        }
        Ok(())
    }

    /// Gives a file that was sent a further name.
    /// Says whether it has it.
    fn link(&mut self, first: RelPath, path: &RelPath) -> Result<bool, MirrorError> {
        self.drain()?;
        let number = self.next_number();
        let (from, to) = (
            self.tools.place.path(&first),
            self.tools.place.stage(number),
        );
        let link = Request::Hardlink {
            from,
            to: to.clone(),
        };
        if !matches!(self.ask(link)?, Reply::Ok) {
            return Ok(false);
        }
        self.ready.push((number, path.clone()));
        self.drain()?;
        // A rename of one name of a file over another does nothing (rename(2)).
        self.remote.send(Request::Remove { path: to });
        Ok(true)
    }

    /// A number to make something ready under. What an earlier repair left there is removed: it may be a
    /// second name of a file that must not be written.
    fn next_number(&mut self) -> Seq {
        self.number += 1;
        let path = self.tools.place.stage(self.number);
        self.remote.send(Request::Remove { path }); // mostly there is none
        self.number
    }

    /// Begins to send a file.
    fn send(
        &mut self,
        path: RelPath,
        entry: Entry,
        in_place: bool,
        tries: u32,
    ) -> Result<(), MirrorError> {
        while self.files.len() >= FILES {
            self.turn()?;
        }
        let Kind::File(node) = &entry.kind else {
            return Ok(());
        };
        let number = self.next_number();
        let dest = match in_place {
            true => self.tools.place.path(&path),
            false => self.tools.place.stage(number),
        };
        if in_place {
            (self.tools.durable)()?;
        }
        let Tools { source, rules, .. } = self.tools;
        let wanted = Wanted {
            dest,
            in_place,
            parts: None,
        };
        match Upload::start(source, node, wanted, rules, (&mut *self.remote, 0))
            .map_err(source_error(&path))?
        {
            Start::Begun(upload, tickets) => {
                for ticket in tickets {
                    self.tickets.insert(ticket, Purpose::Send(number));
                }
                let file = File {
                    path,
                    entry,
                    upload,
                    in_place,
                    tries,
                };
                self.files.insert(number, file);
            }
            // What becomes of it is in the log, or will be.
            Start::Gone | Start::Rewritten => {}
        }
        self.turn_if_full()
    }

    fn turn_if_full(&mut self) -> Result<(), MirrorError> {
        self.feed()?;
        if self.remote.unacknowledged_bytes() >= UNACKNOWLEDGED {
            self.turn()?;
        }
        Ok(())
    }

    fn feed(&mut self) -> Result<(), MirrorError> {
        for (number, file) in &mut self.files {
            while file.upload.wants_to_send() && self.remote.unacknowledged_bytes() < UNACKNOWLEDGED
            {
                let tickets = &mut self.tickets;
                file.upload
                    .send_next(self.remote, |ticket| {
                        tickets.insert(ticket, Purpose::Send(*number));
                    })
                    .map_err(source_error(&file.path))?;
            }
        }
        Ok(())
    }

    /// Moves bytes, takes what has come, and shows what is ready.
    fn turn(&mut self) -> Result<(), MirrorError> {
        self.feed()?;
        self.remote.pump(Duration::from_millis(200), None)?;
        while let Some((ticket, reply)) = self.remote.reply() {
            match self.tickets.remove(&ticket) {
                Some(Purpose::Ask) => self.answer = Some(reply),
                Some(Purpose::Must(path)) => self.check(path, &reply),
                Some(Purpose::Send(number)) => self.take(number, ticket, reply)?,
                None => {} // a removal of which nothing is to be learned
            }
        }
        if !self.ready.is_empty() {
            (self.tools.durable)()?;
            for (number, path) in std::mem::take(&mut self.ready) {
                let (from, to) = (self.tools.place.stage(number), self.tools.place.path(&path));
                for request in plan::replace(from, to, self.tools.rules) {
                    match request {
                        // Of that nothing is to be learned.
                        Request::Remove { .. } => drop(self.remote.send(request)),
                        rename => self.send_must(path.clone(), rename),
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, number: Seq, ticket: Ticket, reply: Reply) -> Result<(), MirrorError> {
        let Some(file) = self.files.get_mut(&number) else {
            return Ok(());
        };
        let outcome = file.upload.take(ticket, reply, self.tools.source);
        let Some(outcome) = outcome.map_err(source_error(&file.path))? else {
            return Ok(());
        };
        let Some(file) = self.files.remove(&number) else {
            return Ok(());
        };
        let path = self.tools.place.stage(number);
        match outcome {
            Outcome::Changed if file.tries < AGAIN => {
                self.remote.send(Request::Remove { path });
                self.send(file.path, file.entry, file.in_place, file.tries + 1)?;
            }
            Outcome::Refused(status) => {
                if !file.in_place {
                    self.remote.send(Request::Remove { path });
                }
                self.refused.get_or_insert((file.path, status));
            }
            Outcome::Rewritten => {
                self.remote.send(Request::Remove { path });
            }
            Outcome::Complete | Outcome::Changed | Outcome::Half => {
                if !file.in_place {
                    self.ready.push((number, file.path));
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, path: RelPath, reply: &Reply) {
        if let Reply::Status(status) = reply {
            self.refused.get_or_insert((path, status.clone()));
        }
    }

    /// Waits until nothing is under way.
    fn drain(&mut self) -> Result<(), MirrorError> {
        while !self.files.is_empty() || !self.ready.is_empty() || !self.tickets.is_empty() {
            self.turn()?;
        }
        Ok(())
    }

    fn send_must(&mut self, path: RelPath, request: Request) {
        let ticket = self.remote.send(request);
        self.tickets.insert(ticket, Purpose::Must(path));
    }

    /// Sends a request that has to succeed, and waits for its reply.
    fn must(&mut self, path: RelPath, request: Request) -> Result<(), MirrorError> {
        let reply = self.ask(request)?;
        self.check(path, &reply);
        Ok(())
    }

    fn ask(&mut self, request: Request) -> Result<Reply, MirrorError> {
        let ticket = self.remote.send(request);
        self.tickets.insert(ticket, Purpose::Ask);
        loop {
            self.turn()?;
            if let Some(reply) = self.answer.take() {
                return Ok(reply);
            }
        }
    }

    /// What is there; none: nothing, or it can't be told, which is then refused.
    fn look(&mut self, path: &RelPath) -> Result<Option<Attrs>, MirrorError> {
        let at = self.tools.place.path(path);
        match self.ask(Request::Lstat { path: at })? {
            Reply::Attrs(attrs) => Ok(Some(attrs)),
            Reply::Status(status) if status.code == code::NO_SUCH_FILE => Ok(None),
            other => {
                self.check(path.clone(), &other);
                Ok(None)
            }
        }
    }

    /// The names in a directory there, without ours.
    fn list(&mut self, path: &RelPath) -> Result<Vec<Vec<u8>>, MirrorError> {
        let at = self.tools.place.path(path);
        let handle = match self.ask(Request::Opendir { path: at })? {
            Reply::Handle(handle) => handle,
            other => {
                self.check(path.clone(), &other);
                return Ok(Vec::new());
            }
        };
        let mut all = Vec::new();
        loop {
            let handle = handle.clone();
            match self.ask(Request::Readdir { handle })? {
                Reply::Names(names) if !names.is_empty() => {
                    all.extend(names.into_iter().map(|name| name.name));
                }
                _ => break,
            }
        }
        self.remote.send(Request::Close { handle }); // nobody waits for that
        all.retain(|name| {
            let ours = path.is_root() && name == plan::PRIVATE_DIR.as_bytes();
            !ours && !matches!(&name[..], b"." | b"..")
        });
        Ok(all)
    }
}

fn owner_of(entry: &Entry) -> Owner {
    Owner {
        uid: entry.stat.st_uid,
        gid: entry.stat.st_gid,
    }
}

fn is_regular(there: Option<Attrs>) -> bool {
    let mode = there.and_then(|attrs| attrs.mode);
    mode.is_some_and(|mode| mode & 0o170_000 == 0o100_000)
}

fn source_error(path: &RelPath) -> impl Fn(io::Error) -> MirrorError {
    let change = format!("repair {path}");
    move |why| MirrorError::Source {
        change: change.clone(),
        why,
    }
}
