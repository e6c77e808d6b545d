//! A random user: operations of every kind on few names, so that names collide, are replaced and come
//! back all the time. A seed makes the same operations again (with several users at once their order
//! among each other is the machine's).
//!
//! Most operations are tried blindly, and may fail as they would on any file system (`ENOENT`,
//! `ENOTEMPTY`, ...). Errors that only a broken mount gives end the test.

#![allow(clippy::unwrap_used)]

use super::random::Random;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What all users did, in the order in which it ended.
pub struct Trace {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

impl Trace {
    pub fn new() -> Trace {
        Trace {
            start: Instant::now(),
            lines: Mutex::new(Vec::new()),
        }
    }

    pub fn note(&self, line: &str) {
        let at = self.start.elapsed().as_secs_f64();
        let mut lines = self.lines.lock().unwrap();
        lines.push(format!("{at:8.3} {line}"));
    }

    pub fn all(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

/// Few, and one of them awkward.
const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"\xff \xc3\xa9\n"];
const TARGETS: [&str; 7] = ["a", "b", "a/b", "./c", "../a", "nowhere", "/nonexistent/x"];
const FILE_MODES: [u32; 9] = [0o644, 0o600, 0o755, 0o444, 0o400, 0, 0o4755, 0o2755, 0o6711];
const DIR_MODES: [u32; 7] = [0o755, 0o700, 0o555, 0o500, 0, 0o2775, 0o1777];

type Done = io::Result<String>;
type Operation = fn(&mut User) -> Done;

/// Operations, each with how often it comes.
const OPERATIONS: [(u64, Operation); 25] = [
    (9, User::mkdir),
    (9, User::write_file),
    (4, User::create_new),
    (5, User::append),
    (5, User::overwrite_a_part),
    (4, User::set_length),
    (3, User::truncate_path),
    (8, User::unlink),
    (4, User::rmdir),
    (1, User::remove_tree),
    (9, User::rename),
    (3, User::rename_directory),
    (2, User::rename_noreplace),
    (3, User::exchange),
    (4, User::symlink),
    (2, User::replace_symlink),
    (5, User::link),
    (5, User::chmod),
    (6, User::set_times),
    (6, User::write_temporary_and_rename),
    (5, User::open_and_keep),
    (8, User::use_kept),
    (4, User::close_kept),
    (1, User::punch_or_copy),
    (1, User::make_fifo),
];

fn random_bytes(random: &mut Random, len: u64) -> Vec<u8> {
    (0..len.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .take(len as usize)
        .collect()
}

/// One user at work.
pub struct User {
    name: String,
    root: PathBuf,
    homes: Vec<PathBuf>,
    random: Random,
    kept: Vec<(PathBuf, File)>,
    trace: Arc<Trace>,
}

impl User {
    /// `number` of so many `users`, at work below `root`.
    pub fn new(root: &Path, number: usize, users: usize, seed: u64, trace: Arc<Trace>) -> User {
        let mut homes: Vec<PathBuf> = (0..users).map(|n| format!("h{n}").into()).collect();
        homes.swap(0, number);
        homes.insert(1, "shared".into());
        User {
            name: format!("user {number}"),
            root: root.to_owned(),
            homes,
            random: Random(seed),
            kept: Vec::new(),
            trace,
        }
    }

    /// Does so many things, with a moment's rest here and there, and closes all files in the end.
    pub fn work(mut self, operations: usize) {
        for home in &self.homes {
            let _there_already = fs::create_dir(self.root.join(home));
        }
        let weights: u64 = OPERATIONS.iter().map(|o| o.0).sum();
        for _ in 0..operations {
            let mut at = self.random.below(weights);
            let chosen = OPERATIONS.iter().find(|o| {
                let here = at < o.0;
                at = at.saturating_sub(o.0);
                here
            });
            let done = chosen.unwrap().1(&mut self);
            self.judge(done);
            if self.random.chance(30) {
                std::thread::sleep(Duration::from_micros(self.random.below(6000)));
            }
        }
        while !self.kept.is_empty() {
            let done = self.close_kept();
            self.judge(done);
        }
    }

    fn judge(&self, done: Done) {
        match done {
            Ok(what) => self.trace.note(&format!("{}: {what}", self.name)),
            Err(why) => {
                let broken = [
                    libc::EIO,
                    libc::EROFS,
                    libc::ENOTCONN,
                    libc::ECONNABORTED,
                    libc::ESTALE,
                    libc::EBADF,
                    libc::ENOSYS,
                    libc::ENODEV,
                    libc::EACCES,
                ];
                let number = why.raw_os_error().unwrap_or(0);
                assert!(
                    !broken.contains(&number),
                    "{}: {why}; before that:\n{}",
                    self.name,
                    self.trace.all()
                );
            }
        }
    }

    // ---- where ----

    /// Any path: mostly in the own home, sometimes in the shared one or another's.
    fn any(&mut self) -> PathBuf {
        let home = match self.random.below(100) {
            0..70 => 0,
            70..95 => 1,
            _ => self.random.below(self.homes.len() as u64) as usize,
        };
        let mut path = self.root.join(&self.homes[home]);
        let depth = self
            .random
            .pick(&[0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]);
        // A home itself seldom: all below it would go.
        let depth = if depth == 0 && self.random.chance(70) {
            1
        } else {
            depth
        };
        for _ in 0..depth {
            // Below what is no directory nothing can be done; that has to be tried too, now and then.
            if !path.is_dir() && self.random.chance(90) {
                break;
            }
            path.push(OsStr::from_bytes(self.random.pick(&NAMES)));
        }
        path
    }

    /// A path where something of the kind stands, if a few tries find one.
    fn some(&mut self, wanted: fn(&Metadata) -> bool) -> PathBuf {
        let mut path = self.any();
        for _ in 0..12 {
            if fs::symlink_metadata(&path).is_ok_and(|m| wanted(&m)) {
                break;
            }
            path = self.any();
        }
        path
    }

    fn file(&mut self) -> PathBuf {
        self.some(Metadata::is_file)
    }

    fn show(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.root).unwrap_or(path);
        path.as_os_str().as_bytes().escape_ascii().to_string()
    }

    // ---- what ----

    /// Random bytes: few, some, or more than one WRITE takes.
    fn content(&mut self) -> Vec<u8> {
        let most = self
            .random
            .pick(&[1, 30, 30, 30, 3000, 3000, 30_000, 100_000, 400_000]);
        let len = self.random.below(most);
        random_bytes(&mut self.random, len)
    }

    /// Without waiting for anybody at a FIFO.
    fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.custom_flags(libc::O_NONBLOCK).open(path)
    }

    fn mkdir(&mut self) -> Done {
        let path = self.any();
        if self.random.chance(50) {
            fs::create_dir_all(&path)?;
        } else {
            fs::create_dir(&path)?;
        }
        if self.random.chance(15) {
            let mode = self.random.pick(&DIR_MODES);
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        Ok(format!("mkdir {}", self.show(&path)))
    }

    fn write_file(&mut self) -> Done {
        let path = self.any();
        let bytes = self.content();
        let mut options = OpenOptions::new();
        let mut file = Self::open(options.write(true).create(true).truncate(true), &path)?;
        for part in bytes.chunks(65_536) {
            file.write_all(part)?;
        }
        Ok(format!(
            "write {} ({} bytes)",
            self.show(&path),
            bytes.len()
        ))
    }

    fn create_new(&mut self) -> Done {
        let path = self.any();
        let mode = self.random.pick(&FILE_MODES);
        let bytes = self.content();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        Self::open(&mut options, &path)?.write_all(&bytes)?;
        Ok(format!("create {} {mode:o}", self.show(&path)))
    }

    fn append(&mut self) -> Done {
        let path = self.file();
        let bytes = self.content();
        let mut file = Self::open(OpenOptions::new().append(true), &path)?;
        file.write_all(&bytes)?;
        Ok(format!(
            "append {} bytes to {}",
            bytes.len(),
            self.show(&path)
        ))
    }

    fn overwrite_a_part(&mut self) -> Done {
        let path = self.file();
        let file = Self::open(OpenOptions::new().write(true), &path)?;
        let mut parts = Vec::new();
        for _ in 0..=self.random.below(3) {
            let bytes = self.content();
            let offset = self.random.below(50_000);
            file.write_all_at(&bytes, offset)?;
            parts.push((offset, bytes.len()));
        }
        Ok(format!("overwrite {parts:?} in {}", self.show(&path)))
    }

    fn set_length(&mut self) -> Done {
        let path = self.file();
        let length = self.a_length();
        Self::open(OpenOptions::new().write(true), &path)?.set_len(length)?;
        Ok(format!("ftruncate {} to {length}", self.show(&path)))
    }

    fn truncate_path(&mut self) -> Done {
        let path = self.file();
        let length = self.a_length();
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a C string that lives until the call returns.
        let failed = unsafe { libc::truncate(name.as_ptr(), length as libc::off_t) } != 0;
        if failed {
            return Err(io::Error::last_os_error());
        }
        Ok(format!("truncate {} to {length}", self.show(&path)))
    }

    fn a_length(&mut self) -> u64 {
        let most = self.random.pick(&[1, 100, 5000, 200_000]);
        self.random.below(most)
    }

    fn unlink(&mut self) -> Done {
        let path = self.some(|m| !m.is_dir());
        fs::remove_file(&path)?;
        Ok(format!("unlink {}", self.show(&path)))
    }

    fn rmdir(&mut self) -> Done {
        let path = self.some(Metadata::is_dir);
        fs::remove_dir(&path)?;
        Ok(format!("rmdir {}", self.show(&path)))
    }

    fn remove_tree(&mut self) -> Done {
        let path = self.some(Metadata::is_dir);
        fs::remove_dir_all(&path)?;
        Ok(format!("rm -r {}", self.show(&path)))
    }

    fn rename(&mut self) -> Done {
        let (from, to) = (self.some(|_| true), self.any());
        fs::rename(&from, &to)?;
        Ok(format!("rename {} to {}", self.show(&from), self.show(&to)))
    }

    fn rename_directory(&mut self) -> Done {
        let from = self.some(Metadata::is_dir);
        // Over an empty one, if one is found: most have something in them.
        let to = if self.random.chance(50) {
            self.some(Metadata::is_dir)
        } else {
            self.any()
        };
        fs::rename(&from, &to)?;
        Ok(format!(
            "rename directory {} to {}",
            self.show(&from),
            self.show(&to)
        ))
    }

    fn renameat2(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
    }

    fn rename_noreplace(&mut self) -> Done {
        let (from, to) = (self.some(|_| true), self.any());
        self.renameat2(&from, &to, RenameFlags::NOREPLACE)?;
        Ok(format!(
            "rename {} to new {}",
            self.show(&from),
            self.show(&to)
        ))
    }

    fn exchange(&mut self) -> Done {
        let (a, b) = (self.some(|_| true), self.some(|_| true));
        self.renameat2(&a, &b, RenameFlags::EXCHANGE)?;
        Ok(format!("exchange {} and {}", self.show(&a), self.show(&b)))
    }

    fn symlink(&mut self) -> Done {
        let (target, path) = (self.random.pick(&TARGETS), self.any());
        symlink(target, &path)?;
        Ok(format!("symlink {} to {target}", self.show(&path)))
    }

    fn replace_symlink(&mut self) -> Done {
        let (target, path) = (self.random.pick(&TARGETS), self.any());
        let temporary = path.with_file_name("new-link");
        symlink(target, &temporary)?;
        let replaced = fs::rename(&temporary, &path);
        if replaced.is_err() {
            fs::remove_file(&temporary)?;
        }
        replaced?;
        Ok(format!(
            "replace {} by a symlink to {target}",
            self.show(&path)
        ))
    }

    fn link(&mut self) -> Done {
        let (from, to) = (self.some(|m| !m.is_dir()), self.any());
        fs::hard_link(&from, &to)?;
        let mut what = format!("link {} as {}", self.show(&from), self.show(&to));
        if self.random.chance(40) {
            let bytes = self.content();
            let through = if self.random.chance(50) { &from } else { &to };
            let mut options = OpenOptions::new();
            options.write(true).truncate(self.random.chance(50));
            if let Ok(mut file) = Self::open(&mut options, through) {
                file.write_all(&bytes)?;
                what += &format!(", write {} bytes to {}", bytes.len(), self.show(through));
            }
        }
        Ok(what)
    }

    fn chmod(&mut self) -> Done {
        let path = self.some(|m| !m.is_symlink());
        let mode = if path.is_dir() {
            self.random.pick(&DIR_MODES)
        } else {
            self.random.pick(&FILE_MODES)
        };
        fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        Ok(format!("chmod {mode:o} {}", self.show(&path)))
    }

    fn a_time(&mut self) -> Timestamps {
        let mut time = |now: u64, keep: u64| match self.random.below(100) {
            n if n < now => rustix::fs::UTIME_NOW,
            n if n < now + keep => rustix::fs::UTIME_OMIT,
            _ => self.random.below(1_000_000_000) as _,
        };
        let nanoseconds = [time(20, 30), time(10, 10)];
        let mut stamp = |tv_nsec| Timespec {
            tv_sec: 900_000_000 + self.random.below(600_000_000) as i64,
            tv_nsec,
        };
        Timestamps {
            last_access: stamp(nanoseconds[0]),
            last_modification: stamp(nanoseconds[1]),
        }
    }

    fn set_times(&mut self) -> Done {
        let path = self.some(|_| true);
        let times = self.a_time();
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        let time = times.last_modification;
        Ok(format!(
            "utimens {} {}.{:09}",
            self.show(&path),
            time.tv_sec,
            time.tv_nsec
        ))
    }

    fn write_temporary_and_rename(&mut self) -> Done {
        let path = self.any();
        let bytes = self.content();
        // Own name each, as every program does that has thought about it.
        let temporary = if self.random.chance(80) {
            path.with_file_name(format!(".tmp-{}", self.name))
        } else {
            self.root.join(format!(".tmp-{}", self.name))
        };
        let mut options = OpenOptions::new();
        let mut file = Self::open(options.write(true).create(true).truncate(true), &temporary)?;
        file.write_all(&bytes)?;
        if self.random.chance(30) {
            let mode = self.random.pick(&FILE_MODES);
            file.set_permissions(PermissionsExt::from_mode(mode))?;
        }
        if self.random.chance(30) {
            rustix::fs::futimens(&file, &self.a_time())?;
        }
        if self.random.chance(20) {
            file.sync_all()?;
        }
        let close_late = self.random.chance(20);
        let open = Some(file).filter(|_| close_late);
        let renamed = fs::rename(&temporary, &path);
        if renamed.is_err() {
            fs::remove_file(&temporary)?;
        }
        drop(open);
        renamed?;
        Ok(format!("write {} by a temporary", self.show(&path)))
    }

    fn open_and_keep(&mut self) -> Done {
        if self.kept.len() >= 4 {
            return self.close_kept();
        }
        let mut options = OpenOptions::new();
        let path = match self.random.below(3) {
            0 => {
                options.write(true).create(true);
                self.any()
            }
            1 => {
                options.append(true);
                self.file()
            }
            _ => {
                options.write(true).truncate(self.random.chance(30));
                self.file()
            }
        };
        let file = Self::open(&mut options, &path)?;
        let what = format!("open {}", self.show(&path));
        self.kept.push((path, file));
        Ok(what)
    }

    fn use_kept(&mut self) -> Done {
        let bytes = self.content();
        let offset = self.random.below(20_000);
        let length = self.a_length();
        if self.kept.is_empty() {
            return Ok(String::from("nothing is open"));
        }
        let at = self.random.below(self.kept.len() as u64) as usize;
        let choice = self.random.below(10);
        let mode = self.random.pick(&FILE_MODES);
        let times = self.a_time();
        let (path, file) = &mut self.kept[at];
        let what = match choice {
            0..=4 => {
                file.write_all(&bytes)?;
                format!("write on ({} bytes)", bytes.len())
            }
            5 => {
                file.write_all_at(&bytes, offset)?;
                format!("write on ({} bytes at {offset})", bytes.len())
            }
            6 => {
                file.set_len(length)?;
                format!("cut to {length}")
            }
            7 => {
                file.sync_data()?;
                String::from("fsync")
            }
            8 => {
                file.set_permissions(PermissionsExt::from_mode(mode))?;
                format!("fchmod {mode:o}")
            }
            _ => {
                rustix::fs::futimens(&*file, &times)?;
                format!("futimens {}", times.last_modification.tv_sec)
            }
        };
        let path = path.clone();
        Ok(format!("{what}, opened as {}", self.show(&path)))
    }

    fn close_kept(&mut self) -> Done {
        if self.kept.is_empty() {
            return Ok(String::from("nothing is open"));
        }
        let at = self.random.below(self.kept.len() as u64) as usize;
        let (path, file) = self.kept.swap_remove(at);
        drop(file);
        Ok(format!("close what was opened as {}", self.show(&path)))
    }

    fn punch_or_copy(&mut self) -> Done {
        let (path, from) = (self.file(), self.file());
        let (offset, length) = (self.random.below(20_000), 1 + self.random.below(20_000));
        let file = Self::open(OpenOptions::new().write(true), &path)?;
        if self.random.chance(50) {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, punch, offset, length)?;
            return Ok(format!(
                "punch {offset}+{length} out of {}",
                self.show(&path)
            ));
        }
        let source = Self::open(OpenOptions::new().read(true), &from)?;
        let mut at = offset;
        rustix::fs::copy_file_range(&source, None, &file, Some(&mut at), length as usize)?;
        Ok(format!(
            "copy {} to {} at {offset}",
            self.show(&from),
            self.show(&path)
        ))
    }

    fn make_fifo(&mut self) -> Done {
        let path = self.any();
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?;
        Ok(format!("mkfifo {}", self.show(&path)))
    }
}
