//! `on_event`: a program of the administrator's, run for each piece of news with the event in its environment.

use super::MirrorLine;
use super::book::News;
use super::child;
use super::letter::{self, Origin};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// So long it may run; then it is killed.
pub const WITHIN: Duration = Duration::from_secs(30);

/// Runs `program` for `news`.
///
/// # Errors
/// It could not be run, failed, or took too long.
pub fn run(
    program: &Path,
    news: &News,
    mirrors: &[MirrorLine],
    from: &Origin,
) -> Result<(), String> {
    let mut command = Command::new(program);
    for (name, value) in variables(news, mirrors, from) {
        // A value with a NUL cannot be passed on.
        command.env(name, value.replace('\0', "\u{fffd}"));
    }
    command.env_remove("NOTIFY_SOCKET").current_dir("/");
    child::run(command, b"", WITHIN)
}

/// All that a hook is told. The names are never changed, only added to.
pub fn variables(
    news: &News,
    mirrors: &[MirrorLine],
    from: &Origin,
) -> Vec<(&'static str, String)> {
    let mirror = mirrors.iter().find(|m| m.name == news.mirror);
    let (path, reason) = match news.items.first() {
        Some((path, reason)) => (path.clone(), reason.clone()),
        None => (String::new(), news.reason.clone()),
    };
    vec![
        ("PROXYFS_EVENT", news.kind.name().to_string()),
        ("PROXYFS_CHANGE", news.what.name().to_string()),
        ("PROXYFS_TITLE", letter::title(news)),
        ("PROXYFS_MIRROR", news.mirror.clone()),
        (
            "PROXYFS_MIRROR_HOST",
            mirror.map(|m| m.host.clone()).unwrap_or_default(),
        ),
        ("PROXYFS_PATH", path),
        ("PROXYFS_REASON", reason),
        ("PROXYFS_COUNT", news.count.to_string()),
        ("PROXYFS_SINCE", (news.since / 1000).to_string()),
        ("PROXYFS_TIME", (news.at / 1000).to_string()),
        ("PROXYFS_ID", news.id.to_string()),
        ("PROXYFS_HOST", from.host.clone()),
        ("PROXYFS_SOURCE", from.source.clone()),
    ]
}
