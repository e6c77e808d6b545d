//! Walking trees: one directory after another in [`walk_order`](super::order::walk_order), read ahead of time; a long one,
//! or one that an earlier slice did not come through, entry by entry.

use super::compare::{Sort, sort_of};
use super::listing::Read;
use super::*;
use rustix::fs::{FileType, Stat};

/// So far ahead it is looked for directories that can be read already.
const AHEAD: usize = 1024;

/// A directory of so many bytes here is taken for a long one, some 4000 names: it is not read as a whole before its first
/// entry is dealt with.
const LONG: i64 = 128 << 10;

/// So many entries of a long directory are asked for at once.
const LOOKS: usize = 1024;

/// What only the mirror has is removed in so large parts.
const EXTRAS: usize = 512;

/// Behind every name (NAME_MAX is 255).
const LAST: [u8; 256] = [0xff; 256];

/// A directory that is to be walked.
pub(super) struct Dir {
    pub id: u64,
    pub path: RelPath,
    pub job: usize,
    /// It was just made there.
    pub fresh: bool,
    /// It is asked for its entries one by one.
    long: bool,
    /// Its entries up to this name were dealt with.
    after: Option<Box<[u8]>>,
}

impl Dir {
    pub fn new(path: RelPath, job: usize, fresh: bool) -> Dir {
        Dir {
            id: 0,
            path,
            job,
            fresh,
            long: false,
            after: None,
        }
    }
}

/// How it ended with a directory.
enum Turn {
    /// It is through.
    Over,
    /// The slice is over behind this name.
    Within(Box<[u8]>),
    /// It was told to stop.
    Stopped,
}

/// How it ended with what only the mirror has.
enum Rest {
    Nothing,
    /// The slice is over; these are left.
    Some(Vec<There>),
    /// The slice is over, and what is left is not known.
    Unknown,
}

impl<R: Remote> Repair<'_, R> {
    pub(super) fn push_back(&mut self, dir: Dir) {
        let id = self.new_id();
        self.queue.push_back(Dir { id, ..dir });
    }

    /// Puts what is left of a tree into the queue that was walked so far: what is in the directory that it has come
    /// to, and what comes behind it in each one above.
    pub(super) fn resume(&mut self, job: usize, walked: &Reached) -> Result<(), MirrorError> {
        let root = self.jobs[job].path.clone();
        let mut at = walked.dir.clone();
        let mut behind: Option<RelPath> = None;
        if let Some(name) = &walked.name {
            self.push_back(Dir {
                long: true,
                after: Some(name.clone()),
                ..Dir::new(at.clone(), job, false)
            });
        }
        loop {
            let within = walked.name.is_some() && behind.is_none();
            if !within {
                for (path, _) in self.directories(&at)? {
                    if behind.as_ref().is_none_or(|b| path.name() > b.name()) {
                        self.push_back(Dir::new(path, job, false));
                    }
                }
            }
            if at == root || at.is_root() {
                return Ok(());
            }
            let above = at.parent().unwrap_or_default();
            behind = Some(std::mem::replace(&mut at, above));
        }
    }

    /// The directories in one, that are to be walked.
    fn directories(&self, at: &RelPath) -> Result<Vec<(RelPath, bool)>, MirrorError> {
        let list = self.tools.source.kinds(at).map_err(source_error(at))?;
        let directories = list.unwrap_or_default().into_iter();
        let directories = directories.filter(|(_, kind)| *kind == FileType::Directory);
        let paths = directories.filter_map(|(name, _)| at.join(&name).ok());
        let walked = paths.filter(|path| !self.tools.source.excludes(path, true));
        Ok(walked.map(|path| (path, false)).collect())
    }

    /// Walks what is in the queue, until that is empty or the slice is over. Says whether to go on.
    pub(super) fn walk(&mut self) -> Result<bool, MirrorError> {
        while !self.queue.is_empty() {
            if (self.tools.stop)() {
                return Ok(false);
            }
            let many = self.report.refused.len() >= REFUSED || self.report.grows.len() >= REFUSED;
            if self.is_over() || many {
                return Ok(true);
            }
            self.read_ahead()?;
            let reads = |dir: &Dir| !dir.fresh && !dir.long;
            let waits = |dir: &Dir| reads(dir) && !self.listings.is_ready(dir.id);
            if self.queue.front().is_some_and(waits) {
                self.turn()?;
                continue;
            }
            let Some(dir) = self.queue.pop_front() else {
                break;
            };
            let turn = match self.listings.finish(dir.id).filter(|_| reads(&dir)) {
                Some(Read::All(there)) => self.compare(&dir, there)?,
                // The walk does not go on into it.
                Some(Read::Refused(status)) => {
                    self.refuse(dir.path.clone(), true, status);
                    Turn::Over
                }
                None => self.compare_long(&dir)?,
            };
            self.moved_on = true;
            let name = match turn {
                Turn::Stopped => return Ok(false),
                Turn::Over => None,
                Turn::Within(name) => Some(name),
            };
            let (job, path) = (dir.job, dir.path.clone());
            if name.is_some() {
                self.queue.push_front(dir);
            }
            let within = name.is_some();
            self.last[job] = Some(Reached { dir: path, name });
            if within {
                return Ok(true);
            }
            self.name_many()?;
        }
        Ok(true)
    }

    /// How many directories may be read at once.
    pub(super) fn most_read(&self) -> usize {
        match self.remote.features().max_handles {
            Some(handles) => DIRECTORIES.min((handles / 4).max(1) as usize),
            None => DIRECTORIES,
        }
    }

    fn read_ahead(&mut self) -> Result<(), MirrorError> {
        let most = self.most_read();
        for (index, dir) in self.queue.iter_mut().take(AHEAD).enumerate() {
            let first = index == 0;
            if self.listings.under_way() >= most || (!first && self.listings.held() >= LISTED) {
                return Ok(());
            }
            if dir.fresh || dir.long || self.listings.is_known(dir.id) {
                continue;
            }
            let here = self.tools.source.directory(&dir.path);
            let here = here.map_err(source_error(&dir.path))?;
            dir.long = here.is_some_and(|stat| stat.st_size >= LONG);
            if !dir.long {
                let place = self.tools.place.path(&dir.path);
                self.listings.begin(dir.id, place, self.remote);
            }
        }
        Ok(())
    }

    /// Makes a directory's own entries like the source's; its directories come next.
    fn compare(&mut self, dir: &Dir, there: Vec<There>) -> Result<Turn, MirrorError> {
        let here = self.tools.source.list(&dir.path);
        let Some(here) = here.map_err(source_error(&dir.path))? else {
            return Ok(Turn::Over); // it is gone by now: that is in the log
        };
        (self.tools.show)(&self.report.counts, Some(&dir.path));
        let (mut below, mut extras) = (Vec::new(), Vec::new());
        let mut there = there.into_iter().peekable();
        for (index, (name, stat)) in here.into_iter().enumerate() {
            if index % 256 == 255 && (self.tools.stop)() {
                return Ok(Turn::Stopped);
            }
            while let Some(extra) = there.next_if(|t| t.name < name) {
                extras.push(extra);
            }
            let twin = there.next_if(|t| t.name == name);
            below.extend(self.compare_entry(dir, &name, stat, twin.as_ref())?);
            if self.is_over() {
                return Ok(Turn::Within(name));
            }
        }
        extras.extend(there);
        let last: Box<[u8]> = LAST.into();
        match self.take_extras(dir, extras)? {
            Rest::Nothing => {}
            Rest::Some(_) | Rest::Unknown => return Ok(self.within(last)),
        }
        self.go_into(dir.job, below);
        Ok(Turn::Over)
    }

    /// The same of one that is long, or whose list of before is old by now.
    fn compare_long(&mut self, dir: &Dir) -> Result<Turn, MirrorError> {
        let here = self.tools.source.kinds(&dir.path);
        let Some(here) = here.map_err(source_error(&dir.path))? else {
            return Ok(Turn::Over);
        };
        (self.tools.show)(&self.report.counts, Some(&dir.path));
        let names: Vec<Box<[u8]>> = here.into_iter().map(|(name, _)| name).collect();
        let after = dir.after.as_deref();
        let first = names.partition_point(|name| after.is_some_and(|after| &name[..] <= after));
        let mut below = Vec::new();
        for part in names[first..].chunks(LOOKS) {
            let stats = self
                .tools
                .source
                .stats(&dir.path, part.iter().map(|name| &name[..]))
                .map_err(source_error(&dir.path))?;
            let Some(stats) = stats else {
                return Ok(Turn::Over);
            };
            let asked = part
                .iter()
                .map(|name| dir.path.join(name).ok().filter(|_| !dir.fresh));
            if !self.look(asked.collect())? {
                return Ok(Turn::Stopped);
            }
            let looks = std::mem::take(&mut self.looks);
            for ((name, stat), look) in part.iter().zip(stats).zip(looks) {
                match (stat, look) {
                    (Some(_), Some(Err(status))) => {
                        if let Ok(path) = dir.path.join(name) {
                            self.refuse(path, false, status);
                        }
                    }
                    (Some(stat), look) => {
                        let there = look.and_then(Result::ok).flatten().map(|attrs| There {
                            name: name.clone(),
                            attrs,
                            links: None,
                        });
                        below.extend(self.compare_entry(dir, name, stat, there.as_ref())?);
                    }
                    (None, _) => {} // gone meanwhile: that is in the log
                }
                if self.is_over() {
                    return Ok(Turn::Within(name.clone()));
                }
            }
        }
        if !dir.fresh || dir.after.is_some() {
            let ended = self.look_for_extras(dir, &names)?;
            if let Some(turn) = ended {
                return Ok(turn);
            }
        }
        if first > 0 {
            // Those of earlier slices, too.
            let fresh: HashSet<RelPath> = below
                .into_iter()
                .filter(|(_, fresh)| *fresh)
                .map(|b| b.0)
                .collect();
            let all = self.directories(&dir.path)?.into_iter();
            below = all
                .map(|(path, _)| (path.clone(), fresh.contains(&path)))
                .collect();
        }
        self.go_into(dir.job, below);
        Ok(Turn::Over)
    }

    /// Makes one entry of a directory like the source's. Gives the directory to go into, and whether it was just made.
    fn compare_entry(
        &mut self,
        dir: &Dir,
        name: &[u8],
        stat: Stat,
        twin: Option<&There>,
    ) -> Result<Option<(RelPath, bool)>, MirrorError> {
        let Ok(path) = dir.path.join(name) else {
            return Ok(None);
        };
        if (self.tools.spares)(&path) {
            return Ok(None);
        }
        self.report.counts.entries += 1;
        self.moved_on = true;
        let known = (self.tools.resends)(&path);
        let is_directory = sort_of(&stat) == Sort::Directory;
        let next = self.fix(
            dir.job,
            path.clone(),
            Some(stat),
            twin,
            known.unwrap_or_default(),
        )?;
        if known.is_some() && !is_directory {
            self.report.also.push(path.clone());
        }
        let depth = self.jobs[dir.job].scope.depth;
        Ok(match next {
            Next::Into(fresh) if depth == Depth::Tree => Some((path, fresh)),
            Next::Into(_) | Next::Nothing => None,
        })
    }

    fn go_into(&mut self, job: usize, below: Vec<(RelPath, bool)>) {
        for (path, fresh) in below.into_iter().rev() {
            let id = self.new_id();
            self.queue.push_front(Dir {
                id,
                ..Dir::new(path, job, fresh)
            });
        }
    }

    /// Reads a long directory, over many slices if need be, and deals with what only the mirror has in it. None: it is
    /// through with that.
    fn look_for_extras(
        &mut self,
        dir: &Dir,
        names: &[Box<[u8]>],
    ) -> Result<Option<Turn>, MirrorError> {
        let known = self.carry.long.take().filter(|long| long.0 == dir.path);
        let id = match known {
            Some((_, id)) => id,
            None => {
                let id = self.new_id();
                let place = self.tools.place.path(&dir.path);
                self.listings.begin(id, place, self.remote);
                id
            }
        };
        let last = || LAST.into();
        self.carry.long = Some((dir.path.clone(), id));
        self.moved_on = true; // what is read is read
        while !self.listings.is_ready(id) {
            if (self.tools.stop)() {
                return Ok(Some(Turn::Stopped));
            }
            if self.is_over() {
                return Ok(Some(Turn::Within(last())));
            }
            self.turn()?;
        }
        self.carry.long = None;
        let mut extras = match self.listings.finish(id) {
            Some(Read::All(there)) => there,
            Some(Read::Refused(status)) => {
                self.refuse(dir.path.clone(), true, status);
                return Ok(Some(Turn::Over));
            }
            None => return Ok(None),
        };
        extras.retain(|extra| names.binary_search(&extra.name).is_err());
        match self.take_extras(dir, extras)? {
            Rest::Nothing => Ok(None),
            Rest::Some(rest) => {
                self.listings.put_back(id, rest);
                self.carry.long = Some((dir.path.clone(), id));
                Ok(Some(self.within(last())))
            }
            Rest::Unknown => Ok(Some(self.within(last()))),
        }
    }

    fn within(&self, name: Box<[u8]>) -> Turn {
        match (self.tools.stop)() {
            true => Turn::Stopped,
            false => Turn::Within(name),
        }
    }

    /// What only the mirror has in a directory.
    fn take_extras(&mut self, dir: &Dir, extras: Vec<There>) -> Result<Rest, MirrorError> {
        let mut extras = extras.into_iter();
        while extras.len() > 0 {
            for extra in extras.by_ref().take(EXTRAS) {
                self.is_extra(dir, &extra)?;
            }
            self.moved_on = true;
            if !self.clear_all(true)? {
                return Ok(Rest::Unknown);
            }
            if extras.len() > 0 && (self.is_over() || (self.tools.stop)()) {
                return Ok(Rest::Some(extras.collect()));
            }
        }
        Ok(Rest::Nothing)
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
        if !delete && !named && !self.goes(dir.job, &path)? {
            self.keep(path);
            return Ok(());
        }
        if is_dir(&extra.attrs) && depth != Depth::Tree {
            // What is in it is a matter of a tree.
            self.report.grows.push((path, self.jobs[dir.job].scope));
            return Ok(());
        }
        self.put_away(dir.job, path, &extra.attrs);
        Ok(())
    }
}
