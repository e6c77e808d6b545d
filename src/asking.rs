//! Asking the daemon, and what tells how it is: the status, from it or from its journal, and `check`.
//!
//! A daemon runs on with what it was started with when its file gets a mistake: who wants to know how it is (or to end it)
//! at that moment is told, and warned of the mistake, rather than only of that. The danger is to ask
//! another tree's daemon: a file that cannot be read at all says nothing about where its daemon is.

use super::{Failure, print};
use proxyfs::config::{Config, ConfigError, Overrides};
use proxyfs::control::{ControlError, ControlRequest, call, socket_path};
use proxyfs::daemon;
use proxyfs::status::Status;
use proxyfs::status::check::{self, Level, Thresholds};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait for an answer that should come at once.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The longest wait of `check`: who runs plugins gives them ten seconds.
const CHECKED_WITHIN: Duration = Duration::from_secs(8);

/// The daemon of a configuration, which may have got mistakes since it was started.
pub(super) struct Daemon {
    /// What the file says now.
    pub config: Result<Config, ConfigError>,
    run_dir: PathBuf,
}

impl Daemon {
    /// The one of this file.
    ///
    /// # Errors
    /// The file does not tell where its daemon is.
    pub fn of(file: &Path) -> Result<Daemon, ConfigError> {
        let config = Config::load(file, Overrides::default());
        let run_dir = match &config {
            Ok(config) => config.run_dir.clone(),
            Err(why) => Config::run_dir_of(file).ok_or_else(|| why.clone())?,
        };
        Ok(Daemon { config, run_dir })
    }

    /// Asks it; and warns of what is wrong with the configuration that it does not know of.
    ///
    /// # Errors
    /// It does not run, and the configuration has mistakes: these.
    pub fn ask(
        &self,
        request: &ControlRequest,
        limit: Option<Duration>,
    ) -> Result<Result<Value, ControlError>, ConfigError> {
        let asked = call(&socket_path(&self.run_dir), request, limit);
        match (&self.config, &asked) {
            (Err(why), Err(ControlError::NotRunning { .. })) => Err(why.clone()),
            _ => Ok(asked),
        }
    }

    /// Says what is wrong with the configuration, if anything is: the daemon does not know of it.
    pub fn warn(&self) {
        if let Err(why) = &self.config {
            for line in why.to_string().lines() {
                eprintln!("proxyfs: warning: {line}");
            }
            eprintln!(
                "proxyfs: warning: the daemon runs on with what it read before, and would not start again with this"
            );
        }
    }
}

/// What the daemon tells, or the journal when it is down.
pub(super) fn status(of: &Daemon) -> Result<Status, Failure> {
    let asked = of.ask(&ControlRequest::Status, Some(ANSWER_WITHIN))?;
    match (asked, &of.config) {
        (Ok(answer), _) => Status::from_json(&answer).map_err(Failure::new),
        (Err(ControlError::NotRunning { .. }), Ok(config)) => {
            daemon::status_from_journal(config).map_err(Failure::new)
        }
        (Err(why), _) => Err(Failure::new(why)),
    }
}

/// As [`status`], where the configuration is fine.
pub(super) fn status_of(config: &Config) -> Result<Status, Failure> {
    status(&Daemon {
        run_dir: config.run_dir.clone(),
        config: Ok(config.clone()),
    })
}

/// Says how it is as a monitoring plugin does; fails with its exit code.
pub(super) fn checked(file: &Path, of: Option<&str>, bad: &Thresholds) -> Result<(), Failure> {
    let (line, level) = match look(file) {
        Ok((status, mistake)) => check::check(&status, of, bad, mistake.as_deref()),
        Err((level, why)) => (check::line(level, &why), level),
    };
    print(&format!("{line}\n"))?;
    match level {
        Level::Ok => Ok(()),
        // The line has told why.
        level => Err(Failure(level as u8, String::new())),
    }
}

/// What there is to be judged, and what is wrong with the configuration; else how bad it is that nothing is known.
fn look(file: &Path) -> Result<(Status, Option<String>), (Level, String)> {
    let first = |why: &ConfigError| {
        why.to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_string()
    };
    let unknown = |why: ConfigError| (Level::Unknown, first(&why));
    let daemon = Daemon::of(file).map_err(unknown)?;
    let asked = daemon.ask(&ControlRequest::Status, Some(CHECKED_WITHIN));
    let status = match (asked.map_err(unknown)?, &daemon.config) {
        (Ok(answer), _) => {
            Status::from_json(&answer).map_err(|why| (Level::Unknown, why.to_string()))
        }
        (Err(why @ ControlError::NotRunning { .. }), Ok(config)) => {
            daemon::status_from_journal(config).map_err(|_| (Level::Critical, why.to_string()))
        }
        (Err(why @ ControlError::TimedOut { .. }), _) => Err((Level::Critical, why.to_string())),
        (Err(why), _) => Err((Level::Unknown, why.to_string())),
    };
    Ok((status?, daemon.config.as_ref().err().map(first)))
}

/// Asks the daemon.
///
/// # Errors
/// It does not run, does not answer, or says no.
pub(super) fn ask(
    config: &Config,
    request: &ControlRequest,
    timeout: Option<Duration>,
) -> Result<Value, ControlError> {
    call(&socket_path(&config.run_dir), request, timeout)
}

/// Tells the daemon to do something that has no answer.
pub(super) fn tell(config: &Config, request: &ControlRequest) -> Result<(), Failure> {
    ask(config, request, Some(ANSWER_WITHIN))
        .map(drop)
        .map_err(Failure::new)
}
