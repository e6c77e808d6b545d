//! Compares a mirror with the source, and changes nothing.
//!
//! The danger is to call different what is just being sent. The comparison has a session of its own and runs beside the
//! mirror's worker, on a tree that changes. So what differs is only suspected at first: when the mirror has
//! got as far as the log was at the end of the walk, it is looked at again, and told only if it still differs;
//! a few times, since it may have changed once more.
//!
//! Memory: as of a repair (`repair.rs`), and up to ten thousand differences; of more only how many they are is told.

use super::errors::{BaseTrouble, MirrorError};
use super::live::Live;
use super::plan::{Place, Rules, is_dir};
use super::prepare::ask;
use super::repair::{Carry, Counts, Difference, Job, Repair, Report, Tools};
use super::resume::Left;
use super::source::Source;
use super::target;
use crate::change::{Depth, RelPath, Scope};
use crate::config::MirrorConfig;
use crate::journal::Journal;
use crate::sftp::session::{self, Abort};
use crate::sftp::{Remote, Reply, Request, code};
use crate::status::MirrorState;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So often what differs is looked at again.
const LOOKS: u32 = 5;

/// How long it is waited for the mirror to get what it lacks, each time.
const WAIT: Duration = Duration::from_secs(60);

/// What came of it.
#[derive(Debug, Default)]
pub struct Verified {
    /// Entries of the source that were compared.
    pub entries: u64,
    /// Bytes that were read back.
    pub bytes: u64,
    /// In what entries differ.
    pub differences: Vec<(RelPath, Difference)>,
    /// How many more do, which were not looked at again.
    pub further: u64,
}

/// Compares a mirror with the source; with `checksum` byte by byte. None: it was cancelled.
///
/// # Errors
/// It cannot be reached, or read; the source's.
pub fn verify(
    config: &MirrorConfig,
    source: &Source,
    journal: &Journal,
    live: &Live,
    checksum: bool,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<Verified>, MirrorError> {
    let mut remote = session::connect(&target(config)?, &Abort::new())?;
    let rules = Rules {
        owner: config.preserve_owner,
        lsetstat: remote.features().lsetstat,
        ..Rules::default()
    };
    let place = Place::new(config.path.as_bytes());
    is_there(&mut remote, &place)?;
    live.verifying(Some(Counts::default()), None);
    let mut look = |paths: Vec<RelPath>, depth| -> Result<Option<Report>, MirrorError> {
        let tools = Tools {
            source,
            place: &place,
            rules,
            durable: &|| Ok(()),
            stop: cancelled,
            pauses: &|| false,
            show: &|counts, at| live.verifying(Some(*counts), at),
            compare: true,
            left: &|_| Left::Nothing,
            spares: &|_| false,
            resends: &|_| None,
        };
        let scope = Scope {
            depth,
            delete: false,
            bytes: checksum,
        };
        let job = |path| Job {
            path,
            scope,
            resend: false,
            walked: None,
            moved: None,
        };
        let jobs: Vec<Job> = paths.into_iter().map(job).collect();
        let report = Repair::new(&mut remote, tools, Carry::default()).run(jobs)?;
        // A directory that could not be read was not compared.
        if let Some(refusal) = report.refused.first() {
            return Err(MirrorError::Unread {
                path: refusal.path.to_string(),
                status: refusal.status.clone(),
            });
        }
        Ok(Some(report).filter(|report| !report.ends.is_empty()))
    };
    let done = compare(&mut look, journal, live, cancelled);
    live.verifying(None, None);
    done
}

/// A look at paths, to a depth.
type Look<'a> = &'a mut dyn FnMut(Vec<RelPath>, Depth) -> Result<Option<Report>, MirrorError>;

fn compare(
    look: Look<'_>,
    journal: &Journal,
    live: &Live,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<Verified>, MirrorError> {
    let Some(first) = look(vec![RelPath::root()], Depth::Tree)? else {
        return Ok(None);
    };
    let mut verified = Verified {
        entries: first.counts.entries,
        bytes: first.counts.bytes,
        differences: first.differences,
        further: first.further,
    };
    for _ in 0..LOOKS {
        if verified.differences.is_empty() {
            break;
        }
        let head = journal.head();
        if !has_got(live, head, cancelled) {
            break;
        }
        let paths: BTreeSet<RelPath> = verified.differences.iter().map(|d| d.0.clone()).collect();
        let Some(again) = look(paths.into_iter().collect(), Depth::Entry)? else {
            return Ok(None);
        };
        let fewer = again.differences.len() < verified.differences.len();
        verified.differences = again.differences;
        if !fewer && journal.head() == head {
            break; // nothing has changed meanwhile: so they are
        }
    }
    Ok(Some(verified).filter(|_| !cancelled()))
}

/// Waits until the mirror has got all up to `head`. Not for one that gets nothing.
fn has_got(live: &Live, head: u64, cancelled: &dyn Fn() -> bool) -> bool {
    let began = Instant::now();
    while live.now().settled < Some(head) {
        let works = matches!(
            live.now().state,
            MirrorState::Synced | MirrorState::Syncing | MirrorState::Retrying
        );
        if !works || cancelled() || began.elapsed() > WAIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Whether there is a directory to be compared.
fn is_there(remote: &mut impl Remote, place: &Place) -> Result<(), MirrorError> {
    let what = match ask(remote, Request::Stat { path: place.base() })? {
        Reply::Attrs(attrs) if is_dir(&attrs) => return Ok(()),
        Reply::Status(status) if status.code == code::NO_SUCH_FILE => BaseTrouble::Missing,
        Reply::Status(status) => BaseTrouble::Other(status),
        Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
            BaseTrouble::NotADirectory
        }
    };
    Err(MirrorError::Base {
        path: String::from_utf8_lossy(&place.base()).into_owned(),
        what,
    })
}
