//! How much a repair is to do.

/// How far below its path a repair goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Depth {
    /// The entry alone. (A directory that the mirror has not at all comes with all that is in it.)
    Entry,
    /// And of a directory, which names are in it: one that the mirror has not comes with all below.
    Names,
    /// And all that is below.
    Tree,
}

/// How much a [`Change::Repair`](super::Change::Repair) is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// How far below its path.
    pub depth: Depth,
    /// Names below that only the mirror has are removed; else they are kept, and reported. (What stands at the
    /// path itself is never kept, if the source has nothing there.)
    pub delete: bool,
    /// The same size and time are no proof that the bytes are the same: the mirror or this machine may have lost some.
    pub bytes: bool,
}

impl Scope {
    /// The entry alone.
    pub const ENTRY: Scope = Scope {
        depth: Depth::Entry,
        delete: true,
        bytes: false,
    };
    /// The entry, and which names are in it.
    pub const NAMES: Scope = Scope {
        depth: Depth::Names,
        delete: true,
        bytes: false,
    };
    /// All at the path and below.
    pub const TREE: Scope = Scope {
        depth: Depth::Tree,
        delete: true,
        bytes: false,
    };
    /// The same, but what only the mirror has below is kept.
    pub const KEEPING: Scope = Scope {
        depth: Depth::Tree,
        delete: false,
        bytes: false,
    };

    /// What does all that either of the two does.
    pub fn and(self, other: Scope) -> Scope {
        let depth = self.depth.max(other.depth);
        // An entry alone has nothing below that could be kept.
        let deletes =
            |scope: Scope| scope.delete && (scope.depth != Depth::Entry || depth == Depth::Entry);
        Scope {
            depth,
            delete: deletes(self) || deletes(other),
            bytes: self.bytes || other.bytes,
        }
    }
}
