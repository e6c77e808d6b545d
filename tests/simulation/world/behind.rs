//! What is done behind the back of the daemon: in the source while none runs, and on the mirror.

use super::super::hands::any_path;
use super::World;
use super::deaths::{become_like, remove};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

impl World {
    /// While no daemon runs, somebody works in the source itself.
    pub fn edit_offline(&mut self) {
        let things = self.random().below(8);
        for _ in 0..things {
            let path = any_path(&mut self.random(), self.names());
            let other = any_path(&mut self.random(), self.names());
            let (real, to) = (
                self.root.join(path.as_path()),
                self.root.join(other.as_path()),
            );
            let kind = self.random().below(7);
            let is_file = fs::symlink_metadata(&real).is_ok_and(|m| m.is_file());
            let done = match kind {
                0 => fs::create_dir(&real),
                1 if is_file || !real.exists() => fs::write(&real, vec![1; 5]),
                2 if is_file => edit_in_place(&real),
                3 => fs::remove_file(&real),
                4 => fs::remove_dir_all(&real),
                _ => fs::rename(&real, &to),
            };
            if done.is_ok() {
                self.repaired.set(true);
                self.tell(format!("-- offline: {kind} {path} {other}"));
            }
        }
        self.look_for_parts();
    }

    /// Somebody changes something on the mirror itself, or it is put back to what it was.
    pub fn tamper(&self) {
        let old = self.base.with_file_name("backup");
        let (what, how) = {
            let mut random = self.random();
            (random.below(12), random.below(3))
        };
        match what {
            0 => {
                if !old.exists() {
                    fs::create_dir(&old).unwrap();
                }
                become_like(&old, &self.base);
                self.tell("-- a backup of the mirror is made".to_string());
            }
            1 if old.exists() => {
                become_like(&self.base, &old);
                self.is_strange("the mirror is what it was at the backup");
            }
            2 | 3 => {
                let path = self
                    .base
                    .join(any_path(&mut self.random(), self.names()).as_path());
                match how {
                    0 => remove(&path),
                    1 => drop(fs::remove_file(&path).and_then(|()| fs::create_dir(&path))),
                    _ => {
                        remove(&path);
                        let _ = fs::write(&path, "strange");
                    }
                }
                self.is_strange(&format!("a stranger at {}", path.display()));
            }
            _ => {}
        }
    }

    pub(super) fn is_strange(&self, what: &str) {
        self.strange.set(true);
        self.repaired.set(true);
        self.tell(format!("-- {what}"));
    }
}

/// Changes a byte, and leaves size and time as they were.
pub(super) fn edit_in_place(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let meta = file.metadata()?;
    if meta.len() > 0 {
        file.write_all_at(&[0], meta.len() / 2)?;
    }
    file.set_modified(meta.modified()?)
}
