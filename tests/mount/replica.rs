//! Random users: what is recorded makes the same tree elsewhere.

use super::*;
use proxyfs::exclude::Exclude;

/// A mirror without a network: carries out what is recorded, and trusts that it fits.
struct Replica<'a> {
    dir: tempfile::TempDir,
    source: &'a TestMount,
}

impl Replica<'_> {
    fn at(&self, path: &proxyfs::change::RelPath) -> std::path::PathBuf {
        self.dir.path().join(path.as_path())
    }

    fn apply(&self, change: &Change) -> std::io::Result<()> {
        match change {
            Change::Mkdir { path, mode, .. } => {
                fs::create_dir(self.at(path))?;
                chmod(self.at(path), *mode);
                Ok(())
            }
            Change::Rmdir { path } => fs::remove_dir(self.at(path)),
            Change::Unlink { path } => fs::remove_file(self.at(path)),
            Change::Symlink { path, target, .. } => {
                symlink(std::ffi::OsStr::from_bytes(target), self.at(path))
            }
            Change::Link { from, path } => fs::hard_link(self.at(from), self.at(path)),
            Change::Rename { from, to } => fs::rename(self.at(from), self.at(to)),
            Change::Exchange { a, b } => {
                let (a, b) = (self.at(a), self.at(b));
                Ok(rustix::fs::renameat_with(
                    CWD,
                    a,
                    CWD,
                    b,
                    RenameFlags::EXCHANGE,
                )?)
            }
            Change::Content {
                path,
                node,
                extent,
                size,
                linked,
            } => {
                // A mirror gets it as another file, which is renamed to this name; but not one with several.
                if matches!(extent, Extent::Whole) && !linked {
                    let _ = fs::remove_file(self.at(path));
                }
                let target = OpenOptions::new()
                    .write(true)
                    .create(matches!(extent, Extent::Whole))
                    .truncate(false)
                    .open(self.at(path))?;
                let Ok(fd) = open_node(self.source.local.root_fd(), node, OFlags::RDONLY) else {
                    return Ok(());
                };
                let source = File::from(fd);
                target.set_permissions(source.metadata()?.permissions())?;
                let ranges = match extent {
                    Extent::Whole => [(0, *size)].into_iter().collect(),
                    Extent::Ranges(ranges) => ranges.clone(),
                };
                for (start, end) in ranges.iter() {
                    let mut bytes = vec![0; (end - start) as usize];
                    let length = source.read_at(&mut bytes, start)?;
                    target.write_all_at(&bytes[..length], start)?;
                }
                target.set_len(*size)
            }
            Change::Repair { path, .. } => panic!("the mount asks for no repair: {path}"),
            Change::Attr { path, mode, .. } => {
                if let Some(mode) = mode {
                    chmod(self.at(path), *mode);
                }
                Ok(())
            }
        }
    }
}

/// Every entry below `dir`: path, type and mode, links, what it holds.
fn listing(dir: &Path, exclude: &Exclude) -> Vec<(String, u32, u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut to_do = vec![dir.to_owned()];
    while let Some(next) = to_do.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let holds = if stat.is_dir() {
                to_do.push(path.clone());
                Vec::new()
            } else if stat.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            // An excluded name is one that mirrors do not have.
            let counted = !stat.is_dir() && exclude.is_empty();
            let links = if counted { stat.nlink() } else { 0 };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let relative = proxyfs::change::RelPath::new(name.as_bytes()).unwrap();
            if exclude.excludes(&relative, stat.is_dir()) {
                continue;
            }
            found.push((name, stat.mode(), links, holds));
        }
    }
    found.sort();
    found
}

/// Random operations in a small tree, so that they meet; most fail, and that is part of it.
fn play(m: &TestMount, seed: u64, rounds: usize) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n
    };
    let mut open: Vec<File> = Vec::new();
    for _ in 0..rounds {
        let mut name = || {
            let dirs = ["", "", "d/", "e/", "d/f/"];
            let dir = dirs[random(dirs.len() as u64) as usize];
            format!(
                "{dir}{}",
                ["a", "b", "c", "d", "e", "f"][random(6) as usize]
            )
        };
        let (from, to) = (m.path(name()), m.path(name()));
        let (offset, length) = (random(3000), random(300) as usize + 1);
        let bytes = vec![b'a' + random(26) as u8; length];
        let any = if open.is_empty() {
            0
        } else {
            random(open.len() as u64) as usize
        };
        let _ = match random(18) {
            0 => fs::create_dir(&from),
            1 => fs::remove_dir(&from),
            2 | 3 => fs::remove_file(&from),
            4 => symlink("target", &from),
            5 => fs::hard_link(&from, &to),
            6 | 7 => fs::rename(&from, &to),
            8 => rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE)
                .map_err(Into::into),
            9 | 10 => fs::write(&from, &bytes),
            11 => OpenOptions::new()
                .append(true)
                .create(true)
                .open(&from)
                .and_then(|mut f| f.write_all(&bytes)),
            12 => fs::set_permissions(&from, PermissionsExt::from_mode(0o700 + random(64) as u32)),
            13 => OpenOptions::new()
                .write(true)
                .create(random(2) == 0)
                .truncate(random(4) == 0)
                .open(&from)
                .map(|f| open.push(f)),
            14 | 15 => open
                .get(any)
                .map_or(Ok(()), |f| f.write_all_at(&bytes, offset)),
            16 => open.get(any).map_or(Ok(()), |f| f.set_len(random(3000))),
            _ => {
                if !open.is_empty() {
                    open.swap_remove(any);
                }
                Ok(())
            }
        };
    }
}

#[test]
fn what_is_recorded_makes_the_same_tree_elsewhere() {
    for seed in 1..=6 {
        play_and_compare(seed, "");
    }
}

#[test]
fn what_is_recorded_makes_the_same_tree_but_for_what_is_excluded() {
    for seed in 11..=13 {
        play_and_compare(seed, "b");
        play_and_compare(seed, "/d/f/, e/c, /d/a");
        play_and_compare(seed, "/e, c, !/d/c, */f/e");
    }
}

/// `PROXYFS_SEEDS=100..200 cargo test --test suite -- --ignored more_seeds`: as many as somebody has time for.
#[test]
#[ignore = "takes as long as it is told to"]
fn more_seeds_make_the_same_tree_elsewhere() {
    let seeds = std::env::var("PROXYFS_SEEDS").unwrap_or_default();
    let (from, to) = seeds.split_once("..").expect("PROXYFS_SEEDS=FROM..TO");
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        play_and_compare(seed, "");
    }
}

fn play_and_compare(seed: u64, patterns: &str) {
    {
        let exclude = match patterns {
            "" => Exclude::default(),
            _ => Exclude::parse(patterns).unwrap(),
        };
        let options = LocalOptions {
            exclude: exclude.clone(),
            ..LocalOptions::default()
        };
        let m = TestMount::passing_with(options, seed.is_multiple_of(2));
        for dir in ["d", "e", "d/f"] {
            fs::create_dir(m.path(dir)).unwrap();
        }
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let m = &m;
                scope.spawn(move || play(m, seed * 10 + thread, 800));
            }
        });
        m.local.flush_all().unwrap();
        let changes = m.recorder.take();
        assert!(changes.len() > 100, "they must not all have failed");
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica { dir, source: &m };
        for (i, change) in changes.iter().enumerate() {
            if let Err(e) = replica.apply(change) {
                let shown: Vec<String> =
                    changes[i.saturating_sub(30)..=i].iter().map(show).collect();
                panic!("seed {seed}: {e} at the last of {shown:#?}");
            }
        }
        let source = listing(&m.source(""), &exclude);
        let copy = listing(replica.dir.path(), &exclude);
        if source != copy {
            let differs = source.iter().zip(&copy).position(|(a, b)| a != b);
            let at = differs.unwrap_or(source.len().min(copy.len()));
            let brief = |all: &[(String, u32, u64, Vec<u8>)]| {
                let entry = all.get(at);
                entry.map(|e| (e.0.clone(), e.1, e.2, e.3.len()))
            };
            let (here, there) = (brief(&source), brief(&copy));
            let names = [&here, &there].map(|e| e.as_ref().map(|e| e.0.clone()));
            let about: Vec<String> = changes
                .iter()
                .map(show)
                .filter(|c| names.iter().flatten().any(|n| c.contains(n.as_str())))
                .collect();
            let about = &about[about.len().saturating_sub(60)..];
            panic!("seed {seed}: {here:?} is {there:?} there; last of them: {about:#?}");
        }
    }
}
