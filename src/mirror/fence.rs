//! What an earlier connection has left behind on the mirror's host is shut out before a session changes anything.
//!
//! The danger: a connection is given up here, and over there its server is still alive. What the kernel here had not sent
//! is thrown away (`sftp/tcp.rs`); but what has arrived lies in buffers of sshd, in the pipe to sftp-server, or
//! in an sftp-server that is stopped, swapped out, or waits for a slow disk. It is carried out when that
//! goes on, which may be minutes later. By then the next session has sent the same changes again, noted them, and gone
//! on: a late `unlink a` deletes the new a, a late rename puts old bytes over new ones, and nobody looks again.
//! SFTP has no request that ends another connection's server.
//!
//! The answer: no session uses the mirror's directory by its own name. Each makes a symbolic link
//! `.proxyfs/way-<number>` to it, with a number that never comes again, and all its paths go through that. The next one
//! removes the link, and waits until that is done, before it looks at anything or changes it. From then on all that the
//! old server does by a path finds nothing at the link's name and changes nothing. What it has done before is what any
//! cut leaves: uncertain rows.
//!
//! What this must not break, and what does not:
//!
//! * *Absence is success* for many a change (R2), and when the link itself is gone everything looks absent. Somebody may
//!   tidy `.proxyfs` up, or a second daemon with a copy of this one's state may have shut us out. So where
//!   a server said "no such file", the link is looked at *behind* that answer, before anything is noted as done for its sake
//!   ([`Pipeline::see_way`]). Without it the session ends, and nothing is noted.
//! * *Handles.* What is open stays open: the old server may still write to a file that it had open. Of a file in
//!   the stage it writes the same bytes to the same places (`resume.rs`). Of a file that was being changed in place,
//!   the next session changes a copy, and puts that in its place: what the old server has open is no file of the
//!   mirror's any more; the same where a file whose upload was cut and has gone on is changed in place later in that session
//!   ([`Pipeline::is_haunted`]). Not if the file has several names, is larger than [`MOST_COPIED`], or the server lacks
//!   copy-data: then the late bytes are the same ones, unless the very same place was written again while the old server
//!   hung. A late byte that is the same still makes the file's time that of the write: `verify` tells, `sync` mends it.
//! * *One system call* may have gone through the link and wait for a lock when the link is removed. It holds or gets that lock
//!   before whatever the next session sends to the same directory.
//! * *A server that makes no symbolic links,* or does not follow them: its mirror has no fence, and `status` says so.
//!
//! What was left by a session that ended is one link; it goes at the start of the next.
//!
//! [`Pipeline::see_way`]: super::pipeline::Pipeline
//! [`Pipeline::is_haunted`]: super::pipeline::Pipeline

use super::plan::{Place, is_dir};
use super::prepare::answers;
use crate::sftp::{Remote, Reply, Request, SessionError, Ticket, code};
use std::hash::{BuildHasher, Hasher};

/// How the names of ways begin.
const WAY: &[u8] = b"way-";

/// A file up to this size, in bytes, is copied on the mirror rather than changed where an old server may still write: more
/// would keep what comes behind it waiting for too long.
pub(super) const MOST_COPIED: u64 = 256 << 20;

/// Whether a name in ProxyFS's own directory is that of a session's way.
pub(super) fn is_way(name: &[u8]) -> bool {
    name.starts_with(WAY)
}

/// Removes the ways of earlier sessions and makes one for this; waits until that is done. None: this server can't, or the
/// old ones could not be removed.
///
/// Nothing that goes by the new way may be sent before it is known to be there: else, if the connection breaks here, both
/// might be done late, one behind the other.
pub(super) fn enter<R: Remote>(
    remote: &mut R,
    place: &Place,
    old: &[Vec<u8>],
) -> Result<Option<Place>, SessionError> {
    let number = std::hash::RandomState::new().build_hasher().finish();
    let name = format!("way-{number:016x}");
    let inside = place.by(&name);
    let removals = old.iter().map(|name| Request::Remove {
        path: place.way(name),
    });
    let link = Request::Symlink {
        target: b"..".to_vec(),
        link: place.way(name.as_bytes()),
    };
    let looks = [inside.base(), inside.stage_dir()].map(|path| Request::Lstat { path });
    // To look changes nothing, and a server that works in order gets all of them at once.
    let mut replies = Vec::new();
    let mut asked: Vec<Ticket> = Vec::new();
    for step in [removals.chain([link]).collect(), looks.to_vec()] {
        asked.extend(step.into_iter().map(|request| remote.send(request)));
        if !remote.features().openssh {
            replies.extend(answers(remote, &std::mem::take(&mut asked))?);
        }
    }
    replies.extend(answers(remote, &asked)?);
    let mut replies = replies.into_iter();
    let gone = |reply: Reply| match reply {
        Reply::Ok => true,
        Reply::Status(why) => why.code == code::NO_SUCH_FILE,
        Reply::Handle(_) | Reply::Data(_) | Reply::Names(_) | Reply::Attrs(_) => false,
    };
    let shut = replies.by_ref().take(old.len()).map(gone);
    let shut = shut.fold(true, |all, one| all & one);
    let made = matches!(replies.next(), Some(Reply::Ok));
    let leads = replies.all(|reply| matches!(reply, Reply::Attrs(attrs) if is_dir(&attrs)));
    Ok((shut && made && leads).then_some(inside))
}
