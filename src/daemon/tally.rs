//! What was done for each mirror, added up over workers and restarts, for `metrics`.
//!
//! A worker counts from its own start. Here its counts are added to what the journal had, and the sum is put
//! there every few seconds: what a kill takes away are the counts of those seconds, and no counter ever goes back.

use crate::journal::{Journal, JournalError, Reader};
use crate::mirror::live::Live;
use crate::status::Totals;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// The key of the journal's `meta` under which the sums are.
const KEY: &str = "totals";

/// The sums by the names of mirrors, and what of each worker is in them.
#[derive(Default)]
pub(super) struct Tally {
    sums: BTreeMap<String, Totals>,
    counted: BTreeMap<String, (Weak<Live>, Totals)>,
    saved: BTreeMap<String, Totals>,
}

impl Tally {
    /// Goes on with what the journal has.
    ///
    /// # Errors
    /// The journal's.
    pub fn open(journal: &Journal) -> Result<Tally, JournalError> {
        let sums = sums_of(journal.meta(KEY)?);
        Ok(Tally {
            saved: sums.clone(),
            sums,
            ..Tally::default()
        })
    }

    /// Adds what a mirror's worker has done since it was last asked; gives the sum.
    pub fn count(&mut self, name: &str, live: &Arc<Live>) -> Totals {
        let now = live.now().totals;
        let this = Arc::downgrade(live);
        let before = self.counted.get(name);
        let before = before.filter(|(worker, _)| worker.ptr_eq(&this));
        let before = before.map(|b| b.1).unwrap_or_default();
        let sum = self.sums.entry(name.to_string()).or_default();
        sum.sent_bytes += now.sent_bytes - before.sent_bytes;
        sum.connections += now.connections - before.connections;
        sum.failures += now.failures - before.failures;
        self.counted.insert(name.to_string(), (this, now));
        *sum
    }

    /// Puts the sums into the journal, if they are others than those there. Where that fails it is for the next time.
    pub fn save(&mut self, journal: &Journal) {
        if self.saved != self.sums {
            let all = self.sums.iter().map(|(name, t)| {
                let sums = json!([t.sent_bytes, t.connections, t.failures]);
                (name.clone(), sums)
            });
            let text = Value::Object(all.collect()).to_string();
            if journal.set_meta(KEY, &text).is_ok() {
                self.saved.clone_from(&self.sums);
            }
        }
    }
}

/// What a daemon that is not running has left.
///
/// # Errors
/// The journal's.
pub(super) fn left(reader: &Reader) -> Result<BTreeMap<String, Totals>, JournalError> {
    reader.meta(KEY).map(sums_of)
}

fn sums_of(text: Option<String>) -> BTreeMap<String, Totals> {
    let all: Value = text
        .and_then(|t| serde_json::from_str(&t).ok())
        .unwrap_or_default();
    let number = |v: &Value, i: usize| v[i].as_u64().unwrap_or(0);
    let all = all.as_object().cloned().unwrap_or_default().into_iter();
    all.map(|(name, v)| {
        let totals = Totals {
            sent_bytes: number(&v, 0),
            connections: number(&v, 1),
            failures: number(&v, 2),
        };
        (name, totals)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MirrorState;

    #[test]
    fn a_counter_grows_over_workers_and_restarts_and_counts_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let mut tally = Tally::open(&journal).unwrap();
        let connected = |times: u64| {
            let live = Arc::new(Live::new(None, None));
            (0..times).for_each(|_| live.connected(Vec::new()));
            live
        };
        let first = connected(3);
        assert_eq!(tally.count("m", &first).connections, 3);
        assert_eq!(tally.count("m", &first).connections, 3);
        first.resting(MirrorState::Retrying, Some("cut".to_string()), None);
        first.resting(MirrorState::Paused, None, None);
        assert_eq!(tally.count("m", &first).failures, 1);
        // Another worker, which has done more already.
        assert_eq!(tally.count("m", &connected(5)).connections, 8);
        tally.save(&journal);
        drop((tally, journal));
        let journal = Journal::open(dir.path()).unwrap();
        let mut tally = Tally::open(&journal).unwrap();
        let total = tally.count("m", &connected(1));
        assert_eq!((total.connections, total.failures), (9, 1));
        tally.save(&journal);
        drop(journal);
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!(left(&reader).unwrap()["m"], total);
    }
}
