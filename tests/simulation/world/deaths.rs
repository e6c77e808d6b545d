//! The daemon dies, and the machine with it: what is left then of the log and of the source.

use super::looks::is_whole;
use super::{Killed, World};
use proxyfs::change::Seq;
use proxyfs::fault;
use proxyfs::journal::{FILE_NAME, Journal};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

impl World {
    /// Notes what is on the disk. If it is mortal the daemon dies at one of the next points: what is in the state
    /// directory then is all that is left of it.
    pub(super) fn watch_points(&self, mortal: bool) {
        let mut random = self.random();
        let only = random.pick(&[
            "",
            "",
            "",
            "local.",
            "journal.",
            "mirror.",
            "checkpoint.",
            "scan.",
        ]);
        let mut left = match only {
            _ if !mortal => u64::MAX,
            "" => random.below(400),
            "checkpoint." | "scan." => random.below(6),
            _ => random.below(60),
        };
        let state = Rc::clone(&self.state);
        let told = Rc::clone(&self.told);
        let disk = Rc::clone(&self.disk);
        let next = self.next_state();
        let (root, guest) = (self.root.clone(), Rc::clone(&self.guest));
        fault::watch(Some(Box::new(move |point| {
            match point {
                "journal.durable" => disk.is_durable(&state.borrow()),
                "checkpoint.durable" => disk.keep_source(&root),
                _ => {}
            }
            if !point.starts_with(only) || left > 0 {
                left -= u64::from(point.starts_with(only));
                if let (true, Some(guest)) = (point.starts_with("local."), &mut *guest.borrow_mut())
                {
                    guest.may_come();
                }
                return;
            }
            copy_state(&state.borrow(), &next);
            *state.borrow_mut() = next.clone();
            told.borrow_mut().push(format!("-- killed at {point}"));
            resume_unwind(Box::new(Killed));
        })));
    }

    pub(super) fn next_state(&self) -> PathBuf {
        let name = format!("state-{}", self.deaths + 1);
        self.root.with_file_name(name)
    }

    /// The next start finds what is left.
    pub fn after_death(&mut self) {
        self.deaths += 1;
        self.part();
        self.repaired.set(true);
        self.hands.get_mut().died();
        self.disk.journal.take();
        if self.random().one_in(3) {
            self.lose_power();
        }
        self.look_for_parts();
    }

    /// The machine dies as well: of the WAL at least that is left which was made durable, of the source all, or what
    /// the last checkpoint has made durable.
    pub(super) fn lose_power(&self) {
        self.went_down.set(true);
        let wal = self.state.borrow().join(format!("{FILE_NAME}-wal"));
        let length = fs::metadata(&wal).map_or(0, |wal| wal.len());
        let durable = self.disk.wal.get().min(length);
        let kept = durable + self.random().below(length - durable + 1);
        if length > 0 {
            let wal = File::options().write(true).open(&wal).unwrap();
            wal.set_len(kept).unwrap();
        }
        let before = self.disk.source.borrow();
        let before = before.as_ref().filter(|_| self.random().one_in(2));
        // A source that is empty all at once is not taken for one (P8).
        let before = before.filter(|before| fs::read_dir(before).unwrap().count() > 1);
        if let Some(before) = before {
            become_like(&self.root, before);
        }
        let source = if before.is_some() {
            "as it was"
        } else {
            "kept"
        };
        self.tell(format!(
            "-- no power: {kept} of {length} bytes of the WAL left, {durable} of them surely; source {source}"
        ));
    }

    /// What is of no single version now.
    pub(super) fn look_for_parts(&mut self) {
        let hands = self.hands.get_mut();
        // Some file may be half of what it was to be, and travels so.
        let mut to_do = vec![self.root.clone()];
        while let Some(dir) = to_do.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    to_do.push(entry.path());
                } else if kind.is_file() && !is_whole(&fs::read(entry.path()).unwrap()) {
                    hands.patched.insert(entry.metadata().unwrap().ino());
                }
            }
        }
    }
}

/// What of the state directory, and of the source, is surely on the disk.
#[derive(Default)]
pub(super) struct Disk {
    /// The journal that is at work.
    pub(super) journal: RefCell<Option<Arc<Journal>>>,
    /// So much of its WAL is there, in bytes, and so the log up to here.
    pub(super) wal: Cell<u64>,
    pub(super) head: Cell<Seq>,
    /// A copy of the source as it was at the last checkpoint, if one is kept.
    pub(super) source: RefCell<Option<PathBuf>>,
}

impl Disk {
    /// What is in the WAL by now is on the disk.
    pub(super) fn is_durable(&self, state: &Path) {
        if let Some(journal) = &*self.journal.borrow() {
            self.head.set(journal.head());
            let wal = state.join(format!("{FILE_NAME}-wal"));
            self.wal.set(fs::metadata(wal).map_or(0, |wal| wal.len()));
        }
    }

    /// The source is on the disk as it is.
    pub(super) fn keep_source(&self, root: &Path) {
        let copy = root.with_file_name("on-disk");
        if !copy.exists() {
            fs::create_dir(&copy).unwrap();
        }
        become_like(&copy, root);
        *self.source.borrow_mut() = Some(copy);
    }
}

/// Makes a directory like another one: what is the same already is left as it is.
pub(super) fn become_like(dir: &Path, like: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| meta.file_type());
        if kind(&path) != kind(&like.join(path.file_name().unwrap())) {
            remove(&path);
        }
    }
    for entry in fs::read_dir(like).unwrap() {
        let (from, meta) = entry.map(|e| (e.path(), e.metadata().unwrap())).unwrap();
        let to = dir.join(from.file_name().unwrap());
        if meta.is_symlink() {
            if fs::read_link(&to).ok() != fs::read_link(&from).ok() {
                remove(&to);
                std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), &to).unwrap();
            }
            continue;
        }
        if meta.is_dir() {
            if !to.exists() {
                fs::create_dir(&to).unwrap();
            }
            become_like(&to, &from);
        } else if fs::read(&to).ok() != fs::read(&from).ok() {
            remove(&to);
            fs::copy(&from, &to).unwrap();
        }
        let now = fs::metadata(&to).unwrap();
        if now.mode() != meta.mode() {
            fs::set_permissions(&to, meta.permissions()).unwrap();
        }
        if now.modified().unwrap() != meta.modified().unwrap() {
            let times = fs::FileTimes::new().set_modified(meta.modified().unwrap());
            File::open(&to).unwrap().set_times(times).unwrap();
        }
    }
}

pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
}

pub(super) fn copy_state(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
