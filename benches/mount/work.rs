//! What is done, and how long it takes.

use crate::contestants::{Contestant, Kind};
use crate::table::Goals;
use crate::{Size, go_on};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// One measurement.
#[derive(Clone)]
pub struct Measured {
    /// Of what; the same text for all contestants.
    pub what: String,
    /// How long it took.
    pub took: Duration,
    /// What it has to come to.
    pub goals: Goals,
}

fn measure(what: String, goals: Goals, work: impl FnOnce()) -> Measured {
    go_on();
    let start = Instant::now();
    work();
    let took = start.elapsed();
    go_on();
    Measured { what, took, goals }
}

/// "No slower than": what two medians of the same thing differ by.
const NOISE: f64 = 1.05;

/// Everything that can be dropped of what the kernel keeps of files, so that it has to ask again.
fn forget_all() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn kib(bytes: usize) -> String {
    match bytes >> 10 {
        k if k >= 1024 => format!("{} MiB", k >> 10),
        k => format!("{k} KiB"),
    }
}

/// One large file, which the directory below has in memory all the time.
pub fn read(who: &Contestant, size: &Size) -> Vec<Measured> {
    let path = who.at.join("large");
    if fs::metadata(&path).is_err() {
        write_file(&path, size.read, 1 << 20, false);
    }
    let goals = Goals {
        directory: Some(1.1),
        ..Goals::default()
    };
    let mut all = Vec::new();
    for block in [4 << 10, 128 << 10] {
        for cold in [true, false] {
            if cold && who.kind != Kind::Directory {
                // The mount's own copy, if it has one.
                let file = File::open(&path).unwrap();
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            }
            let what = format!(
                "read {} MiB, blocks of {}, {}",
                size.read >> 20,
                kib(block),
                if cold { "cold" } else { "warm" }
            );
            all.push(measure(what, goals, || {
                assert_eq!(read_file(&path, block), size.read);
            }));
        }
    }
    all
}

fn read_file(path: &Path, block: usize) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; block];
    let mut all = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return all,
            n => all += n as u64,
        }
    }
}

/// Makes a file as `cp` and `tar` do (with O_EXCL), or as a shell's `>` and uploads do.
fn write_file(path: &Path, size: u64, block: usize, exclusive: bool) {
    let buffer = vec![b'x'; block];
    let mut options = OpenOptions::new();
    options.write(true);
    match exclusive {
        true => options.create_new(true),
        false => options.create(true).truncate(true),
    };
    let mut file = options.open(path).unwrap();
    for _ in 0..size / block as u64 {
        file.write_all(&buffer).unwrap();
    }
}

/// A new large file, and its close().
pub fn write(who: &Contestant, size: &Size) -> Vec<Measured> {
    let mut all = Vec::new();
    let as_cp = [(4 << 10, 3.0), (128 << 10, 1.5), (1 << 20, 1.3)];
    let as_cp = as_cp.map(|(block, most)| (block, Some(most)));
    for (block, most) in as_cp.into_iter().chain([(128 << 10, None)]) {
        let path = who.at.join(format!("new{block}"));
        let maker = if most.is_some() { "cp" } else { "a shell" };
        let what = format!(
            "write {} MiB as {maker} does, blocks of {}",
            size.write >> 20,
            kib(block)
        );
        let goals = Goals {
            directory: most,
            bindfs: Some(1.0),
            mergerfs: Some(1.0),
        };
        all.push(measure(what, goals, || {
            write_file(&path, size.write, block, most.is_some())
        }));
        assert_eq!(fs::metadata(&path).unwrap().len(), size.write);
        fs::remove_file(&path).unwrap();
        settle(&who.at);
    }
    all
}

/// The disk has nothing to do any more.
fn settle(at: &Path) {
    let dir = File::open(at.parent().unwrap()).unwrap();
    rustix::fs::syncfs(dir).unwrap();
}

/// Many small files: made, looked at, removed.
pub fn small(who: &Contestant, size: &Size) -> Vec<Measured> {
    let root = who.at.join("small");
    let paths = paths_below(&root, size.files);
    let as_both = Goals {
        bindfs: Some(NOISE),
        mergerfs: Some(NOISE),
        ..Goals::default()
    };
    let mut all = vec![create(who, &paths)];
    let n = size.files;
    let stat = || {
        for path in &paths {
            assert_eq!(fs::symlink_metadata(path).unwrap().len(), 4096);
        }
    };
    let find = || run(Command::new("find").arg(&root).arg("-ls"));
    all.push(measure(
        format!("stat of {n} files, just made"),
        as_both,
        stat,
    ));
    forget_all();
    all.push(measure(format!("stat of {n} files, cold"), as_both, stat));
    forget_all();
    let goals = Goals {
        directory: Some(1.6),
        ..as_both
    };
    all.push(measure(format!("find -ls of {n} files, cold"), goals, find));
    all.push(measure(
        format!("find -ls of {n} files, warm"),
        as_both,
        find,
    ));
    all.push(measure(format!("unlink of {n} files"), as_both, || {
        for path in &paths {
            fs::remove_file(path).unwrap();
        }
    }));
    fs::remove_dir_all(&root).unwrap();
    settle(&who.at);
    all
}

/// A thousand in a directory; the directories are made.
fn paths_below(root: &Path, count: usize) -> Vec<PathBuf> {
    let dir = |n: usize| root.join(format!("{:03}", n / 1000));
    for n in (0..count).step_by(1000) {
        fs::create_dir_all(dir(n)).unwrap();
    }
    let name = |n: usize| dir(n).join(format!("{n:05}.jpg"));
    (0..count).map(name).collect()
}

fn create(who: &Contestant, paths: &[PathBuf]) -> Measured {
    let before = who.recorded();
    let bytes = [b'x'; 4096];
    let goals = Goals {
        directory: Some(3.0),
        bindfs: Some(NOISE),
        ..Goals::default()
    };
    let what = format!("create, 4 KiB, close of {} files", paths.len());
    let measured = measure(what, goals, || {
        for path in paths {
            File::create(path).unwrap().write_all(&bytes).unwrap();
        }
    });
    // One record a file, no more and no less.
    assert_eq!(
        before.map(|n| n + paths.len() as u64),
        who.recorded(),
        "records"
    );
    measured
}

/// `tar x` of a source tree, and `rm -rf`.
pub fn tree(who: &Contestant, size: &Size) -> Vec<Measured> {
    let archive = archive(size.tree);
    let root = who.at.join("tree");
    fs::create_dir(&root).unwrap();
    let goals = Goals {
        mergerfs: Some(NOISE),
        ..Goals::default()
    };
    let mut all = Vec::new();
    let what = format!("tar x of {} entries", size.tree);
    let mut tar = Command::new("tar");
    tar.arg("xf").arg(archive).arg("-C").arg(&root);
    tar.stdin(Stdio::null()).stderr(Stdio::null());
    let mut ok = false;
    all.push(measure(what, goals, || {
        ok = tar.status().unwrap().success()
    }));
    // bindfs and mergerfs give directories other inode numbers when the kernel has forgotten them, and tar
    // complains at its end that they were renamed.
    let strict = matches!(who.kind, Kind::Directory | Kind::ProxyFs(_));
    assert!(ok || !strict, "tar fails");
    let what = format!("rm -rf of {} entries", size.tree);
    all.push(measure(what, goals, || {
        run(Command::new("rm").arg("-rf").arg(&root))
    }));
    settle(&who.at);
    all
}

/// What of these depends on recording.
pub fn with_mirrors(who: &Contestant, size: &Size) -> Vec<Measured> {
    let root = who.at.join("small");
    let paths = paths_below(&root, size.files);
    let mut all = vec![create(who, &paths)];
    fs::remove_dir_all(&root).unwrap();
    settle(&who.at);
    all.extend(tree(who, size));
    for measured in &mut all {
        measured.goals = Goals::default();
    }
    all
}

fn run(command: &mut Command) {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// A tree like that of a program's sources, packed; made once.
fn archive(entries: usize) -> &'static Path {
    static ARCHIVE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        let mut random = 1_u64;
        for n in 0..entries {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let sub = root.join(format!("{:02}/{:02}", n / 1000, n / 20 % 50));
            fs::create_dir_all(&sub).unwrap();
            if n % 50 == 0 {
                symlink("../elsewhere", sub.join(format!("link{n}"))).unwrap();
            } else {
                // Half of them below 2 KiB, the largest 64 KiB.
                let length = (64 << 10) >> ((random >> 32) % 11);
                fs::write(sub.join(format!("file{n}.rs")), vec![b'x'; length]).unwrap();
            }
        }
        run(Command::new("tar")
            .arg("cf")
            .arg(dir.path().join("tree.tar"))
            .arg("-C")
            .arg(&root)
            .arg("."));
        fs::remove_dir_all(&root).unwrap();
        dir
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| dir.path().join("tree.tar"))
}
