//! What `status` and `tasks` tell: pure data, its JSON, and its face for people.
//!
//! Dangers: names come from whoever may write to the source, and messages from servers, so nothing is
//! shown before control characters (and those that turn the direction of text) are escaped; a
//! script reads the JSON, so fields are added but never renamed, and [`Status::from_json`] takes what
//! an older daemon leaves out as unknown.

pub mod check;
pub mod metrics;
pub mod show;
pub mod table;

use serde_json::{Map, Value, json};
use std::fmt;

/// The whole: the mount, the log and every mirror.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The directory that is mirrored.
    pub source: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// The daemon's process id; none: it is not running, and the rest comes from the journal.
    pub pid: Option<u32>,
    /// It was told to end, and does so within some seconds.
    pub stopping: bool,
    /// Whether the mount refuses changes because they cannot be recorded (J6).
    pub read_only: bool,
    /// Why it does; none: it does not, or the daemon is an older one.
    pub read_only_reason: Option<String>,
    /// Sequence number of the last change in the log; 0: there is none.
    pub last_seq: u64,
    /// Size of the log on disk in bytes.
    pub log_bytes: u64,
    /// The scan at the start; none: the daemon is not running, or an older one.
    pub scan: Option<ScanStatus>,
    /// The mirrors, in the order of the configuration.
    pub mirrors: Vec<MirrorStatus>,
    /// How mails get away; none: nobody is mailed.
    pub mail: Option<MailStatus>,
    /// What is wrong and has been told.
    pub alarms: Vec<AlarmStatus>,
}

/// How mails get away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailStatus {
    /// How many pieces of news wait to be mailed.
    pub waiting: u64,
    /// Why they cannot be.
    pub last_error: Option<String>,
    /// For how long they could not be.
    pub failing_seconds: Option<u64>,
    /// How many mails were sent so far.
    pub sent: u64,
    /// How many tries failed.
    pub failed: u64,
}

/// Something that is wrong and has been told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlarmStatus {
    /// What: the word that hooks get too.
    pub kind: String,
    /// With which mirror.
    pub mirror: Option<String>,
    /// Since when.
    pub seconds: u64,
    /// Why.
    pub reason: String,
}

/// The scan of the source at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanStatus {
    /// It is under way.
    pub running: bool,
    /// Files and directories that were looked at.
    pub entries: u64,
    /// How many the last scan found; none: not known.
    pub expected: Option<u64>,
    /// What is to be compared with the mirrors.
    pub repairs: u64,
    /// How long it has taken.
    pub seconds: u64,
}

/// One mirror.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MirrorStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Port of its SSH server.
    pub port: u16,
    /// The account.
    pub user: String,
    /// The directory there.
    pub path: String,
    /// How it is doing.
    pub state: MirrorState,
    /// It is paused before a mass deletion, until a person decides.
    pub held: bool,
    /// Changes it has not got yet.
    pub pending_ops: u64,
    /// Bytes of file data in them, at most.
    pub pending_bytes: u64,
    /// Changes that failed for good reason and wait for a person (R5).
    pub parked_ops: u64,
    /// How long ago the oldest change it has not got was made; none: it has all.
    pub oldest_pending_seconds: Option<u64>,
    /// It has every change up to this sequence number.
    pub applied_seq: u64,
    /// Bytes of file data it got a second, lately.
    pub bytes_per_second: u64,
    /// Changes it got a second, lately.
    pub ops_per_second: u64,
    /// When it will have everything, at this rate; none: not known.
    pub eta_seconds: Option<u64>,
    /// How much of what it lacked since it last had everything it has got by now, 0 to 100; none: it has
    /// everything, or nobody is at work on it.
    pub progress_percent: Option<u8>,
    /// What is being sent, as `tasks` shows it; none: nothing.
    pub current: Option<String>,
    /// Its last error that still matters, in one line.
    pub last_error: Option<String>,
    /// When it is tried again; none: it is not waiting.
    pub retry_in_seconds: Option<u64>,
    /// What it, or SFTP, cannot do that the source would need, each in a few words.
    pub unsupported: Vec<String>,
    /// How far it is with being made like the source, or how that ended; none: it was not since the daemon runs.
    pub sync: Option<SyncStatus>,
    /// How far a comparison is that is under way.
    pub verify: Option<SyncStatus>,
    /// What only grows, also over restarts.
    pub totals: Totals,
}

/// How far a mirror is with being made like the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncStatus {
    /// Whether it is at work, or waits to be.
    pub running: bool,
    /// Entries of the source that were compared.
    pub entries: u64,
    /// Files, links and directories that were sent.
    pub sent: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Entries of which only attributes were set.
    pub set: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that only the mirror has.
    pub extras: u64,
    /// The directory where it is.
    pub at: String,
    /// How much of the tree was compared, of 100, about.
    pub percent: u64,
    /// For how long it has been at work.
    pub seconds: u64,
    /// When it will be through, about; none: not known.
    pub eta_seconds: Option<u64>,
}

impl SyncStatus {
    fn to_json(&self) -> Value {
        json!({
            "running": self.running, "entries": self.entries, "sent": self.sent, "bytes": self.bytes,
            "set": self.set, "removed": self.removed, "extras": self.extras, "at": self.at,
            "percent": self.percent, "seconds": self.seconds, "eta_seconds": self.eta_seconds,
        })
    }

    fn maybe_from_json(value: Option<&Value>) -> Result<Option<SyncStatus>, StatusError> {
        let there = value.filter(|value| !value.is_null());
        there.map(SyncStatus::from_json).transpose()
    }

    fn from_json(value: &Value) -> Result<SyncStatus, StatusError> {
        let fields = Fields::of(value, "sync")?;
        Ok(SyncStatus {
            running: fields.get("running")?.as_bool().ok_or(bad("running"))?,
            entries: fields.number("entries")?,
            sent: fields.number("sent")?,
            bytes: fields.number("bytes")?,
            set: fields.number("set")?,
            removed: fields.number("removed")?,
            extras: fields.number("extras")?,
            at: fields.text("at")?,
            percent: fields.number("percent")?,
            seconds: fields.number("seconds")?,
            eta_seconds: fields.maybe_number("eta_seconds")?,
        })
    }
}

/// What was done for a mirror since it is known; of the last seconds before a kill some may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Bytes of file data sent.
    pub sent_bytes: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections that could not be made, or ended with an error.
    pub failures: u64,
}

/// How a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MirrorState {
    /// It has everything.
    Synced,
    /// It is getting changes.
    Syncing,
    /// It cannot be reached; it is tried again by itself.
    Retrying,
    /// An administrator paused it.
    Paused,
    /// It waits for a person: see its last error. (Also where the daemon is down.)
    #[default]
    Stopped,
    /// The log does not reach back to what it has: it needs a full sync.
    NeedsSync,
}

impl MirrorState {
    /// All of them.
    pub const ALL: [MirrorState; 6] = [
        MirrorState::Synced,
        MirrorState::Syncing,
        MirrorState::Retrying,
        MirrorState::Paused,
        MirrorState::Stopped,
        MirrorState::NeedsSync,
    ];

    /// The word for it in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            MirrorState::Synced => "synced",
            MirrorState::Syncing => "syncing",
            MirrorState::Retrying => "retrying",
            MirrorState::Paused => "paused",
            MirrorState::Stopped => "stopped",
            MirrorState::NeedsSync => "needs-sync",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<MirrorState> {
        MirrorState::ALL.into_iter().find(|s| s.name() == name)
    }
}

impl fmt::Display for MirrorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One change that a mirror has not got yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Task {
    /// Its sequence number.
    pub seq: u64,
    /// The mirror that lacks it.
    pub mirror: String,
    /// Its kind: see [`Change::verb`](crate::change::Change::verb).
    pub verb: String,
    /// Its path, as [`RelPath`](crate::change::RelPath) shows it.
    pub path: String,
    /// The second path of a move, link or exchange.
    pub second_path: Option<String>,
    /// Bytes of file data in it, at most.
    pub bytes: u64,
    /// How long ago it was made.
    pub age_seconds: u64,
    /// Why it is parked; none: it is not.
    pub error: Option<String>,
}

/// Why a JSON text is no status: which field is missing or of the wrong kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusError(String);

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the daemon's answer has no proper `{}`: is the daemon of another version? Restart it",
            self.0
        )
    }
}

impl std::error::Error for StatusError {}

impl Status {
    /// As `status --json` prints it.
    pub fn to_json(&self) -> Value {
        json!({
            "source": self.source,
            "mount_point": self.mount_point,
            "pid": self.pid,
            "stopping": self.stopping,
            "read_only": self.read_only,
            "read_only_reason": self.read_only_reason,
            "log": {"last_seq": self.last_seq, "bytes": self.log_bytes},
            "scan": self.scan.map(ScanStatus::to_json),
            "mirrors": self.mirrors.iter().map(|m| m.to_json(self.pid.is_some())).collect::<Vec<_>>(),
            "mail": self.mail.as_ref().map(|m| json!({
                "waiting": m.waiting,
                "last_error": m.last_error,
                "failing_seconds": m.failing_seconds,
                "sent_total": m.sent,
                "failed_total": m.failed,
            })),
            "alarms": self.alarms.iter().map(|a| json!({
                "kind": a.kind, "mirror": a.mirror, "seconds": a.seconds, "reason": a.reason,
            })).collect::<Vec<_>>(),
        })
    }

    /// Reads what [`Status::to_json`] made; unknown fields are passed over.
    ///
    /// # Errors
    /// A field is missing that every version has, or is of another kind.
    pub fn from_json(value: &Value) -> Result<Status, StatusError> {
        let fields = Fields::of(value, "status")?;
        let log = Fields::of(fields.get("log")?, "log")?;
        Ok(Status {
            source: fields.text("source")?,
            mount_point: fields.text("mount_point")?,
            pid: fields.maybe_number("pid")?,
            // An older daemon does not answer then.
            stopping: value.get("stopping") == Some(&Value::Bool(true)),
            read_only: fields.get("read_only")?.as_bool().ok_or(bad("read_only"))?,
            read_only_reason: fields.maybe_text("read_only_reason")?,
            last_seq: log.number("last_seq")?,
            log_bytes: log.number("bytes")?,
            scan: fields
                .0
                .get("scan")
                .filter(|scan| !scan.is_null())
                .map(ScanStatus::from_json)
                .transpose()?,
            mirrors: list(fields.get("mirrors")?, "mirrors", MirrorStatus::from_json)?,
            mail: match value.get("mail") {
                None | Some(Value::Null) => None,
                Some(mail) => Some(mail_from_json(mail)?),
            },
            alarms: match value.get("alarms") {
                None => Vec::new(),
                Some(alarms) => list(alarms, "alarms", alarm_from_json)?,
            },
        })
    }
}

impl ScanStatus {
    fn to_json(self) -> Value {
        json!({
            "running": self.running,
            "entries": self.entries,
            "expected": self.expected,
            "repairs": self.repairs,
            "seconds": self.seconds,
        })
    }

    fn from_json(value: &Value) -> Result<ScanStatus, StatusError> {
        let fields = Fields::of(value, "scan")?;
        Ok(ScanStatus {
            running: fields.get("running")?.as_bool().ok_or(bad("running"))?,
            entries: fields.number("entries")?,
            expected: fields.maybe_number("expected")?,
            repairs: fields.number("repairs")?,
            seconds: fields.number("seconds")?,
        })
    }
}

impl MirrorStatus {
    /// As one element of `mirrors` in `status --json`.
    pub fn to_json(&self, daemon_runs: bool) -> Value {
        json!({
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "path": self.path,
            "state": self.state.name(),
            "held": self.held,
            "pending_ops": self.pending_ops,
            "pending_bytes": self.pending_bytes,
            "parked_ops": self.parked_ops,
            "oldest_pending_seconds": self.oldest_pending_seconds,
            "applied_seq": self.applied_seq,
            "bytes_per_second": self.bytes_per_second,
            "ops_per_second": self.ops_per_second,
            "eta_seconds": self.eta_seconds,
            "progress_percent": self.progress_percent,
            "current": self.current,
            "last_error": self.last_error,
            "advice": table::advice(self, daemon_runs),
            "retry_in_seconds": self.retry_in_seconds,
            "unsupported": self.unsupported,
            "sync": self.sync.as_ref().map(SyncStatus::to_json),
            "verify": self.verify.as_ref().map(SyncStatus::to_json),
            "sent_bytes_total": self.totals.sent_bytes,
            "connections_total": self.totals.connections,
            "failures_total": self.totals.failures,
        })
    }

    /// Reads what [`MirrorStatus::to_json`] made.
    ///
    /// # Errors
    /// As [`Status::from_json`].
    pub fn from_json(value: &Value) -> Result<MirrorStatus, StatusError> {
        let fields = Fields::of(value, "mirrors")?;
        let state = fields.text("state")?;
        Ok(MirrorStatus {
            name: fields.text("name")?,
            host: fields.text("host")?,
            port: fields.number("port")?,
            user: fields.text("user")?,
            path: fields.text("path")?,
            state: MirrorState::from_name(&state).ok_or(bad("state"))?,
            held: value.get("held").is_some_and(|held| held == true),
            pending_ops: fields.number("pending_ops")?,
            pending_bytes: fields.number("pending_bytes")?,
            parked_ops: fields.number("parked_ops")?,
            oldest_pending_seconds: fields.maybe_number("oldest_pending_seconds")?,
            applied_seq: fields.number("applied_seq")?,
            bytes_per_second: fields.number("bytes_per_second")?,
            ops_per_second: fields.maybe_number("ops_per_second")?.unwrap_or(0),
            eta_seconds: fields.maybe_number("eta_seconds")?,
            progress_percent: fields.maybe_number("progress_percent")?,
            current: fields.maybe_text("current")?,
            last_error: fields.maybe_text("last_error")?,
            retry_in_seconds: fields.maybe_number("retry_in_seconds")?,
            unsupported: list(fields.get("unsupported")?, "unsupported", |v| {
                v.as_str().map(str::to_string).ok_or(bad("unsupported"))
            })?,
            sync: SyncStatus::maybe_from_json(value.get("sync"))?,
            verify: SyncStatus::maybe_from_json(value.get("verify"))?,
            totals: Totals {
                sent_bytes: fields.maybe_number("sent_bytes_total")?.unwrap_or(0),
                connections: fields.maybe_number("connections_total")?.unwrap_or(0),
                failures: fields.maybe_number("failures_total")?.unwrap_or(0),
            },
        })
    }
}

impl Task {
    /// As one element of the list that `tasks --json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "seq": self.seq,
            "mirror": self.mirror,
            "verb": self.verb,
            "path": self.path,
            "second_path": self.second_path,
            "bytes": self.bytes,
            "age_seconds": self.age_seconds,
            "error": self.error,
        })
    }

    /// Reads what [`Task::to_json`] made.
    ///
    /// # Errors
    /// As [`Status::from_json`].
    pub fn from_json(value: &Value) -> Result<Task, StatusError> {
        let fields = Fields::of(value, "tasks")?;
        Ok(Task {
            seq: fields.number("seq")?,
            mirror: fields.text("mirror")?,
            verb: fields.text("verb")?,
            path: fields.text("path")?,
            second_path: fields.maybe_text("second_path")?,
            bytes: fields.number("bytes")?,
            age_seconds: fields.number("age_seconds")?,
            error: fields.maybe_text("error")?,
        })
    }

    /// A list of tasks as `tasks --json` prints it.
    pub fn list_to_json(tasks: &[Task]) -> Value {
        tasks.iter().map(Task::to_json).collect()
    }

    /// Reads what [`Task::list_to_json`] made.
    ///
    /// # Errors
    /// As [`Status::from_json`].
    pub fn list_from_json(value: &Value) -> Result<Vec<Task>, StatusError> {
        list(value, "tasks", Task::from_json)
    }
}

fn mail_from_json(value: &Value) -> Result<MailStatus, StatusError> {
    let fields = Fields::of(value, "mail")?;
    Ok(MailStatus {
        waiting: fields.number("waiting")?,
        last_error: fields.maybe_text("last_error")?,
        failing_seconds: fields.maybe_number("failing_seconds")?,
        sent: fields.maybe_number("sent_total")?.unwrap_or(0),
        failed: fields.maybe_number("failed_total")?.unwrap_or(0),
    })
}

fn alarm_from_json(value: &Value) -> Result<AlarmStatus, StatusError> {
    let fields = Fields::of(value, "alarms")?;
    Ok(AlarmStatus {
        kind: fields.text("kind")?,
        mirror: fields.maybe_text("mirror")?,
        seconds: fields.number("seconds")?,
        reason: fields.text("reason")?,
    })
}

fn bad(field: &str) -> StatusError {
    StatusError(field.to_string())
}

fn list<T>(
    value: &Value,
    name: &str,
    read: impl Fn(&Value) -> Result<T, StatusError>,
) -> Result<Vec<T>, StatusError> {
    let all = value.as_array().ok_or(bad(name))?;
    all.iter().map(read).collect()
}

/// The fields of a JSON object.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value, name: &str) -> Result<Fields<'a>, StatusError> {
        value.as_object().map(Fields).ok_or(bad(name))
    }

    fn get(&self, name: &str) -> Result<&'a Value, StatusError> {
        self.0.get(name).ok_or(bad(name))
    }

    fn text(&self, name: &str) -> Result<String, StatusError> {
        self.maybe_text(name)?.ok_or(bad(name))
    }

    fn maybe_text(&self, name: &str) -> Result<Option<String>, StatusError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(bad(name)),
        }
    }

    fn number<T: TryFrom<u64>>(&self, name: &str) -> Result<T, StatusError> {
        self.maybe_number(name)?.ok_or(bad(name))
    }

    fn maybe_number<T: TryFrom<u64>>(&self, name: &str) -> Result<Option<T>, StatusError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|n| T::try_from(n).ok());
                number.map(Some).ok_or(bad(name))
            }
        }
    }
}

#[cfg(test)]
mod tests;
