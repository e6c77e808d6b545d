//! How many files may be on their way at once: on a long line that is the speed of a new mirror with small files.
//!
//! The danger is to ask for more than there is: of the server's handles (an OPEN too many is refused, and that looks
//! like a file that the mirror does not take), of descriptors and of memory here. A lane has a server process of its
//! own, with handles of its own; what else has some there (directories that are read, files that are read back,
//! those that an earlier slice has left half sent) is left room.

use super::super::upload::Upload;
use super::FILES;
use crate::sftp::Remote;
use crate::sftp::lanes::MOST_LANES;

/// Files that are open on a lane at most, whatever the server would let.
const MOST: u64 = 1024;

/// Where the server does not tell.
const UNKNOWN: u64 = 512;

/// Handles that are left to others than uploads and directories, on each lane.
const SPARE: u64 = 96;

/// Bytes that were read and not yet sent.
const READ_AHEAD: usize = 8 << 20;

/// What a file costs beside its bytes, in bytes: names, handles, replies.
const FILE_COST: u64 = 256;

/// More than that of one file does not keep others from its lane.
const LARGE: u64 = 256 << 10;

/// More is not lined up for a lane: what comes goes to one that is yet to open.
const LINED_UP: u64 = 3 << 20;

/// What the files need that are on their way.
#[derive(Default)]
pub(super) struct Burden {
    /// Of each lane: handles there, and bytes that are still to be sent.
    lanes: [(u64, u64); MOST_LANES],
    /// Files that are open here.
    open: usize,
    /// Bytes that were read.
    bytes: usize,
}

impl Burden {
    pub fn add<R: Remote>(&mut self, upload: &Upload, remote: &R) {
        self.open += usize::from(upload.holds_file());
        self.bytes += upload.holds_bytes();
        // A server that takes one request after another closes the old file before it opens the next.
        if upload.is_closing() && remote.features().openssh {
            return;
        }
        let (all, sent) = upload.progress();
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            let own = n == upload.lane();
            lane.0 += u64::from(own || upload.is_wide());
            if own {
                lane.1 += FILE_COST + all.saturating_sub(sent).min(LARGE);
            }
        }
    }

    /// The lane that has least to do, if one more file may be begun; `directories` may be read at the same time.
    pub fn roomiest<R: Remote>(&self, remote: &R, directories: usize) -> Option<usize> {
        if self.open >= FILES || self.bytes >= READ_AHEAD {
            return None;
        }
        let features = remote.features();
        let most = match features.max_handles {
            None => UNKNOWN,
            Some(all) if features.openssh => all.saturating_sub(SPARE + directories as u64),
            Some(_) => 0,
        };
        let half = features.max_handles.map_or(0, |all| all / 2);
        let most = most.max(half).clamp(1, MOST);
        let load = |n: &usize| self.lanes[*n].1 + remote.unacknowledged_on(*n) as u64;
        (0..remote.lanes())
            .filter(|n| self.lanes[*n].0 < most && load(n) < LINED_UP)
            .min_by_key(load)
    }
}
