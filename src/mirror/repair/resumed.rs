//! A big file that a repair was sending when the line broke goes on where it was, also in a new daemon.
//!
//! How that is done, and what can go wrong with what is there, is told in `resume.rs`. What differs: a row that goes on
//! covers no later one, so a write that its version does not tell (of the same size, in the same tick of the clock, by
//! mmap, with its time set back) comes with its own row. But a repair stands for all rows up to where the log was when
//! it began: for those that came between the broken session and this one, too. So here the version has to tell each
//! write:
//!
//! * The time of the last change of the inode (ctime) is in it, which nobody can set back.
//! * A write in the same tick would not show in it: so nothing goes on that was changed a moment ago ([`TICKS`]).
//! * Stores to a page that is dirty already do not show in it: so nothing goes on that somebody has open to write when
//!   it is begun. Who opens it later and stores to it makes a first store, which shows.
//! * What has several names may be on its way twice, and nothing else is to write to the same name: it does not go on.
//!   Neither does a version that was begun in this session already; what there was of it may just be removed.
//!
//! It lies under a number that no row has. What nobody asks for any more is removed when the mirror has everything
//! (`pipeline/sweeping.rs`).

use super::super::plan::{Rules, Wish};
use super::super::resume::{Staged, since};
use super::super::source::{Source, Writing};
use super::report::NUMBERS;
use crate::change::{Seq, Timestamp};
use rustix::fs::Stat;
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

/// For so long a clock's tick may last, and more.
const TICKS: Duration = Duration::from_secs(2);

/// Whether a file may go on later where it is cut. `here` is what was seen of it before this is asked.
pub(super) fn may_go_on(source: &Source, here: &Stat, rules: Rules) -> bool {
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(here.st_ctime.max(0) as u64);
    let age = SystemTime::now().duration_since(changed);
    here.st_nlink == 1
        && here.st_size as u64 >= rules.span.from
        && rules.fsync == Wish::No
        && age.is_ok_and(|age| age > TICKS + Duration::from_secs(1))
        && source.writing(here.st_ino) == Writing::No
}

/// The name under which it is made ready; one by its `number` if its version was begun already.
pub(super) fn name_of(version: u64, here: &Stat, number: Seq, begun: &mut HashSet<u64>) -> Staged {
    let ctime = Timestamp {
        seconds: here.st_ctime,
        nanoseconds: here.st_ctime_nsec as u32,
    };
    let version = since(version, ctime);
    match begun.insert(version) {
        true => Staged {
            seq: NUMBERS,
            version: Some(version),
        },
        false => Staged {
            seq: number,
            version: None,
        },
    }
}
