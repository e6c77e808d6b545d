//! A daemon that does not start says so: the source's disk is not mounted after a reboot, say, and nobody looks.
//!
//! It has no threads and maybe no journal then, so the mail is sent at once, by who tried to start it. The danger is
//! the service manager, which tries again every few seconds: what was told is kept in a file in `state_dir`, which is
//! there once the mail was taken, and each reason is told once, until a start succeeds.

use super::book::{Book, Kind, Rules, without_digits};
use super::{Settings, hook, letter, post};
use crate::config::Config;
use crate::journal::now_ms;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file in `state_dir`.
const FILE: &str = "not-started";

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Tells that the daemon does not start. What cannot be told now is told at the next try.
pub fn not_started(config: &Config, why: &str) {
    let settings = Settings::of(config);
    let rules = settings.rules();
    let file = file(&config.state_dir);
    let told = std::fs::read_to_string(&file).unwrap_or_default();
    let mut told: Value = serde_json::from_str(&told).unwrap_or_default();
    let reason = without_digits(why);
    let before = told["reasons"].as_array().cloned().unwrap_or_default();
    if before.contains(&json!(reason)) {
        return;
    }
    if !rules.mails && !rules.hooks {
        return;
    }
    let mut book = Book::default();
    let (topic, both) = (
        (Kind::NotStarted, String::new()),
        Rules {
            hooks: true,
            ..rules
        },
    );
    book.happens(topic, why.to_string(), now_ms(), &both);
    let Some(news) = book.due_hook() else {
        return;
    };
    if rules.mails {
        let letter = letter::tell(
            std::slice::from_ref(&news),
            0,
            &[],
            &settings.from,
            now_ms(),
        );
        if let Err(why) = post::send(&settings.mail, &letter, &settings.from.host) {
            log::error!("no mail could be sent of that: {why}");
            return;
        }
        log::info!("mailed: {}", letter.subject);
    }
    if let Some(program) = &settings.hook
        && let Err(why) = hook::run(program, &news, &[], &settings.from)
    {
        log::error!("on_event for {}: {why}", news.kind);
    }
    let since = told["since"].as_i64().unwrap_or(news.at);
    let reasons = before.into_iter().chain([json!(reason)]);
    told = json!({"since": since, "why": why, "reasons": reasons.collect::<Vec<_>>()});
    // Where even that cannot be written it is told each time: better than never.
    let _ = std::fs::write(&file, told.to_string());
}

/// It has started: whoever was told that it does not is told so. Gives the file that is to be removed when the book is
/// saved.
pub(super) fn started(book: &mut Book, state_dir: &Path, rules: &Rules) -> Option<PathBuf> {
    let file = file(state_dir);
    let told: Value =
        serde_json::from_str(&std::fs::read_to_string(&file).ok()?).unwrap_or_default();
    let since = told["since"].as_i64().unwrap_or_else(now_ms);
    let why = told["why"].as_str().unwrap_or_default().to_string();
    book.is_over(
        (Kind::NotStarted, String::new()),
        since,
        why,
        now_ms(),
        rules,
    );
    Some(file)
}
