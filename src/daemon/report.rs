//! What is told of the daemon: status, tasks, and when everything is there.

use super::Shared;
use super::watch::DROPPED;
use super::workers::unknown_mirror;
use crate::alarm::{self, Alarm, Report};
use crate::config::{Config, MirrorConfig};
use crate::journal::{Backlog, FILE_NAME, Reader, now_ms};
use crate::mirror;
use crate::mirror::live::{Now, Repairing};
use crate::status::{
    AlarmStatus, MailStatus, MirrorState, MirrorStatus, ScanStatus, Status, SyncStatus, Task,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a change counts beside its bytes, where progress is told: about what it costs on the line.
const OP_WEIGHT: u128 = 4096;

/// From this size on a change takes its time for its bytes.
const SMALL: u64 = 64 << 10;

/// How often `wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The status of a running daemon.
pub(super) fn status(shared: &Shared) -> Result<Status, String> {
    let config = shared.config().clone();
    let mut mirrors = Vec::new();
    for mirror in &config.mirrors {
        let live = shared
            .workers
            .with(&mirror.name, |w| Arc::clone(&w.live))
            .ok();
        let now = live.as_ref().map(|live| live.now());
        // Of a journal that cannot be read the status says so, and all that it knows beside.
        let mut status = mirror_status(mirror, &shared.journal.at_hand(), now.as_ref())
            .unwrap_or_else(|why| MirrorStatus {
                state: now.as_ref().map_or(MirrorState::Stopped, |live| live.state),
                last_error: Some(why),
                ..named(mirror)
            });
        if let Some(live) = live {
            status.totals = shared.tally().count(&mirror.name, &live);
        }
        mirrors.push(status);
    }
    let told = shared.alarm.get().map(Alarm::report).unwrap_or_default();
    let special = shared.local.counters().special_files;
    if special > 0 {
        let words = format!("{special} devices, FIFOs or sockets made since the start");
        mirrors
            .iter_mut()
            .for_each(|m| m.unsupported.push(words.clone()));
    }
    let closed = shared.local.read_only_reason();
    Ok(Status {
        source: config.source.display().to_string(),
        mount_point: config.mount_point.display().to_string(),
        pid: Some(std::process::id()),
        stopping: shared.stopping.load(Ordering::Acquire),
        read_only: closed.is_some(),
        read_only_reason: closed.map(|why| why.0),
        last_seq: shared.journal.head(),
        log_bytes: shared.journal.disk_bytes(),
        scan: Some(scan_status(shared)),
        mirrors,
        mail: mail_status(&told),
        alarms: alarms_status(told),
    })
}

fn scan_status(shared: &Shared) -> ScanStatus {
    let seen = shared.scan.look();
    ScanStatus {
        running: seen.running,
        entries: seen.entries,
        expected: seen.expected,
        repairs: seen.repairs,
        seconds: seen.took.as_secs(),
    }
}

/// The same without a daemon.
pub(super) fn offline_status(config: &Config) -> Result<Status, String> {
    let reader = Reader::open(&config.state_dir).map_err(|e| e.to_string())?;
    let totals = super::tally::left(&reader).map_err(|e| e.to_string())?;
    let mirrors = config.mirrors.iter().map(|m| {
        let totals = totals.get(&m.name).copied().unwrap_or_default();
        mirror_status(m, &reader, None).map(|status| MirrorStatus { totals, ..status })
    });
    let saved = reader.meta(alarm::BOOK).map_err(|e| e.to_string())?;
    let told = alarm::report_of(saved.as_deref(), config);
    let file = config.state_dir.join(FILE_NAME);
    let length = |f| std::fs::metadata(f).map_or(0, |m| m.len());
    Ok(Status {
        source: config.source.display().to_string(),
        mount_point: config.mount_point.display().to_string(),
        pid: None,
        stopping: false,
        read_only: false,
        read_only_reason: None,
        last_seq: reader.head().map_err(|e| e.to_string())?,
        log_bytes: length(&file) + length(&file.with_extension("db-wal")),
        scan: None,
        mirrors: mirrors.collect::<Result<_, _>>()?,
        mail: mail_status(&told),
        alarms: alarms_status(told)
            .into_iter()
            .chain(not_started(config))
            .collect(),
    })
}

/// Why there is no daemon, if it was started in vain.
fn not_started(config: &Config) -> Option<AlarmStatus> {
    let (since, reason) = alarm::left(&config.state_dir)?;
    Some(AlarmStatus {
        kind: alarm::Kind::NotStarted.name().to_string(),
        mirror: None,
        seconds: age(since),
        reason,
    })
}

fn mail_status(told: &Report) -> Option<MailStatus> {
    told.mails.then(|| MailStatus {
        waiting: told.waiting,
        last_error: told.failing.as_ref().map(|f| f.0.clone()),
        failing_seconds: told.failing.as_ref().map(|f| age(f.1)),
        sent: told.sent,
        failed: told.failed,
    })
}

fn alarms_status(told: Report) -> Vec<AlarmStatus> {
    let all = told.troubles.into_iter();
    all.map(|(kind, mirror, since, reason)| AlarmStatus {
        kind: kind.name().to_string(),
        mirror: Some(mirror).filter(|m| !m.is_empty()),
        seconds: age(since),
        reason,
    })
    .collect()
}

fn mirror_status(
    mirror: &MirrorConfig,
    reader: &Reader,
    live: Option<&Now>,
) -> Result<MirrorStatus, String> {
    let known = reader.mirrors().map_err(|e| e.to_string())?;
    let position = known.into_iter().find(|p| p.name == mirror.name);
    let backlog = match &position {
        Some(_) => reader.backlog(&mirror.name).map_err(|e| e.to_string())?,
        None => Backlog::default(),
    };
    let paused = position.as_ref().is_some_and(|p| p.paused);
    let begun = live.is_some_and(|l| l.repair.as_ref().is_some_and(|r| r.running));
    let dropped = position.as_ref().is_some_and(|p| p.lacks > 0 && !p.away) && !begun;
    let offline = if paused {
        MirrorState::Paused
    } else {
        MirrorState::Stopped
    };
    let parked = match backlog.parked {
        0 => None,
        n => parked_in_words(&mirror.name, n, reader)?,
    };
    let state = match live.map_or(offline, |l| l.state) {
        // The worker has not looked since the last change was recorded.
        MirrorState::Synced if backlog.ops > 0 => MirrorState::Syncing,
        state => state,
    };
    let pace = live
        .filter(|_| state == MirrorState::Syncing)
        .map(|live| Pace::new(live, &backlog))
        .unwrap_or_default();
    Ok(MirrorStatus {
        state,
        held: live.is_some_and(|l| l.held),
        pending_ops: backlog.ops,
        pending_bytes: backlog.bytes,
        parked_ops: backlog.parked,
        oldest_pending_seconds: backlog.oldest_at.map(age),
        applied_seq: position.as_ref().map_or(0, |p| {
            let lacks = p.first_parked.unwrap_or(u64::MAX);
            p.cursor.min(lacks - 1)
        }),
        bytes_per_second: pace.bytes,
        ops_per_second: pace.ops,
        eta_seconds: pace.left,
        progress_percent: pace.percent,
        current: live
            .and_then(|l| l.current.as_ref())
            .map(|(path, size, sent)| {
                format!(
                    "content {path} ({} %)",
                    (sent * 100).checked_div(*size).unwrap_or(100)
                )
            }),
        last_error: match live {
            Some(live) => live.last_error.clone(),
            None => position.and_then(|p| p.last_error),
        }
        .or(parked)
        .map(|why| match dropped {
            true => format!("{why}; and {DROPPED}"),
            false => why,
        })
        .or(dropped.then(|| DROPPED.to_string())),
        retry_in_seconds: live
            .and_then(|l| l.retry_at)
            .map(|at| at.saturating_duration_since(Instant::now()).as_secs())
            .or(backlog.next_try.filter(|_| live.is_some()).map(until)),
        unsupported: live.map(|l| l.unsupported.clone()).unwrap_or_default(),
        sync: live.and_then(|l| l.repair.as_ref()).map(sync_status),
        verify: live.and_then(|l| l.verify.as_ref()).map(sync_status),
        ..named(mirror)
    })
}

/// Of whom a mirror's status is.
fn named(mirror: &MirrorConfig) -> MirrorStatus {
    MirrorStatus {
        name: mirror.name.clone(),
        host: mirror.host.clone(),
        port: mirror.port,
        user: mirror.user.clone(),
        path: mirror.path.clone(),
        ..MirrorStatus::default()
    }
}

/// How fast a mirror is getting what it lacks.
#[derive(Default)]
struct Pace {
    bytes: u64,
    ops: u64,
    left: Option<u64>,
    percent: Option<u8>,
}

impl Pace {
    fn new(live: &Now, backlog: &Backlog) -> Pace {
        // Many small changes take their time by number, few large ones by size.
        let by_size = backlog.bytes.checked_div(live.bytes_per_second);
        let by_number = (live.ops_per_second > 0.0)
            .then(|| (backlog.ops as f64 / live.ops_per_second).ceil() as u64);
        let left = match backlog.bytes.checked_div(backlog.ops) {
            None => Some(0),
            Some(0) => by_number,
            Some(SMALL..) => by_size,
            Some(_) => by_size.map(|s| s.max(by_number.unwrap_or(0))),
        };
        let weigh = |bytes: u64, ops: u64| u128::from(bytes) + u128::from(ops) * OP_WEIGHT;
        let done = weigh(live.done.0, live.done.1);
        let all = done + weigh(backlog.bytes, backlog.ops);
        Pace {
            bytes: live.bytes_per_second,
            ops: live.ops_per_second.round() as u64,
            left,
            percent: (done * 100).checked_div(all).map(|p| p as u8),
        }
    }
}

fn sync_status(repair: &Repairing) -> SyncStatus {
    let (counts, seconds) = (&repair.counts, repair.since.elapsed().as_secs());
    let left = seconds as f64 * (1.0 - repair.walked) / repair.walked;
    let known = repair.running && repair.walked > 0.0 && seconds > 0;
    SyncStatus {
        running: repair.running,
        entries: counts.entries,
        sent: counts.sent,
        bytes: counts.bytes,
        set: counts.set,
        removed: counts.removed,
        extras: counts.extras,
        at: repair.at.clone(),
        percent: match repair.running {
            true => (repair.walked * 100.0) as u64,
            false => 100,
        },
        seconds,
        eta_seconds: known.then_some(left as u64),
    }
}

/// That changes are parked, and why the first of them is.
fn parked_in_words(name: &str, count: u64, reader: &Reader) -> Result<Option<String>, String> {
    let Some(why) = first_parked(name, u64::MAX, reader)? else {
        return Ok(None);
    };
    let (what, are) = match count {
        1 => (String::new(), "is"),
        n => (format!("{n} changes were refused; the first: "), "are"),
    };
    Ok(Some(format!(
        "{what}{why}; it {are} parked, with what depends on it: put that right, then `proxyfs try-again {name}`"
    )))
}

fn until(at_ms: i64) -> u64 {
    u64::try_from((at_ms - now_ms()) / 1000).unwrap_or(0)
}

fn age(at_ms: i64) -> u64 {
    u64::try_from((now_ms() - at_ms) / 1000).unwrap_or(0)
}

/// The open tasks of a running daemon, as JSON.
pub(super) fn tasks(shared: &Shared, mirror: Option<&str>, limit: u64) -> Result<Value, String> {
    let reader = shared.journal.reader().map_err(|e| e.to_string())?;
    let config = shared.config().clone();
    list_tasks(&config, &reader, mirror, limit).map(|all| Task::list_to_json(&all))
}

/// The open tasks without a daemon.
pub(super) fn offline_tasks(
    config: &Config,
    mirror: Option<&str>,
    limit: u64,
) -> Result<Vec<Task>, String> {
    let reader = Reader::open(&config.state_dir).map_err(|e| e.to_string())?;
    list_tasks(config, &reader, mirror, limit)
}

fn list_tasks(
    config: &Config,
    reader: &Reader,
    mirror: Option<&str>,
    limit: u64,
) -> Result<Vec<Task>, String> {
    if let Some(name) = mirror
        && config.mirror(name).is_none()
    {
        let known: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
        return Err(unknown_mirror(name, &known));
    }
    let positions = reader.mirrors().map_err(|e| e.to_string())?;
    let mut tasks = Vec::new();
    for position in positions {
        let wanted = mirror.is_none_or(|name| name == position.name);
        if !wanted || config.mirror(&position.name).is_none() {
            continue;
        }
        let left = usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .saturating_sub(tasks.len());
        let aside = reader
            .parked(&position.name, left)
            .map_err(|e| e.to_string())?;
        let left = left - aside.len();
        let rows = reader
            .rows(position.cursor, left)
            .map_err(|e| e.to_string())?;
        let all = aside.into_iter().map(|p| (p.row, p.error));
        for (row, error) in all.chain(rows.into_iter().map(|row| (row, None))) {
            tasks.push(Task {
                seq: row.seq,
                mirror: position.name.clone(),
                verb: row.change.verb().to_string(),
                path: row.change.path().to_string(),
                second_path: row.change.second_path().map(|p| p.to_string()),
                bytes: row.change.bytes(),
                age_seconds: age(row.at),
                error,
            });
        }
    }
    Ok(tasks)
}

/// Why a change up to `target` is parked, if one is.
fn parked_before(shared: &Shared, name: &str, target: u64) -> Result<Option<String>, String> {
    first_parked(name, target, &shared.journal.at_hand())
}

fn first_parked(name: &str, target: u64, reader: &Reader) -> Result<Option<String>, String> {
    let parked = reader.parked(name, 1).map_err(|e| e.to_string())?;
    let mut before = parked.into_iter().filter(|p| p.row.seq <= target);
    if let Some(why) = before.find_map(|p| p.error) {
        return Ok(Some(why));
    }
    let repairs = reader.repairs(name).map_err(|e| e.to_string())?;
    Ok(repairs.into_iter().find_map(|mend| mend.error))
}

/// Returns when all that is in the log now is on the mirror, or on all.
pub(super) fn wait(
    shared: &Shared,
    mirror: Option<&str>,
    timeout: Option<Duration>,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), String> {
    let started = Instant::now();
    let in_time = || timeout.is_none_or(|limit| started.elapsed() < limit);
    // What was changed before this start is in the log when the scan has found it.
    while shared.scan.is_running() {
        if !in_time() {
            return Err(format!(
                "after {} s the scan of the source is still under way: see `proxyfs status`",
                started.elapsed().as_secs()
            ));
        }
        if cancelled() {
            return Err("given up".to_string());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    shared.local.flush_closed().map_err(|e| e.to_string())?;
    let target = shared.journal.head();
    let names: Vec<String> = match mirror {
        Some(name) => vec![shared.workers.with(name, |w| w.config.name.clone())?],
        None => shared
            .config()
            .mirrors
            .iter()
            .map(|m| m.name.clone())
            .collect(),
    };
    loop {
        let mut open = Vec::new();
        for name in &names {
            let now = match shared.workers.with(name, |w| w.live.now()) {
                Ok(now) => now,
                // A reload is changing it.
                Err(_) if shared.config().mirror(name).is_some() => {
                    open.push(name.as_str());
                    continue;
                }
                Err(why) => return Err(why),
            };
            // One that needs a sync lacks more than what is in the log.
            if now.settled >= Some(target) && now.state != MirrorState::NeedsSync {
                continue;
            }
            match now.state {
                MirrorState::Stopped | MirrorState::NeedsSync | MirrorState::Paused => {
                    let why = match now.last_error {
                        Some(why) => format!(": {why}"),
                        None if now.state == MirrorState::Paused => {
                            format!(": `proxyfs resume {name}` lets it go on")
                        }
                        None => String::new(),
                    };
                    return Err(format!("mirror {name} is {}{why}", now.state));
                }
                MirrorState::Synced | MirrorState::Syncing
                    if !now.trying_parked
                        && let Some(why) = parked_before(shared, name, target)? =>
                {
                    return Err(format!("mirror {name} has parked changes: {why}"));
                }
                MirrorState::Synced | MirrorState::Syncing | MirrorState::Retrying => {
                    open.push(name.as_str());
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        if timeout.is_some_and(|limit| started.elapsed() >= limit) {
            return Err(format!(
                "after {} s not everything is on {} yet: see `proxyfs status`",
                started.elapsed().as_secs(),
                open.join(", ")
            ));
        }
        if cancelled() {
            return Err("given up".to_string());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Compares a mirror with the source.
pub(super) fn verify(
    shared: &Shared,
    name: &str,
    checksum: bool,
    cancelled: &dyn Fn() -> bool,
) -> Result<Value, String> {
    shared.local.flush_closed().map_err(|e| e.to_string())?;
    let (config, live) = shared
        .workers
        .with(name, |w| (w.config.clone(), Arc::clone(&w.live)))?;
    let source = shared.workers.source();
    let journal = &shared.journal;
    let verified = mirror::verify(&config, &source, journal, &live, checksum, cancelled);
    let Some(verified) = verified.map_err(|e| e.to_string())? else {
        return Err("given up".to_string());
    };
    let differences = verified
        .differences
        .iter()
        .map(|(path, what)| json!({"path": path.to_string(), "what": what.words()}));
    Ok(json!({
        "compared": verified.entries,
        "bytes": verified.bytes,
        "differences": differences.collect::<Vec<_>>(),
        "further": verified.further,
    }))
}
