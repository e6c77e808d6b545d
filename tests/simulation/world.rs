//! A source, a mirror, and a daemon between them that lives and dies.

mod account;
mod behind;
mod deaths;
mod looks;
mod session;

use super::super::support::fake_server::Cut;
use super::super::support::random::Random;
use super::hands::Hands;
use account::{Account, Careful, Guest};
use deaths::Disk;
use proxyfs::change::{Change, Scope};
use proxyfs::fault;
use proxyfs::journal::{Journal, Reader};
use proxyfs::local::{Local, LocalOptions};
use proxyfs::mirror::resume::{Memory, Span};
use proxyfs::mirror::source::{Source, Writing};
use proxyfs::scan::Scan;
use proxyfs::scan::keeper::Work;
use proxyfs::scan::marks::{self, FsClock, Run};
use proxyfs::scan::survivors::Survivors;
use proxyfs::sftp::session::Target;
use std::cell::{Cell, RefCell};
use std::fs;
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
    /// For the looks at the log.
    reader: Reader,
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
    /// Two users work at once.
    shared: Cell<bool>,
    account: RefCell<Account>,
    /// Who is to come while the next step is under way.
    guest: Rc<RefCell<Option<Guest>>>,
    /// The real server that is the mirror's.
    target: Option<Target>,
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
            hands: RefCell::new(Hands::new(4)),
            told: Rc::default(),
            repaired: Cell::new(false),
            scanned: Cell::new(false),
            went_down: Cell::new(false),
            disk: Rc::default(),
            strange: Cell::new(false),
            shared: Cell::new(false),
            account: RefCell::default(),
            guest: Rc::default(),
            target: target.cloned(),
            _dir: dir,
        }
    }

    pub fn random(&self) -> std::cell::RefMut<'_, Random> {
        self.random.borrow_mut()
    }

    /// How few names are used in this history.
    fn names(&self) -> u64 {
        self.hands.borrow().names
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
        let recorder = Arc::new(Careful(Arc::clone(&journal)));
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
        let reader = journal.reader().unwrap();
        let life = Life {
            source: Source::new(root, Box::new(watch)),
            journal,
            local,
            memory: Memory::default(),
            reader,
            keeper: Work { scan, clock },
        };
        self.tell(format!("-- started: {plan:?}"));
        self.account
            .replace(Account::begin(&self.root, life.journal.head()));
        self.work(&life, 10);
        life.keeper.scan.run(&plan).unwrap();
        for row in life.reader.rows(before, 1000).unwrap() {
            self.tell(format!("   {} {:?}", row.seq, row.change));
            if matches!(row.change, Change::Repair { .. }) {
                self.scanned.set(true);
            }
        }
        self.read_the_log(&life, false);
        self.account.borrow_mut().has_found_all();
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
            let stranger = self.seed % 4 == 1 && !self.shared.get();
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

    /// The daemon ends properly.
    pub fn end(&mut self, life: Life) {
        self.tell("-- ended".to_string());
        self.hands.get_mut().close_all(&life.local);
        life.local.flush_all().unwrap();
        self.read_the_log(&life, false);
        self.the_log_has_told_all();
        life.keeper.checkpoint(true);
        // The last connection moves all of it into the database.
        self.disk.journal.take();
        drop(life);
        self.disk.wal.set(0);
        self.disk.keep_source(&self.root);
    }

    /// Users do up to so many things.
    fn work(&self, life: &Life, at_most: u64) {
        let things = self.random().below(at_most);
        for _ in 0..things {
            self.step(life);
        }
        self.the_log_has_told_all();
    }

    fn step(&self, life: &Life) {
        let before = life.journal.head();
        if self.shared.get() && self.random().one_in(3) {
            self.invite(life);
        }
        let done = {
            let mut hands = self.hands.borrow_mut();
            hands.work(&life.local, &mut self.random())
        };
        let alone = !self.part();
        let head = life.journal.head();
        if let Ok((what, recorded)) = &done {
            self.tell(format!("{}..{head} {what}", before + 1));
            // J1: what is told to be done is in the log.
            if *recorded && head == before {
                self.fail("it is not in the log");
            }
        }
        self.read_the_log(life, alone);
        if done.is_err() {
            return;
        }
        if self.random().one_in(40) {
            let later = Instant::now() + Duration::from_secs(10);
            self.hands.borrow_mut().patch_open();
            life.local.flush_due(later);
            self.read_the_log(life, false);
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

    /// Nothing more happens, and all that has happened is brought to the mirror.
    pub fn come_to_rest(&mut self, life: Option<Life>) {
        let life = life.unwrap_or_else(|| self.start());
        self.watch_points(false);
        self.tell("-- at rest".to_string());
        self.hands.get_mut().close_all(&life.local);
        life.local.flush_all().unwrap();
        self.read_the_log(&life, false);
        self.the_log_has_told_all();
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
}
