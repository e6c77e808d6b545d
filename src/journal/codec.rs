//! A [`Change`] as the columns of its row, and back.
//!
//! The danger is a journal that a later version reads differently: numbers once given to a kind are
//! never given to another, and a changed layout is a new schema version with a migration. What can't
//! be read is an error that names the row, never a change that was left out.

use crate::change::{
    ByteRanges, Change, Depth, Extent, NodeId, Owner, PathError, RelPath, Scope, Times, Timestamp,
};
use std::fmt;

const MKDIR: i64 = 1;
const RMDIR: i64 = 2;
const UNLINK: i64 = 3;
const SYMLINK: i64 = 4;
const LINK: i64 = 5;
const RENAME: i64 = 6;
const EXCHANGE: i64 = 7;
const CONTENT: i64 = 8;
const ATTR: i64 = 9;
const REPAIR: i64 = 10;

/// The columns `kind`, `path`, `path2`, `node` and `body` of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub kind: i64,
    pub path: Vec<u8>,
    pub path2: Option<Vec<u8>>,
    pub node: Option<Vec<u8>>,
    pub body: Vec<u8>,
}

/// Why a row is no change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// No kind has this number.
    Kind(i64),
    /// A path that no change can have.
    Path(PathError),
    /// A column that this kind needs is NULL.
    Missing(&'static str),
    /// The body is shorter or longer than this kind's.
    Body,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Kind(kind) => write!(f, "unknown kind {kind}"),
            DecodeError::Path(why) => write!(f, "bad path: {why}"),
            DecodeError::Missing(column) => write!(f, "no {column}"),
            DecodeError::Body => f.write_str("its body has the wrong length"),
        }
    }
}

impl From<PathError> for DecodeError {
    fn from(why: PathError) -> DecodeError {
        DecodeError::Path(why)
    }
}

/// Integers one after another, little endian.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u8(mut self, v: u8) -> Body {
        self.0.push(v);
        self
    }
    fn u32(mut self, v: u32) -> Body {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Body {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn owner(self, owner: &Owner) -> Body {
        self.u32(owner.uid).u32(owner.gid)
    }
    fn times(self, times: &Times) -> Body {
        [times.atime, times.mtime]
            .iter()
            .fold(self, |b, t| b.u64(t.seconds as u64).u32(t.nanoseconds))
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Body)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|b| b[0])
    }
    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }
    fn owner(&mut self) -> Result<Owner, DecodeError> {
        Ok(Owner {
            uid: self.u32()?,
            gid: self.u32()?,
        })
    }
    fn timestamp(&mut self) -> Result<Timestamp, DecodeError> {
        Ok(Timestamp {
            seconds: self.u64()? as i64,
            nanoseconds: self.u32()?,
        })
    }
    fn times(&mut self) -> Result<Times, DecodeError> {
        Ok(Times {
            atime: self.timestamp()?,
            mtime: self.timestamp()?,
        })
    }
    fn rest(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.0).into()
    }
    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Body)
        }
    }
}

// Bits of an Attr's first byte: which values follow.
const ATTR_SYMLINK: u8 = 1;
const ATTR_MODE: u8 = 2;
const ATTR_OWNER: u8 = 4;
const ATTR_TIMES: u8 = 8;

// Bits of a Content's first byte.
const CONTENT_WHOLE: u8 = 1;
const CONTENT_LINKED: u8 = 2;

// Of a Repair, and in the table `repair`: how deep, and two bits.
const SCOPE_ENTRY: u8 = 0;
const SCOPE_NAMES: u8 = 1;
const SCOPE_TREE: u8 = 2;
const SCOPE_DEPTH: u8 = 3;
const SCOPE_DELETE: u8 = 4;
const SCOPE_BYTES: u8 = 8;

/// A depth as a number.
pub(super) fn depth_number(depth: Depth) -> u8 {
    match depth {
        Depth::Entry => SCOPE_ENTRY,
        Depth::Names => SCOPE_NAMES,
        Depth::Tree => SCOPE_TREE,
    }
}

/// A scope as one number.
pub(super) fn scope_number(scope: Scope) -> u8 {
    let depth = depth_number(scope.depth);
    let bit = |on, bit| if on { bit } else { 0 };
    depth | bit(scope.delete, SCOPE_DELETE) | bit(scope.bytes, SCOPE_BYTES)
}

/// The scope that a number stands for; none: no scope has it.
pub(super) fn scope_of(number: u8) -> Option<Scope> {
    let depth = match number & SCOPE_DEPTH {
        SCOPE_ENTRY => Depth::Entry,
        SCOPE_NAMES => Depth::Names,
        SCOPE_TREE => Depth::Tree,
        _ => return None,
    };
    let known = SCOPE_DEPTH | SCOPE_DELETE | SCOPE_BYTES;
    (number & !known == 0).then_some(Scope {
        depth,
        delete: number & SCOPE_DELETE != 0,
        bytes: number & SCOPE_BYTES != 0,
    })
}

pub(super) fn encode(change: &Change) -> Columns {
    let (kind, body) = match change {
        Change::Mkdir { mode, owner, .. } => (MKDIR, Body::default().u32(*mode).owner(owner)),
        Change::Rmdir { .. } => (RMDIR, Body::default()),
        Change::Unlink { .. } => (UNLINK, Body::default()),
        Change::Symlink {
            target,
            owner,
            times,
            ..
        } => {
            let mut body = Body::default().owner(owner).times(times);
            body.0.extend_from_slice(target);
            (SYMLINK, body)
        }
        Change::Link { .. } => (LINK, Body::default()),
        Change::Rename { .. } => (RENAME, Body::default()),
        Change::Exchange { .. } => (EXCHANGE, Body::default()),
        Change::Content {
            extent,
            size,
            linked,
            ..
        } => {
            let (whole, ranges) = match extent {
                Extent::Whole => (CONTENT_WHOLE, None),
                Extent::Ranges(ranges) => (0, Some(ranges)),
            };
            let flags = whole | if *linked { CONTENT_LINKED } else { 0 };
            let body = Body::default().u8(flags).u64(*size);
            let ranges = ranges.iter().flat_map(|r| r.iter());
            (
                CONTENT,
                ranges.fold(body, |b, (start, end)| b.u64(start).u64(end)),
            )
        }
        Change::Attr {
            symlink,
            mode,
            owner,
            times,
            ..
        } => {
            let flags = if *symlink { ATTR_SYMLINK } else { 0 }
                | mode.map_or(0, |_| ATTR_MODE)
                | owner.map_or(0, |_| ATTR_OWNER)
                | times.map_or(0, |_| ATTR_TIMES);
            let mut body = Body::default().u8(flags);
            if let Some(mode) = mode {
                body = body.u32(*mode);
            }
            if let Some(owner) = owner {
                body = body.owner(owner);
            }
            if let Some(times) = times {
                body = body.times(times);
            }
            (ATTR, body)
        }
        Change::Repair { scope, .. } => (REPAIR, Body::default().u8(scope_number(*scope))),
    };
    Columns {
        kind,
        path: change.path().as_bytes().to_vec(),
        path2: change.second_path().map(|p| p.as_bytes().to_vec()),
        node: change.node().map(|node| node.0.to_vec()),
        body: body.0,
    }
}

pub(super) fn decode(columns: &Columns) -> Result<Change, DecodeError> {
    let path = RelPath::new(&columns.path)?;
    let second = || -> Result<RelPath, DecodeError> {
        let bytes = columns
            .path2
            .as_deref()
            .ok_or(DecodeError::Missing("second path"))?;
        Ok(RelPath::new(bytes)?)
    };
    let mut body = Fields(&columns.body);
    let change = match columns.kind {
        MKDIR => Change::Mkdir {
            path,
            mode: body.u32()?,
            owner: body.owner()?,
        },
        RMDIR => Change::Rmdir { path },
        UNLINK => Change::Unlink { path },
        SYMLINK => {
            let (owner, times) = (body.owner()?, body.times()?);
            Change::Symlink {
                path,
                target: body.rest(),
                owner,
                times,
            }
        }
        LINK => Change::Link {
            from: path,
            path: second()?,
        },
        RENAME => Change::Rename {
            from: path,
            to: second()?,
        },
        EXCHANGE => Change::Exchange {
            a: path,
            b: second()?,
        },
        CONTENT => {
            let node = columns
                .node
                .as_deref()
                .ok_or(DecodeError::Missing("node"))?;
            let (flags, size) = (body.u8()?, body.u64()?);
            let extent = if flags & CONTENT_WHOLE != 0 {
                Extent::Whole
            } else {
                let mut ranges = ByteRanges::new();
                while body.end().is_err() {
                    ranges.insert(body.u64()?, body.u64()?);
                }
                Extent::Ranges(ranges)
            };
            let node = NodeId(node.into());
            Change::Content {
                path,
                node,
                extent,
                size,
                linked: flags & CONTENT_LINKED != 0,
            }
        }
        ATTR => {
            let flags = body.u8()?;
            let mode = (flags & ATTR_MODE != 0).then(|| body.u32()).transpose()?;
            let owner = (flags & ATTR_OWNER != 0)
                .then(|| body.owner())
                .transpose()?;
            let times = (flags & ATTR_TIMES != 0)
                .then(|| body.times())
                .transpose()?;
            Change::Attr {
                path,
                symlink: flags & ATTR_SYMLINK != 0,
                mode,
                owner,
                times,
            }
        }
        REPAIR => Change::Repair {
            path,
            scope: scope_of(body.u8()?).ok_or(DecodeError::Body)?,
        },
        other => return Err(DecodeError::Kind(other)),
    };
    body.end()?;
    Ok(change)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_path() -> impl Strategy<Value = RelPath> {
        prop::collection::vec("[a-z\u{e9}]{1,5}", 1..4)
            .prop_map(|parts| RelPath::new(parts.join("/").as_bytes()).unwrap())
    }

    fn any_timestamp() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanoseconds)| Timestamp {
            seconds,
            nanoseconds,
        })
    }

    fn any_times() -> impl Strategy<Value = Times> {
        (any_timestamp(), any_timestamp()).prop_map(|(atime, mtime)| Times { atime, mtime })
    }

    fn any_owner() -> impl Strategy<Value = Owner> {
        any::<(u32, u32)>().prop_map(|(uid, gid)| Owner { uid, gid })
    }

    fn any_extent() -> impl Strategy<Value = Extent> {
        prop_oneof![
            Just(Extent::Whole),
            prop::collection::vec((0u64..1 << 40, 1u64..1000), 0..5)
                .prop_map(|r| Extent::Ranges(r.into_iter().map(|(s, l)| (s, s + l)).collect())),
        ]
    }

    /// Any change at all.
    pub fn any_change() -> impl Strategy<Value = Change> {
        let two = || (any_path(), any_path());
        prop_oneof![
            (any_path(), any::<u32>(), any_owner()).prop_map(|(path, mode, owner)| Change::Mkdir {
                path,
                mode,
                owner
            }),
            any_path().prop_map(|path| Change::Rmdir { path }),
            any_path().prop_map(|path| Change::Unlink { path }),
            (any_path(), any::<Vec<u8>>(), any_owner(), any_times()).prop_map(
                |(path, target, owner, times)| Change::Symlink {
                    path,
                    target: target.into(),
                    owner,
                    times
                }
            ),
            two().prop_map(|(from, path)| Change::Link { from, path }),
            two().prop_map(|(from, to)| Change::Rename { from, to }),
            two().prop_map(|(a, b)| Change::Exchange { a, b }),
            (
                any_path(),
                any::<[u8; 12]>(),
                any_extent(),
                any::<u64>(),
                any::<bool>()
            )
                .prop_map(|(path, node, extent, size, linked)| Change::Content {
                    path,
                    node: NodeId(node.into()),
                    extent,
                    size,
                    linked
                }),
            (
                any_path(),
                any::<bool>(),
                prop::option::of(any::<u32>()),
                prop::option::of(any_owner()),
                prop::option::of(any_times())
            )
                .prop_map(|(path, symlink, mode, owner, times)| Change::Attr {
                    path,
                    symlink,
                    mode,
                    owner,
                    times
                }),
            (any_path(), 0u8..3, any::<bool>(), any::<bool>()).prop_map(
                |(path, depth, delete, bytes)| {
                    let depth = [Depth::Entry, Depth::Names, Depth::Tree][depth as usize];
                    let scope = Scope {
                        depth,
                        delete,
                        bytes,
                    };
                    Change::Repair { path, scope }
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn every_change_comes_back_as_it_went_in(change in any_change()) {
            prop_assert_eq!(decode(&encode(&change)), Ok(change));
        }

        #[test]
        fn a_damaged_row_is_an_error_and_never_a_panic(
            kind in -1i64..12, path in any::<Vec<u8>>(), path2 in any::<Option<Vec<u8>>>(),
            node in any::<Option<Vec<u8>>>(), body in any::<Vec<u8>>()
        ) {
            let _ = decode(&Columns { kind, path, path2, node, body });
        }

        #[test]
        fn a_body_with_a_byte_too_many_or_too_few_is_refused(change in any_change()) {
            // A symlink's target may have any length.
            prop_assume!(!matches!(change, Change::Symlink { .. }));
            let mut columns = encode(&change);
            columns.body.push(0);
            prop_assert!(decode(&columns).is_err());
            columns.body.pop();
            if columns.body.pop().is_some() {
                prop_assert!(decode(&columns).is_err());
            }
        }
    }
}
