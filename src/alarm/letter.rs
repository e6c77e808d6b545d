//! The text of a mail: what is wrong, where, since when, why, and what to do; then how all mirrors are.
//!
//! Names come from whoever may write to the source, and reasons from servers: what could play tricks on a
//! terminal or a mail reader is shown escaped ([`visible`]).

use super::book::{Kind, MirrorLine, News, What};
use crate::status::show::{duration, visible, wrap};
use std::fmt::Write;

/// Columns of a line of text.
const WIDTH: usize = 76;
/// Where the text behind `since:` and so on begins.
const INDENT: usize = 11;

/// A mail, but for its sender and who gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// One line.
    pub subject: String,
    /// The text, with `\n` at the end of lines.
    pub body: String,
    /// What makes it unique: two mails of the same are the same mail sent twice.
    pub id: String,
}

/// Where a mail comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// This host's name.
    pub host: String,
    /// The directory that is mirrored.
    pub source: String,
}

/// The mail that tells `news` (at least one piece), when older news of that number was dropped.
pub fn tell(
    news: &[News],
    left_out: u64,
    mirrors: &[MirrorLine],
    from: &Origin,
    now: i64,
) -> Letter {
    let mut subject = format!("[proxyfs {}] ", visible(&from.host));
    if let Some(first) = news.first() {
        subject += &title(first);
    }
    match news.len() {
        0 | 1 => {}
        2 => subject += ", and one more",
        n => subject += &format!(", and {} more", n - 1),
    }
    let mut body = head(from);
    if left_out > 0 {
        let _ = writeln!(body, "({left_out} older pieces of news are left out.)\n");
    }
    for one in news {
        piece(&mut body, one, mirrors, now);
    }
    foot(&mut body, mirrors, from, now);
    let last = news.last().map_or(0, |n| n.id);
    Letter {
        subject,
        body,
        id: format!("{last}.{}", news.last().map_or(0, |n| n.at)),
    }
}

/// The mail that shows that mails arrive.
pub fn test(
    troubles: &[(Kind, String, i64, String)],
    mirrors: &[MirrorLine],
    from: &Origin,
    now: i64,
) -> Letter {
    let mut body = head(from);
    body += "This is a test: mails from ProxyFS arrive here.\n\n";
    if !troubles.is_empty() {
        body += "What is wrong at the moment:\n\n";
        for (kind, mirror, since, reason) in troubles {
            let mut title = trouble(*kind, mirror, 0);
            title[..1].make_ascii_uppercase();
            let _ = writeln!(body, "{title}");
            row(&mut body, "since:", &utc(*since));
            row(&mut body, "reason:", &visible(reason));
            body.push('\n');
        }
    }
    foot(&mut body, mirrors, from, now);
    Letter {
        subject: format!("[proxyfs {}] test", visible(&from.host)),
        body,
        id: format!("test.{now}"),
    }
}

fn head(from: &Origin) -> String {
    format!(
        "ProxyFS on {}, which mirrors {}\n\n",
        visible(&from.host),
        visible(&from.source)
    )
}

fn piece(body: &mut String, news: &News, mirrors: &[MirrorLine], now: i64) {
    let mut title = title(news);
    title[..1].make_ascii_uppercase();
    let _ = writeln!(body, "{title}");
    if let Some(mirror) = mirrors.iter().find(|m| m.name == news.mirror) {
        row(
            body,
            "mirror:",
            &format!("{}, {}", mirror.name, visible(&mirror.place)),
        );
    }
    let ago = |at: i64| duration(u64::try_from((now - at) / 1000).unwrap_or(0));
    match news.what {
        What::Happened => {
            let times = match news.count {
                1 => String::new(),
                n => format!(", {n} times since this was told last"),
            };
            row(body, "at:", &format!("{}{times}", utc(news.at)));
        }
        What::Recovered => {
            let lasted = u64::try_from((news.at - news.since) / 1000).unwrap_or(0);
            row(
                body,
                "over:",
                &format!("{}, after {}", utc(news.at), duration(lasted)),
            );
        }
        What::Raised | What::More => {
            row(
                body,
                "since:",
                &format!("{} ({} ago)", utc(news.since), ago(news.since)),
            );
        }
    }
    if news.items.is_empty() {
        let label = if news.what == What::Recovered {
            "it was:"
        } else {
            "reason:"
        };
        row(body, label, &visible(&news.reason));
    }
    for (path, why) in &news.items {
        row(body, "path:", &visible(path));
        row(body, "reason:", &visible(why));
    }
    let more = news.count.saturating_sub(news.items.len() as u64);
    if more > 0 && !news.items.is_empty() {
        row(
            body,
            "",
            &format!("... and {more} more: see `proxyfs tasks {}`", news.mirror),
        );
    }
    if news.what != What::Recovered {
        row(body, "to do:", &advice(news));
    }
    body.push('\n');
}

fn row(body: &mut String, label: &str, text: &str) {
    let mut label = format!("  {label}");
    for line in wrap(text, WIDTH - INDENT) {
        let _ = writeln!(body, "{}", format!("{label:<INDENT$}{line}").trim_end());
        label.clear();
    }
}

fn foot(body: &mut String, mirrors: &[MirrorLine], from: &Origin, now: i64) {
    if !mirrors.is_empty() {
        let _ = writeln!(body, "All mirrors, at {}:", utc(now));
        let longest = mirrors.iter().map(|m| m.name.len()).max().unwrap_or(0);
        for mirror in mirrors {
            let _ = writeln!(
                body,
                "  {:<longest$}  {}",
                mirror.name,
                visible(&mirror.state)
            );
        }
        body.push('\n');
    }
    let _ = writeln!(
        body,
        "How it is now: `proxyfs status` on {}.",
        visible(&from.host)
    );
}

/// What a piece of news is, in one line.
pub fn title(news: &News) -> String {
    let mirror = &news.mirror;
    let of = |what: &str| format!("mirror {mirror} {what}");
    match (news.what, news.kind) {
        (What::Recovered, Kind::ReadOnly) => "the mount is writable again".to_string(),
        (What::Recovered, Kind::Journal) => "the journal is fine again".to_string(),
        (What::Recovered, Kind::NotStarted) => "the daemon has started".to_string(),
        (What::Recovered, Kind::Unmounted) => "the mount is there again".to_string(),
        (What::Recovered, Kind::Stopped | Kind::Unreachable) => of("is up again"),
        (What::Recovered, Kind::NeedsSync) => of("needs no sync any more"),
        (What::Recovered, Kind::MassDeletion) => of("goes on"),
        (What::Recovered, Kind::Parked) => of("has taken what it refused"),
        (What::Recovered, Kind::Lag) => of("has caught up"),
        (What::Recovered, Kind::WorkerDied) => of("is at work again"),
        (What::More, Kind::Parked) if news.count > 1 => {
            of(&format!("refuses {} further changes", news.count))
        }
        (What::More, Kind::Parked) => of("refuses a further change"),
        (What::Raised | What::More | What::Happened, kind) => trouble(kind, mirror, news.count),
    }
}

fn trouble(kind: Kind, mirror: &str, count: u64) -> String {
    match kind {
        Kind::ReadOnly => "the mount is read-only".to_string(),
        Kind::Journal => "the journal has a problem".to_string(),
        Kind::NotStarted => "the daemon does not start".to_string(),
        Kind::Unmounted => "the mount was taken away, and the daemon has ended".to_string(),
        Kind::Stopped => format!("mirror {mirror} is stopped"),
        Kind::NeedsSync => format!("mirror {mirror} needs a sync"),
        Kind::MassDeletion => format!("mirror {mirror} is paused before a mass deletion"),
        Kind::Parked if count > 1 => format!("mirror {mirror} refuses {count} changes"),
        Kind::Parked if count == 1 => format!("mirror {mirror} refuses a change"),
        Kind::Parked => format!("mirror {mirror} refuses changes"),
        Kind::Unreachable => format!("mirror {mirror} cannot be reached"),
        Kind::Lag => format!("mirror {mirror} is behind"),
        Kind::WorkerDied => format!("the worker of mirror {mirror} died"),
    }
}

/// What a person should do.
pub fn advice(news: &News) -> String {
    let mirror = &news.mirror;
    match news.kind {
        Kind::ReadOnly => "make it possible to write to the journal in state_dir again, as the reason says: applications get \
             EROFS (read-only file system) until then. Nothing is lost, and it goes on by itself as soon as it can"
            .to_string(),
        Kind::Journal => "see that the disk of state_dir is neither full nor failing: the log grows until then"
            .to_string(),
        Kind::NotStarted => "put right what the reason says, and start it. Until then nothing is mounted, and nothing \
             is sent to the mirrors; what they lack is kept"
            .to_string(),
        Kind::Unmounted => "find out who unmounted it, and start the daemon again: what is changed in the \
             source meanwhile is not live on the mirrors"
            .to_string(),
        Kind::Stopped => format!(
            "put right what the reason says; then `proxyfs try-again {mirror}` (or wait: it is tried again, \
             seldom). Its changes are kept until then; all other mirrors go on"
        ),
        Kind::NeedsSync => format!(
            "what the reason says. Until then mirror {mirror} gets nothing; all others go on"
        ),
        Kind::MassDeletion => format!(
            "if it was meant: `proxyfs resume {mirror}` lets it through. If not: mirror {mirror} still has \
             what was deleted; copy it back to the mount first, then resume"
        ),
        Kind::Parked => format!(
            "put right what the reason says; then `proxyfs try-again {mirror}` (or wait: it is tried again, \
             seldom). What does not depend on these changes goes on"
        ),
        Kind::Unreachable => "if the host is meant to be down: nothing. It is tried again for ever, its changes \
             are kept, and all other mirrors go on"
            .to_string(),
        Kind::Lag => format!(
            "see `proxyfs status`: a slow line, a long first copy or a bandwidth_limit may be why. `proxyfs tasks \
             {mirror}` lists what it waits for"
        ),
        Kind::WorkerDied => "it was started again by itself, and nothing is lost; please report this bug with the \
             daemon's log"
            .to_string(),
    }
}

/// A time (milliseconds since 1970) as `2026-11-24 03:12:05 UTC`.
pub fn utc(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02} UTC")
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn date(days: i64) -> (i64, u32, u32) {
    // Counted from the 1st of March of the year 0: a leap day is the last of its year, and 400 years always
    // have 146097 days.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_years = of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096;
    let year = of_years / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // 0: March
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + later, month as u32, day as u32)
}
