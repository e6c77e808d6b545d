//! `proxyfs rebuild`: a new journal in place of one that is damaged or lost. See `journal/rebuild.rs` for the order.
//!
//! The danger (P8): it is done while the source's disk is not mounted, and the new journal belongs to what lies below. So
//! the source must be there, with the id that it got from the journal before; and if that one can still be
//! read, it must be the same. What it says of pauses holds on: nothing is sent to a mirror that a person has paused.

use super::identity::{self, Lock};
use super::{DaemonError, failed};
use crate::config::Config;
use crate::journal::{self, Journal, JournalError, Pause, Reader, SOURCE_ID};
use crate::{local, mount};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// A rebuild that can be done. No daemon can start while this lives.
pub struct Rebuild<'a> {
    config: &'a Config,
    root: OwnedFd,
    id: String,
    pauses: Vec<Pause>,
    _lock: Lock,
}

impl Rebuild<'_> {
    /// Looks whether it can be done; changes nothing.
    ///
    /// # Errors
    /// A daemon runs; the source is not there, is another one, or never had a journal; the journal is a newer program's.
    pub fn prepare(config: &Config) -> Result<Rebuild<'_>, DaemonError> {
        super::make_directory(&config.state_dir, 0o700)?;
        let lock = identity::lock_state(&config.state_dir).map_err(failed)?;
        // Else the source would be looked for below it.
        mount::clear_stale(&config.mount_point).map_err(failed)?;
        let root = local::open_source(&config.source).map_err(failed)?;
        let (known, pauses) = match Reader::open(&config.state_dir).and_then(|reader| {
            let known = reader.meta(SOURCE_ID)?;
            // What cannot be read of them is lost.
            Ok((known, reader.pauses().unwrap_or_default()))
        }) {
            Ok(read) => read,
            Err(why @ JournalError::TooNew { .. }) => return Err(failed(why)),
            Err(_) => (None, Vec::new()),
        };
        let id = identity::id_of(root.as_fd(), &config.source, known.as_deref());
        Ok(Rebuild {
            config,
            id: id.map_err(failed)?,
            root,
            pauses,
            _lock: lock,
        })
    }

    /// Does it; gives the place of the journal that was there before, if there was one.
    ///
    /// # Errors
    /// The file system's, or SQLite's. It can be done again, and so can a start.
    pub fn carry_out(self) -> Result<Option<PathBuf>, DaemonError> {
        let Rebuild { config, root, .. } = &self;
        let aside = journal::set_aside(&config.state_dir).map_err(failed)?;
        let journal = Journal::open(&config.state_dir).map_err(failed)?;
        let names: Vec<&str> = config.mirrors.iter().map(|m| m.name.as_str()).collect();
        identity::begin_anew(&journal, root.as_fd(), &names).map_err(failed)?;
        for pause in self.pauses.iter().filter(|p| names.contains(&&*p.name)) {
            journal.pause_as(pause).map_err(failed)?;
        }
        journal.set_meta(SOURCE_ID, &self.id).map_err(failed)?;
        Ok(aside)
    }
}
