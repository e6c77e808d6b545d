//! Tries out all that ProxyFS needs: of a mirror (before it is added, or later), and of this host.
//!
//! What is tried is what the daemon will do: the same login, the same directory, a file that is written, renamed
//! and removed there. The dangers: a check that harms what it looks at, and one that says "ok" for something else.
//! So all that is written is below `.proxyfs` on the mirror, which is ours, under names that the next
//! check takes over if this one is cut; and what is read back is compared.

mod host;

use crate::config::MirrorConfig;
use crate::mirror::plan::{Place, is_dir};
use crate::screen::{Colour, Look};
use crate::sftp::session::{self, Abort, ConnectError, SftpSession};
use crate::sftp::wire::Space;
use crate::sftp::{
    Attrs, Features, Handle, OpenMode, Remote, Reply, Request, SessionError, Status, Ticket,
};
use crate::status::show::{bytes, wrap};
pub use host::examine_host;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How much is sent to see how fast the line is, at most.
const PAYLOAD: u64 = 16 << 20;

/// For so long at most.
const PAYLOAD_TIME: Duration = Duration::from_secs(2);

/// Bytes that may be on their way meanwhile.
const ON_THE_WAY: usize = 2 << 20;

/// From here on a clock that differs is worth a word.
const CLOCK: i64 = 5;

/// Less free space than this (bytes) is worth a word.
const LITTLE: u64 = 1 << 30;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// It works, but somebody should know.
    Note,
    /// It does not work.
    Bad,
}

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was tried, in a word or two.
    pub what: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, and where it is bad what to do.
    pub text: String,
}

impl Check {
    /// As it is shown: `ok` and so on, what was tried, and what was found, in as many lines as it takes.
    pub fn show(&self, look: &Look) -> String {
        const INDENT: usize = 20;
        let (word, colour) = match self.outcome {
            Outcome::Good => ("ok  ", Colour::Green),
            Outcome::Note => ("note", Colour::Yellow),
            Outcome::Bad => ("FAIL", Colour::Red),
        };
        let mut head = format!("  {} {:<13}", look.paint(colour, word), self.what);
        let mut text = String::new();
        for line in wrap(&self.text, look.width.saturating_sub(INDENT).max(20)) {
            text += &format!("{head}{line}\n");
            head = " ".repeat(INDENT);
        }
        text
    }
}

/// Where checks go, and whether one was bad.
pub struct Report<'a> {
    tell: &'a mut dyn FnMut(&Check),
    /// Whether all was good so far.
    pub well: bool,
    /// Whether it was the login that was refused.
    pub login_failed: bool,
}

impl<'a> Report<'a> {
    /// A report whose lines go to `tell` as they come.
    pub fn new(tell: &'a mut dyn FnMut(&Check)) -> Report<'a> {
        Report {
            tell,
            well: true,
            login_failed: false,
        }
    }

    fn add(&mut self, what: &'static str, outcome: Outcome, text: impl Into<String>) {
        self.well &= outcome != Outcome::Bad;
        (self.tell)(&Check {
            what,
            outcome,
            text: text.into(),
        });
    }

    fn good(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(what, Outcome::Good, text);
    }

    fn note(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(what, Outcome::Note, text);
    }

    /// Something that does not work.
    pub fn bad(&mut self, what: &'static str, text: impl Into<String>) {
        self.add(what, Outcome::Bad, text);
    }
}

/// Reaches a mirror and logs in; none: that was bad, and is reported. An unknown host key is the caller's.
///
/// # Errors
/// The host is unknown.
pub fn connect(
    mirror: &MirrorConfig,
    report: &mut Report<'_>,
) -> Result<Option<SftpSession>, ConnectError> {
    let target = match crate::mirror::target(mirror) {
        Ok(target) => target,
        Err(why) => {
            report.bad("key", why.to_string());
            return Ok(None);
        }
    };
    match session::connect(&target, &Abort::new()) {
        Ok(session) => {
            let key = session.host_key();
            report.good(
                "host key",
                format!("{} ({})", key.fingerprint(), key.kind()),
            );
            report.good(
                "login",
                format!("as {}, at {}", mirror.user, session.server()),
            );
            Ok(Some(session))
        }
        Err(why @ ConnectError::UnknownHostKey { .. }) => Err(why),
        Err(why) => {
            let what = match &why {
                ConnectError::ChangedHostKey { .. }
                | ConnectError::RevokedHostKey { .. }
                | ConnectError::KnownHostsUnreadable { .. }
                | ConnectError::UnknownHostKey { .. } => "host key",
                ConnectError::Key { .. }
                | ConnectError::Agent { .. }
                | ConnectError::LoginRefused { .. } => "login",
                ConnectError::NoSftp { .. } | ConnectError::WrongVersion { .. } => "SFTP",
                ConnectError::NameNotResolved { .. }
                | ConnectError::Unreachable { .. }
                | ConnectError::Refused { .. }
                | ConnectError::TimedOut { .. }
                | ConnectError::Lost { .. }
                | ConnectError::Aborted { .. }
                | ConnectError::TurnedAway { .. }
                | ConnectError::NotSsh { .. }
                | ConnectError::NoAgreement { .. } => "connection",
            };
            report.login_failed = matches!(why, ConnectError::LoginRefused { .. });
            report.bad(what, why.to_string());
            Ok(None)
        }
    }
}

/// Tries out what the daemon will do on a mirror, once logged in.
pub fn examine(session: &mut SftpSession, mirror: &MirrorConfig, report: &mut Report<'_>) {
    let mut there = There {
        place: Place::new(mirror.path.as_bytes()),
        remote: session,
    };
    // Whatever breaks off in the middle is one line of the report, not an end without a word.
    if let Err(why) = there.all(mirror, report) {
        report.bad("connection", why.to_string());
    }
}

/// A mirror that is being tried out.
struct There<'a> {
    place: Place,
    remote: &'a mut SftpSession,
}

/// What a request got.
type Asked = Result<Result<Reply, Status>, SessionError>;

impl There<'_> {
    fn ask(&mut self, request: Request) -> Asked {
        let ticket = self.remote.send(request);
        let reply = self.answer(ticket)?;
        Ok(match reply {
            Reply::Status(status) => Err(status),
            done => Ok(done),
        })
    }

    fn answer(&mut self, ticket: Ticket) -> Result<Reply, SessionError> {
        loop {
            while let Some((of, reply)) = self.remote.reply() {
                if of == ticket {
                    return Ok(reply);
                }
            }
            self.remote.pump(Duration::from_secs(1), None)?;
        }
    }

    fn all(&mut self, mirror: &MirrorConfig, report: &mut Report<'_>) -> Result<(), SessionError> {
        let features = self.remote.features().clone();
        if !self.directory(mirror, report)? {
            return Ok(());
        }
        if let Some(handle) = self.write(report)? {
            self.throughput(handle, mirror, report)?;
            self.names(&features, report)?;
        }
        self.space(&features, report)?;
        extensions(&features, report);
        Ok(())
    }

    /// The mirror's directory; whether it is there.
    fn directory(
        &mut self,
        mirror: &MirrorConfig,
        report: &mut Report<'_>,
    ) -> Result<bool, SessionError> {
        let path = &mirror.path;
        let started = Instant::now();
        let found = self.ask(Request::Stat {
            path: self.place.base(),
        })?;
        let trip = started.elapsed();
        match found {
            Ok(Reply::Attrs(attrs)) if is_dir(&attrs) => {
                let real = match self.ask(Request::Realpath {
                    path: self.place.base(),
                })? {
                    Ok(Reply::Names(names)) => names
                        .first()
                        .map(|n| String::from_utf8_lossy(&n.name).into_owned()),
                    _ => None,
                };
                let also = real.filter(|r| r != path).map(|r| format!(" ({r})"));
                report.good(
                    "directory",
                    format!(
                        "{path}{} is there; an answer takes {:.1} ms",
                        also.unwrap_or_default(),
                        trip.as_secs_f64() * 1000.0
                    ),
                );
                Ok(true)
            }
            Ok(_) => {
                report.bad(
                    "directory",
                    format!("{path} is not a directory: correct the path"),
                );
                Ok(false)
            }
            Err(why) => {
                report.bad(
                    "directory",
                    format!(
                        "{path}: {why}: create it there, owned by {} (if its disk is not mounted, mount it \
                         first); behind a chroot the path begins there",
                        mirror.user
                    ),
                );
                Ok(false)
            }
        }
    }

    fn check(&self, what: &str) -> Vec<u8> {
        let mut path = self.place.private_dir();
        path.extend_from_slice(b"/check");
        path.extend_from_slice(what.as_bytes());
        path
    }

    /// A file of our own there; none: that can't be.
    fn write(&mut self, report: &mut Report<'_>) -> Result<Option<Handle>, SessionError> {
        let attrs = Attrs {
            mode: Some(0o700),
            ..Attrs::default()
        };
        // It may be there already: what counts is whether a file can be made in it.
        let made = self.ask(Request::Mkdir {
            path: self.place.private_dir(),
            attrs,
        })?;
        let opened = self.ask(Request::Open {
            path: self.check(""),
            mode: OpenMode::Create,
            attrs: Attrs {
                mode: Some(0o600),
                ..Attrs::default()
            },
        })?;
        let why = match (opened, made) {
            (Ok(Reply::Handle(handle)), _) => {
                self.clock(&handle, report)?;
                return Ok(Some(handle));
            }
            (Err(_), Err(why)) | (Err(why), Ok(_)) => why,
            (Ok(_), _) => return Err(odd()),
        };
        report.bad(
            "write",
            format!("nothing can be made there ({why}): chown the directory to the login user, and see that its disk is not full and not read-only"),
        );
        Ok(None)
    }

    /// What time the mirror has: a file that was just made says so.
    fn clock(&mut self, handle: &Handle, report: &mut Report<'_>) -> Result<(), SessionError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let handle = handle.clone();
        if let Ok(Reply::Attrs(attrs)) = self.ask(Request::Fstat { handle })?
            && let (Some((_, theirs)), Ok(ours)) = (attrs.times, now)
        {
            let apart = i64::from(theirs) - ours.as_secs() as i64;
            if apart.abs() < CLOCK {
                report.good("clock", "the same as here");
            } else {
                report.note(
                    "clock",
                    format!(
                        "{} s {} of this host's: run a time service on both; files get the source's times all \
                         the same",
                        apart.abs(),
                        if apart > 0 { "ahead" } else { "behind" }
                    ),
                );
            }
        }
        Ok(())
    }

    /// How fast bytes get there; closes the file.
    fn throughput(
        &mut self,
        handle: Handle,
        mirror: &MirrorConfig,
        report: &mut Report<'_>,
    ) -> Result<(), SessionError> {
        let started = Instant::now();
        let mut sent = 0;
        let mut seed = started.elapsed().as_nanos() as u64 | 1;
        let mut last = None;
        let mut refused = None;
        while sent < PAYLOAD && started.elapsed() < PAYLOAD_TIME && refused.is_none() {
            while self.remote.unacknowledged_bytes() < ON_THE_WAY && sent < PAYLOAD {
                // Bytes that no compression makes fewer.
                let data = (0..32 << 10).map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed as u8
                });
                let data: Vec<u8> = data.collect();
                let offset = sent;
                sent += data.len() as u64;
                let handle = handle.clone();
                last = Some(self.remote.send(Request::Write {
                    handle,
                    offset,
                    data,
                }));
            }
            self.remote.pump(Duration::from_millis(100), None)?;
            while let Some((_, reply)) = self.remote.reply() {
                if let Reply::Status(why) = reply {
                    refused.get_or_insert(why);
                }
            }
        }
        while last.is_some() && self.remote.outstanding() > 0 {
            self.remote.pump(Duration::from_secs(1), None)?;
            while let Some((_, reply)) = self.remote.reply() {
                if let Reply::Status(why) = reply {
                    refused.get_or_insert(why);
                }
            }
        }
        let took = started.elapsed().as_secs_f64().max(0.001);
        let size = match self.ask(Request::Fstat {
            handle: handle.clone(),
        })? {
            Ok(Reply::Attrs(attrs)) => attrs.size,
            _ => None,
        };
        self.ask(Request::Close { handle })?.ok();
        match refused {
            Some(why) => report.bad(
                "write",
                format!("a file can be made but not written ({why}): see that the disk there is not full"),
            ),
            None if size.is_some_and(|size| size != sent) => report.bad(
                "write",
                format!("{sent} bytes were written and {} are there", size.unwrap_or(0)),
            ),
            None => {
                report.good("write", format!("a file of {} was written", bytes(sent)));
                let rate = bytes((sent as f64 / took) as u64);
                let limit = match mirror.bandwidth_limit == Default::default() {
                    true => "",
                    false => " (without bandwidth_limit, which holds for what is mirrored)",
                };
                report.good("throughput", format!("{rate}/s on one channel{limit}"));
            }
        }
        Ok(())
    }

    /// Rename over a file, a hard link, mode and time; takes all away again.
    fn names(&mut self, features: &Features, report: &mut Report<'_>) -> Result<(), SessionError> {
        let (file, renamed, link) = (self.check(""), self.check("-renamed"), self.check("-link"));
        // A file in the way, as there is when a new version replaces an old one.
        if let Ok(Reply::Handle(handle)) = self.ask(Request::Open {
            path: renamed.clone(),
            mode: OpenMode::Create,
            attrs: Attrs::default(),
        })? {
            self.ask(Request::Close { handle })?.ok();
        }
        let (from, to) = (file.clone(), renamed.clone());
        let done = if features.posix_rename {
            self.ask(Request::PosixRename { from, to })?
        } else {
            self.ask(Request::Remove { path: to.clone() })?.ok();
            self.ask(Request::Rename { from, to })?
        };
        match done {
            Ok(_) => report.good("rename", "a file replaces another"),
            Err(why) => report.bad(
                "rename",
                format!("a file could not be renamed over another: {why}"),
            ),
        }
        let attrs = Attrs {
            mode: Some(0o640),
            times: Some((1_000_000_000, 1_000_000_000)),
            ..Attrs::default()
        };
        let path = renamed.clone();
        let set = self.ask(Request::Setstat { path, attrs })?;
        let path = renamed.clone();
        let now = self.ask(Request::Lstat { path })?;
        match (set, now) {
            (Ok(_), Ok(Reply::Attrs(now)))
                if now.mode.is_some_and(|m| m & 0o777 == 0o640) && now.times == attrs.times =>
            {
                report.good("attributes", "mode and time can be set");
            }
            (Err(why), _) => {
                report.bad("attributes", format!("mode and time cannot be set: {why}"))
            }
            (Ok(_), _) => report.bad(
                "attributes",
                "mode or time is not what was set: what kind of file system is it?",
            ),
        }
        if features.hardlink {
            let (from, to) = (renamed.clone(), link.clone());
            match self.ask(Request::Hardlink { from, to })? {
                Ok(_) => report.good("hard links", "can be made"),
                Err(why) => report.note("hard links", format!("cannot be made: {why}")),
            }
        }
        for path in [file, renamed, link] {
            self.ask(Request::Remove { path })?.ok();
        }
        Ok(())
    }

    fn space(&mut self, features: &Features, report: &mut Report<'_>) -> Result<(), SessionError> {
        if !features.statvfs {
            return Ok(());
        }
        let asked = self.ask(Request::Statvfs {
            path: self.place.base(),
        })?;
        if let Ok(Reply::Data(data)) = asked
            && let Some(space) = Space::read(&data)
        {
            let text = format!("{} of {}", bytes(space.free), bytes(space.all));
            let full = space.files_free == Some(0);
            match space.free {
                _ if space.read_only => {
                    report.bad("free space", "the file system is mounted read-only")
                }
                0 => report.bad("free space", format!("{text}: make room")),
                _ if full => report.bad(
                    "free space",
                    format!("{text}, but no file can be made: no inode is free"),
                ),
                1..LITTLE => report.note("free space", text),
                _ => report.good("free space", text),
            }
        }
        Ok(())
    }
}

/// What a server sent that fits no question.
fn odd() -> SessionError {
    SessionError::Protocol("an answer of the wrong kind".to_string())
}

fn extensions(features: &Features, report: &mut Report<'_>) {
    let lacks: Vec<&str> = [
        (
            features.posix_rename,
            "posix-rename@openssh.com (files are replaced in two steps)",
        ),
        (
            features.hardlink,
            "hardlink@openssh.com (each name becomes a file of its own)",
        ),
        (
            features.lsetstat,
            "lsetstat@openssh.com (symlinks keep the time at which they were made)",
        ),
        (features.fsync, "fsync@openssh.com"),
        (features.copy_data, "copy-data"),
        (
            features.statvfs,
            "statvfs@openssh.com (free space is not known)",
        ),
    ]
    .into_iter()
    .filter(|(there, _)| !there)
    .map(|(_, name)| name)
    .collect();
    match lacks.is_empty() {
        true => report.good("extensions", "all that are of use"),
        false => report.note("extensions", format!("it lacks {}", lacks.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_shown_in_lines_that_fit_and_a_bad_one_spoils_the_report() {
        let mut lines = Vec::new();
        let mut tell = |check: &Check| lines.push(check.show(&Look::default()));
        let mut report = Report::new(&mut tell);
        report.good("login", "as root");
        report.note("clock", "late");
        assert!(report.well);
        report.bad("directory", "word ".repeat(30));
        assert!(!report.well);
        assert_eq!(lines[0], "  ok   login        as root\n");
        assert!(
            lines[2].starts_with("  FAIL directory    word word"),
            "{}",
            lines[2]
        );
        assert!(lines[2].lines().all(|l| l.len() <= 80), "{}", lines[2]);
    }
}
