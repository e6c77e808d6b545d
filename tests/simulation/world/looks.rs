//! What is looked at when a request is sent, and in the end.

use super::super::super::support::tree;
use super::super::hands::LENGTHS;
use super::{Life, World};
use proxyfs::change::{Change, RelPath, Seq};
use proxyfs::journal::{Reader, Row};
use proxyfs::mirror::resume::Staged;
use proxyfs::sftp::{OpenMode, Request};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

impl World {
    /// What becomes visible now is whole (P4), and the disk knows of it (J3); and nothing is repaired without need.
    pub(super) fn look_at(&self, life: &Life, check: &Reader, request: &Request) {
        // R2: where nothing but connections broke, the mirror is as the log says, and nothing is to be repaired.
        let looks = matches!(request, Request::Lstat { .. } | Request::Opendir { .. });
        if looks && !self.repaired.get() && !self.scanned.get() {
            let repairs = check.repairs("m").unwrap();
            if !repairs.is_empty() {
                self.fail(&format!("it repairs {repairs:?}"));
            }
        }
        let paths: Vec<RelPath> = shown_by(request)
            .filter_map(|path| self.of_mirror(path))
            .collect();
        if !paths.is_empty() {
            self.is_on_the_disk(check, request, &paths);
        }
        let Request::PosixRename { from, .. } = request else {
            return;
        };
        let Some(seq) = self.staged(request) else {
            return;
        };
        let from = PathBuf::from(std::ffi::OsStr::from_bytes(from));
        let Some(node) = self.content_of(life, check, seq) else {
            return;
        };
        if check.mirror("m").unwrap().sent_upto < seq {
            self.fail(&format!("{seq} was not announced"));
        }
        if self.hands.borrow().patched.contains(&node) || from.is_symlink() {
            return;
        }
        if !is_whole(&fs::read(&from).unwrap()) {
            self.fail(&format!("{seq} is torn"));
        }
    }

    /// The row for which a request publishes what was staged, if it does.
    pub(super) fn staged(&self, request: &Request) -> Option<Seq> {
        let (Request::PosixRename { from, .. } | Request::Rename { from, .. }) = request else {
            return None;
        };
        let from = Path::new(std::ffi::OsStr::from_bytes(from));
        // By whichever way in.
        let (dir, name) = (from.parent()?, from.file_name()?);
        let staged = dir
            .ends_with(".proxyfs/stage")
            .then(|| Staged::parse(name.as_bytes()));
        Some(staged??.seq)
    }

    /// J3: a row that the disk has tells of this, or a repair that is noted.
    pub(super) fn is_on_the_disk(&self, check: &Reader, request: &Request, paths: &[RelPath]) {
        let position = check.mirror("m").unwrap();
        let related =
            |path: &RelPath, of: &RelPath| path.is_at_or_below(of) || of.is_at_or_below(path);
        let rows = check.rows(position.cursor, 1000).unwrap();
        let durable = rows.iter().filter(|row| row.seq <= self.disk.head.get());
        let mut told: Vec<RelPath> = durable
            .flat_map(|row| row.change.paths().cloned().collect::<Vec<_>>())
            .collect();
        told.extend(
            check
                .repairs("m")
                .unwrap()
                .into_iter()
                .map(|mend| mend.path),
        );
        for parked in check.parked("m", usize::MAX).unwrap() {
            told.extend(parked.row.change.paths().cloned());
        }
        for path in paths {
            if !told.iter().any(|of| related(path, of)) {
                self.fail(&format!(
                    "the disk has the log up to {} and does not know of {request:?}",
                    self.disk.head.get()
                ));
            }
        }
    }

    /// J4: a rename is sent when everything earlier on its paths is noted as done, but for a file and its
    /// attributes on their way to its old name; and nothing on its paths before it is noted itself.
    pub(super) fn is_decidable(&self, check: &Reader, request: &Request) {
        let paths: Vec<RelPath> = shown_by(request)
            .filter_map(|path| self.of_mirror(path))
            .collect();
        let Some(last) = paths.last() else { return };
        let cursor = check.mirror("m").unwrap().cursor;
        let rows = check.rows(cursor, 1000).unwrap();
        let staged = self.staged(request);
        let is_it = |row: &Row| match (&row.change, request) {
            _ if staged.is_some() => staged == Some(row.seq),
            // One step of it.
            (Change::Exchange { a, b }, Request::PosixRename { .. }) => {
                paths.iter().all(|path| path == a || path == b)
            }
            // What would have come there is gone by now.
            (change, Request::Remove { .. }) => change.paths().any(|path| path == last),
            (Change::Rename { from, to }, Request::PosixRename { .. }) => {
                paths == [from.clone(), to.clone()]
            }
            (Change::Link { path, .. }, Request::Hardlink { .. })
            | (Change::Mkdir { path, .. }, Request::Mkdir { .. })
            | (Change::Rmdir { path }, Request::Rmdir { .. }) => path == last,
            _ => false,
        };
        // The first one that it may be: of that least is asked.
        let Some(at) = rows.iter().position(is_it) else {
            return;
        };
        let row = &rows[at];
        let related = |a: &RelPath, b: &RelPath| a.is_at_or_below(b) || b.is_at_or_below(a);
        // A removal, whatever it is sent for, is about its own name only, and may be done twice.
        let removes = matches!(request, Request::Remove { .. });
        let shown: Vec<&RelPath> = row
            .change
            .paths()
            .filter(|path| !removes || *path == last)
            .collect();
        for before in &rows[..at] {
            let touches = before
                .change
                .paths()
                .any(|a| shown.iter().any(|b| related(a, b)));
            let arrives = matches!((&before.change, &row.change),
                (Change::Content { path, .. } | Change::Symlink { path, .. } | Change::Attr { path, .. }, Change::Rename { from, to })
                    if path == from && !related(path, to));
            let counts = before.change.is_pivot() || !removes && row.change.is_pivot();
            if touches && counts && !arrives {
                self.fail(&format!(
                    "{} ({}) is sent before {} ({}) is noted as done: {request:?}",
                    row.seq, row.change, before.seq, before.change
                ));
            }
        }
    }

    /// A path on the mirror, but for our own ones.
    pub(super) fn of_mirror(&self, path: &[u8]) -> Option<RelPath> {
        let path = path.strip_prefix(self.base.as_os_str().as_bytes())?;
        let path = path.strip_prefix(b"/")?;
        // By whichever way in.
        let path = match path.strip_prefix(b".proxyfs/way-") {
            Some(way) => way.splitn(2, |b| *b == b'/').nth(1)?.strip_prefix(b"./")?,
            None => path,
        };
        let path = RelPath::new(path).ok()?;
        (!path.as_bytes().starts_with(b".proxyfs")).then_some(path)
    }

    /// The inode that a row of the log is about, if it is there still.
    pub(super) fn content_of(&self, life: &Life, check: &Reader, seq: Seq) -> Option<u64> {
        let row = check.rows(seq.checked_sub(1)?, 1).unwrap().pop()?;
        let Change::Content { node, .. } = &row.change else {
            return None;
        };
        let file: File = life.source.open(node).unwrap().filter(|_| row.seq == seq)?;
        Some(file.metadata().unwrap().ino())
    }

    /// The mirror is like the source.
    pub fn check(&self) {
        let (mut here, mut there) = (tree::read(&self.root, false), tree::read(&self.base, false));
        // The mirror's own root has the mode that its admin gave it.
        let root_mode = here.get(&Vec::new()).map(|root| root.mode);
        if let (Some(root), Some(mode)) = (there.get_mut(&Vec::new()), root_mode) {
            root.mode = mode;
        }
        if self.repaired.get() || self.scanned.get() {
            for entry in here.values_mut().chain(there.values_mut()) {
                entry.same_as = None;
            }
        }
        let mut lines = Vec::new();
        for (path, entry) in &here {
            if there.get(path) != Some(entry) {
                let shown = String::from_utf8_lossy(path);
                lines.push(format!("{shown}: {entry:?}, there {:?}", there.get(path)));
            }
        }
        for path in there.keys().filter(|path| !here.contains_key(*path)) {
            lines.push(format!("only there: {}", String::from_utf8_lossy(path)));
        }
        let staged = fs::read_dir(self.base.join(".proxyfs/stage")).unwrap();
        lines.extend(staged.map(|e| format!("left over: {:?}", e.unwrap().file_name())));
        if !lines.is_empty() {
            self.fail(&lines.join("\n"));
        }
    }
}

/// The paths that a request shows something new at, but for attributes.
pub(super) fn shown_by(request: &Request) -> impl Iterator<Item = &[u8]> {
    let (one, other) = match request {
        Request::Open { path, mode, .. } => (Some(path).filter(|_| *mode != OpenMode::Read), None),
        Request::Mkdir { path, .. } | Request::Rmdir { path } | Request::Remove { path } => {
            (Some(path), None)
        }
        Request::Symlink { link: path, .. } | Request::Hardlink { to: path, .. } => {
            (Some(path), None)
        }
        Request::Rename { from, to } | Request::PosixRename { from, to } => (Some(from), Some(to)),
        _ => (None, None),
    };
    one.into_iter().chain(other).map(|path| &path[..])
}

/// Every version of a file is one byte, again and again.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    LENGTHS.contains(&bytes.len()) && (bytes.is_empty() || bytes[1..] == bytes[..bytes.len() - 1])
}
