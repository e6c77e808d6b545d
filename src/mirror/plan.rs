//! One change as requests to the mirror, and what their replies mean (R2).
//!
//! The danger is a change that is carried out twice, since its first reply was lost, or whose later
//! fellows have already happened. Every arm of [`judge`] says when "already done" counts as success.
//! It may say so more freely for an *uncertain* row (one that may have been sent before the connection
//! broke): what stands in its way then is what later rows did, and those are replayed after it.
//!
//! SFTP v3 says FAILURE for most things. What it means is learned by looking: [`judge`] asks for the
//! attributes of the change's paths ([`Verdict::Look`]) where it can't tell. Uncertain rows bring the
//! look with them, so that a window of them costs no round trip each.

pub use super::place::{PRIVATE_DIR, Place};
use super::resume::{Span, Staged};
use super::source::sftp_time;
use crate::change::{Change, Owner, Times};
use crate::fault;
use crate::sftp::{Attrs, Reply, Request, Status, code};

/// Type bits of a mode (stat(2)).
pub const S_IFMT: u32 = 0o170_000;
/// Those of a directory.
const S_IFDIR: u32 = 0o040_000;

/// What this mirror gets, and what its server can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether owners are set (`preserve_owner`).
    pub owner: bool,
    /// Whether a symlink's own attributes can be set.
    pub lsetstat: bool,
    /// How uploads that were cut go on.
    pub span: Span,
    /// Whether a rename may replace what stands at the new name.
    pub posix_rename: bool,
    /// Whether a file can have several names.
    pub hardlink: bool,
    /// Whether files are on the disk there before they are seen.
    pub fsync: Wish,
    /// Whether files of which parts changed are replaced in one step.
    pub atomic: Wish,
    /// Whether changes may pass a file that is being sent and has nothing to do with them.
    pub relaxed: bool,
    /// Whether attributes can be set by path, and so those of directories.
    pub setstat: bool,
    /// Whether they can be set by handle.
    pub fsetstat: bool,
    /// Whether the session has a way in of its own: see `fence.rs`.
    pub fenced: bool,
}

/// Something that the settings may ask for, and the server may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Not asked for.
    No,
    /// Asked for, and done.
    Yes,
    /// Asked for in vain.
    InVain,
}

impl Wish {
    /// What a setting asks for.
    pub fn of(asked: bool) -> Wish {
        if asked { Wish::Yes } else { Wish::No }
    }

    /// What becomes of it on a server that can do it, or can't.
    pub fn on(self, can: bool) -> Wish {
        match self {
            Wish::Yes if !can => Wish::InVain,
            Wish::No | Wish::Yes | Wish::InVain => self,
        }
    }
}

impl Default for Rules {
    /// Those of a mirror whose server can do what OpenSSH's can, with the settings as they are by default.
    fn default() -> Rules {
        Rules {
            owner: false,
            lsetstat: true,
            span: Span::default(),
            posix_rename: true,
            hardlink: true,
            fsync: Wish::No,
            atomic: Wish::No,
            relaxed: false,
            setstat: true,
            fsetstat: true,
            fenced: true,
        }
    }
}

/// What has to be ready, out of sight, before a change can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// Nothing.
    None,
    /// The file's bytes and attributes.
    File,
    /// A symlink.
    Symlink,
}

/// How a change becomes visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// These requests, sent together. None at all: there is nothing that a mirror could be told.
    Requests(Vec<Request>),
    /// The file's bytes are written into it where it stands (a file with several names).
    InPlace,
    /// Step by step, with a mark of how far it is.
    Exchange,
    /// Step by step: a file of its own that is made of the other one's bytes.
    Copy,
}

/// What the replies mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// Look at the change's paths (LSTAT) and ask again.
    Look,
    /// It is not done.
    Failed(Status),
    /// The move was accepted and has moved nothing, since both names are the same file's (rename(2)): the old
    /// one has yet to go.
    SameFile,
}

/// What has to be staged for a change.
pub fn staging(change: &Change) -> Staging {
    match change {
        Change::Content { linked: false, .. } => Staging::File,
        Change::Symlink { .. } => Staging::Symlink,
        Change::Content { linked: true, .. }
        | Change::Mkdir { .. }
        | Change::Rmdir { .. }
        | Change::Unlink { .. }
        | Change::Link { .. }
        | Change::Rename { .. }
        | Change::Exchange { .. }
        | Change::Attr { .. }
        | Change::Repair { .. } => Staging::None,
    }
}

/// How a change becomes visible, for which `staged` was made ready.
pub fn publish(change: &Change, staged: Staged, place: &Place, rules: Rules) -> Publish {
    let requests = match change {
        Change::Mkdir { path, mode, owner } => {
            let path = place.path(path);
            let attrs = Attrs {
                mode: Some(*mode),
                ..Attrs::default()
            };
            // The server's umask is not ours, and setgid is not MKDIR's: the mode is set again.
            let mut all = vec![Request::Mkdir {
                path: path.clone(),
                attrs,
            }];
            if rules.setstat {
                all.extend(set(
                    path,
                    attributes(Some(*mode), Some(*owner), None, rules),
                    false,
                ));
            }
            all
        }
        Change::Rmdir { path } => vec![Request::Rmdir {
            path: place.path(path),
        }],
        Change::Unlink { path } => vec![Request::Remove {
            path: place.path(path),
        }],
        Change::Symlink { path, .. }
        | Change::Content {
            path,
            linked: false,
            ..
        } => replace(place.staged(staged), place.path(path), rules),
        Change::Content { linked: true, .. } => return Publish::InPlace,
        Change::Link { .. } if !rules.hardlink => return Publish::Copy,
        Change::Link { from, path } => {
            vec![Request::Hardlink {
                from: place.path(from),
                to: place.path(path),
            }]
        }
        Change::Rename { from, to } => {
            vec![rename(place.path(from), place.path(to), rules)]
        }
        Change::Exchange { .. } => return Publish::Exchange,
        Change::Attr { symlink: true, .. } if !rules.lsetstat => Vec::new(),
        Change::Attr { symlink: false, .. } if !rules.setstat => Vec::new(),
        Change::Attr {
            path,
            symlink,
            mode,
            owner,
            times,
        } => {
            // A symlink has no mode of its own.
            let mode = mode.filter(|_| !symlink);
            set(
                place.path(path),
                attributes(mode, *owner, *times, rules),
                *symlink,
            )
        }
        // Nothing: what it is about becomes a scar when its turn comes.
        Change::Repair { .. } => Vec::new(),
    };
    Publish::Requests(requests)
}

/// A rename, which replaces what stands at the new name where the server can do that.
pub fn rename(from: Vec<u8>, to: Vec<u8>, rules: Rules) -> Request {
    if rules.posix_rename {
        Request::PosixRename { from, to }
    } else {
        Request::Rename { from, to }
    }
}

/// What is sent to put what was made ready at its place. A server without posix-rename replaces nothing: there
/// what stands there is removed first. For that moment, and where the connection breaks in between until
/// the next one, nothing is there. Not for what a pivot moves: done twice, this would remove what it moved.
pub fn replace(from: Vec<u8>, to: Vec<u8>, rules: Rules) -> Vec<Request> {
    let mut all = Vec::new();
    if !rules.posix_rename {
        all.push(Request::Remove { path: to.clone() });
    }
    all.push(rename(from, to, rules));
    all
}

/// The one reply that counts of those to [`replace`].
pub fn replaced(replies: &[Reply]) -> &[Reply] {
    match replies {
        // That nothing was to be removed is no failure; why something was not, is the reason for the other one.
        [Reply::Status(why), Reply::Status(_)] if why.code != code::NO_SUCH_FILE => &replies[..1],
        [_, _] => &replies[1..],
        _ => replies,
    }
}

/// What is sent to make a symlink ready.
pub fn stage_symlink(
    target: &[u8],
    owner: Owner,
    times: Times,
    stage: Vec<u8>,
    rules: Rules,
) -> Vec<Request> {
    let mut all = vec![Request::Symlink {
        target: target.to_vec(),
        link: stage.clone(),
    }];
    if rules.lsetstat {
        all.extend(set(
            stage,
            attributes(None, Some(owner), Some(times), rules),
            true,
        ));
    }
    all
}

/// Attributes in the order in which they have to be set: the owner first, since chown clears suid
/// bits and OpenSSH would do it last; then mode and times.
pub fn attributes(
    mode: Option<u32>,
    owner: Option<Owner>,
    times: Option<Times>,
    rules: Rules,
) -> Vec<Attrs> {
    let mut all = Vec::new();
    if let Some(owner) = owner.filter(|_| rules.owner) {
        all.push(Attrs {
            owner: Some((owner.uid, owner.gid)),
            ..Attrs::default()
        });
    }
    if mode.is_some() || times.is_some() {
        let times = times.map(|t| (sftp_time(t.atime.seconds), sftp_time(t.mtime.seconds)));
        all.push(Attrs {
            mode: mode.map(|m| m & 0o7777),
            times,
            ..Attrs::default()
        });
    }
    all
}

/// Sets attributes in their order.
pub fn set(path: Vec<u8>, all: Vec<Attrs>, symlink: bool) -> Vec<Request> {
    all.into_iter()
        .map(|attrs| {
            let path = path.clone();
            if symlink {
                Request::Lsetstat { path, attrs }
            } else {
                Request::Setstat { path, attrs }
            }
        })
        .collect()
}

/// The looks that tell what stands at a change's paths, in the order of [`Change::paths`].
pub fn looks(change: &Change, place: &Place) -> Vec<Request> {
    change
        .paths()
        .map(|p| Request::Lstat {
            path: place.path(p),
        })
        .collect()
}

/// What looks found: none for a path with nothing there.
///
/// # Errors
/// The status of a look that could not tell.
pub fn seen(looks: &[Reply]) -> Result<Vec<Option<Attrs>>, Status> {
    looks
        .iter()
        .map(|reply| match reply {
            Reply::Attrs(attrs) => Ok(Some(*attrs)),
            Reply::Status(status) if status.code == code::NO_SUCH_FILE => Ok(None),
            Reply::Status(status) => Err(status.clone()),
            Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) => Ok(None),
        })
        .collect()
}

/// Whether these are a directory's attributes.
pub fn is_dir(attrs: &Attrs) -> bool {
    attrs.mode.is_some_and(|m| m & S_IFMT == S_IFDIR)
}

/// What the replies to a change's [`Publish::Requests`] mean. `seen` is what stands at its paths, when
/// that has been looked at.
pub fn judge(
    change: &Change,
    uncertain: bool,
    replies: &[Reply],
    seen: Option<&[Option<Attrs>]>,
) -> Verdict {
    let uncertain = uncertain && fault::keeps("R2");
    let Some((at, why)) = replies
        .iter()
        .enumerate()
        .find_map(|(i, r)| Some((i, failure(r)?)))
    else {
        let stays = seen.is_some_and(|seen| seen.first().is_some_and(Option::is_some));
        return match change {
            Change::Rename { .. } if stays => Verdict::SameFile,
            Change::Rename { .. }
            | Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Exchange { .. }
            | Change::Content { .. }
            | Change::Attr { .. }
            | Change::Repair { .. } => Verdict::Done,
        };
    };
    let missing = why.code == code::NO_SUCH_FILE;
    let Some(seen) = seen else {
        // Where the answer is plain, no look is needed.
        return match change {
            Change::Unlink { .. } | Change::Rmdir { .. } | Change::Attr { .. } if missing => {
                Verdict::Done
            }
            Change::Attr { .. } | Change::Repair { .. } => Verdict::Failed(why.clone()),
            _ if why.code == code::PERMISSION_DENIED => Verdict::Failed(why.clone()),
            Change::Mkdir { .. }
            | Change::Rmdir { .. }
            | Change::Unlink { .. }
            | Change::Symlink { .. }
            | Change::Link { .. }
            | Change::Rename { .. }
            | Change::Exchange { .. }
            | Change::Content { .. } => Verdict::Look,
        };
    };
    let here = seen.first().copied().flatten();
    // What may not be done was not done, whatever it looks like. (Some systems say so of the removal
    // of a directory as if it were a file.)
    let directory_by_now = uncertain
        && matches!(change, Change::Unlink { .. })
        && here.is_some_and(|attrs| is_dir(&attrs));
    if why.code == code::PERMISSION_DENIED && !directory_by_now {
        return Verdict::Failed(why.clone());
    }
    let done = match change {
        // It is there; or something else is, or its parent is gone, since later rows replaced it.
        Change::Mkdir { .. } => match here {
            Some(attrs) if is_dir(&attrs) => at == 0 && replies.iter().skip(1).all(is_ok),
            Some(_) | None => uncertain,
        },
        // Gone; or replaced by a file, or made again and filled, by later rows.
        Change::Rmdir { .. } => {
            here.is_none_or(|attrs| uncertain && (!is_dir(&attrs) || why.code == code::FAILURE))
        }
        // Gone; or a directory by now.
        Change::Unlink { .. } => here.is_none_or(|attrs| uncertain && is_dir(&attrs)),
        // A directory stands there by now, or the parent is gone.
        Change::Symlink { .. } | Change::Content { .. } => {
            uncertain && (missing || here.is_some_and(|attrs| is_dir(&attrs)))
        }
        // `from` was never there: its content was gone before it could be sent, and so is the link.
        // Or the link was made, and its reply was lost: J4 keeps everything else from its paths.
        Change::Link { .. } => {
            uncertain && (here.is_none() || seen.get(1).is_some_and(|s| s.is_some()))
        }
        // `from` is gone: it was moved, and the reply was lost (J4), or it was never there, as above.
        Change::Rename { .. } | Change::Exchange { .. } => uncertain && here.is_none(),
        Change::Attr { .. } => here.is_none(),
        Change::Repair { .. } => false,
    };
    if done {
        Verdict::Done
    } else {
        Verdict::Failed(why.clone())
    }
}

fn failure(reply: &Reply) -> Option<&Status> {
    match reply {
        Reply::Status(status) => Some(status),
        Reply::Ok | Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => None,
    }
}

fn is_ok(reply: &Reply) -> bool {
    failure(reply).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Extent, NodeId, RelPath};

    fn path(s: &str) -> RelPath {
        RelPath::new(s.as_bytes()).unwrap()
    }

    fn status(code: u32) -> Reply {
        Reply::Status(Status {
            code,
            message: String::new(),
        })
    }

    const FILE: Option<Attrs> = Some(Attrs {
        size: None,
        owner: None,
        mode: Some(0o100_644),
        times: None,
    });
    const DIR: Option<Attrs> = Some(Attrs {
        size: None,
        owner: None,
        mode: Some(0o040_755),
        times: None,
    });

    fn mkdir() -> Change {
        Change::Mkdir {
            path: path("d"),
            mode: 0o2755,
            owner: Owner { uid: 1, gid: 2 },
        }
    }

    #[test]
    fn the_owner_is_set_before_the_mode_since_chown_clears_suid() {
        let rules = Rules {
            owner: true,
            ..Rules::default()
        };
        let staged = Staged {
            seq: 1,
            version: None,
        };
        let Publish::Requests(all) = publish(&mkdir(), staged, &Place::new(b"/m"), rules) else {
            panic!("no requests");
        };
        let told: Vec<(bool, Option<u32>)> = all[1..]
            .iter()
            .map(|r| match r {
                Request::Setstat { attrs, .. } => (attrs.owner.is_some(), attrs.mode),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [(true, None), (false, Some(0o2755))]);
    }

    #[test]
    fn a_directory_that_is_there_already_is_made() {
        let replies = [status(code::FAILURE), Reply::Ok];
        assert_eq!(judge(&mkdir(), false, &replies, None), Verdict::Look);
        assert_eq!(
            judge(&mkdir(), false, &replies, Some(&[DIR])),
            Verdict::Done
        );
        let stuck = [status(code::FAILURE), status(code::PERMISSION_DENIED)];
        assert!(matches!(
            judge(&mkdir(), false, &stuck, Some(&[DIR])),
            Verdict::Failed(_)
        ));
    }

    #[test]
    fn a_file_in_the_way_of_a_directory_counts_only_if_a_later_row_may_have_put_it_there() {
        let replies = [status(code::FAILURE), Reply::Ok];
        assert_eq!(
            judge(&mkdir(), true, &replies, Some(&[FILE])),
            Verdict::Done
        );
        assert!(matches!(
            judge(&mkdir(), false, &replies, Some(&[FILE])),
            Verdict::Failed(_)
        ));
    }

    #[test]
    fn what_is_gone_already_is_removed() {
        for change in [
            Change::Unlink { path: path("a") },
            Change::Rmdir { path: path("a") },
        ] {
            let replies = [status(code::NO_SUCH_FILE)];
            assert_eq!(judge(&change, false, &replies, None), Verdict::Done);
        }
    }

    #[test]
    fn a_directory_with_foreign_files_is_not_taken_for_removed() {
        let change = Change::Rmdir { path: path("a") };
        let replies = [status(code::FAILURE)];
        assert_eq!(judge(&change, false, &replies, None), Verdict::Look);
        assert!(matches!(
            judge(&change, false, &replies, Some(&[DIR])),
            Verdict::Failed(_)
        ));
        assert_eq!(judge(&change, true, &replies, Some(&[DIR])), Verdict::Done);
    }

    #[test]
    fn a_rename_is_done_when_its_old_name_is_gone_and_only_then() {
        let change = Change::Rename {
            from: path("a"),
            to: path("b"),
        };
        let replies = [status(code::NO_SUCH_FILE)];
        assert_eq!(
            judge(&change, true, &replies, Some(&[None, FILE])),
            Verdict::Done
        );
        for uncertain in [true, false] {
            let verdict = judge(&change, uncertain, &replies, Some(&[FILE, None]));
            assert!(matches!(verdict, Verdict::Failed(_)));
        }
    }

    #[test]
    fn a_move_that_leaves_its_old_name_is_not_done() {
        let change = Change::Rename {
            from: path("a"),
            to: path("b"),
        };
        let verdict = |seen| judge(&change, false, &[Reply::Ok], Some(seen));
        assert_eq!(verdict(&[None, FILE]), Verdict::Done);
        assert_eq!(verdict(&[FILE, FILE]), Verdict::SameFile);
    }

    #[test]
    fn denied_is_never_done() {
        let content = Change::Content {
            path: path("a"),
            node: NodeId([0; 8].into()),
            extent: Extent::Whole,
            size: 1,
            linked: false,
        };
        for change in [mkdir(), Change::Unlink { path: path("a") }, content] {
            let replies = [status(code::PERMISSION_DENIED)];
            let verdict = judge(&change, true, &replies, None);
            assert!(matches!(verdict, Verdict::Failed(_)), "{change}");
        }
    }
}
