//! Who writes to the source although no daemon serves him: a survivor.
//!
//! The kernel writes new files, and stores to mapped ones, without asking the daemon (passthrough). Whoever holds
//! such a descriptor when the daemon is killed, or goes away while the mount is in use, may write through it for
//! days, and nobody is told. So at the start all descriptors of all processes are looked at: one that may write,
//! on a mount that is not there any more, to an inode with a number that the source has, is a survivor's. Its file
//! is then watched as if it were open at the mount ([`Local::adopt`]): what is written is recorded after a pause, and
//! at the end, which shows when the descriptor is not found any more. (A stranger's descriptor with the same
//! number costs a file that is watched in vain.)
//!
//! Nothing is read here but /proc, never a file by such a descriptor: a dead mount could hold that up. And never
//! on a thread that serves the mount: /proc may wait for a process that waits for the mount.

use crate::local::{Adopted, Local};
use crate::mount::mountinfo;
use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The files of survivors that are watched.
#[derive(Default)]
pub struct Survivors {
    watched: Mutex<Vec<(u64, Adopted)>>,
    none: bool,
}

impl Survivors {
    /// Nobody, and nobody is looked for: for who knows that there was never a mount.
    pub fn nobody() -> Survivors {
        Survivors {
            none: true,
            ..Survivors::default()
        }
    }

    /// The nodes of files that a survivor may write to.
    pub fn find(&self, local: &Local) -> HashSet<u64> {
        if self.none {
            return HashSet::new();
        }
        let found = open_without_mount();
        found.into_iter().map(|ino| local.node_of(ino)).collect()
    }

    /// From here on the file is watched.
    pub(super) fn adopt(&self, local: &Local, path: &crate::change::RelPath, node: u64) {
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|(known, _)| *known == node) {
            return; // by another name
        }
        match local.adopt(path) {
            Ok(adopted) => all.push((node, adopted)),
            Err(why) => log::warn!("{path} cannot be watched: {why}"),
        }
    }

    /// Whether no file is watched.
    pub fn is_empty(&self) -> bool {
        let all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.is_empty()
    }

    /// Looks who is still there, and lets go of the files of the others: all that was written is recorded then.
    pub fn look(&self, local: &Local) {
        if self.is_empty() {
            return;
        }
        let there = self.find(local);
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = all.extract_if(.., |(node, _)| !there.contains(node));
        for (_, adopted) in gone {
            // What could not be recorded is kept, and tried again.
            let _ = local.let_go(adopted);
        }
    }
}

/// The inode numbers of what is open to be written, or mapped to be, on mounts that are not there any more.
fn open_without_mount() -> HashSet<u64> {
    let mounts = Mounts::read();
    let mut found = HashSet::new();
    for process in entries(Path::new("/proc")) {
        let name = process.file_name().unwrap_or_default().to_string_lossy();
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        for descriptor in entries(&process.join("fdinfo")) {
            let Ok(text) = fs::read_to_string(&descriptor) else {
                continue;
            };
            let Some(ino) = of_descriptor(&text, &mounts) else {
                continue;
            };
            let number = descriptor.file_name().unwrap_or_default();
            let path = fs::read_link(process.join("fd").join(number));
            if path.is_ok_and(|path| is_file(path.as_os_str().as_bytes())) {
                found.insert(ino);
            }
        }
        if let Ok(text) = fs::read(process.join("maps")) {
            let text = String::from_utf8_lossy(&text);
            found.extend(text.lines().filter_map(|line| of_mapping(line, &mounts)));
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.path()).collect()
}

/// What is mounted: numbers of mounts, and devices.
#[derive(Default)]
struct Mounts {
    ids: HashSet<u64>,
    devices: HashSet<String>,
}

impl Mounts {
    fn read() -> Mounts {
        let mut mounts = Mounts::default();
        for mount in mountinfo::read().unwrap_or_default() {
            mounts.ids.insert(mount.id);
            mounts.devices.insert(mount.device);
        }
        mounts
    }
}

/// Whether what /proc tells of a descriptor or a mapping is a file's path, not a pipe, a socket, memory or a
/// device.
fn is_file(path: &[u8]) -> bool {
    const OTHERS: [&[u8]; 5] = [b"/dev/", b"/memfd:", b"/SYSV", b"/anon_hugepage", b"/i915"];
    path.starts_with(b"/") && !OTHERS.iter().any(|other| path.starts_with(other))
}

/// The inode, if the descriptor (proc_pid_fdinfo(5)) may write to it and is on no mount that is there.
fn of_descriptor(text: &str, mounts: &Mounts) -> Option<u64> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let flags = i32::from_str_radix(field("flags:")?, 8).ok()?;
    let mount = field("mnt_id:")?.parse().ok()?;
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
    if !writes || mounts.ids.contains(&mount) {
        return None;
    }
    field("ino:")?.parse().ok()
}

/// The same of a mapping: a line of proc_pid_maps(5).
fn of_mapping(line: &str, mounts: &Mounts) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let rights = fields.nth(1)?.as_bytes();
    let device = fields.nth(1)?;
    let ino = fields.next()?.parse().ok().filter(|ino| *ino != 0)?;
    let path = fields.next().unwrap_or_default();
    let shared = rights.get(1) == Some(&b'w') && rights.get(3) == Some(&b's');
    if !shared || !is_file(path.as_bytes()) {
        return None;
    }
    // In mountinfo it is decimal, here in hex.
    let (major, minor) = device.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let device = format!("{}:{}", number(major)?, number(minor)?);
    (!mounts.devices.contains(&device)).then_some(ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts() -> Mounts {
        Mounts {
            ids: HashSet::from([29]),
            devices: HashSet::from(["0:43".to_string()]),
        }
    }

    #[test]
    fn a_descriptor_is_a_survivors_if_it_may_write_and_its_mount_is_gone() {
        let text = |flags: &str, mount: u32| {
            format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t{mount}\nino:\t1234\n")
        };
        assert_eq!(of_descriptor(&text("0100001", 77), &mounts()), Some(1234));
        assert_eq!(of_descriptor(&text("0100002", 77), &mounts()), Some(1234));
        assert_eq!(of_descriptor(&text("0100001", 29), &mounts()), None);
        assert_eq!(of_descriptor(&text("0100000", 77), &mounts()), None);
        assert_eq!(
            of_descriptor("pos:\t0\nflags:\t01\nmnt_id:\t77\n", &mounts()),
            None
        );
    }

    #[test]
    fn a_mapping_is_a_survivors_if_it_is_shared_and_its_device_is_gone() {
        let line = |rights: &str, device: &str, path: &str| {
            format!("7f00-7f01 {rights} 00000000 {device} 1234      {path}")
        };
        let of = |line: String| of_mapping(&line, &mounts());
        assert_eq!(of(line("rw-s", "00:2c", "/www/a b")), Some(1234));
        assert_eq!(of(line("rw-s", "00:2b", "/www/a")), None, "0:43 is mounted");
        assert_eq!(of(line("rw-p", "00:2c", "/www/a")), None);
        assert_eq!(of(line("r--s", "00:2c", "/www/a")), None);
        assert_eq!(of(line("rw-s", "00:01", "/memfd:x (deleted)")), None);
        assert_eq!(of("7f00-7f01 rw-p 00000000 00:00 0".to_string()), None);
    }
}
