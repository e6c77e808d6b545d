//! Disks of the tests' own, that can be full or lose their power.
#![allow(clippy::unwrap_used)]

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A file system in an image file, mounted through a loop device. Unmounted when dropped, with all that lies over it.
pub struct Disk {
    image: PathBuf,
    kind: &'static str,
    at: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// Mounts a new one at a directory, which is made. `kind`: `ext4` or `xfs`.
    pub fn mount(kind: &'static str, at: &Path) -> Disk {
        // XFS is never smaller. The file is sparse.
        Disk::make(kind, tempfile::tempdir().unwrap(), 320 << 20, &[], at)
    }

    /// An ext4 of 64 MiB whose blocks are taken from the file system of `pool` when they are first written: when that is
    /// full, writes come to nothing that were said to be done, and fsync tells so once.
    pub fn thin(pool: &Path, at: &Path) -> Disk {
        let dir = tempfile::tempdir_in(pool).unwrap();
        let options = [
            "-b",
            "4096",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0",
        ];
        Disk::make("ext4", dir, 64 << 20, &options, at)
    }

    fn make(kind: &'static str, dir: TempDir, size: u64, options: &[&str], at: &Path) -> Disk {
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(size).unwrap();
        let mut mkfs = Command::new(format!("mkfs.{kind}"));
        let made = mkfs.arg("-q").args(options).arg(&image).output();
        let made = made
            .unwrap_or_else(|why| panic!("mkfs.{kind}: {why}: see packaging/install-build-deps"));
        assert!(made.status.success(), "{made:?}");
        fs::create_dir_all(at).unwrap();
        let disk = Disk {
            image,
            kind,
            at: at.to_owned(),
            _dir: dir,
        };
        disk.plug_in();
        disk
    }

    fn plug_in(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind, "-o", "loop"]);
        let done = mount.arg(&self.image).arg(&self.at).output().unwrap();
        assert!(
            done.status.success(),
            "these tests need loop devices: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        rustix::mount::mount_change(&self.at, MountPropagationFlags::PRIVATE).unwrap();
    }

    /// The power goes: what is not on the disk at this moment never will be, and everything fails from here on.
    pub fn pull_the_plug(&self) {
        /// `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`: `_IOR('X', 125, __u32)`.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        /// Nothing is flushed, not even the file system's own log.
        static NO_FLUSH: u32 = 2;
        let root = File::open(&self.at).unwrap();
        // SAFETY: the ioctl reads one u32, which lives as long as the call.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN as _, &raw const NO_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Power again: the disk has what it had.
    pub fn plug_in_again(&self) {
        self.unmount(UnmountFlags::empty());
        // Whoever had something open there is dead, but may not be buried yet; until then it is the same mount.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.is_attached() {
            assert!(Instant::now() < deadline, "somebody still uses the disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.plug_in();
    }

    /// Whether a loop device has the image.
    fn is_attached(&self) -> bool {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let mut images = devices.map(|d| fs::read_to_string(d.path().join("loop/backing_file")));
        images.any(|image| image.is_ok_and(|image| Path::new(image.trim()) == self.image))
    }

    fn unmount(&self, flags: UnmountFlags) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(why) = rustix::mount::unmount(&self.at, flags) {
            assert!(
                Instant::now() < deadline,
                "{} cannot be unmounted: {why}",
                self.at.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.at, UnmountFlags::DETACH).is_ok() {}
    }
}

/// A directory of a disk, to be found at another place too. Taken away when dropped.
pub struct Bind(PathBuf);

impl Bind {
    /// Makes both directories.
    pub fn mount(from: &Path, at: &Path) -> Bind {
        fs::create_dir_all(from).unwrap();
        fs::create_dir_all(at).unwrap();
        rustix::mount::mount_bind(from, at).unwrap();
        rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE).unwrap();
        Bind(at.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        // And what lies over it: the mount of a daemon that was killed.
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

/// A small disk in memory. Unmounted when dropped.
pub struct Small(PathBuf);

impl Small {
    /// Of so many KiB, at a directory, which is made.
    pub fn mount(at: &Path, kib: u64) -> Small {
        fs::create_dir_all(at).unwrap();
        let size = std::ffi::CString::new(format!("size={kib}k,mode=0755")).unwrap();
        rustix::mount::mount(
            "proxyfs-test",
            at,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE).unwrap();
        Small(at.to_owned())
    }

    /// Makes it larger, or smaller.
    pub fn resize(&self, kib: u64) {
        let size = std::ffi::CString::new(format!("size={kib}k")).unwrap();
        rustix::mount::mount_remount(&self.0, MountFlags::empty(), size.as_c_str()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}
