//! Trees of files: what is in them, and how two differ.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// One entry of a tree, as far as mirrors have it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// `dir`, `file` or `link`.
    pub kind: &'static str,
    /// A file's bytes, a link's target.
    pub bytes: Vec<u8>,
    /// Permission bits; 0 for a link.
    pub mode: u32,
    /// Whole seconds.
    pub mtime: i64,
    /// Owner and group, where they are looked at.
    pub owner: Option<(u32, u32)>,
    /// For a file with several names: the first of them in the tree, by which the names are known to be
    /// one file's.
    pub same_as: Option<Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short: String = String::from_utf8_lossy(&self.bytes)
            .chars()
            .take(24)
            .collect();
        write!(
            f,
            "{} {:o} {} B {short:?} mtime {}",
            self.kind,
            self.mode,
            self.bytes.len(),
            self.mtime
        )?;
        if let Some(same) = &self.same_as {
            write!(f, " = {}", String::from_utf8_lossy(same))?;
        }
        self.owner.map_or(Ok(()), |(u, g)| write!(f, " {u}:{g}"))
    }
}

/// All entries below a directory by their relative paths, the directory itself as the empty path, without
/// `.proxyfs`.
pub fn read(root: &Path, owners: bool) -> BTreeMap<Vec<u8>, Entry> {
    let mut all = BTreeMap::new();
    let mut first_name = BTreeMap::new();
    visit(root, &[], owners, &mut all, &mut first_name);
    all
}

fn visit(
    path: &Path,
    name: &[u8],
    owners: bool,
    all: &mut BTreeMap<Vec<u8>, Entry>,
    first_name: &mut BTreeMap<u64, Vec<u8>>,
) {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return;
    };
    let mut entry = Entry {
        kind: "file",
        bytes: Vec::new(),
        mode: meta.permissions().mode() & 0o7777,
        mtime: meta.mtime(),
        owner: owners.then(|| (meta.uid(), meta.gid())),
        same_as: None,
    };
    if meta.is_dir() {
        entry.kind = "dir";
        let mut children: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap()).collect();
        children.sort_by_key(|e| e.file_name());
        for child in children {
            if name.is_empty() && child.file_name() == ".proxyfs" {
                continue;
            }
            let mut below = name.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(child.file_name().as_bytes());
            visit(&child.path(), &below, owners, all, first_name);
        }
    } else if meta.is_symlink() {
        entry.kind = "link";
        entry.mode = 0;
        entry.bytes = fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec();
    } else if meta.is_file() {
        entry.bytes = fs::read(path).unwrap();
        if meta.nlink() > 1 {
            let first = first_name
                .entry(meta.ino())
                .or_insert_with(|| name.to_vec());
            entry.same_as = Some(first.clone());
        }
    } else {
        return; // mirrors have no devices, FIFOs and sockets
    }
    all.insert(name.to_vec(), entry);
}

/// How two trees differ, a line each; nothing if they are the same: names, types, bytes, modes, mtimes, link
/// targets, hard links, and owners if asked.
pub fn differences(source: &Path, mirror: &Path, owners: bool) -> Vec<String> {
    compare(&read(source, owners), &read(mirror, owners))
}

/// The same, but for which names are one file.
pub fn differences_of_names(source: &Path, mirror: &Path) -> Vec<String> {
    differences_without(source, mirror, |entry| entry.same_as = None)
}

/// The same of names, types and bytes, and of files' modes.
pub fn differences_of_bytes(source: &Path, mirror: &Path) -> Vec<String> {
    differences_without(source, mirror, |entry| {
        (entry.same_as, entry.mtime) = (None, 0);
        entry.mode = if entry.kind == "file" { entry.mode } else { 0 };
    })
}

fn differences_without(source: &Path, mirror: &Path, leave_out: fn(&mut Entry)) -> Vec<String> {
    let [here, there] = [source, mirror].map(|root| {
        let mut all = read(root, false);
        all.values_mut().for_each(leave_out);
        all
    });
    compare(&here, &there)
}

fn compare(here: &BTreeMap<Vec<u8>, Entry>, there: &BTreeMap<Vec<u8>, Entry>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, entry) in here {
        let shown = String::from_utf8_lossy(name);
        match there.get(name) {
            None => lines.push(format!("missing on the mirror: {shown} ({entry:?})")),
            // The mirror's own root has the mode that its admin gave it.
            Some(other) if name.is_empty() && other.mtime == entry.mtime => {}
            Some(other) if other != entry => {
                lines.push(format!(
                    "{shown}: {entry:?} on the source, {other:?} on the mirror"
                ));
            }
            Some(_) => {}
        }
    }
    for (name, entry) in there {
        if !here.contains_key(name) {
            let shown = String::from_utf8_lossy(name);
            lines.push(format!("only on the mirror: {shown} ({entry:?})"));
        }
    }
    lines
}

/// Fails, with the differences, unless the mirror equals the source.
#[track_caller]
pub fn assert_same(source: &Path, mirror: &Path) {
    let lines = differences(source, mirror, false);
    assert!(
        lines.is_empty(),
        "{} differences:\n{}",
        lines.len(),
        lines.join("\n")
    );
}
