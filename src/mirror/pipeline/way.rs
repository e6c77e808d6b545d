//! The session's own way in: whether it is still there, and which files an earlier session may have open. Why is told
//! in `fence.rs`.

use super::super::fence::MOST_COPIED;
use super::*;
use crate::sftp::SessionError;

impl<R: Remote> Pipeline<'_, R> {
    /// If something was taken for absent: whether it was not the way in that is missing. Waits for an answer.
    ///
    /// # Errors
    /// It is missing: nothing that was not noted before may be noted.
    pub(super) fn see_way(&mut self) -> Result<(), MirrorError> {
        while std::mem::take(&mut self.doubted) && self.setup.rules.fenced {
            let path = self.setup.place.base();
            if let Reply::Status(_) = self.ask(Request::Lstat { path })? {
                self.doubted = true;
                let why = "this session's way in was removed from .proxyfs on the mirror: somebody has tidied up \
                           there, or another daemon works on the same mirror";
                return Err(MirrorError::Session(SessionError::Lost(why.to_string())));
            }
        }
        Ok(())
    }

    /// Whether an earlier session's server may have the file of a row open, so that it is changed in a copy.
    pub(super) fn is_haunted(&self, index: usize) -> bool {
        let job = &self.window[index];
        let Change::Content { node, size, .. } = &job.row.change else {
            return false;
        };
        let open = job.row.seq <= self.inherited || self.resumed.contains(node);
        open && !job.is_linked() && *size <= MOST_COPIED && self.remote.features().copy_data
    }
}
