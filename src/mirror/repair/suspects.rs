//! Files that have the size and the time that they have here, which is no proof: their bytes are compared before any is
//! sent, by checksums that are made there, or else by reading them back.
//!
//! A file that changes here meanwhile is one that the log tells of: whatever is found of it, its change comes.

use super::*;
use crate::sftp::session::Same;
use rustix::fs::Stat;

/// So many are asked for at once.
const SUSPECTS: usize = 512;

/// A longer one is not read back, but sent: that can be paused.
const READ_BACK: i64 = 1 << 20;

/// A file whose checksum is asked for.
pub(super) struct Suspect {
    path: RelPath,
    here: Stat,
    there: Attrs,
}

impl<R: Remote> Repair<'_, R> {
    /// Whether it is worth while to compare a file's bytes before it is sent.
    pub(super) fn may_compare(&mut self, here: &Stat) -> bool {
        here.st_size <= READ_BACK || self.remote.hasher().is_some_and(|h| !h.is_lacking())
    }

    /// A file may have other bytes there.
    pub(super) fn suspect(
        &mut self,
        path: RelPath,
        here: Stat,
        there: Attrs,
    ) -> Result<(), MirrorError> {
        while self.suspects.len() >= SUSPECTS && !self.is_over() {
            self.turn()?;
        }
        self.suspects.push(Suspect { path, here, there });
        self.ask_for_checksums()
    }

    /// Asks for those that were not asked for, and takes what is told.
    pub(super) fn ask_for_checksums(&mut self) -> Result<(), MirrorError> {
        let mut left = Vec::new();
        for suspect in std::mem::take(&mut self.suspects) {
            match self.checksum_of(&suspect)? {
                None => left.push(suspect),
                Some(same) => self.judge(suspect, same)?,
            }
        }
        self.suspects.extend(left);
        Ok(())
    }

    fn checksum_of(&mut self, suspect: &Suspect) -> Result<Option<Same>, MirrorError> {
        let Suspect { path, here, .. } = suspect;
        let source = self.tools.source;
        let question = (
            self.tools.place.path(path),
            here.st_size as u64,
            here.st_ctime,
        );
        let Some(hasher) = self.remote.hasher() else {
            return Ok(Some(Same::Unknown));
        };
        let open = || match source.entry(path)?.map(|entry| entry.kind) {
            Some(Kind::File(node)) => source.open(&node),
            Some(Kind::Directory | Kind::Symlink(_) | Kind::Other) | None => Ok(None),
        };
        hasher.ask(&question, open).map_err(source_error(path))
    }

    fn judge(&mut self, suspect: Suspect, same: Same) -> Result<(), MirrorError> {
        let Suspect { path, here, there } = suspect;
        let fixes = (!self.tools.compare).then_some((here, there));
        match (same, fixes) {
            (Same::Unknown, Some(_)) if here.st_size > READ_BACK => self.send_again(path),
            (Same::Unknown, fixes) => self.read_back(path, fixes),
            (Same::Yes, None) => Ok(()),
            (Same::Yes, Some((here, there))) => {
                self.fix_attributes(path, &here, &there);
                Ok(())
            }
            (Same::No, None) => {
                self.differs(path, Difference::Bytes);
                Ok(())
            }
            (Same::No, Some(_)) => self.send_again(path),
        }
    }

    /// A file turned out to have other bytes.
    pub(super) fn send_again(&mut self, path: RelPath) -> Result<(), MirrorError> {
        if self.ends {
            self.report.unfinished.push(path);
            return Ok(());
        }
        if let Some(entry) = self.entry(&path)? {
            self.again_later(path, entry);
        }
        Ok(())
    }

    /// The slice is over: what is not told yet is told in the next one.
    pub(super) fn postpone_suspects(&mut self) {
        let open = std::mem::take(&mut self.suspects);
        self.report.unsure.extend(open.into_iter().map(|s| s.path));
    }
}
