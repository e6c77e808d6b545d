//! How fast a session may send: a token bucket over all its lanes.
//!
//! The danger: a limit that holds over a minute and not over a second fills the queue of the line that it is to
//! keep free. So what is saved up while nothing was sent is a tenth of a second's worth, and no more. What has
//! been begun is finished, and paid for afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tells how many bytes a second may be sent now; none: as many as it goes. Asked every second or so.
pub type Rate = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// How often the rate is asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What SSH, TCP and IP add to a packet, in bytes, about.
const PACKET_COST: u64 = 96;

pub(super) struct Pace {
    rate: Rate,
    now: Option<u64>,
    asked: Option<Instant>,
    /// Until when all that was sent is paid for.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Pace {
        Pace {
            rate,
            now: None,
            asked: None,
            paid: Instant::now(),
        }
    }

    /// How long to wait before anything may be sent; zero: go on.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let old = |asked: Instant| now.saturating_duration_since(asked) >= ASK_EVERY;
        if self.asked.is_none_or(old) {
            (self.now, self.asked) = ((self.rate)(), Some(now));
        }
        match self.now {
            None => Duration::ZERO,
            Some(_) => self.paid.saturating_duration_since(now).min(ASK_EVERY),
        }
    }

    /// Whether there is a limit now.
    pub(super) fn is_limited(&self) -> bool {
        self.now.is_some()
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) {
        let Some(rate) = self.now else { return };
        let saved = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        let cost = (bytes as u64 + PACKET_COST) as f64 / rate.max(1) as f64;
        self.paid = self.paid.max(saved) + Duration::from_secs_f64(cost.min(3600.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn no_more_is_sent_than_the_rate_says_and_no_less_whatever_the_pieces() {
        for piece in [1, 100, 32 * 1024] {
            let mut pace = Pace::new(Arc::new(|| Some(1 << 20)));
            let start = Instant::now() + Duration::from_secs(1);
            let (mut now, mut bytes) = (start, 0.0);
            while now < start + Duration::from_secs(20) {
                match pace.wait(now) {
                    Duration::ZERO => {
                        pace.sent(piece, now);
                        bytes += (piece as u64 + PACKET_COST) as f64;
                        now += Duration::from_micros(1);
                    }
                    wait => now += wait,
                }
                // A pause saves up nothing to speak of.
                if now > start + Duration::from_secs(5) && now < start + Duration::from_secs(8) {
                    now = start + Duration::from_secs(8);
                }
            }
            let rate = bytes / 17.0 / f64::from(1 << 20);
            assert!((0.97..1.03).contains(&rate), "{rate} with {piece}");
        }
    }

    #[test]
    fn a_new_rate_holds_soon_and_none_lets_everything_pass() {
        let rate = Arc::new(AtomicU64::new(0));
        let asked = Arc::clone(&rate);
        let mut pace = Pace::new(Arc::new(move || {
            Some(asked.load(Ordering::SeqCst)).filter(|rate| *rate > 0)
        }));
        let start = Instant::now();
        for _ in 0..1000 {
            assert_eq!(pace.wait(start), Duration::ZERO);
            pace.sent(1 << 20, start);
        }
        rate.store(1 << 20, Ordering::SeqCst);
        let later = start + ASK_EVERY;
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.sent(10 << 20, later);
        assert_eq!(pace.wait(later), ASK_EVERY, "it is asked again meanwhile");
        rate.store(0, Ordering::SeqCst);
        assert_eq!(pace.wait(later + ASK_EVERY), Duration::ZERO);
    }
}
