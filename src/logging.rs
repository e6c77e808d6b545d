//! Messages: to standard error or to a file, one line each, with the time in UTC.
//!
//! Dangers: a full log disk must not stop the daemon, nor leave half lines (a line is written in one
//! piece; what cannot be written is dropped and counted, and the count is written when there is room
//! again); at `debug` the one line that matters is lost in those that libraries write about every request
//! (theirs come from `info` up, and at `trace` all); logrotate moves the file away (SIGHUP makes [`LogHandle::reopen`] open the name anew; when
//! that fails the old file stays in use, so no message is lost meanwhile).

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, WriteLogger};
use std::cell::Cell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A line longer than this, in bytes, is written in pieces.
const LONGEST_LINE: usize = 64 * 1024;

/// Why logging could not be set up or changed.
#[derive(Debug)]
pub enum LoggingError {
    /// The log file cannot be opened.
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Logging was started before in this process.
    Started,
}

impl fmt::Display for LoggingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoggingError::Open { path, cause } => write!(
                f,
                "cannot open the log file {}: {cause}: make its directory, or set another log_file",
                path.display()
            ),
            LoggingError::Started => f.write_str("logging was already started in this process"),
        }
    }
}

impl std::error::Error for LoggingError {}

/// What can be changed while messages flow. Clones are the same log.
#[derive(Clone)]
pub struct LogHandle(Arc<Mutex<Sink>>);

/// Starts logging for the whole process: to `file` (appended to; made with mode 0640) or, without
/// one, to standard error.
///
/// # Errors
/// The file cannot be opened, or logging was started before.
pub fn start(file: Option<&Path>, level: LevelFilter) -> Result<LogHandle, LoggingError> {
    let handle = LogHandle::new(file)?;
    log::set_boxed_logger(logger(handle.clone())).map_err(|_| LoggingError::Started)?;
    handle.set_level(level);
    report_panics();
    Ok(handle)
}

thread_local! {
    /// This thread is about to write a line: it holds what that takes.
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Has a panic, which is a bug, told by a line of the log: who looks for why a worker died looks there.
fn report_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // In the middle of a line it would wait for itself.
        if WRITING.get() {
            return usual(panic);
        }
        let words = panic.to_string();
        let words: Vec<&str> = words.split_whitespace().collect();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        log::error!("a bug: thread {name} {}", words.join(" "));
    }));
}

/// The form of a line: `2026-01-31T12:00:00.123456789Z [WARN ] text`; on debug level and below with
/// thread and module too.
fn logger(handle: LogHandle) -> Box<dyn log::Log> {
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_level_padding(LevelPadding::Right)
        .set_thread_level(LevelFilter::Debug)
        .set_thread_mode(simplelog::ThreadLogMode::Names)
        .set_target_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .build();
    let writer = LineWriter {
        handle,
        line: Vec::new(),
    };
    // The level is the process's (`log::set_max_level`), which can be changed.
    Box::new(OwnFirst(WriteLogger::new(
        LevelFilter::Trace,
        config,
        writer,
    )))
}

/// Keeps what libraries say below `info` for the level `trace`.
struct OwnFirst(Box<WriteLogger<LineWriter>>);

impl log::Log for OwnFirst {
    fn enabled(&self, about: &log::Metadata<'_>) -> bool {
        let ours = about.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        let everything = log::max_level() == LevelFilter::Trace;
        (ours || everything || about.level() <= log::Level::Info) && self.0.enabled(about)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            WRITING.set(true);
            self.0.log(record);
            WRITING.set(false);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

impl LogHandle {
    fn new(file: Option<&Path>) -> Result<LogHandle, LoggingError> {
        let file = file.map(open).transpose()?;
        Ok(LogHandle(Arc::new(Mutex::new(Sink { file, lost: 0 }))))
    }

    /// Opens `file` (none: standard error) and goes on there: for SIGHUP, also when the name is the
    /// same, since the file behind it may have been moved.
    ///
    /// # Errors
    /// It cannot be opened; messages then go where they went before.
    pub fn reopen(&self, file: Option<&Path>) -> Result<(), LoggingError> {
        let file = file.map(open).transpose()?;
        self.sink().file = file;
        Ok(())
    }

    /// Which messages are written from now on.
    pub fn set_level(&self, level: LevelFilter) {
        log::set_max_level(level);
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> Result<File, LoggingError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|cause| LoggingError::Open {
            path: path.to_path_buf(),
            cause,
        })
}

struct Sink {
    /// None: standard error.
    file: Option<File>,
    /// Lines dropped since one could last be written.
    lost: u64,
}

impl Sink {
    fn put(&mut self, line: &[u8]) {
        if self.lost > 0 {
            let note = format!("({} lines could not be written to the log)\n", self.lost);
            if self.write(note.as_bytes()).is_ok() {
                self.lost = 0;
            }
        }
        if self.write(line).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => io::stderr().write_all(bytes),
        }
    }
}

/// Gathers the pieces of a message and hands over whole lines. Never fails.
struct LineWriter {
    handle: LogHandle,
    line: Vec<u8>,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") || self.line.len() > LONGEST_LINE {
            self.handle.sink().put(&self.line);
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn say(logger: &dyn log::Log, level: log::Level, text: &str) {
        logger.log(
            &log::Record::builder()
                .level(level)
                .target("proxyfs::test")
                .args(format_args!("{text}"))
                .build(),
        );
    }

    #[test]
    fn a_line_has_the_time_in_utc_the_level_and_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = logger(LogHandle::new(Some(&path)).unwrap());
        say(&*logger, log::Level::Warn, "web2 is away");
        let text = std::fs::read_to_string(&path).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{text}");
        assert_eq!(rest, "[WARN ] web2 is away\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & !0o640, 0, "{mode:o}");
    }

    #[test]
    fn what_libraries_say_of_every_request_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = logger(LogHandle::new(Some(&path)).unwrap());
        for (level, target) in [
            (log::Level::Debug, "fuser::request"),
            (log::Level::Error, "fuser::session"),
            (log::Level::Debug, "proxyfs::mirror"),
        ] {
            let text = format_args!("{level} of {target}").to_string();
            logger.log(
                &log::Record::builder()
                    .level(level)
                    .target(target)
                    .args(format_args!("{text}"))
                    .build(),
            );
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("ERROR of fuser::session"), "{text}");
        assert!(text.contains("DEBUG of proxyfs::mirror"), "{text}");
    }

    #[test]
    fn after_rotation_the_new_file_gets_the_messages_and_the_old_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("log.1"));
        let handle = LogHandle::new(Some(&path)).unwrap();
        let logger = logger(handle.clone());
        say(&*logger, log::Level::Info, "one");
        std::fs::rename(&path, &moved).unwrap();
        say(&*logger, log::Level::Info, "two");
        handle.reopen(Some(&path)).unwrap();
        say(&*logger, log::Level::Info, "three");
        let old = std::fs::read_to_string(&moved).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(old.contains("one") && old.contains("two") && !old.contains("three"));
        assert!(new.contains("three") && !new.contains("two"));
    }

    #[test]
    fn a_reopen_that_fails_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let handle = LogHandle::new(Some(&path)).unwrap();
        let logger = logger(handle.clone());
        let error = handle
            .reopen(Some(&dir.path().join("no/such")))
            .unwrap_err();
        assert!(
            error.to_string().contains("no/such: No such file"),
            "{error}"
        );
        say(&*logger, log::Level::Info, "still here");
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .contains("still here")
        );
    }

    #[test]
    fn a_full_log_disk_loses_lines_and_says_how_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let handle = LogHandle::new(Some(Path::new("/dev/full"))).unwrap();
        let logger = logger(handle.clone());
        say(&*logger, log::Level::Info, "lost");
        say(&*logger, log::Level::Info, "lost too");
        handle.reopen(Some(&path)).unwrap();
        say(&*logger, log::Level::Info, "room again");
        say(&*logger, log::Level::Info, "and on");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "(2 lines could not be written to the log)");
        assert!(lines[1].ends_with("room again"));
    }
}
