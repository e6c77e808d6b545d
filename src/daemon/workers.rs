//! The workers of the configured mirrors: started, stopped and changed one by one.

use crate::config::{MaxDelete, MirrorConfig};
use crate::journal::Journal;
use crate::mirror::Worker;
use crate::mirror::errors::MirrorError;
use crate::mirror::live::Live;
use crate::mirror::source::Source;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All workers, by the names of their mirrors.
pub(super) struct Workers {
    journal: Arc<Journal>,
    source: Arc<Source>,
    running: Mutex<BTreeMap<String, Worker>>,
}

impl Workers {
    pub fn new(journal: Arc<Journal>, source: Arc<Source>) -> Workers {
        Workers {
            journal,
            source,
            running: Mutex::new(BTreeMap::new()),
        }
    }

    /// The tree that is mirrored.
    pub fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Worker>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts, stops and restarts workers until they are those of `mirrors`; the others are not
    /// disturbed. Says what was done.
    ///
    /// # Errors
    /// A worker can't be started; those before it run.
    pub fn apply(
        &self,
        mirrors: &[MirrorConfig],
        deadline: Instant,
    ) -> Result<String, MirrorError> {
        let mut running = self.running();
        let mut done = Vec::new();
        let names: Vec<&str> = mirrors.iter().map(|m| m.name.as_str()).collect();
        self.journal.note_configured(&names)?;
        for config in mirrors {
            if let Some(worker) = running.get_mut(&config.name)
                && worker.config != *config
                && worker.limit_only(config)
            {
                done.push(format!("mirror {} has another limit", config.name));
            }
        }
        let unchanged = |w: &Worker| mirrors.contains(&w.config);
        let leaving: Vec<String> = running
            .iter()
            .filter(|(_, w)| !unchanged(w))
            .map(|(n, _)| n.clone())
            .collect();
        // All are told first, so that they end side by side.
        leaving
            .iter()
            .filter_map(|name| running.get(name))
            .for_each(Worker::stop);
        let leavers: Vec<Worker> = leaving.iter().filter_map(|n| running.remove(n)).collect();
        // One that is connecting takes its time to end: who asks for the status meanwhile must not wait for it.
        drop(running);
        leavers.into_iter().for_each(|w| w.join(deadline));
        let mut running = self.running();
        for name in &leaving {
            if mirrors.iter().all(|m| m.name != *name) {
                self.journal.release_mirror(name);
                done.push(format!("mirror {name} removed"));
            }
        }
        for config in mirrors {
            if running.contains_key(&config.name) {
                continue;
            }
            let verb = if leaving.contains(&config.name) {
                "changed"
            } else {
                "added"
            };
            let (journal, source) = (Arc::clone(&self.journal), Arc::clone(&self.source));
            let worker = Worker::start(config.clone(), journal, source)?;
            running.insert(config.name.clone(), worker);
            done.push(format!("mirror {} {verb}", config.name));
        }
        Ok(if done.is_empty() {
            "no mirror changed".to_string()
        } else {
            done.join(", ")
        })
    }

    /// Does something with a worker.
    ///
    /// # Errors
    /// There is no mirror of that name.
    pub fn with<T>(&self, name: &str, act: impl FnOnce(&Worker) -> T) -> Result<T, String> {
        let running = self.running();
        running.get(name).map(act).ok_or_else(|| {
            let known: Vec<&str> = running.keys().map(String::as_str).collect();
            unknown_mirror(name, &known)
        })
    }

    /// How much may be deleted at once on a mirror, from now on.
    pub fn set_max_delete(&self, most: MaxDelete) {
        self.source.set_max_delete(most);
    }

    /// What all show of themselves.
    pub fn lives(&self) -> Vec<(String, Arc<Live>)> {
        let running = self.running();
        let all = running.iter();
        all.map(|(name, w)| (name.clone(), Arc::clone(&w.live)))
            .collect()
    }

    /// Has a worker, or all, try again at once what failed.
    ///
    /// # Errors
    /// There is no mirror of that name.
    pub fn try_again(&self, name: Option<&str>) -> Result<(), String> {
        match name {
            Some(name) => self.with(name, Worker::try_again),
            None => {
                self.running().values().for_each(Worker::try_again);
                Ok(())
            }
        }
    }

    /// Starts again what has ended though nobody told it to: a bug ends one worker for seconds, not
    /// for good. Gives the names of their mirrors.
    pub fn revive(&self) -> Vec<String> {
        let mut running = self.running();
        let dead: Vec<String> = running
            .iter()
            .filter(|(_, w)| w.is_dead())
            .map(|(n, _)| n.clone())
            .collect();
        for name in dead.iter().cloned() {
            log::error!("mirror {name}: its worker has died (a bug); it is started again");
            let Some(worker) = running.remove(&name) else {
                continue;
            };
            let config = worker.config.clone();
            worker.join(Instant::now());
            let (journal, source) = (Arc::clone(&self.journal), Arc::clone(&self.source));
            match Worker::start(config, journal, source) {
                Ok(worker) => drop(running.insert(name, worker)),
                Err(why) => log::error!("mirror {name}: {why}"),
            }
        }
        dead
    }

    /// Ends all, by `deadline`.
    pub fn stop(&self, deadline: Instant) {
        let mut running = self.running();
        running.values().for_each(Worker::stop);
        for (_, worker) in std::mem::take(&mut *running) {
            worker.join(deadline);
        }
    }
}

/// What to say of a name that no mirror has.
pub(super) fn unknown_mirror(name: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return format!("there is no mirror {name:?}: none is configured");
    }
    format!(
        "there is no mirror {name:?}; configured: {}",
        known.join(", ")
    )
}
