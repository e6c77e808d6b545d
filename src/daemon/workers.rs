//! The workers of the configured mirrors: started, stopped and changed one by one, by the main thread only.
//!
//! The danger: one that is connecting takes its time to end, and one that starts looks at the source, whose disk may be
//! slow. Who asks for the status meanwhile must not wait for either. So the lock is held to look at the workers,
//! to take them out and to put them in, and never while one is started or waited for.

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
        let mut done = Vec::new();
        let names: Vec<&str> = mirrors.iter().map(|m| m.name.as_str()).collect();
        self.journal.note_configured(&names)?;
        let mut running = self.running();
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
        drop(running);
        leavers.into_iter().for_each(|w| w.join(deadline));
        for name in &leaving {
            if mirrors.iter().all(|m| m.name != *name) {
                self.journal.release_mirror(name);
                done.push(format!("mirror {name} removed"));
            }
        }
        for config in mirrors {
            if self.running().contains_key(&config.name) {
                continue;
            }
            let verb = if leaving.contains(&config.name) {
                "changed"
            } else {
                "added"
            };
            self.start(config.clone())?;
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
        let dead: BTreeMap<String, Worker> = {
            let mut running = self.running();
            let (dead, alive) = std::mem::take(&mut *running)
                .into_iter()
                .partition(|(_, worker)| worker.is_dead());
            *running = alive;
            dead
        };
        let mut names = Vec::new();
        for (name, worker) in dead {
            log::error!("mirror {name}: its worker has died (a bug); it is started again");
            let config = worker.config.clone();
            worker.join(Instant::now());
            if let Err(why) = self.start(config) {
                log::error!("mirror {name}: {why}");
            }
            names.push(name);
        }
        names
    }

    fn start(&self, config: MirrorConfig) -> Result<(), MirrorError> {
        let (journal, source) = (Arc::clone(&self.journal), Arc::clone(&self.source));
        let name = config.name.clone();
        let worker = Worker::start(config, journal, source)?;
        self.running().insert(name, worker);
        Ok(())
    }

    /// Ends all, by `deadline`.
    pub fn stop(&self, deadline: Instant) {
        let all = std::mem::take(&mut *self.running());
        all.values().for_each(Worker::stop);
        all.into_values().for_each(|worker| worker.join(deadline));
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};
    use crate::mirror::source::Writing;
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn who_looks_at_the_workers_does_not_wait_for_one_that_ends_late() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ini");
        std::fs::create_dir(dir.path().join("www")).unwrap();
        let (d, port) = (dir.path().display(), silent.local_addr().unwrap().port());
        let ini = format!(
            "[proxyfs]\nsource = {d}/www\nmount_point = {d}/www\nstate_dir = {d}\n[mirror m]\nhost = 127.0.0.1\n\
             port = {port}\nuser = u\npath = /p\nkey = {d}/key\n"
        );
        std::fs::write(&file, ini).unwrap();
        let config = Config::load(&file, Overrides::default()).unwrap();
        let journal = Arc::new(Journal::open(dir.path()).unwrap());
        let root = std::fs::File::open(dir.path().join("www")).unwrap().into();
        let source = Arc::new(Source::new(root, Box::new(|_| Writing::No)));
        let workers = Workers::new(journal, source);
        let soon = || Instant::now() + Duration::from_secs(4);
        workers.apply(&config.mirrors, soon()).unwrap();
        let (_, live) = workers.lives().remove(0);
        let _connecting = silent.accept().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| workers.stop(soon()));
            while !workers.lives().is_empty() {
                std::thread::yield_now();
            }
            assert!(Arc::strong_count(&live) > 1, "the worker has ended already");
        });
        assert_eq!(Arc::strong_count(&live), 1);
    }
}
