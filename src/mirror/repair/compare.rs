//! In what an entry differs there.

use super::super::plan::{self, Rules, S_IFMT, is_dir};
use super::super::source::{sftp_time, times_of};
use super::*;
use rustix::fs::{FileType, Stat};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Directory,
    File,
    Symlink,
    /// Something that does not travel.
    Other,
}

/// What the source has.
pub fn sort_of(stat: &Stat) -> Sort {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Sort::Directory,
        FileType::RegularFile => Sort::File,
        FileType::Symlink => Sort::Symlink,
        _ => Sort::Other,
    }
}

/// What the mirror has.
pub fn sort_there(attrs: &Attrs) -> Sort {
    match attrs.mode.map(|mode| mode & S_IFMT) {
        Some(0o100_000) => Sort::File,
        Some(0o120_000) => Sort::Symlink,
        Some(_) if is_dir(attrs) => Sort::Directory,
        Some(_) | None => Sort::Other,
    }
}

/// Whether a file has the size and the time that it has here.
pub fn same_content(here: &Stat, there: &Attrs) -> bool {
    same_size(here, there) && same_time(here, there)
}

fn same_size(here: &Stat, there: &Attrs) -> bool {
    there.size == Some(here.st_size as u64)
}

pub fn same_time(here: &Stat, there: &Attrs) -> bool {
    there.times.map(|times| times.1) == Some(sftp_time(here.st_mtime))
}

pub fn same_owner(here: &Stat, there: &Attrs, rules: Rules) -> bool {
    !rules.owner || there.owner == Some((here.st_uid, here.st_gid))
}

pub fn same_mode(here: &Stat, there: &Attrs) -> bool {
    there.mode.map(|mode| mode & 0o7777) == Some(here.st_mode & 0o7777)
}

/// In what an entry differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The mirror has not got it.
    Missing,
    /// Only the mirror has it.
    Extra,
    /// It is of another kind there.
    Kind,
    /// It has another size.
    Size,
    /// It was changed at another time.
    Time,
    /// It has another mode.
    Mode,
    /// It has another owner.
    Owner,
    /// It points elsewhere.
    Target,
    /// Size and time are the same, the bytes are not.
    Bytes,
    /// It can't be read there.
    Unreadable,
}

impl Difference {
    /// In a word or two.
    pub fn words(&self) -> &'static str {
        match self {
            Difference::Missing => "missing",
            Difference::Extra => "only there",
            Difference::Kind => "kind",
            Difference::Size => "size",
            Difference::Time => "time",
            Difference::Mode => "mode",
            Difference::Owner => "owner",
            Difference::Target => "target",
            Difference::Bytes => "bytes",
            Difference::Unreadable => "unreadable",
        }
    }
}

impl<R: Remote> Repair<'_, R> {
    pub(super) fn differs(&mut self, path: RelPath, what: Difference) {
        if self.report.differences.len() < DIFFERENCES {
            self.report.differences.push((path, what));
        } else {
            self.report.further += 1;
        }
    }

    /// Tells in what an entry differs, and changes nothing.
    pub(super) fn compare_only(
        &mut self,
        path: RelPath,
        here: Option<Stat>,
        there: Option<&There>,
        bytes: bool,
    ) -> Result<Next, MirrorError> {
        let (here, there) = match (here, there) {
            (None, None) => return Ok(Next::Nothing),
            (None, Some(_)) => {
                self.differs(path, Difference::Extra);
                return Ok(Next::Nothing);
            }
            (Some(_), None) => {
                self.differs(path, Difference::Missing);
                return Ok(Next::Nothing);
            }
            (Some(here), Some(there)) => (here, &there.attrs),
        };
        let (sort, rules) = (sort_of(&here), self.tools.rules);
        if sort != sort_there(there) {
            self.differs(path, Difference::Kind);
            return Ok(Next::Nothing);
        }
        let sizes = sort != Sort::File || same_size(&here, there);
        let timeless = sort == Sort::Symlink && !rules.lsetstat;
        let times = timeless || same_time(&here, there);
        // The mirror's own root has the mode that its admin gave it; a symbolic link has none.
        let modes = sort == Sort::Symlink || path.is_root() || same_mode(&here, there);
        let owners = path.is_root() || same_owner(&here, there, rules);
        let mut same = true;
        for (differs, what) in [
            (!sizes, Difference::Size),
            (sizes && !times, Difference::Time),
            (!modes, Difference::Mode),
            (!owners, Difference::Owner),
        ] {
            if differs {
                same = false;
                self.differs(path.clone(), what);
            }
        }
        match sort {
            Sort::Directory => return Ok(Next::Into(false)),
            Sort::File if same && bytes => self.suspect(path, here, *there)?,
            Sort::Symlink => {
                if let Some(entry) = self.entry(&path)? {
                    let at = self.tools.place.path(&path);
                    let purpose = Purpose::Target(path, Box::new(entry), *there);
                    self.send_as(purpose, Request::Readlink { path: at });
                }
            }
            Sort::File | Sort::Other => {}
        }
        Ok(Next::Nothing)
    }

    /// Sets what differs of a directory that both have: its mode and time when all is done in it.
    pub(super) fn compare_directory(&mut self, path: &RelPath, here: &Stat, there: &Attrs) {
        if !same_owner(here, there, self.tools.rules) {
            let at = self.tools.place.path(path);
            let owner = plan::attributes(None, Some(owner_of(here)), None, self.tools.rules);
            for request in plan::set(at, owner, false) {
                self.send_as(Purpose::Must(path.clone()), request);
            }
        }
        // The mirror's own root has the mode that its admin gave it.
        let mode = path.is_root() || same_mode(here, there);
        if !self.tools.rules.setstat {
            return;
        }
        if !mode || !same_time(here, there) {
            self.report.touched.insert(path.clone());
        }
    }

    pub(super) fn fix_file(
        &mut self,
        path: RelPath,
        here: &Stat,
        there: Option<&There>,
        (suspect, resend): (bool, bool),
    ) -> Result<(), MirrorError> {
        let bytes = suspect || resend;
        let suspect = suspect && !resend;
        let Rules {
            setstat,
            fsetstat,
            hardlink,
            ..
        } = self.tools.rules;
        let several = hardlink && here.st_nlink > 1;
        // Where no time can be set the size has to do.
        let timeless = !setstat && !fsetstat && there.is_some_and(|t| same_size(here, &t.attrs));
        if let Some(there) = there
            && !bytes
            && (timeless || same_content(here, &there.attrs))
        {
            if several && !self.is_one_file(&path, here, there) {
                return Ok(());
            }
            // Set there, they would be those of its other names, too, which are other files here.
            let shared = here.st_nlink == 1 && there.links.is_some_and(|links| links > 1);
            if !shared || self.has_attributes(here, &there.attrs) {
                self.fix_attributes(path, here, &there.attrs);
                return Ok(());
            }
        }
        if let Some(there) = there
            && suspect
            && !several
            && setstat
            && same_content(here, &there.attrs)
            && self.may_compare(here)
        {
            return self.suspect(path, *here, there.attrs);
        }
        // Its other names there show the bytes too.
        if several && self.gets_name(&path, here) {
            return Ok(());
        }
        let Some(entry) = self.entry(&path)? else {
            return Ok(());
        };
        if several {
            self.is_there(&path, here);
        }
        self.send(path, entry, several && there.is_some())
    }

    /// Whether a file has the mode and the owner that it can have there.
    fn has_attributes(&self, here: &Stat, there: &Attrs) -> bool {
        let rules = self.tools.rules;
        (!rules.setstat || same_mode(here, there)) && same_owner(here, there, rules)
    }

    /// Sets what differs of a file that has its bytes.
    pub(super) fn fix_attributes(&mut self, path: RelPath, here: &Stat, there: &Attrs) {
        if self.has_attributes(here, there) {
            return;
        }
        self.report.counts.set += 1;
        let at = self.tools.place.path(&path);
        let (mode, owner) = (Some(here.st_mode & 0o7777), Some(owner_of(here)));
        let times = Some(times_of(here));
        let all = plan::attributes(mode, owner, times, self.tools.rules);
        for request in plan::set(at, all, false) {
            self.send_as(Purpose::Must(path.clone()), request);
        }
    }

    /// Of a file with several names that is as it should be: whether it is the same one as its first name.
    fn is_one_file(&mut self, path: &RelPath, here: &Stat, there: &There) -> bool {
        let all = there
            .links
            .is_some_and(|links| u64::from(links) == here.st_nlink);
        if all || !self.carry.linked.contains_key(&here.st_ino) {
            self.is_there(path, here);
            return true;
        }
        !self.gets_name(path, here)
    }

    /// Whether a file that is there, or on its way, is given this name.
    fn gets_name(&mut self, path: &RelPath, here: &Stat) -> bool {
        let Some((first, _)) = self.carry.linked.get(&here.st_ino) else {
            return false;
        };
        if first == path {
            return false;
        }
        let first = first.clone();
        self.is_there(path, here);
        self.later.push((first, path.clone()));
        true
    }

    /// A file with several names has this one, or gets it.
    fn is_there(&mut self, path: &RelPath, here: &Stat) {
        let all = here.st_nlink;
        let (_, left) = self
            .carry
            .linked
            .entry(here.st_ino)
            .or_insert((path.clone(), all));
        *left -= 1;
        if *left == 0 {
            self.carry.linked.remove(&here.st_ino);
        }
        // Too many: what is forgotten becomes a file of its own.
        if self.carry.linked.len() > LINKED {
            self.carry.linked.clear();
        }
    }

    /// What is there now that can be sent.
    pub(super) fn entry(&self, path: &RelPath) -> Result<Option<Entry>, MirrorError> {
        self.tools.source.entry(path).map_err(source_error(path))
    }

    pub(super) fn fix_symlink(
        &mut self,
        path: RelPath,
        there: Option<&There>,
    ) -> Result<(), MirrorError> {
        let Some(entry) = self.entry(&path)? else {
            return Ok(());
        };
        let Kind::Symlink(target) = &entry.kind else {
            return Ok(()); // what it is by now is in the log
        };
        let same = |there: &&There| {
            sort_there(&there.attrs) == Sort::Symlink
                && there
                    .attrs
                    .size
                    .is_none_or(|size| size == target.len() as u64)
        };
        match there.filter(same) {
            Some(there) => {
                let at = self.tools.place.path(&path);
                let purpose = Purpose::Target(path, Box::new(entry), there.attrs);
                self.send_as(purpose, Request::Readlink { path: at });
            }
            None => self.make_symlink(path, &entry),
        }
        Ok(())
    }

    pub(super) fn take_target(
        &mut self,
        path: RelPath,
        entry: &Entry,
        there: &Attrs,
        reply: &Reply,
    ) {
        let Kind::Symlink(target) = &entry.kind else {
            return;
        };
        let points = match reply {
            Reply::Names(names) => names.first().map(|name| &name.name),
            Reply::Ok | Reply::Status(_) | Reply::Handle(_) | Reply::Data(_) | Reply::Attrs(_) => {
                None
            }
        };
        let rules = self.tools.rules;
        if self.tools.compare {
            if points != Some(target) {
                self.differs(path, Difference::Target);
            }
            return;
        }
        // In place of it, not to it: there it may have another name, of what is another link here by now.
        let as_here = same_time(&entry.stat, there) && same_owner(&entry.stat, there, rules);
        if points != Some(target) || rules.lsetstat && !as_here {
            self.make_symlink(path, entry);
        }
    }
}
