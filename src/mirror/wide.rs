//! The further lanes of a big file: one channel's window is not all that a long line can carry.
//!
//! The first lane opens the staged file and makes it; when its handle is there, the others open the same file,
//! each for itself, and parts of it are written on whichever lane has room. What can go wrong, and what answers it:
//!
//! * *Lanes overtake each other.* So the attributes are set when every WRITE of every lane is acknowledged: a
//!   late one would change the mtime again. And an upload ends when each CLOSE is answered too, so that no
//!   lane still has the file when its name is used again.
//! * *A lane cannot open it* (handles, or a server that lets a file be open once only): the others carry it.
//! * *Big files keep small ones and publishing waiting.* The first lane of the session is left to those as soon
//!   as a big file has another one; unless the others wait for the server's window while the line is free: then
//!   what is on the way on it delays nobody by more than it takes to pass by.

use crate::sftp::lanes::MOST_LANES;
use crate::sftp::{Attrs, Handle, OpenMode, Remote, Request, Ticket};

/// What fills the window of a lane (OpenSSH's), in bytes.
const WINDOW: usize = 2 << 20;

#[derive(Clone, Default)]
enum Place {
    /// Not asked for yet.
    #[default]
    Unasked,
    /// The OPEN is under way.
    Opening,
    Open(Handle),
    /// It could not be opened, or the CLOSE is sent.
    Closed,
}

/// What a big file has beside its first lane.
pub struct Wide {
    dest: Vec<u8>,
    first: usize,
    lanes: [Place; MOST_LANES],
}

impl Wide {
    /// Of a file at `dest` whose first lane is `first`.
    pub fn new(dest: Vec<u8>, first: usize) -> Wide {
        Wide {
            dest,
            first,
            lanes: Default::default(),
        }
    }

    /// Asks for the file on the lanes that have come since.
    pub fn widen<R: Remote>(&mut self, remote: &mut R, mut note: impl FnMut(Ticket)) {
        for lane in (0..remote.lanes().min(MOST_LANES)).filter(|n| *n != self.first) {
            // Lane 0 is everybody's: who is not on it already does not come.
            if lane > 0 && matches!(self.lanes[lane], Place::Unasked) {
                self.lanes[lane] = Place::Opening;
                let open = Request::Open {
                    path: self.dest.clone(),
                    mode: OpenMode::Update,
                    attrs: Attrs::default(),
                };
                note(remote.send_on(lane, open));
            }
        }
    }

    /// Whether a reply on a lane is that to its OPEN, which is taken then: a handle, or none.
    pub fn takes(&mut self, lane: usize, handle: Option<Handle>) -> bool {
        let opening = matches!(self.lanes.get(lane), Some(Place::Opening));
        if opening {
            self.lanes[lane] = handle.map_or(Place::Closed, Place::Open);
        }
        opening
    }

    /// Whether another lane has the file, or may have it yet.
    pub fn is_used(&self) -> bool {
        let used = |place: &Place| !matches!(place, Place::Unasked);
        self.lanes.iter().any(used)
    }

    /// The lane with most room, if one has any; and its handle, if it is not the first's.
    pub fn roomiest<R: Remote>(&self, remote: &R, most: usize) -> Option<(usize, Option<Handle>)> {
        let others = self.lanes.iter().enumerate();
        let others = others.filter_map(|(lane, place)| match place {
            Place::Open(handle) => Some((lane, Some(handle))),
            Place::Unasked | Place::Opening | Place::Closed => None,
        });
        let has_others = self.lanes.iter().any(|p| matches!(p, Place::Open(_)));
        let spare = remote.line_has_room() && remote.unacknowledged_on(self.first) < WINDOW;
        let first = Some((self.first, None)).filter(|_| self.first > 0 || !has_others || spare);
        others
            .chain(first)
            .map(|(lane, handle)| (remote.unacknowledged_on(lane), lane, handle))
            .filter(|(waiting, ..)| *waiting < most)
            .min_by_key(|(waiting, lane, _)| (*waiting, *lane))
            .map(|(_, lane, handle)| (lane, handle.cloned()))
    }

    /// Sends the CLOSEs of the other lanes; how many.
    pub fn close<R: Remote>(&mut self, remote: &mut R, mut note: impl FnMut(Ticket)) -> usize {
        let mut sent = 0;
        for (lane, place) in self.lanes.iter_mut().enumerate() {
            if let Place::Open(handle) = std::mem::replace(place, Place::Closed) {
                note(remote.send_on(lane, Request::Close { handle }));
                sent += 1;
            }
        }
        sent
    }
}
