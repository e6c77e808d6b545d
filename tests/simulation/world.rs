//! A source, a mirror, and a daemon between them that lives and dies.

use super::super::support::fake_server::{Cut, FakeServer};
use super::super::support::random::Random;
use super::super::support::tree;
use super::hands::{Hands, LENGTHS, any_path};
use super::real::Breaking;
use proxyfs::change::{Change, RelPath, Scope, Seq};
use proxyfs::fault;
use proxyfs::journal::{FILE_NAME, Journal, Reader, Recorder, Row};
use proxyfs::local::{Local, LocalOptions};
use proxyfs::mirror::errors::MirrorError;
use proxyfs::mirror::inbox::{Notice, inbox};
use proxyfs::mirror::live::Live;
use proxyfs::mirror::pipeline::{Pipeline, Setup};
use proxyfs::mirror::plan::{Place, Rules};
use proxyfs::mirror::prepare::{Known, Prepared, prepare};
use proxyfs::mirror::resume::{Kept, Memory, Span, Staged};
use proxyfs::mirror::source::{Source, Writing};
use proxyfs::scan::Scan;
use proxyfs::scan::keeper::Work;
use proxyfs::scan::marks::{self, FsClock, Run};
use proxyfs::scan::survivors::Survivors;
use proxyfs::sftp::session::{Abort, Target, connect};
use proxyfs::sftp::{OpenMode, Remote, Request};
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much happens at most while one session is at work: less than it takes to change a file each time that it is
/// read, after which it would be published as it is.
const MEANWHILE: u32 = 3;

/// So small that files of this test that were cut go on where they were.
const RULES: Span = Span {
    from: 1,
    narrow: 2 * 32_768,
    wide: 2 * 32_768,
};

/// What unwinds when the daemon dies.
struct Killed;

/// A running daemon.
pub struct Life {
    journal: Arc<Journal>,
    local: Arc<Local>,
    source: Source,
    memory: Memory,
    keeper: Work,
}

pub struct World {
    _dir: tempfile::TempDir,
    root: PathBuf,
    base: PathBuf,
    /// Where the journal is: another directory after each death.
    state: Rc<RefCell<PathBuf>>,
    deaths: u32,
    seed: u64,
    random: RefCell<Random>,
    hands: RefCell<Hands>,
    told: Rc<RefCell<Vec<String>>>,
    /// Something was repaired: which names are one file, and the times of directories, may differ.
    repaired: Cell<bool>,
    /// A start has found something that is to be compared.
    scanned: Cell<bool>,
    /// Not only the daemon died, but the machine.
    went_down: Cell<bool>,
    disk: Rc<Disk>,
    /// The mirror is not what the log says: a sync is to be asked for in the end.
    strange: Cell<bool>,
    /// The real server that is the mirror's.
    target: Option<Target>,
}

/// What of the state directory, and of the source, is surely on the disk.
#[derive(Default)]
struct Disk {
    /// The journal that is at work.
    journal: RefCell<Option<Arc<Journal>>>,
    /// So much of its WAL is there, in bytes, and so the log up to here.
    wal: Cell<u64>,
    head: Cell<Seq>,
    /// A copy of the source as it was at the last checkpoint, if one is kept.
    source: RefCell<Option<PathBuf>>,
}

impl World {
    /// With a server that is there, or one that is played.
    pub fn new(seed: u64, target: Option<&Target>) -> World {
        // In memory where that can be: thousands of histories, and each makes the log durable many times.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.unwrap();
        let at = |name| dir.path().join(name);
        for name in [
            "source",
            "source/.proxyfs",
            "mirror",
            "mirror/.proxyfs",
            "mirror/.proxyfs/stage",
            "state-0",
        ] {
            fs::create_dir(at(name)).unwrap();
        }
        World {
            root: at("source"),
            base: at("mirror"),
            state: Rc::new(RefCell::new(at("state-0"))),
            deaths: 0,
            seed,
            random: RefCell::new(Random(seed)),
            hands: RefCell::new(Hands::new()),
            told: Rc::default(),
            repaired: Cell::new(false),
            scanned: Cell::new(false),
            went_down: Cell::new(false),
            disk: Rc::default(),
            strange: Cell::new(false),
            target: target.cloned(),
            _dir: dir,
        }
    }

    pub fn random(&self) -> std::cell::RefMut<'_, Random> {
        self.random.borrow_mut()
    }

    fn tell(&self, line: String) {
        self.told.borrow_mut().push(line);
    }

    /// Fails with all that was done.
    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let told = self.told.borrow();
        panic!("seed {}: {why}\n{}", self.seed, told.join("\n"));
    }

    /// The daemon starts, finds what the log does not know, and users work meanwhile.
    fn start(&self) -> Life {
        let state = self.state.borrow().clone();
        let journal = Arc::new(Journal::open(&state).unwrap());
        *self.disk.journal.borrow_mut() = Some(Arc::clone(&journal));
        journal.add_mirror("m", true).unwrap();
        if self.went_down.take() {
            journal.set_meta("run", "another boot").unwrap();
        }
        let recorder = Arc::clone(&journal) as Arc<dyn Recorder>;
        let local = Local::open(&self.root, LocalOptions::default(), recorder).unwrap();
        let local = Arc::new(local);
        let root = local.root_fd().try_clone_to_owned().unwrap();
        let watched = Arc::clone(&local);
        let watch = move |inode| match watched.being_written(inode) {
            (_, true) => Writing::Anew,
            (true, false) => Writing::UnderWay,
            (false, false) => Writing::No,
        };
        let clock = FsClock::new(local.root_fd()).without_slack();
        let scan = Scan {
            local: Arc::clone(&local),
            journal: Arc::clone(&journal),
            progress: Arc::default(),
            survivors: Arc::new(Survivors::nobody()),
            stop: Arc::default(),
        };
        let run = Run::now(local.root_fd(), &state);
        let now = clock.now();
        let before = journal.head();
        let plan = marks::plan(&journal, &run, now).unwrap();
        marks::begin(&journal, &run, now).unwrap();
        scan.prepare(&plan).unwrap();
        let life = Life {
            source: Source::new(root, Box::new(watch)),
            journal,
            local,
            memory: Memory::default(),
            keeper: Work { scan, clock },
        };
        self.tell(format!("-- started: {plan:?}"));
        self.work(&life, 10);
        life.keeper.scan.run(&plan).unwrap();
        for row in life.journal.reader().unwrap().rows(before, 1000).unwrap() {
            self.tell(format!("   {} {:?}", row.seq, row.change));
            if matches!(row.change, Change::Repair { .. }) {
                self.scanned.set(true);
            }
        }
        life
    }

    /// The daemon lives for some sessions. If it is mortal it may die at any point; says whether it did.
    pub fn live(&mut self, life: &mut Option<Life>, mortal: bool) -> bool {
        self.watch_points(mortal);
        let lived = catch_unwind(AssertUnwindSafe(|| {
            if life.is_none() {
                *life = Some(self.start());
            }
            let life = life.as_ref().unwrap();
            let sessions = 1 + self.random().below(4);
            let stranger = self.seed % 4 == 1;
            for _ in 0..sessions {
                self.work(life, 30);
                let cut = {
                    let mut random = self.random();
                    Cut {
                        after: random.below(60),
                        effect: random.one_in(2),
                    }
                };
                self.session(life, Some(cut));
                if stranger {
                    self.tamper();
                }
            }
        }));
        fault::watch(None);
        match lived {
            Ok(()) => false,
            Err(why) if why.is::<Killed>() => true,
            Err(why) => {
                eprintln!("seed {}:\n{}", self.seed, self.told.borrow().join("\n"));
                resume_unwind(why)
            }
        }
    }

    /// Notes what is on the disk. If it is mortal the daemon dies at one of the next points: what is in the state
    /// directory then is all that is left of it.
    fn watch_points(&self, mortal: bool) {
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
        let root = self.root.clone();
        fault::watch(Some(Box::new(move |point| {
            match point {
                "journal.durable" => disk.is_durable(&state.borrow()),
                "checkpoint.durable" => disk.keep_source(&root),
                _ => {}
            }
            if !point.starts_with(only) {
                return;
            }
            if left > 0 {
                left -= 1;
                return;
            }
            copy_state(&state.borrow(), &next);
            *state.borrow_mut() = next.clone();
            told.borrow_mut().push(format!("-- killed at {point}"));
            resume_unwind(Box::new(Killed));
        })));
    }

    fn next_state(&self) -> PathBuf {
        let name = format!("state-{}", self.deaths + 1);
        self.root.with_file_name(name)
    }

    /// The next start finds what is left.
    pub fn after_death(&mut self) {
        self.deaths += 1;
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
    fn lose_power(&self) {
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
    fn look_for_parts(&mut self) {
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

    /// The daemon ends properly.
    pub fn end(&mut self, life: Life) {
        self.tell("-- ended".to_string());
        self.hands.get_mut().close_all(&life.local);
        life.local.flush_all().unwrap();
        life.keeper.checkpoint(true);
        // The last connection moves all of it into the database.
        self.disk.journal.take();
        drop(life);
        self.disk.wal.set(0);
        self.disk.keep_source(&self.root);
    }

    /// While no daemon runs, somebody works in the source itself.
    pub fn edit_offline(&mut self) {
        let things = self.random().below(8);
        for _ in 0..things {
            let path = any_path(&mut self.random());
            let other = any_path(&mut self.random());
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

    /// Users do up to so many things.
    fn work(&self, life: &Life, at_most: u64) {
        let things = self.random().below(at_most);
        for _ in 0..things {
            self.step(life);
        }
    }

    fn step(&self, life: &Life) {
        let before = life.journal.head();
        let done = {
            let mut hands = self.hands.borrow_mut();
            hands.work(&life.local, &mut self.random())
        };
        let Ok((what, recorded)) = done else {
            return;
        };
        let head = life.journal.head();
        self.tell(format!("{}..{head} {what}", before + 1));
        // J1: what is told to be done is in the log.
        if recorded && head == before {
            self.fail("it is not in the log");
        }
        if self.random().one_in(40) {
            let later = Instant::now() + Duration::from_secs(10);
            self.hands.borrow_mut().patch_open();
            life.local.flush_due(later);
        }
        if self.random().one_in(30) {
            self.tidy_up(life);
        }
        if self.random().one_in(15)
            && let Some(mark) = life.keeper.take()
        {
            let note = match self.random().one_in(2) {
                true => Work::note_mark,
                false => Work::note_checkpoint,
            };
            note(&life.keeper, &mark).unwrap();
            self.tell(format!("-- marked: {mark}"));
        }
    }

    /// J5: no row leaves the log that a mirror lacks.
    fn tidy_up(&self, life: &Life) {
        life.journal.maintain().unwrap();
        if life.journal.mirror("m").unwrap().lacks > 0 {
            self.fail("the log has dropped what the mirror lacks");
        }
    }

    /// Replays what is in the journal, on a connection that may be cut.
    fn session(&self, life: &Life, cut: Option<Cut>) -> bool {
        let Life {
            journal,
            local: _,
            source,
            memory,
            keeper: _,
        } = life;
        let (notifier, inbox) = inbox().unwrap();
        let reader: Reader = journal.reader().unwrap();
        let check = journal.reader().unwrap();
        let (done, busy) = (Cell::new(false), Cell::new(MEANWHILE));
        let (idle_since, waits) = (Instant::now(), Cell::new(0));
        let idle = || {
            let position = check.mirror("m").unwrap();
            waits.set(waits.get() + 1);
            // It has nothing to do, again and again, and is not done.
            if waits.get() > 2000 && idle_since.elapsed() > Duration::from_secs(10) {
                self.fail(&format!(
                    "it does not go on: {position:?}, the log ends at {}, parked {:?}, repairs {:?}, touched {:?}",
                    journal.head(),
                    check.parked("m", 10),
                    check.repairs("m"),
                    check.touched("m"),
                ));
            }
            let over = check.repairs("m").unwrap().is_empty()
                && check.parked("m", 1).unwrap().is_empty()
                && check.touched("m").unwrap().is_empty();
            if position.cursor == journal.head() && over && !done.replace(true) {
                notifier.tell(Notice::Stop);
            }
        };
        let users = |rarely: u64| {
            if cut.is_some() && busy.get() > 0 && self.random().one_in(rarely) {
                busy.set(busy.get() - 1);
                self.step(life);
            }
        };
        let (live, guard) = (Live::new(Some(0), None), RefCell::default());
        let (lanes, batch) = {
            let mut random = self.random();
            (
                1 + random.below(4) as usize,
                [1, 3, 1000][random.below(3) as usize],
            )
        };
        let place = Place::new(self.base.as_os_str().as_bytes());
        let position = reader.mirror("m").unwrap();
        let known = Known {
            position: &position,
            source_id: "",
            marker: journal.marker("m").unwrap(),
            asked: position.sync.is_some(),
        };
        // R6: what is older than it was is not taken for what it was.
        let older = match (known.marker.0, self.marked()) {
            (Some(written), there) => there.is_none_or(|there| there < written),
            (None, _) => false,
        };
        let rules = Rules {
            span: RULES,
            ..Rules::default()
        };
        let setup = |place, rules, kept| Setup {
            name: "m",
            place,
            rules,
            source,
            journal,
            reader: &reader,
            inbox: &inbox,
            live: &live,
            parked_pause: Duration::from_millis(1),
            try_again: true,
            kept,
            memory,
            guard: &guard,
        };
        let ended = match &self.target {
            Some(target) => {
                let session = connect(target, &Abort::default()).unwrap();
                let mut server = Breaking {
                    session,
                    left: cut.map(|cut| cut.after + 1),
                    idle: Box::new(idle),
                    sent: Box::new(|request| {
                        self.is_decidable(&check, request);
                        self.look_at(life, &check, request);
                    }),
                    meanwhile: Box::new(|| users(10)),
                };
                converse(&mut server, &known, &place, rules, journal, setup)
            }
            None => {
                let watch = |request: &Request| {
                    users(10);
                    self.look_at(life, &check, request);
                };
                let mut server =
                    FakeServer::new(cut, batch, idle, watch).lanes(lanes, self.random().next());
                if self.random().one_in(2) {
                    server = server.late();
                }
                server.weight = if self.seed.is_multiple_of(3) { 32 } else { 1 };
                server.sent = Box::new(|request| self.is_decidable(&check, request));
                let ended = converse(&mut server, &known, &place, rules, journal, setup);
                let trace = std::mem::take(&mut server.trace);
                drop(server);
                let trace = trace.iter().map(|line| format!("        {line}"));
                self.told.borrow_mut().extend(trace);
                ended
            }
        };
        let asked = position.sync.is_some();
        match ended {
            Err(MirrorError::Marker { what, .. }) if older && what.needs_sync() && !asked => {
                self.tell(format!("-- it needs a sync: {what:?}"));
                let scope = Scope {
                    bytes: true,
                    ..Scope::TREE
                };
                journal.request_sync("m", scope).unwrap();
                false
            }
            Ok(_) if older && !asked => {
                self.fail("a mirror that was put back is taken for what it was")
            }
            Ok(_) => true,
            Err(MirrorError::Session(_)) => {
                self.tell(format!("-- cut {cut:?}"));
                false
            }
            Err(why) => self.fail(&why.to_string()),
        }
    }

    /// What becomes visible now is whole (P4), and the disk knows of it (J3); and nothing is repaired without need.
    fn look_at(&self, life: &Life, check: &Reader, request: &Request) {
        // R2: where nothing but connections broke, the mirror is as the log says, and nothing is to be repaired.
        let looks = matches!(request, Request::Lstat { .. } | Request::Opendir { .. });
        if looks && !self.repaired.get() && !self.scanned.get() {
            let repairs = check.repairs("m").unwrap();
            if !repairs.is_empty() {
                self.fail(&format!("it repairs {repairs:?}"));
            }
        }
        let paths: Vec<RelPath> = shown_by(request)
            .filter_map(|path| self.of_mirror(path))
            .collect();
        if !paths.is_empty() {
            self.is_on_the_disk(check, request, &paths);
        }
        let Request::PosixRename { from, .. } = request else {
            return;
        };
        let Some(seq) = self.staged(request) else {
            return;
        };
        let from = PathBuf::from(std::ffi::OsStr::from_bytes(from));
        let Some(node) = self.content_of(life, check, seq) else {
            return;
        };
        if check.mirror("m").unwrap().sent_upto < seq {
            self.fail(&format!("{seq} was not announced"));
        }
        if self.hands.borrow().patched.contains(&node) || from.is_symlink() {
            return;
        }
        if !is_whole(&fs::read(&from).unwrap()) {
            self.fail(&format!("{seq} is torn"));
        }
    }

    /// The row for which a request publishes what was staged, if it does.
    fn staged(&self, request: &Request) -> Option<Seq> {
        let (Request::PosixRename { from, .. } | Request::Rename { from, .. }) = request else {
            return None;
        };
        let from = Path::new(std::ffi::OsStr::from_bytes(from));
        // By whichever way in.
        let (dir, name) = (from.parent()?, from.file_name()?);
        let staged = dir
            .ends_with(".proxyfs/stage")
            .then(|| Staged::parse(name.as_bytes()));
        Some(staged??.seq)
    }

    /// Of which change the marker there is.
    fn marked(&self) -> Option<Seq> {
        let text = fs::read_link(self.base.join(".proxyfs/position")).ok()?;
        let text = text.to_str()?.split("seq=").nth(1)?.to_string();
        text.split(' ').next()?.parse().ok()
    }

    /// J3: a row that the disk has tells of this, or a repair that is noted.
    fn is_on_the_disk(&self, check: &Reader, request: &Request, paths: &[RelPath]) {
        let position = check.mirror("m").unwrap();
        let related =
            |path: &RelPath, of: &RelPath| path.is_at_or_below(of) || of.is_at_or_below(path);
        let rows = check.rows(position.cursor, 1000).unwrap();
        let durable = rows.iter().filter(|row| row.seq <= self.disk.head.get());
        let mut told: Vec<RelPath> = durable
            .flat_map(|row| row.change.paths().cloned().collect::<Vec<_>>())
            .collect();
        told.extend(
            check
                .repairs("m")
                .unwrap()
                .into_iter()
                .map(|mend| mend.path),
        );
        for parked in check.parked("m", usize::MAX).unwrap() {
            told.extend(parked.row.change.paths().cloned());
        }
        for path in paths {
            if !told.iter().any(|of| related(path, of)) {
                self.fail(&format!(
                    "the disk has the log up to {} and does not know of {request:?}",
                    self.disk.head.get()
                ));
            }
        }
    }

    /// J4: a rename is sent when everything earlier on its paths is noted as done, but for a file and its
    /// attributes on their way to its old name; and nothing on its paths before it is noted itself.
    fn is_decidable(&self, check: &Reader, request: &Request) {
        let paths: Vec<RelPath> = shown_by(request)
            .filter_map(|path| self.of_mirror(path))
            .collect();
        let Some(last) = paths.last() else { return };
        let cursor = check.mirror("m").unwrap().cursor;
        let rows = check.rows(cursor, 1000).unwrap();
        let staged = self.staged(request);
        let is_it = |row: &Row| match (&row.change, request) {
            _ if staged.is_some() => staged == Some(row.seq),
            // One step of it.
            (Change::Exchange { a, b }, Request::PosixRename { .. }) => {
                paths.iter().all(|path| path == a || path == b)
            }
            // What would have come there is gone by now.
            (change, Request::Remove { .. }) => change.paths().any(|path| path == last),
            (Change::Rename { from, to }, Request::PosixRename { .. }) => {
                paths == [from.clone(), to.clone()]
            }
            (Change::Link { path, .. }, Request::Hardlink { .. })
            | (Change::Mkdir { path, .. }, Request::Mkdir { .. })
            | (Change::Rmdir { path }, Request::Rmdir { .. }) => path == last,
            _ => false,
        };
        // The first one that it may be: of that least is asked.
        let Some(at) = rows.iter().position(is_it) else {
            return;
        };
        let row = &rows[at];
        let related = |a: &RelPath, b: &RelPath| a.is_at_or_below(b) || b.is_at_or_below(a);
        // A removal, whatever it is sent for, is about its own name only, and may be done twice.
        let removes = matches!(request, Request::Remove { .. });
        let shown: Vec<&RelPath> = row
            .change
            .paths()
            .filter(|path| !removes || *path == last)
            .collect();
        for before in &rows[..at] {
            let touches = before
                .change
                .paths()
                .any(|a| shown.iter().any(|b| related(a, b)));
            let arrives = matches!((&before.change, &row.change),
                (Change::Content { path, .. } | Change::Symlink { path, .. } | Change::Attr { path, .. }, Change::Rename { from, to })
                    if path == from && !related(path, to));
            let counts = before.change.is_pivot() || !removes && row.change.is_pivot();
            if touches && counts && !arrives {
                self.fail(&format!(
                    "{} ({}) is sent before {} ({}) is noted as done: {request:?}",
                    row.seq, row.change, before.seq, before.change
                ));
            }
        }
    }

    /// A path on the mirror, but for our own ones.
    fn of_mirror(&self, path: &[u8]) -> Option<RelPath> {
        let path = path.strip_prefix(self.base.as_os_str().as_bytes())?;
        let path = path.strip_prefix(b"/")?;
        // By whichever way in.
        let path = match path.strip_prefix(b".proxyfs/way-") {
            Some(way) => way.splitn(2, |b| *b == b'/').nth(1)?.strip_prefix(b"./")?,
            None => path,
        };
        let path = RelPath::new(path).ok()?;
        (!path.as_bytes().starts_with(b".proxyfs")).then_some(path)
    }

    /// The inode that a row of the log is about, if it is there still.
    fn content_of(&self, life: &Life, check: &Reader, seq: Seq) -> Option<u64> {
        let row = check.rows(seq.checked_sub(1)?, 1).unwrap().pop()?;
        let Change::Content { node, .. } = &row.change else {
            return None;
        };
        let file: File = life.source.open(node).unwrap().filter(|_| row.seq == seq)?;
        Some(file.metadata().unwrap().ino())
    }

    /// Nothing more happens, and all that has happened is brought to the mirror.
    pub fn come_to_rest(&mut self, life: Option<Life>) {
        let life = life.unwrap_or_else(|| self.start());
        self.watch_points(false);
        self.tell("-- at rest".to_string());
        self.hands.get_mut().close_all(&life.local);
        life.local.flush_all().unwrap();
        // What was done there behind our back is found when somebody asks.
        if self.strange.get() {
            let scope = Scope {
                bytes: true,
                ..Scope::TREE
            };
            life.journal.request_sync("m", scope).unwrap();
        }
        // The second one clears what the first may have left in the stage.
        for _ in 0..2 {
            if !self.session(&life, None) {
                self.fail("the last session was cut");
            }
        }
        self.tidy_up(&life);
        fault::watch(None);
        self.disk.journal.take();
    }

    /// Something lies in the stage.
    pub fn leave_in_stage(&self, name: &str) {
        fs::write(self.base.join(".proxyfs/stage").join(name), "a part").unwrap();
    }

    /// The mirror is like the source.
    pub fn check(&self) {
        let (mut here, mut there) = (tree::read(&self.root, false), tree::read(&self.base, false));
        // The mirror's own root has the mode that its admin gave it.
        let root_mode = here.get(&Vec::new()).map(|root| root.mode);
        if let (Some(root), Some(mode)) = (there.get_mut(&Vec::new()), root_mode) {
            root.mode = mode;
        }
        if self.repaired.get() {
            for entry in here.values_mut().chain(there.values_mut()) {
                entry.same_as = None;
            }
        }
        let mut lines = Vec::new();
        for (path, entry) in &here {
            if there.get(path) != Some(entry) {
                let shown = String::from_utf8_lossy(path);
                lines.push(format!("{shown}: {entry:?}, there {:?}", there.get(path)));
            }
        }
        for path in there.keys().filter(|path| !here.contains_key(*path)) {
            lines.push(format!("only there: {}", String::from_utf8_lossy(path)));
        }
        let staged = fs::read_dir(self.base.join(".proxyfs/stage")).unwrap();
        lines.extend(staged.map(|e| format!("left over: {:?}", e.unwrap().file_name())));
        if !lines.is_empty() {
            self.fail(&lines.join("\n"));
        }
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
                let path = self.base.join(any_path(&mut self.random()).as_path());
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

    fn is_strange(&self, what: &str) {
        self.strange.set(true);
        self.repaired.set(true);
        self.tell(format!("-- {what}"));
    }
}

/// One session's work, as the worker does it.
fn converse<'a, R: Remote>(
    server: &mut R,
    known: &Known<'_>,
    place: &Place,
    rules: Rules,
    journal: &Journal,
    setup: impl FnOnce(Place, Rules, Kept) -> Setup<'a>,
) -> Result<(), MirrorError> {
    let Prepared {
        place,
        rules,
        kept,
        fresh,
        ..
    } = prepare(server, place, known, rules)?;
    if let Some(scope) = known.position.sync.filter(|_| fresh) {
        journal.begin_sync("m", scope)?;
    }
    let setup = setup(place, rules, kept);
    Pipeline::new(setup, server)?.run().map(drop)
}

/// The paths that a request shows something new at, but for attributes.
fn shown_by(request: &Request) -> impl Iterator<Item = &[u8]> {
    let (one, other) = match request {
        Request::Open { path, mode, .. } => (Some(path).filter(|_| *mode != OpenMode::Read), None),
        Request::Mkdir { path, .. } | Request::Rmdir { path } | Request::Remove { path } => {
            (Some(path), None)
        }
        Request::Symlink { link: path, .. } | Request::Hardlink { to: path, .. } => {
            (Some(path), None)
        }
        Request::Rename { from, to } | Request::PosixRename { from, to } => (Some(from), Some(to)),
        _ => (None, None),
    };
    one.into_iter().chain(other).map(|path| &path[..])
}

/// Every version of a file is one byte, again and again.
fn is_whole(bytes: &[u8]) -> bool {
    LENGTHS.contains(&bytes.len()) && (bytes.is_empty() || bytes[1..] == bytes[..bytes.len() - 1])
}

/// Changes a byte, and leaves size and time as they were.
fn edit_in_place(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let meta = file.metadata()?;
    if meta.len() > 0 {
        file.write_all_at(&[0], meta.len() / 2)?;
    }
    file.set_modified(meta.modified()?)
}

impl Disk {
    /// What is in the WAL by now is on the disk.
    fn is_durable(&self, state: &Path) {
        if let Some(journal) = &*self.journal.borrow() {
            self.head.set(journal.head());
            let wal = state.join(format!("{FILE_NAME}-wal"));
            self.wal.set(fs::metadata(wal).map_or(0, |wal| wal.len()));
        }
    }

    /// The source is on the disk as it is.
    fn keep_source(&self, root: &Path) {
        let copy = root.with_file_name("on-disk");
        if !copy.exists() {
            fs::create_dir(&copy).unwrap();
        }
        become_like(&copy, root);
        *self.source.borrow_mut() = Some(copy);
    }
}

/// Makes a directory like another one: what is the same already is left as it is.
fn become_like(dir: &Path, like: &Path) {
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

fn remove(path: &Path) {
    let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
}

fn copy_state(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
