//! What a change does to what scars are about.

use crate::change::{Change, RelPath, Scope};

/// Whether a change takes away what is at one of its paths.
pub(super) fn removes(change: &Change, path: &RelPath) -> bool {
    match change {
        Change::Rmdir { .. } | Change::Unlink { .. } | Change::Exchange { .. } => true,
        Change::Rename { from, .. } => from == path,
        Change::Mkdir { .. }
        | Change::Symlink { .. }
        | Change::Link { .. }
        | Change::Content { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => false,
    }
}

/// Whether the bytes at its paths may be others afterwards.
pub(super) fn brings_bytes(change: &Change) -> bool {
    change.is_pivot() || matches!(change, Change::Content { .. })
}

/// What has to be repaired where a row is not replayed.
pub(in crate::mirror) fn scope_for(change: &Change) -> Scope {
    if change.is_pivot() {
        Scope::TREE
    } else {
        Scope::ENTRY
    }
}
