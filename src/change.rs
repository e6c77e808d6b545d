//! What the product does, as data: every change that ProxyFS records and replays is one [`Change`].
//!
//! The file system side makes values of this type, the journal keeps them, the mirror side carries
//! them out. Matches on [`Change`] have no `_` arm: a new kind makes the compiler list the places
//! that have to learn it.
//!
//! No file data is kept here. A [`Change::Content`] says *which inode's* bytes changed
//! ([`NodeId`]), and they are read when they are sent. So the content on a mirror is never older
//! than its place in the log.

mod scope;

pub use scope::{Depth, Scope};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Position of a change in the log: 1 is the first, each next one is one more, none is left out.
/// 0 stands for "before the first".
pub type Seq = u64;

/// A path below the source's root, as bytes: parts joined by `/`, never absolute, no `.` or `..`,
/// no empty part, no NUL. The root itself is the empty path.
///
/// Not bounded by PATH_MAX (4096): deep trees have longer ones.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RelPath(Box<[u8]>);

/// Why bytes are no [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathError {
    /// The path starts with `/`.
    Absolute,
    /// A part is empty, `.` or `..`.
    BadPart,
    /// The path holds a NUL byte.
    Nul,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathError::Absolute => "the path is absolute",
            PathError::BadPart => "a part of the path is empty, \".\" or \"..\"",
            PathError::Nul => "the path holds a NUL byte",
        })
    }
}

impl std::error::Error for PathError {}

impl RelPath {
    /// The root of the source.
    pub fn root() -> RelPath {
        RelPath::default()
    }

    /// Checks `bytes` and makes a path of them; the empty string is the root.
    pub fn new(bytes: &[u8]) -> Result<RelPath, PathError> {
        if bytes.is_empty() {
            return Ok(RelPath::root());
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        for part in bytes.split(|b| *b == b'/') {
            if part.is_empty() || part == b"." || part == b".." {
                return Err(PathError::BadPart);
            }
        }
        Ok(RelPath(bytes.into()))
    }

    /// The path of the entry `name` in this directory. `name` is one part: no `/`, not empty, not
    /// `.` or `..`.
    pub fn join(&self, name: &[u8]) -> Result<RelPath, PathError> {
        if name.contains(&b'/') {
            return Err(PathError::BadPart);
        }
        let entry = RelPath::new(name)?;
        if entry.is_root() {
            return Err(PathError::BadPart);
        }
        if self.is_root() {
            return Ok(entry);
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Ok(RelPath(bytes.into()))
    }

    /// Whether this is the root of the source.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds this entry; none for the root.
    pub fn parent(&self) -> Option<RelPath> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(RelPath(self.0[..end].into()))
    }

    /// The last part; empty for the root.
    pub fn name(&self) -> &[u8] {
        let start = self.0.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        &self.0[start..]
    }

    /// The bytes, without a leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the standard library has it, still relative. Empty for the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The directories above this entry, the nearest first, the root last. None for the root.
    pub fn ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let mut end = Some(self.0.len()).filter(|n| *n > 0);
        std::iter::from_fn(move || {
            let cut = self.0[..end?].iter().rposition(|b| *b == b'/');
            let len = cut.unwrap_or(0);
            end = Some(len).filter(|n| *n > 0);
            Some(&self.0[..len])
        })
    }

    /// Whether this is `other` or lies below it.
    pub fn is_at_or_below(&self, other: &RelPath) -> bool {
        other.is_root()
            || self.0.starts_with(&other.0)
                && matches!(self.0.get(other.0.len()), None | Some(b'/'))
    }

    /// Where this is when `from`, which it is or lies below, has become `to`; none: it is not concerned.
    pub fn moved(&self, from: &RelPath, to: &RelPath) -> Option<RelPath> {
        if !self.is_at_or_below(from) {
            return None;
        }
        let rest = &self.0[from.0.len()..];
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        if rest.is_empty() {
            return Some(to.clone());
        }
        if to.is_root() {
            return Some(RelPath(rest.into()));
        }
        Some(RelPath([&to.0[..], b"/", rest].concat().into()))
    }

    /// Whether one of the two paths is the other or lies below it.
    pub fn is_related(&self, other: &RelPath) -> bool {
        self.is_at_or_below(other) || other.is_at_or_below(self)
    }
}

impl fmt::Display for RelPath {
    /// For people: bytes that are not UTF-8, and control characters, are shown as `\x1b`; the root
    /// as `/`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str("/");
        }
        fmt_bytes(&self.0, f)
    }
}

/// Writes bytes of a name for people: printable UTF-8 as it is, everything else as `\x1b`.
fn fmt_bytes(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        for b in chunk.invalid() {
            write!(f, "\\x{b:02x}")?;
        }
    }
    Ok(())
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which inode: the kernel's file handle of it (`name_to_handle_at(2)`), as the four bytes of its
/// type, little endian, and then its bytes. At most 4 + 128 (MAX_HANDLE_SZ).
///
/// It survives renames, the removal of other names and restarts, and is never given to another
/// inode; `open_by_handle_at(2)` opens exactly that inode, or says ESTALE when it is gone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub Box<[u8]>);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// How many ranges [`ByteRanges`] keeps at most. More are merged, the nearest ones first: a log
/// record stays small, and a few bytes more travel.
pub const MAX_RANGES: usize = 64;

/// Parts of a file that changed: sorted, disjoint, not touching, `[start, end)` in bytes, at most
/// [`MAX_RANGES`] of them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ByteRanges(Vec<(u64, u64)>);

impl ByteRanges {
    /// No range.
    pub fn new() -> ByteRanges {
        ByteRanges::default()
    }

    /// Adds the bytes from `start` to before `end`; nothing where `end <= start`.
    pub fn insert(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        let first = self.0.partition_point(|r| r.1 < start);
        let last = self.0.partition_point(|r| r.0 <= end);
        let (mut from, mut to) = (start, end);
        if first < last {
            from = from.min(self.0[first].0);
            to = to.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(from, to)]);
        if self.0.len() > MAX_RANGES {
            self.merge_nearest();
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &ByteRanges) {
        for (start, end) in other.iter() {
            self.insert(start, end);
        }
    }

    /// Forgets everything at or behind `size`: the file has been cut there.
    pub fn truncate(&mut self, size: u64) {
        self.0.retain_mut(|r| {
            r.1 = r.1.min(size);
            r.0 < r.1
        });
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many bytes the ranges hold together.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|r| r.1 - r.0).sum()
    }

    fn merge_nearest(&mut self) {
        let gaps = self.0.windows(2).map(|w| w[1].0 - w[0].1);
        if let Some((i, _)) = gaps.enumerate().min_by_key(|g| g.1) {
            self.0[i].1 = self.0[i + 1].1;
            self.0.remove(i + 1);
        }
    }
}

impl FromIterator<(u64, u64)> for ByteRanges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(ranges: I) -> ByteRanges {
        let mut all = ByteRanges::new();
        for (start, end) in ranges {
            all.insert(start, end);
        }
        all
    }
}

/// How much of a file a [`Change::Content`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it: a new file, or one cut to nothing and written anew.
    Whole,
    /// These bytes, and the size (a file that was cut has no range behind it).
    Ranges(ByteRanges),
}

/// A point in time as the source's file system has it: seconds since 1970 and nanoseconds. Mirrors
/// get the seconds (SFTP v3 has no more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 UTC; negative before.
    pub seconds: i64,
    /// 0 to 999,999,999, counted forwards also before 1970.
    pub nanoseconds: u32,
}

/// Numeric owner and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// When a file was read and written last. SFTP v3 sets both or none, so both are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
}

/// One change to the source, in the words of the source: paths are as they were at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A directory was made.
    Mkdir {
        /// Where.
        path: RelPath,
        /// Permission bits (07777), as the source has them after umask and setgid directories.
        mode: u32,
        /// Owner and group it got.
        owner: Owner,
    },
    /// An empty directory was removed.
    Rmdir {
        /// Which.
        path: RelPath,
    },
    /// A name of a file (or symlink) was removed.
    Unlink {
        /// Which.
        path: RelPath,
    },
    /// A symbolic link was made.
    Symlink {
        /// Where.
        path: RelPath,
        /// What it points to, as it was given: any bytes.
        target: Box<[u8]>,
        /// Owner and group it got.
        owner: Owner,
        /// Its times.
        times: Times,
    },
    /// A file got one more name.
    Link {
        /// A name it had.
        from: RelPath,
        /// The new name.
        path: RelPath,
    },
    /// A file or directory was moved; what was at `to` is gone.
    Rename {
        /// Its old path.
        from: RelPath,
        /// Its new path.
        to: RelPath,
    },
    /// Two entries changed places (RENAME_EXCHANGE).
    Exchange {
        /// The one.
        a: RelPath,
        /// The other.
        b: RelPath,
    },
    /// Bytes of a file changed, or it is new. Its mode, owner and times travel with it.
    Content {
        /// A path of the file at that moment.
        path: RelPath,
        /// The inode that holds the bytes.
        node: NodeId,
        /// Which bytes.
        extent: Extent,
        /// How long the file was then, in bytes.
        size: u64,
        /// Whether it had further names then: those must show the new bytes too, so a mirror
        /// updates such a file in place.
        linked: bool,
    },
    /// Mode, owner or times were set. Values are exact; what is none was not touched.
    Attr {
        /// Of what.
        path: RelPath,
        /// Whether it is a symbolic link: its own attributes are meant, not its target's.
        symlink: bool,
        /// Permission bits (07777).
        mode: Option<u32>,
        /// Owner and group.
        owner: Option<Owner>,
        /// Access and modification time.
        times: Option<Times>,
    },
    /// Something is to be made like the source, whatever it is there and whatever happened to it here: what the
    /// log has not seen, or a mirror may have lost.
    Repair {
        /// What; the root too.
        path: RelPath,
        /// How much of it.
        scope: Scope,
    },
}

impl Change {
    /// The path the change is about; for a move or an exchange the first of the two.
    pub fn path(&self) -> &RelPath {
        match self {
            Change::Mkdir { path, .. }
            | Change::Rmdir { path }
            | Change::Unlink { path }
            | Change::Symlink { path, .. }
            | Change::Content { path, .. }
            | Change::Attr { path, .. }
            | Change::Repair { path, .. } => path,
            Change::Link { from, .. } | Change::Rename { from, .. } => from,
            Change::Exchange { a, .. } => a,
        }
    }

    /// The second path of a change that has two.
    pub fn second_path(&self) -> Option<&RelPath> {
        match self {
            Change::Link { path, .. } => Some(path),
            Change::Rename { to, .. } => Some(to),
            Change::Exchange { b, .. } => Some(b),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => None,
        }
    }

    /// One or two paths.
    pub fn paths(&self) -> impl Iterator<Item = &RelPath> {
        std::iter::once(self.path()).chain(self.second_path())
    }

    /// The inode whose bytes it is about; none: it is about no bytes.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Change::Content { node, .. } => Some(node),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => None,
        }
    }

    /// Whether what it does depends on what it finds (a move, a link, an exchange), so that it must
    /// not be done twice: rule J4.
    pub fn is_pivot(&self) -> bool {
        match self {
            Change::Link { .. } | Change::Rename { .. } | Change::Exchange { .. } => true,
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => false,
        }
    }

    /// How many bytes of file data the change stands for, at most. For progress, not for limits.
    pub fn bytes(&self) -> u64 {
        match self {
            Change::Content {
                extent: Extent::Whole,
                size,
                ..
            } => *size,
            Change::Content {
                extent: Extent::Ranges(ranges),
                ..
            } => ranges.bytes(),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => 0,
        }
    }

    /// The kind in one word, as `tasks` shows it.
    pub fn verb(&self) -> &'static str {
        match self {
            Change::Mkdir { .. } => "mkdir",
            Change::Rmdir { .. } => "rmdir",
            Change::Unlink { .. } => "unlink",
            Change::Symlink { .. } => "symlink",
            Change::Link { .. } => "link",
            Change::Rename { .. } => "rename",
            Change::Exchange { .. } => "exchange",
            Change::Content { .. } => "content",
            Change::Attr { .. } => "attr",
            Change::Repair { .. } => "repair",
        }
    }
}

impl fmt::Display for Change {
    /// One line for people: `rename a -> b`, `content www/index.html`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Link { from: a, path: b } | Change::Rename { from: a, to: b } => {
                write!(f, "{} {a} -> {b}", self.verb())
            }
            Change::Exchange { a, b } => write!(f, "exchange {a} <-> {b}"),
            Change::Mkdir { path, .. }
            | Change::Rmdir { path }
            | Change::Unlink { path }
            | Change::Symlink { path, .. }
            | Change::Content { path, .. }
            | Change::Attr { path, .. }
            | Change::Repair { path, .. } => write!(f, "{} {path}", self.verb()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn a_path_that_leads_out_of_the_source_is_refused() {
        assert_eq!(RelPath::new(b"/etc/passwd"), Err(PathError::Absolute));
        for bad in ["..", "a/..", "../a", "a/../b", ".", "a//b", "a/", "./a"] {
            assert_eq!(
                RelPath::new(bad.as_bytes()),
                Err(PathError::BadPart),
                "{bad}"
            );
        }
        assert_eq!(RelPath::new(b"a\0b"), Err(PathError::Nul));
        assert_eq!(path("a").join(b".."), Err(PathError::BadPart));
        assert_eq!(path("a").join(b"b/c"), Err(PathError::BadPart));
        assert_eq!(path("a").join(b""), Err(PathError::BadPart));
        assert!(RelPath::new(b"...").is_ok());
    }

    #[test]
    fn parents_and_names() {
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
        assert_eq!(path("a/b").name(), b"b");
        assert_eq!(RelPath::root().name(), b"");
        let above: Vec<&[u8]> = path("a/b/c")
            .ancestors()
            .map(|a| a.to_vec().leak() as &[u8])
            .collect();
        assert_eq!(above, [&b"a/b"[..], b"a", b""]);
        assert_eq!(RelPath::root().ancestors().count(), 0);
    }

    #[test]
    fn related_paths_share_a_line_of_descent() {
        assert!(path("a/b").is_related(&path("a")));
        assert!(path("a").is_related(&path("a/b")));
        assert!(path("a").is_related(&RelPath::root()));
        assert!(!path("ab").is_related(&path("a")));
        assert!(!path("a/b").is_related(&path("a/c")));
    }

    #[test]
    fn odd_names_are_shown_without_harm_to_a_terminal() {
        let odd = RelPath::new(b"a\x1b[31m/\xff").unwrap();
        assert_eq!(odd.to_string(), "a\\u{1b}[31m/\\xff");
    }

    proptest! {
        /// Against a naive set of bytes: same bytes as long as nothing had to be merged.
        #[test]
        fn ranges_equal_a_set_of_bytes(parts in prop::collection::vec((0u64..200, 0u64..40), 0..30), cut in 0u64..240) {
            let mut ranges = ByteRanges::new();
            let mut set = std::collections::BTreeSet::new();
            for (start, len) in &parts {
                ranges.insert(*start, start + len);
                set.extend(*start..start + len);
            }
            ranges.truncate(cut);
            set.retain(|b| *b < cut);
            let listed: Vec<u64> = ranges.iter().flat_map(|(a, b)| a..b).collect();
            prop_assert_eq!(listed, set.into_iter().collect::<Vec<_>>());
            for w in ranges.0.windows(2) {
                prop_assert!(w[0].1 < w[1].0);
            }
        }

        /// Merging never loses a byte and keeps the bound.
        #[test]
        fn many_ranges_stay_bounded_and_cover_everything(starts in prop::collection::vec(0u64..1_000_000, 0..500)) {
            let ranges: ByteRanges = starts.iter().map(|s| (*s, s + 3)).collect();
            prop_assert!(ranges.len() <= MAX_RANGES);
            for s in starts {
                prop_assert!(ranges.iter().any(|(a, b)| a <= s && s + 3 <= b));
            }
        }
    }
}
