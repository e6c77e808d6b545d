//! The requests that are on the way, and which of them an answer is for.
//!
//! The danger: an answer counted twice, or given to the wrong request, says "done" of what is not. So
//! an id is answered once, and by a packet of a type that its request can have. And a request that is
//! never answered, while younger ones are, must not be forgotten: the oldest has a clock.

use super::wire::{self, Expect, Malformed};
use super::{Reply, Request};
use std::collections::VecDeque;
use std::time::Instant;

/// The requests that have no reply yet, oldest first. Ids are given in order, so the place of one is
/// its distance from the oldest.
#[derive(Default)]
pub(super) struct InFlight {
    requests: VecDeque<Option<Pending>>,
    /// The id of the first in `requests`, or of the next request where there is none.
    first: u32,
    /// Since when the oldest is the oldest.
    pub(super) oldest_since: Option<Instant>,
    /// How many of them are the owner's.
    pub(super) owners: usize,
    /// Bytes of their WRITE data.
    pub(super) bytes: usize,
}

struct Pending {
    expect: Expect,
    /// Whether the reply is for the owner of the channel.
    owners: bool,
    /// Bytes of data of a WRITE.
    bytes: usize,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn next(&self) -> u32 {
        self.first.wrapping_add(self.requests.len() as u32)
    }

    /// The next id is used up, and nothing is in flight for it.
    pub(super) fn skip(&mut self) {
        if self.requests.is_empty() {
            self.first = self.first.wrapping_add(1);
        } else {
            self.requests.push_back(None);
        }
    }

    /// Requests are going to be written: from now on the oldest is waited for.
    pub(super) fn start_clock(&mut self) {
        if !self.requests.is_empty() {
            self.oldest_since.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn add(&mut self, request: &Request, owners: bool) {
        let bytes = match request {
            Request::Write { data, .. } => data.len(),
            _ => 0,
        };
        self.requests.push_back(Some(Pending {
            expect: Expect::of(request),
            owners,
            bytes,
        }));
        self.owners += usize::from(owners);
        self.bytes += bytes;
    }

    /// Takes the answer in `packet`; none where it is not for the owner.
    pub(super) fn answer(
        &mut self,
        packet: &[u8],
        now: Instant,
    ) -> Result<Option<(u32, Reply)>, Malformed> {
        let id = wire::reply_id(packet)?;
        let place = id.wrapping_sub(self.first) as usize;
        let pending = self
            .requests
            .get_mut(place)
            .and_then(Option::take)
            .ok_or(Malformed::UnknownId(id))?;
        self.owners -= usize::from(pending.owners);
        self.bytes -= pending.bytes;
        if place == 0 {
            while let Some(None) = self.requests.front() {
                self.requests.pop_front();
                self.first = self.first.wrapping_add(1);
            }
            self.oldest_since = (!self.requests.is_empty()).then_some(now);
        }
        let reply = wire::decode(packet, pending.expect)?;
        Ok(pending.owners.then_some((id, reply)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn status(id: u32, code: u32) -> Vec<u8> {
        let mut packet = vec![101];
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(&code.to_be_bytes());
        packet
    }

    fn rmdir() -> Request {
        Request::Rmdir { path: Vec::new() }
    }

    #[test]
    fn an_answer_is_taken_once_and_in_any_order() {
        let now = Instant::now();
        let mut all = InFlight {
            first: u32::MAX - 1,
            ..InFlight::default()
        };
        for _ in 0..4 {
            all.add(&rmdir(), true);
        }
        for id in [0, u32::MAX, u32::MAX - 1, 1] {
            let reply = all.answer(&status(id, 0), now);
            assert_eq!(reply, Ok(Some((id, Reply::Ok))));
            let again = all.answer(&status(id, 0), now);
            assert_eq!(again, Err(Malformed::UnknownId(id)));
        }
        assert!(all.is_empty());
        assert_eq!((all.next(), all.owners, all.oldest_since), (2, 0, None));
        let stray = all.answer(&status(2, 0), now);
        assert_eq!(stray, Err(Malformed::UnknownId(2)));
    }

    #[test]
    fn the_clock_starts_anew_when_the_oldest_is_answered_and_not_when_another_is() {
        let mut all = InFlight::default();
        for _ in 0..3 {
            all.add(&rmdir(), true);
        }
        assert_eq!(all.oldest_since, None, "nothing is written yet");
        all.start_clock();
        let start = all.oldest_since;
        assert!(start.is_some());
        let later = Instant::now() + Duration::from_secs(5);
        all.answer(&status(1, 0), later).unwrap();
        assert_eq!(all.oldest_since, start);
        all.answer(&status(0, 0), later).unwrap();
        assert_eq!(all.oldest_since, Some(later));
        assert_eq!(all.requests.len(), 1);
    }

    #[test]
    fn ids_that_were_skipped_have_no_answer() {
        let now = Instant::now();
        let mut all = InFlight::default();
        all.skip();
        all.add(&rmdir(), true);
        all.skip();
        all.add(&rmdir(), false);
        assert_eq!(all.next(), 4);
        for id in [0, 2] {
            let stray = all.answer(&status(id, 0), now);
            assert_eq!(stray, Err(Malformed::UnknownId(id)));
        }
        assert!(all.answer(&status(1, 0), now).unwrap().is_some());
        assert_eq!(
            all.answer(&status(3, 0), now),
            Ok(None),
            "it is not the owner's"
        );
        assert!(all.is_empty());
    }
}
