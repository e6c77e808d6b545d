//! A source whose changes are recorded as the file system side records them.

use super::super::support::random::Random;
use proxyfs::change::{
    ByteRanges, Change, Extent, NodeId, Owner, RelPath, Scope, Times, Timestamp,
};
use proxyfs::journal::{Journal, Recorder};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How long files are: nothing, a little, more than one WRITE, more than four.
const LENGTHS: [usize; 5] = [0, 5, 100, 33_000, 140_000];

/// How long files are that are changed in part: so long that a part travels alone, mostly.
const LONG: u64 = 250_000;

/// A source whose changes are recorded as the file system side records them.
pub(super) struct History {
    pub(super) root: PathBuf,
    pub(super) journal: Arc<Journal>,
    pub(super) random: Random,
    pub(super) told: Vec<String>,
    /// Of each file, how often it was written. Every byte of it is the last of that number.
    pub(super) versions: HashMap<NodeId, u8>,
    /// Of each row with content, its file and its version then.
    pub(super) rows: HashMap<u64, (NodeId, u8)>,
    /// Of each file the version that the mirror has been given last.
    pub(super) published: HashMap<NodeId, u8>,
    /// Files that were changed in part: they are of no single version.
    pub(super) patched: HashSet<NodeId>,
    pub(super) clock: i64,
    /// Names are files of their own there: a file with several is not written any more.
    pub(super) plain: bool,
    /// What was done and is not recorded.
    pub(super) unseen: Option<Vec<Change>>,
}

impl History {
    pub(super) fn path(&mut self) -> RelPath {
        let names = ["a", "b", "c", "d"];
        let depth = 1 + self.random.below(3);
        let parts: Vec<&str> = (0..depth)
            .map(|_| names[self.random.below(4) as usize])
            .collect();
        RelPath::new(parts.join("/").as_bytes()).unwrap()
    }

    pub(super) fn real(&self, path: &RelPath) -> PathBuf {
        self.root.join(path.as_path())
    }

    pub(super) fn record(&mut self, change: Change) {
        if let Some(unseen) = &mut self.unseen {
            self.told.push(format!("-- unseen: {change}"));
            unseen.push(change);
            return;
        }
        let seq = self.journal.record(&change).unwrap();
        self.told.push(format!("{seq} {change}"));
        if let Change::Content { node, .. } = change {
            let version = self.versions.get(&node).copied().unwrap_or(0);
            self.rows.insert(seq, (node, version));
        }
    }

    /// What stands ready for a row is about to become visible.
    pub(super) fn is_published(&mut self, seq: u64, bytes: &[u8]) {
        // What a further name is made of, and a symlink, is no version of a file.
        let Some((node, version)) = self.rows.get(&seq) else {
            return;
        };
        if self.patched.contains(node) {
            return;
        }
        // P4: it is whole. (Every version of a file is one byte repeated.)
        assert!(
            LENGTHS.contains(&bytes.len()) && bytes.iter().all(|b| *b == bytes[0]),
            "{seq} is torn"
        );
        let Some(byte) = bytes.first() else {
            return;
        };
        assert!(byte >= version, "{seq} brings {byte}, older than its place");
        let last = self.published.insert(node.clone(), *byte);
        assert!(
            last <= Some(*byte),
            "{seq} goes back from {last:?} to {byte}"
        );
    }

    /// Does something to the source, if it can be done, and records it.
    pub(super) fn step(&mut self) {
        let (path, other) = (self.path(), self.path());
        let (real, real_other) = (self.real(&path), self.real(&other));
        match self.random.below(19) {
            0 | 1 => {
                if fs::create_dir(&real).is_ok() {
                    let mode = 0o700 + self.random.below(64) as u32;
                    fs::set_permissions(&real, fs::Permissions::from_mode(mode)).unwrap();
                    self.record(Change::Mkdir {
                        path,
                        mode,
                        owner: Owner { uid: 0, gid: 0 },
                    });
                }
            }
            2..=4 => {
                let fresh = real.symlink_metadata().is_err();
                let length = LENGTHS[self.random.below(5) as usize];
                if !real.is_symlink() && self.write(&real, length) {
                    if fresh {
                        let mode = 0o600 + self.random.below(64) as u32;
                        fs::set_permissions(&real, fs::Permissions::from_mode(mode)).unwrap();
                    }
                    self.content(path);
                }
            }
            5 => {
                if fs::remove_file(&real).is_ok() {
                    self.record(Change::Unlink { path });
                }
            }
            6 => {
                if fs::remove_dir(&real).is_ok() {
                    self.record(Change::Rmdir { path });
                }
            }
            7..=9 => {
                let same = real.metadata().ok().map(|m| m.ino())
                    == real_other.metadata().ok().map(|m| m.ino());
                if !same && fs::rename(&real, &real_other).is_ok() {
                    self.record(Change::Rename {
                        from: path,
                        to: other,
                    });
                }
            }
            10 => {
                if !real.is_symlink() && fs::hard_link(&real, &real_other).is_ok() {
                    self.record(Change::Link {
                        from: path,
                        path: other,
                    });
                }
            }
            11 => {
                if symlink("some/target", &real).is_ok() {
                    let meta = real.symlink_metadata().unwrap();
                    let owner = Owner { uid: 0, gid: 0 };
                    self.record(Change::Symlink {
                        path,
                        target: (*b"some/target").into(),
                        owner,
                        times: times(&meta),
                    });
                }
            }
            12 => {
                if !real.is_symlink() && real.exists() && self.may_write(&real) {
                    let mode = 0o700 + self.random.below(64) as u32;
                    fs::set_permissions(&real, fs::Permissions::from_mode(mode)).unwrap();
                    self.record(Change::Attr {
                        path,
                        symlink: false,
                        mode: Some(mode),
                        owner: None,
                        times: None,
                    });
                }
            }
            13..=17 => {
                // One that is there, if one is found: most paths are not.
                let is_file = |real: &PathBuf| real.symlink_metadata().is_ok_and(|m| m.is_file());
                let found = (0..20).find_map(|_| {
                    let path = self.path();
                    let real = self.real(&path);
                    (is_file(&real) && self.may_write(&real)).then_some((path, real))
                });
                if let Some((path, real)) = found {
                    self.patch(path, &real);
                }
            }
            _ => {
                let swapped = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &real,
                    rustix::fs::CWD,
                    &real_other,
                    rustix::fs::RenameFlags::EXCHANGE,
                );
                if path != other && swapped.is_ok() {
                    self.record(Change::Exchange { a: path, b: other });
                }
            }
        }
    }

    pub(super) fn may_write(&self, real: &Path) -> bool {
        !self.plain
            || !real
                .symlink_metadata()
                .is_ok_and(|m| m.is_file() && m.nlink() > 1)
    }

    /// Does something that the log does not see; then what has changed is found, as at a start.
    pub(super) fn step_unseen(&mut self) {
        self.unseen = Some(Vec::new());
        for _ in 0..=self.random.below(4) {
            self.step();
        }
        let mut found: Vec<(RelPath, Scope)> = Vec::new();
        for change in self.unseen.take().unwrap_or_default() {
            let moved = matches!(change, Change::Rename { .. } | Change::Exchange { .. });
            for path in change.paths() {
                found.extend(path.parent().map(|parent| (parent, Scope::NAMES)));
                let scope = if moved { Scope::TREE } else { Scope::ENTRY };
                found.push((path.clone(), scope));
            }
            // What was written under one name has changed under all.
            if let Change::Content { path, .. } = &change {
                let names = self.names_of(path);
                found.extend(names.into_iter().map(|name| (name, Scope::ENTRY)));
            }
        }
        for (path, scope) in found {
            self.record(Change::Repair { path, scope });
        }
    }

    /// All names of a file.
    pub(super) fn names_of(&self, path: &RelPath) -> Vec<RelPath> {
        let inode = |path: &Path| path.symlink_metadata().ok().map(|m| m.ino());
        let (wanted, mut open, mut found) =
            (inode(&self.real(path)), vec![RelPath::root()], Vec::new());
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(self.real(&dir)).into_iter().flatten() {
                let entry = entry.unwrap();
                let path = dir.join(entry.file_name().as_bytes()).unwrap();
                if entry.file_type().unwrap().is_dir() {
                    open.push(path);
                } else if inode(&entry.path()) == wanted {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Writes the next version of a file.
    pub(super) fn write(&mut self, real: &Path, length: usize) -> bool {
        if !self.may_write(real) || fs::write(real, "").is_err() {
            return false;
        }
        let version = self.versions.entry(node_id(real)).or_default();
        *version += 1;
        fs::write(real, vec![*version; length]).unwrap();
        self.set_time(real);
        true
    }

    /// Changes a part of a file, and records it as the file system side does.
    pub(super) fn patch(&mut self, path: RelPath, real: &Path) {
        let file = fs::OpenOptions::new().write(true).open(real).unwrap();
        let size = file.metadata().unwrap().len();
        self.patched.insert(node_id(real));
        let byte = self.random.next() as u8;
        let mut ranges = ByteRanges::new();
        let mut write = |at: u64, length: u64| {
            file.write_all_at(&vec![byte; length as usize], at).unwrap();
            ranges.insert(at, at + length);
        };
        let (at, length) = (self.random.below(size + 1), 1 + self.random.below(3000));
        match self.random.below(6) {
            // In the middle, over the end, behind it.
            0 => write(at, length),
            1 => {
                write(at, 1);
                write(self.random.below(size + 1), length);
            }
            2 => write(size, length + self.random.below(40_000)),
            3 => write(size + self.random.below(1000), length),
            // Cut; cut and grown again, at once or in two rows.
            4 => file.set_len(at).unwrap(),
            _ => {
                file.set_len(at).unwrap();
                if self.random.one_in(2) {
                    self.set_time(real);
                    self.ranges(path.clone(), ByteRanges::new());
                    file.set_len(size).unwrap();
                } else {
                    file.set_len(size).unwrap();
                    ranges.insert(at, size);
                }
            }
        }
        if size < LONG && self.random.one_in(3) {
            let size = file.metadata().unwrap().len();
            file.write_all_at(&vec![byte; LONG as usize], size).unwrap();
            ranges.insert(size, size + LONG);
        }
        self.set_time(real);
        self.ranges(path, ranges);
    }

    pub(super) fn set_time(&mut self, real: &Path) {
        // No two versions have the same time, however coarse the clock.
        self.clock += 1;
        let time = rustix::fs::Timespec {
            tv_sec: 1_600_000_000 + self.clock,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(rustix::fs::CWD, real, &times, rustix::fs::AtFlags::empty()).unwrap();
    }

    pub(super) fn content(&mut self, path: RelPath) {
        self.extent(path, Extent::Whole);
    }

    pub(super) fn ranges(&mut self, path: RelPath, ranges: ByteRanges) {
        self.extent(path, Extent::Ranges(ranges));
    }

    pub(super) fn extent(&mut self, path: RelPath, extent: Extent) {
        let real = self.real(&path);
        let meta = real.metadata().unwrap();
        self.record(Change::Content {
            path,
            node: node_id(&real),
            extent,
            size: meta.len(),
            linked: meta.nlink() > 1,
        });
    }
}

pub(super) fn times(meta: &fs::Metadata) -> Times {
    let at = |seconds, nanoseconds: i64| Timestamp {
        seconds,
        nanoseconds: nanoseconds as u32,
    };
    Times {
        atime: at(meta.atime(), meta.atime_nsec()),
        mtime: at(meta.mtime(), meta.mtime_nsec()),
    }
}

/// name_to_handle_at(2), laid out as [`NodeId`] says.
pub fn node_id(path: &Path) -> NodeId {
    #[repr(C)]
    struct Raw {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let mut raw = Raw {
        bytes: 128,
        kind: 0,
        handle: [0; 128],
    };
    let mut mount = 0;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `raw` has the layout of `struct file_handle` with room for the 128 bytes that it says, and
    // all three pointers are valid for the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            0,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let mut id = raw.kind.to_le_bytes().to_vec();
    id.extend_from_slice(&raw.handle[..raw.bytes as usize]);
    NodeId(id.into())
}
