//! Open files, and what of them the log does not know yet.
//!
//! A close() is answered when the bytes written before it are in the log (J1). The danger is a byte
//! that is written between "which bytes are unlogged?" and "they are logged now". So a write marks its
//! bytes *after* they are in the file: whoever logs in between finds the old marks only, and the new
//! ones stay for the next time. And marks are looked at, recorded and cleared with the file's lock held:
//! a second close() waits until the record that covers its bytes is there.
//!
//! A checkpoint (J5) must know since when bytes are unlogged: the time is noted *before* the write.
//!
//! Order of locks: a file's own is taken after the tree's, and before that of the log. The table of
//! files is locked for moments; a file's lock inside it only where no writer can hold it up.

use super::numbered::Numbered;
use super::search::LastFound;
use super::sync::{lock, read, write};
use super::sys::{Result, Stat};
use super::unseen::Watch;
use crate::change::{ByteRanges, Extent, NodeId, Timestamp};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// How many writers of a file are told apart. Of more, each close() makes a record.
const MAX_WRITERS: usize = 8;

/// What of a file the log does not know yet.
#[derive(Debug, Default)]
pub struct Dirty {
    /// The log does not know the file at all.
    new: bool,
    /// It was cut to nothing.
    emptied: bool,
    /// Its size may have changed without a byte being written.
    resized: bool,
    /// What was written.
    ranges: ByteRanges,
    /// Something was written, and nobody knows where.
    unseen: bool,
    /// It has just been made, and got no attributes that the kernel asks for before the first write.
    plain: bool,
    /// While somebody may write unseen.
    watch: Option<Watch>,
    /// The shortest that it was. Behind that, a hole made later replaces old bytes.
    cut_at: Option<u64>,
    /// Writes that have begun and not marked their bytes yet.
    under_way: u32,
    /// Since when there may be something unlogged.
    since: Option<(Instant, SystemTime)>,
    /// The last write.
    last: Option<Instant>,
    /// A record of it failed: its close() has been answered, it is due at once.
    overdue: bool,
    /// A close() was answered without a record, since nothing was written yet.
    put_off: bool,
    /// Threads that wrote what is unlogged, or made the file; at most [`MAX_WRITERS`] and one more.
    writers: Vec<u32>,
    /// It has no name any more and never will: nothing of it is recorded.
    buried: bool,
}

impl Dirty {
    /// Whether there is something to log.
    pub fn is_dirty(&self) -> bool {
        self.new || self.emptied || self.resized || self.unseen || !self.ranges.is_empty()
    }

    /// Finds out whether something was written unseen.
    pub fn look(&mut self) {
        if let Some(before) = self.watch.as_mut().and_then(Watch::look)
            && !self.buried
        {
            self.unseen = true;
            self.since.get_or_insert(before);
            self.last = Some(Instant::now());
        }
    }

    /// From here on one descriptor more may write unseen. `watch`: if it is the first one.
    pub fn watch(&mut self, watch: impl FnOnce() -> Watch, mappable: bool) {
        self.watch.get_or_insert_with(watch).add(mappable);
    }

    /// One descriptor less may write unseen. To be called after a look.
    pub fn unwatch(&mut self, mappable: bool) {
        if self.watch.as_mut().is_some_and(|w| w.remove(mappable)) {
            self.watch = None;
        }
    }

    /// After a look and before a record: what is stored in a mapped page from here on shows at the next look.
    pub fn protect(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.protect();
        }
    }

    /// A watched file, and what it was at the last look.
    pub fn looked_at(&self) -> Option<(&OwnedFd, Stat)> {
        self.watch.as_ref().and_then(Watch::looked_at)
    }

    /// A request has set the time of the last change. To be called after a look.
    pub fn time_was_set(&mut self, mtime: Timestamp) {
        if let Some(watch) = &mut self.watch {
            watch.time_was_set(mtime);
        }
    }

    /// Whether the log does not know the file at all.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Whether the file is new or emptied, and nothing was written to it since: whoever made it is most
    /// likely about to write (a shell makes the file, and closes a copy of its descriptor, before the
    /// command starts), and an empty file in its place would be a half-written one (P4).
    pub fn awaits_its_bytes(&self) -> bool {
        self.is_whole() && !self.resized && !self.unseen && self.ranges.is_empty()
    }

    /// The file has just been made, by this thread.
    pub fn made(&mut self, thread: u32) {
        self.begin();
        self.new = true;
        self.plain = true;
        self.written_by(thread);
        self.end();
    }

    /// Whether it has certainly no extended attributes that somebody has set.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// An extended attribute is about to be set.
    pub fn not_plain(&mut self) {
        self.plain = false;
    }

    /// This thread has written.
    pub fn written_by(&mut self, thread: u32) {
        if self.writers.len() <= MAX_WRITERS && !self.writers.contains(&thread) {
            self.writers.push(thread);
        }
    }

    /// Whether this thread closes a copy of a descriptor by which its process has written nothing that
    /// is unlogged: `is_another` says of a writer and this thread that they are of two processes.
    pub fn is_no_writer(&self, thread: u32, is_another: impl Fn(u32, u32) -> bool) -> bool {
        !self.writers.is_empty()
            && self.writers.len() <= MAX_WRITERS
            && !self.writers.contains(&thread)
            && self
                .writers
                .iter()
                .all(|writer| is_another(*writer, thread))
    }

    /// A write begins.
    pub fn begin(&mut self) {
        let now = Instant::now();
        self.under_way += 1;
        self.since.get_or_insert_with(|| (now, SystemTime::now()));
        self.last = Some(now);
    }

    /// A write has ended, and its bytes have been marked.
    pub fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.buried {
            self.forget_marks();
        } else if self.under_way == 0 && !self.is_dirty() {
            self.since = None;
        }
    }

    /// The bytes from `start` to before `end` are in the file.
    pub fn wrote(&mut self, start: u64, end: u64) {
        self.ranges.insert(start, end);
        self.filled_up_to(end);
    }

    /// The file has got longer, up to `end`, by a write or without one. A hole is not sent (it is the
    /// mirror's as soon as the size is), unless it lies where the mirror still has bytes.
    ///
    /// Also to be told before a record is made, with the size in the record: what made the file longer
    /// may not have come to its mark yet, and would not find where the file was cut after it.
    pub fn filled_up_to(&mut self, end: u64) {
        if let Some(cut) = self.cut_at
            && cut < end
        {
            self.ranges.insert(cut, end);
        }
    }

    /// The size was set from `old` to `new`, or found to be.
    pub fn resized(&mut self, old: u64, new: u64) {
        if new == 0 {
            self.emptied = true;
            self.resized = false;
            self.ranges = ByteRanges::new();
            return;
        }
        self.resized = true;
        self.ranges.truncate(new);
        if new < old {
            self.cut_at = Some(self.cut_at.map_or(new, |cut| cut.min(new)));
        }
        self.filled_up_to(new);
    }

    /// Whether it is written from its beginning: it is new, or was emptied.
    pub fn is_whole(&self) -> bool {
        self.new || self.emptied
    }

    /// Whether a write has begun and not ended.
    pub fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// What to record. A file that is new or was emptied is recorded whole, and one that was written to
    /// unseen.
    pub fn extent(&self) -> Extent {
        if self.is_whole() || self.unseen {
            Extent::Whole
        } else {
            Extent::Ranges(self.ranges.clone())
        }
    }

    /// It is in the log.
    pub fn logged(&mut self) {
        self.forget_marks();
        // What is still being written started before now.
        if self.under_way == 0 {
            self.since = None;
        }
    }

    fn forget_marks(&mut self) {
        *self = Dirty {
            under_way: self.under_way,
            since: self.since,
            last: self.last,
            buried: self.buried,
            watch: self.watch.take(),
            ..Dirty::default()
        };
        if self.buried {
            self.since = None;
        }
    }

    /// It could not be recorded.
    pub fn failed(&mut self) {
        self.overdue = true;
    }

    /// Its close() is answered without a record.
    pub fn put_off(&mut self) {
        self.put_off = true;
    }

    /// Its last name is gone.
    pub fn bury(&mut self) {
        self.buried = true;
        self.forget_marks();
    }

    /// Whether it is to be logged although nobody closes it.
    fn is_due(&self, now: Instant, after: Duration, max: Duration) -> bool {
        let waited = |t: Option<Instant>| t.map_or(Duration::ZERO, |t| now.duration_since(t));
        self.is_dirty()
            && (self.overdue
                || waited(self.since.map(|s| s.0)) >= max
                || (waited(self.last) >= after && !self.awaits_its_bytes()))
    }
}

/// A file that someone may write to, or that has bytes the log does not know.
pub struct FileState {
    /// Its node.
    pub node: u64,
    /// Its identity, once it was needed.
    id: OnceLock<NodeId>,
    /// Its path, when it had to be searched for.
    pub found: LastFound,
    /// How many handles may write; changed with the table locked.
    writers: AtomicU64,
    dirty: Mutex<Dirty>,
}

impl FileState {
    /// Whether anybody has it open to write. Who is about to empty it is counted before.
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// Its identity, asked for once.
    pub fn node_id(&self, ask: impl FnOnce() -> Result<NodeId>) -> Result<NodeId> {
        match self.id.get() {
            Some(id) => Ok(id.clone()),
            None => {
                let id = ask()?;
                Ok(self.id.get_or_init(|| id).clone())
            }
        }
    }

    /// The file's own lock.
    pub fn lock(&self) -> MutexGuard<'_, Dirty> {
        lock(&self.dirty)
    }
}

/// An open file.
pub struct Handle {
    /// The daemon's descriptor: never O_APPEND (the kernel says where to write), never O_DIRECT (its
    /// buffers are not aligned).
    pub fd: Arc<OwnedFd>,
    /// For one that may write, or that has made the file.
    pub state: Option<Arc<FileState>>,
    /// What it may do to the file.
    pub access: Access,
    /// It may do so unseen.
    pub unseen: AtomicBool,
}

/// What a descriptor may do to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write to it.
    Write,
    /// Write to it, and map it.
    ReadAndWrite,
    /// Write to it; the file has just been made, so its writes may be left unseen.
    WriteNew,
}

impl Handle {
    /// The state of one that may write.
    ///
    /// # Errors
    /// EBADF: opened for reading only.
    pub fn writer(&self) -> Result<&FileState> {
        self.state.as_deref().ok_or(Errno::BADF)
    }
}

/// All open files. Handles have numbers, never used twice.
#[derive(Default)]
pub struct OpenFiles {
    files: Mutex<Numbered<Arc<FileState>>>,
    handles: RwLock<Numbered<Arc<Handle>>>,
    last: AtomicU64,
}

/// Which unlogged files are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Those that could not be recorded.
    Overdue,
    /// Those whose close() was answered already.
    Closed,
    /// Those whose time has come.
    Due {
        /// Now.
        now: Instant,
        /// How long after the last write.
        after: Duration,
        /// How long after the first unlogged write at most.
        max: Duration,
    },
}

impl OpenFiles {
    /// One writer more. It must be given back with [`OpenFiles::remove_writer`].
    pub fn add_writer(&self, node: u64) -> Arc<FileState> {
        let mut files = lock(&self.files);
        let state = files.entry(node).or_insert_with(|| {
            Arc::new(FileState {
                node,
                id: OnceLock::new(),
                found: LastFound::default(),
                writers: AtomicU64::new(0),
                dirty: Mutex::default(),
            })
        });
        state.writers.fetch_add(1, Ordering::AcqRel);
        state.clone()
    }

    /// One writer less. To be followed by [`OpenFiles::forget_if_clean`].
    pub fn remove_writer(&self, state: &FileState) {
        let _files = lock(&self.files);
        state.writers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Forgets a file that nobody writes to and that is logged. True if it is not (any more) here.
    pub fn forget_if_clean(&self, node: u64) -> bool {
        let mut files = lock(&self.files);
        let clean = files
            .get(&node)
            .is_some_and(|state| !state.has_writers() && !state.lock().is_dirty());
        if clean {
            files.remove(&node);
        }
        !files.contains_key(&node)
    }

    /// The state of a file that is open for writing or unlogged.
    pub fn state(&self, node: u64) -> Option<Arc<FileState>> {
        lock(&self.files).get(&node).cloned()
    }

    /// Whether the log does not know the file at all.
    pub fn is_new(&self, node: u64) -> bool {
        self.state(node).is_some_and(|state| state.lock().is_new())
    }

    /// The file's last name is gone.
    pub fn bury(&self, node: u64) {
        if let Some(state) = self.state(node) {
            state.lock().bury();
            self.forget_if_clean(node);
        }
    }

    /// The unlogged files that are meant.
    pub fn unlogged(&self, which: Which) -> Vec<Arc<FileState>> {
        let states: Vec<_> = lock(&self.files).values().cloned().collect();
        let meant = |state: &Arc<FileState>| {
            let mut dirty = state.lock();
            dirty.look();
            dirty.is_dirty()
                && match which {
                    Which::All => true,
                    Which::Overdue => dirty.overdue,
                    Which::Closed => dirty.overdue || dirty.put_off && dirty.awaits_its_bytes(),
                    Which::Due { now, after, max } => dirty.is_due(now, after, max),
                }
        };
        states.into_iter().filter(meant).collect()
    }

    /// The files of which something is unlogged, or may be at any moment without anybody being told; and since
    /// when the oldest of it is.
    pub fn unlogged_nodes(&self) -> (Vec<u64>, Option<SystemTime>) {
        let states: Vec<_> = lock(&self.files).values().cloned().collect();
        let mut since = None;
        let unlogged = |state: &Arc<FileState>| {
            let mut dirty = state.lock();
            dirty.look();
            let looked = dirty.watch.as_ref().map(|watch| watch.last_look().1);
            let first = dirty.since.map(|s| s.1).into_iter().chain(looked).min();
            since = since.into_iter().chain(first).min();
            (dirty.is_dirty() || first.is_some()).then_some(state.node)
        };
        (states.iter().filter_map(unlogged).collect(), since)
    }

    /// Keeps a handle, and gives it its number.
    pub fn open(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        write(&self.handles).insert(number, Arc::new(handle));
        number
    }

    /// The handle of a number.
    ///
    /// # Errors
    /// EBADF: there is none.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>> {
        read(&self.handles).get(&number).cloned().ok_or(Errno::BADF)
    }

    /// Takes a handle out.
    pub fn close(&self, number: u64) -> Option<Arc<Handle>> {
        write(&self.handles).remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(parts: &[(u64, u64)]) -> Extent {
        Extent::Ranges(parts.iter().copied().collect())
    }

    #[test]
    fn a_byte_written_while_a_record_is_made_stays_dirty() {
        let mut dirty = Dirty::default();
        dirty.begin();
        dirty.wrote(0, 4);
        dirty.begin();
        dirty.end();
        assert_eq!(dirty.extent(), ranges(&[(0, 4)]));
        // The second write's bytes are in the file, and not marked yet.
        dirty.logged();
        assert!(!dirty.is_dirty());
        assert!(
            dirty.since.is_some(),
            "a checkpoint must see the write that is under way"
        );
        dirty.wrote(4, 8);
        dirty.end();
        assert_eq!(dirty.extent(), ranges(&[(4, 8)]));
        dirty.logged();
        assert!(dirty.since.is_none());
    }

    #[test]
    fn a_hole_is_only_its_size_unless_old_bytes_lay_there() {
        let mut grown = Dirty::default();
        grown.resized(100, 1000);
        assert!(grown.is_dirty());
        assert_eq!(grown.extent(), ranges(&[]));

        let mut cut_and_grown = Dirty::default();
        cut_and_grown.resized(100, 50);
        assert_eq!(cut_and_grown.extent(), ranges(&[]));
        cut_and_grown.resized(50, 200);
        assert_eq!(cut_and_grown.extent(), ranges(&[(50, 200)]));

        let mut cut_and_written_behind = Dirty::default();
        cut_and_written_behind.resized(100, 50);
        cut_and_written_behind.wrote(80, 90);
        assert_eq!(cut_and_written_behind.extent(), ranges(&[(50, 90)]));
    }

    #[test]
    fn a_record_made_before_the_mark_of_a_hole_has_its_bytes() {
        let mut dirty = Dirty::default();
        dirty.resized(3000, 100);
        dirty.begin();
        // Here the file gets 2000 bytes long, and is logged before that is marked.
        dirty.filled_up_to(2000);
        assert_eq!(dirty.extent(), ranges(&[(100, 2000)]));
        dirty.logged();
        dirty.resized(100, 2000);
        dirty.end();
        assert_eq!(dirty.extent(), ranges(&[]));
    }

    #[test]
    fn who_has_written_is_told_from_who_closes_a_copy() {
        let another = |_: u32, thread: u32| thread >= 100;
        let mut dirty = Dirty::default();
        assert!(!dirty.is_no_writer(100, another), "nobody knows who wrote");
        dirty.written_by(1);
        dirty.written_by(200);
        assert!(!dirty.is_no_writer(1, another));
        assert!(!dirty.is_no_writer(2, another));
        assert!(!dirty.is_no_writer(200, another));
        assert!(dirty.is_no_writer(100, another));
        for thread in 1..20 {
            dirty.written_by(thread);
        }
        assert!(
            !dirty.is_no_writer(100, another),
            "too many to be told apart"
        );
    }

    #[test]
    fn a_cut_takes_back_what_was_written_behind_it() {
        let mut dirty = Dirty::default();
        dirty.wrote(10, 100);
        dirty.resized(100, 20);
        assert_eq!(dirty.extent(), ranges(&[(10, 20)]));
        dirty.resized(20, 0);
        assert_eq!(dirty.extent(), Extent::Whole);
    }

    #[test]
    fn an_open_file_is_due_after_a_pause_and_at_the_latest_after_the_maximum() {
        let (after, max) = (Duration::from_secs(5), Duration::from_secs(600));
        let mut dirty = Dirty::default();
        let start = Instant::now();
        dirty.begin();
        dirty.wrote(0, 1);
        dirty.end();
        assert!(!dirty.is_due(start + Duration::from_secs(4), after, max));
        assert!(dirty.is_due(start + Duration::from_secs(6), after, max));
        dirty.last = Some(start + Duration::from_secs(598));
        assert!(!dirty.is_due(start + Duration::from_secs(599), after, max));
        assert!(dirty.is_due(start + Duration::from_secs(601), after, max));
    }

    #[test]
    fn an_empty_new_file_waits_for_its_bytes_up_to_the_maximum() {
        let (after, max) = (Duration::from_secs(5), Duration::from_secs(600));
        let mut dirty = Dirty::default();
        dirty.made(1);
        assert!(dirty.awaits_its_bytes());
        assert!(!dirty.is_due(Instant::now() + Duration::from_secs(60), after, max));
        assert!(dirty.is_due(Instant::now() + Duration::from_secs(601), after, max));
    }

    #[test]
    fn a_buried_file_is_never_dirty_again() {
        let files = OpenFiles::default();
        let state = files.add_writer(7);
        state.lock().made(1);
        files.bury(7);
        {
            let mut dirty = state.lock();
            dirty.begin();
            dirty.wrote(0, 5);
            dirty.end();
            assert!(!dirty.is_dirty());
        }
        assert_eq!(files.unlogged_nodes(), (Vec::new(), None));
        files.remove_writer(&state);
        assert!(files.forget_if_clean(7));
    }

    #[test]
    fn a_file_with_unlogged_bytes_is_remembered_without_writers() {
        let files = OpenFiles::default();
        let state = files.add_writer(7);
        state.lock().made(1);
        files.remove_writer(&state);
        assert!(!files.forget_if_clean(7));
        assert_eq!(files.unlogged(Which::All).len(), 1);
        files.state(7).unwrap().lock().logged();
        assert!(files.forget_if_clean(7));
        assert!(files.state(7).is_none());
    }
}
