//! A big upload that was cut goes on where it was, also after the daemon was started again.
//!
//! What is made ready for a row's file lies under `.proxyfs/stage/<seq>-<version>`. So the mirror itself remembers
//! what it has of which version: nothing else has to be written down, and nothing can say otherwise after a
//! kill. What is not big is removed at the start of a session and sent again.
//!
//! What can go wrong, and what answers it:
//!
//! * *The file has changed since.* The version is made of the inode, its size and the time of its last write: what
//!   an upload also looks at before and after it reads. Another version is another name; what lies under the old
//!   one is removed. It is taken before the first byte is read, so if the file changes in between, the name tells a
//!   version that will never be again. (Not of ctime: a rename or a chmod changes that, and no byte.)
//! * *It changed, and its version is the same:* in the same tick of a coarse clock (kernels before 6.13), through
//!   mmap, or its time was set back. Each such write has a row of its own behind this one (J1). So a row that goes on covers
//!   no other ([`Covers`]), and that row brings it.
//! * *There is a hole in what was brought,* since requests were on their way when the line broke, on several lanes;
//!   or since one was refused, and those behind it were not (a disk that was full for a moment). A WRITE is
//!   sent only if it ends at most a *span* behind the first one that is not acknowledged ([`Span`]). So of what is there,
//!   all but the last span is without a hole. The size is set to more than what was written only when all that is
//!   acknowledged. A worker that only lost its line knows better: how far everything was acknowledged
//!   ([`Memory`]), and sends nothing of that again.
//! * *The mirror's machine fell over,* and has lost what it had acknowledged. If the file is shorter than what
//!   is known to have been there, it is sent anew. A hole that a file system makes of such bytes is not seen, as
//!   little as in files that were complete; so where `fsync` is set nothing goes on.
//! * *The server of the broken session still works* on what was in its buffers. It writes the same bytes to the same
//!   places, since the name tells the version; and it does not empty the file, since it is not opened so. What it
//!   has not opened by then is shut to it (`fence.rs`).
//! * *Another log uses the same numbers:* the inode is in the version, and the marker has told whose mirror it is.
//! * *Nobody asks for it any more:* the row is covered, or its file has changed or is gone. What is left of a row
//!   is removed when the row is made ready in another version, or done; and what belongs to none, at the start of
//!   the next session.
//!
//! *A file with several names* is written where it stands, so no name tells the version, and what it was before may lie
//! where a hole is. So there only what was acknowledged without a hole is trusted ([`Memory`]), and it is noted in the
//! journal as it grows (`journal/partial.rs`): never before its reply has come. It is noted with the row, the version and
//! the parts that are sent; of another version, or of other parts, all is sent. Between that and the next session
//! nothing older can come to those places: rows that name the file elsewhere (renames, links) are noted as done before it is
//! opened (J4), and an earlier row of its content that is done again brings the present bytes. If the file there is
//! shorter than what is known, it was changed by others, and all is sent. The row covers no other then, as above. (A server of
//! a broken session that writes late writes the same bytes here as well; those of an earlier version: see `fence.rs`.)
//!
//! Asking costs no round trip: the names come with the first one, and the LSTAT goes with the OPEN.
//!
//! [`Covers`]: super::covers::Covers

use super::plan::Place;
use super::upload::{CHUNK, Parts};
use crate::change::{NodeId, Seq, Timestamp};
use crate::sftp::Request;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// What is worth to go on, and how far an upload's requests may be apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From this size on, in bytes, a file that is half there is kept.
    pub from: u64,
    /// So far behind the first byte that is not acknowledged a WRITE may end, in bytes: more than one lane has
    /// under way at once.
    pub narrow: u64,
    /// The same of a file that may go on several lanes: more than all of them have.
    pub wide: u64,
}

impl Default for Span {
    fn default() -> Span {
        Span {
            from: 1 << 20,
            narrow: 4 << 20,
            wide: 16 << 20,
        }
    }
}

impl Span {
    /// Of a file, by whether it may go on several lanes.
    pub(super) fn of(self, wide: bool) -> u64 {
        if wide { self.wide } else { self.narrow }
    }

    /// A number for one version of a file. What it may have left on a mirror depends on the spans as well.
    pub(super) fn version(self, node: &NodeId, size: u64, mtime: Timestamp) -> u64 {
        let parts: [&[u8]; 6] = [
            &node.0,
            &size.to_le_bytes(),
            &mtime.seconds.to_le_bytes(),
            &mtime.nanoseconds.to_le_bytes(),
            &self.narrow.to_le_bytes(),
            &self.wide.to_le_bytes(),
        ];
        fnv(parts.concat().as_slice()) & VERSIONS
    }

    /// The same for a file that is written where it stands, all of it or these parts.
    pub(super) fn version_in_place(
        self,
        node: &NodeId,
        size: u64,
        mtime: Timestamp,
        parts: Option<&Parts>,
    ) -> u64 {
        let mut bytes = self.version(node, size, mtime).to_le_bytes().to_vec();
        if let Some(parts) = parts {
            let ranges = parts.ranges.iter().chain([(parts.shortest, parts.logged)]);
            bytes.extend(
                ranges.flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()].concat()),
            );
        }
        fnv(&bytes) & VERSIONS | IN_PLACE
    }
}

/// The same number for one that has also been as it is since `ctime`: see `repair/resumed.rs`.
pub(super) fn since(version: u64, ctime: Timestamp) -> u64 {
    let parts = [
        &version.to_le_bytes()[..],
        &ctime.seconds.to_le_bytes(),
        &ctime.nanoseconds.to_le_bytes(),
    ];
    fnv(parts.concat().as_slice()) & VERSIONS
}

/// Versions have 48 bits: 12 digits.
const VERSIONS: u64 = (1 << 48) - 1;
const DIGITS: usize = 12;

/// Set in the versions of files that are written where they stand: no name tells those.
const IN_PLACE: u64 = VERSIONS + 1;

/// A name in the stage: that of a file, with its version, or of a link or a repair, without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The row.
    pub seq: Seq,
    /// Which version of its file.
    pub version: Option<u64>,
}

impl Staged {
    /// None: it is no name that we give.
    pub fn parse(name: &[u8]) -> Option<Staged> {
        let name = std::str::from_utf8(name).ok()?;
        let (seq, version) = match name.split_once('-') {
            None => (name, None),
            Some((seq, version)) if version.len() == DIGITS => {
                (seq, Some(u64::from_str_radix(version, 16).ok()?))
            }
            Some(_) => return None,
        };
        let seq = seq.parse().ok()?;
        Some(Staged { seq, version })
    }

    /// Its name.
    pub fn name(self) -> String {
        match self.version {
            None => self.seq.to_string(),
            Some(version) => format!("{}-{version:0DIGITS$x}", self.seq),
        }
    }
}

/// What an earlier session has left of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Something; how much is to be seen there.
    Something,
    /// So many bytes at least, without a hole.
    Bytes(u64),
}

impl Left {
    /// From where to go on, in bytes, if `there` are on the mirror of a file of `size` bytes.
    pub fn trusted(self, there: u64, size: u64, span: u64) -> u64 {
        let trusted = match self {
            // Nobody makes it longer than it is.
            _ if there > size => 0,
            Left::Nothing => 0,
            Left::Something => there.saturating_sub(span),
            Left::Bytes(known) if known <= there => known,
            Left::Bytes(_) => 0,
        };
        trusted - trusted % CHUNK as u64
    }
}

/// How much of a row's file was acknowledged without a hole when the last session ended, in bytes.
pub type Memory = RefCell<HashMap<(Seq, u64), u64>>;

/// Whether that is about a file that is written where it stands.
pub(super) fn is_in_place(version: u64) -> bool {
    version & IN_PLACE != 0
}

/// What lies in the stage from earlier sessions, of rows that are still to be done.
#[derive(Debug, Default)]
pub struct Kept {
    rows: BTreeMap<Seq, Vec<u64>>,
}

impl Kept {
    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// It was seen there.
    pub(super) fn add(&mut self, seq: Seq, version: u64) {
        self.rows.entry(seq).or_default().push(version);
    }

    /// What is there of a version.
    pub(super) fn of(&self, staged: Staged, memory: &Memory) -> Left {
        let Some(version) = staged.version else {
            return Left::Nothing;
        };
        if !self
            .rows
            .get(&staged.seq)
            .is_some_and(|all| all.contains(&version))
        {
            return Left::Nothing;
        }
        match memory.borrow().get(&(staged.seq, version)) {
            Some(bytes) => Left::Bytes(*bytes),
            None => Left::Something,
        }
    }

    /// The removals of what is there of a row, but for the version that is used.
    pub(super) fn forget(&mut self, used: Staged, place: &Place) -> Vec<Request> {
        let Some(versions) = self.rows.remove(&used.seq) else {
            return Vec::new();
        };
        let seq = used.seq;
        let others = versions.into_iter().map(Some);
        let others = others.filter(|version| *version != used.version);
        let paths = others.map(|version| place.staged(Staged { seq, version }));
        paths.map(|path| Request::Remove { path }).collect()
    }
}

/// FNV-1a (64 bits): the same on every machine and in every version of this program.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_give_are_ours() {
        let named = |seq, version| Staged { seq, version };
        for staged in [
            named(17, None),
            named(17, Some(255)),
            named(1 << 62, Some(VERSIONS)),
        ] {
            assert_eq!(Staged::parse(staged.name().as_bytes()), Some(staged));
        }
        assert_eq!(named(17, Some(255)).name(), "17-0000000000ff");
        for other in [
            "",
            "a",
            "17-",
            "17-ff",
            "17-0000000000fg",
            "-1",
            "17-0000000000ff-1",
        ] {
            assert_eq!(Staged::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_may_have_a_hole_is_not_trusted() {
        const MIB: u64 = 1 << 20;
        let (size, span) = (200 * MIB, 16 * MIB);
        let trusted = |left: Left, there| left.trusted(there, size, span);
        assert_eq!(trusted(Left::Something, 100 * MIB), 84 * MIB);
        assert_eq!(trusted(Left::Something, 15 * MIB), 0);
        assert_eq!(trusted(Left::Something, 201 * MIB), 0, "longer than it is");
        assert_eq!(trusted(Left::Bytes(99 * MIB), 100 * MIB), 99 * MIB);
        assert_eq!(trusted(Left::Bytes(99 * MIB), 98 * MIB), 0, "it was lost");
        assert_eq!(
            trusted(Left::Bytes(MIB + 5), 100 * MIB),
            MIB,
            "by whole chunks"
        );
        assert_eq!(trusted(Left::Nothing, 100 * MIB), 0);
    }

    #[test]
    fn what_is_left_of_a_row_goes_but_for_what_is_used() {
        let (place, mut kept) = (Place::new(b"/m"), Kept::default());
        for (seq, version) in [(5, 1), (5, 2), (6, 3)] {
            kept.add(seq, version);
        }
        let memory = Memory::default();
        memory.borrow_mut().insert((5, 2), 77);
        let of = |seq, version| Staged { seq, version };
        assert_eq!(kept.of(of(5, Some(1)), &memory), Left::Something);
        assert_eq!(kept.of(of(5, Some(2)), &memory), Left::Bytes(77));
        assert_eq!(kept.of(of(5, Some(3)), &memory), Left::Nothing);
        let path = b"/m/.proxyfs/stage/5-000000000001".to_vec();
        let removed = kept.forget(of(5, Some(2)), &place);
        assert_eq!(removed, [Request::Remove { path }]);
        assert_eq!(kept.forget(of(5, None), &place), []);
        assert_eq!(kept.forget(of(6, None), &place).len(), 1);
    }

    #[test]
    fn versions_are_the_same_tomorrow() {
        // The test vectors of the authors of FNV.
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
        let mtime = |seconds, nanoseconds| Timestamp {
            seconds,
            nanoseconds,
        };
        let (node, span) = (NodeId((*b"node").into()), Span::default());
        let first = span.version(&node, 1, mtime(2, 3));
        for other in [
            span.version(&NodeId((*b"nodf").into()), 1, mtime(2, 3)),
            span.version(&node, 2, mtime(2, 3)),
            span.version(&node, 1, mtime(3, 3)),
            span.version(&node, 1, mtime(2, 4)),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(first, span.version(&node, 1, mtime(2, 3)));
    }
}
