//! Directories of a mirror, read many at a time.
//!
//! READDIR brings the attributes along: no file costs a request of its own. (A server that leaves them out is asked
//! for each.) What can't be read to its end is refused: half a list would be taken for a directory in which
//! files are missing.
//!
//! Names are what the server says: none is used before it is seen to be one part of a path.

use crate::change::RelPath;
use crate::sftp::{Attrs, Handle, Remote, Reply, Request, Status, Ticket, code};
use std::collections::HashMap;

/// READDIRs on their way for a directory that has shown to be long: a server answers with about a hundred names.
const READDIRS: usize = 8;

/// Entries of a directory at most, some 260 MB of them: a hostile mirror may have no end of them.
const MOST: usize = if cfg!(test) { 1000 } else { 2_000_000 };

/// One entry there.
#[derive(Clone, Debug)]
pub struct There {
    /// Its name.
    pub name: Box<[u8]>,
    /// What it is like.
    pub attrs: Attrs,
    /// How many names the file has, where the server tells.
    pub links: Option<u32>,
}

/// What came of reading a directory.
#[derive(Debug)]
pub enum Read {
    /// Its entries by name, each once.
    All(Vec<There>),
    /// It was refused.
    Refused(Status),
}

struct Reading {
    place: Vec<u8>,
    lane: usize,
    handle: Option<Handle>,
    entries: Vec<There>,
    /// Requests without a reply.
    waiting: usize,
    readdirs: usize,
    ended: bool,
    refused: Option<Status>,
    /// Entries whose attributes are asked for.
    asked: bool,
}

/// What a request is about.
#[derive(Clone, Copy)]
enum Asked {
    Open,
    Names,
    /// The attributes of this entry.
    Look(usize),
}

/// Directories that are being read, and that are read and not yet taken.
#[derive(Default)]
pub struct Listings {
    all: HashMap<u64, Reading>,
    tickets: HashMap<Ticket, (u64, Asked)>,
    under_way: usize,
    held: usize,
    turn: usize,
    /// No more is asked for.
    rests: bool,
}

impl Listings {
    /// How many are being read.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many entries are kept.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether this one was begun.
    pub fn is_known(&self, id: u64) -> bool {
        self.all.contains_key(&id)
    }

    /// Begins to read the directory at `place`.
    pub fn begin<R: Remote>(&mut self, id: u64, place: Vec<u8>, remote: &mut R) {
        // In turns on all lanes: each has a server process of its own.
        self.turn += 1;
        let lane = self.turn % remote.lanes().max(1);
        let path = place.clone();
        let ticket = remote.send_on(lane, Request::Opendir { path });
        self.tickets.insert(ticket, (id, Asked::Open));
        self.under_way += 1;
        let reading = Reading {
            place,
            lane,
            handle: None,
            entries: Vec::new(),
            waiting: 1,
            readdirs: 2,
            ended: false,
            refused: None,
            asked: false,
        };
        self.all.insert(id, reading);
    }

    /// Takes a reply, if it is one of theirs; else gives it back.
    pub fn take<R: Remote>(
        &mut self,
        ticket: Ticket,
        reply: Reply,
        remote: &mut R,
    ) -> Option<Reply> {
        let Some((id, asked)) = self.tickets.remove(&ticket) else {
            return Some(reply);
        };
        let Some(reading) = self.all.get_mut(&id) else {
            // Nobody waits for it any more.
            if let Reply::Handle(handle) = reply {
                remote.send_on(ticket.lane.into(), Request::Close { handle });
            }
            return None;
        };
        reading.waiting -= 1;
        match (asked, reply) {
            (Asked::Open, Reply::Handle(handle)) => reading.handle = Some(handle),
            // What still comes of a list that was refused.
            (Asked::Names, Reply::Names(_)) if reading.refused.is_some() => {}
            (Asked::Names, Reply::Names(names)) => {
                self.held += names.len();
                reading.readdirs = READDIRS.min(reading.readdirs + 1);
                reading.entries.extend(names.into_iter().map(|name| There {
                    name: name.name.into(),
                    attrs: name.attrs,
                    links: name.links,
                }));
                if reading.entries.len() > MOST {
                    self.held -= std::mem::take(&mut reading.entries).len();
                    reading.ended = true;
                    reading.refused = Some(Status {
                        code: code::FAILURE,
                        message: format!("it lists more than {MOST} names"),
                    });
                }
            }
            (Asked::Names, Reply::Status(status)) if status.code == code::EOF => {
                reading.ended = true;
            }
            (Asked::Look(index), Reply::Attrs(attrs)) => reading.entries[index].attrs = attrs,
            // It has gone meanwhile: as if it had not been listed.
            (Asked::Look(index), _) => reading.entries[index].name = Box::default(),
            (_, Reply::Status(status)) => {
                reading.refused.get_or_insert(status);
                reading.ended = true;
            }
            (
                _,
                Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_),
            ) => {
                reading.ended = true;
            }
        }
        let lane = reading.lane;
        if let Some(handle) = reading.handle.clone() {
            while !reading.ended && !self.rests && reading.waiting < reading.readdirs {
                let handle = handle.clone();
                let ticket = remote.send_on(lane, Request::Readdir { handle });
                self.tickets.insert(ticket, (id, Asked::Names));
                reading.waiting += 1;
            }
            if reading.ended && reading.waiting == 0 {
                reading.handle = None;
                remote.send_on(lane, Request::Close { handle }); // nobody waits for that
            }
        }
        if reading.ended && reading.waiting == 0 && !reading.asked {
            reading.asked = true;
            for (index, entry) in reading.entries.iter().enumerate() {
                let Attrs {
                    size: Some(_),
                    mode: Some(_),
                    times: Some(_),
                    ..
                } = entry.attrs
                else {
                    let path = [&reading.place[..], b"/", &entry.name].concat();
                    if is_name(&entry.name) {
                        let ticket = remote.send_on(lane, Request::Lstat { path });
                        self.tickets.insert(ticket, (id, Asked::Look(index)));
                        reading.waiting += 1;
                    }
                    continue;
                };
            }
        }
        if reading.is_ready() {
            self.under_way -= 1;
        }
        None
    }

    /// Whether it can be taken.
    pub fn is_ready(&self, id: u64) -> bool {
        self.all.get(&id).is_some_and(Reading::is_ready)
    }

    /// What was read, once it is ready.
    pub fn finish(&mut self, id: u64) -> Option<Read> {
        if !self.is_ready(id) {
            return None;
        }
        let reading = self.all.remove(&id)?;
        self.held -= reading.entries.len();
        if let Some(status) = reading.refused {
            return Some(Read::Refused(status));
        }
        let mut entries = reading.entries;
        entries.retain(|entry| is_name(&entry.name));
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Some(Read::All(entries))
    }

    /// What was finished is not through yet: these are left of it.
    pub fn put_back(&mut self, id: u64, entries: Vec<There>) {
        self.held += entries.len();
        let reading = Reading {
            place: Vec::new(),
            lane: 0,
            handle: None,
            entries,
            waiting: 0,
            readdirs: 0,
            ended: true,
            refused: None,
            asked: true,
        };
        self.all.insert(id, reading);
    }

    /// Forgets all but one; what is still open there is closed. That one rests until it is to go on.
    pub fn drop_all_but<R: Remote>(&mut self, kept: Option<u64>, remote: &mut R) {
        let kept = kept.and_then(|id| Some((id, self.all.remove(&id)?)));
        for reading in std::mem::take(&mut self.all).into_values() {
            if let Some(handle) = reading.handle {
                remote.send_on(reading.lane, Request::Close { handle });
            }
        }
        (self.under_way, self.held) = (0, 0);
        if let Some((id, reading)) = kept {
            self.under_way = usize::from(!reading.is_ready());
            self.held = reading.entries.len();
            self.all.insert(id, reading);
        }
        self.rests = true;
    }

    /// Goes on with what rested.
    pub fn go_on<R: Remote>(&mut self, remote: &mut R) {
        self.rests = false;
        for (id, reading) in &mut self.all {
            if let Some(handle) = reading.handle.clone().filter(|_| !reading.ended) {
                let ticket = remote.send_on(reading.lane, Request::Readdir { handle });
                self.tickets.insert(ticket, (*id, Asked::Names));
                reading.waiting += 1;
            }
        }
    }

    /// Whether replies are still to come.
    pub fn is_waiting(&self) -> bool {
        !self.tickets.is_empty()
    }
}

impl Reading {
    fn is_ready(&self) -> bool {
        self.ended && self.waiting == 0 && self.asked
    }
}

/// Whether it is the name of an entry, and no way to somewhere else.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && RelPath::root().join(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sftp::{Features, Name, SessionError};
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    /// A server that only notes what it is asked.
    #[derive(Default)]
    struct Silent(Vec<Request>);

    impl Remote for Silent {
        fn send_on(&mut self, lane: usize, request: Request) -> Ticket {
            self.0.push(request);
            Ticket {
                lane: lane as u8,
                id: self.0.len() as u32,
            }
        }
        fn pump(&mut self, _: Duration, _: Option<BorrowedFd<'_>>) -> Result<(), SessionError> {
            Ok(())
        }
        fn reply(&mut self) -> Option<(Ticket, Reply)> {
            None
        }
        fn outstanding(&self) -> usize {
            0
        }
        fn unacknowledged_on(&self, _: usize) -> usize {
            0
        }
        fn features(&self) -> &Features {
            unreachable!("it is not asked")
        }
        fn traffic(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    fn names(all: &[&str]) -> Reply {
        let name = |name: &&str| Name {
            name: name.as_bytes().to_vec(),
            attrs: Attrs {
                size: Some(1),
                mode: Some(0o100_644),
                times: Some((1, 1)),
                owner: None,
            },
            links: Some(1),
        };
        Reply::Names(all.iter().map(name).collect())
    }

    /// Answers each READDIR that is open with `answer`, so many times at most.
    fn read(answer: &Reply, times: u32) -> (Read, u32) {
        let (mut listings, mut server) = (Listings::default(), Silent::default());
        listings.begin(7, b"/m".to_vec(), &mut server);
        let handle = Handle(b"h"[..].into());
        let ticket = |id| Ticket { lane: 0, id };
        let taken = listings.take(ticket(1), Reply::Handle(handle), &mut server);
        assert!(taken.is_none());
        let (mut id, mut answered) = (2, 0);
        while !listings.is_ready(7) {
            let end = Status {
                code: code::EOF,
                message: String::new(),
            };
            let reply = match answered < times {
                true => answer.clone(),
                false => Reply::Status(end),
            };
            answered += 1;
            listings.take(ticket(id), reply, &mut server);
            id += 1;
        }
        let read = listings.finish(7).unwrap();
        assert_eq!((listings.held(), listings.under_way()), (0, 0));
        (read, answered)
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_entries_and_the_others_come_sorted_and_once() {
        let odd = names(&["b", "..", "a/../../etc", ".", "", "a", "b", "/etc", "a\0b"]);
        let (Read::All(entries), _) = read(&odd, 1) else {
            panic!("it was refused");
        };
        let found: Vec<&[u8]> = entries.iter().map(|e| &*e.name).collect();
        assert_eq!(found, [b"a", b"b"]);
    }

    #[test]
    fn a_list_without_an_end_is_refused_and_takes_no_more_memory() {
        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (Read::Refused(why), answered) = read(&names(&many), u32::MAX) else {
            panic!("it was taken");
        };
        assert!(why.message.contains("more than"), "{why}");
        assert!(answered < 20, "{answered}");
    }
}
