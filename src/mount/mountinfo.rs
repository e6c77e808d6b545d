//! What is mounted where, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Reading it never touches
//! the file systems, so that a dead one does not hold it up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number, as descriptors show it (`mnt_id` of proc_pid_fdinfo(5)).
    pub id: u64,
    /// Device number of the file system: `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// What it is, with FUSE's subtype: `fuse.proxyfs`.
    pub fs_type: String,
}

/// What is mounted at exactly this path, on top of all else that is mounted there.
///
/// # Errors
/// /proc is not there.
pub fn topmost(mount_point: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?
        .into_iter()
        .rfind(|entry| entry.mount_point == mount_point))
}

/// Whether the file system of this number is mounted anywhere.
///
/// # Errors
/// /proc is not there.
pub fn has_device(device: &str) -> io::Result<bool> {
    Ok(read()?.iter().any(|entry| entry.device == device))
}

/// Watches whether a mount is where it was made. The list is read only when it has changed.
pub struct Watch {
    list: File,
    /// What the last look told.
    gone: AtomicBool,
}

impl Watch {
    /// Of what is mounted from now on.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn new() -> io::Result<Watch> {
        Ok(Watch {
            list: File::open(LIST)?,
            gone: AtomicBool::new(false),
        })
    }

    /// Whether the file system of this number is not mounted at this path any more, on top or below something else. What
    /// cannot be found out is not so.
    pub fn is_gone(&self, device: &str, mount_point: &Path) -> bool {
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // The kernel tells by POLLERR and POLLPRI that the list is another one than at the last look.
        let changed = poll(
            &mut [PollFd::new(&self.list, PollFlags::PRI)],
            Some(&at_once),
        );
        if changed.is_ok_and(|n| n > 0)
            && let Ok(all) = read()
        {
            let ours =
                |entry: &MountEntry| entry.device == device && entry.mount_point == mount_point;
            self.gone.store(!all.iter().any(ours), Ordering::Relaxed);
        }
        self.gone.load(Ordering::Relaxed)
    }
}

/// The list.
const LIST: &str = "/proc/self/mountinfo";

/// All that is mounted, the older first.
///
/// # Errors
/// /proc is not there.
pub fn read() -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read(LIST)?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// A line: `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/sda1 rw`. None for what is no such line.
fn parse(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let mount_point = fields.nth(1)?;
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountEntry {
        id,
        device: String::from_utf8_lossy(device).into_owned(),
        mount_point: PathBuf::from(unescape(mount_point)),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
    })
}

/// Blank, tab, newline and backslash are written as `\040`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\');
        let byte = octal
            .and_then(|digits| std::ffi::OsStr::from_bytes(digits).to_str())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_optional_fields() {
        let line =
            br"36 35 0:52 / /srv/my\040www rw,relatime shared:1 master:2 - fuse.proxyfs proxyfs rw";
        let expected = MountEntry {
            id: 36,
            device: "0:52".into(),
            mount_point: "/srv/my www".into(),
            fs_type: "fuse.proxyfs".into(),
        };
        assert_eq!(parse(line), Some(expected));
        let line = b"36 35 8:1 / / rw - ext4 /dev/sda1 rw";
        assert_eq!(parse(line).unwrap().fs_type, "ext4");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 8:1 / / rw"), None);
    }

    #[test]
    fn only_octal_escapes_are_taken_for_such() {
        assert_eq!(unescape(br"a\134b\04\x41"), *r"a\b\04\x41");
    }
}
