//! People who go on working whatever happens: what fails, fails.
#![allow(clippy::unwrap_used)]

use super::random::Random;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Works below `root` until told to stop; counts what was done, and what failed with an error that says that
/// something is broken.
#[derive(Default)]
pub struct Load {
    pub stop: AtomicBool,
    pub done: AtomicU64,
    pub refused: AtomicU64,
}

impl Load {
    /// Works on this thread.
    pub fn work(&self, root: &Path, seed: u64) {
        let mut random = Random(seed);
        while !self.stop.load(Ordering::Relaxed) {
            match step(root, &mut random) {
                Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                Err(why) => {
                    let broken = [libc::EIO, libc::EROFS, libc::ENOTCONN, libc::ENOSPC];
                    if why.raw_os_error().is_some_and(|n| broken.contains(&n)) {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
        }
    }
}

fn any(root: &Path, random: &mut Random) -> PathBuf {
    let mut path = root.to_owned();
    for _ in 0..1 + random.below(3) {
        path.push(random.pick(&["a", "b", "c", "d", "e"]));
    }
    path
}

/// Bytes that tell one version from another.
fn bytes(random: &mut Random) -> Vec<u8> {
    let length = random.pick(&[0, 10, 500, 4096, 40_000, 300_000]);
    let start = random.next();
    (0..length)
        .map(|n| (start.wrapping_add(n) % 251) as u8)
        .collect()
}

/// Does one thing, with what is there.
pub fn step(root: &Path, random: &mut Random) -> io::Result<()> {
    let (path, other) = (any(root, random), any(root, random));
    match random.below(16) {
        0 | 1 => fs::create_dir(path),
        2..=4 => fs::write(path, bytes(random)),
        5 => {
            let new = path.with_file_name(format!("new-{}", random.below(3)));
            fs::write(&new, bytes(random))?;
            fs::rename(new, path)
        }
        6 => OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(&bytes(random)),
        7 => {
            let file = OpenOptions::new().write(true).open(path)?;
            let (at, some) = (random.below(200_000), bytes(random));
            file.write_all_at(&some[..some.len().min(3000)], at)
        }
        8 => OpenOptions::new()
            .write(true)
            .open(path)?
            .set_len(random.below(50_000)),
        9 => fs::remove_file(path),
        10 => fs::remove_dir(path),
        11..=13 => fs::rename(path, other),
        14 => symlink("some/target", path),
        _ => {
            if path.is_symlink() {
                return Ok(());
            }
            fs::set_permissions(
                &path,
                PermissionsExt::from_mode(0o700 + random.below(64) as u32),
            )?;
            let time =
                SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + random.below(1 << 28));
            File::open(path)?.set_modified(time)
        }
    }
}
