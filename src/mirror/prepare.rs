//! Before the first change of a session: is the server able, and is the mirror's directory as it must be?
//!
//! The danger is an empty mount point on the mirror that is taken for the mirror (P8), or a first change
//! that fails with words that tell nothing. So the directory must be there (it is never made), ProxyFS
//! must be able to make its own directory in it, and one that is empty though the source was not is
//! not taken for a copy.

use super::errors::{BaseTrouble, MirrorError};
use super::fence;
use super::marker;
use super::pipeline::MARKS;
use super::plan::{PRIVATE_DIR, Place, Rules, Wish, is_dir};
use super::resume::{Kept, Staged};
use crate::change::Seq;
use crate::journal::Position;
use crate::sftp::{
    Attrs, Handle, Name, Remote, Reply, Request, SessionError, Status, Ticket, code,
};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How many READDIRs are on their way for one directory: a server answers with about a hundred names.
const READDIRS: usize = 4;

/// So much is read of the names in ProxyFS's own directories at most, in bytes (with what it takes to keep them):
/// an honest mirror has some thousands there, a hostile one no end of them.
const MOST_NAMES: usize = 16 << 20;

/// What the journal knows of a mirror.
pub struct Known<'a> {
    /// How far it is.
    pub position: &'a Position,
    /// Whose copy it is.
    pub source_id: &'a str,
    /// Of which change its marker is, at least and at most: see [`Journal::marker`].
    ///
    /// [`Journal::marker`]: crate::journal::Journal::marker
    pub marker: (Option<Seq>, Option<Seq>),
    /// All of it is about to be made like the source, as an administrator has asked: it need not be what it was.
    pub asked: bool,
}

/// What a session begins with.
#[derive(Debug)]
pub struct Prepared {
    /// Where things are there, by this session's way.
    pub place: Place,
    /// What the mirror gets.
    pub rules: Rules,
    /// What may go on where an earlier session was cut.
    pub kept: Kept,
    /// Nothing is known of what it holds.
    pub fresh: bool,
}

/// What [`prepare`] has to know first; none changes anything or needs another to be through, so they can be
/// on their way before the server has told what it is. Where an earlier session has been, one round trip
/// answers nearly all there is to ask.
pub fn questions(place: &Place) -> [Request; 7] {
    let (private, stage) = (place.private_dir(), place.stage_dir());
    let [mark, new_mark] = marker::questions(place);
    [
        Request::Stat { path: place.base() },
        mark,
        new_mark,
        Request::Lstat {
            path: private.clone(),
        },
        Request::Lstat {
            path: stage.clone(),
        },
        Request::Opendir { path: private },
        Request::Opendir { path: stage },
    ]
}

/// Checks the server and the mirror's directory, makes ProxyFS's own one and clears what an earlier
/// session left in it, but for what may go on. `wanted` are the rules that the settings ask for.
///
/// # Errors
/// The connection's; what a person has to put right there.
pub fn prepare<R: Remote>(
    remote: &mut R,
    place: &Place,
    known: &Known<'_>,
    wanted: Rules,
) -> Result<Prepared, MirrorError> {
    let tickets = questions(place).map(|question| remote.send(question));
    prepare_asked(remote, &tickets, place, known, wanted)
}

/// The same where the questions have been sent.
pub(super) fn prepare_asked<R: Remote>(
    remote: &mut R,
    asked: &[Ticket],
    place: &Place,
    known: &Known<'_>,
    wanted: Rules,
) -> Result<Prepared, MirrorError> {
    let position = known.position;
    // One that the log has dropped is made like the source by itself; one that was away may be another's by now.
    if position.lacks > 0 && position.away && !known.asked {
        return Err(MirrorError::Lacks {
            changes: position.lacks,
        });
    }
    let features = remote.features();
    let rules = Rules {
        lsetstat: wanted.lsetstat && features.lsetstat,
        posix_rename: wanted.posix_rename && features.posix_rename,
        hardlink: wanted.hardlink && features.hardlink,
        fsync: wanted.fsync.on(features.fsync),
        atomic: wanted.atomic.on(features.copy_data),
        ..wanted
    };
    let path = String::from_utf8_lossy(&place.base()).into_owned();
    let base = |what| MirrorError::Base {
        path: path.clone(),
        what,
    };

    let mut replies = answers(remote, asked)?.into_iter();
    // As many as were asked for.
    let [
        at_base,
        mark,
        new_mark,
        at_private,
        at_stage,
        in_private,
        in_stage,
    ] = std::array::from_fn(|_| replies.next().unwrap_or(Reply::Ok));
    if !position.adopted && !known.asked && is_empty(remote, place.base())? {
        return Err(MirrorError::NeedsSync { path });
    }
    let before = match at_base {
        Reply::Attrs(attrs) if is_dir(&attrs) => attrs,
        Reply::Status(status) if status.code == code::NO_SUCH_FILE => {
            return Err(base(BaseTrouble::Missing));
        }
        Reply::Status(status) => return Err(base(BaseTrouble::Other(status))),
        Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
            return Err(base(BaseTrouble::NotADirectory));
        }
    };
    let fresh = match marker::judge([&mark, &new_mark], known.source_id, known.marker, &path) {
        Err(MirrorError::Marker { what, .. }) if known.asked && what.needs_sync() => true,
        judged => judged.map(|()| !position.adopted || position.lacks > 0)?,
    };
    let not_writable = |refused| base(BaseTrouble::NotWritable(refused));
    if !is_directory(&at_private) {
        make(remote, place.private_dir())?.map_err(not_writable)?;
        // A copy that was just made by other means has the right time, and nothing else will set it. Where
        // the directory is not the user's it stays as it is.
        let attrs = Attrs {
            times: before.times,
            ..Attrs::default()
        };
        ask(
            remote,
            Request::Setstat {
                path: place.base(),
                attrs,
            },
        )?;
    }
    if !is_directory(&at_stage) {
        make(remote, place.stage_dir())?.map_err(not_writable)?;
    }
    let opened = [in_private, in_stage];
    let left = left_there(remote, known, rules, opened)?;
    let by_way = fence::enter(remote, place, &left.ways)?;
    let fenced = by_way.is_some();
    let place = by_way.unwrap_or_else(|| place.clone());
    // By the way, too, else a removal that comes late would hit what another session makes. And none of them may come
    // behind an upload of the same name.
    let removals = left.removals(&place).into_iter();
    let tickets: Vec<Ticket> = removals.map(|r| remote.send(r)).collect();
    answers(remote, &tickets)?;
    Ok(Prepared {
        place,
        rules: Rules { fenced, ..rules },
        kept: left.kept,
        fresh,
    })
}

fn is_directory(reply: &Reply) -> bool {
    matches!(reply, Reply::Attrs(attrs) if is_dir(attrs))
}

/// Makes one of ProxyFS's own directories, unless somebody was faster.
fn make<R: Remote>(remote: &mut R, path: Vec<u8>) -> Result<Result<(), Status>, SessionError> {
    let attrs = Attrs {
        mode: Some(0o700),
        ..Attrs::default()
    };
    let mkdir = Request::Mkdir {
        path: path.clone(),
        attrs,
    };
    if let Reply::Status(refused) = ask(remote, mkdir)? {
        let there = ask(remote, Request::Lstat { path })?;
        if !is_directory(&there) {
            return Ok(Err(refused));
        }
    }
    Ok(Ok(()))
}

/// What the mirror can't get, and what it gets instead, in words for `status`.
pub(super) fn unsupported(rules: &Rules) -> Vec<String> {
    let lacks = [
        (
            rules.lsetstat,
            "times and owners of symlinks (the server lacks lsetstat@openssh.com)",
        ),
        (
            rules.posix_rename,
            "replacing in one step (the server lacks posix-rename@openssh.com): a file that is replaced is missing for a \
             moment",
        ),
        (
            rules.hardlink,
            "hard links (the server lacks hardlink@openssh.com): each name is a file of its own, and gets what is written \
             by that name",
        ),
        (
            rules.fsync != Wish::InVain,
            "fsync (the server lacks fsync@openssh.com): files are seen before they are surely on the disk",
        ),
        (
            rules.atomic != Wish::InVain,
            "copies made there (the server lacks copy-data): with atomic_updates big files are sent whole",
        ),
        (
            rules.setstat || rules.fsetstat,
            "modes and times (the server denies setstat and fsetstat): files get their mode when they are sent",
        ),
        (
            rules.setstat || !rules.fsetstat,
            "modes and times of directories, and changes of those of files (the server denies setstat)",
        ),
        (
            rules.fenced,
            "shutting out what an earlier connection has left behind there (no symbolic link can be made and followed \
             in .proxyfs): after a cut a server that hangs may still carry out what it was sent before",
        ),
    ];
    let lacks = lacks.into_iter().filter(|(can, _)| !can);
    lacks.map(|(_, words)| words.to_string()).collect()
}

/// What earlier sessions have left in ProxyFS's own directory. What may go on stays, and the marks of exchanges until
/// those are done.
#[derive(Default)]
struct Left {
    /// What may go on.
    kept: Kept,
    /// Their ways.
    ways: Vec<Vec<u8>>,
    /// What was half ready.
    staged: Vec<Staged>,
    /// Exchanges that are done.
    exchanges: Vec<Seq>,
}

impl Left {
    /// How it goes.
    fn removals(&self, place: &Place) -> Vec<Request> {
        let staged = self.staged.iter().map(|staged| Request::Remove {
            path: place.staged(*staged),
        });
        let marks = self.exchanges.iter().flat_map(|seq| {
            let mark = place.exchange(*seq);
            let parts = MARKS.map(|part| [&mark[..], b"/", part.as_bytes()].concat());
            parts.into_iter().chain([mark])
        });
        let marks = marks.map(|path| Request::Rmdir { path });
        staged.chain(marks).collect()
    }
}

/// The same, given the answers to opening the two directories: one that could not be opened was just made.
fn left_there<R: Remote>(
    remote: &mut R,
    known: &Known<'_>,
    rules: Rules,
    opened: [Reply; 2],
) -> Result<Left, MirrorError> {
    let position = known.position;
    let [marks, staged] = list_all(remote, opened)?;
    let mut left = Left::default();
    for name in staged {
        // Only names that we give: whatever else is there is not ours.
        let Some(staged) = Staged::parse(&name.name) else {
            continue;
        };
        // Those that are to be on the disk are sent again: see `resume.rs`.
        let is_big =
            rules.fsync == Wish::No && name.attrs.size.is_none_or(|size| size >= rules.span.from);
        match staged.version {
            Some(version) if staged.seq > position.cursor && is_big => {
                left.kept.add(staged.seq, version);
            }
            Some(_) | None => left.staged.push(staged),
        }
    }
    for Name { name, .. } in marks {
        if fence::is_way(&name) {
            left.ways.push(name);
            continue;
        }
        let seq = name.strip_prefix(b"exchange-").and_then(number);
        // An exchange that is parked may have stopped half-way.
        let parked = position.first_parked.unwrap_or(Seq::MAX);
        let done = seq.filter(|seq| *seq <= position.cursor && *seq < parked);
        left.exchanges.extend(done);
    }
    Ok(left)
}

fn number(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// Whether a directory can be listed and holds nothing but ProxyFS's own one.
fn is_empty<R: Remote>(remote: &mut R, path: Vec<u8>) -> Result<bool, SessionError> {
    let Reply::Handle(handle) = ask(remote, Request::Opendir { path })? else {
        return Ok(false);
    };
    // The first name decides: there may be a million.
    let mut empty = true;
    while empty {
        let handle = handle.clone();
        let names = match ask(remote, Request::Readdir { handle })? {
            Reply::Names(names) if !names.is_empty() => names,
            Reply::Ok
            | Reply::Status(_)
            | Reply::Handle(_)
            | Reply::Data(_)
            | Reply::Names(_)
            | Reply::Attrs(_) => break,
        };
        empty = names.iter().all(|n| is_ours(&n.name));
    }
    remote.send(Request::Close { handle }); // nobody waits for that
    Ok(empty)
}

/// Whether it is `.`, `..` or ProxyFS's own directory.
fn is_ours(name: &[u8]) -> bool {
    matches!(name, b"." | b"..") || name == PRIVATE_DIR.as_bytes()
}

/// The entries of directories that were asked to be opened, side by side; none where that was refused. Nothing else
/// is under way.
pub(super) fn list_all<R: Remote, const N: usize>(
    remote: &mut R,
    opened: [Reply; N],
) -> Result<[Vec<Name>; N], SessionError> {
    let mut lists = [const { Vec::new() }; N];
    let mut open: Vec<(usize, Handle)> = Vec::new();
    for (i, reply) in opened.into_iter().enumerate() {
        if let Reply::Handle(handle) = reply {
            open.push((i, handle));
        }
    }
    let mut read = 0;
    while !open.is_empty() {
        if read > MOST_NAMES {
            let what = format!("its list of what is in {PRIVATE_DIR} has no end");
            return Err(SessionError::Protocol(what));
        }
        let mut asked = Vec::new();
        for (i, handle) in &open {
            for _ in 0..READDIRS {
                let handle = handle.clone();
                asked.push((*i, remote.send(Request::Readdir { handle })));
            }
        }
        let tickets: Vec<Ticket> = asked.iter().map(|a| a.1).collect();
        let mut at_end = [false; N];
        for ((i, _), reply) in asked.iter().zip(answers(remote, &tickets)?) {
            match reply {
                Reply::Names(names) if !names.is_empty() => {
                    read += names.iter().map(|n| n.name.len() + 64).sum::<usize>();
                    lists[*i].extend(names);
                }
                Reply::Ok
                | Reply::Status(_)
                | Reply::Handle(_)
                | Reply::Data(_)
                | Reply::Names(_)
                | Reply::Attrs(_) => at_end[*i] = true,
            }
        }
        for (_, handle) in open.extract_if(.., |(i, _)| at_end[*i]) {
            remote.send(Request::Close { handle }); // nobody waits for that
        }
    }
    Ok(lists)
}

/// Sends one request and waits for its reply; nothing else is under way here.
pub(super) fn ask<R: Remote>(remote: &mut R, request: Request) -> Result<Reply, SessionError> {
    let ticket = remote.send(request);
    Ok(answers(remote, &[ticket])?.pop().unwrap_or(Reply::Ok))
}

/// Waits for the replies to these, and gives them in this order.
pub(super) fn answers<R: Remote>(
    remote: &mut R,
    asked: &[Ticket],
) -> Result<Vec<Reply>, SessionError> {
    let mut missing: HashSet<Ticket> = asked.iter().copied().collect();
    let mut found: HashMap<Ticket, Reply> = HashMap::new();
    while !missing.is_empty() {
        remote.pump(Duration::from_secs(1), None)?;
        while let Some((ticket, reply)) = remote.reply() {
            if missing.remove(&ticket) {
                found.insert(ticket, reply);
            }
        }
    }
    Ok(asked.iter().filter_map(|t| found.remove(t)).collect())
}
