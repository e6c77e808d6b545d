//! A history and the mirror that it is replayed on: sessions that are cut, servers that refuse, strangers.

use super::super::support::fake_server::{Cut, FakeServer};
use super::super::support::random::Random;
use super::history::*;
use proxyfs::change::{Change, RelPath, Scope};
use proxyfs::journal::{Journal, Reader};
use proxyfs::mirror::errors::MirrorError;
use proxyfs::mirror::inbox::{Notice, inbox};
use proxyfs::mirror::live::Live;
use proxyfs::mirror::pipeline::{Pipeline, Setup};
use proxyfs::mirror::plan::{Place, Rules, Wish};
use proxyfs::mirror::prepare::{Known, Prepared, prepare};
use proxyfs::mirror::resume::{Memory, Span, Staged};
use proxyfs::mirror::source::Source;
use proxyfs::sftp::{OpenMode, Request, code};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How much happens at most while one session is at work: less than it takes to change a file each time
/// that it is read, after which it would be published as it is.
const MEANWHILE: u32 = 3;

/// So small that files of this test that were cut go on where they were.
pub(super) fn rules(trouble: &Trouble) -> Rules {
    let bytes = 2 * 32_768;
    Rules {
        span: Span {
            from: 1,
            narrow: bytes,
            wide: bytes,
        },
        relaxed: trouble.relaxed,
        fsync: Wish::of(trouble.fsync),
        atomic: Wish::of(trouble.atomic),
        ..Rules::default()
    }
}

/// What a server refuses, and how it works.
#[derive(Default)]
pub(super) struct Trouble {
    /// Whatever is done to these names of the tree.
    pub(super) denied: Vec<&'static str>,
    /// How many lanes it has, and what decides which of them it works on.
    pub(super) lanes: usize,
    pub(super) seed: u64,
    /// Whether a lane takes a few WRITEs only.
    pub(super) narrow: bool,
    /// Whether it has no extension but what tells links' times.
    pub(super) plain: bool,
    /// Whether the mirror's order is relaxed.
    pub(super) relaxed: bool,
    /// Whether files are to be on its disk.
    pub(super) fsync: bool,
    /// Whether files are changed out of sight.
    pub(super) atomic: bool,
    /// Whether the server of the last session makes something in the stage when the film becomes visible.
    pub(super) haunted: bool,
}

impl Trouble {
    /// The status code of its refusal, if it refuses.
    pub(super) fn refuses(&self, request: &Request) -> Option<u32> {
        let paths: Vec<&Vec<u8>> = match request {
            Request::PosixRename { from, to }
            | Request::Rename { from, to }
            | Request::Hardlink { from, to } => vec![from, to],
            Request::Mkdir { path, .. }
            | Request::Rmdir { path }
            | Request::Remove { path }
            | Request::Setstat { path, .. }
            | Request::Lsetstat { path, .. }
            | Request::Open {
                path,
                mode: OpenMode::Update,
                ..
            } => vec![path],
            _ => return None,
        };
        let names = |path: &[u8]| path.split(|b| *b == b'/').next_back().unwrap().to_vec();
        let ours = |path: &[u8]| path.windows(9).any(|w| w == b"/.proxyfs");
        let mut denied = paths
            .into_iter()
            .filter(|path| !ours(path))
            .map(|path| names(path));
        denied
            .any(|name| self.denied.iter().any(|d| d.as_bytes() == name))
            .then_some(code::PERMISSION_DENIED)
    }
}

/// A source with no history yet, and an empty mirror.
pub(super) struct Scene {
    pub(super) _dir: tempfile::TempDir,
    pub(super) root: PathBuf,
    pub(super) base: PathBuf,
    pub(super) source: Source,
    pub(super) history: RefCell<History>,
    /// The servers of broken connections that still work, where they do.
    pub(super) ghosts: Option<RefCell<Vec<FakeServer<'static>>>>,
}

impl Scene {
    pub(super) fn new(seed: u64) -> Scene {
        // In memory where that can be: thousands of histories, and each makes the log durable many times.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let dir = dir.unwrap();
        let (root, base, state) = (
            dir.path().join("source"),
            dir.path().join("mirror"),
            dir.path().join("state"),
        );
        for d in [
            &root,
            &base,
            &state,
            &base.join(".proxyfs"),
            &base.join(".proxyfs/stage"),
        ] {
            fs::create_dir(d).unwrap();
        }
        let journal = Journal::open(&state).unwrap();
        journal.add_mirror("m", true).unwrap();
        let source = Source::open_root(&root).unwrap();
        let history = RefCell::new(History {
            root: root.clone(),
            journal: Arc::new(journal),
            random: Random(seed),
            told: Vec::new(),
            versions: HashMap::new(),
            rows: HashMap::new(),
            published: HashMap::new(),
            patched: HashSet::new(),
            clock: 0,
            plain: false,
            unseen: None,
        });
        Scene {
            _dir: dir,
            root,
            base,
            source,
            history,
            ghosts: None,
        }
    }
}

/// Replays what is in the journal, on a connection that may be cut. Says what ended it.
pub(super) fn session(
    scene: &Scene,
    cut: Option<Cut>,
    batch: usize,
    meanwhile: bool,
    trouble: &Trouble,
    memory: &Memory,
) -> (Option<MirrorError>, Vec<String>) {
    let Scene {
        history,
        source,
        base,
        ..
    } = scene;
    let (notifier, inbox) = inbox().unwrap();
    let journal = Arc::clone(&history.borrow().journal);
    let reader: Reader = journal.reader().unwrap();
    let check = journal.reader().unwrap();
    let (done, busy) = (Cell::new(false), Cell::new(MEANWHILE));
    let idle = || {
        let position = check.mirror("m").unwrap();
        let parked = check.parked("m", 1).unwrap();
        // A stranger's directory that is full stays in the way.
        let mends = check.repairs("m").unwrap();
        let stuck = mends.iter().any(|mend| mend.error.is_some());
        let over = match parked.first() {
            None => stuck || (mends.is_empty() && check.touched("m").unwrap().is_empty()),
            Some(_) => !trouble.denied.is_empty(),
        };
        if position.cursor == journal.head() && over && !done.replace(true) {
            notifier.tell(Notice::Stop);
        }
    };
    let late = RefCell::new(Vec::new());
    let watch = |request: &Request| {
        let mut history = history.borrow_mut();
        if let Some(ghosts) = &scene.ghosts {
            for ghost in ghosts.borrow_mut().iter_mut() {
                if history.random.one_in(6) {
                    late.borrow_mut().extend(ghost.haunt());
                }
            }
        }
        if meanwhile && busy.get() > 0 && history.random.one_in(10) {
            busy.set(busy.get() - 1);
            history.step();
        }
        let (Request::PosixRename { from, .. } | Request::Rename { from, .. }) = request else {
            return;
        };
        if trouble.haunted {
            for late in ["1-00000000beef", "1", "999-00000000beef", "other"] {
                fs::write(base.join(".proxyfs/stage").join(late), "late").unwrap();
            }
        }
        let from = PathBuf::from(std::ffi::OsStr::from_bytes(from));
        if !from
            .parent()
            .is_some_and(|dir| dir.ends_with(".proxyfs/stage"))
        {
            return;
        }
        let name = from.file_name().unwrap();
        let seq = Staged::parse(name.as_bytes()).unwrap().seq;
        if seq >= 1 << 62 {
            return; // a repair's
        }
        // J3: what becomes visible has been announced, and the announcement covers its row.
        assert!(
            check.mirror("m").unwrap().sent_upto >= seq,
            "{seq} was not announced"
        );
        let bytes = if from.is_symlink() {
            Vec::new()
        } else {
            fs::read(&from).unwrap_or_else(|why| {
                panic!("seed {} {from:?} {why} {:#?}", trouble.seed, late.borrow())
            })
        };
        history.is_published(seq, &bytes);
    };
    let mut server = FakeServer::new(cut, batch, idle, watch).lanes(trouble.lanes, trouble.seed);
    server.features.posix_rename = !trouble.plain;
    server.features.hardlink = !trouble.plain;
    server.features.copy_data = trouble.seed.is_multiple_of(2) || scene.ghosts.is_some();
    server.weight = if trouble.narrow { 32 } else { 1 };
    server.refuse = Box::new(|request| trouble.refuses(request));
    let place = Place::new(base.as_os_str().as_bytes());
    let position = reader.mirror("m").unwrap();
    let known = Known {
        position: &position,
        source_id: "",
        marker: journal.marker("m").unwrap(),
        asked: false,
    };
    let told = |server: &mut FakeServer<'_>| {
        if let Some(ghosts) = &scene.ghosts {
            ghosts.borrow_mut().push(server.leave_behind());
            server.trace.append(&mut late.borrow_mut());
        }
        std::mem::take(&mut server.trace)
    };
    let prepared = prepare(&mut server, &place, &known, rules(trouble));
    let Prepared {
        place, rules, kept, ..
    } = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return (Some(why), told(&mut server)),
    };
    let setup = Setup {
        name: "m",
        place,
        rules,
        source,
        journal: &journal,
        reader: &reader,
        inbox: &inbox,
        live: &Live::new(Some(0), None),
        parked_pause: Duration::from_millis(1),
        try_again: trouble.denied.is_empty(),
        kept,
        memory,
        guard: &std::cell::RefCell::default(),
    };
    let ended = Pipeline::new(setup, &mut server).unwrap().run();
    (ended.err(), told(&mut server))
}

/// Somebody changes something on the mirror itself.
pub(super) fn tamper(history: &RefCell<History>, base: &Path) {
    let mut history = history.borrow_mut();
    let path = base.join(history.path().as_path());
    match history.random.below(4) {
        0 | 1 => {
            let removed = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            if removed.is_ok() {
                history.told.push(format!("-- removed {}", path.display()));
            }
        }
        2 => {
            if fs::remove_file(&path).is_ok() && fs::create_dir(&path).is_ok() {
                history
                    .told
                    .push(format!("-- a directory at {}", path.display()));
            }
        }
        _ => {
            if fs::remove_dir_all(&path).is_ok() && fs::write(&path, "").is_ok() {
                history
                    .told
                    .push(format!("-- a file at {}", path.display()));
            }
        }
    }
}

/// What nobody has noticed is repaired: everything, with a connection that breaks a few times.
pub(super) fn repair_all(scene: &Scene) -> Vec<String> {
    let history = &scene.history;
    let (path, scope) = (RelPath::root(), Scope::TREE);
    history.borrow_mut().record(Change::Repair { path, scope });
    let (mut traces, memory) = (Vec::new(), Memory::default());
    loop {
        let cut = {
            let random = &mut history.borrow_mut().random;
            let after = 20 + random.below(200);
            let effect = random.one_in(2);
            random.one_in(2).then_some(Cut { after, effect })
        };
        let none = Trouble {
            lanes: 2,
            ..Trouble::default()
        };
        let (error, trace) = session(scene, cut, 5, false, &none, &memory);
        traces.push(trace.join("\n"));
        match error {
            None => return traces,
            Some(MirrorError::Session(_)) => {}
            Some(why) => panic!("{why}"),
        }
    }
}

/// Files and links whose content differs.
pub(super) fn other_bytes(root: &Path, base: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let (here, there) = (root.join(&path), base.join(&path));
            let same = match fs::symlink_metadata(&here).unwrap().file_type() {
                kind if kind.is_dir() => {
                    open.push(path.clone());
                    there.is_dir() && !there.is_symlink()
                }
                kind if kind.is_symlink() => {
                    fs::read_link(&here).ok() == fs::read_link(&there).ok()
                }
                _ => !there.is_symlink() && fs::read(&here).ok() == fs::read(&there).ok(),
            };
            if !same {
                found.push(format!("other content: {}", path.display()));
            }
        }
    }
    found
}
