//! Replaying what is in the journal, as the worker does it, on a connection that may be cut.

use super::super::super::support::fake_server::{Cut, FakeServer};
use super::super::real::Breaking;
use super::{Life, MEANWHILE, RULES, World};
use proxyfs::change::{Scope, Seq};
use proxyfs::journal::{Journal, Reader};
use proxyfs::mirror::errors::MirrorError;
use proxyfs::mirror::inbox::{Notice, inbox};
use proxyfs::mirror::live::Live;
use proxyfs::mirror::pipeline::{Pipeline, Setup};
use proxyfs::mirror::plan::{Place, Rules};
use proxyfs::mirror::prepare::{Known, Prepared, prepare};
use proxyfs::mirror::resume::Kept;
use proxyfs::sftp::session::{Abort, connect};
use proxyfs::sftp::{Remote, Request};
use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

impl World {
    /// Replays what is in the journal, on a connection that may be cut.
    pub(super) fn session(&self, life: &Life, cut: Option<Cut>) -> bool {
        let Life {
            journal,
            source,
            memory,
            reader: check,
            ..
        } = life;
        let (notifier, inbox) = inbox().unwrap();
        let reader: Reader = journal.reader().unwrap();
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
                        self.is_decidable(check, request);
                        self.look_at(life, check, request);
                    }),
                    meanwhile: Box::new(|| users(10)),
                };
                converse(&mut server, &known, &place, rules, journal, setup)
            }
            None => {
                let watch = |request: &Request| {
                    users(10);
                    self.look_at(life, check, request);
                };
                let mut server =
                    FakeServer::new(cut, batch, idle, watch).lanes(lanes, self.random().next());
                if self.random().one_in(2) {
                    server = server.late();
                }
                server.weight = if self.seed.is_multiple_of(3) { 32 } else { 1 };
                server.sent = Box::new(|request| self.is_decidable(check, request));
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

    /// Of which change the marker there is.
    pub(super) fn marked(&self) -> Option<Seq> {
        let text = fs::read_link(self.base.join(".proxyfs/position")).ok()?;
        let text = text.to_str()?.split("seq=").nth(1)?.to_string();
        text.split(' ').next()?.parse().ok()
    }
}

/// One session's work, as the worker does it.
pub(super) fn converse<'a, R: Remote>(
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
