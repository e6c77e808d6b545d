//! Before the first change of a session: is the server able, and is the mirror's directory as it must be?
//!
//! The danger is an empty mount point on the mirror that is taken for the mirror (P8), or a first change
//! that fails with words that tell nothing. So the directory must be there (it is never made), ProxyFS
//! must be able to make its own directory in it, and one that is empty though the source was not is
//! not taken for a copy.

use super::errors::{BaseTrouble, MirrorError};
use super::pipeline::MARKS;
use super::plan::{PRIVATE_DIR, Place, Rules, is_dir};
use crate::journal::Position;
use crate::sftp::{Attrs, Handle, Name, Remote, Reply, Request, SessionError, Status, code};
use std::time::Duration;

/// Checks the server and the mirror's directory, makes ProxyFS's own one and clears what an earlier
/// session left in it.
///
/// # Errors
/// The connection's; what a person has to put right there.
pub fn prepare<R: Remote>(
    remote: &mut R,
    place: &Place,
    position: &Position,
    preserve_owner: bool,
) -> Result<Rules, MirrorError> {
    if position.lacks > 0 {
        return Err(MirrorError::Lacks {
            changes: position.lacks,
        });
    }
    let features = remote.features();
    if !features.posix_rename {
        return Err(MirrorError::Server("posix-rename@openssh.com"));
    }
    if !features.hardlink {
        return Err(MirrorError::Server("hardlink@openssh.com"));
    }
    let rules = Rules {
        owner: preserve_owner,
        lsetstat: features.lsetstat,
    };
    let path = String::from_utf8_lossy(&place.base()).into_owned();
    let base = |what| MirrorError::Base {
        path: path.clone(),
        what,
    };

    match ask(remote, Request::Stat { path: place.base() })? {
        Reply::Attrs(attrs) if is_dir(&attrs) => {}
        Reply::Status(status) if status.code == code::NO_SUCH_FILE => {
            return Err(base(BaseTrouble::Missing));
        }
        Reply::Status(status) => return Err(base(BaseTrouble::Other(status))),
        Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => {
            return Err(base(BaseTrouble::NotADirectory));
        }
    }
    if !position.adopted && list(remote, place.base())?.is_some_and(|names| names.is_empty()) {
        return Err(MirrorError::NeedsSync { path });
    }
    let private = Attrs {
        mode: Some(0o700),
        ..Attrs::default()
    };
    for dir in [place.private_dir(), place.stage_dir()] {
        let made = ask(
            remote,
            Request::Mkdir {
                path: dir.clone(),
                attrs: private,
            },
        )?;
        if let Reply::Status(refused) = made {
            let there = ask(remote, Request::Lstat { path: dir })?;
            if !matches!(there, Reply::Attrs(attrs) if is_dir(&attrs)) {
                return Err(base(BaseTrouble::NotWritable(refused)));
            }
        }
    }
    clear_stage(remote, place, position)?;
    Ok(rules)
}

/// What the mirror can't get, in words for `status`.
pub(super) fn unsupported(rules: &Rules) -> Vec<String> {
    let mut all = Vec::new();
    if !rules.lsetstat {
        all.push(
            "times and owners of symlinks (the server lacks lsetstat@openssh.com)".to_string(),
        );
    }
    all
}

/// Removes what an earlier session left half ready. The marks of exchanges stay until those are done.
fn clear_stage<R: Remote>(
    remote: &mut R,
    place: &Place,
    position: &Position,
) -> Result<(), MirrorError> {
    let staged = list(remote, place.stage_dir())?.unwrap_or_default();
    let mut requests = Vec::new();
    for name in staged {
        // Only names that we give: whatever else is there is not ours.
        if let Some(seq) = number(&name) {
            requests.push(Request::Remove {
                path: place.stage(seq),
            });
        }
    }
    for name in list(remote, place.private_dir())?.unwrap_or_default() {
        let seq = name.strip_prefix(b"exchange-").and_then(number);
        if let Some(seq) = seq.filter(|seq| *seq <= position.cursor) {
            let mark = place.exchange(seq);
            let parts = MARKS.map(|part| [&mark[..], b"/", part.as_bytes()].concat());
            requests.extend(parts.map(|path| Request::Rmdir { path }));
            requests.push(Request::Rmdir { path: mark });
        }
    }
    let mut missing = requests.len();
    for request in requests {
        remote.send(request);
    }
    while missing > 0 {
        remote.pump(Duration::from_secs(1), None)?;
        while remote.reply().is_some() {
            missing -= 1;
        }
    }
    Ok(())
}

fn number(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// The names in a directory, without `.`, `..` and ProxyFS's own; none if it can't be listed.
fn list<R: Remote>(remote: &mut R, path: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, SessionError> {
    let Reply::Handle(handle) = ask(remote, Request::Opendir { path })? else {
        return Ok(None);
    };
    let mut names = Vec::new();
    while let Some(more) = read_names(remote, &handle)? {
        names.extend(more.into_iter().map(|n| n.name));
    }
    ask(remote, Request::Close { handle })?;
    names.retain(|n| !matches!(&n[..], b"." | b"..") && n != PRIVATE_DIR.as_bytes());
    Ok(Some(names))
}

fn read_names<R: Remote>(
    remote: &mut R,
    handle: &Handle,
) -> Result<Option<Vec<Name>>, SessionError> {
    match ask(
        remote,
        Request::Readdir {
            handle: handle.clone(),
        },
    )? {
        Reply::Names(names) => Ok(Some(names).filter(|n| !n.is_empty())),
        Reply::Ok
        | Reply::Status(Status { .. })
        | Reply::Handle(_)
        | Reply::Data(_)
        | Reply::Attrs(_) => Ok(None),
    }
}

/// Sends one request and waits for its reply; nothing else is under way here.
fn ask<R: Remote>(remote: &mut R, request: Request) -> Result<Reply, SessionError> {
    let asked = remote.send(request);
    loop {
        remote.pump(Duration::from_secs(1), None)?;
        while let Some((ticket, reply)) = remote.reply() {
            if ticket == asked {
                return Ok(reply);
            }
        }
    }
}
