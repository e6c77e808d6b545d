//! A session's channels (lanes) as one [`Remote`]: whose turn it is to write, and when to sleep.
//!
//! One channel carries at most a window's worth of bytes a round trip (2 MiB with OpenSSH), and works on one
//! request after another. So big files and backlogs are spread over up to [`MOST_LANES`] of them.
//!
//! The dangers, and what answers each:
//!
//! - *One lane takes the whole line.* They take turns, a packet each, and go on where they were stopped.
//! - *Sleeping on what has come already.* libssh2 reads the socket whatever it is asked to do, for all lanes,
//!   and keeps what it finds. So reading all lanes, until all would block, is the last thing before poll(2);
//!   and window that was opened while reading is used before sleeping ([`Lanes::pass`]).
//! - *A peer that says nothing more.* On each lane, whatever request is the oldest must be answered within the
//!   I/O time-out of its becoming the oldest. (Not of its being queued: behind 8 MiB on a slow line it
//!   rightly waits longer.) The owner is to pump every second or so: its own pauses count as the server's.
//!   With nothing in flight for [`IDLE`], a REALPATH goes out by itself; its answer is kept from the owner.
//!   Nothing here is libssh2's keepalive, which breaks reads.
//! - *Blocking in drop.* libssh2 says goodbye and waits for an answer. So the socket is shut down first
//!   ([`Lanes::drop`]): then there is nobody to wait for.
//!
//! After any error the session is dead: which bytes have arrived is unknown then.

pub use super::channel::{FAR, MOST_LANES};

use super::channel::{
    Deadline, Lane, Link, OpenError, Opening, Replies, WRITE_PIECE, first_channel,
};
use super::pace::Pace;
use super::session::Start;
use super::tcp::hang_up;
use super::{Features, Remote, Reply, Request, SessionError, Ticket};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// With nothing in flight for so long, the peer is asked for a sign of life.
pub const IDLE: Duration = Duration::from_secs(15);

/// The channels of a session: see [`Remote`].
pub struct Lanes {
    link: Arc<Link>,
    lanes: Vec<Lane>,
    opening: Opening,
    features: Features,
    round_trip: Duration,
    replies: Replies,
    /// Whose turn it is to write.
    turn: usize,
    pace: Option<Pace>,
    dead: Option<SessionError>,
}

impl Lanes {
    /// Opens a channel and starts SFTP on it, within `timeout`, and sends the first requests as early as can be;
    /// goes on to open channels on a long line. Leaves the session non-blocking. After an error the link is
    /// broken.
    pub(super) fn open(
        link: Arc<Link>,
        timeout: Duration,
        start: &Start<'_>,
    ) -> Result<(Lanes, Vec<Ticket>), OpenError> {
        let opened = Lanes::start(&link, timeout, start);
        if opened.is_err() {
            hang_up(&link.socket);
        }
        opened
    }

    fn start(
        link: &Arc<Link>,
        timeout: Duration,
        start: &Start<'_>,
    ) -> Result<(Lanes, Vec<Ticket>), OpenError> {
        let (first, far) = (start.first, start.far_lanes);
        let deadline = Deadline::after(timeout);
        let (channel, mut opening, round_trip) = first_channel(link, deadline, far)?;
        let mut lane = Lane::new(0, channel, Arc::clone(link));
        let mut replies = Replies::new();
        let (features, tickets) = lane.negotiate(deadline, first, &mut replies, &mut opening)?;
        let lanes = Lanes {
            link: Arc::clone(link),
            lanes: vec![lane],
            opening,
            features,
            round_trip,
            replies,
            turn: 0,
            pace: start.rate.clone().map(Pace::new),
            dead: None,
        };
        Ok((lanes, tickets))
    }

    /// One round of input and output without waiting; whether there is something to write and no room in the
    /// socket.
    fn pass(&mut self) -> Result<bool, SessionError> {
        loop {
            self.add_opened();
            self.write_out()?;
            self.read_all()?;
            let may_go_on = self.lanes.iter().any(Lane::may_go_on);
            if (may_go_on && self.must_wait().is_zero()) || self.opening.go_on() {
                continue;
            }
            if self.opening.is_busy() && self.lanes.iter().any(Lane::has_input) {
                continue; // it has read what is for them
            }
            return Ok(self.opening.blocked || self.lanes.iter().any(|l| l.blocked));
        }
    }

    fn add_opened(&mut self) {
        while let Some(channel) = self.opening.next() {
            let number = self.lanes.len() as u8; // at most MOST_LANES
            let lane = Lane::new(number, channel, Arc::clone(&self.link));
            self.lanes.push(lane);
        }
    }

    /// In turns, until none can write any more.
    fn write_out(&mut self) -> Result<(), SessionError> {
        let mut stopped = 0;
        let mut wait = self.must_wait();
        while stopped < self.lanes.len() && wait.is_zero() {
            let lane = &mut self.lanes[self.turn];
            let sent = lane.write_piece(WRITE_PIECE)?;
            if sent > 0 {
                stopped = 0;
                if let Some(pace) = &mut self.pace {
                    let now = Instant::now();
                    pace.sent(sent, now);
                    wait = pace.wait(now);
                }
            } else {
                if lane.blocked {
                    return Ok(()); // it goes on with this lane
                }
                stopped += 1;
            }
            self.turn = (self.turn + 1) % self.lanes.len();
        }
        Ok(())
    }

    /// How long nothing may be sent.
    fn must_wait(&mut self) -> Duration {
        let pace = self.pace.as_mut();
        pace.map_or(Duration::ZERO, |pace| pace.wait(Instant::now()))
    }

    fn read_all(&mut self) -> Result<(), SessionError> {
        let mut any = true;
        while any {
            any = false;
            for lane in &mut self.lanes {
                any |= lane.read(&mut self.replies)?;
            }
        }
        Ok(())
    }

    fn heard(&self) -> Option<Instant> {
        self.lanes.iter().map(|l| l.heard).max()
    }

    fn ask_for_a_sign_of_life(&mut self, now: Instant) {
        let silent = self.silence(now) >= IDLE;
        if silent && self.lanes.iter().all(|l| l.in_flight.is_empty()) {
            let path = b".".to_vec();
            self.lanes[0].queue(&Request::Realpath { path }, false, &mut self.replies);
        }
    }

    fn silence(&self, now: Instant) -> Duration {
        self.heard()
            .map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard))
    }

    /// Until when something must have come, at the latest.
    fn until_check(&self, now: Instant) -> Result<Duration, SessionError> {
        let io_timeout = self.link.io_timeout;
        match self
            .lanes
            .iter()
            .filter_map(|l| l.in_flight.oldest_since)
            .min()
        {
            Some(since) => match now.saturating_duration_since(since) {
                age if age >= io_timeout => Err(SessionError::TimedOut(io_timeout)),
                age => Ok(io_timeout - age),
            },
            None => Ok(IDLE.saturating_sub(self.silence(now))),
        }
    }

    fn pump_alive(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        let start = Instant::now();
        loop {
            self.ask_for_a_sign_of_life(Instant::now());
            for lane in &mut self.lanes {
                lane.in_flight.start_clock();
            }
            let lanes = self.lanes();
            let blocked = self.pass()?;
            if !self.replies.is_empty() || self.lanes() > lanes {
                return Ok(());
            }
            let now = Instant::now();
            let until_check = self.until_check(now)?;
            let left = timeout.saturating_sub(now.saturating_duration_since(start));
            let mut wait = left.min(until_check);
            if self.lanes.iter().any(Lane::has_output) {
                match self.must_wait() {
                    Duration::ZERO => {}
                    pause => wait = wait.min(pause),
                }
            }
            let woken = self.link.wait(blocked, wait, wake)?;
            if woken || left.is_zero() {
                // What made poll return may be a reply as well.
                return self.pass().map(|_| ());
            }
        }
    }
}

impl Remote for Lanes {
    fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
        let last = self.lanes.len() - 1; // there is always one
        self.lanes[lane.min(last)].queue(&request, true, &mut self.replies)
    }

    fn pump(
        &mut self,
        timeout: Duration,
        wake: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        if let Some(why) = &self.dead {
            return Err(why.clone());
        }
        let result = self.pump_alive(timeout, wake);
        if let Err(why) = &result {
            hang_up(&self.link.socket);
            self.dead = Some(why.clone());
        }
        result
    }

    fn reply(&mut self) -> Option<(Ticket, Reply)> {
        self.replies.pop_front()
    }

    fn outstanding(&self) -> usize {
        self.lanes.iter().map(|l| l.in_flight.owners).sum()
    }

    fn unacknowledged_on(&self, lane: usize) -> usize {
        self.lanes.get(lane).map_or(0, |l| l.in_flight.bytes)
    }

    fn lanes(&self) -> usize {
        self.lanes.iter().take_while(|l| l.is_usable()).count()
    }

    fn want_lanes(&mut self, lanes: usize) {
        self.opening.want(lanes);
    }

    fn line_has_room(&self) -> bool {
        let limited = self.pace.as_ref().is_some_and(Pace::is_limited);
        let blocked = self.lanes.iter().any(|l| l.blocked);
        !limited && !blocked && self.lanes.iter().skip(1).all(Lane::is_full)
    }

    fn round_trip(&self) -> Duration {
        self.round_trip
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn traffic(&self) -> (u64, u64) {
        self.lanes
            .iter()
            .fold((0, 0), |sum, l| (sum.0 + l.traffic.0, sum.1 + l.traffic.1))
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        hang_up(&self.link.socket);
    }
}
