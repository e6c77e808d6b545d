//! A daemon that does not start says so: the source's disk is not mounted after a reboot, say, and nobody looks.
//!
//! It has no threads and maybe no journal then, so that is told at once, by who tried to start it, and kept for `status` in a
//! file in `state_dir`. The danger is the service manager, which tries again every few seconds: the file also
//! says what was told, and each reason is told once, until a start succeeds. A hook does not wait
//! for a mail that cannot be sent, nor is it run again with the next try of that.

use super::book::{Book, Kind, Rules, without_digits};
use super::{Settings, hook, letter, post};
use crate::config::Config;
use crate::journal::now_ms;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file in `state_dir`.
const FILE: &str = "not-started";

/// What is in the file.
struct Left {
    /// When it did not start first: milliseconds since 1970.
    since: i64,
    /// Why it did not last.
    why: String,
    /// Reasons that were mailed, without their digits.
    mailed: Vec<String>,
    /// Reasons that a hook was run for.
    hooked: Vec<String>,
}

impl Left {
    fn read(state_dir: &Path) -> Option<Left> {
        let text = std::fs::read_to_string(state_dir.join(FILE)).ok()?;
        let all: Value = serde_json::from_str(&text).ok()?;
        let list = |name: &str| {
            let list = all[name].as_array().cloned().unwrap_or_default();
            list.iter()
                .filter_map(|one| Some(one.as_str()?.to_string()))
                .collect()
        };
        Some(Left {
            since: all["since"].as_i64()?,
            why: all["why"].as_str()?.to_string(),
            mailed: list("reasons"),
            hooked: list("hooked"),
        })
    }

    fn write(&self, state_dir: &Path) {
        let text = json!({
            "since": self.since, "why": self.why, "reasons": self.mailed, "hooked": self.hooked,
        });
        // Where even that cannot be written it is told each time: better than never.
        let _ = std::fs::write(state_dir.join(FILE), text.to_string());
    }
}

/// Since when the daemon has not started (milliseconds since 1970), and why; none: it has, or nobody tried.
pub fn left(state_dir: &Path) -> Option<(i64, String)> {
    Left::read(state_dir).map(|left| (left.since, left.why))
}

/// Tells that the daemon does not start. What cannot be mailed now is mailed at the next try.
pub fn not_started(config: &Config, why: &str) {
    let settings = Settings::of(config);
    let now = now_ms();
    let reason = without_digits(why);
    let mut left = Left::read(&config.state_dir).unwrap_or(Left {
        since: now,
        why: String::new(),
        mailed: Vec::new(),
        hooked: Vec::new(),
    });
    left.why = why.to_string();
    let mut book = Book::default();
    let rules = Rules {
        hooks: true, // which is how the news is got at
        ..settings.rules()
    };
    book.happens(
        (Kind::NotStarted, String::new()),
        why.to_string(),
        now,
        &rules,
    );
    let Some(news) = book.due_hook() else {
        return;
    };
    if let Some(program) = &settings.hook
        && !left.hooked.contains(&reason)
    {
        left.hooked.push(reason.clone());
        left.write(&config.state_dir);
        if let Err(why) = hook::run(program, &news, &[], &settings.from) {
            log::error!("on_event for {}: {why}", news.kind);
        }
    }
    if rules.mails && !left.mailed.contains(&reason) {
        let letter = letter::tell(std::slice::from_ref(&news), 0, &[], &settings.from, now);
        match post::send(&settings.mail, &letter, &settings.from.host) {
            Ok(_) => {
                log::info!("mailed: {}", letter.subject);
                left.mailed.push(reason);
            }
            Err(why) => log::error!("no mail could be sent of that: {why}"),
        }
    }
    left.write(&config.state_dir);
}

/// It has started: whoever was told that it does not is told so. Gives the file that is to be removed when the book is
/// saved.
pub(super) fn started(book: &mut Book, state_dir: &Path, rules: &Rules) -> Option<PathBuf> {
    let left = Left::read(state_dir)?;
    if !(left.mailed.is_empty() && left.hooked.is_empty()) {
        let topic = (Kind::NotStarted, String::new());
        book.is_over(topic, left.since, left.why, now_ms(), rules);
    }
    Some(state_dir.join(FILE))
}
