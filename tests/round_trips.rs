//! How often a worker waits for the mirror: on a long line that, and nothing else, is its speed. Counted,
//! not timed, so that a busy machine does not matter; `make bench` has the times.
#![allow(clippy::unwrap_used)]

use super::cuts::node_id;
use super::support::fake_server::FakeServer;
use super::support::sshd::Sshd;
use super::support::tree;
use proxyfs::change::{Change, Extent, RelPath, Scope};
use proxyfs::journal::{Journal, Recorder};
use proxyfs::mirror::inbox::{Notice, inbox};
use proxyfs::mirror::live::Live;
use proxyfs::mirror::pipeline::{Pipeline, Setup};
use proxyfs::mirror::plan::{Place, Rules};
use proxyfs::mirror::prepare::{Known, prepare};
use proxyfs::mirror::resume::{Kept, Memory};
use proxyfs::mirror::source::{Barrier, Source};
use proxyfs::sftp::session::{Abort, Start, connect_asking};
use proxyfs::sftp::{Features, Remote, Reply, Request, SessionError, Ticket};
use std::cell::Cell;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A server a long way off: what is sent arrives when the sender waits, all at once, and the replies are
/// there after that.
struct Distant<'a> {
    server: FakeServer<'a>,
    round_trips: &'a Cell<usize>,
}

impl Remote for Distant<'_> {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        self.server.send_on(lane, request)
    }

    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        if timeout.is_zero() {
            return Ok(());
        }
        if self.server.outstanding() > 0 {
            self.round_trips.set(self.round_trips.get() + 1);
        }
        self.server.pump(timeout, wake)
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.server.reply()
    }

    fn outstanding(&self) -> usize {
        self.server.outstanding()
    }

    fn unacknowledged_on(&self, lane: usize) -> usize {
        self.server.unacknowledged_on(lane)
    }

    fn features(&self) -> &Features {
        self.server.features()
    }

    fn traffic(&self) -> (u64, u64) {
        self.server.traffic()
    }
}

/// A source, its journal and a mirror.
pub(super) struct Scene {
    dir: tempfile::TempDir,
    pub(super) journal: Arc<Journal>,
    /// Of the source, when it is replayed next.
    pub(super) barrier: Cell<Option<Barrier>>,
}

impl Scene {
    pub(super) fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        for d in ["source", "mirror", "state"] {
            fs::create_dir(dir.path().join(d)).unwrap();
        }
        let journal = Journal::open(&dir.path().join("state")).unwrap();
        journal.add_mirror("m", true).unwrap();
        Scene {
            dir,
            journal: Arc::new(journal),
            barrier: Cell::default(),
        }
    }

    pub(super) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(super) fn mirror(&self) -> PathBuf {
        self.dir.path().join("mirror")
    }

    pub(super) fn place(&self) -> Place {
        Place::new(self.mirror().as_os_str().as_bytes())
    }

    /// Prepares a session; says how often it waited, too.
    pub(super) fn prepare(&self) -> (Rules, usize) {
        let round_trips = Cell::new(0);
        let mut remote = Distant {
            server: FakeServer::new(None, usize::MAX, || {}, |_| {}),
            round_trips: &round_trips,
        };
        let position = self.journal.mirror("m").unwrap();
        let known = Known {
            position: &position,
            source_id: "",
            marker: self.journal.marker("m").unwrap(),
            asked: false,
        };
        let prepared = prepare(&mut remote, &self.place(), &known, Rules::default()).unwrap();
        (prepared.rules, round_trips.get())
    }

    /// Replays all that is in the journal, and shows each request with how often was waited before it. Says
    /// how many handles the server has.
    pub(super) fn replay(&self, rules: Rules, watch: impl FnMut(&Request, usize)) -> u64 {
        self.replay_by(usize::MAX, rules, watch)
    }

    /// The same, and the server answers after so many requests.
    pub(super) fn replay_by(
        &self,
        batch: usize,
        rules: Rules,
        mut watch: impl FnMut(&Request, usize),
    ) -> u64 {
        let (notifier, inbox) = inbox().unwrap();
        let reader = self.journal.reader().unwrap();
        let check = self.journal.reader().unwrap();
        let round_trips = Cell::new(0);
        let idle = || {
            let drained = check.mirror("m").unwrap().cursor == self.journal.head()
                && check.repairs("m").unwrap().is_empty();
            if drained && check.touched("m").unwrap().is_empty() {
                notifier.tell(Notice::Stop);
            }
        };
        let watch = |request: &Request| watch(request, round_trips.get());
        let mut remote = Distant {
            server: FakeServer::new(None, batch, idle, watch),
            round_trips: &round_trips,
        };
        let handles = remote.features().max_handles.unwrap();
        let source = Source::open_root(&self.source()).unwrap();
        let source = match self.barrier.take() {
            Some(barrier) => source.with_barrier(barrier),
            None => source,
        };
        let setup = Setup {
            name: "m",
            place: self.place(),
            rules,
            source: &source,
            journal: &self.journal,
            reader: &reader,
            inbox: &inbox,
            parked_pause: std::time::Duration::from_secs(300),
            try_again: false,
            live: &Live::new(None, None),
            kept: Kept::default(),
            memory: &Memory::default(),
            guard: &std::cell::RefCell::default(),
        };
        Pipeline::new(setup, &mut remote).unwrap().run().unwrap();
        handles
    }

    /// Writes a file and records it.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.source().join(name), bytes).unwrap();
        self.record(name, Extent::Whole);
    }

    /// Records that a file was written.
    pub(super) fn record(&self, name: &str, extent: Extent) {
        let path = self.source().join(name);
        let content = Change::Content {
            path: RelPath::new(name.as_bytes()).unwrap(),
            node: node_id(&path),
            extent,
            size: path.metadata().unwrap().len(),
            linked: false,
        };
        self.journal.record(&content).unwrap();
    }

    /// Writes a new file and records it.
    fn make_file(&self, name: &str) {
        self.write(name, name.as_bytes());
    }
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_mirror_that_comes_back_is_looked_at_in_three_round_trips() {
    let scene = Scene::new();
    scene.prepare();
    // What there is; what is in ProxyFS's own directory; the old way in removed and a new one made.
    assert_eq!(scene.prepare().1, 3);
}

#[test]
fn requests_that_go_along_with_the_start_of_sftp_are_answered_like_all_others() {
    // Also by servers that do not tell their limits, or have the program to be started first.
    let servers = [
        ("internal-sftp", true),
        ("exec /usr/lib/openssh/sftp-server -P limits", false),
        ("sleep 0.1; exec /usr/lib/openssh/sftp-server", true),
    ];
    for (server, tells) in servers {
        let builder = Sshd::builder();
        let sshd = match server {
            "internal-sftp" => builder.start(),
            script => builder.sftp_script(script).start(),
        };
        let there = sshd.base().as_os_str().as_bytes().to_vec();
        let first = [
            Request::Stat {
                path: there.clone(),
            },
            Request::Opendir { path: there },
            Request::Stat {
                path: b"/not/there".to_vec(),
            },
        ];
        let start = Start {
            first: &first,
            far_lanes: 1,
            rate: None,
        };
        let (mut session, asked) = connect_asking(&sshd.target(), &Abort::new(), &start).unwrap();
        assert_eq!(session.features().max_handles.is_some(), tells, "{server}");
        let mut answers = Vec::new();
        while answers.len() < first.len() {
            session.pump(Duration::from_secs(1), None).unwrap();
            answers.extend(std::iter::from_fn(|| session.reply()));
        }
        let tickets: Vec<Ticket> = answers.iter().map(|a| a.0).collect();
        assert_eq!(tickets, asked, "{server}");
        assert!(matches!(answers[0].1, Reply::Attrs(_)), "{server}");
        assert!(matches!(answers[1].1, Reply::Handle(_)), "{server}");
        assert!(matches!(answers[2].1, Reply::Status(_)), "{server}");
        assert_eq!(session.outstanding(), 0, "{server}");
    }
}

#[test]
fn what_an_earlier_session_left_costs_one_round_trip_to_remove() {
    let scene = Scene::new();
    scene.prepare();
    let stage = scene.mirror().join(".proxyfs/stage");
    for seq in 1..=300 {
        fs::write(stage.join(seq.to_string()), "half").unwrap();
    }
    fs::write(stage.join("not-ours"), "").unwrap();
    assert_eq!(scene.prepare().1, 4);
    assert_eq!(entries(&stage), 1);
}

/// What is watched of a replay.
#[derive(Default)]
struct Watched {
    open: Cell<u64>,
    /// Files and directories that were open at once.
    most_open: Cell<u64>,
    /// Round trips before the last file was published.
    published_after: Cell<usize>,
}

impl Watched {
    fn see(&self, request: &Request, round_trips: usize) {
        match request {
            Request::Open { .. } | Request::Opendir { .. } => {
                self.open.set(self.open.get() + 1);
                self.most_open
                    .set(self.most_open.get().max(self.open.get()));
            }
            Request::Close { .. } => self.open.set(self.open.get() - 1),
            Request::PosixRename { to, .. } if !to.ends_with(b"/.proxyfs/position") => {
                self.published_after.set(round_trips);
            }
            _ => {}
        }
    }
}

#[test]
fn new_files_take_a_round_trip_for_as_many_as_the_server_opens_and_it_keeps_handles_to_spare() {
    const FILES: usize = 2500;
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    for n in 0..FILES {
        scene.make_file(&format!("{n:04}"));
    }
    let watched = Watched::default();
    let handles = scene.replay(rules, |request, round_trips| {
        watched.see(request, round_trips);
    });
    tree::assert_same(&scene.source(), &scene.mirror());
    assert_eq!(watched.most_open.get(), handles - 64);
    // OPENs; the data with the next OPENs, twice; the last data; the last renames.
    assert_eq!(watched.published_after.get(), 5);
}

#[test]
fn a_new_mirror_takes_a_round_trip_for_as_many_files_as_the_server_opens() {
    const FILES: usize = 2500;
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    for n in 0..FILES {
        let dir = scene.source().join(format!("{:02}", n / 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), n.to_string()).unwrap();
    }
    scene.journal.begin_sync("m", Scope::TREE).unwrap();
    let watched = Watched::default();
    let handles = scene.replay(rules, |request, round_trips| {
        watched.see(request, round_trips);
    });
    tree::assert_same(&scene.source(), &scene.mirror());
    assert!(
        watched.most_open.get() < handles,
        "{} were open",
        watched.most_open.get()
    );
    // The way in, what the root is, three to list it; then OPENs, with each wave's data the next one's OPENs, the last
    // data, and the last renames.
    let waves = FILES.div_ceil(handles as usize / 4 * 3);
    assert_eq!(
        watched.published_after.get(),
        5 + waves + 2,
        "{handles} handles"
    );
}

#[test]
fn a_tree_that_is_removed_takes_as_many_round_trips_as_it_is_deep() {
    const DIRS: usize = 150;
    let scene = Scene::new();
    let (rules, _) = scene.prepare();
    for n in 0..DIRS {
        let dir = scene.mirror().join(format!("gone/{n}/below"));
        fs::create_dir_all(&dir).unwrap();
        (0..5).for_each(|n| fs::write(dir.join(n.to_string()), "").unwrap());
    }
    let scope = Scope {
        delete: true,
        ..Scope::TREE
    };
    scene.journal.begin_sync("m", scope).unwrap();
    let removed_after = Cell::new(0);
    scene.replay(rules, |request, round_trips| {
        if let Request::Rmdir { .. } = request {
            removed_after.set(round_trips);
        }
    });
    tree::assert_same(&scene.source(), &scene.mirror());
    // The way in, what the root is, three to list each of four levels, and one for each that is removed.
    assert!(
        removed_after.get() <= 2 + 4 * 3 + 4,
        "{}",
        removed_after.get()
    );
}
