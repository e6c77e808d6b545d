//! `proxyfs check`: how it is, as a monitoring plugin tells it (Nagios, Icinga, Naemon, Zabbix, checkmk).
//!
//! One line: the word, what is wrong with the worst first, and behind a `|` the performance data
//! (<https://www.monitoring-plugins.org/doc/guidelines.html>). The exit code is that of [`Level`]. Whatever keeps the
//! answer from being known is no "OK".

use super::show::{bytes, changes, count, duration, visible};
use super::{MirrorState, MirrorStatus, Status};
use std::fmt::Write;

/// How bad it is: the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok = 0,
    /// Somebody should look at it some time.
    Warning = 1,
    /// Somebody should look at it now.
    Critical = 2,
    /// It could not be found out.
    Unknown = 3,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "OK",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
            Level::Unknown => "UNKNOWN",
        }
    }
}

/// From where on something is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// Seconds that the oldest change a mirror lacks may be old.
    pub lag: (u64, u64),
    /// Changes that a mirror may lack.
    pub pending: (Option<u64>, Option<u64>),
}

/// The line (without its end) and the exit code when there is no status to judge.
pub fn line(level: Level, why: &str) -> String {
    // A bar would begin the performance data.
    let why = visible(why).replace('|', "/");
    format!("PROXYFS {} - {why}", level.word())
}

/// The line (without its end) and the exit code; `of` one mirror only. `mistake`: what is wrong with the configuration
/// that the daemon does not know of.
pub fn check(
    status: &Status,
    of: Option<&str>,
    bad: &Thresholds,
    mistake: Option<&str>,
) -> (String, Level) {
    let mirrors = status.mirrors.iter();
    let mirrors: Vec<&MirrorStatus> = mirrors
        .filter(|m| of.is_none_or(|name| name == m.name))
        .collect();
    if let Some(name) = of.filter(|_| mirrors.is_empty()) {
        let why = format!("there is no mirror {name:?} in the configuration");
        return (line(Level::Unknown, &why), Level::Unknown);
    }
    let mut wrong: Vec<(Level, String)> = Vec::new();
    match status.pid {
        None => wrong.push((
            Level::Critical,
            match status.alarms.iter().find(|a| a.kind == "not-started") {
                Some(alarm) => format!("the daemon does not start: {}", alarm.reason),
                None => "the daemon is not running: start it".to_string(),
            },
        )),
        Some(_) if status.read_only => wrong.push((
            Level::Critical,
            "the mount is read-only, since the log cannot be written".to_string(),
        )),
        Some(_) if status.stopping => {
            wrong.push((Level::Warning, "the daemon is stopping".to_string()));
        }
        Some(_) => {}
    }
    for mirror in &mirrors {
        judge(mirror, status.pid.is_some(), bad, &mut wrong);
    }
    if let Some(why) = status.mail.as_ref().and_then(|m| m.last_error.as_ref()) {
        wrong.push((Level::Warning, format!("no mail can be sent: {why}")));
    }
    if let Some(mistake) = mistake {
        let words = format!("the daemon would not start again with its configuration: {mistake}");
        wrong.push((Level::Warning, words));
    }
    let level = wrong.iter().map(|w| w.0).max().unwrap_or(Level::Ok);
    wrong.sort_by_key(|w| std::cmp::Reverse(w.0));
    let words: Vec<String> = wrong.into_iter().map(|w| w.1).collect();
    let words = match (words.is_empty(), mirrors.as_slice()) {
        (false, _) => words.join("; "),
        (true, []) => "mounted, no mirror is configured".to_string(),
        (true, [one]) => format!("mirror {} is {}", one.name, one.state),
        (true, all) => format!("{} mirrors are up to date, or nearly", all.len()),
    };
    let mut text = line(level, &words);
    let mut head = " |";
    let limit = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    for m in mirrors {
        let (name, lag) = (&m.name, m.oldest_pending_seconds.unwrap_or(0));
        let (warn, crit) = (limit(bad.pending.0), limit(bad.pending.1));
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{head} '{name}_lag'={lag}s;{};{};0 '{name}_pending'={};{warn};{crit};0 \
             '{name}_pending_bytes'={}B;;;0 '{name}_parked'={};0;;0",
            bad.lag.0, bad.lag.1, m.pending_ops, m.pending_bytes, m.parked_ops
        );
        head = "";
    }
    (text, level)
}

fn judge(m: &MirrorStatus, up: bool, bad: &Thresholds, wrong: &mut Vec<(Level, String)>) {
    let name = &m.name;
    let why = || match &m.last_error {
        Some(why) => format!(": {why}"),
        None => String::new(),
    };
    match m.state {
        // Of a daemon that is down every mirror is stopped.
        MirrorState::Stopped if !up => {}
        MirrorState::Stopped | MirrorState::NeedsSync => {
            let what = if m.state == MirrorState::Stopped {
                "is stopped"
            } else {
                "needs a sync"
            };
            wrong.push((Level::Critical, format!("mirror {name} {what}{}", why())));
        }
        MirrorState::Retrying => {
            wrong.push((
                Level::Warning,
                format!("mirror {name} cannot be reached{}", why()),
            ));
        }
        MirrorState::Paused if m.held => {
            let what = format!("mirror {name} is held before a mass deletion{}", why());
            wrong.push((Level::Critical, what));
        }
        MirrorState::Paused => wrong.push((Level::Warning, format!("mirror {name} is paused"))),
        MirrorState::Synced | MirrorState::Syncing => {}
    }
    if m.parked_ops > 0 {
        let why = if matches!(m.state, MirrorState::Synced | MirrorState::Syncing) {
            why()
        } else {
            String::new()
        };
        wrong.push((
            Level::Warning,
            format!("mirror {name} refuses {}{why}", changes(m.parked_ops)),
        ));
    }
    let level = |value: u64, warning: Option<u64>, critical: Option<u64>| {
        let over = |limit: Option<u64>| limit.is_some_and(|limit| value > limit);
        match (over(critical), over(warning)) {
            (true, _) => Some(Level::Critical),
            (false, true) => Some(Level::Warning),
            (false, false) => None,
        }
    };
    let lag = m.oldest_pending_seconds.unwrap_or(0);
    if let Some(level) = level(lag, Some(bad.lag.0), Some(bad.lag.1)) {
        wrong.push((
            level,
            format!("mirror {name} is behind by {}", duration(lag)),
        ));
    }
    if let Some(level) = level(m.pending_ops, bad.pending.0, bad.pending.1) {
        let (ops, size) = (count(m.pending_ops), bytes(m.pending_bytes));
        wrong.push((level, format!("mirror {name} lacks {ops} changes, {size}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MailStatus;

    const LIMITS: Thresholds = Thresholds {
        lag: (300, 3600),
        pending: (Some(10), None),
    };

    fn mirror(name: &str, state: MirrorState) -> MirrorStatus {
        MirrorStatus {
            name: name.to_string(),
            state,
            ..MirrorStatus::default()
        }
    }

    fn of(mirrors: Vec<MirrorStatus>) -> Status {
        Status {
            pid: Some(1),
            mirrors,
            ..Status::default()
        }
    }

    #[test]
    fn all_is_well_in_one_line_with_performance_data() {
        let mut lagging = mirror("web3", MirrorState::Syncing);
        (
            lagging.oldest_pending_seconds,
            lagging.pending_ops,
            lagging.pending_bytes,
        ) = (Some(300), 10, 4096);
        let status = of(vec![mirror("web2", MirrorState::Synced), lagging]);
        let (text, level) = check(&status, None, &LIMITS, None);
        assert_eq!(
            text,
            "PROXYFS OK - 2 mirrors are up to date, or nearly | 'web2_lag'=0s;300;3600;0 \
             'web2_pending'=0;10;;0 'web2_pending_bytes'=0B;;;0 'web2_parked'=0;0;;0 \
             'web3_lag'=300s;300;3600;0 'web3_pending'=10;10;;0 'web3_pending_bytes'=4096B;;;0 \
             'web3_parked'=0;0;;0"
        );
        assert_eq!(level as u8, 0);
        let (text, _) = check(&status, Some("web2"), &LIMITS, None);
        assert!(
            text.starts_with("PROXYFS OK - mirror web2 is synced | 'web2_lag'"),
            "{text}"
        );
        assert!(!text.contains("web3"), "{text}");
        let (text, level) = check(&status, Some("web9"), &LIMITS, None);
        assert_eq!((text.contains('|'), level as u8), (false, 3), "{text}");
    }

    #[test]
    fn the_worst_comes_first_and_nothing_begins_the_data_early() {
        let mut gone = mirror("a", MirrorState::Retrying);
        gone.last_error = Some("a | b\nc".to_string());
        let mut late = mirror("b", MirrorState::Syncing);
        late.oldest_pending_seconds = Some(3601);
        let mut parked = mirror("c", MirrorState::Synced);
        (parked.parked_ops, parked.pending_ops) = (1200, 1200);
        let mut status = of(vec![gone, late, parked, mirror("d", MirrorState::Paused)]);
        let (text, level) = check(&status, None, &LIMITS, None);
        let (words, data) = text.split_once(" | ").unwrap();
        assert_eq!(
            words,
            "PROXYFS CRITICAL - mirror b is behind by 1h00m; mirror a cannot be reached: a / b\\nc; mirror c \
             refuses 1,200 changes; mirror c lacks 1,200 changes, 0 B; mirror d is paused"
        );
        assert!(!data.contains('|') && level == Level::Critical);
        status.mirrors.clear();
        status.mail = Some(MailStatus {
            last_error: Some("no route".to_string()),
            ..MailStatus::default()
        });
        let (text, level) = check(&status, None, &LIMITS, None);
        assert_eq!(text, "PROXYFS WARNING - no mail can be sent: no route");
        assert_eq!(level, Level::Warning);
    }

    #[test]
    fn what_is_down_is_critical() {
        for state in [MirrorState::Stopped, MirrorState::NeedsSync] {
            let (_, level) = check(&of(vec![mirror("a", state)]), None, &LIMITS, None);
            assert_eq!(level, Level::Critical);
        }
        let mut status = of(vec![mirror("a", MirrorState::Stopped)]);
        status.pid = None;
        let (text, level) = check(&status, None, &LIMITS, None);
        assert!(
            text.starts_with("PROXYFS CRITICAL - the daemon is not running: start it | "),
            "{text}"
        );
        assert_eq!(level, Level::Critical);
        let read_only = Status {
            read_only: true,
            ..of(vec![])
        };
        assert_eq!(check(&read_only, None, &LIMITS, None).1, Level::Critical);
    }
}
