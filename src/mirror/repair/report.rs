//! What a slice of a repair is given, and what comes of it.

use super::files::{self, File};
use super::listing::Listings;
use super::*;

/// The numbers under which files are made ready here are above this one: far above those of changes.
pub(super) const NUMBERS: Seq = 1 << 62;

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
    /// What an earlier session has left of a file that is made ready by this name.
    pub left: &'a dyn Fn(Staged) -> Left,
    /// Whether a path, and what is below it, is left alone.
    pub spares: &'a dyn Fn(&RelPath) -> bool,
    /// Whether the bytes of a file below are in doubt, and whether it is to be sent whatever it looks like; none: nothing
    /// is known of it.
    pub resends: &'a dyn Fn(&RelPath) -> Option<(bool, bool)>,
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
    pub walked: Option<Reached>,
    /// What was below it has been moved to this path.
    pub moved: Option<RelPath>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is like the source, but for what was refused, or has grown.
    Done,
    /// The walk has come to here.
    Upto(Reached),
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

/// What goes on from one slice of a session to the next.
pub struct Carry {
    /// The last number that a file was made ready under.
    pub(super) number: Seq,
    /// The last number of a directory that was read.
    pub(super) next_id: u64,
    /// Files with several names that are there: inode, a name, and how many are still to come.
    pub(super) linked: HashMap<u64, (RelPath, u64)>,
    /// The long directory that was being read.
    pub(super) long: Option<(RelPath, u64)>,
    pub(super) listings: Listings,
    /// How much may be under way on a lane, in bytes.
    pub(super) room: usize,
    /// Big files that are half sent.
    pub(super) paused: Vec<(Seq, File)>,
    /// Versions of files that were begun in this session.
    pub(super) versions: HashSet<u64>,
}

impl Default for Carry {
    fn default() -> Carry {
        Carry {
            number: NUMBERS,
            next_id: 0,
            linked: HashMap::new(),
            long: None,
            listings: Listings::default(),
            room: FIRST,
            paused: Vec::new(),
            versions: HashSet::new(),
        }
    }
}

impl Carry {
    /// Nothing is to be repaired any more: what is open there is closed.
    pub fn end<R: Remote>(&mut self, place: &Place, remote: &mut R) {
        (self.long, self.room) = (None, FIRST);
        self.listings.drop_all_but(None, remote);
        for (_, file) in std::mem::take(&mut self.paused) {
            files::discard(file, place, remote);
        }
    }
}

/// What came of a slice.
#[derive(Default)]
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
    /// Big files that are half sent: to be repaired again.
    pub unfinished: Vec<RelPath>,
    /// Files of which it is not known yet whether the bytes are the same: to be repaired again.
    pub unsure: Vec<RelPath>,
    /// For the next slice.
    pub carry: Carry,
}
