//! The mount: every operation once by a real kernel, and what is recorded of it.
#![allow(clippy::unwrap_used)]

mod exclude;
mod failing_log;
mod life;
mod limits;
mod listings;
mod names;
mod open_files;
mod passthrough;
mod records;
mod replica;
mod safe;
mod same;
mod users;

use crate::support::mounts::{PATIENCE, TestMount, check_the_machine, show, wait_until};
use proxyfs::change::{Change, Extent, Timestamp};
use proxyfs::local::{Local, LocalOptions, open_node};
use proxyfs::mount::{MountError, MountOptions, Unmounted, clear_stale, mount};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn to_write(path: impl AsRef<Path>) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// A file that must not be there yet, as `cp` and `tar` make one.
fn make(path: impl AsRef<Path>) -> File {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).open(path).unwrap()
}
