//! A mirror's worker: one thread, one session, one life: connect, replay, back off, idle.
//!
//! Its only way in is a channel of notices, its only source of work the journal. A mirror that is dead
//! keeps nobody but its own worker waiting: the file system side puts rows into the journal and raises
//! a flag, and never waits for a worker.
//!
//! Nothing is ever skipped: whatever fails, the cursor stays, and the row is tried again. (One that is refused for a reason
//! of its own is set aside meanwhile: `held.rs`.) A connection
//! that fails is tried again with growing pauses (with jitter, so that ten mirrors behind one link do not
//! come back as one); what a person has to put right is tried at the slow end, or at once after `proxyfs
//! try-again`.

pub mod clock;
mod covers;
pub mod errors;
mod fence;
mod ghosts;
pub mod guard;
mod held;
pub mod inbox;
pub mod live;
mod marker;
pub mod pipeline;
mod place;
pub mod plan;
pub mod prepare;
mod related;
pub mod repair;
pub mod resume;
mod scars;
mod settle;
pub mod source;
pub mod upload;
mod verify;
mod wide;

use crate::change::{Scope, Seq};
use crate::config::bandwidth::Bandwidth;
use crate::config::{FirstSync, Login, MirrorConfig, Order};
use crate::journal::{Journal, JournalError, SOURCE_ID};
use crate::sftp::lanes::MOST_LANES;
use crate::sftp::session::{self, Abort, Rate, Secret, Start, Target};
use crate::status::MirrorState;
use errors::{Class, MirrorError};
use guard::Guard;
use inbox::{Inbox, Notice, Notifier, inbox};
use live::Live;
use pipeline::{Ended, Pipeline, Setup};
use plan::Place;
use source::Source;
use std::cell::RefCell;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
pub use verify::{Verified, verify};

/// A session that lasted so long counts as one that worked, whatever ended it.
const STEADY: Duration = Duration::from_secs(60);

/// The limit of what a mirror is sent, which may change while it is.
type Limit = Arc<Mutex<Bandwidth>>;

/// A running worker, as the daemon holds it.
pub struct Worker {
    /// What it was started with.
    pub config: MirrorConfig,
    /// What `status` shows of it.
    pub live: Arc<Live>,
    notifier: Notifier,
    abort: Abort,
    limit: Limit,
    journal: Arc<Journal>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the worker of a mirror. A mirror that the journal does not know starts at the head of the
    /// log.
    ///
    /// # Errors
    /// The journal's; no thread or descriptor is left.
    pub fn start(
        config: MirrorConfig,
        journal: Arc<Journal>,
        source: Arc<Source>,
    ) -> Result<Worker, MirrorError> {
        let empty = source.is_empty().map_err(source_error)?;
        let reader = journal.reader()?;
        let is_new = reader.mirrors()?.iter().all(|m| m.name != config.name);
        let position = journal.add_mirror(&config.name, empty)?;
        // Cut before this is noted, it is seen at the first contact whether there is a copy.
        let delete = match config.first_sync {
            FirstSync::Keep => Some(false),
            FirstSync::Delete => Some(true),
            FirstSync::None => None,
        };
        if let Some(delete) = delete.filter(|_| is_new && !empty) {
            let scope = Scope {
                delete,
                ..Scope::TREE
            };
            journal.request_sync(&config.name, scope)?;
        }
        // What is done is all there, unless a directory's time is still to be set, or it is not known yet
        // whether there is a copy at all.
        let whole =
            position.adopted && position.lacks == 0 && reader.repairs(&config.name)?.is_empty();
        let settled = whole && reader.touched(&config.name)?.is_empty();
        let lacks = position.first_parked.unwrap_or(Seq::MAX);
        let settled = settled.then_some(position.cursor.min(lacks - 1));
        let live = Arc::new(Live::new(settled, position.last_error));
        let (notifier, inbox) = inbox().map_err(source_error)?;
        let abort = Abort::new();
        let limit = Arc::new(Mutex::new(config.bandwidth_limit.clone()));
        let held = journal.held(&config.name)?;
        let life = Life {
            config: config.clone(),
            journal: Arc::clone(&journal),
            source,
            live: Arc::clone(&live),
            inbox,
            abort: abort.clone(),
            limit: Arc::clone(&limit),
            paused: position.paused,
            try_again: false,
            failures: 0,
            told: String::new(),
            memory: resume::Memory::default(),
            guard: RefCell::default(),
            held: position.paused.then_some(held).flatten(),
        };
        if position.paused {
            life.rest_paused();
        }
        let thread = std::thread::Builder::new()
            .name(format!("mirror {}", config.name))
            .spawn(move || life.live())
            .map_err(source_error)?;
        let wake = notifier.clone();
        journal.listen(&config.name, Box::new(move || wake.changes()));
        Ok(Worker {
            config,
            live,
            notifier,
            abort,
            limit,
            journal,
            thread: Some(thread),
        })
    }

    /// Sends it nothing more until it is resumed.
    ///
    /// # Errors
    /// The journal's.
    pub fn pause(&self) -> Result<(), JournalError> {
        self.journal.set_paused(&self.config.name, true)?;
        self.notifier.tell(Notice::Pause);
        Ok(())
    }

    /// Lets it go on, and try again at once what failed. For one that needs a sync this is the word that it
    /// was given a copy; for no other one, whose administrator may not know yet that it needs one (P8).
    ///
    /// # Errors
    /// The journal's.
    pub fn resume(&self) -> Result<(), JournalError> {
        self.journal.let_through(&self.config.name)?;
        self.journal.set_paused(&self.config.name, false)?;
        if self.live.now().state == MirrorState::NeedsSync {
            self.journal.copy_was_made(&self.config.name)?;
        }
        // Before the answer: `wait` may be asked next, and what was wrong is not known to be so any more.
        self.live.trying();
        self.live.trying_parked();
        self.notifier.tell(Notice::Resume);
        Ok(())
    }

    /// Has all of it made like the source, as much as `scope` says, now or when it is there: that is noted.
    ///
    /// # Errors
    /// The journal's.
    pub fn sync(&self, scope: Scope) -> Result<(), JournalError> {
        self.journal.request_sync(&self.config.name, scope)?;
        if self.live.now().state != MirrorState::Paused {
            self.live.trying();
        }
        self.live.sync_is_asked();
        self.notifier.tell(Notice::Sync);
        Ok(())
    }

    /// Has it try again at once what failed, parked changes too. A paused one stays paused, and one that needs
    /// a sync still needs it.
    pub fn try_again(&self) {
        let state = self.live.now().state;
        if !matches!(state, MirrorState::Paused | MirrorState::NeedsSync) {
            self.live.trying();
        }
        self.live.trying_parked();
        self.notifier.tell(Notice::TryAgain);
    }

    /// Takes another limit of what it may send, from now on and without a new connection; whether that is all
    /// in which `config` differs from its own.
    pub fn limit_only(&mut self, config: &MirrorConfig) -> bool {
        let limit = config.bandwidth_limit.clone();
        let same = MirrorConfig {
            bandwidth_limit: limit.clone(),
            ..self.config.clone()
        };
        if same != *config {
            return false;
        }
        *self.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        self.config = same;
        true
    }

    /// Tells it to end, and ends what it waits for.
    pub fn stop(&self) {
        self.journal.unlisten(&self.config.name);
        self.notifier.tell(Notice::Stop);
    }

    /// Whether its thread is at an end, though nobody told it to stop.
    pub fn is_dead(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until it has ended, `deadline` at the latest. A worker that is late is cut off, and then
    /// given up: the journal is right at any moment.
    pub fn join(mut self, deadline: Instant) {
        self.stop();
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let Some(thread) = self.thread.take() else {
            return;
        };
        for limit in [half, deadline] {
            while !thread.is_finished() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.abort.abort();
        }
        if thread.is_finished() {
            // A panic has been reported by the panic hook; there is nothing else to learn.
            let _ = thread.join();
        } else {
            log::warn!(
                "mirror {}: its worker did not end in time",
                self.config.name
            );
        }
    }
}

fn source_error(why: io::Error) -> MirrorError {
    MirrorError::Source {
        change: "starting".to_string(),
        why,
    }
}

/// What the worker's thread owns.
struct Life {
    config: MirrorConfig,
    journal: Arc<Journal>,
    source: Arc<Source>,
    live: Arc<Live>,
    inbox: Inbox,
    abort: Abort,
    limit: Limit,
    paused: bool,
    /// Parked changes are to be tried again at once.
    try_again: bool,
    /// Attempts that failed since the mirror was up.
    failures: u32,
    /// What the log was last told of them.
    told: String,
    /// How much of which file the mirror had when the last session ended.
    memory: resume::Memory,
    /// What stops a mass deletion.
    guard: RefCell<Guard>,
    /// Why it is paused, if that was done by the guard.
    held: Option<String>,
}

impl Life {
    fn live(mut self) {
        loop {
            if self.paused {
                self.rest_paused();
                if !self.wait(None) {
                    return;
                }
                continue;
            }
            match self.session() {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Paused) => {
                    self.paused = true;
                    log::info!("mirror {}: paused", self.config.name);
                }
                // The journal knows already.
                Err(MirrorError::TooMuch(why)) => {
                    log::error!("mirror {}: paused: {why}", self.config.name);
                    (self.paused, self.held) = (true, Some(why));
                }
                Err(why) => {
                    let pause = self.failed(&why);
                    if !self.wait(Some(Instant::now() + pause)) {
                        return;
                    }
                }
            }
        }
    }

    fn rest_paused(&self) {
        match &self.held {
            Some(why) => self.live.hold(why.clone()),
            None => self.live.resting(MirrorState::Paused, None, None),
        }
    }

    /// Waits for a notice to go on, or for `until`. Says whether to go on at all.
    fn wait(&mut self, until: Option<Instant>) -> bool {
        loop {
            while let Some(notice) = self.inbox.next_at_rest() {
                match notice {
                    Notice::Stop => return false,
                    Notice::Pause => {
                        self.paused = true;
                        return true;
                    }
                    Notice::Resume => {
                        self.paused = false;
                        self.held = None;
                        self.try_again = true;
                        // Again: an attempt that ended after the notice was sent may have said otherwise.
                        self.live.trying();
                        return true;
                    }
                    Notice::TryAgain | Notice::Sync => {
                        self.try_again = true;
                        if !self.paused {
                            return true;
                        }
                    }
                    Notice::Changes => {} // they wait in the journal
                }
            }
            let left = match until {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return true;
            }
            self.inbox.wait(left);
        }
    }

    /// One session from connect to end.
    fn session(&mut self) -> Result<Ended, MirrorError> {
        let name = self.config.name.clone();
        let target = target(&self.config)?;
        let place = Place::new(self.config.path.as_bytes());
        let questions = prepare::questions(&place);
        let reader = self.journal.reader()?;
        // What a repair sends is not known before.
        let far_lanes = match reader.repairs(&name)?.is_empty() {
            true if self.journal.mirror(&name)?.sync.is_none() => {
                pipeline::lanes_for(reader.backlog(&name)?.bytes)
            }
            _ => MOST_LANES,
        };
        let start = Start {
            first: &questions,
            far_lanes,
            rate: Some(rate_of(&self.limit)),
        };
        let (mut remote, asked) = session::connect_asking(&target, &self.abort, &start)?;
        self.inbox.attend();
        let mut position = reader.mirror(&name)?;
        // Where nothing is, there is nothing to have a copy of.
        let adopted = position.adopted;
        position.adopted |=
            position.sync.is_none() && self.source.is_empty().map_err(source_error)?;
        let source_id = self.journal.meta(SOURCE_ID)?.unwrap_or_default();
        let known = prepare::Known {
            position: &position,
            source_id: &source_id,
            marker: self.journal.marker(&name)?,
            asked: position.sync.is_some(),
        };
        let wanted = plan::Rules {
            owner: self.config.preserve_owner,
            relaxed: self.config.order == Some(Order::Relaxed),
            fsync: plan::Wish::of(self.config.fsync),
            atomic: plan::Wish::of(self.config.atomic_updates),
            ..plan::Rules::default()
        };
        let prepare::Prepared {
            place,
            rules,
            kept,
            fresh,
        } = prepare::prepare_asked(&mut remote, &asked, &place, &known, wanted)?;
        if position.sync.is_some() && fresh || position.lacks > 0 {
            log::info!("mirror {name}: all of it is made like the source");
            // One that fell out of the log has kept what was removed here since.
            let scope = position.sync.unwrap_or(Scope::TREE);
            self.journal.begin_sync(&name, scope)?;
            self.live.begins_sync();
        } else if !adopted {
            self.journal.adopt_mirror(&name)?;
        }
        self.journal.set_last_error(&name, None)?;
        self.live.connected(prepare::unsupported(&rules));
        match self.failures {
            0 => log::info!("mirror {name}: connected to {}", self.config.host),
            n => log::info!(
                "mirror {name}: connected to {}, recovered after {n} failed attempt{}",
                self.config.host,
                if n == 1 { "" } else { "s" }
            ),
        }
        let through = self.journal.through(&name)?;
        self.guard.borrow_mut().let_through(through);
        let started = Instant::now();
        let setup = Setup {
            name: &name,
            place,
            rules,
            source: &self.source,
            journal: &self.journal,
            reader: &reader,
            inbox: &self.inbox,
            live: &self.live,
            parked_pause: self.config.backoff_max,
            try_again: std::mem::take(&mut self.try_again),
            kept,
            memory: &self.memory,
            guard: &self.guard,
        };
        let ended = Pipeline::new(setup, remote)?.run();
        // A server that lets us in and then breaks off each time is not up.
        if reader.mirror(&name)?.cursor > position.cursor || started.elapsed() > STEADY {
            self.failures = 0;
        }
        ended
    }

    /// Notes a failure; says how long to wait.
    fn failed(&mut self, why: &MirrorError) -> Duration {
        let name = &self.config.name;
        // One that the log has dropped is made like the source with the next connection. (One that was away waits for
        // a person's word.)
        let dropped = matches!(why, MirrorError::Lacks { .. })
            && self.journal.mirror(name).is_ok_and(|m| !m.away);
        let class = if dropped {
            Class::Connection
        } else {
            why.class()
        };
        let pause = match class {
            Class::Connection => backoff(&self.config, self.failures, jitter()),
            Class::Mirror => self.config.backoff_max,
        };
        let text = why.to_string();
        let state = match (class, why) {
            (Class::Connection, _) => MirrorState::Retrying,
            (_, MirrorError::NeedsSync { .. } | MirrorError::Lacks { .. }) => {
                MirrorState::NeedsSync
            }
            (_, MirrorError::Marker { what, .. }) if what.needs_sync() => MirrorState::NeedsSync,
            (Class::Mirror, _) => MirrorState::Stopped,
        };
        self.live
            .resting(state, Some(text.clone()), Some(Instant::now() + pause));
        if let Err(why) = self.journal.set_last_error(name, Some(&text)) {
            log::error!("mirror {name}: its error could not be noted: {why}");
        }
        // A line when it goes down, when the reason is another one, and at every doubling, not one a try.
        self.failures += 1;
        if self.failures.is_power_of_two() || self.told != text {
            let seconds = pause.as_secs_f64();
            log::warn!(
                "mirror {name}: {text} (attempt {}, next in {seconds:.0} s)",
                self.failures
            );
            self.told = text;
        }
        pause
    }
}

/// The pause after `failures` earlier failures: doubling from `backoff_min` to `backoff_max`, less up to
/// a quarter by `jitter` (0 to 1).
fn backoff(config: &MirrorConfig, failures: u32, jitter: f64) -> Duration {
    let doubled = config
        .backoff_min
        .saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX));
    doubled.min(config.backoff_max).mul_f64(1.0 - jitter / 4.0)
}

/// Something between 0 and 1 that differs from worker to worker.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    random as f64 / u64::MAX as f64
}

/// The rate that holds when it is asked for.
fn rate_of(limit: &Limit) -> Rate {
    let limit = Arc::clone(limit);
    Arc::new(move || {
        let limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.at(clock::minute_of_day())
    })
}

/// What the SFTP client has to know.
///
/// # Errors
/// The passphrase cannot be read, or there is no key at all.
pub fn target(config: &MirrorConfig) -> Result<Target, MirrorError> {
    let passphrase = match &config.passphrase_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|why| MirrorError::Passphrase {
                file: file.clone(),
                why: why.to_string(),
            })?;
            Some(Secret::new(text.lines().next().unwrap_or("")))
        }
    };
    let login = match &config.login {
        Login::Keys(files) => {
            files.iter().try_for_each(|file| check_mode(file))?;
            session::Login::Keys {
                files: files.clone(),
                passphrase,
            }
        }
        Login::UsualKeys(files) => {
            let files: Vec<_> = files.iter().filter(|f| f.exists()).cloned().collect();
            if files.is_empty() {
                return Err(MirrorError::NoKey);
            }
            files.iter().try_for_each(|file| check_mode(file))?;
            session::Login::Keys { files, passphrase }
        }
        Login::Agent => session::Login::Agent { socket: None },
    };
    Ok(Target {
        host: config.host.clone(),
        port: config.port,
        user: config.user.clone(),
        login,
        known_hosts: config.known_hosts.clone(),
        compression: config.compression,
        connect_timeout: config.connect_timeout,
        io_timeout: config.io_timeout,
    })
}

/// A key of ours that others may use is refused, as ssh(1) does. One that is not there is told of later.
fn check_mode(file: &Path) -> Result<(), MirrorError> {
    let Ok(found) = std::fs::metadata(file) else {
        return Ok(());
    };
    let mode = found.mode() & 0o7777;
    if found.uid() == rustix::process::getuid().as_raw() && mode & 0o077 != 0 {
        let file = file.to_path_buf();
        return Err(MirrorError::KeyMode { file, mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_jitter_only_shortens_them() {
        let config = MirrorConfig {
            name: "m".to_string(),
            host: "h".to_string(),
            port: 22,
            user: "u".to_string(),
            path: "/p".to_string(),
            login: Login::Agent,
            passphrase_file: None,
            known_hosts: Vec::new(),
            first_sync: crate::config::FirstSync::default(),
            order: None,
            preserve_owner: false,
            compression: false,
            fsync: false,
            atomic_updates: false,
            bandwidth_limit: Bandwidth::default(),
            connect_timeout: Duration::from_secs(15),
            io_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
        };
        let seconds: Vec<u64> = [0, 1, 2, 8, 9, 40, 4_000_000_000]
            .iter()
            .map(|n| backoff(&config, *n, 0.0).as_secs())
            .collect();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 300]);
        assert_eq!(backoff(&config, 2, 1.0), Duration::from_secs(3));
        assert!((0.0..=1.0).contains(&jitter()));
    }
}
