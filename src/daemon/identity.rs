//! Which source, and whose: the locks, and the id that ties a journal to its source.
//!
//! The danger (P8): the daemon is started while the source's disk is not mounted. The directory below
//! would be taken for a source with everything deleted, and the mirrors would be emptied after it. So the
//! source carries an id, in `.proxyfs/id`, and the journal knows it: a journal that has one is only used
//! with the source that carries it.
//!
//! The id is written to the source first and to the journal then: killed in between, the next start finds
//! an id that no journal knows, and takes it over. But most likely there was a journal, and it is lost, with all that
//! mirrors had still to get: so every mirror is compared with the whole source then ([`begin_anew`]), which is noted before
//! the id is.

use crate::journal::{Journal, JournalError, SOURCE_ID};
use crate::local::RESERVED;
use crate::scan::keeper;
use crate::scan::marks::{self, FsClock};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync, mkdirat, openat, renameat};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why the daemon may not use this source with this journal.
#[derive(Debug)]
pub(super) enum IdentityError {
    /// Another daemon holds the lock.
    InUse(PathBuf),
    /// The journal belongs to a source, and this directory is none.
    NotTheSource(PathBuf),
    /// The journal belongs to another source.
    AnotherSource(PathBuf),
    Io(PathBuf, io::Error),
    Journal(JournalError),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::InUse(path) => write!(
                f,
                "another proxyfs uses {}: stop it first (`proxyfs stop`), or give this one its own",
                path.display()
            ),
            IdentityError::NotTheSource(path) => write!(
                f,
                "{} is not the directory that the journal in state_dir belongs to (it has no \
                 .proxyfs/id): is its disk not mounted? Mount it and start again; for a new source use \
                 a new state_dir",
                path.display()
            ),
            IdentityError::AnotherSource(path) => write!(
                f,
                "{} is another source than the one that the journal in state_dir belongs to: use the \
                 right state_dir, or a new one",
                path.display()
            ),
            IdentityError::Io(path, why) => write!(f, "{}: {why}", path.display()),
            IdentityError::Journal(why) => write!(f, "{why}"),
        }
    }
}

/// Held as long as the process lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

/// Makes sure that no other daemon uses the state directory.
pub(super) fn lock_state(state_dir: &Path) -> Result<Lock, IdentityError> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|why| IdentityError::Io(path, why))?;
    lock(file.into(), state_dir)
}

fn lock(file: OwnedFd, what: &Path) -> Result<Lock, IdentityError> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(Errno::WOULDBLOCK) => Err(IdentityError::InUse(what.to_path_buf())),
        Err(why) => Err(IdentityError::Io(what.to_path_buf(), why.into())),
    }
}

/// Makes sure that the source is the one that the journal belongs to, and that no other daemon uses it.
pub(super) fn claim_source(
    root: BorrowedFd<'_>,
    path: &Path,
    journal: &Journal,
    mirrors: &[&str],
) -> Result<Lock, IdentityError> {
    let known = journal.meta(SOURCE_ID).map_err(IdentityError::Journal)?;
    let io = |why: io::Error| IdentityError::Io(path.join(".proxyfs/id"), why);
    let found = read_id(root).map_err(io)?;
    match (&known, found) {
        (Some(known), Some((id, file))) if *known == id => lock(file, path),
        (Some(_), Some(_)) => Err(IdentityError::AnotherSource(path.to_path_buf())),
        (Some(_), None) => Err(IdentityError::NotTheSource(path.to_path_buf())),
        (None, Some((id, file))) => {
            let lock = lock(file, path)?;
            log::warn!(
                "the source had a journal before, which is not in state_dir any more: a new one begins, and every \
                 mirror is compared with the whole source"
            );
            begin_anew(journal, root, mirrors)?;
            journal
                .set_meta(SOURCE_ID, &id)
                .map_err(IdentityError::Journal)?;
            Ok(lock)
        }
        (None, None) => {
            write_id(root, &new_id().map_err(io)?).map_err(io)?;
            let Some((id, file)) = read_id(root).map_err(io)? else {
                return Err(IdentityError::NotTheSource(path.to_path_buf()));
            };
            let lock = lock(file, path)?;
            journal
                .set_meta(SOURCE_ID, &id)
                .map_err(IdentityError::Journal)?;
            Ok(lock)
        }
    }
}

/// Begins a new journal of a source that had one.
pub(super) fn begin_anew(
    journal: &Journal,
    root: BorrowedFd<'_>,
    mirrors: &[&str],
) -> Result<(), IdentityError> {
    let empty = keeper::is_empty(root).unwrap_or(false);
    let now = FsClock::new(root).now();
    let note = || {
        journal.compare_all(mirrors)?;
        marks::begin_anew(journal, now, empty)
    };
    note().map_err(IdentityError::Journal)
}

/// The id of the source, which is the one that its journal `knew`.
pub(super) fn id_of(
    root: BorrowedFd<'_>,
    path: &Path,
    knew: Option<&str>,
) -> Result<String, IdentityError> {
    let io = |why: io::Error| IdentityError::Io(path.join(".proxyfs/id"), why);
    match (read_id(root).map_err(io)?, knew) {
        (None, _) => Err(IdentityError::NotTheSource(path.to_path_buf())),
        (Some((id, _)), Some(knew)) if knew != id => {
            Err(IdentityError::AnotherSource(path.to_path_buf()))
        }
        (Some((id, _)), _) => Ok(id),
    }
}

fn private_dir(root: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(root, RESERVED, flags, Mode::empty())
}

fn read_id(root: BorrowedFd<'_>) -> io::Result<Option<(String, OwnedFd)>> {
    let dir = match private_dir(root) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(&dir, "id", flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    let mut id = String::new();
    (&file).take(256).read_to_string(&mut id)?;
    let id = id.trim().to_string();
    Ok(Some((id, file.into())).filter(|(id, _)| !id.is_empty()))
}

fn write_id(root: BorrowedFd<'_>, id: &str) -> io::Result<()> {
    match mkdirat(root, RESERVED, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(why) => return Err(why.into()),
    }
    let dir = private_dir(root)?;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&dir, "id.new", flags, Mode::RUSR | Mode::WUSR)?);
    writeln!(file, "{id}")?;
    file.sync_all()?;
    renameat(&dir, "id.new", &dir, "id")?;
    fsync(&dir)?;
    fsync(root)?;
    Ok(())
}

/// 128 random bits in hex.
fn new_id() -> io::Result<String> {
    let mut bits = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(bits.iter().map(|b| format!("{b:02x}")).collect())
}
