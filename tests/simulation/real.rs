//! A session with a real OpenSSH server, which breaks after so many requests. What of them still has its effect, and when,
//! is the server's own affair: the next session may begin before it has read all.

use proxyfs::sftp::session::SftpSession;
use proxyfs::sftp::{Features, Remote, Reply, Request, SessionError, Ticket};
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub struct Breaking<'a> {
    pub session: SftpSession,
    /// How many requests it sends; none: all.
    pub left: Option<u64>,
    /// Called when it has nothing to do.
    pub idle: Box<dyn FnMut() + 'a>,
    /// Called when a request is sent.
    pub sent: Box<dyn FnMut(&Request) + 'a>,
    /// Called before the line is looked at.
    pub meanwhile: Box<dyn FnMut() + 'a>,
}

impl Remote for Breaking<'_> {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        (self.sent)(&request);
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.session.send_on(lane, request)
    }

    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        if self.left == Some(0) {
            // Some of it is on its way.
            let _ = self.session.pump(Duration::ZERO, wake);
            return Err(SessionError::Lost("cut by the test".to_string()));
        }
        (self.meanwhile)();
        if self.outstanding() == 0 && !timeout.is_zero() {
            (self.idle)();
        }
        self.session
            .pump(timeout.min(Duration::from_millis(2)), wake)
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.session.reply()
    }

    fn outstanding(&self) -> usize {
        self.session.outstanding()
    }

    fn unacknowledged_on(&self, lane: usize) -> usize {
        self.session.unacknowledged_on(lane)
    }

    fn lanes(&self) -> usize {
        self.session.lanes()
    }

    fn want_lanes(&mut self, lanes: usize) {
        self.session.want_lanes(lanes);
    }

    fn line_has_room(&self) -> bool {
        self.session.line_has_room()
    }

    /// The tests' files are small.
    fn wide_from(&self) -> u64 {
        40_000
    }

    fn round_trip(&self) -> Duration {
        self.session.round_trip()
    }

    fn features(&self) -> &Features {
        self.session.features()
    }

    fn traffic(&self) -> (u64, u64) {
        self.session.traffic()
    }
}
