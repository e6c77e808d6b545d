//! The daemon: builds the house, keeps it going, and takes it down in order. The only place where the
//! rooms are wired to each other.
//!
//! What can go wrong between two lines, and what answers it:
//!
//! * *Two daemons on one tree*: each would record only what goes through its own mount. Locks (flock) on
//!   the state directory and on the source's id are held as long as the process lives.
//! * *Started while the source's disk is not mounted* (P8): see [`identity`].
//! * *Started with an empty source* (P8): not after it had something, since mirrors would be emptied.
//! * *Something changed that the log does not know*: see [`scan`](crate::scan). What is suspect is known before
//!   the mount is there, and looked for beside it.
//! * *Order of the start*: a dead mount is cleared before the source is looked at (it may lie over it);
//!   the source is opened before it is mounted over; workers start before the mount, so that nothing is
//!   recorded that nobody listens for; the pid file comes last: who sees it can use the mount.
//! * *Order of the end*: the mount goes first, so that nothing new comes in; then what is written and not
//!   logged is logged; then the workers end. What they had not finished is in the log. Last comes the checkpoint that says
//!   so. All of it within ten seconds: whatever hangs then is left, and the journal is right all the same. Who asks
//!   how it is gets an answer as long as that takes; nothing else is begun any more.

mod answers;
mod identity;
mod notify;
mod privileges;
mod rebuild;
mod report;
mod tally;
mod watch;
mod workers;

use crate::alarm::{self, Alarm, Kind, Report};
use crate::cli::CONFIG_VARIABLE;
use crate::config::{Config, Overrides};
use crate::control::{ControlServer, Handler, socket_path};
use crate::journal::{CHECKED_AT_ONCE, Journal};
use crate::local::{Local, LocalOptions};
use crate::logging::{self, LogHandle};
use crate::mirror::source::{Source, Writing};
use crate::mount::{self, MountOptions, Mounted, Unmounted};
use crate::scan::excluded;
use crate::scan::keeper::{self, Keeper};
use crate::scan::marks::{self, FsClock, Plan, Run};
use crate::scan::{Progress, Scan};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
pub use rebuild::Rebuild;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::cell::Cell;
use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tally::Tally;
use workers::Workers;

/// Within this the daemon ends after it was told to.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long of that who has files open may go on; the rest is for the workers.
const SERVE_OPEN_FILES: Duration = Duration::from_secs(8);

/// How often open files and the mount are looked at.
const TICK: Duration = Duration::from_millis(500);

/// How often the journal is tidied up, in ticks.
const MAINTAIN_EVERY: u32 = 10;

/// How long what is to be mailed may keep the daemon from ending; it is mailed after the next start else.
const LAST_MAIL_WITHIN: Duration = Duration::from_secs(3);

/// How long the workers of changed mirrors have to end at a reload.
const RELOAD_WITHIN: Duration = Duration::from_secs(4);

/// Name of the pid file in `run_dir`.
pub const PID_FILE: &str = "proxyfs.pid";

/// Why the daemon can't run: one line that says what to do.
#[derive(Debug)]
pub struct DaemonError(String);

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DaemonError {}

fn failed(why: impl fmt::Display) -> DaemonError {
    DaemonError(why.to_string())
}

fn emptied(source: &Path) -> DaemonError {
    DaemonError(format!(
        "the source {} is empty, and was not when it was seen last: the mirrors would be emptied after it. If \
         its files were lost, put them back; if it is meant to be empty, make any file in it (touch \
         {0}/empty); then start again",
        source.display()
    ))
}

/// What the main thread is told.
enum Event {
    Stop(&'static str),
    /// Read the configuration again, and say how it went.
    Reload(Option<Sender<Result<String, String>>>),
}

/// What the control socket's threads use.
struct Shared {
    local: Arc<Local>,
    journal: Arc<Journal>,
    workers: Workers,
    config: std::sync::Mutex<Config>,
    /// Set before anybody can ask for it.
    alarm: OnceLock<Alarm>,
    tally: std::sync::Mutex<Tally>,
    /// Why the journal could not be tidied up last, if so.
    untidy: std::sync::Mutex<Option<String>>,
    events: Sender<Event>,
    scan: Arc<Progress>,
    /// It was told to end: what is under way is given up, and only questions are answered.
    stopping: AtomicBool,
}

impl Shared {
    fn config(&self) -> std::sync::MutexGuard<'_, Config> {
        // Replaced whole or not at all.
        self.config
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds up what the workers have done, and keeps it.
    fn add_up(&self) {
        let mut tally = self.tally();
        for (name, live) in self.workers.lives() {
            tally.count(&name, &live);
        }
        tally.save(&self.journal);
    }

    /// Why the journal could not be tidied up last, if so.
    fn untidy(&self) -> Option<String> {
        let untidy = self.untidy.lock();
        untidy
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Removes from the journal what is not needed any more. A failure is logged once, and mailed.
    fn tidy_up(&self) {
        let limit = self.config().log_limit;
        let bounded = self.journal.bound(limit).map(|late| {
            // (It is mailed as long as it lacks something.)
            for name in late {
                log::error!(
                    "mirror {name}: it is so far behind that the log would outgrow log_limit ({} KiB), or fill its \
                     disk: its changes are dropped, and it is compared with the whole source when it is back",
                    limit >> 10
                );
            }
        });
        let failed = bounded.and_then(|()| self.journal.maintain());
        let failed = failed.err().map(|why| why.to_string());
        let untidy = self.untidy.lock();
        let mut untidy = untidy.unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(why) = failed.as_ref().filter(|why| untidy.as_ref() != Some(*why)) {
            log::error!("the journal could not be tidied up: {why}");
        }
        *untidy = failed;
    }

    /// Tells of something that happened once.
    fn tell_of(&self, kind: Kind, mirror: &str, reason: &str) {
        if let Some(alarm) = self.alarm.get() {
            alarm.happened(kind, mirror, reason);
        }
    }
}

/// Runs the daemon until it is told to stop. `config` is what was loaded from its file with `overrides`.
///
/// # Errors
/// It can't run: nothing is mounted then.
pub fn run(config: Config, overrides: Overrides) -> Result<(), DaemonError> {
    let log = logging::start(config.log_file.as_deref(), config.log_level).map_err(failed)?;
    let has_file = config.log_file.is_some();
    let started = Cell::new(false);
    let ended = run_with(config.clone(), overrides, &log, &started);
    // Standard error is told by the caller; but who looks for the reason looks into the log.
    if let (Err(why), true) = (&ended, has_file) {
        log::error!("{why}");
    }
    // If there is none that runs already.
    if let (Err(why), false) = (&ended, started.get())
        && let Ok(_lock) = identity::lock_state(&config.state_dir)
    {
        alarm::not_started(&config, &why.to_string());
    }
    ended
}

fn run_with(
    config: Config,
    overrides: Overrides,
    log: &LogHandle,
    started: &Cell<bool>,
) -> Result<(), DaemonError> {
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    privileges::drop_the_rest()
        .map_err(|why| failed(format!("root's other rights cannot be given up: {why}")))?;
    let (events, inbox) = unbounded();
    listen_to_signals(events.clone())?;
    make_directory(&config.state_dir, 0o700)?;
    make_directory(&config.run_dir, 0o755)?;
    let _state_lock = identity::lock_state(&config.state_dir).map_err(failed)?;
    if mount::clear_stale(&config.mount_point).map_err(failed)? {
        log::warn!(
            "{}: a dead mount of an earlier run is cleared",
            config.mount_point.display()
        );
    }
    let journal = Arc::new(Journal::open(&config.state_dir).map_err(failed)?);
    let options = LocalOptions {
        flush_after: config.flush_after,
        flush_max: config.flush_max,
        exclude: config.exclude.clone(),
        ..LocalOptions::default()
    };
    let recorder = Arc::clone(&journal);
    let local = Arc::new(Local::open(&config.source, options, recorder).map_err(failed)?);
    let names: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
    let _source_lock = identity::claim_source(local.root_fd(), &config.source, &journal, &names)
        .map_err(failed)?;
    let clock = FsClock::new(local.root_fd());
    let run = Run::now(local.root_fd(), &config.state_dir);
    let now = clock.now();
    let mut plan = marks::plan(&journal, &run, now).map_err(failed)?;
    if plan.had_content && keeper::is_empty(local.root_fd()).map_err(failed)? {
        return Err(emptied(&config.source));
    }
    if plan.unclean {
        check_journal(&journal)?;
    }
    if !config.scan_on_start {
        plan = Plan::nothing();
    }
    plan.excluded_before = excluded::before(&journal, &config.exclude).map_err(failed)?;
    let root = local.root_fd().try_clone_to_owned().map_err(failed)?;
    let watched = Arc::clone(&local);
    let watch = move |inode| match watched.being_written(inode) {
        (_, true) => Writing::Anew,
        (true, false) => Writing::UnderWay,
        (false, false) if watched.is_open_to_write(inode) => Writing::Open,
        (false, false) => Writing::No,
    };
    let recorded = Arc::clone(&local);
    let source = Source::new(root, Box::new(watch))
        .without(config.exclude.clone())
        .with_barrier(Box::new(move || recorded.wait_for_records()));
    let source = Arc::new(source);
    source.set_max_delete(config.max_delete);
    // What may fail comes before workers and mount, or ends them.
    let tally = Tally::open(&journal).map_err(failed)?;
    let workers = Workers::new(Arc::clone(&journal), source);
    workers
        .apply(&config.mirrors, Instant::now() + RELOAD_WITHIN)
        .map_err(failed)?;
    let options = MountOptions {
        threads: config.threads,
        unmount_timeout: SERVE_OPEN_FILES,
        ..MountOptions::default()
    };
    let scan = Scan {
        local: Arc::clone(&local),
        journal: Arc::clone(&journal),
        progress: Arc::default(),
        survivors: Arc::default(),
        stop: Arc::default(),
    };
    let progress = Arc::clone(&scan.progress);
    marks::begin(&journal, &run, now).map_err(failed)?;
    scan.prepare(&plan).map_err(failed)?;
    let run_dir = config.run_dir.clone();
    let mounted = match mount::mount(Arc::clone(&local), &config.mount_point, options) {
        Ok(mounted) => mounted,
        Err(why) => {
            workers.stop(Instant::now() + STOP_WITHIN);
            return Err(failed(why));
        }
    };
    let keeper = match Keeper::start(scan, plan, clock) {
        Ok(keeper) => keeper,
        Err(why) => {
            let unmounted = mounted.unmount();
            workers.stop(Instant::now() + STOP_WITHIN);
            unmounted.map_err(failed)?;
            return Err(failed(format!("no thread is left: {why}")));
        }
    };
    let shared = Arc::new(Shared {
        local,
        journal,
        workers,
        config: config.into(),
        alarm: OnceLock::new(),
        tally: tally.into(),
        untidy: std::sync::Mutex::new(None),
        events,
        scan: progress,
        stopping: AtomicBool::new(false),
    });
    let served = serve(
        &shared, &mounted, &run_dir, &inbox, log, &overrides, started,
    );
    shared.stopping.store(true, Ordering::Release);
    drop(inbox); // who waits for a reload is told
    let (control, served) = match served {
        Ok(control) => (Some(control), Ok(())),
        Err(why) => (None, Err(why)),
    };
    let ended = take_down(&shared, control, mounted, keeper);
    served.and(ended)
}

/// Looks through a journal that was not closed properly: a short one now, a long one beside all else. What is found then
/// closes the log.
fn check_journal(journal: &Arc<Journal>) -> Result<(), DaemonError> {
    if journal.disk_bytes() <= CHECKED_AT_ONCE {
        return journal.check_pages().map_err(failed);
    }
    let journal = Arc::clone(journal);
    let look = move || {
        let started = Instant::now();
        match journal.check_pages() {
            Ok(()) => log::info!(
                "all of the journal was looked through in {:.1} s: it is whole",
                started.elapsed().as_secs_f64()
            ),
            Err(why) => log::error!("{why}"),
        }
    };
    let thread = std::thread::Builder::new().name("check".to_string());
    thread.spawn(look).map(drop).map_err(failed)
}

/// The life of the daemon from mount to stop. Gives the control socket, which still answers.
fn serve(
    shared: &Arc<Shared>,
    mounted: &Mounted,
    run_dir: &Path,
    inbox: &Receiver<Event>,
    log: &LogHandle,
    overrides: &Overrides,
    started: &Cell<bool>,
) -> Result<ControlServer, DaemonError> {
    let watched = Arc::clone(shared);
    let look = Box::new(move |told: &_| watch::sight(&watched, told));
    let alarm =
        Alarm::start(&shared.config(), Arc::clone(&shared.journal), look).map_err(failed)?;
    let _ = shared.alarm.set(alarm); // nobody else does
    let handler = Arc::clone(shared) as Arc<dyn Handler>;
    let control = ControlServer::start(&socket_path(run_dir), handler).map_err(failed)?;
    let pid = PidFile::write(run_dir)?;
    started.set(true);
    {
        let config = shared.config();
        let mirrors = config.mirrors.len();
        log::info!(
            "{} is mounted at {}, {mirrors} mirror{}",
            config.source.display(),
            mounted.mount_point().display(),
            if mirrors == 1 { "" } else { "s" }
        );
    }
    notify::ready("the mount can be used");
    let mut ticks = 0u32;
    let mut next_tick = Instant::now() + TICK;
    loop {
        match inbox.recv_deadline(next_tick) {
            Ok(Event::Stop(why)) => {
                log::info!("stopping: {why}");
                break;
            }
            Ok(Event::Reload(answer)) => {
                notify::reloading();
                let done = reload(shared, log, overrides);
                notify::ready("the mount can be used");
                match &done {
                    Ok(what) => log::info!("configuration read again: {what}"),
                    // Each problem has a line of its own.
                    Err(why) => why
                        .lines()
                        .for_each(|why| log::error!("configuration not changed: {why}")),
                }
                if let Some(answer) = answer {
                    // Whoever asked may have hung up.
                    let _ = answer.send(done);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break, // can't be: `shared` has a sender
            Err(RecvTimeoutError::Timeout) => {
                next_tick = Instant::now() + TICK;
                ticks = ticks.wrapping_add(1);
                shared.local.flush_due(Instant::now());
                if !mounted.is_mounted() {
                    let place = mounted.mount_point().display();
                    log::warn!("{place} was unmounted: stopping");
                    let reason = format!("{place} was unmounted, not by the daemon");
                    shared.tell_of(Kind::Unmounted, "", &reason);
                    break;
                }
                if ticks.is_multiple_of(MAINTAIN_EVERY) {
                    for name in shared.workers.revive() {
                        let reason = "its thread ended by itself: see the daemon's log";
                        shared.tell_of(Kind::WorkerDied, &name, reason);
                    }
                    shared.tidy_up();
                    shared.add_up();
                }
            }
        }
    }
    notify::stopping();
    drop(pid);
    Ok(control)
}

fn take_down(
    shared: &Arc<Shared>,
    control: Option<ControlServer>,
    mounted: Mounted,
    keeper: Keeper,
) -> Result<(), DaemonError> {
    let deadline = Instant::now() + STOP_WITHIN;
    keeper.halt();
    let unmounted = mounted.unmount();
    match &unmounted {
        Ok(Unmounted::Completely) => {}
        Ok(Unmounted::StillInUse) => log::warn!(
            "the mount is detached, but some process still uses it: what it does there from here on \
             does not reach the mirrors; restart that process"
        ),
        Err(why) => log::error!("{why}"),
    }
    let flushed = shared.local.flush_all();
    if let Err(why) = &flushed {
        log::error!("not everything that was written is in the log: {why}");
    }
    if let Some(alarm) = shared.alarm.get() {
        alarm.stop(deadline.min(Instant::now() + LAST_MAIL_WITHIN));
    }
    shared.add_up();
    shared.workers.stop(deadline);
    shared.journal.sync().map_err(failed)?;
    let clean = matches!(unmounted, Ok(Unmounted::Completely)) && flushed.is_ok();
    keeper.end(clean, deadline);
    if let Some(control) = control {
        control.stop();
    }
    log::info!("stopped");
    unmounted.map_err(failed)?;
    flushed.map_err(failed)
}

/// Puts a changed configuration to work. A wrong one changes nothing.
fn reload(shared: &Shared, log: &LogHandle, overrides: &Overrides) -> Result<String, String> {
    let old = shared.config().clone();
    let new = Config::load(&old.file, overrides.clone()).map_err(|e| e.to_string())?;
    // The log file first: it may have been rotated away, and what follows is worth reading.
    log.reopen(new.log_file.as_deref())
        .map_err(|e| e.to_string())?;
    log.set_level(new.log_level);
    for warning in &new.warnings {
        log::warn!("{warning}");
    }
    let deadline = Instant::now() + RELOAD_WITHIN;
    let mut what = shared
        .workers
        .apply(&new.mirrors, deadline)
        .map_err(|e| e.to_string())?;
    let fixed = [
        ("source", old.source != new.source),
        ("mount_point", old.mount_point != new.mount_point),
        ("state_dir", old.state_dir != new.state_dir),
        ("run_dir", old.run_dir != new.run_dir),
        ("threads", old.threads != new.threads),
        ("flush_after", old.flush_after != new.flush_after),
        ("flush_max", old.flush_max != new.flush_max),
        ("exclude", old.exclude != new.exclude),
    ];
    let waiting: Vec<&str> = fixed.iter().filter(|f| f.1).map(|f| f.0).collect();
    if !waiting.is_empty() {
        what += &format!("; {} will change at the next start", waiting.join(", "));
    }
    let mut config = shared.config();
    config.mirrors = new.mirrors;
    config.mail = new.mail;
    config.on_event = new.on_event;
    config.max_delete = new.max_delete;
    shared.workers.set_max_delete(new.max_delete);
    if let Some(alarm) = shared.alarm.get() {
        alarm.reload(&config);
    }
    config.log_file = new.log_file;
    config.log_level = new.log_level;
    config.log_limit = new.log_limit;
    Ok(what)
}

/// SIGTERM and SIGINT stop the daemon, SIGHUP has it read its configuration again.
fn listen_to_signals(events: Sender<Event>) -> Result<(), DaemonError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGHUP => Event::Reload(None),
                    SIGINT => Event::Stop("SIGINT"),
                    _ => Event::Stop("SIGTERM"),
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        })
        .map(drop)
        .map_err(failed)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), DaemonError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|why| failed(format!("{} cannot be made: {why}", path.display())))
}

/// The pid file; removed when dropped.
struct PidFile(PathBuf);

impl PidFile {
    fn write(run_dir: &Path) -> Result<PidFile, DaemonError> {
        let path = run_dir.join(PID_FILE);
        let cant = |why| failed(format!("{} cannot be written: {why}", path.display()));
        // Whole under its name or not there: an init script may read it at any moment.
        let fresh = run_dir.join(format!("{PID_FILE}.new"));
        std::fs::write(&fresh, format!("{}\n", std::process::id())).map_err(cant)?;
        std::fs::rename(&fresh, &path).map_err(cant)?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(why) = std::fs::remove_file(&self.0) {
            log::warn!("{} cannot be removed: {why}", self.0.display());
        }
    }
}

/// Forgets a mirror that is not configured any more, where no daemon runs.
///
/// # Errors
/// A daemon runs after all, or the journal cannot be written.
pub fn forget_mirror(config: &Config, name: &str) -> Result<(), DaemonError> {
    if !config.state_dir.join(crate::journal::FILE_NAME).exists() {
        return Ok(());
    }
    let _lock = identity::lock_state(&config.state_dir).map_err(failed)?;
    let journal = Journal::open(&config.state_dir).map_err(failed)?;
    journal.forget_mirror(name).map_err(failed)
}

/// What `status` tells when no daemon answers: what the journal knows.
///
/// # Errors
/// There is no journal, or it can't be read.
pub fn status_from_journal(config: &Config) -> Result<crate::status::Status, DaemonError> {
    report::offline_status(config).map_err(failed)
}

/// Sends a test mail where no daemon does; says how it went.
///
/// # Errors
/// What the mail server said, or what else went wrong.
pub fn test_mail(config: &Config) -> Result<String, DaemonError> {
    alarm::send_test(config, &Report::default(), &[]).map_err(failed)
}

/// What `tasks` tells when no daemon answers; and how many more there are.
///
/// # Errors
/// There is no journal, it can't be read, or no mirror has that name.
pub fn tasks_from_journal(
    config: &Config,
    mirror: Option<&str>,
    limit: u64,
) -> Result<Vec<crate::status::Task>, DaemonError> {
    report::offline_tasks(config, mirror, limit).map_err(failed)
}

/// The configuration file that the environment names.
pub fn config_from_environment() -> Option<std::ffi::OsString> {
    std::env::var_os(CONFIG_VARIABLE)
}
