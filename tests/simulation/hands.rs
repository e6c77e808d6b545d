//! What applications do, asked of [`Local`] as the kernel would ask: names are looked up part by part, and forgotten.

use super::super::support::random::Random;
use proxyfs::change::{ByteRanges, RelPath, Timestamp};
use proxyfs::local::{Caller, Local, SetAttributes, SetTime, Writer};
use rustix::io::Errno;
use std::collections::HashSet;

/// How long files are that are written from their beginning: nothing, a little, more than one WRITE, more than four. None
/// is half of another.
pub const LENGTHS: [usize; 5] = [0, 5, 100, 33_000, 140_000];

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
    thread: 0,
};

const WRITER: Writer = Writer {
    thread: 0,
    kill_privileges: false,
    cached: false,
};

const ROOT: u64 = 1;

/// A file that somebody has open.
struct Open {
    handle: u64,
    node: u64,
    /// What is still to be written: where, and of what length it will be then.
    rest: Option<(usize, usize, u8)>,
}

/// Somebody who works with the files.
pub struct Hands {
    open: Vec<Open>,
    /// Inodes that are of no single version: some bytes of them were changed.
    pub patched: HashSet<u64>,
    /// The bytes that the last step has changed in a part, and of which inode.
    pub changed: Option<(u64, ByteRanges)>,
    version: u8,
    clock: i64,
    /// How many names they use.
    pub names: u64,
}

/// What was done, in a line; and whether the log must have it now (J1).
pub type Done = Result<(String, bool), Errno>;

impl Hands {
    pub fn new(names: u64) -> Hands {
        Hands {
            open: Vec::new(),
            patched: HashSet::new(),
            changed: None,
            version: 0,
            clock: 0,
            names,
        }
    }

    /// Those who had files open are dead, and leave them as they are.
    pub fn died(&mut self) {
        self.open.clear();
    }

    /// Whether somebody has it open.
    pub fn has_open(&self, node: u64) -> bool {
        self.open.iter().any(|open| open.node == node)
    }

    /// What is open is about to be recorded as it is.
    pub fn patch_open(&mut self) {
        let open = self.open.iter().map(|open| open.node);
        self.patched.extend(open);
    }

    /// Does something, if it can be done.
    pub fn work(&mut self, local: &Local, random: &mut Random) -> Done {
        let places = (any_path(random, self.names), any_path(random, self.names));
        let kind = random.below(24);
        self.changed = None;
        self.act(kind, places, local, random)
    }

    /// Changes names only, at the first thing that can be done. Gives what was done.
    pub fn change_names(&mut self, local: &Local, seed: u64) -> Option<String> {
        let mut random = Random(seed);
        (0..20)
            .find_map(|_| {
                let kind = random.pick(&[0, 6, 6, 7, 8, 9, 10, 12, 13]);
                let path = |random: &mut Random| {
                    let path = any_path(random, self.names);
                    // Where the other one is, most probably.
                    if random.one_in(2) {
                        RelPath::new(&path.as_bytes()[..1]).unwrap()
                    } else {
                        path
                    }
                };
                let places = (path(&mut random), path(&mut random));
                self.act(kind, places, local, &mut random).ok()
            })
            .map(|done| done.0)
    }

    fn act(
        &mut self,
        kind: u64,
        (path, other): (RelPath, RelPath),
        local: &Local,
        random: &mut Random,
    ) -> Done {
        match kind {
            0 | 1 => {
                let mode = 0o700 + random.below(64) as u32;
                at(local, &path, |dir, name| {
                    local
                        .mkdir(dir, name, mode, CALLER)
                        .map(|stat| local.forget(stat.ino, 1))
                })?;
                Ok((format!("mkdir {path}"), true))
            }
            2..=5 => self.write(local, random, &path),
            6 => {
                at(local, &path, |dir, name| local.unlink(dir, name))?;
                // Unless it was new.
                Ok((format!("unlink {path}"), false))
            }
            7 => {
                at(local, &path, |dir, name| local.rmdir(dir, name))?;
                Ok((format!("rmdir {path}"), true))
            }
            8..=11 => {
                let flags = if random.one_in(4) {
                    libc::RENAME_EXCHANGE
                } else {
                    0
                };
                at(local, &path, |dir, name| {
                    at(local, &other, |to, new| {
                        local.rename(dir, name, to, new, flags)
                    })
                })?;
                // What is half written is recorded before its name changes, and travels so.
                self.patch_open();
                Ok((format!("rename {path} {other} ({flags})"), false))
            }
            12 => {
                let node = node(local, &path, |node| {
                    at(local, &other, |dir, name| {
                        local
                            .link(node, dir, name)
                            .map(|stat| local.forget(stat.ino, 1))
                    })?;
                    Ok(node)
                })?;
                // A half of it may be seen from now on: what links to it needs it there.
                if self.open.iter().any(|open| open.node == node) {
                    self.patched.insert(node);
                }
                Ok((format!("link {path} {other}"), true))
            }
            13 => {
                at(local, &path, |dir, name| {
                    local
                        .symlink(dir, name, b"some/target", CALLER)
                        .map(|stat| local.forget(stat.ino, 1))
                })?;
                Ok((format!("symlink {path}"), true))
            }
            14 => {
                let set = SetAttributes {
                    mode: Some(0o700 + random.below(64) as u32),
                    ..SetAttributes::default()
                };
                node(local, &path, |node| {
                    // Of a link the kernel does not ask for that.
                    match local.attributes(node, None)?.file_type() == libc::S_IFLNK {
                        true => Err(Errno::OPNOTSUPP),
                        false => local.set_attributes(node, None, &set, CALLER).map(drop),
                    }
                })?;
                Ok((format!("chmod {path}"), false))
            }
            15..=18 => {
                let found = (0..20).map(|_| any_path(random, self.names)).find(|path| {
                    let kind = node(local, path, |node| local.attributes(node, None));
                    kind.is_ok_and(|stat| stat.file_type() == libc::S_IFREG)
                });
                match found {
                    Some(path) => self.patch(local, random, &path),
                    None => Err(Errno::NOENT),
                }
            }
            _ => self.close(local),
        }
    }

    /// Writes a file from its beginning: at once, or a half of it for now.
    fn write(&mut self, local: &Local, random: &mut Random, path: &RelPath) -> Done {
        let length = LENGTHS[random.below(5) as usize];
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        let made = at(local, path, |dir, name| {
            match local.lookup(dir, name) {
                Err(Errno::NOENT) => {}
                Err(why) => return Err(why),
                Ok(stat) => {
                    let opened = match stat.file_type() == libc::S_IFREG {
                        true => local.open_file(stat.ino, flags, CALLER),
                        false => Err(Errno::ISDIR),
                    };
                    local.forget(stat.ino, 1);
                    return opened.map(|opened| (opened.handle, stat.ino, false));
                }
            }
            let mode = 0o600 + random.below(64) as u32;
            let (stat, opened) = local.create(dir, name, mode, flags, CALLER)?;
            local.forget(stat.ino, 1);
            Ok((opened.handle, stat.ino, true))
        });
        let (handle, node, new) = made?;
        if new {
            self.patched.remove(&node);
        }
        // Who has it open as well goes on somewhere in it; and of one with several names a half may be seen.
        let shared = self.open.iter().any(|open| open.node == node);
        let linked = local.attributes(node, Some(handle))?.nlink > 1;
        if shared || linked {
            self.patched.insert(node);
        }
        self.version = self.version % 250 + 1;
        let version = self.version;
        let half = random.one_in(4) && self.open.len() < 4;
        let now = if half { length / 2 } else { length };
        local.write(handle, 0, &[version].repeat(now), WRITER)?;
        if half {
            let rest = Some((now, length, version));
            self.open.push(Open { handle, node, rest });
            return Ok((format!("write half of {path}: {now} of {length}"), false));
        }
        self.set_time(local, node, handle)?;
        finish(local, handle)?;
        // An empty file waits for its bytes while somebody else may write them.
        let recorded = length > 0 || !shared;
        Ok((format!("write {path}: {length} of {version}"), recorded))
    }

    /// Ends what was begun first.
    fn close(&mut self, local: &Local) -> Done {
        if self.open.is_empty() {
            return Err(Errno::BADF);
        }
        let Open { handle, node, rest } = self.open.remove(0);
        if let Some((at, length, version)) = rest {
            local.write(handle, at as u64, &[version].repeat(length - at), WRITER)?;
            self.set_time(local, node, handle)?;
        }
        finish(local, handle)?;
        Ok(("close".to_string(), false))
    }

    /// Closes everything, so that all is whole.
    pub fn close_all(&mut self, local: &Local) {
        while !self.open.is_empty() {
            let _ = self.close(local);
        }
    }

    /// Changes a part of a file.
    fn patch(&mut self, local: &Local, random: &mut Random, path: &RelPath) -> Done {
        let (handle, node) = node(local, path, |node| {
            let opened = local.open_file(node, libc::O_WRONLY, CALLER)?;
            Ok((opened.handle, node))
        })?;
        self.patched.insert(node);
        let size = local.attributes(node, Some(handle))?.size;
        let byte = random.next() as u8;
        let mut ranges = ByteRanges::new();
        let mut write = |at: u64, length: u64| {
            ranges.insert(at, at + length);
            let bytes = [byte].repeat(length as usize);
            local.write(handle, at, &bytes, WRITER).map(drop)
        };
        let (at, length) = (random.below(size + 1), 1 + random.below(3000));
        let cut = SetAttributes {
            size: Some(at),
            ..SetAttributes::default()
        };
        match random.below(5) {
            0 | 1 => write(at, length)?,
            2 => write(size, length + random.below(40_000))?,
            3 => {
                write(at, 1)?;
                write(size, 200_000)?;
            }
            _ => {
                local.set_attributes(node, Some(handle), &cut, CALLER)?;
            }
        }
        self.set_time(local, node, handle)?;
        finish(local, handle)?;
        self.changed = Some((node, ranges));
        // As above: it may be empty now.
        let shared = self.open.iter().any(|open| open.node == node);
        Ok((format!("change a part of {path}"), !shared))
    }

    /// No two versions have the same time, however coarse the clock; but now and then they do.
    fn set_time(&mut self, local: &Local, node: u64, handle: u64) -> Result<(), Errno> {
        self.clock += 1;
        let time = SetTime::At(Timestamp {
            seconds: 1_600_000_000 + self.clock,
            nanoseconds: 0,
        });
        let set = SetAttributes {
            atime: time,
            mtime: time,
            ..SetAttributes::default()
        };
        local
            .set_attributes(node, Some(handle), &set, CALLER)
            .map(drop)
    }
}

fn finish(local: &Local, handle: u64) -> Result<(), Errno> {
    let flushed = local.flush_file(handle, 0);
    flushed.and(local.release_file(handle))
}

/// So few names (up to four) that they collide.
pub fn any_path(random: &mut Random, names: u64) -> RelPath {
    let all = ["a", "b", "c", "d"];
    let parts: Vec<&str> = (0..1 + random.below(3))
        .map(|_| all[random.below(names) as usize])
        .collect();
    RelPath::new(parts.join("/").as_bytes()).unwrap()
}

/// With the directory of a path, and the name in it.
fn at<T>(
    local: &Local,
    path: &RelPath,
    act: impl FnOnce(u64, &[u8]) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let parent = path.parent().unwrap();
    node(local, &parent, |dir| act(dir, path.name()))
}

/// With the node of a path, which is known as long.
fn node<T>(
    local: &Local,
    path: &RelPath,
    act: impl FnOnce(u64) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let mut way = Vec::new();
    let mut at = Ok(ROOT);
    if !path.is_root() {
        for part in path.as_bytes().split(|b| *b == b'/') {
            at = at.and_then(|dir| Ok(local.lookup(dir, part)?.ino));
            way.extend(at);
        }
    }
    let done = at.and_then(act);
    way.iter().rev().for_each(|node| local.forget(*node, 1));
    done
}
