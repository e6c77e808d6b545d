//! What the log tells is what was done: each visible change once, with the right bytes, in the order of the effects (J2).
//!
//! A tree is kept that knows nothing but the rows of the log. Each row has to fit it when its turn comes (a directory is
//! made where nothing is, a name is taken away that is there), has to change something, and in the end of each step it has
//! led to what is in the source: the same names of the same inodes, the same bytes. A row too many, too few, with
//! too few bytes, or in another order than its effect does not.
//!
//! Two users are at work at once where one of them waits between his effect and his record, or between two writes, till
//! the other one is done, or waits for him.

use super::super::hands::Hands;
use super::{Life, World};
use proxyfs::change::{Change, Extent, NodeId, RelPath, Seq};
use proxyfs::fault;
use proxyfs::journal::{Journal, RecordError, Recorder};
use proxyfs::local::Local;
use proxyfs::mirror::source::Source;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The journal, as long as it is not careless: what these rules are for is seen when one of them is broken.
pub(super) struct Careful(pub Arc<Journal>);

impl Recorder for Careful {
    fn record(&self, change: &Change) -> Result<Seq, RecordError> {
        if !fault::keeps("told once") {
            self.0.record(change)?;
        }
        let mut change = change.clone();
        match &mut change {
            Change::Unlink { .. } if !fault::keeps("told at all") => return Ok(self.0.head()),
            Change::Content {
                extent: Extent::Ranges(ranges),
                ..
            } => {
                if !fault::keeps("told no more") {
                    ranges.insert(0, 1);
                }
                if !fault::keeps("told in full") {
                    *ranges = ranges.iter().take(1).collect();
                }
            }
            _ => {}
        }
        self.0.record(&change)
    }

    fn check(&self) -> Result<(), RecordError> {
        self.0.check()
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    /// Inode; none: it was gone again before anybody looked.
    node: Option<u64>,
    directory: bool,
    /// Permission bits, where the log has told them.
    mode: Option<u32>,
}

/// The source as the log tells it.
#[derive(Default)]
pub(super) struct Account {
    entries: BTreeMap<RelPath, Entry>,
    bytes: HashMap<u64, Vec<u8>>,
    /// What was done before is still looked for.
    seeks: bool,
    /// Up to here it was read.
    read_to: Seq,
}

/// What a step has told about, for the looks behind it.
#[derive(Default)]
struct Told {
    paths: Vec<RelPath>,
    nodes: HashSet<u64>,
    extents: Vec<(u64, Extent)>,
    kinds: Vec<(&'static str, RelPath)>,
}

impl Account {
    /// As the source is now, whatever the log says.
    pub(super) fn begin(root: &Path, head: Seq) -> Account {
        let mut account = Account {
            read_to: head,
            seeks: true,
            ..Account::default()
        };
        for (path, entry) in read(root) {
            if let Some(node) = entry.node.filter(|_| root.join(path.as_path()).is_file()) {
                let bytes = || fs::read(root.join(path.as_path())).unwrap();
                account.bytes.entry(node).or_insert_with(bytes);
            }
            account.entries.insert(path, entry);
        }
        account
    }

    /// What was done before is found and recorded.
    pub(super) fn has_found_all(&mut self) {
        self.seeks = false;
    }

    fn is_absent(&self, path: &RelPath) -> Result<(), String> {
        let parent = path.parent().unwrap();
        if !parent.is_root() && !self.entries.get(&parent).is_some_and(|dir| dir.directory) {
            return Err(format!("{parent} is no directory yet"));
        }
        match self.entries.get(path) {
            Some(there) => Err(format!("{path} is there already: {there:?}")),
            None => Ok(()),
        }
    }

    fn entry(&self, path: &RelPath) -> Result<Entry, String> {
        let found = self.entries.get(path).copied();
        found.ok_or_else(|| format!("{path} is not there"))
    }

    /// Takes what is at a path and below it away.
    fn take(&mut self, path: &RelPath) -> Vec<(RelPath, Entry)> {
        let all: Vec<RelPath> = self.entries.keys().cloned().collect();
        let below = all.into_iter().filter(|at| at.is_at_or_below(path));
        below
            .map(|at| {
                let entry = self.entries.remove(&at).unwrap();
                (at, entry)
            })
            .collect()
    }

    fn insert(&mut self, path: &RelPath, node: Option<u64>, directory: bool, mode: Option<u32>) {
        let entry = Entry {
            node,
            directory,
            mode,
        };
        self.entries.insert(path.clone(), entry);
    }

    fn put(&mut self, taken: Vec<(RelPath, Entry)>, from: &RelPath, to: &RelPath) {
        for (path, entry) in taken {
            let rest = &path.as_bytes()[from.as_bytes().len()..];
            let new = RelPath::new(&[to.as_bytes(), rest].concat()).unwrap();
            self.entries.insert(new, entry);
        }
    }

    fn is_empty(&self, path: &RelPath) -> bool {
        let below = |at: &RelPath| at != path && at.is_at_or_below(path);
        !self.entries.keys().any(below)
    }

    /// One row more.
    fn follow(&mut self, source: &Source, change: &Change) -> Result<Told, String> {
        let mut told = Told {
            paths: change.paths().cloned().collect(),
            ..Told::default()
        };
        let kind = match change {
            Change::Mkdir { path, mode, .. } => {
                self.is_absent(path)?;
                self.insert(path, None, true, Some(*mode));
                "mkdir"
            }
            Change::Symlink { path, .. } => {
                self.is_absent(path)?;
                self.insert(path, None, false, None);
                "symlink"
            }
            Change::Rmdir { path } => {
                if !self.entry(path)?.directory || !self.is_empty(path) {
                    return Err(format!("{path} is no empty directory yet"));
                }
                self.take(path);
                "rmdir"
            }
            Change::Unlink { path } => {
                if self.entry(path)?.directory {
                    return Err(format!("{path} is a directory still"));
                }
                self.take(path);
                "unlink"
            }
            Change::Link { from, path } => {
                let entry = self.entry(from)?;
                self.is_absent(path)?;
                self.entries.insert(path.clone(), entry);
                "link"
            }
            Change::Rename { from, to } => {
                let moved = self.entry(from)?;
                let over = self.entries.get(to).copied();
                if let Some(over) = over
                    && (over.directory != moved.directory || !self.is_empty(to))
                {
                    return Err(format!("{to} is in the way: {over:?}"));
                }
                if from == to || over.is_some_and(|o| o.node.is_some() && o.node == moved.node) {
                    return Err("nothing was moved".to_string());
                }
                self.entries.remove(to);
                self.is_absent(to)?;
                let taken = self.take(from);
                self.put(taken, from, to);
                "rename"
            }
            Change::Exchange { a, b } => {
                self.entry(a)?;
                self.entry(b)?;
                let (one, other) = (self.take(a), self.take(b));
                self.put(one, a, b);
                self.put(other, b, a);
                "exchange"
            }
            Change::Content {
                path,
                node,
                extent,
                size,
                ..
            } => {
                let node = of(source, node);
                let there = self.entries.get(path).copied();
                match there {
                    None => self.is_absent(path)?,
                    Some(there) if there.directory => return Err(format!("{path} is a directory")),
                    Some(there) if there.node != node && node.is_some() && there.node.is_some() => {
                        return Err(format!("{path} is another file: {there:?}, not {node:?}"));
                    }
                    Some(_) => {}
                }
                // Its mode travels with it.
                self.insert(path, node, false, None);
                if let Some(node) = node {
                    self.bytes_are_told(source, change, node, extent, *size)?;
                    told.nodes.insert(node);
                    told.extents.push((node, extent.clone()));
                }
                "content"
            }
            Change::Attr {
                path,
                mode,
                owner,
                times,
                ..
            } => {
                let is_root = path.is_root();
                if mode.is_none() && owner.is_none() && times.is_none() {
                    return Err("nothing was set".to_string());
                }
                if !is_root {
                    let entry = self.entry(path)?;
                    if mode.is_some() && entry.mode == *mode && owner.is_none() && times.is_none() {
                        return Err("it had that mode".to_string());
                    }
                    // By whichever of its names.
                    let names = self.entries.values_mut();
                    for there in names.filter(|e| e.node.is_some() && e.node == entry.node) {
                        there.mode = mode.or(there.mode);
                    }
                    let there = self.entries.get_mut(path).unwrap();
                    there.mode = mode.or(there.mode);
                }
                "attributes"
            }
            Change::Repair { .. } if self.seeks => return Ok(Told::default()),
            Change::Repair { path, .. } => return Err(format!("{path} is to be repaired")),
        };
        told.kinds
            .extend(change.paths().map(|path| (kind, path.clone())));
        Ok(told)
    }

    /// What a row says of a file's bytes: those are taken over, and no others.
    fn bytes_are_told(
        &mut self,
        source: &Source,
        change: &Change,
        node: u64,
        extent: &Extent,
        size: u64,
    ) -> Result<(), String> {
        let Change::Content { node: handle, .. } = change else {
            return Ok(());
        };
        let Some(file) = source.open(handle).ok().flatten() else {
            return Ok(());
        };
        let mut now = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut now).map_err(|why| why.to_string())?;
        match extent {
            Extent::Whole => {
                self.bytes.insert(node, now);
            }
            Extent::Ranges(ranges) => {
                let known = self.bytes.get_mut(&node);
                let known = known.ok_or("a part of a file that it does not know")?;
                known.resize(size as usize, 0);
                for (from, to) in ranges.iter() {
                    let part = from as usize..(to as usize).min(now.len()).min(known.len());
                    if part.start < part.end {
                        known[part.clone()].copy_from_slice(&now[part]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The inode that a handle leads to, if it is there.
fn of(source: &Source, node: &NodeId) -> Option<u64> {
    let file = source.open(node).ok().flatten()?;
    Some(file.metadata().unwrap().ino())
}

/// All entries but our own.
fn read(root: &Path) -> BTreeMap<RelPath, Entry> {
    let (mut found, mut open) = (BTreeMap::new(), vec![RelPath::root()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(dir.as_path())).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name().as_bytes()).unwrap();
            if path.as_bytes() == b".proxyfs" {
                continue;
            }
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                open.push(path.clone());
            }
            let (node, directory, mode) = (Some(meta.ino()), meta.is_dir(), meta.mode() & 0o7777);
            let mode = Some(mode);
            found.insert(
                path,
                Entry {
                    node,
                    directory,
                    mode,
                },
            );
        }
    }
    found
}

impl World {
    /// Reads what the log has got since, and looks whether that is what was done. `alone`: by one user, in one step.
    pub(super) fn read_the_log(&self, life: &Life, alone: bool) {
        let mut account = self.account.borrow_mut();
        let rows = life.reader.rows(account.read_to, 1000).unwrap();
        let mut all = Told::default();
        for row in rows {
            account.read_to = row.seq;
            let told = match account.follow(&life.source, &row.change) {
                Ok(told) => told,
                Err(why) => self.fail(&format!(
                    "{} {} is not what was done: {why}",
                    row.seq, row.change
                )),
            };
            if alone && told.kinds.iter().any(|kind| all.kinds.contains(kind)) {
                self.fail(&format!("{} {} tells it again", row.seq, row.change));
            }
            all.paths.extend(told.paths);
            all.nodes.extend(told.nodes);
            all.extents.extend(told.extents);
            all.kinds.extend(told.kinds);
        }
        for path in all.paths {
            let meta = fs::symlink_metadata(self.root.join(path.as_path())).ok();
            self.is_as_told(
                &mut account,
                &path,
                meta.map(|meta| (meta.ino(), meta.is_dir())),
            );
        }
        let hands = self.hands.borrow();
        for (node, bytes) in &account.bytes {
            if all.nodes.contains(node) && !hands.has_open(*node) {
                self.has_bytes(&account, *node, bytes);
            }
        }
        // What was changed, and no more.
        if let (true, Some((node, ranges))) = (alone, &hands.changed) {
            for (of, extent) in &all.extents {
                if let (true, Extent::Ranges(told)) = (of == node, extent)
                    && told != ranges
                    && !hands.has_open(*node)
                {
                    self.fail(&format!(
                        "{ranges:?} were changed, and it tells of {told:?}"
                    ));
                }
            }
        }
    }

    /// The same inode is there, or nothing.
    fn is_as_told(&self, account: &mut Account, path: &RelPath, there: Option<(u64, bool)>) {
        if path.is_root() {
            return;
        }
        let told = account.entries.get_mut(path);
        match (told, there) {
            (None, None) => {}
            // A row does not tell the inode of a directory or a link.
            (Some(told), Some((node, directory)))
                if told.directory == directory && told.node.is_none() =>
            {
                told.node = Some(node);
            }
            (Some(told), Some((node, directory)))
                if told.directory == directory && told.node == Some(node) => {}
            // It is new, and not closed.
            (None, Some((node, false))) if self.hands.borrow().has_open(node) => {}
            (told, there) => self.fail(&format!(
                "the log tells of {told:?} at {path}, where {there:?} is"
            )),
        }
    }

    fn has_bytes(&self, account: &Account, node: u64, told: &[u8]) {
        let paths = account
            .entries
            .iter()
            .filter(|(_, entry)| entry.node == Some(node));
        for (path, _) in paths.take(1) {
            let Ok(bytes) = fs::read(self.root.join(path.as_path())) else {
                continue;
            };
            if bytes != told {
                let at = bytes.iter().zip(told).position(|(a, b)| a != b);
                let lengths = (bytes.len(), told.len());
                self.fail(&format!(
                    "the log has not told of all in {path}: {lengths:?} bytes, from {at:?} on"
                ));
            }
        }
    }

    /// Nothing is in the source that the log has not told, and nothing has gone unsaid.
    pub(super) fn the_log_has_told_all(&self) {
        let mut account = self.account.borrow_mut();
        let there = read(&self.root);
        let all: HashSet<RelPath> = there
            .keys()
            .chain(account.entries.keys())
            .cloned()
            .collect();
        for path in all {
            let there = there
                .get(&path)
                .map(|entry| (entry.node.unwrap(), entry.directory));
            self.is_as_told(&mut account, &path, there);
        }
        let hands = self.hands.borrow();
        for (node, bytes) in account
            .bytes
            .iter()
            .filter(|(node, _)| !hands.has_open(**node))
        {
            self.has_bytes(&account, *node, bytes);
        }
    }

    /// Two users work at once, with so few names that most of what they do is related.
    pub fn is_shared(&self) {
        self.shared.set(true);
        self.hands.borrow_mut().names = 2;
    }

    /// Somebody else comes while the next step is under way: at one of its points he is let in.
    pub(super) fn invite(&self, life: &Life) {
        let mut random = self.random();
        let (points, seed) = (random.below(2), random.next());
        *self.guest.borrow_mut() = Some(Guest {
            points,
            seed,
            local: Arc::clone(&life.local),
            at_work: None,
        });
    }

    /// The step is over, and so is what he did. Says whether he came.
    pub(super) fn part(&self) -> bool {
        let guest = self.guest.borrow_mut().take();
        let Some(at_work) = guest.and_then(|guest| guest.at_work) else {
            return false;
        };
        if let Some(what) = at_work.join().unwrap() {
            self.tell(format!("   beside it: {what}"));
        }
        // What was half written may have been recorded, because its name was changed.
        self.hands.borrow_mut().patch_open();
        true
    }
}

/// A user who works while another one is at it.
pub(super) struct Guest {
    /// At so many points he is not let in.
    points: u64,
    seed: u64,
    local: Arc<Local>,
    at_work: Option<JoinHandle<Option<String>>>,
}

impl Guest {
    /// The one who works is at a point: lets him in, until he is done or has to wait.
    pub(super) fn may_come(&mut self) {
        if self.points > 0 || self.at_work.is_some() {
            self.points = self.points.saturating_sub(1);
            return;
        }
        let (local, seed) = (Arc::clone(&self.local), self.seed);
        let thread = Arc::new(AtomicI32::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let (his_thread, is_done) = (Arc::clone(&thread), Arc::clone(&done));
        self.at_work = Some(std::thread::spawn(move || {
            his_thread.store(
                rustix::thread::gettid().as_raw_nonzero().get(),
                Ordering::Release,
            );
            let did = Hands::new(2).change_names(&local, seed);
            is_done.store(true, Ordering::Release);
            did
        }));
        // Whichever it is, the order of the rows has to be that of the effects.
        let end = Instant::now() + Duration::from_secs(10);
        while !done.load(Ordering::Acquire) && Instant::now() < end {
            if sleeps(thread.load(Ordering::Acquire)) {
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Whether a thread waits: nothing that is done here waits for anything but a lock.
fn sleeps(thread: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    thread != 0
        && stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" S"))
        })
}
