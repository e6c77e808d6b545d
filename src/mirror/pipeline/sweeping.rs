//! The stage is swept once more when a session that follows a broken one has done everything.
//!
//! The server of a broken connection may still work on what was in its buffers, while the next session is at work
//! already, and so make a file in the stage that was removed there a moment before. It harms nothing, since its
//! name tells its version, but it would lie there until the next session. When all is done nothing in the stage
//! belongs to anybody: names of rows that are done are removed, and of rows that the log has lost (a machine that lost
//! power forgets the newest, which the mirror may have been sent), and nothing else.

use super::super::prepare;
use super::*;

impl<R: Remote> Pipeline<'_, R> {
    /// Sweeps the stage if it is time. It waits for a few answers, once in a session.
    pub(super) fn sweep(&mut self) -> Result<(), MirrorError> {
        let busy = self.is_halted() || !self.is_drained() || !self.scars.is_empty();
        if !self.sweeps || busy || self.remote.outstanding() > 0 {
            return Ok(());
        }
        self.sweeps = false;
        let path = self.setup.place.stage_dir();
        let opened = self.ask(Request::Opendir { path })?;
        let [left] = prepare::list_all(&mut self.remote, [opened])?;
        let left = left.iter().filter_map(|name| Staged::parse(&name.name));
        let head = self.setup.journal.head();
        for staged in left.filter(|staged| staged.seq <= self.cursor || staged.seq > head) {
            let path = self.setup.place.staged(staged);
            self.remote.send(Request::Remove { path });
        }
        Ok(())
    }
}
