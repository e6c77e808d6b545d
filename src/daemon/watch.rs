//! What there is to see for the alarm: how each mirror, the log and the mount are at this moment.

use super::Shared;
use crate::alarm::{Item, Kind, MOST_ITEMS, MirrorLine, Refusals, Seen, Sight, Told, Topic};
use crate::config::MirrorConfig;
use crate::journal::{Backlog, JournalError, Reader, now_ms};
use crate::mirror::live::Now;
use crate::status::MirrorState;
use crate::status::show::{bytes, changes, count, duration};
use std::time::Duration;

/// Why a mirror that is not reached needs more than the log.
pub(super) const DROPPED: &str = "it was out of reach, or paused, for so long that its changes were dropped from the \
     log, which would have outgrown log_limit or filled its disk: when it is reached again it is compared with the \
     whole source, by itself";

/// All of it; `told` says which refusals are known. What cannot be seen is left out.
pub(super) fn sight(shared: &Shared, told: &Told) -> Sight {
    let mut sight = Sight::default();
    let config = shared.config().clone();
    let mut whole = |kind, wrong: Option<String>| {
        let seen = wrong.map_or(Seen::Over, Seen::Standing);
        sight.seen.push(((kind, String::new()), seen));
    };
    let closed = shared.local.read_only_reason();
    whole(Kind::ReadOnly, closed.map(|why| why.to_string()));
    whole(Kind::Journal, shared.untidy());
    for mirror in &config.mirrors {
        let Ok(now) = shared.workers.with(&mirror.name, |w| w.live.now()) else {
            sight.mirrors.push(line(mirror, "not at work".to_string()));
            continue;
        };
        let upto = told.get(&mirror.name).copied().unwrap_or(0);
        // Where the journal does not tell, the log is closed, or soon will be.
        let owed = look_into(&shared.journal.at_hand(), &mirror.name, upto).ok();
        let backlog = owed.as_ref().map(|owed| owed.backlog);
        let topics = topics(&now, owed, config.mail.alert_after);
        let named =
            |(kind, seen): (Kind, Seen)| -> (Topic, Seen) { ((kind, mirror.name.clone()), seen) };
        sight.seen.extend(topics.into_iter().map(named));
        sight.mirrors.push(line(mirror, in_words(&now, backlog)));
    }
    sight
}

/// What the journal tells of a mirror.
#[derive(Default)]
struct Owed {
    /// What it has still to get.
    backlog: Backlog,
    /// What it refused.
    refusals: Refusals,
    /// The log does not have any more what it has to get. (Of one that was not configured meanwhile its worker says so.)
    dropped: bool,
}

/// What is known of a mirror's topics.
fn topics(now: &Now, owed: Option<Owed>, alert_after: Duration) -> Vec<(Kind, Seen)> {
    let mut found = Vec::new();
    let why = || now.last_error.clone().unwrap_or_default();
    // One that is just connecting, or paused, is neither well nor ill.
    match now.state {
        MirrorState::Stopped => found.push((Kind::Stopped, Seen::Standing(why()))),
        MirrorState::NeedsSync => found.push((Kind::NeedsSync, Seen::Standing(why()))),
        MirrorState::Retrying => found.push((Kind::Unreachable, Seen::Standing(why()))),
        MirrorState::Paused if now.held => found.push((Kind::MassDeletion, Seen::Standing(why()))),
        MirrorState::Synced | MirrorState::Syncing | MirrorState::Paused => {}
    }
    if now.up {
        let well = [Kind::Stopped, Kind::Unreachable, Kind::MassDeletion];
        found.extend(well.map(|kind| (kind, Seen::Over)));
    }
    let Some(owed) = owed else {
        return found;
    };
    if owed.dropped && now.state != MirrorState::NeedsSync {
        found.push((Kind::NeedsSync, Seen::Standing(DROPPED.to_string())));
    } else if now.up {
        found.push((Kind::NeedsSync, Seen::Over));
    }
    found.push(match owed.refusals.count {
        0 => (Kind::Parked, Seen::Over),
        _ => (Kind::Parked, Seen::Refused(owed.refusals)),
    });
    if now.up {
        let backlog = owed.backlog;
        let age = backlog.oldest_in_log.map_or(0, |at| now_ms() - at);
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
        if age >= alert_after {
            let are = if backlog.ops == 1 { "is" } else { "are" };
            let words = format!(
                "{}, {}, {are} still to be sent; the oldest is {} old",
                changes(backlog.ops),
                bytes(backlog.bytes),
                duration(age.as_secs())
            );
            found.push((Kind::Lag, Seen::Standing(words)));
        } else if age < alert_after / 2 {
            found.push((Kind::Lag, Seen::Over));
        }
    }
    found
}

/// What the journal tells of a mirror: of what it refused `items` begins behind `upto`.
fn look_into(reader: &Reader, name: &str, upto: u64) -> Result<Owed, JournalError> {
    let mut all = reader.mirrors()?.into_iter();
    let dropped = all.any(|m| m.name == name && m.lacks > 0 && !m.away);
    let backlog = reader.backlog(name)?;
    let mut refusals = Refusals {
        count: backlog.parked,
        ..Refusals::default()
    };
    if backlog.parked > 0 {
        let (changes, newest) = reader.refused(name, upto, MOST_ITEMS)?;
        refusals.upto = newest;
        refusals.items = changes
            .into_iter()
            .map(|(change, why)| (change.path().to_string(), why))
            .collect();
        let mends = reader.repairs(name)?.into_iter();
        let refused = mends.filter_map(|mend| Some((mend.path.to_string(), mend.error?)));
        let room = MOST_ITEMS - refusals.items.len();
        let refused: Vec<Item> = refused.take(room).collect();
        refusals.items.extend(refused);
    }
    Ok(Owed {
        backlog,
        refusals,
        dropped,
    })
}

fn line(mirror: &MirrorConfig, state: String) -> MirrorLine {
    let port = match mirror.port {
        22 => String::new(),
        other => format!(", port {other}"),
    };
    MirrorLine {
        name: mirror.name.clone(),
        place: format!("{}@{}:{}{port}", mirror.user, mirror.host, mirror.path),
        host: mirror.host.clone(),
        state,
    }
}

fn in_words(now: &Now, backlog: Option<Backlog>) -> String {
    let state = match now.state {
        MirrorState::Synced | MirrorState::Syncing if !now.up => "connecting",
        state => state.name(),
    };
    match backlog {
        Some(backlog) if backlog.ops > 0 => {
            let refused = match backlog.parked {
                0 => String::new(),
                n => format!(", {} of them refused", count(n)),
            };
            let (ops, size) = (changes(backlog.ops), bytes(backlog.bytes));
            format!("{state}, {ops} ({size}) to be sent{refused}")
        }
        Some(_) | None => state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_whose_changes_were_dropped_needs_a_sync_until_that_has_begun() {
        let live = crate::mirror::live::Live::new(Some(7), None);
        let needs = |dropped| {
            let owed = Owed {
                dropped,
                ..Owed::default()
            };
            let found = topics(&live.now(), Some(owed), Duration::from_secs(100));
            let mut found = found.into_iter().filter(|f| f.0 == Kind::NeedsSync);
            found.next().map(|f| f.1)
        };
        assert_eq!(needs(false), None, "not reached yet");
        assert_eq!(needs(true), Some(Seen::Standing(DROPPED.into())));
        live.resting(MirrorState::Stopped, Some("no key".into()), None);
        assert_eq!(needs(true), Some(Seen::Standing(DROPPED.into())));
        live.connected(Vec::new());
        assert_eq!(needs(true), Some(Seen::Standing(DROPPED.into())));
        assert_eq!(needs(false), Some(Seen::Over));
        live.resting(
            MirrorState::NeedsSync,
            Some("its disk is empty".into()),
            None,
        );
        assert_eq!(
            needs(true),
            Some(Seen::Standing("its disk is empty".into()))
        );
    }

    #[test]
    fn a_mirror_that_is_just_connecting_is_neither_well_nor_ill() {
        let live = crate::mirror::live::Live::new(Some(7), None);
        let of = |now: &Now| topics(now, None, Duration::from_secs(1));
        assert_eq!(of(&live.now()), []);
        live.resting(MirrorState::Stopped, Some("no key".into()), None);
        let stopped = (Kind::Stopped, Seen::Standing("no key".into()));
        assert_eq!(of(&live.now()), [stopped]);
        live.trying();
        assert_eq!(of(&live.now()), [], "told to try again, and not there yet");
        live.connected(Vec::new());
        let well = of(&live.now());
        assert!(well.contains(&(Kind::Stopped, Seen::Over)), "{well:?}");
        live.resting(MirrorState::Paused, None, None);
        assert_eq!(of(&live.now()), []);
    }

    #[test]
    fn only_what_is_not_set_aside_makes_a_mirror_late_and_only_while_it_is_reached() {
        let live = crate::mirror::live::Live::new(Some(7), None);
        let backlog = |oldest: i64| Backlog {
            ops: 1,
            oldest_at: Some(0),
            oldest_in_log: Some(now_ms() - oldest),
            ..Backlog::default()
        };
        let lag = |oldest| {
            let owed = Owed {
                backlog: backlog(oldest),
                ..Owed::default()
            };
            let found = topics(&live.now(), Some(owed), Duration::from_secs(100));
            found.into_iter().find(|(kind, _)| *kind == Kind::Lag)
        };
        assert_eq!(lag(200_000), None);
        live.connected(Vec::new());
        assert_eq!(lag(10_000), Some((Kind::Lag, Seen::Over)));
        assert_eq!(lag(70_000), None);
        let words = "1 change, 0 B, is still to be sent; the oldest is 3m20s old";
        assert_eq!(
            lag(200_000),
            Some((Kind::Lag, Seen::Standing(words.into())))
        );
    }
}
