//! The marker on a mirror: whose copy it is, and how far it has got (rule R6).
//!
//! The dangers are a disk that is not what it was: a mirror that was wiped, or whose disk is not mounted, is
//! taken for one that has everything; one that was restored from a backup, for what it was before; a
//! directory that belongs to another source gets this one's changes. So the marker is read at connect,
//! before anything is changed, and held against what the journal says was written.
//!
//! It is a symbolic link, `.proxyfs/position`, that points to its own text: one request reads it, so that it
//! comes with the first round trip of a session, and `ls -l` shows it to a person. It is made under another
//! name and renamed: it is whole, or it is the one before. A server whose rename does not replace has the old
//! one removed first: so where there is none, the new name is looked at, too. (A server that makes no symbolic links gets
//! none, and nothing is expected of it.)
//!
//! What can be cut between two lines: before it is written, the journal notes durably that it may be of this
//! change (`marking`); after it was, that it is of this change at least (`marked`). So whatever is cut, a
//! lawful marker is between the two. A mirror host that lost power may show an older one; then it has lost
//! what came after it, too.

use super::errors::MirrorError;
use super::plan::{self, Place, Rules};
use crate::change::Seq;
use crate::sftp::{Reply, Request, code};
use std::fmt;
use std::time::{Duration, Instant};

/// How often it is renewed while changes keep coming.
const BUSY: Duration = Duration::from_secs(30);

/// How soon after the last time it is renewed when the queue is empty.
const DRAINED: Duration = Duration::from_secs(2);

/// What a marker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// Whose copy it is.
    pub source: String,
    /// Every change up to here is there.
    pub seq: Seq,
    /// When it was written: seconds since 1970.
    pub time: i64,
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Marker { source, seq, time } = self;
        write!(f, "proxyfs source={source} seq={seq} time={time}")
    }
}

impl Marker {
    /// Reads what [`Marker`]'s `Display` made. Further fields are passed over.
    fn parse(text: &[u8]) -> Option<Marker> {
        let text = std::str::from_utf8(text).ok()?.strip_prefix("proxyfs ")?;
        let field = |name: &str| {
            text.split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Marker {
            source: field("source")?.to_string(),
            seq: field("seq")?.parse().ok()?,
            time: field("time")?.parse().ok()?,
        })
    }
}

/// What may be wrong with a marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkerTrouble {
    /// There is none, though one was written.
    Missing,
    /// It is of an older change than was written.
    Older {
        /// Of which.
        found: Seq,
        /// What was written.
        written: Seq,
    },
    /// It is of a newer change than was ever written from here.
    Newer {
        /// Of which.
        found: Seq,
        /// What may have been written.
        written: Seq,
    },
    /// It is another source's.
    Foreign {
        /// Its id.
        source: String,
    },
}

impl MarkerTrouble {
    /// Whether the mirror needs a copy; else it is not this source's mirror.
    pub fn needs_sync(&self) -> bool {
        match self {
            MarkerTrouble::Missing | MarkerTrouble::Older { .. } | MarkerTrouble::Newer { .. } => {
                true
            }
            MarkerTrouble::Foreign { .. } => false,
        }
    }
}

/// What is asked to read it, and the one that was about to take its place: see [`judge`].
pub(super) fn questions(place: &Place) -> [Request; 2] {
    [place.position(), place.new_position()].map(|path| Request::Readlink { path })
}

/// Holds what was found against the source's id and what the journal has noted: a lawful marker is of a change
/// from the first to the second.
///
/// # Errors
/// This is not the directory that it was.
pub(super) fn judge(
    [found, new]: [&Reply; 2],
    source: &str,
    (marked, marking): (Option<Seq>, Option<Seq>),
    path: &str,
) -> Result<(), MirrorError> {
    let missing = matches!(found, Reply::Status(why) if why.code == code::NO_SUCH_FILE);
    let text = match if missing { new } else { found } {
        Reply::Names(names) => names.first().map(|name| &name.name[..]),
        Reply::Status(status) if status.code == code::PERMISSION_DENIED => return Ok(()),
        Reply::Ok | Reply::Status(_) | Reply::Handle(_) | Reply::Data(_) | Reply::Attrs(_) => None,
    };
    let trouble = match text.and_then(Marker::parse) {
        None => marked.map(|_| MarkerTrouble::Missing),
        Some(there) if there.source != source => Some(MarkerTrouble::Foreign {
            source: there.source,
        }),
        Some(there) => match (marked, marking) {
            (Some(written), _) if there.seq < written => Some(MarkerTrouble::Older {
                found: there.seq,
                written,
            }),
            (_, Some(written)) if there.seq > written => Some(MarkerTrouble::Newer {
                found: there.seq,
                written,
            }),
            _ => None,
        },
    };
    match trouble {
        None => Ok(()),
        Some(what) => Err(MirrorError::Marker {
            path: path.to_string(),
            what,
        }),
    }
}

/// Renews the marker of one mirror.
pub(super) struct Renewal {
    /// Of which change the one there is; none: not known.
    there: Option<Seq>,
    at: Instant,
    /// The one being written, and its requests that are still to be sent, the last one first.
    under_way: Option<(Seq, Vec<Request>)>,
    /// Whether the request under way is one without which there is no marker: the link, or the rename.
    must: bool,
    /// The server makes no symbolic links.
    in_vain: bool,
}

impl Renewal {
    /// `there` is what the journal says of the last one.
    pub fn new(there: Option<Seq>, now: Instant) -> Renewal {
        Renewal {
            there,
            at: now,
            under_way: None,
            must: false,
            in_vain: false,
        }
    }

    /// Whether one of this change is to be written now.
    pub fn is_due(&self, seq: Seq, drained: bool, now: Instant) -> bool {
        let Some(there) = self.there else {
            return drained && self.under_way.is_none() && !self.in_vain;
        };
        let pause = if drained { DRAINED } else { BUSY };
        let old = now.duration_since(self.at) >= pause;
        old && seq > there && self.under_way.is_none() && !self.in_vain
    }

    /// When [`Renewal::is_due`] may be true next, while the queue is empty.
    pub fn due_in(&self, seq: Seq, now: Instant) -> Option<Duration> {
        let news = self.there.is_some_and(|there| seq > there);
        let waits = news && self.under_way.is_none() && !self.in_vain;
        waits.then(|| DRAINED.saturating_sub(now.duration_since(self.at)))
    }

    /// Begins; gives the first request. The journal has noted that.
    pub fn begin(
        &mut self,
        marker: &Marker,
        place: &Place,
        rules: Rules,
        now: Instant,
    ) -> Option<Request> {
        let (from, to) = (place.new_position(), place.position());
        let mut steps = vec![
            Request::Remove { path: from.clone() },
            Request::Symlink {
                target: marker.to_string().into_bytes(),
                link: from.clone(),
            },
        ];
        steps.extend(plan::replace(from, to, rules));
        steps.reverse();
        self.at = now;
        self.under_way = Some((marker.seq, steps));
        self.next()
    }

    fn next(&mut self) -> Option<Request> {
        let request = self.under_way.as_mut()?.1.pop()?;
        self.must = !matches!(request, Request::Remove { .. });
        Some(request)
    }

    /// Takes the reply to the last request: the next request; or of which change it is, once it is there.
    pub fn take(&mut self, reply: &Reply) -> Result<Request, Option<Seq>> {
        let Some((seq, steps)) = &self.under_way else {
            return Err(None);
        };
        let seq = *seq;
        // That there is nothing to be removed is the usual thing.
        if self.must && matches!(reply, Reply::Status(_)) {
            self.in_vain |= !steps.is_empty();
            self.under_way = None;
            return Err(None);
        }
        if let Some(request) = self.next() {
            return Ok(request);
        }
        self.under_way = None;
        self.there = Some(seq);
        Err(Some(seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sftp::{Attrs, Name, Status};

    fn found(text: &str) -> Reply {
        Reply::Names(vec![Name {
            name: text.as_bytes().to_vec(),
            attrs: Attrs::default(),
            links: None,
        }])
    }

    fn none() -> Reply {
        Reply::Status(Status {
            code: code::NO_SUCH_FILE,
            message: String::new(),
        })
    }

    fn trouble(reply: &Reply, noted: (Option<Seq>, Option<Seq>)) -> Option<MarkerTrouble> {
        match judge([reply, &none()], "mine", noted, "/m") {
            Ok(()) => None,
            Err(MirrorError::Marker { what, .. }) => Some(what),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_lawful_marker_is_between_what_was_written_and_what_may_have_been() {
        let at = |seq| {
            let source = "mine".to_string();
            found(
                &Marker {
                    source,
                    seq,
                    time: -5,
                }
                .to_string(),
            )
        };
        let noted = (Some(5), Some(9));
        for seq in 5..=9 {
            assert_eq!(trouble(&at(seq), noted), None);
        }
        let (found, written) = (4, 5);
        assert_eq!(
            trouble(&at(4), noted),
            Some(MarkerTrouble::Older { found, written })
        );
        let (found, written) = (10, 9);
        assert_eq!(
            trouble(&at(10), noted),
            Some(MarkerTrouble::Newer { found, written })
        );
        // A cut before the first one was known to be there.
        assert_eq!(trouble(&at(9), (None, Some(9))), None);
        assert_eq!(trouble(&none(), (None, Some(9))), None);
    }

    #[test]
    fn a_missing_one_is_missed_only_where_one_was_written() {
        assert_eq!(trouble(&none(), (None, None)), None);
        assert_eq!(
            trouble(&none(), (Some(1), Some(1))),
            Some(MarkerTrouble::Missing)
        );
        let garbage = found("proxyfs source=mine seq=many");
        assert_eq!(
            trouble(&garbage, (Some(1), Some(1))),
            Some(MarkerTrouble::Missing)
        );
    }

    #[test]
    fn where_a_rename_does_not_replace_the_one_that_was_to_come_counts() {
        let start = Instant::now();
        let marker = Marker {
            source: "mine".to_string(),
            seq: 5,
            time: 1,
        };
        let there = found(&marker.to_string());
        let noted = (Some(4), Some(5));
        assert!(judge([&none(), &there], "mine", noted, "/m").is_ok());
        assert!(judge([&none(), &none()], "mine", noted, "/m").is_err());
        let (place, mut renewal) = (Place::new(b"/m"), Renewal::new(None, start));
        let rules = Rules {
            posix_rename: false,
            ..Rules::default()
        };
        renewal.begin(&marker, &place, rules, start);
        let mut sent = Vec::new();
        // Neither is there to be removed.
        for reply in [none(), Reply::Ok, none()] {
            sent.push(renewal.take(&reply).unwrap());
        }
        let (from, to) = (place.new_position(), place.position());
        assert_eq!(sent[1], Request::Remove { path: to.clone() });
        assert_eq!(sent[2], Request::Rename { from, to });
        assert_eq!(renewal.take(&Reply::Ok), Err(Some(5)));
    }

    #[test]
    fn another_sources_is_foreign_whatever_is_noted() {
        let theirs = found("proxyfs source=theirs seq=7 time=1");
        let source = "theirs".to_string();
        let foreign = Some(MarkerTrouble::Foreign { source });
        assert_eq!(trouble(&theirs, (None, None)), foreign);
        assert_eq!(trouble(&theirs, (Some(7), Some(7))), foreign);
    }

    #[test]
    fn it_is_renewed_soon_when_all_is_done_and_seldom_while_it_is_not() {
        let start = Instant::now();
        let mut renewal = Renewal::new(None, start);
        assert!(renewal.is_due(0, true, start) && !renewal.is_due(5, false, start));
        let marker = Marker {
            source: "s".to_string(),
            seq: 5,
            time: 1,
        };
        let place = Place::new(b"/m");
        assert!(
            renewal
                .begin(&marker, &place, Rules::default(), start)
                .is_some()
        );
        assert!(renewal.take(&none()).is_ok() && renewal.take(&Reply::Ok).is_ok());
        assert_eq!(renewal.take(&Reply::Ok), Err(Some(5)));
        assert!(!renewal.is_due(5, true, start + BUSY), "nothing new");
        assert!(!renewal.is_due(6, true, start) && renewal.is_due(6, true, start + DRAINED));
        assert!(!renewal.is_due(6, false, start + DRAINED));
        assert!(renewal.is_due(6, false, start + BUSY));
    }

    #[test]
    fn a_server_without_symbolic_links_is_not_asked_again() {
        let start = Instant::now();
        let mut renewal = Renewal::new(None, start);
        let marker = Marker {
            source: "s".to_string(),
            seq: 5,
            time: 1,
        };
        renewal.begin(&marker, &Place::new(b"/m"), Rules::default(), start);
        assert!(renewal.take(&none()).is_ok());
        assert_eq!(renewal.take(&none()), Err(None));
        assert!(!renewal.is_due(9, true, start + BUSY));
    }
}
