//! What an upload reads here: the file, its attributes, and whether it is still what it was.

use super::super::plan::{Rules, attributes};
use super::super::source::{Source, mtime_of};
use super::CHUNK;
use crate::change::{NodeId, Owner, Times, Timestamp};
use crate::sftp::Attrs;
use rustix::fs::{Stat, fstat};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a file was like when it was opened here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub mtime: Timestamp,
}

/// Opens a file that has a name. One that has none, and is only kept open by somebody, never has one again: on
/// a mirror it is gone.
pub(super) fn open(source: &Source, node: &NodeId) -> io::Result<Option<(File, Stat)>> {
    let Some(file) = source.open(node)? else {
        return Ok(None);
    };
    let stat = fstat(&file)?;
    Ok((stat.st_nlink > 0).then_some((file, stat)))
}

/// How long a file is, and how much it takes on the disk, in bytes; none for one that is gone.
///
/// # Errors
/// The file can't be looked at here.
pub(in crate::mirror) fn extent_now(
    source: &Source,
    node: &NodeId,
) -> io::Result<Option<(u64, u64)>> {
    let found = open(source, node)?;
    Ok(found.map(|(_, stat)| (stat.st_size as u64, allocated(&stat))))
}

/// What a file takes on the disk.
pub(super) fn allocated(stat: &Stat) -> u64 {
    stat.st_blocks as u64 * 512
}

/// The attributes that a file has now, as they are to be set; none for one that is gone.
///
/// # Errors
/// The file can't be looked at here.
pub(in crate::mirror) fn attributes_now(
    source: &Source,
    node: &NodeId,
    rules: Rules,
) -> io::Result<Vec<Attrs>> {
    let found = open(source, node)?;
    Ok(found.map_or(Vec::new(), |(_, stat)| attributes_in(&stat, rules)))
}

pub(super) fn attributes_in(stat: &Stat, rules: Rules) -> Vec<Attrs> {
    let owner = Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    };
    let atime = Timestamp {
        seconds: stat.st_atime,
        nanoseconds: stat.st_atime_nsec as u32,
    };
    let mtime = mtime_of(stat);
    let times = Some(Times { atime, mtime });
    attributes(Some(stat.st_mode & 0o7777), Some(owner), times, rules)
}

/// Whether a file has several names.
pub(super) fn has_links(stat: &Stat) -> bool {
    stat.st_nlink > 1
}

pub(super) fn stamp_of(file: &File) -> io::Result<Stamp> {
    let stat = fstat(file)?;
    Ok(Stamp {
        size: stat.st_size as u64,
        mtime: mtime_of(&stat),
    })
}

/// All of a file that fits one WRITE, if it has not become shorter. Whether it changed otherwise, the caller
/// looks when it knows that nobody writes.
pub(super) fn small_file(file: &File, stamp: Stamp) -> io::Result<Option<Vec<u8>>> {
    if stamp.size > CHUNK as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; stamp.size as usize];
    let got = read_full(file, &mut bytes, 0)?;
    Ok(Some(bytes).filter(|_| got as u64 == stamp.size))
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
    Ok(got)
}
